//! The innermost loop: one formula over slices of numbers.

use std::any::{Any, TypeId};

use super::streaming::Streaming;
use crate::arithmetic::Real;
use crate::chunks::SMALL_CHUNK;
use crate::formats::Element;
use crate::rule::{Formula, MAX_STATES, States};
use crate::simd::{Simd, UNIT, Vectorized, prefetch, prefetch_far};

/// Elements of a block: the inner loop, of constant length, between two rounds of prefetching.
const BLOCK: usize = 64;
/// How many blocks ahead memory is brought into the first-level cache. Few lines can be on their way there at once, and
/// the hardware sees the streams too: further ahead only for half types with states, whose arithmetic keeps it from
/// looking ahead itself.
const AHEAD: usize = 1;
const AHEAD_HALF: usize = 4;
/// How many bytes ahead, down to whole blocks, each stream is brought into the second-level cache. With none, streams
/// that displace each other in the first level (on Zen) are slower by up to a sixth; with twice as many, all others are
/// slower by a tenth.
const FAR_AHEAD: usize = 1280;

/// One formula over one chunk: what is compiled once per SIMD level.
pub(crate) struct Sweep<'a, F, P, G, S> {
    pub(crate) formula: F,
    pub(crate) factor: f64,
    pub(crate) param: &'a mut [P],
    pub(crate) grad: &'a [G],
    pub(crate) states: [&'a mut [S]; MAX_STATES],
}

impl<F, P, G, S> Vectorized for Sweep<'_, F, P, G, S>
where
    F: Formula,
    P: Element,
    G: Element<Arith = P::Arith>,
    S: Element<Arith = P::Arith>,
{
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        let Self { formula, factor, param, grad, states: [s0, s1, s2] } = self;
        let update = formula.formula::<P::Arith>();
        let factor = P::Arith::of(factor);
        // of another type, the state may keep digits that the parameter has not
        let is_copy = F::STATE_IS_PARAM && F::STATES == 1 && TypeId::of::<P>() == TypeId::of::<S>();
        if is_copy && beyond_caches(param.len()) {
            return copying::<P, G, S, P::Arith, _>(simd, &update, factor, param, grad, s0);
        }
        match F::STATES {
            0 => sweep0::<P, G, S, P::Arith, _>(simd, &update, factor, param, grad),
            1 => sweep1::<P, G, S, P::Arith, _>(simd, &update, factor, param, grad, s0),
            2 => sweep2::<P, G, S, P::Arith, _>(simd, &update, factor, param, grad, s0, s1),
            _ => sweep3::<P, G, S, P::Arith, _>(simd, &update, factor, param, grad, s0, s1, s2),
        }
    }
}

/// The loops for 0 to 3 states: over blocks, for prefetching, and units, for converting half types. Each stream is an
/// argument of its own because the compiler then knows that they do not overlap, and vectorises without asking at run
/// time.
macro_rules! sweeps {
    ($(
        $sweep:ident, $unit:ident, $each:ident: $($state:ident -> $wide:ident -> $new:ident),* ; $($absent:ident),*;
    )*) => {$(
        #[inline(always)]
        fn $sweep<P, G, S, A, V: Simd>(
            simd: V,
            update: &impl Fn(A, A, States<A>) -> (A, States<A>),
            factor: A,
            param: &mut [P],
            grad: &[G],
            $($state: &mut [S],)*
        ) where
            P: Element<Arith = A>,
            G: Element<Arith = A>,
            S: Element<Arith = A>,
            A: Real,
        {
            let n = param.len();
            let (param, param_tail) = param.as_chunks_mut::<BLOCK>();
            let (grad, grad_tail) = grad[..n].as_chunks::<BLOCK>();
            $(let $state = $state[..n].as_chunks_mut::<BLOCK>();)*
            let half = P::HALF || G::HALF || S::HALF;
            let states = <[&str]>::len(&[$(stringify!($state)),*]);
            let ahead = if half && states > 0 { AHEAD_HALF } else { AHEAD };
            let far = (states >= 2 || !half) && beyond_caches(n);
            // with many streams the first level is served by the second; half types gain by both
            let near = half || states <= 1 || !far;
            for b in 0..param.len() {
                if far {
                    prefetch_far_block(param, b);
                    prefetch_far_block(grad, b);
                    $(prefetch_far_block($state.0, b);)*
                }
                // what follows a small tensor is another's: bringing it near would cost as much as the tensor
                if near && b + ahead < param.len() {
                    prefetch_block(param, b + ahead, prefetch);
                    prefetch_block(grad, b + ahead, prefetch);
                    $(prefetch_block($state.0, b + ahead, prefetch);)*
                }
                if !(V::CONVERTS && half) {
                    $each::<P, G, S, A>(update, factor, &mut param[b], &grad[b], $(&mut $state.0[b],)*);
                    continue;
                }
                let (param, grad) = (param[b].as_chunks_mut::<UNIT>().0, grad[b].as_chunks::<UNIT>().0);
                $(let $state = $state.0[b].as_chunks_mut::<UNIT>().0;)*
                for u in 0..BLOCK / UNIT {
                    $unit::<P, G, S, A>(simd, update, factor, &mut param[u], &grad[u], $(&mut $state[u],)*);
                }
            }
            $each::<P, G, S, A>(update, factor, param_tail, grad_tail, $($state.1,)*);
        }

        /// Widened, updated and narrowed in registers.
        #[inline(always)]
        #[allow(clippy::extra_unused_type_parameters)] // S, where there are no states
        fn $unit<P, G, S, A>(
            simd: impl Simd,
            update: &impl Fn(A, A, States<A>) -> (A, States<A>),
            factor: A,
            param: &mut [P; UNIT],
            grad: &[G; UNIT],
            $($state: &mut [S; UNIT],)*
        ) where
            P: Element<Arith = A>,
            G: Element<Arith = A>,
            S: Element<Arith = A>,
            A: Real,
        {
            let mut wide_param = P::widen(simd, param);
            let wide_grad = G::widen(simd, grad);
            $(let mut $wide = S::widen(simd, $state);)*
            for i in 0..UNIT {
                $(let $absent = A::ZERO;)*
                let states = [$($wide[i],)* $($absent,)*];
                let (new_param, [$($new,)* $($absent,)*]) = update(wide_param[i], factor * wide_grad[i], states);
                wide_param[i] = new_param;
                $($wide[i] = $new;)*
                $(let _ = $absent;)*
            }
            *param = P::narrow(simd, &wide_param);
            $(*$state = S::narrow(simd, &$wide);)*
        }

        /// Widened, updated and narrowed one by one, in a loop that is vectorised as a whole.
        #[inline(always)]
        #[allow(clippy::extra_unused_type_parameters)] // S, where there are no states
        fn $each<P, G, S, A>(
            update: &impl Fn(A, A, States<A>) -> (A, States<A>),
            factor: A,
            param: &mut [P],
            grad: &[G],
            $($state: &mut [S],)*
        ) where
            P: Element<Arith = A>,
            G: Element<Arith = A>,
            S: Element<Arith = A>,
            A: Real,
        {
            let n = param.len();
            let grad = &grad[..n];
            $(let $state = &mut $state[..n];)*
            for i in 0..n {
                $(let $absent = A::ZERO;)*
                let states = [$($state[i].load(),)* $($absent,)*];
                let (new_param, [$($new,)* $($absent,)*]) = update(param[i].load(), factor * grad[i].load(), states);
                param[i] = P::store(new_param);
                $($state[i] = S::store($new);)*
                $(let _ = $absent;)*
            }
        }
    )*};
}
sweeps! {
    sweep0, unit0, each0: ; s0, s1, s2;
    sweep1, unit1, each1: s0 -> wide0 -> new0; s1, s2;
    sweep2, unit2, each2: s0 -> wide0 -> new0, s1 -> wide1 -> new1; s2;
    sweep3, unit3, each3: s0 -> wide0 -> new0, s1 -> wide1 -> new1, s2 -> wide2 -> new2; ;
}

/// A formula whose one state, of the same type, becomes the parameter. Written past the caches, right after its block
/// of the parameter, the state costs one transfer instead of two. (Prefetching gains nothing with what is left.)
#[inline(always)]
fn copying<P, G, S, A, V: Simd>(
    simd: V,
    update: &impl Fn(A, A, States<A>) -> (A, States<A>),
    factor: A,
    param: &mut [P],
    grad: &[G],
    state: &mut [S],
) where
    P: Element<Arith = A>,
    G: Element<Arith = A>,
    S: Element<Arith = A>,
    A: Real,
{
    let n = param.len();
    let (param, param_tail) = param.as_chunks_mut::<BLOCK>();
    let (grad, grad_tail) = grad[..n].as_chunks::<BLOCK>();
    let (state, state_tail) = state[..n].as_chunks_mut::<BLOCK>();
    let streaming = Streaming::begin();
    for ((param, grad), state) in param.iter_mut().zip(grad).zip(state) {
        sweep0::<P, G, S, A, V>(simd, update, factor, param, grad);
        if let Some(state) = (state as &mut dyn Any).downcast_mut::<[P; BLOCK]>() {
            streaming.copy(param, state);
        }
    }
    sweep1::<P, G, S, A, V>(simd, update, factor, param_tail, grad_tail, state_tail);
}

/// Whether a chunk is of a step that is too large for the caches: only those are this long.
#[inline(always)]
pub(super) fn beyond_caches(chunk: usize) -> bool {
    chunk > SMALL_CHUNK + SMALL_CHUNK / 2
}

/// Asks for the block that lies [`FAR_AHEAD`] of block `b`.
#[inline(always)]
fn prefetch_far_block<T>(blocks: &[[T; BLOCK]], b: usize) {
    prefetch_block(blocks, b + FAR_AHEAD / size_of::<[T; BLOCK]>(), prefetch_far);
}

/// Prefetches every cache line of a block, also of one beyond the end: after a long chunk the next mostly begins there.
#[inline(always)]
fn prefetch_block<T>(blocks: &[[T; BLOCK]], b: usize, prefetch: impl Fn(&[T], usize)) {
    let flat = blocks.as_flattened();
    let per_line = 64 / size_of::<T>();
    for line in 0..BLOCK / per_line {
        prefetch(flat, b * BLOCK + line * per_line);
    }
}
