//! Optimizers that look at whole tensors, or at all of them at once.

pub(crate) mod adafactor;
pub(crate) mod lbfgs;
pub(crate) mod muon;
