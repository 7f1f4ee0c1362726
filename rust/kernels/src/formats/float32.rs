//! `f32`: stored as it is computed with.

use super::element::Element;
use crate::simd::{Simd, UNIT};

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
