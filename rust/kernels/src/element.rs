//! Storage types and the arithmetic type of each.
//!
//! A tensor is stored as `f64`, `f32`, `f16` or `bf16`; formulas compute in `f64` or `f32`. The half types are
//! widened when loaded and rounded once, to nearest even, when stored. The conversions one by one are plain integer
//! arithmetic without branches, so that the loop they stand in is vectorised as a whole and gives the same bits at
//! every SIMD level and in every denormal mode. Those of several at once are the SIMD level's own, with the same bits.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

pub use half::{bf16, f16};

use crate::simd::{Simd, UNIT};

/// The type that a formula computes in: `f32` or `f64`.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Into<f64>
    + 'static
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Rounds a constant of the step, once.
    fn of(x: f64) -> Self;
    /// `self * b + c` with a single rounding. Written out wherever torch fuses, and nowhere else.
    fn fma(self, b: Self, c: Self) -> Self;
    /// The correctly rounded square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// What [`Real::over`] divides by.
    type Divisor: Copy + Send + Sync;
    /// Prepares for dividing many numbers by one.
    fn divisor(self) -> Self::Divisor;
    /// `self / divisor`, correctly rounded, where dividing by a constant of the step is worth being spared the divider,
    /// at which loops in the caches wait. Not for a negative zero, and for numbers so large that the last place of the
    /// quotient times that of the divisor is no denormal.
    fn over(self, divisor: Self::Divisor) -> Self;

    /// The larger of two; NaN if either is (torch.maximum).
    #[inline(always)]
    #[allow(clippy::eq_op)] // x != x asks for NaN in a form that vectorises
    fn nan_max(self, other: Self) -> Self {
        if self > other || self != self { self } else { other }
    }

    /// `torch.lerp(self, end, weight)`: below a weight of one half from the start, else from the end.
    #[inline(always)]
    fn lerp(self, end: Self, weight: Self) -> Self {
        let small = weight.abs() < Self::of(0.5);
        let coefficient = if small { weight } else { weight - Self::ONE };
        let base = if small { self } else { end };
        coefficient.fma(end - self, base)
    }

    /// `torch.addcmul(self, a, b, value)`.
    #[inline(always)]
    fn addcmul(self, a: Self, b: Self, value: Self) -> Self {
        (value * a).fma(b, self)
    }

    /// `torch.addcdiv(self, a, b, value)`; torch does not fuse it.
    #[inline(always)]
    fn addcdiv(self, a: Self, b: Self, value: Self) -> Self {
        self + (value * a) / b
    }

    /// `torch.add(self, other, alpha)`.
    #[inline(always)]
    fn add_scaled(self, other: Self, alpha: Self) -> Self {
        alpha.fma(other, self)
    }
}

macro_rules! real {
    ($t:ty, $Divisor:ty, $divisor:expr, $over:expr) => {
        impl Real for $t {
            type Divisor = $Divisor;
            #[inline(always)]
            fn divisor(self) -> Self::Divisor {
                $divisor(self)
            }
            #[inline(always)]
            fn over(self, divisor: Self::Divisor) -> Self {
                $over(self, divisor)
            }
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn of(x: f64) -> Self {
                x as Self
            }
            #[inline(always)]
            fn fma(self, b: Self, c: Self) -> Self {
                self.mul_add(b, c)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.abs()
            }
        }
    };
}
real!(f32, (f32, f32), |c| (c, 1.0 / c), over);
real!(f64, f64, |c| c, |x, c| x / c);

/// x / c, given 1 / c, by a multiplication and two fused multiply-adds (Markstein, "Computation of elementary functions
/// on the IBM RISC System/6000 processor", 1990): the remainder of the first guess is exact, and what it adds rounds as
/// the quotient does. The tests try every pair of float32 numbers whose quotient is so close to a rounding boundary
/// that it could fail.
#[inline(always)]
fn over(x: f32, (c, inverse): (f32, f32)) -> f32 {
    let quotient = x * inverse;
    let remainder = (-quotient).mul_add(c, x);
    // that of an infinity is NaN; any positive number keeps the infinity
    let remainder = if remainder < f32::MAX { remainder } else { f32::MAX };
    remainder.mul_add(inverse, quotient)
}

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

impl Element for f64 {
    type Arith = f64;
    const HALF: bool = false;
    #[inline(always)]
    fn load(self) -> f64 {
        self
    }
    #[inline(always)]
    fn store(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn widen(_: impl Simd, from: &[Self; UNIT]) -> [f64; UNIT] {
        *from
    }
    #[inline(always)]
    fn narrow(_: impl Simd, from: &[f64; UNIT]) -> [Self; UNIT] {
        *from
    }
}

impl Element for f32 {
    type Arith = f32;
    const HALF: bool = false;
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }
    #[inline(always)]
    fn store(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn widen(_: impl Simd, from: &[Self; UNIT]) -> [f32; UNIT] {
        *from
    }
    #[inline(always)]
    fn narrow(_: impl Simd, from: &[f32; UNIT]) -> [Self; UNIT] {
        *from
    }
}

impl Element for bf16 {
    type Arith = f32;
    const HALF: bool = true;
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn store(x: f32) -> Self {
        let bits = x.to_bits();
        // Adding just under half an ulp of the result, plus its last bit, carries exactly when nearest-even rounds up.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
        bf16::from_bits(if is_nan { quiet_nan } else { rounded } as u16)
    }
    #[inline(always)]
    fn widen(simd: impl Simd, from: &[Self; UNIT]) -> [f32; UNIT] {
        simd.widen_bf16(from)
    }
    #[inline(always)]
    fn narrow(simd: impl Simd, from: &[f32; UNIT]) -> [Self; UNIT] {
        simd.narrow_bf16(from)
    }
}

impl Element for f16 {
    type Arith = f32;
    const HALF: bool = true;
    #[inline(always)]
    fn load(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let sign = (bits & 0x8000) << 16;
        let magnitude = bits & 0x7fff;
        // Rebias the exponent from 15 to 127; infinity and NaN need the top of the f32 range instead.
        let rebias = if magnitude >= 0x7c00 { (255 - 31) << 23 } else { (127 - 15) << 23 };
        let normal = (magnitude << 13) + rebias;
        // A denormal f16 is a small whole number of 2^-24: exact as f32, never itself a denormal f32.
        let denormal = (magnitude as i32 as f32 * f32::from_bits(0x3380_0000)).to_bits();
        f32::from_bits(sign | if magnitude < 0x0400 { denormal } else { normal })
    }
    #[inline(always)]
    fn store(x: f32) -> Self {
        let bits = x.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        let normal = {
            let odd = (magnitude >> 13) & 1;
            // Rebias 127 to 15 and round to nearest even in one addition, as for bf16.
            magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0x0fff + odd) >> 13
        };
        // Adding one half puts the last place at 2^-24, that of a denormal f16: the addition rounds for us.
        let denormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let finite = if magnitude < (127 - 14) << 23 { denormal } else { normal };
        // 65520 is the first value that rounds past the largest f16.
        let rounded = if magnitude >= 0x477f_f000 { special } else { finite };
        f16::from_bits((sign | rounded) as u16)
    }
    #[inline(always)]
    fn widen(simd: impl Simd, from: &[Self; UNIT]) -> [f32; UNIT] {
        simd.widen_f16(from)
    }
    #[inline(always)]
    fn narrow(simd: impl Simd, from: &[f32; UNIT]) -> [Self; UNIT] {
        simd.narrow_f16(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_half_widens_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (f, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(f.load().to_bits() == f.to_f32().to_bits() || f.is_nan() && f.load().is_nan(), "{bits:#x}");
            assert!(b.load().to_bits() == b.to_f32().to_bits() || b.is_nan() && b.load().is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn every_half_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let (f, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(f16::store(f.load()) == f || f.is_nan() && f16::store(f.load()).is_nan(), "{bits:#x}");
            assert!(bf16::store(b.load()) == b || b.is_nan() && bf16::store(b.load()).is_nan(), "{bits:#x}");
        }
    }

    fn check_rounding(bits: u32) {
        let x = f32::from_bits(bits);
        let (f, b) = (f16::store(x), bf16::store(x));
        if x.is_nan() {
            assert!(f.is_nan() && b.is_nan(), "{bits:#x}");
        } else {
            assert_eq!(f.to_bits(), f16::from_f32(x).to_bits(), "f16 of {x:e} ({bits:#x})");
            assert_eq!(b.to_bits(), bf16::from_f32(x).to_bits(), "bf16 of {x:e} ({bits:#x})");
        }
    }

    #[test]
    fn rounding_is_right_around_every_boundary() {
        // each half value, the midpoint to its neighbour, and one f32 step either side of both
        for half in 0..=u16::MAX {
            for base in [f16::from_bits(half).to_f32().to_bits(), bf16::from_bits(half).to_f32().to_bits()] {
                for middle in [0, 0x1000, 0x8000] {
                    for step in [-1i32, 0, 1] {
                        check_rounding(base.wrapping_add(middle).wrapping_add_signed(step));
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn rounding_is_right_anywhere(bits: u32) {
            check_rounding(bits);
        }

        #[test]
        fn lerp_ends_where_it_should(a in -1e3f32..1e3, b in -1e3f32..1e3) {
            prop_assert_eq!(a.lerp(b, 0.0), a);
            prop_assert_eq!(a.lerp(b, 1.0), b);
        }
    }

    /// In units of the last place of a product of two 24-bit numbers: twice what the two roundings before the last one
    /// can amount to, and more.
    const CLOSE: i64 = 8;

    /// Calls `f` with all x and c whose quotient is close to the middle between two neighbouring numbers, both being
    /// whole numbers of 24 bits: x 2^s - m c = j, with m odd and of 25 bits, and j small. (Scaling by powers of two
    /// changes nothing.)
    fn close_to_a_boundary(c: u64, mut f: impl FnMut(f32)) {
        let twos = c.trailing_zeros();
        let odd = c >> twos;
        let inverse = (0..5).fold(odd, |i, _| i.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(i)))); // modulo 2^64
        for s in [24, 25] {
            for j in (-CLOSE..=CLOSE).filter(|j| *j != 0 && j % (1 << twos) == 0) {
                let period = 1_u64 << (s - twos);
                let first = ((-(j >> twos)) as u64).wrapping_mul(inverse) % period;
                for m in (first..1 << 25).step_by(period as usize).filter(|m| *m >= 1 << 24 && m % 2 == 1) {
                    let shifted = (m * c).wrapping_add_signed(j);
                    let x = shifted >> s;
                    if shifted % (1 << s) == 0 && (1 << 23..1 << 24).contains(&x) {
                        f(x as f32);
                    }
                }
            }
        }
    }

    #[test]
    fn dividing_by_a_constant_rounds_as_division_does() {
        let mut tried = 0;
        for c in 1 << 23..1 << 24 {
            let divisor = (c as f32).divisor();
            close_to_a_boundary(c, |x| {
                tried += 1;
                assert_eq!(x.over(divisor), x / c as f32, "{x} / {c}");
            });
        }
        assert!(tried > 10_000_000, "{tried}");
    }

    proptest! {
        #[test]
        fn dividing_by_a_constant_is_division(bits in 0..=0x7f80_0000u32, c in 1e-8f32..=1.0) {
            let x = f32::from_bits(bits).sqrt(); // what it is used for
            prop_assert_eq!(x.over(c.divisor()).to_bits(), (x / c).to_bits());
            prop_assert!(f32::NAN.over(c.divisor()).is_nan());
        }
    }

    #[test]
    fn maximum_carries_nan_from_either_side() {
        assert!(f32::NAN.nan_max(1.0).is_nan() && 1.0f32.nan_max(f32::NAN).is_nan());
        assert_eq!(2.0f32.nan_max(1.0), 2.0);
    }
}
