//! Reductions: sums, products and the largest of all elements, in `f64` over the fixed lanes of `lanes.rs`.
//!
//! Element i of what lies in one piece goes to lane i modulo their number, and the lanes are added pairwise: the same
//! bits for any SIMD level and number of threads.

use std::cell::Cell;

use super::functions::Functions;
use super::vectors::Vector;
use crate::lanes::{LANES, pairwise};

/// What a reduction has found in each lane.
pub(crate) type Lanes = [f64; LANES];

/// The larger of two numbers, NaN if either is.
#[inline(always)]
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

/// Kinds of reductions: sums, sums of products, the largest number without its sign.
pub(super) const SUM: u8 = 0;
pub(super) const DOT: u8 = 1;
pub(super) const MAX_ABS: u8 = 2;
/// Sums of products of elements with themselves.
pub(super) const SQUARES: u8 = 3;

/// A lane after one more element, or pair of them. (No closure: one that is not inlined has not the SIMD level.)
#[inline(always)]
fn add<const KIND: u8>(lane: f64, x: f64, y: f64) -> f64 {
    match KIND {
        SUM => lane + x,
        DOT => lane + x * y,
        SQUARES => lane + x * x,
        _ => larger(lane, x.abs()),
    }
}

/// The next elements, as many as there are lanes.
#[inline(always)]
fn row<A: Functions, const W: usize>(from: &[Vector<A, W>]) -> [A; LANES] {
    let mut row = [A::ZERO; LANES];
    for (to, from) in row.as_chunks_mut::<W>().0.iter_mut().zip(from) {
        *to = from.get();
    }
    row
}

/// Takes some elements into their lanes: those of `x` with those of `y`. `at` is the place of the first one.
#[inline(always)]
pub(super) fn take<A: Functions, const W: usize, const KIND: u8>(
    x: &[Vector<A, W>],
    y: &[Vector<A, W>],
    (at, elements): (usize, usize),
    lanes: &Cell<Lanes>,
) {
    let rounds = if at.is_multiple_of(LANES) { elements / LANES } else { 0 };
    let per_round = LANES / W;
    // a copy that no variable counts out, so that the compiler keeps it in registers
    let mut found = lanes.get();
    for (x, y) in x.chunks_exact(per_round).zip(y.chunks_exact(per_round)).take(rounds) {
        // a row first, so that the loop over the lanes is long enough for the compiler to vectorise it
        let (x, y) = (row(x), row(y));
        for lane in 0..LANES {
            found[lane] = add::<KIND>(found[lane], x[lane].wide(), y[lane].wide());
        }
    }
    lanes.set(found);
    let lanes: &Cell<[f64]> = lanes;
    let lanes = lanes.as_slice_of_cells();
    for i in rounds * LANES..elements {
        let (x, y) = (x[i / W].get()[i % W], y[i / W].get()[i % W]);
        let lane = &lanes[(at + i) % LANES];
        lane.set(add::<KIND>(lane.get(), x.wide(), y.wide()));
    }
}

/// How the lanes of a chunk, and what was found in chunks, become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// Added.
    Sum,
    /// The largest stays.
    Largest,
}

impl Joined {
    /// What was found in all lanes.
    pub(crate) fn lanes(self, lanes: Lanes) -> f64 {
        match self {
            Self::Sum => pairwise(lanes),
            Self::Largest => lanes.into_iter().fold(0.0, larger),
        }
    }

    /// What was found in two places.
    pub(crate) fn both(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Sum => a + b,
            Self::Largest => larger(a, b),
        }
    }
}
