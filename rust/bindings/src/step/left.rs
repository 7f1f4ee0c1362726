//! What torch's own step takes: some parameters of a step, or the whole of it.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use crate::fault;
use crate::memory::torch::modules::modules;
use crate::optimizer::dicts::looks_up_otherwise;
use crate::step::guard::Guard;
use crate::step::item::Route;
use crate::step::plan::Plan;

impl Plan {
    /// Whether a step is torch's as a whole: there are other methods than torch's step would call, or looking something
    /// up in a group or in the states is not what it is for a dict.
    pub(super) fn is_torchs(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.is_overridden(optimizer)? || looks_up_otherwise(optimizer)?)
    }

    /// Whether a subclass, or the optimizer itself, has methods of its own that torch's step would call.
    pub(super) fn is_overridden(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = optimizer.py();
        let class = optimizer.get_type();
        let own = optimizer.getattr(pyo3::intern!(py, "__dict__"))?.cast_into::<PyDict>()?;
        let is_known = |(name, method): &(Py<PyString>, Py<PyAny>)| {
            let name = name.bind(py);
            PyResult::Ok(class.getattr(name).is_ok_and(|now| now.is(method)) && !own.contains(name)?)
        };
        for known in &mut self.methods {
            if is_known(known)? {
                continue;
            }
            if !self.definition.bind(py).call_method1("overridden", (optimizer,))?.is_none() {
                return Ok(true);
            }
            known.1 = class.getattr(known.0.bind(py))?.unbind(); // the same, in a wrapper of torch's
        }
        Ok(false)
    }

    /// Has torch take the whole step.
    pub(super) fn leave_everything<'py>(
        &mut self,
        optimizer: &Bound<'py, PyAny>,
        guard: &Guard<'_, '_>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = optimizer.py();
        if let Some(watch) = &mut self.watch {
            watch.done = false;
            watch.begin_with_everything(optimizer)?;
        }
        self.last = None;
        self.joined = true; // or it tells the other ranks itself
        let unscale = guard.unscale.map(Bound::as_unbound);
        let norm = self.definition.bind(py).call_method1("leave_everything", (optimizer, unscale))?;
        if let Some(watch) = &mut self.watch {
            watch.done = true;
        }
        Ok(Some(norm).filter(|norm| !norm.is_none()))
    }

    /// Before anything is written: whether torch can take what is left to it, and whether it will.
    pub(super) fn check_left(&self, optimizer: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = optimizer.py();
        let definition = self.definition.bind(py);
        let left = self.left(py)?;
        if left.is_empty() {
            return Ok(());
        }
        let torch = &modules(py)?.torch;
        let unknown = PyList::empty(py);
        for item in self.items.iter().filter(|item| item.route != Route::Native) {
            if !item.tells_storages(py, torch)? {
                unknown.append((item.group, item.param.bind(py)))?;
            }
        }
        if !unknown.is_empty() {
            py.import("oxistep.optim._storages")?.getattr("check_storages")?.call1((optimizer, unknown))?;
        }
        definition.call_method1(pyo3::intern!(py, "check_left"), (optimizer, left))?;
        for item in self.items.iter().filter(|item| item.unsure) {
            let of_item = (optimizer, item.group, &item.param);
            definition.call_method1(pyo3::intern!(py, "rehearse_tensors"), of_item)?;
        }
        Ok(())
    }

    /// Lets torch update what is left to it.
    pub(super) fn run_torch(&self, optimizer: &Bound<'_, PyAny>) -> PyResult<()> {
        fault::point("torch's part")?;
        let py = optimizer.py();
        let left = (optimizer, self.left(py)?);
        self.definition.call_method1(py, pyo3::intern!(py, "torch_step"), left).map(drop)
    }

    /// What is left to torch: parameters with the index of their group.
    fn left<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let left = PyList::empty(py);
        for item in self.items.iter().filter(|item| item.route != Route::Native) {
            left.append((item.group, item.param.bind(py)))?;
        }
        Ok(left)
    }
}
