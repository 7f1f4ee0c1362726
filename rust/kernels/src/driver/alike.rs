//! Tensors of the same types, updated with the same constants: what they have in common is prepared once. For many
//! small tensors that is as much work as the arithmetic.

use std::mem::{Discriminant, discriminant};

use super::body;
use super::chunk::{Chunk, Place};
use super::rows::RowList;
use super::source::Source;
use super::tensors::Tensors;
use crate::chunks::PLACES_AHEAD;
use crate::formats::{Slice, SliceMut};
use crate::rules::Constants;
use crate::simd::Level;

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
                body::run(constants, level, factor, kinds, &mut Alike { chunks: run.iter_mut(), places });
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
