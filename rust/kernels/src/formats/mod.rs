//! Storage formats and the arithmetic type of each.
//!
//! A tensor is stored as `f64`, `f32`, `f16` or `bf16`; formulas compute in `f64` or `f32`. A format is an
//! [`Element`], in a file of its own, and a variant of [`Format`], [`Slice`] and [`SliceMut`]. Loops are compiled for
//! the usual combinations of them; streams in others are brought into tiles of `f32` while they are updated. So a new
//! format with that arithmetic needs no loop of its own, and one that spans two memories is a variant with two slices,
//! cut together.

mod bfloat16;
mod element;
mod float16;
mod float32;
mod float64;
mod stream;

pub use half::{bf16, f16};

pub use element::Element;
pub(crate) use element::{Decode, Encode, decode, encode};
pub(crate) use stream::Storage;
pub use stream::{Format, Refused, Slice, SliceMut};
