//! Counting, for autograd, the versions of the parameters that a step writes.

use oxistep_kernels::simd::prefetch_far_address;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::modules;
use crate::item::Item;
use crate::nearby::Nearby;

/// Parameters counted in one call of torch's. Meanwhile the next ones are brought near: counting is an atomic addition,
/// behind which no later read may start.
const BATCH: usize = 16;

/// The native parameters of a step, in order, which are kept alive.
pub(super) struct Versions {
    addresses: Vec<usize>,
    batches: Vec<Py<PyList>>,
}

impl Versions {
    pub(super) fn of(py: Python<'_>, items: &[Item]) -> PyResult<Self> {
        let batches = items.chunks(BATCH).map(|items| PyList::new(py, items.iter().map(|item| item.param.bind(py))));
        Ok(Self {
            addresses: items.iter().map(|item| item.param.as_ptr() as usize).collect(),
            batches: batches.map(|list| list.map(Bound::unbind)).collect::<PyResult<_>>()?,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// All of them, as one list.
    pub(super) fn params<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.batches.iter().flat_map(|batch| batch.bind(py).iter()).collect::<Vec<_>>())
    }

    /// Whether this is parameter `k`.
    #[inline]
    pub(super) fn holds(&self, k: usize, param: &Bound<'_, PyAny>) -> bool {
        self.addresses.get(k) == Some(&(param.as_ptr() as usize))
    }

    /// Whether these are the parameters of `items`.
    pub(super) fn are_of(&self, py: Python<'_>, items: &[Item]) -> bool {
        self.len() == items.len() && items.iter().enumerate().all(|(k, item)| self.holds(k, item.param.bind(py)))
    }

    /// Adds one to the version of each.
    pub(super) fn count(&self, py: Python<'_>, nearby: &[Nearby]) -> PyResult<()> {
        let increment = modules(py)?.increment_version.bind(py);
        let mut next = nearby.chunks(BATCH).skip(1);
        for batch in &self.batches {
            for nearby in next.next().unwrap_or_default() {
                nearby.version().into_iter().for_each(prefetch_far_address);
            }
            increment.call1((batch,))?;
        }
        Ok(())
    }

    pub(super) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.batches.iter().try_for_each(|batch| visit.call(batch))
    }
}
