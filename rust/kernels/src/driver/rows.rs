//! The rows of a parameter that a sparse gradient names.

use super::alike::Source;
use super::measured::{Lanes, update};
use super::{Chunk, Place, Step, Tensors};
use crate::formats::{Refused, Slice};
use crate::layout::STREAMS;
use crate::rules::Constants;
use crate::simd::Level;

/// Elements of the rows that are handed out together.
const ROWS_CHUNK: usize = 16 * 1024;
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

/// What a chunk of rows updates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// A range of places in the step's list.
    places: (usize, usize),
    /// The row that the chunk's tensors begin with.
    base: usize,
    width: usize,
    /// Place of the gradient's further rows in the step's list.
    sums: usize,
}

/// All rows of a step.
#[derive(Debug, Default)]
pub(super) struct RowList<'a> {
    /// Row of the parameter, row of the gradient.
    rows: Vec<(usize, usize)>,
    sums: Vec<Slice<'a>>,
}

impl RowList<'_> {
    /// Empties it, keeping its memory.
    pub(super) fn recycle<'b>(mut self) -> RowList<'b> {
        self.rows.clear();
        RowList { rows: self.rows, sums: Vec::new() }
    }
}

impl<'a> Step<'a> {
    /// Adds the rows of one parameter that a sparse gradient names, to be updated with the constants registered last.
    ///
    /// Parameter and states are flat, in rows of `width` elements; so is the gradient, which holds rows named by
    /// `named`.
    ///
    /// # Errors
    /// If the tensors or rows do not fit together, or their types are not served; nothing was added.
    pub fn push_rows(&mut self, tensors: Tensors<'a>, named: SparseRows<'a>, grad_factor: f64) -> Result<(), Refused> {
        let SparseRows { rows, width, sources, sums } = named;
        let constants = self.constants.len().checked_sub(1).ok_or(Refused::States)?;
        let states = self.states;
        tensors.check_kinds(states)?;
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
        if width == 0 {
            return Ok(()); // rows of nothing
        }
        self.elements += rows.len() * width;
        let first = self.rows.rows.len();
        let source = |i: usize| sources.map_or(i, |sources| sources[i] as usize);
        self.rows.rows.extend(rows.iter().enumerate().map(|(i, &row)| (row as usize, source(i))));
        self.rows.sums.push(sums);
        let each = (ROWS_CHUNK / width).max(1);
        let grad = tensors.grad;
        let (mut rest, mut start) = (tensors, 0); // the row that the rest begins with
        for (i, part) in rows.chunks(each).enumerate() {
            let (base, end) = (part[0] as usize, part[part.len() - 1] as usize + 1);
            let (_, from_base) = rest.split_at((base - start) * width, 0);
            let (tensors, tail) = from_base.split_at((end - base) * width, 0);
            let places = (first + i * each, first + i * each + part.len());
            let rows = Some(Rows { places, base, width, sums: self.rows.sums.len() - 1 });
            let (tensors, range) = (Tensors { grad, ..tensors }, (0, part.len() * width));
            self.chunks.push(Chunk { tensors, constants: constants as u32, range, rows, grad_factor });
            self.places.push(Place { streams: [0; STREAMS], lines: 0 });
            self.note(None);
            (rest, start) = (tail, end);
        }
        Ok(())
    }
}

impl Chunk<'_> {
    /// Updates some rows of its tensors.
    pub(super) fn run_rows(
        &mut self,
        constants: &Constants,
        own: Rows,
        list: &RowList<'_>,
        level: Level,
        moved: Option<&mut Lanes>,
    ) {
        let kinds = self.tensors.kinds();
        let (rows, sums) = (&list.rows[own.places.0..own.places.1], list.sums[own.sums]);
        let in_grad = self.tensors.grad.len() / own.width;
        let mut source = RowSource { tensors: self.tensors.whole(), rows, sums, own, in_grad };
        update(constants, level, self.grad_factor, kinds, &mut source, moved);
    }
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
