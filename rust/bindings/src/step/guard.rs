//! What may stand between the checks of a step and its first write: unscaling, the norm of all gradients, and with it
//! clipping or skipping.
#![allow(unsafe_code)]

use oxistep_kernels::norm::Order;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::fault;
use crate::memory::dtype::DType;
use crate::memory::torch::describe::Torch;
use crate::services::norm::{Gradients, factor, zero_dim};
use crate::step::item::{Item, Route};
use crate::step::ranks::Ranks;

/// What was asked for.
#[derive(Default)]
pub(crate) struct Guard<'a, 'py> {
    pub(crate) max_grad_norm: Option<f64>,
    pub(crate) skip_nonfinite: bool,
    /// Unscales the gradients in place.
    pub(crate) unscale: Option<&'a Bound<'py, PyAny>>,
    /// Of what is no DTensor, too, each rank holds a part: the norm is summed over a group of ranks.
    pub(crate) has_group: bool,
}

/// What came of it.
pub(crate) struct Verdict<'py> {
    /// The norm of all gradients, a 0-dimensional tensor.
    pub(crate) norm: Bound<'py, PyAny>,
    pub(crate) skip: bool,
    /// What the gradients are to be multiplied by.
    pub(crate) factor: f64,
}

impl Guard<'_, '_> {
    /// Whether the norm is wanted.
    pub(crate) fn measures(&self) -> bool {
        self.max_grad_norm.is_some() || self.skip_nonfinite
    }

    /// Measures all gradients of the step and decides. Gradients that torch's part will read are scaled here, last;
    /// those of native items are not written.
    pub(crate) fn judge<'py>(
        &self,
        py: Python<'py>,
        torch: &Torch,
        items: &[Item],
        gradients: &mut Gradients,
    ) -> PyResult<Verdict<'py>> {
        gradients.clear();
        fault::point("measure")?;
        let others = PyList::empty(py);
        for item in items {
            match add(item, py, torch, gradients)? {
                None => {}
                Some(other) => others.append(other)?,
            }
        }
        if others.is_empty() {
            // SAFETY: the items keep the tensors alive, and no Python code has run that could change them since they
            // were described. That nobody writes to gradients during a step is what torch, too, leaves to its callers.
            return unsafe { self.judge_native(py, gradients) };
        }
        // SAFETY: as above.
        let native = unsafe { gradients.norm(py, Order::Two)? };
        let native = gradients.dtype().map(|dtype| zero_dim(py, native, dtype)).transpose()?;
        let combine = py.import("oxistep._clip")?.getattr("_norm_with")?;
        let norm = combine.call1((native, &others, items[0].grad.bind(py).getattr("device")?))?;
        let double = norm.call_method0("element_size")?.extract::<usize>()? == 8;
        let value = norm.call_method0("item")?.extract()?;
        let verdict = self.verdict(norm, value, if double { DType::F64 } else { DType::F32 });
        scale_others(others, verdict.factor)?;
        Ok(verdict)
    }

    /// As [`Guard::judge`], where each rank holds a part of the gradients. Python code runs.
    pub(crate) fn judge_over_ranks<'py>(
        &self,
        torch: &Torch,
        items: &[Item],
        gradients: &mut Gradients,
        ranks: &mut Ranks,
        (optimizer, definition): (&Bound<'py, PyAny>, &Bound<'py, PyAny>),
    ) -> PyResult<Verdict<'py>> {
        let py = optimizer.py();
        gradients.clear();
        fault::point("measure over ranks")?;
        let others = PyList::empty(py);
        let mut replicas = Gradients::default(); // which another rank counts
        for item in items {
            let gradients = match item.spec {
                None => &mut *gradients,
                Some(spec) => ranks.of(spec).unwrap_or(&mut replicas),
            };
            match add(item, py, torch, gradients)? {
                None => {}
                Some(other) => others.append(other)?,
            }
        }
        // SAFETY: as in `judge`; all that is measured is measured before Python code runs.
        let measure = |gradients: &mut Gradients| unsafe { gradients.norm(py, Order::Two) };
        let (value, dtype) = ranks.norm(optimizer, definition, gradients, replicas.dtype(), &others, measure)?;
        let verdict = self.verdict(zero_dim(py, value, dtype)?, value, dtype);
        scale_others(others, verdict.factor)?;
        Ok(verdict)
    }

    /// As [`Guard::judge`], where all gradients are native and given.
    ///
    /// # Safety
    /// As for [`Gradients::norm`].
    pub(crate) unsafe fn judge_native<'py>(
        &self,
        py: Python<'py>,
        gradients: &mut Gradients,
    ) -> PyResult<Verdict<'py>> {
        fault::point("measure natively")?;
        let dtype = gradients.dtype().unwrap_or(DType::F32);
        // SAFETY: the contract of this function.
        let value = unsafe { gradients.norm(py, Order::Two)? };
        Ok(self.verdict(zero_dim(py, value, dtype)?, value, dtype))
    }

    /// `value` is the norm before it was rounded to its dtype.
    fn verdict<'py>(&self, norm: Bound<'py, PyAny>, value: f64, dtype: DType) -> Verdict<'py> {
        // not asked of the rounded norm: finite gradients of a half type can have a norm beyond its range
        let skip = self.skip_nonfinite && !value.is_finite();
        let factor = match self.max_grad_norm {
            // half types hold a norm to three digits, and float16 none above 65504: the factor is computed in float32
            Some(max_norm) if !skip => {
                factor(value, max_norm, if dtype == DType::F64 { DType::F64 } else { DType::F32 })
            }
            _ => 1.0,
        };
        Verdict { norm, skip, factor }
    }
}

/// Adds an item's gradient, or returns it if torch measures it.
fn add<'py>(
    item: &Item,
    py: Python<'py>,
    torch: &Torch,
    gradients: &mut Gradients,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    match (&item.route, item.memory.get(1).copied(), &item.layout) {
        (Route::Native, Some(memory), None) => gradients.push_dense(memory),
        (Route::Native, _, _) => match item.tensor(1).map(|grad| torch.describe(grad.bind(py))) {
            Some(Ok(grad)) => gradients.push(&grad),
            _ => return Err(PyRuntimeError::new_err("a gradient was changed while this step was under way")),
        },
        // not `item.grad`, which may be the values of a sparse gradient
        (Route::Torch(_), _, _) => return item.param.bind(py).getattr(pyo3::intern!(py, "grad")).map(Some),
    }
    Ok(None)
}

/// Scales gradients that torch's part of the step will read.
fn scale_others(others: Bound<'_, PyList>, factor: f64) -> PyResult<()> {
    fault::point("scale the others")?;
    if factor != 1.0 && !others.is_empty() {
        others.py().import("oxistep._clip")?.getattr("_scale_all")?.call1((others, factor))?;
    }
    Ok(())
}
