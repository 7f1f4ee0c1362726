//! What is described and checked, and becomes a stream: the memory of torch and NumPy, and what Python lends.

pub(crate) mod dtype;
pub(crate) mod nearby;
pub(crate) mod numpy;
pub(crate) mod python;
pub(crate) mod shape;
pub(crate) mod span;
pub(crate) mod stream;
pub(crate) mod torch;
pub(crate) mod unfit;
