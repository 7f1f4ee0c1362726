//! Rust error -> Python exception.

use std::any::Any;

use pyo3::PyErr;
use pyo3::exceptions::PyRuntimeError;

/// What a kernel's panic becomes.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> PyErr {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    PyRuntimeError::new_err(format!(
        "a kernel of oxistep panicked ({message}); parameters and states of this step may be half written. \
         Load a checkpoint before going on, and please report this"
    ))
}
