//! What formulas compute in: `f32` or `f64`, with torch's add, lerp, addcmul and addcdiv.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

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

    /// The same for a weight that is known to be below one half.
    #[inline(always)]
    fn lerp_near(self, end: Self, weight: Self) -> Self {
        weight.fma(end - self, self)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
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
