//! The rows of a parameter that a sparse gradient names.

use super::source::Source;
use crate::formats::{Refused, Slice, SliceMut};

/// Elements of the rows that are handed out together.
pub(super) const ROWS_CHUNK: usize = 16 * 1024;
/// How many rows ahead memory is prefetched: rows lie anywhere.
const ROWS_AHEAD: usize = 8;

/// Which rows a sparse gradient names, and where the gradient of each is.
#[derive(Clone, Copy, Debug)]
pub struct SparseRows<'a> {
    /// The rows, strictly ascending.
    pub rows: &'a [i64],
    /// Elements of a row.
    pub width: usize,
    /// For each of them, which row of the gradient is its own; numbers beyond the gradient's rows go on in `sums`.
    /// `None`: the gradient has just these rows, in this order.
    pub sources: Option<&'a [u32]>,
    /// Further rows of gradients, for parameter rows that the gradient names several times.
    pub sums: Slice<'a>,
}

impl SparseRows<'_> {
    /// Whether rows and streams fit together: those that are written, and the gradient.
    pub(super) fn check(&self, written: &[SliceMut<'_>], grad: &Slice<'_>) -> Result<(), Refused> {
        let Self { rows, width, sources, sums } = *self;
        if !(sums.is_empty() || sums.format() == grad.format()) {
            return Err(Refused::Types);
        }
        let elements = written.first().map_or(0, SliceMut::len);
        let alike = written.iter().all(|stream| stream.len() == elements);
        let ascending = rows.windows(2).all(|pair| pair[0] < pair[1]) && rows.first().is_none_or(|&row| row >= 0);
        let inside = rows.last().is_none_or(|&row| {
            usize::try_from(row).ok().and_then(|row| (row + 1).checked_mul(width)).is_some_and(|end| end <= elements)
        });
        let held = |slice: &Slice<'_>| if slice.is_empty() { Some(0) } else { slice.len().checked_div(width) };
        let (Some(in_grad), Some(in_sums)) = (held(grad), held(&sums)) else { return Err(Refused::Lengths) };
        let whole = in_grad * width == grad.len() && in_sums * width == sums.len();
        let fits = match sources {
            None => width == 0 || rows.len() == in_grad,
            Some(sources) => {
                sources.len() == rows.len()
                    && (width == 0 || sources.iter().all(|&source| (source as usize) < in_grad + in_sums))
            }
        };
        if !(alike && whole && fits && ascending && inside) {
            return Err(Refused::Lengths);
        }
        Ok(())
    }
}

/// What a chunk of rows updates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// A range of places in the step's list.
    pub(super) places: (usize, usize),
    /// The row that the chunk's tensors begin with.
    pub(super) base: usize,
    pub(super) width: usize,
    /// Place of the gradient's further rows in the step's list.
    pub(super) sums: usize,
}

/// All rows of a step.
#[derive(Debug, Default)]
pub(super) struct RowList<'a> {
    /// Row of the parameter, row of the gradient.
    rows: Vec<(usize, usize)>,
    sums: Vec<Slice<'a>>,
    chunks: Vec<Rows>,
}

impl<'a> RowList<'a> {
    /// Adds the rows of one parameter; returns the places of the first of them and of the gradient's further rows.
    pub(super) fn add(&mut self, named: &SparseRows<'a>) -> (usize, usize) {
        let (first, sums) = (self.rows.len(), self.sums.len());
        let source = |i: usize| named.sources.map_or(i, |sources| sources[i] as usize);
        self.rows.extend(named.rows.iter().enumerate().map(|(i, &row)| (row as usize, source(i))));
        self.sums.push(named.sums);
        (first, sums)
    }

    /// Adds what a chunk updates; returns its place.
    pub(super) fn add_chunk(&mut self, rows: Rows) -> u32 {
        self.chunks.push(rows);
        self.chunks.len() as u32 - 1
    }

    /// The rows of a chunk.
    pub(super) fn source<'c, 's>(
        &'c self,
        chunk: u32,
        written: &'c mut [SliceMut<'s>],
        grad: Slice<'c>,
    ) -> RowSource<'c, 's> {
        let own = self.chunks[chunk as usize];
        let (rows, sums) = (&self.rows[own.places.0..own.places.1], self.sums[own.sums]);
        RowSource { written, grad, rows, sums, own, in_grad: grad.len() / own.width }
    }

    /// Empties it, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.chunks.clear();
        self.sums.clear();
    }

    /// Empties it, keeping its memory for rows of any lifetime.
    pub(super) fn recycle<'b>(mut self) -> RowList<'b> {
        self.clear();
        RowList { rows: self.rows, sums: Vec::new(), chunks: self.chunks }
    }
}

/// Rows of a chunk's streams; those that come next are prefetched.
pub(super) struct RowSource<'c, 'a> {
    written: &'c mut [SliceMut<'a>],
    grad: Slice<'c>,
    /// Row of the parameter, row of the gradient: those that are left.
    rows: &'c [(usize, usize)],
    sums: Slice<'c>,
    own: Rows,
    /// How many rows the gradient has.
    in_grad: usize,
}

impl Source for RowSource<'_, '_> {
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<Slice<'s>> {
        let Rows { base, width, .. } = self.own;
        let Self { written, grad, .. } = self;
        if let Some(&(row, source)) = self.rows.get(ROWS_AHEAD) {
            let start = (row - base) * width;
            written.iter().for_each(|stream| stream.prefetch(start, width));
            grad.prefetch(source * width, width);
        }
        let (&(row, source), rest) = self.rows.split_first()?;
        self.rows = rest;
        let start = (row - base) * width;
        slots.iter_mut().zip(&mut **written).for_each(|(slot, stream)| *slot = stream.part(start, width));
        Some(match source.checked_sub(self.in_grad) {
            None => grad.part(source * width, width),
            Some(beyond) => self.sums.part(beyond * width, width),
        })
    }
}
