//! Whether looking something up in a dict may run Python code.
#![allow(unsafe_code)]

use std::ptr::null_mut;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Whether all keys are Python's own strings. Other objects may have a hash that leads a lookup to them, and comparing
/// with them is theirs to do.
#[inline]
pub(crate) fn has_plain_keys(dict: &Bound<'_, PyDict>) -> bool {
    let (mut key, mut next) = (null_mut(), 0);
    // SAFETY: a dict, and two locals to be written (the value is not asked for). The key is borrowed from the dict,
    // which is not changed here, and only its class is looked at.
    unsafe {
        while ffi::PyDict_Next(dict.as_ptr(), &raw mut next, &raw mut key, null_mut()) != 0 {
            if ffi::PyUnicode_CheckExact(key) == 0 {
                return false;
            }
        }
    }
    true
}

/// Whether looking something up is what it is for Python's own dicts, and for those that make a dict of what they lack.
pub(crate) fn looks_up_plainly(dict: &Bound<'_, PyDict>, defaultdict: &Py<PyAny>) -> PyResult<bool> {
    if dict.is_exact_instance_of::<PyDict>() {
        return Ok(true);
    }
    let py = dict.py();
    let (class, plain) = (dict.get_type(), py.get_type::<PyDict>());
    if class.is(defaultdict) {
        return Ok(dict.getattr(pyo3::intern!(py, "default_factory"))?.is(&plain));
    }
    let is_plain = |name| PyResult::Ok(class.getattr(name)?.is(&plain.getattr(name)?));
    Ok(is_plain(pyo3::intern!(py, "__getitem__"))?
        && is_plain(pyo3::intern!(py, "get"))?
        && is_plain(pyo3::intern!(py, "__contains__"))?
        && !class.hasattr(pyo3::intern!(py, "__missing__"))?)
}
