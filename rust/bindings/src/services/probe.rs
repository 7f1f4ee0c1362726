//! The ceiling probe over NumPy arrays, for the benchmarks.

use numpy::{PyReadonlyArray1, PyReadwriteArray1};
use oxistep_kernels::MAX_STATES;
use oxistep_kernels::probe::{Arrays, run};
use oxistep_kernels::simd::Level;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::panicked;
use crate::threads::with_pool;

/// Reads and writes the arrays as a step would that keeps as many states: chunks, threads, SIMD level and prefetching
/// are a step's, with next to no arithmetic. All are dense float32 arrays of one dimension and one length.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // the borrows are held here
pub(crate) fn probe(
    py: Python<'_>,
    mut param: PyReadwriteArray1<'_, f32>,
    grad: PyReadonlyArray1<'_, f32>,
    mut states: Vec<PyReadwriteArray1<'_, f32>>,
) -> PyResult<()> {
    let wrong = || PyValueError::new_err("expected dense arrays of one length, and at most three states");
    if states.len() > MAX_STATES {
        return Err(wrong());
    }
    let mut slices: [&mut [f32]; MAX_STATES] = Default::default();
    for (slice, state) in slices.iter_mut().zip(&mut states) {
        *slice = state.as_slice_mut().map_err(|_| wrong())?;
    }
    let param = param.as_slice_mut().map_err(|_| wrong())?;
    let grad = grad.as_slice().map_err(|_| wrong())?;
    let arrays = Arrays { param, grad, states: slices };
    let done = py.detach(|| with_pool(|pool| run(pool, Level::current(), arrays)));
    done.ok_or_else(wrong)?.map_err(|panic| panicked(&*panic))
}
