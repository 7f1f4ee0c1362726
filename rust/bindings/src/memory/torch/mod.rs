//! torch's tensors.

pub(crate) mod dlpack;
pub(crate) mod dtensors;
pub(crate) mod gradient;
pub(crate) mod modules;
pub(crate) mod shim;
pub(crate) mod subclasses;
pub(crate) mod tensors;
