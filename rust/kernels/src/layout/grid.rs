//! A layout seen as a matrix: which part of it is a tile, and how large tiles are.

use super::Layout;

/// A tile that is crossed by a stream running along its rows' dimension is this many rows high, if there are as many:
/// whole cache lines, and several of a page.
const ROWS: usize = 64;
/// Elements of a tile that is copied row by row, at most: it and the lines it comes from lie in the first-level cache
/// together, for lines that several rows share.
const ROW_BY_ROW: usize = 1024;
/// But a tile is no narrower than this, if there are as many columns.
const COLUMNS: usize = 32;

/// Columns shorter than this are copied row by row, also where they are contiguous.
pub(crate) const SHORT_COLUMN: usize = 16;

/// Rows along one dimension, columns along the innermost one. Other dimensions, if any, enumerate such matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid<'l> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Each stream's distance between rows, and between columns.
    pub(crate) row: &'l [isize],
    pub(crate) column: &'l [isize],
    /// Elements, in the order of walking, from one row to the next.
    pub(crate) step: usize,
    /// Whether some stream runs along the rows' dimension, across the rows.
    pub(crate) crossed: bool,
}

impl Layout {
    /// The grid of this layout. If a stream is not walked with its smallest stride innermost, its rows are along that
    /// stream's smallest stride; else along the innermost dimension but one.
    pub(crate) fn grid(&self) -> Grid<'_> {
        let last = self.sizes.len() - 1;
        let crossing = (0..self.streams()).find_map(|s| {
            let stride = |d: usize| self.stride(d, s).unsigned_abs();
            (0..last).filter(|&d| stride(d) > 0 && stride(d) < stride(last)).min_by_key(|&d| stride(d))
        });
        let (columns, column) = (self.sizes[last], self.strides(last));
        match crossing.or_else(|| last.checked_sub(1)) {
            None => Grid { rows: 1, columns, row: column, column, step: columns, crossed: false },
            Some(d) => {
                let (rows, row, step) = (self.sizes[d], self.strides(d), self.sizes[d + 1..].iter().product());
                Grid { rows, columns, row, column, step, crossed: crossing.is_some() }
            }
        }
    }
}

impl<'l> Grid<'l> {
    /// Whether the elements of a row of stream `s` lie one after the other.
    pub(crate) fn has_rows(&self, s: usize) -> bool {
        self.column[s] == 1
    }

    /// Whether all elements of a tile of whole rows do.
    pub(crate) fn is_dense(&self, s: usize) -> bool {
        self.has_rows(s) && (self.rows == 1 || self.row[s] == self.columns as isize)
    }

    /// The tiles of a range in the order of walking, of at most so many elements. With streams that cross the rows, a
    /// range begins and ends with a row. `usize::MAX`: nothing is gathered, and tiles are as large as can be.
    pub(crate) fn tiles(&self, (start, end): (usize, usize), elements: usize) -> Tiles<'l> {
        let row_by_row = elements < usize::MAX && !(self.crossed && self.rows >= SHORT_COLUMN);
        let elements = if row_by_row { elements.min(ROW_BY_ROW) } else { elements };
        let (high, narrow) = if self.crossed { (ROWS.min(self.rows).max(1), COLUMNS) } else { (1, 1) };
        let widest = (elements / high).max(narrow).clamp(1, self.columns.max(1));
        // all of about the same width: a last one of a few columns would cost as much as a wide one
        let columns = self.columns.div_ceil(self.columns.div_ceil(widest).max(1)).next_multiple_of(16).min(widest);
        let rows = (elements / columns.max(1)).max(1);
        Tiles { grid: *self, rows, columns, next: start, within: 0, end }
    }
}

/// Some rows and columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Where its first element is in the order of walking.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Tile {
    pub(crate) fn len(self) -> usize {
        self.rows * self.columns
    }
}

/// The tiles of a range: band of rows by band of rows, each from left to right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles<'l> {
    grid: Grid<'l>,
    /// At most so many of each in a tile.
    rows: usize,
    columns: usize,
    /// Where the next tile begins: the band, and how far into its first row.
    next: usize,
    within: usize,
    end: usize,
}

impl Iterator for Tiles<'_> {
    type Item = Tile;

    fn next(&mut self) -> Option<Tile> {
        let Self { next, within, end, .. } = *self;
        if next == end {
            return None;
        }
        let Grid { rows, columns, step, crossed, .. } = self.grid;
        let (row, column) = (next / step % rows, (next + within) % columns);
        if !crossed && (column > 0 || end - next < columns || self.columns < columns) {
            // a part of a row
            let columns = self.columns.min(columns - column).min(end - next);
            self.next += columns;
            return Some(Tile { first: next, rows: 1, columns });
        }
        let rows = self.rows.min(rows - row).min((end - next) / step);
        let columns = self.columns.min(columns - column);
        self.within += columns;
        if self.within == step {
            (self.next, self.within) = (next + rows * step, 0);
        }
        Some(Tile { first: next + within, rows, columns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes, strides of parameter and gradient; the one state lies as the parameter.
    fn layout(sizes: &[usize], param: &[isize], grad: &[isize]) -> Layout {
        let strides: Vec<_> = param.iter().zip(grad).flat_map(|(&p, &g)| [p, g, p]).collect();
        Layout::new(sizes, &strides, &[0; 3])
    }

    fn tiles(grid: &Grid<'_>, range: (usize, usize), elements: usize) -> Vec<(usize, usize, usize)> {
        grid.tiles(range, elements).map(|Tile { first, rows, columns }| (first, rows, columns)).collect()
    }

    #[test]
    fn rows_are_along_what_crosses_them() {
        let lying = layout(&[5, 7], &[10, 1], &[7, 1]);
        let plain = lying.grid();
        assert_eq!((plain.rows, plain.columns, plain.step, plain.crossed), (5, 7, 7, false));
        assert!(plain.has_rows(0) && !plain.is_dense(0) && plain.is_dense(1));
        let lying = layout(&[5, 7], &[7, 1], &[1, 5]);
        let transposed = lying.grid();
        assert_eq!((transposed.rows, transposed.step, transposed.crossed), (5, 7, true));
        // the gradient's innermost dimension is the parameter's outermost
        let lying = layout(&[5, 3, 7], &[21, 7, 1], &[1, 70, 5]);
        let far = lying.grid();
        assert_eq!((far.rows, far.columns, far.step, far.row[1], far.column[1]), (5, 7, 21, 1, 5));
    }

    #[test]
    fn tiles_of_rows_begin_and_end_anywhere() {
        let lying = layout(&[2, 3, 5], &[100, 10, 1], &[15, 5, 1]);
        let grid = lying.grid();
        assert_eq!(tiles(&grid, (2, 28), 1000), [(2, 1, 3), (5, 2, 5), (15, 2, 5), (25, 1, 3)]);
        assert_eq!(tiles(&grid, (0, 15), 11), [(0, 2, 5), (10, 1, 5)]);
        assert_eq!(tiles(&grid, (0, 10), 3), [(0, 1, 3), (3, 1, 2), (5, 1, 3), (8, 1, 2)]);
        assert_eq!(tiles(&grid, (4, 4), 3), []);
    }

    #[test]
    fn tiles_that_are_crossed_are_high() {
        let lying = layout(&[100, 2, 80], &[160, 80, 1], &[1, 16_000, 100]);
        let grid = lying.grid();
        let found = tiles(&grid, (0, 100 * 160), 64 * 40);
        assert_eq!(found[..5], [(0, 64, 40), (40, 64, 40), (80, 64, 40), (120, 64, 40), (64 * 160, 36, 40)]);
        assert_eq!(found.iter().map(|tile| tile.1 * tile.2).sum::<usize>(), 100 * 160);
    }

    #[test]
    fn nothing_has_no_tiles() {
        for (sizes, param, grad) in [([0, 4], [4, 1], [1, 2]), ([4, 0], [1, 1], [1, 4]), ([0, 0], [2, 1], [1, 2])] {
            assert_eq!(tiles(&layout(&sizes, &param, &grad).grid(), (0, 0), 1000), []);
        }
    }
}
