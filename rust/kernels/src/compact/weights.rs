//! What becomes of the digits that a half type cannot hold.
//!
//! ```text
//! fair        up or down, as often as what is left of the step between is large
//! kahan       the rest in the parameter's own type beside it
//! residual16  parameter p and residual r are the master, bit for bit:  bits = (p << 16) + r, p = (bits + 0x8000) >> 16
//! residual8   the upper half of such a residual, itself rounded with fair odds
//! master      an f32 that the parameter is a copy of
//! ```
//!
//! With a residual the parameter is the master rounded half up in its bits, which differs from nearest-even on exact
//! ties only: rounded to even, a tie would need a residual of 0x8000, which 16 bits with a sign do not hold.

use super::noise::{BLOCK, Bits, Words};
use crate::formats::{Element, bf16};

/// Whether bits are those of no number.
#[inline(always)]
fn is_nan(bits: u32) -> bool {
    bits & 0x7fff_ffff > 0x7f80_0000
}

/// The bits of infinity.
const INFINITY: u32 = 0x7f80_0000;
/// The bits of a quiet NaN.
const QUIET: u32 = 0x7fc0_0000;

/// A NaN as a `bf16`: quiet, with its sign.
#[inline(always)]
fn nan(bits: u32) -> u32 {
    (bits >> 16) | 0x40
}

/// Rounds to `bf16`, up or down with fair odds; infinities and what is no number stay that.
#[inline(always)]
pub(crate) fn fair(x: f32, word: u32) -> bf16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = bits.wrapping_add(if magnitude < INFINITY { word >> 16 } else { 0 });
    let quiet = if magnitude > INFINITY { rounded | 0x40_0000 } else { rounded };
    bf16::from_bits((quiet >> 16) as u16)
}

/// The bits of the largest magnitude.
#[inline(always)]
fn largest(tile: &[f32]) -> u32 {
    let mut largest = 0;
    for x in tile {
        largest = u32::max(largest, x.to_bits() & 0x7fff_ffff);
    }
    largest
}

/// Whether all are numbers, infinity among them.
#[inline(always)]
fn numbers(tile: &[f32]) -> bool {
    largest(tile) <= 0x7f80_0000
}

/// Whether all are finite.
#[inline(always)]
fn finite(tile: &[f32]) -> bool {
    largest(tile) < 0x7f80_0000
}

/// Rounds a tile with fair odds.
#[inline(always)]
pub(crate) fn round_fairly(tile: &[f32], to: &mut [bf16], (noise, words): (Bits, &mut Words)) {
    for (b, (to, tile)) in to.chunks_mut(BLOCK).zip(tile.chunks(BLOCK)).enumerate() {
        noise.skip(b * BLOCK).words(words);
        let each = to.iter_mut().zip(tile).zip(&words.0);
        if finite(tile) {
            for ((to, x), word) in each {
                *to = bf16::from_bits((x.to_bits().wrapping_add(word >> 16) >> 16) as u16);
            }
        } else {
            for ((to, &x), &word) in each {
                *to = fair(x, word);
            }
        }
    }
}

/// The bits of a parameter and what is added to them.
#[inline(always)]
fn sum(p: bf16, rest: i32) -> u32 {
    (u32::from(p.to_bits()) << 16).wrapping_add(rest as u32)
}

/// The master of a parameter and what is added to its bits; the parameter alone where the sum is no number: the
/// residual is then another parameter's, which somebody changed.
#[inline(always)]
pub(crate) fn joined(p: bf16, rest: i32) -> f32 {
    let bits = sum(p, rest);
    if is_nan(bits) { p.load() } else { f32::from_bits(bits) }
}

/// The masters of parameters and residuals, of which `rest` makes what is added.
#[inline(always)]
pub(crate) fn join<R: Copy>(p: &[bf16], residuals: &[R], tile: &mut [f32], rest: impl Fn(R) -> i32) {
    for (x, (&p, &r)) in tile.iter_mut().zip(p.iter().zip(residuals)) {
        *x = f32::from_bits(sum(p, rest(r)));
    }
    if !numbers(tile) {
        for (x, (&p, &r)) in tile.iter_mut().zip(p.iter().zip(residuals)) {
            *x = joined(p, rest(r));
        }
    }
}

/// A master as parameter and residual.
#[inline(always)]
pub(crate) fn apart16(x: f32) -> (bf16, i16) {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    // what is no number becomes the quiet one without a rest
    let magnitude = if magnitude > INFINITY { QUIET } else { magnitude };
    let bits = magnitude | (x.to_bits() & 0x8000_0000);
    (bf16::from_bits((bits.wrapping_add(0x8000) >> 16) as u16), bits as u16 as i16)
}

/// Masters as parameters and residuals.
#[inline(always)]
pub(crate) fn split16(tile: &[f32], p: &mut [bf16], residuals: &mut [i16]) {
    let each = p.iter_mut().zip(residuals).zip(tile);
    if numbers(tile) {
        for ((p, r), x) in each {
            let bits = x.to_bits();
            (*p, *r) = (bf16::from_bits((bits.wrapping_add(0x8000) >> 16) as u16), bits as u16 as i16);
        }
    } else {
        for ((p, r), &x) in each {
            (*p, *r) = apart16(x);
        }
    }
}

/// A master as parameter and the upper half of its residual, which is rounded with fair odds.
#[inline(always)]
pub(crate) fn apart8(x: f32, word: u32) -> (bf16, u8) {
    let bits = x.to_bits();
    let special = bits & 0x7f80_0000 == 0x7f80_0000;
    let upper = if special { bits } else { bits.wrapping_add(word >> 24) } & !0xff;
    let (p, rest) = if is_nan(bits) { (nan(bits), 0) } else { (upper.wrapping_add(0x8000) >> 16, (upper >> 8) as u8) };
    (bf16::from_bits(p as u16), rest)
}

/// Masters as parameters and upper halves of residuals.
#[inline(always)]
pub(crate) fn split8(tile: &[f32], p: &mut [bf16], residuals: &mut [u8], (noise, words): (Bits, &mut Words)) {
    let blocks = p.chunks_mut(BLOCK).zip(residuals.chunks_mut(BLOCK)).zip(tile.chunks(BLOCK));
    for (b, ((p, residuals), tile)) in blocks.enumerate() {
        noise.skip(b * BLOCK).words(words);
        let each = p.iter_mut().zip(residuals).zip(tile).zip(&words.0);
        if finite(tile) {
            for (((p, r), x), word) in each {
                let bits = x.to_bits().wrapping_add(word >> 24);
                *p = bf16::from_bits(((bits & !0xff).wrapping_add(0x8000) >> 16) as u16);
                *r = (bits >> 8) as u8;
            }
        } else {
            for (((p, r), &x), &word) in each {
                (*p, *r) = apart8(x, word);
            }
        }
    }
}

/// The number that a parameter and its compensation stand for. (A compensation is no more than half a unit: a larger
/// one is that of another parameter, which somebody changed.)
#[inline(always)]
pub(crate) fn read_kahan<E: Element<Arith = f32>>(p: E, rest: E) -> f32 {
    let (p, rest) = (p.load(), rest.load());
    if rest.abs() <= p.abs() * f32::from_bits(0x3b80_0000) { p + rest } else { p }
}

/// A number as a parameter and its compensation.
#[inline(always)]
pub(crate) fn write_kahan<E: Element<Arith = f32>>(x: f32) -> (E, E) {
    let p = E::store(x);
    let rest = x - p.load();
    // beside an infinity there is none
    (p, E::store(if rest.is_finite() { rest } else { 0.0 }))
}

/// As [`read_master`], of a parameter that may have been rounded half up, beside a residual.
#[inline(always)]
pub(crate) fn read_master_bf16(p: bf16, master: f32) -> f32 {
    let own = u32::from(p.to_bits()) << 16;
    let near = master.to_bits().wrapping_sub(own).wrapping_add(0x8000) <= 0x1_0000;
    if near { master } else { f32::from_bits(own) }
}

/// The master of a parameter; the parameter itself where somebody changed that.
#[inline(always)]
pub(crate) fn read_master<E: Element<Arith = f32>>(p: E, master: f32) -> f32 {
    let copy = E::store(master).load().to_bits();
    if copy == p.load().to_bits() { master } else { p.load() }
}
