//! Keeping Python's garbage collector from running while pointers into tensors are in hand.
//!
//! Before Python 3.12 making any object may start a collection, which may run finalizers, which are Python code that
//! can do anything to a tensor that was described a moment ago.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::prelude::*;

/// How many rest at once: several threads may be in the middle of a step.
static RESTING: AtomicUsize = AtomicUsize::new(0);
static WAS_ENABLED: AtomicBool = AtomicBool::new(false);

/// While one of these lives the collector does not start by itself. It is not held while kernels write without the
/// interpreter. (It is while the norm of a large step is taken: what another thread tells the collector just then is
/// lost.)
pub(crate) struct CollectorRests<'py>(PhantomData<Python<'py>>);

impl<'py> CollectorRests<'py> {
    pub(crate) fn new(_py: Python<'py>) -> Self {
        if RESTING.fetch_add(1, Ordering::Relaxed) == 0 {
            // SAFETY: the interpreter is held, as `_py` proves.
            WAS_ENABLED.store(unsafe { pyo3::ffi::PyGC_Disable() } != 0, Ordering::Relaxed);
        }
        Self(PhantomData)
    }
}

/// In a forked child only one thread exists; if others were in the middle of a step, the collector would rest for good.
pub(crate) fn forked(_py: Python<'_>) {
    if RESTING.swap(0, Ordering::Relaxed) > 0 && WAS_ENABLED.load(Ordering::Relaxed) {
        // SAFETY: the interpreter is held, as `_py` proves.
        unsafe { pyo3::ffi::PyGC_Enable() };
    }
}

impl Drop for CollectorRests<'_> {
    fn drop(&mut self) {
        // none is left to count down in a child forked by a thread that was in the middle of a step
        let before = RESTING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if before == Ok(1) && WAS_ENABLED.load(Ordering::Relaxed) {
            // SAFETY: the interpreter is held: the lifetime is that of `Python`.
            unsafe { pyo3::ffi::PyGC_Enable() };
        }
    }
}
