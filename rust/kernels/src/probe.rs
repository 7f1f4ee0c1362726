//! The ceiling of a benchmark: the driver's loop with the streams of a rule, and next to no arithmetic.
//!
//! ```text
//! theta <- g - theta
//! s     <- -s                                for each state
//! ```
//!
//! One subtraction, and a sign for each state: enough that every stream must be read and written, too little to be
//! waited for. Both are undone by the next step with the same gradient, so that values stay what they are however long
//! it runs. Chunks, threads, SIMD level and prefetching are those of a step; a rule cannot be faster than this but by
//! luck. Nobody trains with it.

use crate::arithmetic::Real;
use crate::chunks::CHUNK;
use crate::driver::sweep::Sweep;
use crate::pool::{Panic, Pool, for_each};
use crate::rule::{Formula, MAX_STATES, States};
use crate::simd::Level;

/// Memory of a probe: a parameter, its gradient and the states; those beyond the streams wanted are empty.
#[derive(Debug)]
pub struct Arrays<'a> {
    /// Read and written.
    pub param: &'a mut [f32],
    /// Read.
    pub grad: &'a [f32],
    /// Read and written; all of them have the parameter's length, or none from some place on.
    pub states: [&'a mut [f32]; MAX_STATES],
}

#[derive(Clone, Copy)]
struct Copying<const STATES: usize>;

impl<const STATES: usize> Formula for Copying<STATES> {
    const STATES: usize = STATES;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        |theta, g, states| (g - theta, states.map(|s| -s))
    }
}

impl<'a> Arrays<'a> {
    /// How many states there are; `None` if the lengths do not fit together.
    fn states(&self) -> Option<usize> {
        let n = self.param.len();
        let states = self.states.iter().take_while(|state| !state.is_empty()).count();
        let fits = self.grad.len() == n && self.states[..states].iter().all(|state| state.len() == n);
        (fits && self.states[states..].iter().all(|state| state.is_empty())).then_some(states)
    }

    fn chunks(self) -> Vec<Self> {
        let mut states = self.states.map(|state| state.chunks_mut(CHUNK));
        let pairs = self.param.chunks_mut(CHUNK).zip(self.grad.chunks(CHUNK));
        let chunk =
            |(param, grad)| Arrays { param, grad, states: states.each_mut().map(|s| s.next().unwrap_or_default()) };
        pairs.map(chunk).collect()
    }

    fn sweep<const STATES: usize>(&mut self, level: Level) {
        let Self { param, grad, states } = self;
        let states = states.each_mut().map(|state| &mut **state);
        level.run(Sweep { formula: Copying::<STATES>, factor: 1.0, param, grad, states });
    }
}

/// Runs the probe once. `None`: the arrays differ in length, and nothing was written.
///
/// # Errors
/// The payload of a panic, which would be a defect.
pub fn run(pool: &dyn Pool, level: Level, arrays: Arrays<'_>) -> Option<Result<(), Panic>> {
    let states = arrays.states()?;
    let cost = |chunk: &Arrays<'_>| chunk.param.len();
    Some(for_each(pool, &mut arrays.chunks(), cost, |_, chunk| match states {
        0 => chunk.sweep::<0>(level),
        1 => chunk.sweep::<1>(level),
        2 => chunk.sweep::<2>(level),
        _ => chunk.sweep::<3>(level),
    }))
}
