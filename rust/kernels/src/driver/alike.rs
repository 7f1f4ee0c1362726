//! Chunks of the same types, updated with the same constants: what they have in common is prepared once. For many
//! small tensors that is as much work as the arithmetic. Programs may have numbers of each tensor's own.

use std::sync::atomic::AtomicU64;

use super::bodies::Bodies;
use super::chunk::Chunk;
use super::one_by_one::{self, Individual, Own};
use super::rows::RowList;
use super::source::Source;
use super::types::Types;
use crate::chunks::PLACES_AHEAD;
use crate::formats::{Slice, SliceMut};
use crate::program::Program;
use crate::simd::Level;

/// What chunks have in common that are run by the same loop with the same constants, but for those of each tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Likeness {
    body: u32,
    /// The bits of the factor on the gradient.
    grad_factor: u64,
    types: Types,
}

impl Likeness {
    /// What a chunk may have in common with others; `None`: it is run alone.
    #[inline]
    pub(super) fn of(chunk: &Chunk<'_>, bodies: &Bodies<'_>) -> Option<Self> {
        let Chunk { layout, rows, body, grad_factor, types, .. } = *chunk;
        let types = types.filter(|_| layout.is_none() && rows.is_none())?;
        Some(Self { body: bodies.likeness(body), grad_factor: grad_factor.to_bits(), types })
    }
}

/// Updates chunks one after the other, `alike` telling how many in a row are. What programs still need to know of their
/// own tensor is found on the way.
pub(super) fn run_alike<'a>(
    mut streams: &mut [SliceMut<'a>],
    mut chunks: &[Chunk<'a>],
    alike: &[usize],
    bodies: &mut Bodies<'_>,
    rows: &RowList<'_>,
    level: Level,
) {
    for &count in alike {
        let Some(first) = chunks.first() else { return };
        let written = first.written as usize * count;
        let next = Alike { left: count, chunks, streams: &mut *streams, read: u32::MAX };
        match Likeness::of(first, bodies).zip(bodies.individual(first.body)) {
            Some((like, program)) => next.each(program, like, bodies, None, level),
            None => match first.types {
                Some(types) if count > 1 => next.together(types, bodies, level),
                _ => first.run(&mut streams[..written], bodies, rows, level, None),
            },
        }
        (streams, chunks) = (&mut std::mem::take(&mut streams)[written..], &chunks[count..]);
    }
}

/// Finds the next reductions of each chunk that is `going`, one after the other.
pub(super) fn reduce_alike<'a>(
    mut streams: &mut [SliceMut<'a>],
    mut chunks: &[Chunk<'a>],
    alike: &[usize],
    bodies: &mut Bodies<'_>,
    mut reducing: Reducing<'_>,
    level: Level,
    alone: impl Fn(&Chunk<'a>, &mut [SliceMut<'a>], &Bodies<'_>, &[AtomicU64]),
) {
    for &count in alike {
        let Some(first) = chunks.first() else { return };
        let written = first.written as usize;
        match Likeness::of(first, bodies).zip(bodies.individual(first.body)) {
            Some((like, program)) => {
                Alike { left: count, chunks, streams: &mut *streams, read: u32::MAX }.each(
                    program,
                    like,
                    bodies,
                    Some(&mut reducing),
                    level,
                );
            }
            None => {
                for (chunk, streams) in chunks[..count].iter().zip(streams.chunks_mut(written)) {
                    if let Some(found) = reducing.next(chunk) {
                        alone(chunk, streams, bodies, found);
                    }
                }
            }
        }
        (streams, chunks) = (&mut std::mem::take(&mut streams)[written * count..], &chunks[count..]);
    }
}

/// Where reductions go: room for so many of each chunk, of those whose bodies are going on.
pub(super) struct Reducing<'f> {
    pub(super) going: &'f [bool],
    pub(super) found: &'f [AtomicU64],
    pub(super) stride: usize,
}

impl<'f> Reducing<'f> {
    /// The room of the next chunk; `None`: it is not going on.
    fn next(&mut self, chunk: &Chunk<'_>) -> Option<&'f [AtomicU64]> {
        let (own, rest) = self.found.split_at(self.stride);
        self.found = rest;
        self.going[chunk.body as usize].then_some(own)
    }
}

/// Chunks that are alike; those that come next are prefetched.
struct Alike<'c, 'a> {
    left: usize,
    /// What is left of these, and others.
    chunks: &'c [Chunk<'a>],
    streams: &'c mut [SliceMut<'a>],
    /// Bit s: stream s is to be brought near; the parameter is 0, the gradient 1.
    read: u32,
}

impl<'c, 'a> Alike<'c, 'a> {
    /// The next one, and what it writes.
    #[inline]
    fn take(&mut self) -> Option<(&'c Chunk<'a>, &'c mut [SliceMut<'a>])> {
        self.left = self.left.checked_sub(1)?;
        let (chunk, chunks) = self.chunks.split_first()?;
        let (own, streams) = std::mem::take(&mut self.streams).split_at_mut(chunk.written as usize);
        if let Some(ahead) = chunks.get(PLACES_AHEAD - 1) {
            let first = (ahead.first - chunk.first - chunk.written) as usize;
            ahead.prefetch(streams[first..][..ahead.written as usize].iter().map(SliceMut::address), self.read);
        }
        (self.chunks, self.streams) = (chunks, streams);
        Some((chunk, own))
    }

    /// Updates all with the same constants.
    fn together(mut self, types: Types, bodies: &Bodies<'_>, level: Level) {
        let Some(first) = self.chunks.first() else { return };
        if let Some(body) = bodies.body(first.body) {
            body.run(level, first.grad_factor, types, &mut self);
        }
    }

    /// Updates each with its own numbers, or finds what is next to be known of it.
    fn each(
        mut self,
        program: &Program,
        like: Likeness,
        bodies: &mut Bodies<'_>,
        reducing: Option<&mut Reducing<'_>>,
        level: Level,
    ) {
        // (a walk that finds something reads few streams; all that are alike stand at the same level)
        let run = self.chunks.first().filter(|_| reducing.is_some()).and_then(|first| bodies.run(first.body as usize));
        self.read = run.and_then(|run| program.finding(run.known - 1)).map_or(u32::MAX, |pass| pass.reads);
        let (factor, double) = (f64::from_bits(like.grad_factor), like.types.param.is_double());
        one_by_one::run(program, level, factor, double, &mut Individuals { chunks: self, bodies, reducing });
    }
}

impl Source for Alike<'_, '_> {
    #[inline]
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<Slice<'s>> {
        let (chunk, own) = self.take()?;
        slots.iter_mut().zip(own).for_each(|(slot, stream)| *slot = stream.whole());
        Some(chunk.grad)
    }
}

/// Chunks that are alike but for the numbers of their tensors.
struct Individuals<'c, 'a, 'b, 'f> {
    chunks: Alike<'c, 'a>,
    bodies: &'c mut Bodies<'b>,
    reducing: Option<&'c mut Reducing<'f>>,
}

impl Individual for Individuals<'_, '_, '_, '_> {
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<(Slice<'s>, Own<'s>)> {
        let (chunk, streams, found) = loop {
            let (chunk, streams) = self.chunks.take()?;
            let Some(reducing) = &mut self.reducing else { break (chunk, streams, None) };
            if let Some(found) = reducing.next(chunk) {
                break (chunk, streams, Some(found));
            }
        };
        slots.iter_mut().zip(streams).for_each(|(slot, stream)| *slot = stream.whole());
        let (row, known) = self.bodies.own(chunk.body)?;
        Some((chunk.grad, Own { row, known, found }))
    }
}
