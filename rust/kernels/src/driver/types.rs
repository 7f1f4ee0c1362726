//! Storage types of parameter, gradient and states together: the combinations that loops are compiled for.

use crate::formats::{Format, Slice, SliceMut};

/// Formats of parameter, gradient and states for which a loop is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Types {
    pub(super) param: Format,
    pub(super) grad: Format,
    /// Of all states; of the parameter, where there are none.
    pub(super) state: Format,
}

/// Calls `$then!(P, G, S)` for the storage types of parameter, gradient and states that match: the list of those that
/// loops are compiled for.
macro_rules! match_types {
    ($types:expr, $then:ident, $otherwise:expr) => {{
        use $crate::formats::Format::{Bf16, F16, F32, F64};
        let $crate::driver::types::Types { param, grad, state } = $types;
        match (param, grad, state) {
            (F64, F64, F64) => $then!(f64, f64, f64),
            (F32, F32, F32) => $then!(f32, f32, f32),
            (F32, Bf16, F32) => $then!(f32, bf16, f32),
            (F32, F16, F32) => $then!(f32, f16, f32),
            (Bf16, Bf16, Bf16) => $then!(bf16, bf16, bf16),
            (Bf16, Bf16, F32) => $then!(bf16, bf16, f32),
            (F16, F16, F16) => $then!(f16, f16, f16),
            (F16, F16, F32) => $then!(f16, f16, f32),
            _ => $otherwise,
        }
    }};
}
pub(super) use match_types;

impl Types {
    pub(super) const F64: Self = Self { param: Format::F64, grad: Format::F64, state: Format::F64 };
    pub(super) const F32: Self = Self { param: Format::F32, grad: Format::F32, state: Format::F32 };

    /// The formats of a parameter's streams, first those that are written; `None`: no loop is compiled for them, or
    /// there are none.
    #[inline]
    pub(super) fn of(written: &[SliceMut<'_>], grad: &Slice<'_>) -> Option<Self> {
        let (param, states) = written.split_first()?;
        let state = states.first().unwrap_or(param).format();
        if states.iter().any(|other| other.format() != state) {
            return None;
        }
        let types = Self { param: param.format(), grad: grad.format(), state };
        macro_rules! known {
            ($p:ty, $g:ty, $s:ty) => {
                Some(types)
            };
        }
        match_types!(types, known, None)
    }
}
