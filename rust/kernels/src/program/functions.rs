//! Functions of elements that the processor has no instruction for, and small choices that torch makes.
//!
//! They are computed by a pure-Rust library, number by number: the same bits at every SIMD level and on every system.
//! Those of an `f32` are computed in `f64` and rounded once; some by `smooth.rs`, in vectors.

use super::smooth;
use crate::arithmetic::Real;

/// A number that programs compute with.
pub(crate) trait Functions: Real {
    fn exp(self) -> Self;
    fn log(self) -> Self;
    fn cos(self) -> Self;
    fn tanh(self) -> Self;
    fn cbrt(self) -> Self;
    fn atan2(self, x: Self) -> Self;
    /// Any power, without the short ways of [`Functions::power`].
    fn pow(self, exponent: Self) -> Self;
    /// The number as the arithmetic of reductions takes it.
    fn wide(self) -> f64;

    /// What is true is one, what is not is zero.
    #[inline(always)]
    fn truth(holds: bool) -> Self {
        if holds { Self::ONE } else { Self::ZERO }
    }

    /// Whether it counts as true.
    #[inline(always)]
    fn holds(self) -> bool {
        self != Self::ZERO
    }

    /// `torch.sign`: that of NaN is zero.
    #[inline(always)]
    fn sign(self) -> Self {
        let up = Self::truth(self > Self::ZERO);
        if self < Self::ZERO { -Self::ONE } else { up }
    }

    /// The smaller of two; NaN if either is (torch.minimum).
    #[inline(always)]
    #[allow(clippy::eq_op)] // x != x asks for NaN in a form that vectorises
    fn nan_min(self, other: Self) -> Self {
        if self < other || self != self { self } else { other }
    }

    /// A power: some are multiplications and roots, as in torch.
    #[inline(always)]
    fn power(self, exponent: Self) -> Self {
        match Power::of(exponent) {
            Power::Other => self.pow(exponent),
            short => short.apply(self),
        }
    }
}

/// Powers that torch computes in a short way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    Square,
    Cube,
    Root,
    OverRoot,
    Inverse,
    OverSquare,
    Other,
}

impl Power {
    /// The power of this exponent.
    #[inline(always)]
    pub(crate) fn of<A: Real>(exponent: A) -> Self {
        let exponent: f64 = exponent.into();
        match exponent {
            2.0 => Self::Square,
            3.0 => Self::Cube,
            0.5 => Self::Root,
            -0.5 => Self::OverRoot,
            -1.0 => Self::Inverse,
            -2.0 => Self::OverSquare,
            _ => Self::Other,
        }
    }

    /// The power of a number; of [`Power::Other`] the number itself.
    #[inline(always)]
    pub(crate) fn apply<A: Real>(self, x: A) -> A {
        match self {
            Self::Square => x * x,
            Self::Cube => x * x * x,
            Self::Root => x.sqrt(),
            Self::OverRoot => A::ONE / x.sqrt(),
            Self::Inverse => A::ONE / x,
            Self::OverSquare => A::ONE / (x * x),
            Self::Other => x,
        }
    }
}

macro_rules! functions {
    ($t:ty, $wide:ident, $smooth:ident => $($function:ident = $library:ident),*) => {
        impl Functions for $t {
            $(
                #[inline]
                fn $function(self) -> Self {
                    libm::$library($wide::from(self)) as Self
                }
            )*
            #[inline(always)]
            fn cbrt(self) -> Self {
                $smooth::cbrt($wide::from(self)) as Self
            }
            #[inline(always)]
            fn atan2(self, x: Self) -> Self {
                $smooth::atan2($wide::from(self), $wide::from(x)) as Self
            }
            #[inline]
            fn pow(self, exponent: Self) -> Self {
                libm::pow($wide::from(self), $wide::from(exponent)) as Self
            }
            #[inline(always)]
            fn wide(self) -> f64 {
                self.into()
            }
        }
    };
}
functions!(f32, f64, smooth => exp = exp, log = log, cos = cos, tanh = tanh);
functions!(f64, f64, libm => exp = exp, log = log, cos = cos, tanh = tanh);
