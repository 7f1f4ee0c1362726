//! Counting, for autograd, the versions of the parameters that a step writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oxistep_kernels::simd::prefetch_far_address;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyWeakrefReference};

use crate::memory::nearby::Nearby;
use crate::memory::torch::modules::modules;
use crate::step::item::Item;

/// Parameters counted in one call of torch's. Meanwhile the next ones are brought near: counting is an atomic addition,
/// behind which no later read may start.
const BATCH: usize = 16;

/// The native parameters of the last step, in order. They are held only while a step is under way: a parameter that the
/// user lets go of between two steps is gone at once.
pub(super) struct Versions {
    addresses: Vec<usize>,
    /// Lists of the parameters, as torch's function wants them; of `None` between steps.
    batches: Vec<Py<PyList>>,
    /// They tell when a parameter has gone, so that another one at its address is not taken for it.
    _watching: Vec<Py<PyWeakrefReference>>,
    gone: Arc<AtomicBool>,
    holding: bool,
}

/// What Python calls when a parameter goes.
#[pyclass(module = "oxistep._core", frozen)]
struct Gone(Arc<AtomicBool>);

#[pymethods]
impl Gone {
    fn __call__(&self, _reference: &Bound<'_, PyAny>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Versions {
    pub(super) fn of(py: Python<'_>, items: &[Item]) -> PyResult<Self> {
        let gone = Arc::new(AtomicBool::new(false));
        let tell = Bound::new(py, Gone(Arc::clone(&gone)))?;
        let weak = |item: &Item| PyWeakrefReference::new_with(item.param.bind(py), &tell).map(Bound::unbind);
        let batches = items.chunks(BATCH).map(|items| PyList::new(py, items.iter().map(|_| py.None())));
        Ok(Self {
            addresses: items.iter().map(|item| item.param.as_ptr() as usize).collect(),
            batches: batches.map(|list| list.map(Bound::unbind)).collect::<PyResult<_>>()?,
            _watching: items.iter().map(weak).collect::<PyResult<_>>()?,
            gone,
            holding: false,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// All of them, as one list. To be asked while they are held.
    pub(super) fn params<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.batches.iter().flat_map(|batch| batch.bind(py).iter()).collect::<Vec<_>>())
    }

    /// Whether none of them has gone.
    pub(super) fn all_live(&self) -> bool {
        !self.gone.load(Ordering::Relaxed)
    }

    /// Whether this is parameter `k`, if all of them live.
    #[inline]
    pub(super) fn holds(&self, k: usize, param: &Bound<'_, PyAny>) -> bool {
        self.addresses.get(k) == Some(&(param.as_ptr() as usize))
    }

    /// Whether these are the parameters of `items`.
    pub(super) fn are_of(&self, py: Python<'_>, items: &[Item]) -> bool {
        self.all_live()
            && self.len() == items.len()
            && items.iter().enumerate().all(|(k, item)| self.holds(k, item.param.bind(py)))
    }

    /// Holds parameter `k` until [`Versions::let_go`].
    #[inline]
    pub(super) fn hold(&mut self, k: usize, param: &Bound<'_, PyAny>) -> PyResult<()> {
        self.holding = true;
        self.batches[k / BATCH].bind(param.py()).set_item(k % BATCH, param)
    }

    /// Lets go of all parameters. These may be the last references to them, and Python code may run.
    pub(super) fn let_go(&mut self, py: Python<'_>) {
        if !std::mem::take(&mut self.holding) {
            return;
        }
        for batch in &self.batches {
            let batch = batch.bind(py);
            for i in 0..batch.len() {
                drop(batch.set_item(i, py.None())); // the index is below the length: nothing to fail
            }
        }
    }

    /// Adds one to the version of each. They are held.
    pub(super) fn count(&self, py: Python<'_>, nearby: &Nearby) -> PyResult<()> {
        let increment = modules(py)?.increment_version.bind(py);
        let mut next = nearby.versions(BATCH).skip(1);
        for batch in &self.batches {
            next.next().unwrap_or_default().as_flattened().iter().copied().for_each(prefetch_far_address);
            increment.call1((batch,))?;
        }
        Ok(())
    }

    pub(super) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.batches.iter().try_for_each(|batch| visit.call(batch))?;
        self._watching.iter().try_for_each(|reference| visit.call(reference))
    }
}
