//! What looking a parameter up needs to know, and how it may end early.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::memory::torch::describe::Torch;
use crate::memory::unfit::Reason;
use crate::optimizer::rule::GroupRule;
use crate::optimizer::traced::Tree;
use crate::step::fewer::{Fewer, KindByName};

/// What looking up an item needs to know.
pub(crate) struct Look<'a, 'py> {
    pub(crate) torch: &'a Torch,
    pub(crate) rule: &'a GroupRule,
    /// Of a rule that a user wrote.
    pub(crate) tree: Option<&'a Bound<'py, Tree>>,
    /// What the rule's questions about the parameter's elements came to, as far as they were asked.
    pub(crate) answers: &'a [u64],
    /// What is asked of Python about the class.
    pub(crate) definition: &'a Bound<'py, PyAny>,
    pub(crate) optimizer: &'a Bound<'py, PyAny>,
    pub(crate) values: &'a Bound<'py, PyDict>,
    pub(crate) make_states: bool,
    /// `lr` is a tensor of less than double precision.
    pub(crate) single_lr: bool,
    /// What the optimizer's settings ask of parameters and states.
    pub(crate) fewer: Fewer,
    /// What the states of a traced rule are.
    pub(crate) kinds: &'a [(String, KindByName)],
    /// The gradients are to be measured, as they would be after torch's coalescing.
    pub(crate) measuring: bool,
}

/// Why looking a parameter up ends before all of it is found.
pub(super) enum Stop {
    /// The parameter is torch's.
    Torch(Reason),
    /// The step is not to be.
    Raise(PyErr),
}

/// What a part of looking a parameter up finds.
pub(super) type Going<T> = Result<T, Stop>;

impl From<PyErr> for Stop {
    fn from(error: PyErr) -> Self {
        Self::Raise(error)
    }
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Self::Torch(reason)
    }
}

impl From<&'static str> for Stop {
    fn from(reason: &'static str) -> Self {
        Self::Torch(reason.into())
    }
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::Torch(reason.into())
    }
}
