//! Whether an optimizer's groups and states are looked up as what a dict holds is.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::memory::python::looks_up_plainly;
use crate::memory::torch::modules::modules;

/// Why a whole step is torch's where no method is another one.
pub(crate) const FOREIGN_DICT: &str = "a param group or the state is a dict with lookups of its own";

/// Whether looking something up in a group or in the states is not what it is for a dict.
pub(crate) fn looks_up_otherwise(optimizer: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = optimizer.py();
    let defaultdict = &modules(py)?.defaultdict;
    let state = optimizer.getattr(pyo3::intern!(py, "state"))?;
    if let Ok(state) = state.cast::<PyDict>()
        && !looks_up_plainly(state, defaultdict)?
    {
        return Ok(true);
    }
    let groups = optimizer.getattr(pyo3::intern!(py, "param_groups"))?;
    let Ok(groups) = groups.cast_exact::<PyList>() else { return Ok(false) };
    for group in groups {
        if let Ok(group) = group.cast::<PyDict>()
            && !looks_up_plainly(group, defaultdict)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}
