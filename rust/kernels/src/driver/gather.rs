//! Between strided memory and a tile, in which rows lie one after the other.

use crate::layout::grid::SHORT_COLUMN;
use crate::simd::prefetch;

/// Where a tile's elements lie: the first one, its neighbours below and to the right.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) first: usize,
    pub(super) row: isize,
    pub(super) column: isize,
}

impl Place {
    #[inline(always)]
    pub(super) fn at(&self, row: usize, column: usize) -> usize {
        (self.first as isize + row as isize * self.row + column as isize * self.column) as usize
    }
}

/// Columns that are copied together where columns are contiguous: side by side they fill the lines of the tile.
const TOGETHER: usize = 8;

/// Fills a tile of so many columns.
pub(super) fn gather<T: Copy>(tile: &mut [T], columns: usize, from: &[T], place: Place) {
    let rows = tile.len() / columns;
    if place.row == 1 && rows >= SHORT_COLUMN {
        let column = |c: usize| &from[place.at(0, c)..][..rows];
        let whole = columns - columns % TOGETHER;
        for c in (0..whole).step_by(TOGETHER) {
            (c + TOGETHER..columns).take(TOGETHER).for_each(|c| ahead(from, place.at(0, c), rows));
            let sides: [&[T]; TOGETHER] = std::array::from_fn(|k| column(c + k));
            for (r, row) in tile.chunks_exact_mut(columns).enumerate() {
                let row = &mut row[c..][..TOGETHER];
                (0..TOGETHER).for_each(|k| row[k] = sides[k][r]);
            }
        }
        for c in whole..columns {
            tile.chunks_exact_mut(columns).zip(column(c)).for_each(|(row, &x)| row[c] = x);
        }
    } else if columns < rows.min(TOGETHER) {
        for c in 0..columns {
            tile.chunks_exact_mut(columns).enumerate().for_each(|(r, row)| row[c] = from[place.at(r, c)]);
        }
    } else {
        for (r, row) in tile.chunks_exact_mut(columns).enumerate() {
            match place.column {
                1 => row.copy_from_slice(&from[place.at(r, 0)..][..columns]),
                2 => {
                    // an array of two is what the compiler vectorises; the last one may be the end of the slice
                    let (pairs, last) = from[place.at(r, 0)..][..2 * columns - 1].as_chunks::<2>();
                    let (body, end) = row.split_at_mut(pairs.len());
                    body.iter_mut().zip(pairs).for_each(|(x, pair)| *x = pair[0]);
                    end.copy_from_slice(last);
                }
                column @ 3.. => {
                    let line = &from[place.at(r, 0)..=place.at(r, columns - 1)];
                    row.iter_mut().enumerate().for_each(|(c, x)| *x = line[c * column as usize]);
                }
                _ => row.iter_mut().enumerate().for_each(|(c, x)| *x = from[place.at(r, c)]),
            }
        }
    }
}

/// Writes a tile of so many columns back.
pub(super) fn scatter<T: Copy>(tile: &[T], columns: usize, to: &mut [T], place: Place) {
    let rows = tile.len() / columns;
    if place.row == 1 && rows >= SHORT_COLUMN {
        for c in 0..columns {
            let column = &mut to[place.at(0, c)..][..rows];
            tile.chunks_exact(columns).zip(column).for_each(|(row, x)| *x = row[c]);
        }
    } else if columns < rows.min(TOGETHER) {
        for c in 0..columns {
            tile.chunks_exact(columns).enumerate().for_each(|(r, row)| to[place.at(r, c)] = row[c]);
        }
    } else {
        for (r, row) in tile.chunks_exact(columns).enumerate() {
            match place.column {
                1 => to[place.at(r, 0)..][..columns].copy_from_slice(row),
                2 => {
                    let (pairs, last) = to[place.at(r, 0)..][..2 * columns - 1].as_chunks_mut::<2>();
                    let (body, end) = row.split_at(pairs.len());
                    pairs.iter_mut().zip(body).for_each(|(pair, &x)| pair[0] = x);
                    last.copy_from_slice(end);
                }
                column @ 3.. => {
                    let line = &mut to[place.at(r, 0)..=place.at(r, columns - 1)];
                    row.iter().enumerate().for_each(|(c, &x)| line[c * column as usize] = x);
                }
                _ => row.iter().enumerate().for_each(|(c, &x)| to[place.at(r, c)] = x),
            }
        }
    }
}

/// Prefetches some elements that follow each other, but no more than eight cache lines: the rest follows of itself.
#[inline(always)]
pub(super) fn ahead<T>(x: &[T], first: usize, count: usize) {
    for i in (0..count).step_by(64 / size_of::<T>()).take(8) {
        prefetch(x, first.wrapping_add(i));
    }
}
