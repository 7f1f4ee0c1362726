//! Between streams of any format and tiles of vectors.

use super::functions::Functions;
use super::vectors::Vector;
use crate::formats::{Element, Slice, SliceMut, Storage};
use crate::simd::{Level, Simd, UNIT, Vectorized};

/// A type that programs compute in, with the formats of its streams.
pub(crate) trait Computes: Functions + Storage + Element<Arith = Self> {
    /// Reads some elements into vectors, multiplied by a factor; the last one is filled up with zeros.
    fn read<const W: usize>(level: Level, from: Slice<'_>, to: &[Vector<Self, W>], factor: Self);
    /// Rounds vectors to some elements: the first, and how many.
    fn write<const W: usize>(level: Level, from: &[Vector<Self, W>], to: &mut SliceMut<'_>, part: (usize, usize));
}

macro_rules! computes {
    ($t:ty: $($Variant:ident)*) => {
        impl Computes for $t {
            fn read<const W: usize>(level: Level, from: Slice<'_>, to: &[Vector<Self, W>], factor: Self) {
                match from {
                    $(Slice::$Variant(from) => level.run(Decode { from, to, factor }),)*
                    // streams of another arithmetic are refused
                    _ => {}
                }
            }

            fn write<const W: usize>(
                level: Level,
                from: &[Vector<Self, W>],
                to: &mut SliceMut<'_>,
                (first, n): (usize, usize),
            ) {
                match to {
                    $(SliceMut::$Variant(to) => level.run(Encode { from, to: &mut to[first..first + n] }),)*
                    _ => {}
                }
            }
        }
    };
}
computes!(f32: F32 F16 Bf16);
computes!(f64: F64);

struct Decode<'d, E: Element, const W: usize> {
    from: &'d [E],
    to: &'d [Vector<E::Arith, W>],
    factor: E::Arith,
}

impl<E: Element, const W: usize> Vectorized for Decode<'_, E, W> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        decode(simd, self.from, self.to, self.factor);
    }
}

#[inline(always)]
fn decode<E: Element, V: Simd, const W: usize>(
    simd: V,
    mut from: &[E],
    mut to: &[Vector<E::Arith, W>],
    factor: E::Arith,
) {
    if V::CONVERTS && E::HALF {
        while let (Some((unit, rest)), Some((vectors, left))) =
            (from.split_first_chunk::<UNIT>(), to.split_at_checked(UNIT / W))
        {
            let wide = E::widen(simd, unit);
            for (vector, wide) in vectors.iter().zip(wide.as_chunks::<W>().0) {
                let mut wide = *wide;
                for x in &mut wide {
                    *x = factor * *x;
                }
                vector.set(wide);
            }
            (from, to) = (rest, left);
        }
    }
    let (whole, rest) = from.as_chunks::<W>();
    let (full, last) = to.split_at(whole.len().min(to.len()));
    for (vector, from) in full.iter().zip(whole) {
        vector.set(from.map(|x| factor * x.load()));
    }
    if let (Some(vector), false) = (last.first(), rest.is_empty()) {
        let mut wide = [E::Arith::default(); W];
        for (to, from) in wide.iter_mut().zip(rest) {
            *to = factor * from.load();
        }
        vector.set(wide);
    }
}

struct Encode<'e, E: Element, const W: usize> {
    from: &'e [Vector<E::Arith, W>],
    to: &'e mut [E],
}

impl<E: Element, const W: usize> Vectorized for Encode<'_, E, W> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        encode(simd, self.from, self.to);
    }
}

#[inline(always)]
fn encode<E: Element, V: Simd, const W: usize>(simd: V, mut from: &[Vector<E::Arith, W>], mut to: &mut [E]) {
    if V::CONVERTS && E::HALF {
        while to.len() >= UNIT && from.len() >= UNIT / W {
            let (vectors, left) = from.split_at(UNIT / W);
            let mut wide = [E::Arith::default(); UNIT];
            for (wide, vector) in wide.as_chunks_mut::<W>().0.iter_mut().zip(vectors) {
                *wide = vector.get();
            }
            let (unit, rest) = to.split_at_mut(UNIT);
            unit.copy_from_slice(&E::narrow(simd, &wide));
            (from, to) = (left, rest);
        }
    }
    for (to, vector) in to.chunks_mut(W).zip(from) {
        let wide = vector.get();
        for (to, from) in to.iter_mut().zip(wide) {
            *to = E::store(from);
        }
    }
}
