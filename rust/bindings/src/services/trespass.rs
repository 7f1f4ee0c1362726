//! A wrong access on demand, to prove that AddressSanitizer would report one. Not part of any wheel that is given out.

use oxistep_kernels::{Slice, SliceMut};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::memory::torch::modules::modules;

/// Reads the elements of a float32 tensor and as many more behind them as `beyond` says, or writes there.
#[pyfunction]
pub(crate) fn trespass(py: Python<'_>, tensor: &Bound<'_, PyAny>, beyond: usize, write: bool) -> PyResult<f32> {
    let wrong = || PyValueError::new_err("expected a plain tensor of float32");
    // on purpose: these elements are not the tensor's
    let described = modules(py)?.torch.describe(tensor).map_err(|_| wrong())?.reaching_beyond(beyond);
    if write {
        return described.write(|slice| {
            let SliceMut::F32(elements) = slice else { return Err(wrong()) };
            elements.fill(1.0);
            Ok(0.0)
        });
    }
    described.read(|slice| {
        let Slice::F32(elements) = slice else { return Err(wrong()) };
        Ok(elements.iter().sum())
    })
}
