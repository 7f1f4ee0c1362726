//! The rule of a class and of a group: a compiled one, or one that a user wrote, as programs.

use std::sync::Arc;

use oxistep_kernels::{AnyRule, Gradients, Kind};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::memory::unfit::Reason;
use crate::optimizer::group::{Group, read_compiled};
use crate::optimizer::traced::{Numbers, Tree};

/// How a class of optimizers steps.
#[derive(Debug)]
pub(crate) enum ClassRule {
    Compiled(Kind),
    Traced(Py<Tree>),
}

impl ClassRule {
    /// The rule of that name, or of that tree.
    pub(crate) fn of(rule: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(tree) = rule.cast::<Tree>() {
            return Ok(Self::Traced(tree.clone().unbind()));
        }
        let name: String = rule
            .extract()
            .map_err(|_| PyTypeError::new_err("expected the name of a compiled rule, or the Tree of a traced one"))?;
        compiled(&name).map(Self::Compiled)
    }

    /// How often Python was asked about a rule that a user wrote.
    pub(crate) fn asked(&self) -> usize {
        match self {
            Self::Compiled(_) => 0,
            Self::Traced(tree) => tree.get().asked(),
        }
    }

    /// Reads the hyperparameters of a group, and the factor on the gradient that `maximize` asks for; or says why the
    /// whole group is torch's.
    pub(crate) fn read(&self, group: &mut Group<'_, '_>) -> PyResult<Result<(GroupRule, f64), Reason>> {
        match self {
            Self::Compiled(kind) => {
                Ok(read_compiled(group, *kind)?.map(|(rule, factor)| (GroupRule::Compiled(rule), factor)))
            }
            Self::Traced(tree) => {
                let numbers = tree.get().read(group)?;
                let factor = tree.get().factor(group)?;
                Ok(Ok((GroupRule::Traced(Arc::new(numbers)), factor)))
            }
        }
    }

    /// As [`ClassRule::read`], where no Python code may run; `None` if the rule is not known under these words.
    pub(crate) fn read_again(&self, group: &mut Group<'_, '_>) -> PyResult<Option<(GroupRule, f64)>> {
        match self {
            Self::Compiled(_) => Ok(self.read(group)?.ok()),
            Self::Traced(tree) => {
                let Some(numbers) = tree.get().read_known(group)? else { return Ok(None) };
                let factor = tree.get().factor(group)?;
                Ok(Some((GroupRule::Traced(Arc::new(numbers)), factor)))
            }
        }
    }
}

/// A rule with the hyperparameters of a group.
#[derive(Clone, Debug)]
pub(crate) enum GroupRule {
    Compiled(AnyRule),
    Traced(Arc<Numbers>),
}

impl GroupRule {
    pub(crate) fn compiled(&self) -> Option<&AnyRule> {
        match self {
            Self::Compiled(rule) => Some(rule),
            Self::Traced(_) => None,
        }
    }

    pub(crate) fn gradients(&self) -> Gradients {
        self.compiled().map_or(Gradients::Dense, AnyRule::gradients)
    }
}

/// The compiled rule of that name.
pub(crate) fn compiled(name: &str) -> PyResult<Kind> {
    let known = || PyValueError::new_err(format!("unknown rule {name:?}; there are {}", Kind::NAMES.join(", ")));
    Kind::from_name(name).ok_or_else(known)
}
