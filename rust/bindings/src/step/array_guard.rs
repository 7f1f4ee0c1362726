//! What may stand between the checks of a step over arrays and its first write: the norm of all gradients, and with it
//! clipping or skipping.

use oxistep_kernels::driver;
use oxistep_kernels::norm::{Norm, Order};
use oxistep_kernels::simd::Level;
use pyo3::prelude::*;

use crate::error::panicked_reading;
use crate::memory::dtype::{DType, promoted};
use crate::services::norm::factor;
use crate::threads::with_pool;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ArrayGuard {
    pub(super) max_grad_norm: Option<f64>,
    pub(super) skip_nonfinite: bool,
}

/// What came of it.
pub(super) struct Verdict {
    /// The norm of all gradients, if it was wanted.
    pub(super) norm: Option<f64>,
    pub(super) skip: bool,
    /// What the gradients are to be multiplied by.
    pub(super) factor: f64,
}

impl ArrayGuard {
    /// Whether the norm is wanted.
    pub(super) fn measures(self) -> bool {
        self.max_grad_norm.is_some() || self.skip_nonfinite
    }

    /// Measures all gradients of the step and decides. `dtypes` are those of the parameters.
    pub(super) fn judge(
        self,
        py: Python<'_>,
        gradients: Option<&mut Norm<'_>>,
        dtypes: impl Iterator<Item = DType>,
    ) -> PyResult<Verdict> {
        let Some(gradients) = gradients else { return Ok(Verdict { norm: None, skip: false, factor: 1.0 }) };
        let small = gradients.elements() < driver::SERIAL;
        let mut run = || with_pool(|pool| gradients.compute(Order::Two, pool, Level::current()));
        let found = if small { run() } else { py.detach(&mut run) };
        let norm = found.map_err(|panic| panicked_reading(&*panic))?;
        let skip = self.skip_nonfinite && !norm.is_finite();
        // as of tensors: in double only where there is a double
        let dtype = dtypes.fold(None, |all, dtype| promoted(all, Some(dtype)));
        let dtype = if dtype == Some(DType::F64) { DType::F64 } else { DType::F32 };
        let factor = self.max_grad_norm.filter(|_| !skip).map_or(1.0, |most| factor(norm, most, dtype));
        Ok(Verdict { norm: Some(norm), skip, factor })
    }
}
