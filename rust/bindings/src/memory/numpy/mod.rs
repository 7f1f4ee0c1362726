//! NumPy's arrays.

pub(crate) mod accept;
pub(crate) mod active;
pub(crate) mod array;
mod buffer;
mod form;
mod overlaps;
mod rows;
pub(crate) mod scalar;
