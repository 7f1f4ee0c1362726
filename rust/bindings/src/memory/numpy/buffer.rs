//! Copies of arrays, in logical order: of those that lie between the rows of others, and of gradients of other dtypes.

use oxistep_kernels::{Slice, SliceMut, f16};

use crate::memory::dtype::DType;

/// A copy of an array.
#[derive(Debug)]
pub(crate) enum Buffer {
    F64(Vec<f64>),
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Buffer {
    pub(super) fn new(dtype: DType) -> Self {
        match dtype {
            DType::F64 => Self::F64(Vec::new()),
            DType::F16 => Self::F16(Vec::new()),
            _ => Self::F32(Vec::new()),
        }
    }

    /// Makes it this one number, rounded.
    pub(super) fn set(&mut self, x: f64) {
        match self {
            Self::F64(to) => one(to, x),
            Self::F32(to) => one(to, x as f32),
            Self::F16(to) => one(to, f16::from_f64(x)),
        }
    }

    pub(super) fn copy_from(&mut self, other: &Self) {
        match (self, other) {
            (Self::F64(to), Self::F64(from)) => to.clone_from(from),
            (Self::F32(to), Self::F32(from)) => to.clone_from(from),
            (Self::F16(to), Self::F16(from)) => to.clone_from(from),
            _ => {} // both are of the parameter's dtype
        }
    }

    /// Some of the elements.
    pub(super) fn part(&self, start: usize, len: usize) -> Slice<'_> {
        match self {
            Self::F64(buffer) => Slice::F64(&buffer[start..][..len]),
            Self::F32(buffer) => Slice::F32(&buffer[start..][..len]),
            Self::F16(buffer) => Slice::F16(&buffer[start..][..len]),
        }
    }

    pub(super) fn slice(&self) -> Slice<'_> {
        match self {
            Self::F64(buffer) => Slice::F64(buffer),
            Self::F32(buffer) => Slice::F32(buffer),
            Self::F16(buffer) => Slice::F16(buffer),
        }
    }

    pub(super) fn slice_mut(&mut self) -> SliceMut<'_> {
        match self {
            Self::F64(buffer) => SliceMut::F64(buffer),
            Self::F32(buffer) => SliceMut::F32(buffer),
            Self::F16(buffer) => SliceMut::F16(buffer),
        }
    }
}

fn one<T>(to: &mut Vec<T>, x: T) {
    to.clear();
    to.push(x);
}

/// A number of another type.
pub(super) trait Cast: Copy {
    fn to_f64(self) -> f64;
    fn to_f32(self) -> f32;
}

macro_rules! casts {
    ($($t:ty),*) => {
        $(impl Cast for $t {
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn to_f32(self) -> f32 {
                self as f32
            }
        })*
    };
}
casts!(f64, f32, i8, i16, i32, i64, u8, u16, u32, u64);

impl Cast for f16 {
    fn to_f64(self) -> f64 {
        f16::to_f64(self)
    }
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

/// What a cast ends in.
pub(super) trait CastTo: Copy {
    fn from<T: Cast>(x: T) -> Self;
}

impl CastTo for f64 {
    fn from<T: Cast>(x: T) -> Self {
        x.to_f64()
    }
}

impl CastTo for f32 {
    fn from<T: Cast>(x: T) -> Self {
        x.to_f32()
    }
}

impl CastTo for f16 {
    fn from<T: Cast>(x: T) -> Self {
        f16::from_f64(x.to_f64()) // rounded once
    }
}
