//! One number of a storage format, and the type that formulas compute in for it.

use std::fmt::Debug;

use crate::arithmetic::Real;
use crate::simd::{Simd, UNIT};

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
