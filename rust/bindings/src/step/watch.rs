//! Measuring what a step does to each parameter, for `oxistep.diagnostics.UpdateMonitor`.
//!
//! Kernels measure what goes through the element-wise driver. Of all else the watcher is told before the first write,
//! and takes copies. A step that is watched takes the general way.

use numpy::{PyReadwriteArray2, PyUntypedArrayMethods};
use oxistep_kernels::Step;
use oxistep_kernels::driver::{Measured, Moved};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::step::item::{Item, Route};
use crate::whole::adafactor::Whole;

/// Who watches, and what the last step did.
pub(super) struct Watch {
    pub(super) watcher: Py<PyAny>,
    pub(super) measured: Measured,
    /// Group and index of each parameter that was pushed, if the kernels measure it.
    pushed: Vec<Option<(u32, u32)>>,
    /// The last step was taken to its end.
    pub(super) done: bool,
}

impl Watch {
    pub(super) fn new(watcher: Py<PyAny>) -> Self {
        Self { watcher, measured: Measured::default(), pushed: Vec::new(), done: false }
    }

    /// Tells the watcher what the kernels will not measure. Returns whether Python code has run.
    pub(super) fn begin(&mut self, py: Python<'_>, items: &[Item]) -> PyResult<bool> {
        self.measured.clear();
        self.pushed.clear();
        let left = PyList::empty(py);
        for item in items.iter().filter(|item| !is_measured(item)) {
            left.append((item.group, item.index))?;
        }
        if left.is_empty() {
            return Ok(false);
        }
        self.watcher.call_method1(py, pyo3::intern!(py, "_copy"), (left,))?;
        Ok(true)
    }

    /// Tells the watcher that kernels will measure nothing.
    pub(super) fn begin_with_everything(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = optimizer.py();
        self.measured.clear();
        self.pushed.clear();
        let all = PyList::empty(py);
        for (g, group) in optimizer.getattr("param_groups")?.try_iter()?.enumerate() {
            for i in 0..group?.get_item("params")?.len()? {
                all.append((g, i))?;
            }
        }
        self.watcher.call_method1(py, pyo3::intern!(py, "_copy"), (all,)).map(drop)
    }

    pub(super) fn pushed(&mut self, item: &Item, step: &Step<'_>) {
        self.measured.pushed(step);
        self.pushed.push(is_measured(item).then_some((item.group, item.index)));
    }

    /// Writes norms of update, parameter and gradient into the rows of `out`; `starts` has each group's first row.
    /// `False`, and nothing written, if the last step was not taken.
    pub(super) fn report(&self, mut out: PyReadwriteArray2<'_, f64>, starts: &[usize]) -> PyResult<bool> {
        if !self.done {
            return Ok(false);
        }
        let wrong = || PyValueError::new_err("out must have three contiguous columns, and a row for every parameter");
        if out.shape()[1] != 3 {
            return Err(wrong());
        }
        let all = out.as_slice_mut().map_err(|_| wrong())?;
        for (place, Moved { update, param, grad }) in self.pushed.iter().zip(self.measured.moved()) {
            let Some((group, index)) = *place else { continue };
            let row = starts.get(group as usize).and_then(|start| all.chunks_exact_mut(3).nth(start + index as usize));
            row.ok_or_else(wrong)?.copy_from_slice(&[update.sqrt(), param.sqrt(), grad.sqrt()]);
        }
        Ok(true)
    }
}

fn is_measured(item: &Item) -> bool {
    item.route == Route::Native && item.whole == Whole::No
}
