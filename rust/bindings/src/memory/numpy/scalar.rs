//! Numbers that stand for arrays without dimensions: Python's, and NumPy's scalars.

use numpy::PyUntypedArray;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::type_object::PyTypeInfo;
use pyo3::types::{PyBool, PyFloat, PyInt, PyType};

/// Whether it is a number of one of NumPy's own types.
pub(crate) fn is_scalar(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    if object.get_type().is(PyUntypedArray::type_object(object.py())) {
        return Ok(false);
    }
    object.is_instance(&object.py().import("numpy")?.getattr("generic")?)
}

/// The value of a number whose class is one of Python's or NumPy's own, and real. It runs no Python code.
#[inline]
pub(crate) fn number_of(object: &Bound<'_, PyAny>) -> Option<f64> {
    match object.cast_exact::<PyFloat>() {
        Ok(float) => Some(float.value()),
        Err(_) => other_number(object),
    }
}

fn other_number(object: &Bound<'_, PyAny>) -> Option<f64> {
    let class = object.get_type();
    let plain = object.is_exact_instance_of::<PyInt>() || object.is_exact_instance_of::<PyBool>();
    if plain || classes(object.py()).iter().any(|known| class.is(known)) { object.extract().ok() } else { None }
}

/// NumPy's classes of real numbers that a step reads.
fn classes(py: Python<'_>) -> &[Py<PyType>] {
    static CLASSES: PyOnceLock<Vec<Py<PyType>>> = PyOnceLock::new();
    const NAMES: [&str; 12] = [
        "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
        "bool_",
    ];
    CLASSES.get_or_init(py, || {
        let class = |name: &str| Ok::<_, PyErr>(py.import("numpy")?.getattr(name)?.cast_into::<PyType>()?.unbind());
        NAMES.iter().filter_map(|name| class(name).ok()).collect()
    })
}
