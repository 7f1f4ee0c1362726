//! What is done once: when the module is made, when torch is met, in a forked child.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::memory::dtype::DType;
use crate::memory::numpy::active;
use crate::memory::python;
use crate::memory::torch::modules::modules;
use crate::services::norm::zero_dim;
use crate::threads;

/// Remembers the process, so that forked children are recognised.
pub(crate) fn set_up(module: &Bound<'_, PyModule>) -> PyResult<()> {
    threads::remember_home();
    if let Some(register) = module.py().import("os")?.getattr_opt("register_at_fork")? {
        let keywords = PyDict::new(module.py());
        keywords.set_item("after_in_child", wrap_pyfunction!(forked, module)?)?;
        register.call((), Some(&keywords))?;
    }
    Ok(())
}

/// In a forked child: threads that were in the middle of a step do not exist here.
#[pyfunction]
fn forked(py: Python<'_>) {
    python::forked(py);
    active::forked(py);
}

/// Uses the pool of the torch library at `path` from now on, if it offers one. `False`: rayon's threads it is.
#[pyfunction]
pub(crate) fn use_torch_threads(py: Python<'_>, path: &str) -> bool {
    let found = threads::open(path);
    // What is looked up once is looked up now, for which torch's library must be known: should another thread fork in
    // the middle of that, its child would wait for it for good. What may go wrong is for the first step to tell.
    drop(modules(py).and_then(|_| zero_dim(py, 0.0, DType::F32)));
    found
}
