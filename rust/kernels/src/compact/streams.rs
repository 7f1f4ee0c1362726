//! Tiles of numbers from streams in fewer bytes, and back: what is compiled for each SIMD level.

use super::Weights;
use super::codes::{
    filled_up, in_order, read_magnitudes, read_relative, read_signed, write_magnitudes, write_relative, write_signed,
};
use super::noise::{BLOCK, Bits, Words};
use super::weights::{join, read_kahan, read_master, read_master_bf16, round_fairly, split8, split16, write_kahan};
use crate::arithmetic::Real;
use crate::formats::{Slice, SliceMut, bf16, decode, encode};
use crate::rule::StateKind;
use crate::simd::{Simd, Vectorized};

/// A few blocks, so that all tiles of a parameter stay in the first-level cache, and room that keeps the elements of
/// the next one from lying at the same place in a page: processors take such addresses for each other.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Tile {
    pub(crate) x: [f32; Self::LEN],
    _room: [f32; 48],
}

impl Tile {
    /// Its elements.
    pub(crate) const LEN: usize = 2 * BLOCK;
}

impl Default for Tile {
    fn default() -> Self {
        Self { x: [0.0; Self::LEN], _room: [0.0; 48] }
    }
}

/// Widens the next numbers of a stream.
#[inline(always)]
pub(crate) fn read_numbers(simd: impl Simd, from: Slice<'_>, start: usize, tile: &mut [f32]) {
    let n = tile.len();
    match from {
        Slice::F32(x) => tile.copy_from_slice(&x[start..start + n]),
        Slice::F16(x) => decode(simd, &x[start..start + n], tile),
        Slice::Bf16(x) => decode(simd, &x[start..start + n], tile),
        Slice::F64(_) | Slice::U8(_) | Slice::I16(_) => unreachable!("checked when pushed"),
    }
}

/// Rounds numbers to where they belong in a stream.
#[inline(always)]
pub(crate) fn write_numbers(simd: impl Simd, to: &mut SliceMut<'_>, start: usize, tile: &[f32]) {
    let n = tile.len();
    match to {
        SliceMut::F32(x) => x[start..start + n].copy_from_slice(tile),
        SliceMut::F16(x) => encode(simd, tile, &mut x[start..start + n]),
        SliceMut::Bf16(x) => encode(simd, tile, &mut x[start..start + n]),
        SliceMut::F64(_) | SliceMut::U8(_) | SliceMut::I16(_) => unreachable!("checked when pushed"),
    }
}

/// Rounds numbers with fair odds.
pub(crate) struct WriteFair<'a> {
    pub(crate) to: &'a mut [bf16],
    pub(crate) tile: &'a [f32],
    pub(crate) noise: Bits,
    /// Room for what is drawn.
    pub(crate) words: &'a mut Words,
}

impl Vectorized for WriteFair<'_> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        round_fairly(self.tile, self.to, (self.noise, self.words));
    }
}

/// Reads a state in codes; `of`: the numbers that relative codes are relative to, and whether their root is meant.
pub(crate) struct ReadCodes<'a> {
    pub(crate) kind: StateKind,
    pub(crate) codes: &'a [u8],
    pub(crate) headers: &'a [f32],
    pub(crate) of: Option<(&'a Tile, bool)>,
    pub(crate) tile: &'a mut Tile,
}

impl Vectorized for ReadCodes<'_> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { kind, codes, headers, of, tile } = self;
        let (blocks, tail) = codes.as_chunks::<BLOCK>();
        let last = filled_up(tail);
        let blocks = blocks.iter().chain((!tail.is_empty()).then_some(&last));
        let (tiles, _) = tile.x.as_chunks_mut::<BLOCK>();
        for (b, ((codes, tile), &header)) in blocks.zip(tiles).zip(headers).enumerate() {
            match (kind, of) {
                (StateKind::Magnitude, _) => read_magnitudes(codes, header, tile),
                (StateKind::Relative { .. }, Some((of, root))) => {
                    read_relative(codes, header, (&of.x.as_chunks::<BLOCK>().0[b], root), tile);
                }
                _ => read_signed(codes, header, tile),
            }
        }
    }
}

/// Writes a state in codes, and leaves in the tile what will be read, if others are relative to it.
pub(crate) struct WriteCodes<'a> {
    pub(crate) kind: StateKind,
    pub(crate) codes: &'a mut [u8],
    pub(crate) headers: &'a mut [f32],
    pub(crate) of: Option<(&'a Tile, bool)>,
    pub(crate) tile: &'a mut Tile,
    pub(crate) noise: Bits,
    /// Room for what is drawn.
    pub(crate) words: &'a mut Words,
}

impl Vectorized for WriteCodes<'_> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { kind, codes, headers, of, tile, noise, words } = self;
        let (blocks, tail) = codes.as_chunks_mut::<BLOCK>();
        let mut last = [0; BLOCK];
        let padded = (!tail.is_empty()).then_some(&mut last);
        let (tiles, _) = tile.x.as_chunks_mut::<BLOCK>();
        for (b, ((codes, tile), header)) in blocks.iter_mut().chain(padded).zip(tiles).zip(headers).enumerate() {
            let noise = (noise.skip(b * BLOCK), &mut *words);
            *header = match (kind, of) {
                (StateKind::Magnitude, _) => write_magnitudes(tile, codes, noise),
                (StateKind::Relative { .. }, Some((of, root))) => {
                    write_relative(tile, (&of.x.as_chunks::<BLOCK>().0[b], root), codes)
                }
                _ => write_signed(tile, codes, noise),
            };
        }
        in_order(&last, tail);
    }
}

/// Reads a parameter and what stands beside it.
pub(crate) struct ReadWeights<'a> {
    pub(crate) weights: Weights,
    pub(crate) p: Slice<'a>,
    pub(crate) companion: Option<Slice<'a>>,
    pub(crate) start: usize,
    pub(crate) tile: &'a mut [f32],
}

impl Vectorized for ReadWeights<'_> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        let Self { weights, p, companion, start, tile } = self;
        let end = start + tile.len();
        match (weights, p, companion) {
            (Weights::Residual16, Slice::Bf16(p), Some(Slice::I16(rest))) => {
                join(&p[start..end], &rest[start..end], tile, i32::from);
            }
            (Weights::Residual8, Slice::Bf16(p), Some(Slice::U8(rest))) => {
                join(&p[start..end], &rest[start..end], tile, |rest| i32::from(rest as i8) << 8);
            }
            (Weights::Kahan, Slice::Bf16(p), Some(Slice::Bf16(rest))) => {
                both(&p[start..end], &rest[start..end], tile, read_kahan);
            }
            (Weights::Kahan, Slice::F16(p), Some(Slice::F16(rest))) => {
                both(&p[start..end], &rest[start..end], tile, read_kahan);
            }
            (Weights::Master, Slice::Bf16(p), Some(Slice::F32(master))) => {
                both(&p[start..end], &master[start..end], tile, read_master_bf16);
            }
            (Weights::Master, Slice::F16(p), Some(Slice::F32(master))) => {
                both(&p[start..end], &master[start..end], tile, read_master);
            }
            (_, Slice::Bf16(p), _) => decode(simd, &p[start..end], tile),
            (_, Slice::F16(p), _) => decode(simd, &p[start..end], tile),
            (_, Slice::F32(p), _) => tile.copy_from_slice(&p[start..end]),
            _ => {}
        }
    }
}

/// Moves an average towards what it is of.
pub(crate) struct MoveAverage<'a> {
    pub(crate) average: &'a mut [f32],
    pub(crate) towards: &'a [f32],
    pub(crate) weight: f32,
}

impl Vectorized for MoveAverage<'_> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { average, towards, weight } = self;
        for (average, &x) in average.iter_mut().zip(towards) {
            *average = average.lerp(x, weight);
        }
    }
}

/// Makes numbers of two halves.
#[inline(always)]
fn both<A: Copy, B: Copy>(a: &[A], b: &[B], tile: &mut [f32], read: impl Fn(A, B) -> f32) {
    for (x, (&a, &b)) in tile.iter_mut().zip(a.iter().zip(b)) {
        *x = read(a, b);
    }
}

/// Writes a parameter and what stands beside it.
pub(crate) struct WriteWeights<'a> {
    pub(crate) weights: Weights,
    pub(crate) p: SliceMut<'a>,
    pub(crate) companion: Option<SliceMut<'a>>,
    pub(crate) start: usize,
    pub(crate) noise: Bits,
    /// Room for what is drawn.
    pub(crate) words: &'a mut Words,
    pub(crate) tile: &'a [f32],
}

impl Vectorized for WriteWeights<'_> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        let Self { weights, p, companion, start, noise, words, tile } = self;
        let end = start + tile.len();
        match (weights, p, companion) {
            (Weights::Fair, SliceMut::Bf16(p), _) => round_fairly(tile, &mut p[start..end], (noise, words)),
            (Weights::Residual16, SliceMut::Bf16(p), Some(SliceMut::I16(rest))) => {
                split16(tile, &mut p[start..end], &mut rest[start..end]);
            }
            (Weights::Residual8, SliceMut::Bf16(p), Some(SliceMut::U8(rest))) => {
                split8(tile, &mut p[start..end], &mut rest[start..end], (noise, words));
            }
            (Weights::Kahan, SliceMut::Bf16(p), Some(SliceMut::Bf16(rest))) => {
                apart(tile, &mut p[start..end], &mut rest[start..end], write_kahan);
            }
            (Weights::Kahan, SliceMut::F16(p), Some(SliceMut::F16(rest))) => {
                apart(tile, &mut p[start..end], &mut rest[start..end], write_kahan);
            }
            (_, SliceMut::Bf16(p), companion) => {
                encode(simd, tile, &mut p[start..end]);
                keep_master(companion, start, tile);
            }
            (_, SliceMut::F16(p), companion) => {
                encode(simd, tile, &mut p[start..end]);
                keep_master(companion, start, tile);
            }
            (_, SliceMut::F32(p), _) => p[start..end].copy_from_slice(tile),
            _ => {}
        }
    }
}

/// Takes numbers apart into two halves.
#[inline(always)]
fn apart<A, B>(tile: &[f32], a: &mut [A], b: &mut [B], write: impl Fn(f32) -> (A, B)) {
    for ((a, b), &x) in a.iter_mut().zip(b).zip(tile) {
        (*a, *b) = write(x);
    }
}

#[inline(always)]
fn keep_master(companion: Option<SliceMut<'_>>, start: usize, tile: &[f32]) {
    if let Some(SliceMut::F32(master)) = companion {
        master[start..start + tile.len()].copy_from_slice(tile);
    }
}
