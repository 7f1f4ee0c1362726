//! How single elements of streams in fewer bytes are read and written: for loops that do all of a step in registers.

pub(crate) use super::codes::QUARTER;
use super::codes::{magnitude_of, relative_of, write_magnitudes, write_relative};
use super::noise::{BLOCK, Bits, Words};
use super::weights::{apart8, apart16, fair, joined, read_master_bf16};
use crate::formats::{Element, bf16};

/// How an element of a parameter is kept, with what stands beside it.
pub(crate) trait Weight {
    /// What is kept of it.
    type Param: Copy;
    /// What stands beside it.
    type Beside: Copy + Default;
    /// Whether it is rounded with fair odds.
    const DRAWS: bool = false;
    /// Whether writing it is work.
    const IN_HALVES: bool = true;
    /// The number that it is.
    fn read(p: Self::Param, beside: Self::Beside) -> f32;
    /// A number as it is kept; `word`: its random bits.
    fn write(x: f32, word: u32) -> (Self::Param, Self::Beside);
}

/// As it is: nothing stands beside it.
pub(crate) struct Single;

impl Weight for Single {
    type Param = f32;
    type Beside = ();
    const IN_HALVES: bool = false;

    #[inline(always)]
    fn read(p: f32, (): ()) -> f32 {
        p
    }
    #[inline(always)]
    fn write(x: f32, _: u32) -> (f32, ()) {
        (x, ())
    }
}

/// See [`Weights::Fair`](super::Weights::Fair).
pub(crate) struct Fair;

impl Weight for Fair {
    type Param = bf16;
    type Beside = ();
    const DRAWS: bool = true;

    #[inline(always)]
    fn read(p: bf16, (): ()) -> f32 {
        p.load()
    }
    #[inline(always)]
    fn write(x: f32, word: u32) -> (bf16, ()) {
        (fair(x, word), ())
    }
}

/// See [`Weights::Residual8`](super::Weights::Residual8).
pub(crate) struct Residual8;

impl Weight for Residual8 {
    type Param = bf16;
    type Beside = u8;
    const DRAWS: bool = true;

    #[inline(always)]
    fn read(p: bf16, rest: u8) -> f32 {
        joined(p, i32::from(rest as i8) << 8)
    }
    #[inline(always)]
    fn write(x: f32, word: u32) -> (bf16, u8) {
        apart8(x, word)
    }
}

/// See [`Weights::Residual16`](super::Weights::Residual16).
pub(crate) struct Residual16;

impl Weight for Residual16 {
    type Param = bf16;
    type Beside = i16;

    #[inline(always)]
    fn read(p: bf16, rest: i16) -> f32 {
        joined(p, i32::from(rest))
    }
    #[inline(always)]
    fn write(x: f32, _: u32) -> (bf16, i16) {
        apart16(x)
    }
}

/// See [`Weights::Master`](super::Weights::Master).
pub(crate) struct Master;

impl Weight for Master {
    type Param = bf16;
    type Beside = f32;

    #[inline(always)]
    fn read(p: bf16, master: f32) -> f32 {
        read_master_bf16(p, master)
    }
    #[inline(always)]
    fn write(x: f32, _: u32) -> (bf16, f32) {
        (bf16::store(x), x)
    }
}

/// How the two states of a rule are kept whose update is their quotient: a mean of gradients, and one of their squares.
///
/// Elements are read four at a time: those that lie a quarter of a block apart have their codes side by side.
pub(crate) trait Pair {
    /// What is kept of an element of the first, and of the second.
    type First: Copy;
    type Second: Copy;
    /// Whether they are in codes, which can be written when all of a block are known, and are tiles until then.
    const IN_CODES: bool = false;
    /// Whether the second is rounded with fair odds when it is written.
    const DRAWS: bool = false;
    /// Both of the elements `w`, and so on in the other quarters, given the headers of their block.
    fn read(
        first: &[Self::First; BLOCK],
        second: &[Self::Second; BLOCK],
        headers: (f32, f32),
        w: usize,
    ) -> [(f32, f32); 4];
    /// Both of one element as they are kept, if they are not in codes; `word`: the second's random bits.
    fn write(first: f32, second: f32, word: u32) -> (Self::First, Self::Second);
    /// Both of a block in codes, out of tiles, and their headers; `noise` is the second's.
    fn encode(
        _first: (&mut [f32; BLOCK], &mut [Self::First; BLOCK]),
        _second: (&mut [f32; BLOCK], &mut [Self::Second; BLOCK]),
        _noise: (Bits, &mut Words),
    ) -> (f32, f32) {
        (0.0, 0.0)
    }
}

/// The elements of a block that belong to word `w` of its codes.
#[inline(always)]
fn of_word<T: Copy>(block: &[T; BLOCK], w: usize) -> [T; 4] {
    [block[w], block[w + QUARTER], block[w + 2 * QUARTER], block[w + 3 * QUARTER]]
}

/// In `f32`.
pub(crate) struct Singles;

impl Pair for Singles {
    type First = f32;
    type Second = f32;

    #[inline(always)]
    fn read(first: &[f32; BLOCK], second: &[f32; BLOCK], _: (f32, f32), w: usize) -> [(f32, f32); 4] {
        let (first, second) = (of_word(first, w), of_word(second, w));
        [0, 1, 2, 3].map(|j| (first[j], second[j]))
    }
    #[inline(always)]
    fn write(first: f32, second: f32, _: u32) -> (f32, f32) {
        (first, second)
    }
}

/// In `bf16`: the first rounded to nearest, the second, which would stall, with fair odds.
pub(crate) struct Halves;

impl Pair for Halves {
    type First = bf16;
    type Second = bf16;
    const DRAWS: bool = true;

    #[inline(always)]
    fn read(first: &[bf16; BLOCK], second: &[bf16; BLOCK], _: (f32, f32), w: usize) -> [(f32, f32); 4] {
        let (first, second) = (of_word(first, w), of_word(second, w));
        [0, 1, 2, 3].map(|j| (first[j].load(), second[j].load()))
    }
    #[inline(always)]
    fn write(first: f32, second: f32, word: u32) -> (bf16, bf16) {
        (bf16::store(first), fair(second, word))
    }
}

/// In codes: the first relative to the root of the second.
pub(crate) struct Codes;

impl Pair for Codes {
    type First = u8;
    type Second = u8;
    const IN_CODES: bool = true;

    #[inline(always)]
    fn read(first: &[u8; BLOCK], second: &[u8; BLOCK], (relative, magnitude): (f32, f32), w: usize) -> [(f32, f32); 4] {
        let word = |codes: &[u8; BLOCK]| u32::from_le_bytes(codes.as_chunks::<4>().0[w]);
        let (first, second) = (word(first), word(second));
        let (read_first, read_second) = (relative_of::<true>(relative), magnitude_of(magnitude));
        [0, 8, 16, 24].map(|place| {
            let v = f32::from_bits(read_second(second >> place & 0xff));
            (f32::from_bits(read_first(first >> place & 0xff, v)), v)
        })
    }
    #[inline(always)]
    fn write(_: f32, _: f32, _: u32) -> (u8, u8) {
        (0, 0)
    }
    #[inline(always)]
    fn encode(
        (m, first): (&mut [f32; BLOCK], &mut [u8; BLOCK]),
        (v, second): (&mut [f32; BLOCK], &mut [u8; BLOCK]),
        noise: (Bits, &mut Words),
    ) -> (f32, f32) {
        let magnitude = write_magnitudes(v, second, noise);
        (write_relative(m, (v, true), first), magnitude)
    }
}
