//! `bf16`: the upper half of an `f32`: its range, with 8 bits of precision.

use half::bf16;

use super::element::Element;
use crate::conversions;
use crate::simd::{Simd, UNIT};

impl Element for bf16 {
    type Arith = f32;
    const HALF: bool = true;
    #[inline(always)]
    fn load(self) -> f32 {
        conversions::widen_bf16(self)
    }
    #[inline(always)]
    fn store(x: f32) -> Self {
        conversions::narrow_bf16(x)
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
