//! Failures on demand at every place where a step may fail, so that tests can walk all of them. Only with the feature
//! `faults`, which no wheel that is given out has; without it a point is nothing.

#[cfg(not(feature = "faults"))]
use pyo3::PyResult;

/// A place where a step may fail.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn point(_: &'static str) -> PyResult<()> {
    Ok(())
}

#[cfg(feature = "faults")]
pub(crate) use armed::*;

#[cfg(feature = "faults")]
mod armed {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use oxistep_kernels::fault;
    use pyo3::exceptions::PyRuntimeError;
    use pyo3::prelude::*;

    /// Points to go before one fails; 0: none does.
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    /// The points that were met since `fault_arm`.
    static MET: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

    pub(crate) fn point(name: &'static str) -> PyResult<()> {
        MET.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(name);
        match LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(1) => Err(PyRuntimeError::new_err(format!("injected fault: {name}"))),
            _ => Ok(()),
        }
    }

    /// From now on the `n`th point fails; 0: none.
    #[pyfunction]
    pub(crate) fn fault_arm(n: usize) {
        MET.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
        LEFT.store(n, Ordering::SeqCst);
    }

    /// The points that were met since, in order.
    #[pyfunction]
    pub(crate) fn fault_met() -> Vec<&'static str> {
        MET.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// From now on the `n`th beginning or end of an item of work panics; 0: none. `elsewhere`: on another thread.
    #[pyfunction]
    pub(crate) fn fault_arm_panic(n: usize, elsewhere: bool) {
        fault::arm(n, elsewhere);
    }

    /// Whether that has happened since.
    #[pyfunction]
    pub(crate) fn fault_panicked() -> bool {
        fault::fired()
    }
}
