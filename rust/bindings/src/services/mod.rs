//! Functions of the module beside the steps.

pub(crate) mod clip;
pub(crate) mod compact;
pub(crate) mod norm;
pub(crate) mod pages;
pub(crate) mod placement;
pub(crate) mod probe;
pub(crate) mod start;
pub(crate) mod statistics;
#[cfg(feature = "trespass")]
pub(crate) mod trespass;
