//! One number of a storage format, and the type that formulas compute in for it; tiles of many.

use std::fmt::Debug;

use crate::arithmetic::Real;
use crate::simd::{Simd, UNIT, Vectorized};

/// The type that a tensor is stored in.
pub trait Element: Copy + Default + Debug + PartialEq + Send + Sync + 'static {
    /// What formulas compute in for tensors of this type.
    type Arith: Real;
    /// Whether it is a half type.
    const HALF: bool;
    /// Widens exactly.
    fn load(self) -> Self::Arith;
    /// Rounds to nearest even.
    fn store(x: Self::Arith) -> Self;
    /// [`Element::load`] of several.
    fn widen(simd: impl Simd, from: &[Self; UNIT]) -> [Self::Arith; UNIT];
    /// [`Element::store`] of several.
    fn narrow(simd: impl Simd, from: &[Self::Arith; UNIT]) -> [Self; UNIT];
}

/// Widens numbers of any format into a tile.
#[inline(always)]
pub(crate) fn decode<E: Element, V: Simd>(simd: V, from: &[E], tile: &mut [E::Arith]) {
    if V::CONVERTS && E::HALF {
        let ((from, from_tail), (tile, tile_tail)) = (from.as_chunks::<UNIT>(), tile.as_chunks_mut::<UNIT>());
        for (from, to) in from.iter().zip(tile) {
            *to = E::widen(simd, from);
        }
        for (from, to) in from_tail.iter().zip(tile_tail) {
            *to = from.load();
        }
    } else {
        for (from, to) in from.iter().zip(tile) {
            *to = from.load();
        }
    }
}

/// Rounds a tile to numbers of any format.
#[inline(always)]
pub(crate) fn encode<E: Element, V: Simd>(simd: V, tile: &[E::Arith], to: &mut [E]) {
    if V::CONVERTS && E::HALF {
        let ((tile, tile_tail), (to, to_tail)) = (tile.as_chunks::<UNIT>(), to.as_chunks_mut::<UNIT>());
        for (from, to) in tile.iter().zip(to) {
            *to = E::narrow(simd, from);
        }
        for (&from, to) in tile_tail.iter().zip(to_tail) {
            *to = E::store(from);
        }
    } else {
        for (&from, to) in tile.iter().zip(to) {
            *to = E::store(from);
        }
    }
}

/// [`decode`], to be compiled for a level.
pub(crate) struct Decode<'a, E>(pub(crate) &'a [E], pub(crate) &'a mut [f32]);

impl<E: Element<Arith = f32>> Vectorized for Decode<'_, E> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        decode(simd, self.0, self.1);
    }
}

/// [`encode`], to be compiled for a level.
pub(crate) struct Encode<'a, E>(pub(crate) &'a [f32], pub(crate) &'a mut [E]);

impl<E: Element<Arith = f32>> Vectorized for Encode<'_, E> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        encode(simd, self.0, self.1);
    }
}
