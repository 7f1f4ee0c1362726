//! Where large states lie: out of the way, in the first-level cache, of what is walked over together with them.
//!
//! Processors of AMD's Zen family tell the lines of a set of that cache apart by eight bits folded from their
//! addresses. Of two lines in one set whose bits agree only one can be in it, and each use of one displaces the other.
//! Large tensors all begin at the same place of a page, so that a step meets those of one parameter in the same set: if
//! their bits agree, too, as those of neighbouring tensors of 128 MiB may do, it takes 1.2 to 1.4 times as long, and
//! 2.2 times if those of four do.
//!
//! What torch and the user have allocated lies where it lies. A new state that would be in the way is allocated once
//! more, elsewhere, before anything was written to it.

use std::cell::RefCell;

use oxistep_kernels::MAX_STATES;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::memory::torch::modules::modules;

/// Where a way of the cache repeats itself; no smaller than a page.
const WAY: usize = 4096;
/// Lines that are used at about the same time lie within so many bytes of each other in a way.
const SAME_TIME: usize = 512;

thread_local! {
    /// A parameter's address, and where the states lie that were last made for it. They may be gone: then a place is
    /// given up for nothing.
    static MADE: RefCell<(usize, [usize; MAX_STATES - 1])> = RefCell::default();
}

/// Whether `state`, newly allocated, would be in the way of `tensors` (a parameter and, if it has one, its gradient) or
/// of states that were noted for that parameter.
#[pyfunction]
pub(crate) fn in_the_way(state: &Bound<'_, PyAny>, tensors: &Bound<'_, PyList>) -> PyResult<bool> {
    let torch = &modules(state.py())?.torch;
    let interval = |tensor: &Bound<'_, PyAny>| torch.describe_values(tensor).ok().map(|d| d.memory.interval());
    let Some((start, end)) = interval(state) else { return Ok(false) };
    let others: Vec<usize> = tensors.iter().filter_map(|tensor| interval(&tensor)).map(|(start, _)| start).collect();
    // nothing that lives can lie where a new state lies
    let collides = |&other: &usize| other != start && collide(start, other, end - start);
    Ok(others.iter().any(collides)
        || MADE.with_borrow(|(of, made)| others.first() == Some(of) && made.iter().any(collides)))
}

/// Notes where a state of the parameter at `param` lies.
pub(crate) fn note(param: usize, state: usize) {
    MADE.with_borrow_mut(|(of, made)| {
        if *of != param {
            (*of, *made) = (param, [state; MAX_STATES - 1]);
        }
        made.rotate_left(1);
        made[MAX_STATES - 2] = state;
    });
}

/// Whether walks of `len` bytes from both addresses displace each other's lines on more than a few of the pages. (By
/// chance it is one in 256.)
fn collide(a: usize, b: usize, len: usize) -> bool {
    let apart = a.wrapping_sub(b) % WAY;
    let pages = len / WAY;
    let displaced = |page: &usize| folded(a + page * WAY) == folded(b + page * WAY);
    apart.min(WAY - apart) < SAME_TIME && 16 * (0..pages).filter(displaced).count() > pages
}

/// The bits: of the address 12, 13, 14 with 27, 26, 25, and 15 to 19 with 20 to 24.
///
/// Lipp, Hadžić, Schwarz, Perais, Maurice, Gruss, "Take A Way: Exploring the Security Implications of AMD's Cache Way
/// Predictors", 2020, for Zen and Zen 2; found the same on Zen 4 (docs/experiments.md).
fn folded(address: usize) -> usize {
    let bits = |first: usize, n: usize| address >> first & ((1 << n) - 1);
    let reversed = (bits(25, 1) << 2) | (bits(26, 1) << 1) | bits(27, 1);
    (bits(12, 3) ^ reversed) | ((bits(15, 5) ^ bits(20, 5)) << 3)
}
