//! DTensors: what this process holds of a tensor that is distributed over several.
//!
//! FSDP2 and tensor parallelism hand over parameters of the class `torch.distributed.tensor.DTensor`. Such an object
//! has no elements of its own, but a plain tensor, the local shard, and a specification: on which mesh the tensor is
//! placed, and how. Where gradient and states are placed as the parameter is, the steps of all processes on their
//! shards are the step on the whole.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::memory::python::{Attribute, loaded_modules};
use crate::memory::unfit::Reason;

/// torch's class and where its objects keep things, once it has been imported.
pub(crate) struct DTensors(PyOnceLock<Known>);

struct Known {
    class: Py<PyType>,
    local: Attribute,
    spec: Attribute,
    /// What compares specifications, in Python.
    differs: Py<PyAny>,
}

/// A DTensor's local shard and its specification.
pub(crate) struct Shard<'py> {
    pub(crate) local: Bound<'py, PyAny>,
    pub(crate) spec: Bound<'py, PyAny>,
}

/// A [`Shard`] that is held.
pub(crate) struct Held {
    pub(crate) local: Py<PyAny>,
    pub(crate) spec: Py<PyAny>,
}

impl Shard<'_> {
    pub(crate) fn hold(&self) -> Held {
        Held { local: self.local.clone().unbind(), spec: self.spec.clone().unbind() }
    }
}

impl Held {
    /// Whether the objects are the same.
    pub(crate) fn is(&self, shard: &Shard<'_>) -> bool {
        shard.local.is(&self.local) && shard.spec.is(&self.spec)
    }
}

impl DTensors {
    pub(crate) fn new() -> Self {
        Self(PyOnceLock::new())
    }

    /// The shard of an object whose class is exactly DTensor; `None` for any other object.
    #[inline]
    pub(crate) fn shard<'py>(&self, object: &Bound<'py, PyAny>) -> Option<Shard<'py>> {
        let known = self.known(object)?;
        Some(Shard { local: known.local.of(object).ok()?, spec: known.spec.of(object).ok()? })
    }

    /// The local shard alone.
    #[inline]
    pub(crate) fn local<'py>(&self, object: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        self.known(object)?.local.of(object).ok()
    }

    /// Whether reading `.grad` of DTensors is what it is for plain tensors.
    pub(crate) fn grad_is(&self, py: Python<'_>, grad: &Attribute) -> bool {
        self.0.get(py).is_none_or(|known| grad.holds(known.class.bind(py)))
    }

    /// Why a step on the shards would not be a step on the whole; `None` if it is. `what` is the other tensor, which
    /// was found to be no DTensor if it has no shard.
    pub(crate) fn differs(&self, what: &str, param: &Shard<'_>, other: Option<&Shard<'_>>) -> PyResult<Option<Reason>> {
        self.compare(what, param, other, false)
    }

    /// The same of the headers of a state in codes, which have a shape of their own.
    pub(crate) fn headers_differ(
        &self,
        what: &str,
        param: &Shard<'_>,
        headers: Option<&Shard<'_>>,
    ) -> PyResult<Option<Reason>> {
        self.compare(what, param, headers, true)
    }

    fn compare(
        &self,
        what: &str,
        param: &Shard<'_>,
        other: Option<&Shard<'_>>,
        are_headers: bool,
    ) -> PyResult<Option<Reason>> {
        let py = param.spec.py();
        let (Some(other), Some(known)) = (other, self.0.get(py)) else {
            return Ok(Some(format!("the parameter is a DTensor and {what} is none").into()));
        };
        let reason = known.differs.call1(py, (&param.spec, &other.spec, what, are_headers))?;
        Ok(reason.extract::<Option<String>>(py)?.map(Reason::from))
    }

    fn known(&self, object: &Bound<'_, PyAny>) -> Option<&Known> {
        let py = object.py();
        let known = match self.0.get(py) {
            Some(known) => known,
            None => self.find(py)?,
        };
        (object.get_type_ptr() == known.class.as_ptr().cast()).then_some(known)
    }

    /// There are no DTensors before somebody has imported their module; no Python code runs to see that. When it is
    /// there, ours is imported once.
    #[inline(never)]
    fn find(&self, py: Python<'_>) -> Option<&Known> {
        let module = loaded_modules(py)?.get_item("torch.distributed.tensor").ok()??;
        let class = module.getattr("DTensor").ok()?.cast_into::<PyType>().ok()?;
        let (local, spec) = (Attribute::new(&class, "_local_tensor")?, Attribute::new(&class, "_spec")?);
        let differs = py.import("oxistep.optim._dtensors").ok()?.getattr("differs").ok()?.unbind();
        Some(self.0.get_or_init(py, || Known { class: class.unbind(), local, spec, differs }))
    }
}
