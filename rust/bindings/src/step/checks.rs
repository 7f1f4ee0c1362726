//! What may forbid a step once its parameters are known: tensors of inference mode, storages that were shrunk.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::memory::torch::modules::modules;
use crate::step::item::Route;
use crate::step::plan::Plan;

impl Plan {
    /// Whether a tensor that is to be written natively was made in inference mode.
    pub(super) fn find_inference_tensor(&self, py: Python<'_>) -> PyResult<bool> {
        for item in self.items.iter().filter(|item| item.route == Route::Native) {
            for tensor in item.written_tensors() {
                if tensor.call_method0(py, pyo3::intern!(py, "is_inference"))?.is_truthy(py)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Refuses to write what was made in inference mode outside of it, as torch does.
    pub(super) fn check_inference_mode(&self, py: Python<'_>) -> PyResult<()> {
        if self.holds_inference_tensor && !py.import("torch")?.call_method0("is_inference_mode_enabled")?.is_truthy()? {
            return Err(PyRuntimeError::new_err(
                "Inplace update to inference tensor outside InferenceMode is not allowed. Make the parameter, and take \
                 the first step or load states, outside torch.inference_mode(), or step inside it",
            ));
        }
        Ok(())
    }

    /// Whether every tensor lies inside its storage. Where torch's C functions do not tell, asking costs calls of
    /// Python: then it is done when the list of parameters changes, and at every step under `OXISTEP_CHECK=1`.
    pub(super) fn check_storages(&self, py: Python<'_>) -> PyResult<()> {
        for item in &self.items {
            for (object, memory) in item.tensors_and_memory() {
                if modules(py)?.torch.is_inside_storage(object.bind(py), &memory) == Some(true) {
                    continue;
                }
                let storage = object.bind(py).call_method0("untyped_storage")?;
                let start: usize = storage.call_method0("data_ptr")?.extract()?;
                let bytes: usize = storage.call_method0("nbytes")?.extract()?;
                let (first, end) = memory.interval();
                if first < end && (first < start || end > start + bytes) {
                    return Err(PyRuntimeError::new_err(format!(
                        "a tensor of param_groups[{}]['params'][{}] (the parameter, its gradient or a state) reaches \
                         beyond its storage of {bytes} bytes, which was resized; nothing was updated",
                        item.group, item.index
                    )));
                }
            }
        }
        Ok(())
    }
}
