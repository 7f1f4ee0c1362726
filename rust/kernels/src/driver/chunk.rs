//! A part of one parameter's streams: what is handed to a thread, and which way it takes.

use super::bodies::Bodies;
use super::body::Body;
use super::compact::{self, Gradient, Unpacked};
use super::decoded;
use super::fused;
use super::measured::{Lanes, update};
use super::programmed::{self, Gathered};
use super::rows::RowList;
use super::source::{Flat, Source};
use super::strided;
use super::tensors::in_layout;
use super::types::Types;
use crate::compact::{Compact, Weights};
use crate::formats::{Slice, SliceMut};
use crate::layout::Layout;
use crate::program::{Lanes as Reduced, Pass};
use crate::rule::MAX_STATES;
use crate::simd::{Level, prefetch_far_address};

/// A part of one parameter's streams. Those that are written stand in the step's list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk<'a> {
    pub(super) grad: Slice<'a>,
    pub(super) layout: Option<&'a Layout>,
    /// Its elements, in walking order; with a layout they are counted from its beginning.
    pub(super) range: (usize, usize),
    /// Multiplies the gradient as it is read: minus one to maximise, and whatever unscales or clips.
    pub(super) grad_factor: f64,
    /// Place of its parameter in the step's list of streams; its states follow.
    pub(super) first: u32,
    /// How many of them are its own.
    pub(super) written: u32,
    /// Place of what is done to it in the step's list.
    pub(super) body: u32,
    /// Place of its rows in the step's list, if it is made of some.
    pub(super) rows: Option<u32>,
    /// How its streams are kept, if in fewer bytes.
    pub(super) compact: Option<&'a Compact>,
    /// `None`: no loop is compiled for the formats of its streams, and they are decoded.
    pub(super) types: Option<Types>,
}

impl Chunk<'_> {
    /// What it costs, in elements: a fixed share stands for taking it up.
    #[inline]
    pub(super) fn cost(&self) -> usize {
        self.range.1 - self.range.0 + 64
    }

    /// Prefetches its beginning, given where its written streams lie, of those streams whose bits stand in `read`: many
    /// small ones lie anywhere. A large one is prefetched as it is worked on, and so are rows.
    #[inline]
    pub(super) fn prefetch(&self, written: impl Iterator<Item = usize>, read: u32) {
        if self.rows.is_some() {
            return;
        }
        let lines = ((self.range.1 - self.range.0) / 16 + 1).min(4);
        let prefetch = |stream: usize| (0..lines).for_each(|line| prefetch_far_address(stream + 64 * line));
        written.enumerate().filter(|&(k, _)| read >> in_layout(k) & 1 == 1).for_each(|(_, stream)| prefetch(stream));
        if read & 2 == 2 {
            prefetch(self.grad.address());
        }
    }

    /// Updates what it writes, and measures that if sums are wanted.
    pub(super) fn run(
        &self,
        written: &mut [SliceMut<'_>],
        bodies: &Bodies<'_>,
        rows: &RowList<'_>,
        level: Level,
        sums: Option<&mut Lanes>,
    ) {
        let Self { grad, layout, range, grad_factor: factor, types, .. } = *self;
        let Some(body) = bodies.body(self.body) else { return };
        if let Some(compact) = self.compact {
            return self.run_compact(&body, compact, written, level, sums);
        }
        if let Body::Program(pass, ..) = body {
            return self.run_program(&body, pass, written, rows, level, sums);
        }
        let together = |source: &mut dyn Source, sums| match types {
            Some(types) => update(&body, level, factor, types, source, sums),
            None => decoded::update_all(&body, level, factor, source, sums),
        };
        match (self.rows, layout, types) {
            (Some(own), ..) => together(&mut rows.source(own, written, grad), sums),
            (None, None, _) => together(&mut Flat::new(written, grad, 0, range.1), sums),
            (None, Some(layout), Some(types)) => {
                strided::run(&body, level, factor, types, (written, grad), (layout, range), sums);
            }
            (None, Some(layout), None) => {
                decoded::update_apart(&body, level, factor, (written, grad), (layout, range), sums);
            }
        }
    }

    /// As [`Chunk::run`], for streams in fewer bytes.
    fn run_compact(
        &self,
        body: &Body<'_>,
        compact: &Compact,
        written: &mut [SliceMut<'_>],
        level: Level,
        mut sums: Option<&mut Lanes>,
    ) {
        if let Some(sums) = &mut sums {
            // what stands beside the parameter is a part of what it is
            sums.stored = (compact.weights == Weights::Nearest).then(|| written[0].format());
        }
        let pass = if let Body::Program(pass, ..) = body { Some(*pass) } else { None };
        let writes = compact::writes(pass, compact);
        let (factor, range) = (self.grad_factor, self.range);
        let done = match (self.layout, &sums) {
            (None, None) => fused::run(body, level, factor, (written, self.grad), compact, range.0),
            _ => 0,
        };
        if done == range.1 - range.0 {
            return;
        }
        let grad = Gradient::of(self.grad, self.layout);
        let mut go = |source: &mut dyn Source| update(body, level, factor, Types::F32, source, sums.take());
        compact::with_tiles(|tiles| {
            go(&mut Unpacked::new(tiles, (written, grad), (compact, writes), range, level).after(done));
        });
    }

    /// Runs the walk of a program that writes, and measures that if sums are wanted: streams of any formats.
    fn run_program(
        &self,
        body: &Body<'_>,
        pass: &Pass,
        written: &mut [SliceMut<'_>],
        rows: &RowList<'_>,
        level: Level,
        sums: Option<&mut Lanes>,
    ) {
        let Self { grad, layout, range, grad_factor: factor, types, .. } = *self;
        // a program asks only whether they are of `f64`
        let any = if grad.format().is_double() { Types::F64 } else { Types::F32 };
        match (self.rows, layout, types) {
            (Some(own), ..) => update(body, level, factor, any, &mut rows.source(own, written, grad), sums),
            (None, None, _) => update(body, level, factor, any, &mut Flat::new(written, grad, 0, range.1), sums),
            (None, Some(layout), Some(types)) if written.len() <= 1 + MAX_STATES => {
                strided::run(body, level, factor, types, (written, grad), (layout, range), sums);
            }
            (None, Some(layout), _) if any == Types::F64 => {
                let mut source = Gathered::<f64>::new(pass, (written, grad), (layout, range));
                update(body, level, factor, any, &mut source, sums);
            }
            (None, Some(layout), _) => {
                let mut sums = sums;
                if let Some(sums) = &mut sums {
                    sums.stored = Some(written[0].format());
                }
                let mut source = Gathered::<f32>::new(pass, (written, grad), (layout, range));
                update(body, level, factor, any, &mut source, sums);
            }
        }
    }

    /// Finds the reductions of a walk of a program, which writes nothing.
    pub(super) fn find(
        &self,
        program: (&Pass, &[f64], usize),
        (streams, rows): (&mut [SliceMut<'_>], &RowList<'_>),
        level: Level,
        lanes: &mut [Reduced],
    ) {
        let Self { grad, layout, range, grad_factor: factor, .. } = *self;
        let double = grad.format().is_double();
        if let Some(compact) = self.compact {
            let grad = Gradient::of(grad, layout);
            return compact::with_tiles(|tiles| {
                let mut source = Unpacked::new(tiles, (streams, grad), (compact, None), range, level);
                programmed::run(program, level, factor, false, &mut source, lanes);
            });
        }
        let mut found = |source: &mut dyn Source| programmed::run(program, level, factor, double, source, lanes);
        match (self.rows, layout) {
            (Some(own), _) => found(&mut rows.source(own, streams, grad)),
            (None, None) => found(&mut Flat::new(streams, grad, 0, range.1)),
            (None, Some(layout)) if double => {
                found(&mut Gathered::<f64>::new(program.0, (streams, grad), (layout, range)));
            }
            (None, Some(layout)) => found(&mut Gathered::<f32>::new(program.0, (streams, grad), (layout, range))),
        }
    }
}
