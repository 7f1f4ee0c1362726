//! What looking a parameter up needs to know.

use oxistep_kernels::AnyRule;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::memory::torch::describe::Torch;

/// What looking up an item needs to know.
pub(crate) struct Look<'a, 'py> {
    pub(crate) torch: &'a Torch,
    pub(crate) rule: &'a AnyRule,
    /// What is asked of Python about the class.
    pub(crate) definition: &'a Bound<'py, PyAny>,
    pub(crate) optimizer: &'a Bound<'py, PyAny>,
    pub(crate) values: &'a Bound<'py, PyDict>,
    pub(crate) make_states: bool,
    /// `lr` is a tensor of less than double precision.
    pub(crate) single_lr: bool,
    /// The gradients are to be measured, as they would be after torch's coalescing.
    pub(crate) measuring: bool,
}
