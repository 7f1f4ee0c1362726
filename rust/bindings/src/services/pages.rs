//! Large pages for large states.
//!
//! A step over billions of bytes spends part of its time looking up 4 KiB pages. For states, which oxistep has torch
//! allocate, Linux is asked for 2 MiB pages before they are first written. It is advice: where the kernel has none to
//! give, nothing changes.

use oxistep_kernels::change;
use pyo3::prelude::*;

use crate::memory::torch::modules::modules;
use crate::services::placement;
use crate::threads::with_pool;

/// Smaller states stay as they are: there is little to gain, and up to one large page to waste.
const LARGE: usize = 8 << 20;
const LARGE_PAGE: usize = 2 << 20;

/// Fills a new, dense state of `param` with zeros, on large pages if it is large, having noted where it lies. `False`,
/// and nothing written, if that is not for this function: a small tensor, or none that a kernel could write.
#[pyfunction]
pub(crate) fn zero_large(py: Python<'_>, tensor: &Bound<'_, PyAny>, param: &Bound<'_, PyAny>) -> PyResult<bool> {
    let torch = &modules(py)?.torch;
    let Ok(described) = torch.describe_values(tensor) else { return Ok(false) };
    let (start, end) = described.memory.interval();
    if let Ok(param) = torch.describe_values(param) {
        placement::note(param.memory.interval().0, start);
    }
    if !described.is_dense || end - start < LARGE {
        return Ok(false);
    }
    described.advise_large_pages(LARGE_PAGE);
    // the tensor is new: nobody else uses its memory
    Ok(described.write(|memory| py.detach(|| with_pool(|pool| change::zero(pool, memory))).is_ok()))
}
