//! The rows of a parameter that a sparse gradient names.

use super::measured::{Lanes, update};
use super::source::Source;
use super::tensors::Tensors;
use crate::formats::{Refused, Slice};
use crate::rules::Constants;
use crate::simd::Level;

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
    /// Whether rows and tensors fit together.
    pub(super) fn check(&self, tensors: &Tensors<'_>, states: usize) -> Result<(), Refused> {
        let Self { rows, width, sources, sums } = *self;
        let same_type = std::mem::discriminant(&sums) == std::mem::discriminant(&tensors.grad);
        if !(sums.is_empty() || same_type) {
            return Err(Refused::Types);
        }
        let elements = tensors.param.len();
        let flat = tensors.states[..states].iter().all(|state| state.len() == elements) && tensors.layout.is_none();
        let ascending = rows.windows(2).all(|pair| pair[0] < pair[1]) && rows.first().is_none_or(|&row| row >= 0);
        let inside = rows.last().is_none_or(|&row| {
            usize::try_from(row).ok().and_then(|row| (row + 1).checked_mul(width)).is_some_and(|end| end <= elements)
        });
        let held = |slice: &Slice<'_>| if slice.is_empty() { Some(0) } else { slice.len().checked_div(width) };
        let (Some(in_grad), Some(in_sums)) = (held(&tensors.grad), held(&sums)) else { return Err(Refused::Lengths) };
        let whole = in_grad * width == tensors.grad.len() && in_sums * width == sums.len();
        let fits = match sources {
            None => width == 0 || rows.len() == in_grad,
            Some(sources) => {
                sources.len() == rows.len()
                    && (width == 0 || sources.iter().all(|&source| (source as usize) < in_grad + in_sums))
            }
        };
        if !(flat && whole && fits && ascending && inside) {
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

    /// Empties it, keeping its memory.
    pub(super) fn recycle<'b>(mut self) -> RowList<'b> {
        self.rows.clear();
        RowList { rows: self.rows, sums: Vec::new() }
    }
}

/// Updates some rows of a chunk's tensors.
pub(super) fn run(
    tensors: &mut Tensors<'_>,
    own: Rows,
    list: &RowList<'_>,
    constants: &Constants,
    level: Level,
    factor: f64,
    sums: Option<&mut Lanes>,
) {
    let kinds = tensors.kinds();
    let (rows, beyond) = (&list.rows[own.places.0..own.places.1], list.sums[own.sums]);
    let in_grad = tensors.grad.len() / own.width;
    let mut source = RowSource { tensors: tensors.whole(), rows, sums: beyond, own, in_grad };
    update(constants, level, factor, kinds, &mut source, sums);
}

/// Rows of a chunk's tensors; those that come next are prefetched.
struct RowSource<'c> {
    tensors: Tensors<'c>,
    /// Row of the parameter, row of the gradient: those that are left.
    rows: &'c [(usize, usize)],
    sums: Slice<'c>,
    own: Rows,
    /// How many rows the gradient has.
    in_grad: usize,
}

impl Source for RowSource<'_> {
    fn next(&mut self) -> Option<Tensors<'_>> {
        let Rows { base, width, .. } = self.own;
        let Tensors { param, grad, states, .. } = &mut self.tensors;
        if let Some(&(row, source)) = self.rows.get(ROWS_AHEAD) {
            let start = (row - base) * width;
            param.prefetch(start, width);
            states.iter().for_each(|state| state.prefetch(start, width));
            grad.prefetch(source * width, width);
        }
        let (&(row, source), rest) = self.rows.split_first()?;
        self.rows = rest;
        let start = (row - base) * width;
        let states = states.each_mut().map(|state| state.part(start, width));
        let grad = match source.checked_sub(self.in_grad) {
            None => grad.part(source * width, width),
            Some(beyond) => self.sums.part(beyond * width, width),
        };
        Some(Tensors { param: param.part(start, width), grad, states, layout: None })
    }
}
