//! What is done to the tensors of a step: the formula of a rule, from here on a type that loops are compiled for.

use std::marker::PhantomData;

use super::source::Source;
use super::sweep::Sweep;
use super::tensors::Tensors;
use super::types::{Kinds, match_types};
use crate::formats::{Element, Slice, SliceMut, Storage, bf16, f16};
use crate::rule::{Formula, Visitor};
use crate::rules::Constants;
use crate::simd::{Level, Simd, Vectorized};

/// How many states the rule keeps.
pub(super) fn states(constants: &Constants) -> usize {
    struct Count<'c>(&'c mut usize);
    impl Visitor for Count<'_> {
        fn visit<F: Formula>(self, _: F) {
            *self.0 = F::STATES;
        }
    }
    // a rule that is not visited takes its tensors another way: no number of states fits
    let mut count = usize::MAX;
    constants.visit(Count(&mut count));
    count
}

/// Updates tensors whose elements lie one after the other: whatever they have in common is prepared once.
pub(super) fn run(constants: &Constants, level: Level, factor: f64, kinds: Kinds, source: &mut dyn Source) {
    struct Run<'r>(Level, f64, Kinds, &'r mut dyn Source);
    impl Visitor for Run<'_> {
        #[inline(always)]
        fn visit<F: Formula>(self, formula: F) {
            let Self(level, factor, (param, grad, state), source) = self;
            macro_rules! sweeps {
                ($p:ty, $g:ty, $s:ty) => {
                    level.run(Sweeps { formula, factor, source, types: PhantomData::<($p, $g, $s)> })
                };
            }
            match_types!(&param, &grad, &state, sweeps, unreachable!("checked when pushed"));
        }
    }
    constants.visit(Run(level, factor, kinds, source));
}

/// One formula over tensors of the same types.
struct Sweeps<'a, F, P, G, S> {
    formula: F,
    factor: f64,
    source: &'a mut dyn Source,
    types: PhantomData<(P, G, S)>,
}

impl<F, P, G, S> Vectorized for Sweeps<'_, F, P, G, S>
where
    F: Formula,
    P: Storage,
    G: Storage + Element<Arith = P::Arith>,
    S: Storage + Element<Arith = P::Arith>,
{
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        let Self { formula, factor, source, .. } = self;
        while let Some(Tensors { mut param, grad, mut states, .. }) = source.next() {
            if let (Some(param), Some(grad)) = (P::slice_mut(&mut param), G::slice(&grad)) {
                let states = states.each_mut().map(|s| S::slice_mut(s).unwrap_or_default());
                Sweep { formula, factor, param, grad, states }.run(simd);
            }
        }
    }
}
