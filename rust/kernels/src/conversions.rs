//! The conversions of half types, one number each.
//!
//! Half types are widened exactly and rounded once, to nearest even. This is plain integer arithmetic without branches,
//! so that the loop it stands in is vectorised as a whole and gives the same bits at every SIMD level and in every
//! denormal mode. Conversions of several numbers at once are the SIMD level's own, with the same bits.

use half::{bf16, f16};

/// Widens exactly.
#[inline(always)]
pub(crate) fn widen_bf16(half: bf16) -> f32 {
    f32::from_bits(u32::from(half.to_bits()) << 16)
}

/// Rounds to nearest even.
#[inline(always)]
pub(crate) fn narrow_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    // Adding just under half an ulp of the result, plus its last bit, carries exactly when nearest-even rounds up.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    bf16::from_bits(if is_nan { quiet_nan } else { rounded } as u16)
}

/// Widens exactly.
#[inline(always)]
pub(crate) fn widen_f16(half: f16) -> f32 {
    let bits = u32::from(half.to_bits());
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    // Rebias the exponent from 15 to 127; infinity and NaN need the top of the f32 range instead.
    let rebias = if magnitude >= 0x7c00 { (255 - 31) << 23 } else { (127 - 15) << 23 };
    let normal = (magnitude << 13) + rebias;
    // A denormal f16 is a small whole number of 2^-24: exact as f32, never itself a denormal f32.
    let denormal = (magnitude as i32 as f32 * f32::from_bits(0x3380_0000)).to_bits();
    f32::from_bits(sign | if magnitude < 0x0400 { denormal } else { normal })
}

/// Rounds to nearest even.
#[inline(always)]
pub(crate) fn narrow_f16(x: f32) -> f16 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_half_widens_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (f, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(widen_f16(f).to_bits() == f.to_f32().to_bits() || f.is_nan() && widen_f16(f).is_nan(), "{bits:#x}");
            assert!(
                widen_bf16(b).to_bits() == b.to_f32().to_bits() || b.is_nan() && widen_bf16(b).is_nan(),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn every_half_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let (f, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(narrow_f16(widen_f16(f)) == f || f.is_nan() && narrow_f16(widen_f16(f)).is_nan(), "{bits:#x}");
            assert!(narrow_bf16(widen_bf16(b)) == b || b.is_nan() && narrow_bf16(widen_bf16(b)).is_nan(), "{bits:#x}");
        }
    }

    fn check_rounding(bits: u32) {
        let x = f32::from_bits(bits);
        let (f, b) = (narrow_f16(x), narrow_bf16(x));
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
    }
}
