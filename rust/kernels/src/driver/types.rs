//! Storage types of parameter, gradient and states together: the combinations that loops are compiled for.

use crate::formats::{Slice, SliceMut};

/// The types of parameter, gradient and states, as slices of no elements.
pub(super) type Kinds = (SliceMut<'static>, Slice<'static>, SliceMut<'static>);

/// Calls `$then!(P, G, S)` for the storage types of parameter, gradient and states that match. The list of types that
/// the kernels serve; all states of a parameter share one type.
macro_rules! match_types {
    ($param:expr, $grad:expr, $state:expr, $then:ident, $otherwise:expr) => {
        match ($param, $grad, $state) {
            (SliceMut::F64(_), Slice::F64(_), SliceMut::F64(_) | SliceMut::Absent) => $then!(f64, f64, f64),
            (SliceMut::F32(_), Slice::F32(_), SliceMut::F32(_) | SliceMut::Absent) => $then!(f32, f32, f32),
            (SliceMut::F32(_), Slice::Bf16(_), SliceMut::F32(_) | SliceMut::Absent) => $then!(f32, bf16, f32),
            (SliceMut::F32(_), Slice::F16(_), SliceMut::F32(_) | SliceMut::Absent) => $then!(f32, f16, f32),
            (SliceMut::Bf16(_), Slice::Bf16(_), SliceMut::Bf16(_) | SliceMut::Absent) => $then!(bf16, bf16, bf16),
            (SliceMut::Bf16(_), Slice::Bf16(_), SliceMut::F32(_)) => $then!(bf16, bf16, f32),
            (SliceMut::F16(_), Slice::F16(_), SliceMut::F16(_) | SliceMut::Absent) => $then!(f16, f16, f16),
            (SliceMut::F16(_), Slice::F16(_), SliceMut::F32(_)) => $then!(f16, f16, f32),
            _ => $otherwise,
        }
    };
}
pub(super) use match_types;
