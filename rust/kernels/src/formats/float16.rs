//! `f16`: IEEE half precision: 11 bits of it, a small range, and denormal numbers that are used.

use half::f16;

use super::element::Element;
use crate::conversions;
use crate::simd::{Simd, UNIT};

impl Element for f16 {
    type Arith = f32;
    const HALF: bool = true;
    #[inline(always)]
    fn load(self) -> f32 {
        conversions::widen_f16(self)
    }
    #[inline(always)]
    fn store(x: f32) -> Self {
        conversions::narrow_f16(x)
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
