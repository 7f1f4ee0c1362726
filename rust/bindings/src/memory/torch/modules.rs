//! What is needed of torch, looked up once.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::memory::torch::describe::Torch;

/// `torch.Tensor`, `torch.nn.Parameter` and what is needed of `torch._C`, looked up once.
pub(crate) struct Modules {
    pub(crate) torch: Torch,
    pub(crate) increment_version: Py<PyAny>,
    pub(crate) defaultdict: Py<PyAny>,
}

static MODULES: PyOnceLock<Modules> = PyOnceLock::new();

pub(crate) fn modules(py: Python<'_>) -> PyResult<&Modules> {
    MODULES.get_or_try_init(py, || {
        let increment_version = py.import("torch")?.getattr("_C")?.getattr("_increment_version")?.unbind();
        let defaultdict = py.import("collections")?.getattr("defaultdict")?.unbind();
        Ok(Modules { torch: Torch::new(py)?, increment_version, defaultdict })
    })
}
