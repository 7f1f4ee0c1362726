//! Chunks of the same types, updated with the same constants: what they have in common is prepared once. For many
//! small tensors that is as much work as the arithmetic.

use super::bodies::Bodies;
use super::chunk::Chunk;
use super::rows::RowList;
use super::source::Source;
use super::types::Types;
use crate::chunks::PLACES_AHEAD;
use crate::formats::{Slice, SliceMut};
use crate::simd::Level;

/// What chunks have in common that are run by the same loop with the same constants.
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
    pub(super) fn of(chunk: &Chunk<'_>) -> Option<Self> {
        let Chunk { layout, rows, body, grad_factor, types, .. } = *chunk;
        let types = types.filter(|_| layout.is_none() && rows.is_none())?;
        Some(Self { body, grad_factor: grad_factor.to_bits(), types })
    }
}

/// Updates chunks one after the other, `alike` telling how many in a row are.
pub(super) fn run_alike<'a>(
    mut streams: &mut [SliceMut<'a>],
    mut chunks: &[Chunk<'a>],
    alike: &[usize],
    bodies: &Bodies<'_>,
    rows: &RowList<'_>,
    level: Level,
) {
    for &count in alike {
        let Some(first) = chunks.first() else { return };
        let written = first.written as usize * count;
        match first.types {
            Some(types) if count > 1 => {
                if let Some(body) = bodies.body(first.body) {
                    body.run(level, first.grad_factor, types, &mut Alike { left: count, chunks, streams });
                }
            }
            _ => first.run(&mut streams[..written], bodies, rows, level, None),
        }
        (streams, chunks) = (&mut std::mem::take(&mut streams)[written..], &chunks[count..]);
    }
}

/// Chunks that are alike; those that come next are prefetched.
struct Alike<'c, 'a> {
    left: usize,
    /// What is left of these, and others.
    chunks: &'c [Chunk<'a>],
    streams: &'c mut [SliceMut<'a>],
}

impl Source for Alike<'_, '_> {
    #[inline]
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<Slice<'s>> {
        self.left = self.left.checked_sub(1)?;
        let (chunk, chunks) = self.chunks.split_first()?;
        let (own, streams) = std::mem::take(&mut self.streams).split_at_mut(chunk.written as usize);
        if let Some(ahead) = chunks.get(PLACES_AHEAD - 1) {
            let first = (ahead.first - chunk.first - chunk.written) as usize;
            ahead.prefetch(streams[first..][..ahead.written as usize].iter().map(SliceMut::address));
        }
        (self.chunks, self.streams) = (chunks, streams);
        slots.iter_mut().zip(own).for_each(|(slot, stream)| *slot = stream.whole());
        Some(chunk.grad)
    }
}
