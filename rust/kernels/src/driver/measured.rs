//! A step that also measures itself: for each parameter the squared norms of its update, of itself before it, and of
//! the gradient as the rule takes it.
//!
//! A tile of the old parameter is kept on the stack while it is updated, and compared before it leaves the cache. The
//! update's own bits are those of an unmeasured step. Sums are in f64; element i of a tile goes to lane i mod 64, the
//! lanes of a chunk are added pairwise, its chunks in order: the same bits for any threads and SIMD level.

use std::sync::atomic::{AtomicU64, Ordering};

use super::body::Body;
use super::source::{Flat, Source};
use super::types::Types;
use crate::formats::{Element, Format, Slice, SliceMut, bf16, f16};
use crate::lanes::{LANES, pairwise, sweep};
use crate::simd::{Level, Simd, Vectorized};

/// Elements of a tile; a multiple of the lanes.
const TILE: usize = 1024;

/// Squared norms of one parameter in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moved {
    /// Of the difference between the parameter after the step and before it.
    pub update: f64,
    /// Of the parameter before the step; with a sparse gradient, of the rows that it names.
    pub param: f64,
    /// Of the gradient as the rule takes it: unscaled and clipped.
    pub grad: f64,
}

/// What a measured step found, parameter by parameter; kept for its memory.
#[derive(Debug, Default)]
pub struct Measured {
    /// For each chunk, three numbers as bits: threads write them where they belong.
    pub(super) chunks: Vec<[AtomicU64; 3]>,
    /// For each parameter, one past its last chunk.
    pub(super) ends: Vec<usize>,
}

impl Measured {
    /// Forgets all parameters.
    pub fn clear(&mut self) {
        self.ends.clear();
    }

    /// What was found, in the order in which the parameters were pushed.
    pub fn moved(&self) -> impl Iterator<Item = Moved> {
        self.ends.iter().scan(0, |start, &end| {
            let chunks = &self.chunks[std::mem::replace(start, end)..end];
            let [update, param, grad] =
                [0, 1, 2].map(|k| chunks.iter().map(|sums| f64::from_bits(sums[k].load(Ordering::Relaxed))).sum());
            Some(Moved { update, param, grad })
        })
    }
}

/// Updates what a source hands out as [`Body::run`] does, and measures that if sums are wanted.
pub(super) fn update(
    body: &Body<'_>,
    level: Level,
    factor: f64,
    types: Types,
    source: &mut dyn Source,
    sums: Option<&mut Lanes>,
) {
    let Some(sums) = sums else { return body.run(level, factor, types, source) };
    body.each(source, |written, grad| sums.update(body, level, factor, types, written, grad));
}

/// The sums of a chunk.
pub(super) struct Lanes {
    update: [f64; LANES],
    param: [f64; LANES],
    grad: [f64; LANES],
    /// What the parameter is stored as, if what is updated is a copy of it: it is measured as it will be stored.
    pub(super) stored: Option<Format>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { update: [0.0; LANES], param: [0.0; LANES], grad: [0.0; LANES], stored: None }
    }
}

impl Lanes {
    /// The sums of squares of update, parameter and gradient, as bits; of the gradient, multiplied by its factor.
    pub(super) fn totals(&self, factor: f64) -> [u64; 3] {
        let sums = [pairwise(self.update), pairwise(self.param), pairwise(self.grad) * (factor * factor)];
        sums.map(f64::to_bits)
    }

    /// Adds what became of some elements, at most a tile of them.
    pub(super) fn add<E: Element>(&mut self, level: Level, old: &[E], new: &[E], grad: &[E]) {
        level.run(Compare(old, new, self));
        level.run(Squares(grad, &mut self.grad));
    }

    /// Updates flat streams tile by tile.
    fn update(
        &mut self,
        body: &Body<'_>,
        level: Level,
        factor: f64,
        types: Types,
        written: &mut [SliceMut<'_>],
        grad: Slice<'_>,
    ) {
        for start in (0..grad.len()).step_by(TILE) {
            let n = TILE.min(grad.len() - start);
            macro_rules! keep_and_compare {
                ($($Variant:ident),*) => {
                    match &written[0] {
                        $(SliceMut::$Variant(x) => {
                            let mut old = [Default::default(); TILE];
                            old[..n].copy_from_slice(&x[start..start + n]);
                            body.run(level, factor, types, &mut Flat::new(written, grad, start, n));
                            if let (SliceMut::F32(new), Some(stored)) = (&mut written[0], self.stored) {
                                as_stored(&mut new[start..start + n], stored);
                            }
                            if let SliceMut::$Variant(new) = &written[0] {
                                level.run(Compare(&old[..n], &new[start..start + n], self));
                            }
                        })*
                        SliceMut::U8(_) | SliceMut::I16(_) => unreachable!("refused when pushed"),
                    }
                    match grad.part(start, n) {
                        $(Slice::$Variant(grad) => level.run(Squares(grad, &mut self.grad)),)*
                        Slice::U8(_) | Slice::I16(_) => unreachable!("refused when pushed"),
                    }
                };
            }
            keep_and_compare!(F64, F32, F16, Bf16);
        }
    }
}

/// Rounds numbers as they will be stored.
fn as_stored(x: &mut [f32], stored: Format) {
    match stored {
        Format::F16 => x.iter_mut().for_each(|x| *x = f16::store(*x).load()),
        Format::Bf16 => x.iter_mut().for_each(|x| *x = bf16::store(*x).load()),
        Format::F32 | Format::F64 | Format::U8 | Format::I16 => {}
    }
}

struct Compare<'a, E>(&'a [E], &'a [E], &'a mut Lanes);

impl<E: Element> Vectorized for Compare<'_, E> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self(old, new, lanes) = self;
        sweep(old, &mut lanes.param, |lane: f64, x| {
            let x: f64 = x.load().into();
            lane + x * x
        });
        let (old_rows, old_tail) = old.as_chunks::<LANES>();
        let (new_rows, new_tail) = new[..old.len()].as_chunks::<LANES>();
        for (old, new) in old_rows.iter().zip(new_rows) {
            for l in 0..LANES {
                lanes.update[l] += squared_distance(old[l], new[l]);
            }
        }
        for (lane, (&old, &new)) in lanes.update.iter_mut().zip(old_tail.iter().zip(new_tail)) {
            *lane += squared_distance(old, new);
        }
    }
}

#[inline(always)]
fn squared_distance<E: Element>(old: E, new: E) -> f64 {
    let (old, new): (f64, f64) = (old.load().into(), new.load().into());
    (new - old) * (new - old)
}

struct Squares<'a, E>(&'a [E], &'a mut [f64; LANES]);

impl<E: Element> Vectorized for Squares<'_, E> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        sweep(self.0, self.1, |lane: f64, x: E| {
            let x: f64 = x.load().into();
            lane + x * x
        });
    }
}
