//! `f64`: stored as it is computed with.

use super::element::Element;
use crate::simd::{Simd, UNIT};

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
