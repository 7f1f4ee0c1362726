//! Reductions: sums, products and the largest of all elements, in `f64` over the fixed lanes of `lanes.rs`.
//!
//! Element i of what lies in one piece goes to lane i modulo their number, and the lanes are added pairwise: the same
//! bits for any SIMD level and number of threads.

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

/// Takes some elements into their lanes: those of `x` with those of `y`. `at` is the place of the first one.
#[inline(always)]
pub(super) fn take<A: Functions, const W: usize>(
    x: &[Vector<A, W>],
    y: &[Vector<A, W>],
    (at, elements): (usize, usize),
    lanes: &mut Lanes,
    add: impl Fn(f64, f64, f64) -> f64,
) {
    let per_round = LANES / W;
    let rounds = if at.is_multiple_of(LANES) { elements / LANES } else { 0 };
    for (x, y) in x.chunks_exact(per_round).zip(y.chunks_exact(per_round)).take(rounds) {
        for ((x, y), lanes) in x.iter().zip(y).zip(lanes.as_chunks_mut::<W>().0) {
            let (x, y) = (x.get(), y.get());
            for lane in 0..W {
                lanes[lane] = add(lanes[lane], x[lane].wide(), y[lane].wide());
            }
        }
    }
    for i in rounds * LANES..elements {
        let (x, y) = (x[i / W].get()[i % W], y[i / W].get()[i % W]);
        let lane = (at + i) % LANES;
        lanes[lane] = add(lanes[lane], x.wide(), y.wide());
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
