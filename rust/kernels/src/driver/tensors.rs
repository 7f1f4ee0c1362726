//! What a step reads and writes for one parameter: whether it fits together, and how it is cut.

use super::types::{Kinds, match_types};
use crate::formats::{Refused, Slice, SliceMut};
use crate::layout::{Layout, STREAMS};
use crate::rule::MAX_STATES;

/// What a step reads and writes for one parameter. Without a layout, element i of each belongs together.
#[derive(Debug)]
pub struct Tensors<'a> {
    /// The parameter.
    pub param: SliceMut<'a>,
    /// Its gradient.
    pub grad: Slice<'a>,
    /// Its states, in the order of the rule, [`SliceMut::Absent`] beyond them.
    pub states: [SliceMut<'a>; MAX_STATES],
    /// Where the elements lie if not one after the other; its streams are parameter, gradient, states.
    pub layout: Option<&'a Layout>,
}

impl<'a> Tensors<'a> {
    /// Their types.
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

    /// Cuts flat tensors before element `n` of the parameter and its states, and element `grad_n` of the gradient.
    pub(super) fn split_at(self, n: usize, grad_n: usize) -> (Self, Self) {
        let (param, param_rest) = self.param.split_at(n);
        let (grad, grad_rest) = self.grad.split_at(grad_n);
        let mut states: [SliceMut<'a>; MAX_STATES] = Default::default();
        let mut states_rest: [SliceMut<'a>; MAX_STATES] = Default::default();
        for (i, state) in self.states.into_iter().enumerate() {
            let at = n.min(state.len());
            (states[i], states_rest[i]) = state.split_at(at);
        }
        (
            Tensors { param, grad, states, layout: None },
            Tensors { param: param_rest, grad: grad_rest, states: states_rest, layout: None },
        )
    }

    /// Cuts strided tensors before element `i` in the order of walking, the first of these tensors being element
    /// `start`. The gradient, which is only read, stays whole in both.
    pub(super) fn cut(self, layout: &'a Layout, start: usize, i: usize) -> (Self, Self) {
        let at = |s: usize| layout.position(s, i) - origin(layout, s, start);
        let grad = self.grad;
        let (param, param_rest) = self.param.split_at(at(0));
        let mut states: [SliceMut<'a>; MAX_STATES] = Default::default();
        let mut states_rest: [SliceMut<'a>; MAX_STATES] = Default::default();
        for (k, state) in self.states.into_iter().enumerate() {
            let at = if state.is_empty() { 0 } else { at(2 + k) };
            (states[k], states_rest[k]) = state.split_at(at);
        }
        let layout = Some(layout);
        (Tensors { param, grad, states, layout }, Tensors { param: param_rest, grad, states: states_rest, layout })
    }

    /// Storage types and the number of states.
    #[inline]
    pub(super) fn check_kinds(&self, states: usize) -> Result<(), Refused> {
        macro_rules! known {
            ($p:ty, $g:ty, $s:ty) => {
                true
            };
        }
        if !match_types!(&self.param, &self.grad, &self.states[0], known, false) {
            return Err(Refused::Types);
        }
        let kept = |state: &SliceMut<'_>| !matches!(state, SliceMut::Absent);
        if self.states.iter().position(|state| !kept(state)).unwrap_or(MAX_STATES) != states
            || self.states.iter().skip(states).any(kept)
        {
            return Err(Refused::States);
        }
        if self.states[..states].iter().any(|s| std::mem::discriminant(s) != std::mem::discriminant(&self.states[0])) {
            return Err(Refused::Types);
        }
        Ok(())
    }

    /// The lengths of the slices, which must reach as far as the layout, if there is one.
    #[inline]
    pub(super) fn check_lengths(&self, states: usize) -> Result<(), Refused> {
        let mut lengths = [0; STREAMS];
        lengths[0] = self.param.len();
        lengths[1] = self.grad.len();
        self.states.iter().zip(&mut lengths[2..]).for_each(|(state, length)| *length = state.len());
        let fits = |(s, &length): (usize, &usize)| match self.layout {
            None => length == lengths[0],
            Some(layout) => layout.extent(s).is_some_and(|extent| extent <= length),
        };
        if lengths.iter().take(2 + states).enumerate().all(fits) { Ok(()) } else { Err(Refused::Lengths) }
    }
}

/// Where the slice of a written stream, cut before element `start`, begins in the slice that the layout speaks of.
pub(super) fn origin(layout: &Layout, s: usize, start: usize) -> usize {
    if start == 0 { 0 } else { layout.position(s, start) }
}
