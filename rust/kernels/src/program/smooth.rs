//! Functions in `f64` that are accurate enough to be rounded to `f32`, without branches or tables, so that loops of
//! them are made of vectors. Sums, products and quotients alone: the same bits at every SIMD level.

/// The cube root, within 1e-14 of it: a third of the exponent (Kahan), then two steps of Halley's method.
#[inline(always)]
pub(super) fn cbrt(x: f64) -> f64 {
    let size = x.abs();
    let high = (size.to_bits() >> 32) as u32;
    // adds two thirds of the exponent's bias; within one part in 32
    let mut root = f64::from_bits(u64::from(high / 3 + 715_094_163) << 32);
    for _ in 0..2 {
        let cube = root * root * root;
        root *= (cube + size + size) / (cube + cube + size);
    }
    // zeros, infinities and NaN are their own roots
    if size > 0.0 && size < f64::INFINITY { root.copysign(x) } else { x }
}

/// `atan(sqrt(t)) / sqrt(t)` for t from 0 to 1, within 2e-12 of it: interpolated where Chebyshev's polynomial of degree
/// 14 is zero.
const ARC: [f64; 14] = [
    0.999_999_999_998_196_7,
    -0.333_333_332_624_797,
    0.199_999_953_403_850_63,
    -0.142_855_923_942_825_29,
    0.111_094_283_643_305_06,
    -0.090_767_988_766_504_77,
    0.076_142_501_990_031_21,
    -0.063_660_922_360_968_26,
    0.050_455_577_528_416_146,
    -0.035_267_720_869_422_44,
    0.019_937_442_836_256_17,
    -0.008_241_899_893_996_813,
    0.002_162_794_422_156_479,
    -0.000_266_601_967_192_674_25,
];

/// The angle of the point (x, y), within 2e-12 of it.
#[inline(always)]
#[allow(clippy::eq_op)] // x != x asks for NaN in a form that vectorises
pub(super) fn atan2(y: f64, x: f64) -> f64 {
    use std::f64::consts::{FRAC_PI_2, PI};

    let (tall, wide) = (y.abs(), x.abs());
    let (less, more) = if tall > wide { (wide, tall) } else { (tall, wide) };
    let ratio = if more == 0.0 { 0.0 } else { less / more };
    let ratio = if less == f64::INFINITY { 1.0 } else { ratio };
    let t = ratio * ratio;
    let mut sum = ARC[13];
    for k in (0..13).rev() {
        sum = sum * t + ARC[k];
    }
    let angle = ratio * sum;
    let angle = if tall > wide { FRAC_PI_2 - angle } else { angle };
    let angle = if x.is_sign_negative() { PI - angle } else { angle };
    if x != x || y != y { x + y } else { angle.copysign(y) }
}

#[cfg(test)]
mod tests {
    use super::{atan2, cbrt};

    /// Numbers of all sizes that an `f32` has, of both signs, and what is none.
    fn numbers() -> impl Iterator<Item = f64> + Clone {
        let bits = (0..u32::MAX).step_by(4_000_037);
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE, 1e-45, f32::MAX];
        bits.map(f32::from_bits).chain(special).map(f64::from)
    }

    fn same(ours: f64, library: f64, within: f64) -> bool {
        let bits = ours.to_bits() == library.to_bits() || ours.is_nan() && library.is_nan();
        bits || (ours - library).abs() <= within * library.abs()
    }

    #[test]
    fn cube_roots_are_within_the_bound() {
        for x in numbers() {
            assert!(same(cbrt(x), libm::cbrt(x), 1e-14), "{x:e}: {:e}, {:e}", cbrt(x), libm::cbrt(x));
        }
    }

    #[test]
    fn angles_are_within_the_bound() {
        for y in numbers() {
            for x in numbers() {
                let (ours, library) = (atan2(y, x), libm::atan2(y, x));
                assert!(same(ours, library, 2e-12), "{y:e}, {x:e}: {ours:e}, {library:e}");
            }
        }
    }
}
