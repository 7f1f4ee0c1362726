//! Keeping Python's garbage collector from running while pointers into tensors are in hand.
//!
//! Before Python 3.12 making any object may start a collection, which may run finalizers, which are Python code that can
//! do anything to a tensor that was described a moment ago.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use pyo3::prelude::*;

/// While this lives the collector does not start by itself.
pub(crate) struct CollectorRests<'py> {
    was_enabled: bool,
    py: PhantomData<Python<'py>>,
}

impl<'py> CollectorRests<'py> {
    pub(crate) fn new(_py: Python<'py>) -> Self {
        // SAFETY: the interpreter is held, as `_py` proves.
        let was_enabled = unsafe { pyo3::ffi::PyGC_Disable() } != 0;
        Self { was_enabled, py: PhantomData }
    }
}

impl Drop for CollectorRests<'_> {
    fn drop(&mut self) {
        if self.was_enabled {
            // SAFETY: the interpreter is held: the lifetime is that of `Python`.
            unsafe { pyo3::ffi::PyGC_Enable() };
        }
    }
}
