//! Tensors of the same types, updated with the same constants: what they have in common is prepared once. For many
//! small tensors that is as much work as the arithmetic.

use std::marker::PhantomData;
use std::mem::{Discriminant, discriminant};

use super::rows::RowList;
use super::{Chunk, Place, Step, Sweep, Tensors, match_types};
use crate::chunks::PLACES_AHEAD;
use crate::formats::{Element, Slice, SliceMut, Storage, bf16, f16};
use crate::rule::{Formula, Visitor};
use crate::rules::Constants;
use crate::simd::{Level, Simd, Vectorized};

/// What chunks have in common that are run by the same loop with the same constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Likeness {
    constants: usize,
    /// The bits of the factor on the gradient.
    grad_factor: u64,
    types: (Discriminant<SliceMut<'static>>, Discriminant<Slice<'static>>, Discriminant<SliceMut<'static>>),
}

impl Likeness {
    #[inline]
    pub(super) fn of(tensors: &Tensors<'_>, constants: usize, grad_factor: f64) -> Self {
        let (param, grad, state) = tensors.kinds();
        let types = (discriminant(&param), discriminant(&grad), discriminant(&state));
        Self { constants, grad_factor: grad_factor.to_bits(), types }
    }
}

impl<'a> Step<'a> {
    /// Notes what the next chunk has in common with others; `None`: nothing.
    #[inline]
    pub(super) fn note(&mut self, like: Option<Likeness>) {
        match self.alike.last_mut() {
            Some(count) if like.is_some() && self.like == like => *count += 1,
            _ => self.alike.push(1),
        }
        self.like = like;
    }
}

/// The types of parameter, gradient and states.
pub(super) type Kinds = (SliceMut<'static>, Slice<'static>, SliceMut<'static>);

impl Tensors<'_> {
    #[inline]
    pub(super) fn kinds(&self) -> Kinds {
        (self.param.kind(), self.grad.kind(), self.states[0].kind())
    }

    /// All elements, borrowed for a while.
    #[inline]
    pub(super) fn whole(&mut self) -> Tensors<'_> {
        let Self { param, grad, states, layout } = self;
        Tensors { param: param.whole(), grad: *grad, states: states.each_mut().map(SliceMut::whole), layout: *layout }
    }
}

/// Where [`dense`] takes tensors from, all of the same types.
pub(super) trait Source {
    fn next(&mut self) -> Option<Tensors<'_>>;
}

impl Source for Option<Tensors<'_>> {
    fn next(&mut self) -> Option<Tensors<'_>> {
        self.take()
    }
}

/// Updates tensors whose elements lie one after the other: whatever they have in common is prepared once.
pub(super) fn dense(constants: &Constants, level: Level, factor: f64, kinds: Kinds, source: &mut dyn Source) {
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

/// Updates chunks one after the other.
pub(super) fn run_alike(
    mut chunks: &mut [Chunk<'_>],
    mut places: &[Place],
    alike: &[usize],
    constants: &[Constants],
    rows: &RowList<'_>,
    level: Level,
) {
    for &count in alike {
        let (run, rest) = std::mem::take(&mut chunks).split_at_mut(count);
        match run {
            [chunk] => chunk.run(constants, rows, level, None),
            [first, ..] => {
                let (constants, factor, kinds) =
                    (&constants[first.constants as usize], first.grad_factor, first.tensors.kinds());
                dense(constants, level, factor, kinds, &mut Alike { chunks: run.iter_mut(), places });
            }
            [] => {}
        }
        (chunks, places) = (rest, &places[count..]);
    }
}

/// Chunks that are alike; those that come next are prefetched.
struct Alike<'c, 'a> {
    chunks: std::slice::IterMut<'c, Chunk<'a>>,
    places: &'c [Place],
}

impl Source for Alike<'_, '_> {
    #[inline]
    fn next(&mut self) -> Option<Tensors<'_>> {
        if let Some(place) = self.places.get(PLACES_AHEAD) {
            place.prefetch();
        }
        self.places = self.places.get(1..).unwrap_or_default();
        self.chunks.next().map(|chunk| chunk.tensors.whole())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Layout, STREAMS};
    use crate::pool::Serial;
    use crate::rule::{Precision, Rule, Scalars};
    use crate::rules::adagrad::Adagrad;

    #[test]
    fn chunks_that_are_alike_are_run_together_and_others_apart() {
        let n = 70;
        let layout = Layout::new(&[n], &[[1, 1, 1, 0, 0]], [0; STREAMS]);
        let rule = |lr| Adagrad { lr, lr_decay: 0.0, weight_decay: 0.0, eps: 1e-10 };
        let constants =
            |lr| Constants::Adagrad(rule(lr).constants(&mut Scalars::new([0.0; 3], [Precision::F32; 3]), true));
        let grad: Vec<f32> = (0..n).map(|i| 0.25 + i as f32).collect();
        let wide: Vec<f64> = grad.iter().map(|&g| g.into()).collect();
        // learning rate, factor on the gradient, float64, strided
        let plain = (0.5, 1.0, false, false);
        let items = [
            plain,
            plain,
            (0.5, -1.0, false, false),
            (0.5, 1.0, true, false),
            (0.5, 1.0, true, false),
            (0.5, 1.0, false, true),
            (0.5, 1.0, false, true),
            plain,
            (0.25, 1.0, false, false),
            (0.25, 1.0, false, false),
        ];
        let updated = |items: &[(f64, f64, bool, bool)]| {
            let (mut f32s, mut f64s) =
                (vec![vec![1.0_f32; 2 * n]; items.len()], vec![vec![1.0_f64; 2 * n]; items.len()]);
            let mut step = Step::default();
            let mut last = None;
            for ((&(lr, factor, double, strided), x), y) in items.iter().zip(&mut f32s).zip(&mut f64s) {
                if last != Some(lr) {
                    step.constants(constants(lr));
                    last = Some(lr);
                }
                let (x, y) = (x.split_at_mut(n), y.split_at_mut(n));
                let (param, grad, state) = if double {
                    (SliceMut::F64(y.0), Slice::F64(&wide), SliceMut::F64(y.1))
                } else {
                    (SliceMut::F32(x.0), Slice::F32(&grad), SliceMut::F32(x.1))
                };
                let states = [state, SliceMut::Absent, SliceMut::Absent];
                step.push(Tensors { param, grad, states, layout: strided.then_some(&layout) }, factor).unwrap();
            }
            let alike = step.alike.clone();
            step.run(&Serial, Level::current()).unwrap();
            (alike, f32s, f64s)
        };
        let (alike, f32s, f64s) = updated(&items);
        assert_eq!(alike, [2, 1, 2, 1, 1, 1, 2]);
        for (k, item) in items.iter().enumerate() {
            let (_, f32_alone, f64_alone) = updated(&[*item]);
            assert_eq!((&f32s[k], &f64s[k]), (&f32_alone[0], &f64_alone[0]), "item {k}");
            assert!(f32s[k][0] != 1.0 || f64s[k][0] != 1.0);
        }
    }
}
