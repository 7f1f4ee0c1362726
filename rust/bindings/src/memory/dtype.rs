//! Storage types of tensors, and how torch promotes and rounds them.

use oxistep_kernels::{Precision, bf16, f16};

/// Storage types of tensors that kernels can read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DType {
    F64,
    F32,
    F16,
    Bf16,
    /// Codes and residuals, which are no numbers by themselves: only what was asked for them is described so.
    U8,
    I16,
}

impl DType {
    #[inline]
    pub(crate) fn precision(self) -> Precision {
        match self {
            Self::F64 => Precision::F64,
            Self::F32 => Precision::F32,
            Self::F16 => Precision::F16,
            Self::Bf16 => Precision::Bf16,
            Self::U8 | Self::I16 => Precision::F32, // nothing asks
        }
    }

    /// A hyperparameter beyond this might not fit the type that torch hands its scalars over in; there is room for a
    /// division by 1 - beta.
    #[inline]
    pub(crate) fn largest_usual(self) -> f64 {
        match self {
            Self::F64 => 1e100,
            Self::F32 | Self::Bf16 | Self::U8 | Self::I16 => 1e20,
            Self::F16 => 6e4,
        }
    }

    #[inline]
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::U8 => 1,
        }
    }
}

/// What torch promotes two dtypes to, of which either may be that of no tensor.
#[inline]
pub(crate) fn promoted(a: Option<DType>, b: Option<DType>) -> Option<DType> {
    match (a, b) {
        (Some(a), Some(b)) if a != b => Some(if [a, b].contains(&DType::F64) { DType::F64 } else { DType::F32 }),
        (a, b) => a.or(b),
    }
}

/// `x` as the nearest number of `dtype`.
pub(crate) fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F64 | DType::U8 | DType::I16 => x,
        DType::F32 => f64::from(x as f32),
        DType::F16 => f16::from_f32(x as f32).to_f64(),
        DType::Bf16 => bf16::from_f32(x as f32).to_f64(),
    }
}

/// The combinations of parameter, gradient and state types that kernels serve.
#[inline]
pub(crate) fn served(param: DType, grad: DType, state: Option<DType>) -> bool {
    let half = |dtype| matches!(dtype, DType::F16 | DType::Bf16);
    let grad_fits = grad == param || (param == DType::F32 && half(grad));
    let state_fits = state.is_none_or(|state| state == param || (half(param) && state == DType::F32));
    grad_fits && state_fits
}
