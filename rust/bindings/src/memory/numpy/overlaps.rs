//! Arrays of a step that lie among each other: whether they share elements, and how kernels get at them if not.

use oxistep_kernels::overlap::Range;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::memory::numpy::buffer::Buffer;
use crate::memory::span::{meeting, shared};

/// How the arrays of a set are handed to kernels.
#[derive(Debug)]
pub(super) enum Way {
    /// As they are.
    Whole,
    /// They lie between the rows of others, or those between theirs: row by row, all indices but so many.
    Rows(usize),
    /// As above, where rows are short: copied, updated and written back.
    Copies(Vec<Buffer>),
}

/// The place of the gradient, which is only read, among the arrays of a set; its parameter comes first.
pub(super) const GRADIENT: usize = 1;

/// Shorter rows are copied: to take one up costs as much.
const SHORT: usize = 32;

/// The ways of so many sets. `ranges` are what arrays reach over, with their sets and whether they are only read;
/// `runs` calls back with what lies in one piece of the arrays of a set, and the place of that array in it;
/// `rows` tells the rows of a set, as `Way::Rows` wants them, and how long they are; `what` names an array of a set.
///
/// # Errors
/// If arrays share elements of which one is written.
pub(super) fn ways(
    sets: usize,
    ranges: impl Iterator<Item = (usize, bool, Range)> + Clone,
    runs: impl Fn(usize, &mut dyn FnMut(Range, usize)),
    rows: impl Fn(usize) -> Option<(usize, usize)>,
    what: impl Fn(usize, usize) -> String,
) -> PyResult<Vec<Way>> {
    let meets = meeting(sets, ranges);
    let mut pieces = Vec::new();
    for k in (0..sets).filter(|&k| meets[k]) {
        runs(k, &mut |range, s| pieces.push((range, (k, s), s == GRADIENT)));
    }
    if let Some((one, other)) = shared(pieces) {
        let remedy = match (one.1, other.1) {
            (GRADIENT, _) | (_, GRADIENT) => "pass the gradient as a copy, grad.copy()",
            (0, 0) => "one step cannot change both; give each of them to an optimizer of its own",
            _ => "replace the state in optimizer.state by its .copy()",
        };
        let (one, other) = (what(one.0, one.1), what(other.0, other.1));
        return Err(PyValueError::new_err(format!(
            "{one} shares memory with another array of this step, {other}: {remedy}"
        )));
    }
    let way = |(k, meets): (usize, bool)| match rows(k) {
        _ if !meets => Way::Whole,
        Some((places, width)) if width >= SHORT => Way::Rows(places),
        _ => Way::Copies(Vec::new()),
    };
    Ok(meets.into_iter().enumerate().map(way).collect())
}
