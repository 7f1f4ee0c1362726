//! Passes over many tensors that are no step: some read them (`reading`), one changes them.

pub mod change;
pub mod norm;
mod reading;
pub mod statistics;
