//! The norm of many tensors as one vector: the sum of squares, the sum of absolute values or the largest of them.
//!
//! Sums are kept in f64. The square of an f32 is exact in it and can neither overflow nor vanish, and the loop waits
//! for memory either way. The same bits come out whatever the threads, the SIMD level and the order of the tensors:
//!
//! - a tensor is cut into chunks of fixed size, and element i of a chunk is always added to lane i mod 64;
//! - the 64 lanes of a chunk are added pairwise;
//! - the sums of the chunks are added exactly, as integers (`exact_sum`), so that no order among them is left;
//! - the largest absolute value is found among the bits: a NaN has larger ones than infinity, hence it wins, as in
//!   torch.

use super::reading::{Part, Reading};
use crate::formats::{Element, Slice, bf16, f16};
use crate::lanes::{LANES, pairwise, sweep};
use crate::layout::Layout;
use crate::pool::{Panic, Pool};
use crate::simd::{Level, Simd, Vectorized};

/// Elements gathered from a strided tensor at a time; a multiple of the lanes.
const TILE: usize = 256;

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The sum of absolute values.
    One,
    /// The root of the sum of squares.
    Two,
    /// The largest absolute value.
    Max,
}

/// A norm over many tensors: filled, computed once, and emptied for reuse without giving memory back.
#[derive(Debug, Default)]
pub struct Norm<'a> {
    reading: Reading<'a, f64>,
}

impl<'a> Norm<'a> {
    /// How many elements there are.
    pub fn elements(&self) -> usize {
        self.reading.elements
    }

    /// Adds a tensor; with a layout, the elements that its first stream walks over.
    ///
    /// # Panics
    /// If the slice is too short for the layout.
    pub fn push(&mut self, elements: Slice<'a>, layout: Option<&'a Layout>) {
        self.reading.push(elements, layout);
    }

    /// The norm; NaN if there is one among the elements, else infinite if one is.
    ///
    /// # Errors
    /// The payload of a panic in a kernel, which would be a defect of this crate.
    pub fn compute(&mut self, order: Order, pool: &dyn Pool, level: Level) -> Result<f64, Panic> {
        self.reading.run(pool, |part| found_in(part, order, level))?;
        let sums = self.reading.parts.iter().map(|part| part.found);
        Ok(match order {
            Order::One => exact_sum(sums),
            Order::Two => exact_sum(sums).sqrt(),
            Order::Max => f64::from_bits(sums.map(f64::to_bits).max().unwrap_or(0)),
        })
    }

    /// Empties it, keeping its memory for tensors of any lifetime.
    pub fn recycle<'b>(self) -> Norm<'b> {
        Norm { reading: self.reading.recycle() }
    }
}

fn found_in(part: &Part<'_, f64>, order: Order, level: Level) -> f64 {
    macro_rules! each {
        ($($Variant:ident),*) => {
            match part.elements {
                $(Slice::$Variant(x) => sum_of(part, x, order, level),)*
                Slice::U8(_) | Slice::I16(_) => unreachable!("codes are no numbers"),
            }
        };
    }
    each!(F64, F32, F16, Bf16)
}

fn sum_of<E: Absolute>(part: &Part<'_, f64>, x: &[E], order: Order, level: Level) -> f64 {
    let mut sums = [0.0; LANES];
    let mut most = [E::Bits::default(); LANES];
    part.each::<E, TILE>(x, |x| match order {
        Order::One => level.run(Sum::<E, false>(x, &mut sums)),
        Order::Two => level.run(Sum::<E, true>(x, &mut sums)),
        Order::Max => level.run(Most(x, &mut most)),
    });
    match order {
        Order::Max => E::from_bits(most.into_iter().max().unwrap_or_default()),
        _ => pairwise(sums),
    }
}

/// The sum of numbers that are not negative, rounded once: whatever their order, the same bits.
///
/// They are added as integers in units of 2^-100 of the largest one's power of two. What lies below that unit is cut
/// off, number by number, and so does not depend on the order either.
fn exact_sum(numbers: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = f64::from_bits(numbers.clone().map(f64::to_bits).max().unwrap_or(0));
    if largest == 0.0 || !largest.is_finite() {
        return largest; // the bits of a NaN are above those of infinity
    }
    // x = mantissa * 2^(exponent - 1075)
    let parts = |x: f64| {
        let (exponent, fraction) = (x.to_bits() >> 52, x.to_bits() & ((1 << 52) - 1));
        if exponent == 0 { (fraction, 1) } else { (fraction | 1 << 52, exponent as i32) }
    };
    let top = parts(largest).1;
    let total: u128 = numbers
        .map(|x| {
            let (mantissa, exponent) = parts(x);
            let shift = 48 - (top - exponent); // the largest below 2^101: room for 2^27 of them
            if shift >= 0 {
                u128::from(mantissa) << shift
            } else {
                u128::from(mantissa.checked_shr(shift.unsigned_abs()).unwrap_or(0))
            }
        })
        .sum();
    // a power of two in two factors, each within range
    let exponent = top - 1075 - 48;
    total as f64 * power_of_two(exponent / 2) * power_of_two(exponent - exponent / 2)
}

/// 2^e for the exponents of normal numbers.
fn power_of_two(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// An element type's absolute value, as a number and as bits in the same order.
trait Absolute: Element<Arith: Into<f64>> {
    /// Unsigned integers, in the order of the absolute values they are the bits of; NaN comes last.
    type Bits: Copy + Ord + Default;
    fn bits(self) -> Self::Bits;
    fn from_bits(bits: Self::Bits) -> f64;
}

impl Absolute for f64 {
    type Bits = u64;
    #[inline(always)]
    fn bits(self) -> u64 {
        self.to_bits() & (u64::MAX >> 1)
    }
    fn from_bits(bits: u64) -> f64 {
        f64::from_bits(bits)
    }
}

/// What f32 holds exactly.
macro_rules! absolute {
    ($($t:ty),*) => {$(
        impl Absolute for $t {
            type Bits = u32;
            #[inline(always)]
            fn bits(self) -> u32 {
                self.load().to_bits() & (u32::MAX >> 1)
            }
            fn from_bits(bits: u32) -> f64 {
                f32::from_bits(bits).into()
            }
        }
    )*};
}
absolute!(f32, f16, bf16);

/// Adds absolute values, or squares, to the lanes.
struct Sum<'a, E, const SQUARES: bool>(&'a [E], &'a mut [f64; LANES]);

impl<E: Absolute, const SQUARES: bool> Vectorized for Sum<'_, E, SQUARES> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        // not fused: where it would matter (f64) every level then rounds alike, elsewhere the square is exact
        sweep(self.0, self.1, |lane: f64, x: E| {
            let x: f64 = x.load().into();
            lane + if SQUARES { x * x } else { x.abs() }
        });
    }
}

/// Raises the lanes to the bits of larger absolute values.
struct Most<'a, E: Absolute>(&'a [E], &'a mut [E::Bits; LANES]);

impl<E: Absolute> Vectorized for Most<'_, E> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        sweep(self.0, self.1, |lane: E::Bits, x| lane.max(x.bits()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sums_that_f64_holds_are_exact() {
        assert_eq!(exact_sum([].into_iter()), 0.0);
        assert_eq!(exact_sum([0.0, 0.0].into_iter()), 0.0);
        assert_eq!(exact_sum([1.0, 2f64.powi(-52), 2f64.powi(-60)].into_iter()), 1.0 + 2f64.powi(-52));
        assert_eq!(exact_sum([f64::from_bits(1), f64::from_bits(2)].into_iter()), f64::from_bits(3));
        assert_eq!(exact_sum([f64::MIN_POSITIVE, f64::from_bits(1)].into_iter()), f64::MIN_POSITIVE.next_up());
        assert_eq!(exact_sum([f64::MAX].into_iter()), f64::MAX);
        assert_eq!(exact_sum([f64::MAX / 2.0, f64::MAX / 2.0].into_iter()), f64::MAX);
        assert_eq!(exact_sum([f64::MAX, f64::MAX].into_iter()), f64::INFINITY);
        assert_eq!(exact_sum([1e300, 1e-300].into_iter()), 1e300);
        assert_eq!(exact_sum([1.0, f64::INFINITY].into_iter()), f64::INFINITY);
        assert!(exact_sum([f64::NAN, f64::INFINITY, 1.0].into_iter()).is_nan());
    }

    proptest! {
        #[test]
        fn a_sum_does_not_depend_on_the_order(
            numbers in prop::collection::vec(0.0..1e6f64, 1..200),
            turn in 0..200usize,
        ) {
            let sum = exact_sum(numbers.iter().copied());
            let turned = numbers.iter().cycle().skip(turn).take(numbers.len());
            prop_assert_eq!(sum, exact_sum(turned.copied()));
            prop_assert_eq!(sum, exact_sum(numbers.iter().rev().copied()));
            let naive: f64 = numbers.iter().sum();
            prop_assert!((sum - naive).abs() <= naive * 1e-13);
        }
    }
}
