//! States in 8 bits: a code for each element, and a header for each block of them.
//!
//! A code of a magnitude, or of what is relative to one, stands for the bits of an `f32`, which are nearly its
//! logarithm, in integer arithmetic. A code of other numbers stands for a power of itself, in arithmetic that is exact
//! or rounded to nearest. Both have the same bits at every SIMD level. Code zero is zero, exactly. What is not finite
//! becomes zero: the element's parameter is lost anyway, and its neighbours are not.
//!
//! Four elements of a block that lie a quarter of it apart have their codes side by side: as a word, which takes a
//! shift to take apart, and no reordering. Codes of a last block that is not full are in order.
//!
//! ```text
//! magnitudes  bits = low + (code - 1) 2^k         low and k from the block's least and largest, rounded with fair odds
//! signed      (code unit)^2, or ^4 where the block is wide        7 bits and a sign, rounded with fair odds in turn
//! relative    bits = those of the divisor + C - (127 - code) 2^19     7 bits and a sign, to nearest
//! ```
//!
//! *Relative*: first moments are kept relative to the (decoded) second moments that they are divided by, so that their
//! quotient, which is what moves a parameter, is never larger than the largest of the block. Second moments move by a
//! thousandth in a step, less than half a code: rounded to nearest they would stick.
//!
//! *Signed*: means of gradients that nothing divides. What rounding adds to such a mean stays for as long as the mean
//! remembers, so codes are close together where most of a block's numbers are: 37 in the first octave, half as many two
//! octaves below. A block is wide if a quarter of its numbers lie deep below the largest; powers of four reach 28
//! octaves, with 20 codes in the first and half as many four octaves below. See `Bits::turning` for the odds.

use super::noise::{BLOCK, Bits, Words};

/// The largest finite number.
const LARGEST: u32 = 0x7f7f_ffff;
/// The bits of a header that hold `k`.
const K: u32 = 31;
/// The place of a code's last bit in relative codes: sixteen in an octave.
const RELATIVE_K: u32 = 19;

/// The bits of a positive finite number; else zero.
#[inline(always)]
fn positive(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits <= LARGEST { bits } else { 0 }
}

/// The bits of a finite number's magnitude; else zero.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    let bits = x.to_bits() & 0x7fff_ffff;
    if bits <= LARGEST { bits } else { 0 }
}

/// The bits of the least magnitude that is not zero, and of the largest, of finite numbers; the first is not below the
/// second where there are none.
#[inline(always)]
fn extremes(tile: &[f32; BLOCK]) -> (u32, u32) {
    let (mut least, mut largest) = (u32::MAX, 0);
    for x in tile {
        let bits = x.to_bits() & 0x7fff_ffff;
        least = least.min(bits.wrapping_sub(1)); // zero is beyond all
        largest = largest.max(bits);
    }
    (least.wrapping_add(1), largest)
}

/// What is below the first code, so that so many steps from it reach the largest, and the steps' size as a power of
/// two: a header. `None`: all are zero.
#[inline(always)]
fn header(least: u32, largest: u32, steps: u32) -> Option<(u32, u32)> {
    if largest == 0 {
        return None;
    }
    let low = least & !K;
    let reach = (largest - low).div_ceil(steps);
    let k = u32::BITS - reach.saturating_sub(1).leading_zeros();
    Some((low, k.max(1)))
}

/// Takes a header apart; `k` is zero where all are zero.
#[inline(always)]
fn parts(header: f32) -> (u32, u32) {
    let bits = header.to_bits();
    (bits & !K, bits & K)
}

/// A quarter of a block: codes of elements that lie so far apart stand side by side.
pub(crate) const QUARTER: usize = BLOCK / 4;

/// Makes numbers of the codes of a block: `read` takes the place of one, and the code.
#[inline(always)]
fn each_code(codes: &[u8; BLOCK], tile: &mut [f32; BLOCK], read: impl Fn(usize, u32) -> u32) {
    for (w, word) in codes.as_chunks::<4>().0.iter().enumerate() {
        let word = u32::from_le_bytes(*word);
        tile[w] = f32::from_bits(read(w, word & 0xff));
        tile[w + QUARTER] = f32::from_bits(read(w + QUARTER, word >> 8 & 0xff));
        tile[w + 2 * QUARTER] = f32::from_bits(read(w + 2 * QUARTER, word >> 16 & 0xff));
        tile[w + 3 * QUARTER] = f32::from_bits(read(w + 3 * QUARTER, word >> 24));
    }
}

/// Makes the codes of a block: `code` takes the place of one and its number, which it may change.
#[inline(always)]
fn make_codes(codes: &mut [u8; BLOCK], tile: &mut [f32; BLOCK], code: impl Fn(usize, &mut f32) -> u32) {
    for (w, word) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let mut made = code(w, &mut tile[w]);
        made |= code(w + QUARTER, &mut tile[w + QUARTER]) << 8;
        made |= code(w + 2 * QUARTER, &mut tile[w + 2 * QUARTER]) << 16;
        made |= code(w + 3 * QUARTER, &mut tile[w + 3 * QUARTER]) << 24;
        *word = made.to_le_bytes();
    }
}

/// The codes of a last block, which stand in order, as those of a full one.
pub(crate) fn filled_up(codes: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    codes.iter().enumerate().for_each(|(e, &code)| block[4 * (e % QUARTER) + e / QUARTER] = code);
    block
}

/// The codes of a last block in order.
pub(crate) fn in_order(block: &[u8; BLOCK], codes: &mut [u8]) {
    codes.iter_mut().enumerate().for_each(|(e, code)| *code = block[4 * (e % QUARTER) + e / QUARTER]);
}

/// Reads a block of magnitudes.
#[inline(always)]
pub(crate) fn read_magnitudes(codes: &[u8; BLOCK], header: f32, tile: &mut [f32; BLOCK]) {
    let (low, k) = parts(header);
    // what code one stands for is `low`
    let base = low.wrapping_sub(1 << k);
    let mut least = u8::MAX;
    for &code in codes {
        least = least.min(code);
    }
    // nearly every block: nothing is zero, and nothing too large
    if least > 0 && u64::from(low) + (254 << k) <= u64::from(LARGEST) {
        return each_code(codes, tile, |_, code| base.wrapping_add(code << k));
    }
    let read = magnitude_of(header);
    each_code(codes, tile, |_, code| read(code));
}

/// What reads one code of a block of magnitudes: the bits of a number.
#[inline(always)]
pub(crate) fn magnitude_of(header: f32) -> impl Fn(u32) -> u32 {
    let (low, k) = parts(header);
    let base = low.wrapping_sub(1 << k);
    move |code| {
        let bits = base.wrapping_add(code << k).min(LARGEST);
        if code == 0 { 0 } else { bits }
    }
}

/// Writes a block of magnitudes, and leaves in the tile what will be read. Returns the header.
#[inline(always)]
pub(crate) fn write_magnitudes(
    tile: &mut [f32; BLOCK],
    codes: &mut [u8; BLOCK],
    (noise, words): (Bits, &mut Words),
) -> f32 {
    let (mut least, mut largest) = (u32::MAX, 0);
    for x in &*tile {
        least = least.min(x.to_bits());
        largest = largest.max(x.to_bits());
    }
    // nearly every block: nothing is zero, negative, or not finite
    let usual = least > 0 && largest <= LARGEST;
    if !usual {
        for x in &mut *tile {
            *x = f32::from_bits(positive(*x));
        }
        (least, largest) = extremes(tile);
    }
    let Some((low, k)) = header(least, largest, 254) else {
        codes.fill(0);
        return 0.0;
    };
    noise.words(words);
    let (base, whole) = (low.wrapping_sub(1 << k), u32::MAX << k);
    // steps from `base`, and what has been rounded
    let steps = |i: usize, x: f32| x.to_bits().wrapping_sub(base).wrapping_add(words.0[i] >> (32 - k));
    if usual && u64::from(low) + (254 << k) <= u64::from(LARGEST) {
        make_codes(codes, tile, |i, x| {
            let steps = steps(i, *x);
            *x = f32::from_bits(base.wrapping_add(steps & whole));
            steps >> k
        });
    } else {
        make_codes(codes, tile, |i, x| {
            let (steps, is_zero) = (steps(i, *x), x.to_bits() == 0);
            *x = f32::from_bits(if is_zero { 0 } else { base.wrapping_add(steps & whole).min(LARGEST) });
            if is_zero { 0 } else { steps >> k }
        });
    }
    f32::from_bits(low | k)
}

/// How many codes of signed numbers of one sign are not zero.
const SIGNED: f32 = 127.0;
/// The largest unit: with it the largest code stands for the largest number, but for a millionth. More would be
/// infinite.
const LARGEST_UNIT: [f32; 2] = [f32::from_bits(0x5c01_0200), f32::from_bits(0x4c01_0200)];
/// The least unit that is written: powers of codes that are denormals can be told from each other, and the largest has
/// the same unit again. What is smaller is rounded with fair odds.
const LEAST_UNIT: [f32; 2] = [f32::from_bits(0x1b80_0000), f32::from_bits(0x2d00_0000)];
/// The bits of a unit that are zero in a header but for the first, which tells of fourth powers.
const UNIT_BITS: u32 = 0xff;
/// So many octaves below the block's largest is deep.
const DEEP: u32 = 5;

/// What a code of signed numbers stands for, times its sign.
#[inline(always)]
fn power<const FOURTH: bool>(code: f32, unit: f32) -> f32 {
    let root = code * unit;
    let square = root * root;
    if FOURTH { square * square } else { square }
}

/// The unit of a block whose largest number is this. It is the same for what is read of that.
#[inline(always)]
fn unit<const FOURTH: bool>(largest: f32) -> f32 {
    let root = if FOURTH { largest.sqrt().sqrt() } else { largest.sqrt() };
    // to fewer bits and up, but for what rounding may have added
    let bits = (root / SIGNED).to_bits();
    let unit = f32::from_bits(bits.wrapping_sub(16).wrapping_add(UNIT_BITS) & !UNIT_BITS);
    unit.min(LARGEST_UNIT[usize::from(FOURTH)]).max(LEAST_UNIT[usize::from(FOURTH)])
}

/// Reads a block of signed numbers.
#[inline(always)]
pub(crate) fn read_signed(codes: &[u8; BLOCK], header: f32, tile: &mut [f32; BLOCK]) {
    let is_fourth = header.to_bits() & 1 == 1;
    let unit = f32::from_bits(header.to_bits() & !UNIT_BITS);
    // whoever wrote the header
    let unit = if unit <= LARGEST_UNIT[usize::from(is_fourth)] && unit > 0.0 { unit } else { 0.0 };
    if is_fourth { powers::<true>(codes, unit, tile) } else { powers::<false>(codes, unit, tile) }
}

#[inline(always)]
fn powers<const FOURTH: bool>(codes: &[u8; BLOCK], unit: f32, tile: &mut [f32; BLOCK]) {
    each_code(codes, tile, |_, code| {
        power::<FOURTH>((code & 0x7f) as i32 as f32, unit).to_bits() | ((code << 24) & 0x8000_0000)
    });
}

/// Writes a block of signed numbers. Returns the header.
#[inline(always)]
pub(crate) fn write_signed(
    tile: &mut [f32; BLOCK],
    codes: &mut [u8; BLOCK],
    (noise, words): (Bits, &mut Words),
) -> f32 {
    let mut largest = 0;
    for x in &*tile {
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    if largest > LARGEST {
        largest = 0;
        for x in &mut *tile {
            *x = if x.is_finite() { *x } else { 0.0 };
            largest = largest.max(x.to_bits() & 0x7fff_ffff);
        }
    }
    if largest == 0 {
        codes.fill(0);
        return 0.0;
    }
    // (zero, which both hold, is neither)
    let deep = largest.saturating_sub(DEEP << 23);
    let (mut below, mut zeros) = (0_u32, 0_u32);
    for x in &*tile {
        let bits = x.to_bits() & 0x7fff_ffff;
        below += u32::from(bits < deep);
        zeros += u32::from(bits == 0);
    }
    noise.turning(words);
    let largest = f32::from_bits(largest);
    let is_wide = 4 * below.saturating_sub(zeros) > BLOCK as u32 - zeros;
    let unit = if is_wide { unit::<true>(largest) } else { unit::<false>(largest) };
    match (is_wide, largest < SMALL_BLOCK) {
        (false, false) => to_powers::<false, false>(tile, codes, unit, words),
        (false, true) => to_powers::<false, true>(tile, codes, unit, words),
        (true, false) => to_powers::<true, false>(tile, codes, unit, words),
        (true, true) => to_powers::<true, true>(tile, codes, unit, words),
    }
    f32::from_bits(unit.to_bits() | u32::from(is_wide))
}

/// In a block whose largest number is below this, 2^-80, products with odds may be denormals, of too few digits.
const SMALL_BLOCK: f32 = f32::from_bits(0x1780_0000);

#[inline(always)]
fn to_powers<const FOURTH: bool, const SMALL: bool>(
    tile: &mut [f32; BLOCK],
    codes: &mut [u8; BLOCK],
    unit: f32,
    words: &Words,
) {
    let inverse = 1.0 / unit;
    // by 2^64, exactly: numbers of small blocks are then compared with what will be read as larger ones are
    let scaled = |x: f32| if SMALL { x * f32::from_bits(0x5f80_0000) } else { x };
    // from here on numbers are whole
    let whole = f32::from_bits(0x4b00_0000);
    make_codes(codes, tile, |i, x| {
        let size = f32::from_bits(x.to_bits() & 0x7fff_ffff);
        let root = if FOURTH { size.sqrt().sqrt() } else { size.sqrt() };
        // the code below, or the one below that where it is the number: that is always rounded up
        let near = root * inverse - 0.5;
        let near = if near > 0.0 { near } else { 0.0 };
        let near = (if near < SIGNED - 1.0 { near } else { SIGNED - 1.0 }) + whole;
        let code = near - whole;
        let (low, high) = (scaled(power::<FOURTH>(code, unit)), scaled(power::<FOURTH>(code + 1.0, unit)));
        // what rounds a positive number up rounds a negative one up
        let word = (words.0[i] ^ (x.to_bits() as i32 >> 31) as u32) >> 16;
        // (never by the least odds that there are: what is far smaller would come too often)
        let odds = (word as i32 as f32 + 0.5) * f32::from_bits(0x3780_0000);
        let up = u32::from(odds * (high - low) < scaled(size) - low);
        let code = (near.to_bits() & 0x7f) + up;
        code | (x.to_bits() >> 24 & 0x80)
    });
}

/// The bits of what a relative code is relative to: nearly those of the root of a second moment. (Half the exponent's
/// bias is missing, here and in the header.)
#[inline(always)]
fn divisor<const ROOT: bool>(of: f32) -> i32 {
    let bits = of.to_bits() as i32;
    if ROOT { bits >> 1 } else { bits }
}

/// How many units the numbers of headers of relative codes stand for: so they are whole, and exact.
const UNIT: i32 = 256;
/// The most units either way: with the reach of the codes they stay within 32 bits.
const UNITS: i32 = 0x0078_0000;

/// Reads a block of numbers that are kept relative to others.
#[inline(always)]
pub(crate) fn read_relative(
    codes: &[u8; BLOCK],
    header: f32,
    (of, root): (&[f32; BLOCK], bool),
    tile: &mut [f32; BLOCK],
) {
    if root { relative::<true>(codes, header, of, tile) } else { relative::<false>(codes, header, of, tile) }
}

#[inline(always)]
fn relative<const ROOT: bool>(codes: &[u8; BLOCK], header: f32, of: &[f32; BLOCK], tile: &mut [f32; BLOCK]) {
    let read = relative_of::<ROOT>(header);
    each_code(codes, tile, |i, code| read(code, of[i]));
}

/// What reads one code of a block of relative numbers, given what it is relative to: the bits of a number.
#[inline(always)]
pub(crate) fn relative_of<const ROOT: bool>(header: f32) -> impl Fn(u32, f32) -> u32 {
    let largest = (header as i32).clamp(-UNITS, UNITS) * UNIT;
    let base = largest - (127 << RELATIVE_K);
    move |code, of| {
        let q = ((code & 0x7f) << RELATIVE_K) as i32;
        let bits = divisor::<ROOT>(of).wrapping_add(base).wrapping_add(q);
        let bits = bits.clamp(0, LARGEST as i32) as u32 | ((code << 24) & 0x8000_0000);
        if q == 0 { 0 } else { bits }
    }
}

/// Writes a block of numbers relative to others, which are as they will be read. Returns the header.
#[inline(always)]
pub(crate) fn write_relative(
    tile: &mut [f32; BLOCK],
    (of, root): (&[f32; BLOCK], bool),
    codes: &mut [u8; BLOCK],
) -> f32 {
    if root { to_relative::<true>(tile, of, codes) } else { to_relative::<false>(tile, of, codes) }
}

#[inline(always)]
fn to_relative<const ROOT: bool>(tile: &mut [f32; BLOCK], of: &[f32; BLOCK], codes: &mut [u8; BLOCK]) -> f32 {
    let (mut most, mut least_of, mut most_of, mut largest) = (0, u32::MAX, 0, i32::MIN);
    for (x, of) in tile.iter().zip(of) {
        let bits = x.to_bits() & 0x7fff_ffff;
        most = most.max(bits);
        least_of = least_of.min(of.to_bits());
        most_of = most_of.max(of.to_bits());
        largest = largest.max((bits as i32).wrapping_sub(divisor::<ROOT>(*of)));
    }
    let usual = least_of > 0 && most_of <= LARGEST;
    if !usual || most > LARGEST || most == 0 {
        // beside a divisor of zero nothing is kept, and what is no number is zero
        largest = i32::MIN;
        for (x, of) in tile.iter_mut().zip(of) {
            if magnitude(*x) == 0 || positive(*of) == 0 {
                *x = 0.0;
            } else {
                largest = largest.max(magnitude(*x) as i32 - divisor::<ROOT>(*of));
            }
        }
        if largest == i32::MIN {
            codes.fill(0);
            return 0.0;
        }
    }
    let units = (largest.div_euclid(UNIT) + i32::from(largest.rem_euclid(UNIT) != 0)).clamp(-UNITS, UNITS);
    let largest = units * UNIT;
    // rounded to nearest, and zero below the first code
    let base = largest - (127 << RELATIVE_K) - (1 << (RELATIVE_K - 1));
    let [least_of, most_of] = [least_of, most_of].map(|bits| divisor::<ROOT>(f32::from_bits(bits)));
    // nearly every block: zeros are below the first code, no number above the last, and no difference overflows
    if usual && -least_of < base && units < UNITS && largest < i32::MAX - most_of {
        make_codes(codes, tile, |i, x| {
            let bits = (x.to_bits() & 0x7fff_ffff) as i32;
            let q = (bits - divisor::<ROOT>(of[i])).wrapping_sub(base) >> RELATIVE_K;
            q.max(0) as u32 | (x.to_bits() >> 24 & 0x80)
        });
    } else {
        let least = largest - (128 << RELATIVE_K);
        make_codes(codes, tile, |i, x| {
            let bits = (x.to_bits() & 0x7fff_ffff) as i32;
            let distance = bits.wrapping_sub(divisor::<ROOT>(of[i])).max(least);
            // (only beside a divisor that is none can this be beyond 32 bits: there the number is zero)
            let q = (distance.wrapping_sub(base) >> RELATIVE_K).clamp(0, 127) as u32;
            let code = if bits == 0 { 0 } else { q };
            code | (x.to_bits() >> 24 & 0x80)
        });
    }
    units as f32
}
