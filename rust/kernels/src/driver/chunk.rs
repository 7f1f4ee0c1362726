//! A part of one parameter's tensors: what is handed to a thread, and which way it takes.

use super::measured::{Lanes, update};
use super::rows::{self, RowList, Rows};
use super::strided;
use super::tensors::Tensors;
use crate::layout::STREAMS;
use crate::rules::Constants;
use crate::simd::{Level, prefetch_far_address};

/// A part of one parameter's tensors, with the constants of its step.
#[derive(Debug)]
pub(super) struct Chunk<'a> {
    pub(super) tensors: Tensors<'a>,
    /// Place of its constants in the step's list.
    pub(super) constants: u32,
    /// The range of a strided tensor's elements in walking order.
    pub(super) range: (usize, usize),
    pub(super) rows: Option<Rows>,
    /// Multiplies the gradient as it is read: minus one to maximise, and whatever unscales or clips.
    pub(super) grad_factor: f64,
}

impl Chunk<'_> {
    /// What it costs, in elements: a fixed share stands for taking it up.
    #[inline]
    pub(super) fn cost(&self) -> usize {
        self.range.1 - self.range.0 + 64
    }

    /// Updates it, and measures that if sums are wanted.
    pub(super) fn run(&mut self, constants: &[Constants], rows: &RowList<'_>, level: Level, sums: Option<&mut Lanes>) {
        let Self { tensors, range, grad_factor: factor, .. } = self;
        let constants = &constants[self.constants as usize];
        if let Some(own) = self.rows {
            return rows::run(tensors, own, rows, constants, level, *factor, sums);
        }
        match tensors.layout {
            None => {
                let kinds = tensors.kinds();
                update(constants, level, *factor, kinds, &mut Some(tensors.whole()), sums);
            }
            Some(layout) => strided::run(tensors, layout, *range, constants, level, *factor, sums),
        }
    }
}

/// Where the memory of a chunk begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    streams: [usize; STREAMS],
    /// Cache lines of each worth prefetching: those of a small tensor. A large one is prefetched as it is worked on.
    lines: usize,
}

impl Place {
    /// Nothing that is worth prefetching.
    pub(super) const NOWHERE: Self = Self { streams: [0; STREAMS], lines: 0 };

    #[inline]
    pub(super) fn of(tensors: &Tensors<'_>) -> Self {
        let mut streams = [tensors.param.address(); STREAMS];
        streams[1] = tensors.grad.address();
        streams[2..].iter_mut().zip(&tensors.states).filter(|(_, state)| !state.is_empty()).for_each(|(to, state)| {
            *to = state.address();
        });
        Self { streams, lines: (tensors.param.len() / 16 + 1).min(4) }
    }

    #[inline]
    pub(super) fn prefetch(&self) {
        for stream in self.streams {
            (0..self.lines).for_each(|line| prefetch_far_address(stream + 64 * line));
        }
    }
}
