//! NumPy's arrays.

pub(crate) mod array;
