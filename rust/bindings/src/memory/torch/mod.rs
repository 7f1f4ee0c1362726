//! torch's tensors.

pub(crate) mod describe;
pub(crate) mod dlpack;
pub(crate) mod dtensors;
pub(crate) mod exchange;
pub(crate) mod modules;
pub(crate) mod shim;
pub(crate) mod subclasses;
