//! What the processor can do, and which of it is used.

use oxistep_kernels::simd::Level;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Name of each SIMD level that this processor has, weakest first.
#[pyfunction]
pub(crate) fn simd_levels() -> Vec<&'static str> {
    Level::ALL.into_iter().filter(|level| level.available()).map(Level::name).collect()
}

/// Uses the SIMD level called `name` from now on; `None`: the best.
#[pyfunction]
#[pyo3(signature = (name=None))]
pub(crate) fn force_simd(name: Option<&str>) -> PyResult<()> {
    let level = match name {
        None => Some(Level::best()),
        Some(name) => Level::from_name(name),
    };
    if level.is_some_and(Level::force) {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "OXISTEP_SIMD: expected a SIMD level of this processor ({}), got {:?}",
        simd_levels().join(", "),
        name.unwrap_or_default()
    )))
}

/// (architecture, SIMD level in use)
#[pyfunction]
pub(crate) fn cpu_features() -> (&'static str, &'static str) {
    (std::env::consts::ARCH, Level::current().name())
}
