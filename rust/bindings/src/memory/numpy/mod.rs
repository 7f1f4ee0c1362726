//! NumPy's arrays.

pub(crate) mod accept;
pub(crate) mod array;
