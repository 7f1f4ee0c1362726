//! Rust error -> Python exception.

use std::any::Any;

use pyo3::PyErr;
use pyo3::prelude::*;
use pyo3::types::PyList;

mod exception {
    #![allow(missing_docs, reason = "the macro below writes it")]
    pyo3::create_exception!(
        oxistep._core,
        KernelError,
        pyo3::exceptions::PyRuntimeError,
        "A kernel panicked. What stands in memory that it was to write is unknown."
    );
}
pub(crate) use exception::KernelError;

/// What a kernel's panic becomes, where nothing but what the kernel was to write may be lost.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> PyErr {
    KernelError::new_err(format!(
        "a kernel of oxistep panicked ({}); tensors or arrays that it was writing to may be half written. Please \
         report this",
        message(panic)
    ))
}

/// What it becomes while parameters are updated: the optimizer's class is told which, and makes the text.
pub(crate) fn panicked_over(panic: &(dyn Any + Send), params: Bound<'_, PyList>) -> PyErr {
    KernelError::new_err((message(panic).to_owned(), params.unbind()))
}

/// What it becomes where it only read.
pub(crate) fn panicked_reading(panic: &(dyn Any + Send)) -> PyErr {
    pyo3::exceptions::PyRuntimeError::new_err(format!(
        "a kernel of oxistep panicked ({}) before anything was written. Please report this",
        message(panic)
    ))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
