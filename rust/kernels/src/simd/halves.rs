//! Half types by the processor's own conversions, where they give the bits that `conversions.rs` gives.
//!
//! - f16 <-> f32 (F16C, AVX-512 F): exact IEEE in any denormal mode. Widening ignores the mode. Narrowing keeps
//!   denormal f16 results; what the mode may do to a denormal f32 does not matter, as it rounds to zero either way.
//! - f32 -> bf16 (AVX-512 BF16): takes denormals for zeros in any mode, so vectors with denormals, told by their bits,
//!   go the integer way.
//! - All else is integer arithmetic. It stands here too because loops over so few elements are unrolled before they
//!   could be vectorised.
//!
//! What a NaN carries beside its sign is not promised.
#![allow(unsafe_code)]

use half::{bf16, f16};

use crate::conversions;

/// Elements that are converted together: one vector of f32 at the widest level.
pub const UNIT: usize = 16;

/// What generic code cannot say and a level can. A value is the proof that the processor has the level.
pub trait Simd: Copy {
    /// Whether the conversions are to be used; if not, they are worth less than those of
    /// `conversions.rs` in a loop.
    const CONVERTS: bool;
    /// Widens exactly.
    fn widen_f16(self, from: &[f16; UNIT]) -> [f32; UNIT];
    /// Rounds to nearest even.
    fn narrow_f16(self, from: &[f32; UNIT]) -> [f16; UNIT];
    /// Widens exactly.
    fn widen_bf16(self, from: &[bf16; UNIT]) -> [f32; UNIT];
    /// Rounds to nearest even.
    fn narrow_bf16(self, from: &[f32; UNIT]) -> [bf16; UNIT];
    /// The same on a processor without an instruction for bf16, where this one has it.
    #[cfg(test)]
    fn without_bf16(self) -> Option<impl Simd> {
        None::<Self>
    }
}

/// One by one.
#[inline(always)]
fn each<T: Copy, U: Copy + Default>(from: &[T; UNIT], f: impl Fn(T) -> U) -> [U; UNIT] {
    let mut to = [U::default(); UNIT];
    for i in 0..UNIT {
        to[i] = f(from[i]);
    }
    to
}

/// No more than the compiler makes of plain code.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Simd for Plain {
    const CONVERTS: bool = false;

    #[inline(always)]
    fn widen_f16(self, from: &[f16; UNIT]) -> [f32; UNIT] {
        each(from, conversions::widen_f16)
    }
    #[inline(always)]
    fn narrow_f16(self, from: &[f32; UNIT]) -> [f16; UNIT] {
        each(from, conversions::narrow_f16)
    }
    #[inline(always)]
    fn widen_bf16(self, from: &[bf16; UNIT]) -> [f32; UNIT] {
        each(from, conversions::widen_bf16)
    }
    #[inline(always)]
    fn narrow_bf16(self, from: &[f32; UNIT]) -> [bf16; UNIT] {
        each(from, conversions::narrow_bf16)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// Arrays and vectors of the same size are exchanged by value: in registers, once all is inlined.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::{Simd, UNIT, bf16, f16};

    const NEAREST_EVEN: i32 = _MM_FROUND_TO_NEAREST_INT;

    /// AVX2 and F16C.
    #[derive(Clone, Copy)]
    pub(in crate::simd) struct Avx2(());

    impl Avx2 {
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        pub(in crate::simd) fn new() -> Self {
            Self(())
        }
    }

    // SAFETY, in all of its functions: `self` was made where the processor has AVX2 and F16C. Arrays and vectors that
    // are exchanged have the same size, no padding, and any bits are values of either.
    impl Simd for Avx2 {
        const CONVERTS: bool = true;

        #[inline(always)]
        fn widen_f16(self, from: &[f16; UNIT]) -> [f32; UNIT] {
            // SAFETY: see above.
            unsafe {
                let [low, high] = transmute::<[f16; UNIT], [__m128i; 2]>(*from);
                transmute([_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)])
            }
        }

        #[inline(always)]
        fn narrow_f16(self, from: &[f32; UNIT]) -> [f16; UNIT] {
            // SAFETY: see above.
            unsafe {
                let [low, high] = transmute::<[f32; UNIT], [__m256; 2]>(*from);
                transmute([_mm256_cvtps_ph::<NEAREST_EVEN>(low), _mm256_cvtps_ph::<NEAREST_EVEN>(high)])
            }
        }

        #[inline(always)]
        fn widen_bf16(self, from: &[bf16; UNIT]) -> [f32; UNIT] {
            // SAFETY: see above.
            unsafe {
                let [low, high] = transmute::<[bf16; UNIT], [__m128i; 2]>(*from);
                let (low, high) = (_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high));
                transmute([_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high)])
            }
        }

        #[inline(always)]
        fn narrow_bf16(self, from: &[f32; UNIT]) -> [bf16; UNIT] {
            // SAFETY: see above.
            unsafe {
                let [low, high] = transmute::<[f32; UNIT], [__m256; 2]>(*from);
                let packed = _mm256_packus_epi32(round_bf16_avx2(low), round_bf16_avx2(high));
                // which was done in each half by itself: quarters 0 2 1 3
                transmute(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed))
            }
        }
    }

    /// As in `conversions.rs`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn round_bf16_avx2(x: __m256) -> __m256i {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let quiet_nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet_nan, is_nan))
    }

    /// AVX-512 F, BW, DQ and VL; perhaps BF16.
    #[derive(Clone, Copy)]
    pub(in crate::simd) struct Avx512 {
        bf16: bool,
    }

    impl Avx512 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        pub(in crate::simd) fn new() -> Self {
            Self { bf16: is_x86_feature_detected!("avx512bf16") }
        }
    }

    // SAFETY, in all of its functions: `self` was made where the processor has AVX-512 F, BW, DQ and VL, and BF16 if it
    // says so. Arrays and vectors that are exchanged have the same size, no padding, and any bits are values of either.
    impl Simd for Avx512 {
        const CONVERTS: bool = true;

        #[inline(always)]
        fn widen_f16(self, from: &[f16; UNIT]) -> [f32; UNIT] {
            // SAFETY: see above.
            unsafe { transmute(_mm512_cvtph_ps(transmute::<[f16; UNIT], __m256i>(*from))) }
        }

        #[inline(always)]
        fn narrow_f16(self, from: &[f32; UNIT]) -> [f16; UNIT] {
            // SAFETY: see above.
            unsafe { transmute(_mm512_cvtps_ph::<NEAREST_EVEN>(transmute::<[f32; UNIT], __m512>(*from))) }
        }

        #[inline(always)]
        fn widen_bf16(self, from: &[bf16; UNIT]) -> [f32; UNIT] {
            // SAFETY: see above.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(transmute::<[bf16; UNIT], __m256i>(*from));
                transmute(_mm512_slli_epi32::<16>(wide))
            }
        }

        #[inline(always)]
        fn narrow_bf16(self, from: &[f32; UNIT]) -> [bf16; UNIT] {
            // SAFETY: see above.
            unsafe {
                let x = transmute::<[f32; UNIT], __m512>(*from);
                let bits = _mm512_castps_si512(x);
                if self.bf16 {
                    let small = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f80_0000));
                    let denormal = _mm512_mask_test_epi32_mask(small, bits, _mm512_set1_epi32(0x007f_ffff));
                    if denormal == 0 {
                        return transmute::<__m256i, [bf16; UNIT]>(round_bf16_avx512bf16(x));
                    }
                }
                transmute(round_bf16_avx512(x))
            }
        }

        #[cfg(test)]
        fn without_bf16(self) -> Option<impl Simd> {
            Some(Self { bf16: false })
        }
    }

    /// As in `conversions.rs`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn round_bf16_avx512(x: __m512) -> __m256i {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
    }

    /// With denormals taken for zeros. (The intrinsic could not be inlined into code that must do without the feature.)
    ///
    /// # Safety
    /// The processor must have AVX-512 BF16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round_bf16_avx512bf16(x: __m512) -> __m256i {
        let rounded: __m256i;
        // SAFETY: one instruction on registers, which the caller vouches for.
        unsafe {
            asm!(
                "vcvtneps2bf16 {rounded}, {x}",
                rounded = lateout(ymm_reg) rounded,
                x = in(zmm_reg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        rounded
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::simd::{DenormalMode, FLUSH_BITS, Level, Vectorized};

    /// Conversions by whatever `simd` a level hands out, and by all that the level may hand out on other processors.
    struct Convert<'a> {
        wide: &'a [f32; UNIT],
        halves: &'a [u16; UNIT],
        found: &'a mut Vec<Converted>,
    }

    /// Widened f16 and bf16, narrowed f16 and bf16.
    #[derive(Debug)]
    struct Converted([f32; UNIT], [f32; UNIT], [f16; UNIT], [bf16; UNIT]);

    impl Converted {
        fn by(simd: impl Simd, wide: &[f32; UNIT], halves: &[u16; UNIT]) -> Self {
            let (f, b) = (halves.map(f16::from_bits), halves.map(bf16::from_bits));
            Self(simd.widen_f16(&f), simd.widen_bf16(&b), simd.narrow_f16(wide), simd.narrow_bf16(wide))
        }

        /// The bits; of NaNs, the sign.
        fn bits(&self) -> [Vec<(bool, u32)>; 4] {
            let wide = |x: &f32| (x.is_nan(), if x.is_nan() { x.to_bits() >> 31 } else { x.to_bits() });
            let half = |nan: bool, bits: u16| (nan, if nan { bits >> 15 } else { bits }.into());
            [
                self.0.iter().map(wide).collect(),
                self.1.iter().map(wide).collect(),
                self.2.iter().map(|x| half(x.is_nan(), x.to_bits())).collect(),
                self.3.iter().map(|x| half(x.is_nan(), x.to_bits())).collect(),
            ]
        }
    }

    impl Vectorized for Convert<'_> {
        #[inline(always)]
        fn run(self, simd: impl Simd) {
            self.found.push(Converted::by(simd, self.wide, self.halves));
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = simd.without_bf16() {
                self.found.push(Converted::by(simd, self.wide, self.halves));
            }
        }
    }

    fn check(wide: &[f32; UNIT], halves: &[u16; UNIT]) {
        let expected = Converted::by(Plain, wide, halves).bits();
        for level in Level::ALL.into_iter().filter(|level| level.available()) {
            for mode in [DenormalMode(0), DenormalMode(FLUSH_BITS)] {
                let mut found = Vec::new();
                mode.within(|| level.run(Convert { wide, halves, found: &mut found }));
                for found in found {
                    assert!(found.bits() == expected, "{level:?} {mode:?} {wide:?} {halves:?}: {found:?}");
                }
            }
        }
    }

    /// Every half; as f32, the value, the middle between it and the next, and a step to either side of both.
    #[test]
    fn every_level_converts_every_half_and_rounds_at_every_boundary_alike() {
        for first in (0..=u16::MAX).step_by(UNIT) {
            let halves = std::array::from_fn(|i| first + i as u16);
            for bases in [
                halves.map(|h| conversions::widen_f16(f16::from_bits(h))),
                halves.map(|h| conversions::widen_bf16(bf16::from_bits(h))),
            ] {
                for middle in [0, 0x1000, 0x8000] {
                    for step in [-1, 0, 1] {
                        let moved = |x: f32| f32::from_bits(x.to_bits().wrapping_add(middle).wrapping_add_signed(step));
                        check(&bases.map(moved), &halves);
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_level_converts_anything_alike(wide: [u32; UNIT], halves: [u16; UNIT]) {
            check(&wide.map(f32::from_bits), &halves);
        }

        /// One denormal among others that are none.
        #[test]
        fn a_denormal_in_any_place_is_kept(
            wide in prop::array::uniform16(0x3f00_0000..0x4000_0000u32),
            at in 0..UNIT,
            denormal in 1..0x0080_0000u32,
        ) {
            let mut wide = wide.map(f32::from_bits);
            wide[at] = f32::from_bits(denormal);
            check(&wide, &[0; UNIT]);
        }
    }
}
