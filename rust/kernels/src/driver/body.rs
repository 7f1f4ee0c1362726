//! What is done to the streams of a step: the formula of a rule, from here on a type that loops are compiled for, or a
//! walk of a program.

use std::marker::PhantomData;

use super::programmed;
use super::source::Source;
use super::sweep::Sweep;
use super::types::{Types, match_types};
use crate::formats::{Element, Slice, SliceMut, Storage, bf16, f16};
use crate::program::{Pass, STREAMS};
use crate::rule::{Formula, MAX_STATES, Visitor};
use crate::rules::Constants;
use crate::simd::{Level, Simd, Vectorized};

/// The most streams that a compiled formula writes.
pub(super) const WRITTEN: usize = 1 + MAX_STATES;

/// What is done to parameters, with all that is constant in a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body<'r> {
    /// The formula of a rule.
    Rule(&'r Constants),
    /// A walk of a program that keeps so many states, with the numbers of a tensor.
    Program(&'r Pass, &'r [f64], usize),
}

/// How many states a rule keeps; `None`: it takes its tensors another way, and no number of states fits.
pub(super) fn states_of(constants: &Constants) -> Option<usize> {
    struct Count<'c>(&'c mut Option<usize>);
    impl Visitor for Count<'_> {
        fn visit<F: Formula>(self, _: F) {
            *self.0 = Some(F::STATES);
        }
    }
    let mut count = None;
    constants.visit(Count(&mut count));
    count
}

impl Body<'_> {
    /// How many states it keeps, as [`states_of`] says.
    fn states(&self) -> Option<usize> {
        match self {
            Self::Rule(constants) => states_of(constants),
            Self::Program(_, _, states) => Some(*states),
        }
    }

    /// Updates all that a source hands out: whatever it has in common is prepared once.
    pub(super) fn run(&self, level: Level, factor: f64, types: Types, source: &mut dyn Source) {
        struct Run<'r>(Level, f64, Types, &'r mut dyn Source);
        impl Visitor for Run<'_> {
            #[inline(always)]
            fn visit<F: Formula>(self, formula: F) {
                let Self(level, factor, types, source) = self;
                macro_rules! sweeps {
                    ($p:ty, $g:ty, $s:ty) => {
                        level.run(Sweeps { formula, factor, source, types: PhantomData::<($p, $g, $s)> })
                    };
                }
                match_types!(types, sweeps, unreachable!("looked up when pushed"));
            }
        }
        match *self {
            Self::Rule(constants) => constants.visit(Run(level, factor, types, source)),
            Self::Program(pass, row, states) => {
                let double = types.param.is_double();
                programmed::run((pass, row, states), level, factor, double, source, &mut []);
            }
        }
    }

    /// Hands all that a source hands out to `take`: the streams that are written, and the gradient.
    pub(super) fn each(&self, source: &mut dyn Source, mut take: impl FnMut(&mut [SliceMut<'_>], Slice<'_>)) {
        let Some(written) = self.states().map(|states| 1 + states) else { return };
        loop {
            let mut slots: [SliceMut<'_>; STREAMS] = Default::default();
            let Some(grad) = source.next(&mut slots) else { return };
            take(&mut slots[..written], grad);
        }
    }
}

/// One formula over streams of the same types.
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
        loop {
            let mut slots: [SliceMut<'_>; WRITTEN] = Default::default();
            let Some(grad) = source.next(&mut slots) else { return };
            let [param, states @ ..] = &mut slots;
            if let (Some(param), Some(grad)) = (P::slice_mut(param), G::slice(&grad)) {
                let states = states.each_mut().map(|s| S::slice_mut(s).unwrap_or_default());
                Sweep { formula, factor, param, grad, states }.run(simd);
            }
        }
    }
}
