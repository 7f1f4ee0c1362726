//! Subclasses of torch's tensors that a step may treat as what they extend.
//!
//! Programs mark parameters by classes of their own. Such a class has plain memory if nothing in it stands where torch
//! has something: no `__torch_function__`, no `__torch_dispatch__`, no method or property of a tensor.

use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use crate::memory::python::ClassRef;

/// What a class may define of its own though tensors have it: what makes, shows and copies objects.
const HARMLESS: [&str; 19] = [
    "__annotations__",
    "__class_getitem__",
    "__deepcopy__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__init__",
    "__init_subclass__",
    "__module__",
    "__new__",
    "__qualname__",
    "__reduce__",
    "__reduce_ex__",
    "__repr__",
    "__setstate__",
    "__slots__",
    "__static_attributes__",
    "__str__",
    "__weakref__",
];

/// What was found out about classes, when one of their objects was first met.
#[derive(Default)]
pub(crate) struct Subclasses(Mutex<Vec<(Py<PyType>, bool)>>);

impl Subclasses {
    /// Whether a class adds nothing to Tensor or Parameter that a step would notice.
    #[inline(never)]
    pub(crate) fn is_plain(
        &self,
        py: Python<'_>,
        class: ClassRef<'_>,
        tensor: &Py<PyType>,
        parameter: &Py<PyType>,
    ) -> bool {
        let known =
            |found: &Vec<(Py<PyType>, bool)>| found.iter().find(|(known, _)| class.is(known)).map(|(_, plain)| *plain);
        // never held while Python code runs, so no thread waits for one that waits for the interpreter
        if let Some(plain) = self.0.lock().ok().and_then(|found| known(&found)) {
            return plain;
        }
        let Some(class) = class.bind(py) else { return false };
        let plain = adds_nothing(&class, tensor.bind(py), parameter.bind(py)).unwrap_or(false);
        if class.is_subclass(tensor.bind(py)).unwrap_or(false)
            && let Ok(mut found) = self.0.lock()
        {
            found.push((class.unbind(), plain));
        }
        plain
    }
}

fn adds_nothing(
    class: &Bound<'_, PyType>,
    tensor: &Bound<'_, PyType>,
    parameter: &Bound<'_, PyType>,
) -> PyResult<bool> {
    let metaclass = class.get_type();
    if !(metaclass.is(tensor.get_type()) || metaclass.is(parameter.get_type())) || !class.is_subclass(tensor)? {
        return Ok(false);
    }
    for base in class.mro() {
        if base.is(tensor) || base.is(parameter) {
            return Ok(true);
        }
        let names = base.getattr("__dict__")?.call_method0("keys")?;
        for name in names.try_iter()? {
            let name = name?;
            let name = name.cast::<PyString>()?;
            if name.to_str()? == "__del__" {
                return Ok(false); // it would run in the middle of things
            }
            if tensor.hasattr(name)? && !HARMLESS.contains(&name.to_str()?) {
                return Ok(false);
            }
        }
    }
    Ok(false)
}
