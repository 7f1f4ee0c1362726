//! The states of a parameter: found in its entry, or made.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use crate::fault;
use crate::memory::python::has_plain_keys;
use crate::optimizer::group::Keys;
use crate::optimizer::rule::GroupRule;
use crate::optimizer::traced::Leaf;
use crate::step::fewer::{AVERAGE, Beside, codes_in};
use crate::step::item::Item;
use crate::step::lists::States;
use crate::step::look::{Going, Look};

/// The names of what a rule keeps for a parameter.
#[derive(Clone, Copy)]
pub(super) struct Names<'n> {
    pub(super) states: &'n [&'static str],
    pub(super) counters: &'n [&'static str],
}

impl<'n> Names<'n> {
    /// Of a parameter of so many dimensions; `leaf`: its program, if its rule is one that a user wrote.
    pub(super) fn of(rule: &GroupRule, leaf: Option<&'n Leaf>, dims: usize) -> Self {
        match (rule, leaf) {
            (GroupRule::Compiled(rule), _) => Self { states: rule.states_of(dims), counters: rule.scalars() },
            (GroupRule::Traced(_), Some(leaf)) => Self { states: &leaf.states, counters: &leaf.counters },
            (GroupRule::Traced(_), None) => Self { states: &[], counters: &[] },
        }
    }
}

/// Whether there are no states yet: torch asks whether the entry is empty; SGD, which keeps no step, whether there is a
/// buffer.
pub(super) fn are_absent(names: Names<'_>, entry: Option<&Bound<'_, PyDict>>, keys: &mut Keys) -> PyResult<bool> {
    Ok(match (names.states.first(), names.counters.is_empty()) {
        (None, _) => false,
        (Some(name), true) => match entry {
            Some(entry) => {
                let value = entry.get_item(keys.get(entry.py(), name))?;
                value.is_none_or(|value| value.is_none()) && codes_in(entry, name)?.is_none()
            }
            None => true,
        },
        (Some(_), false) => entry.is_none_or(|entry| entry.is_empty()),
    })
}

/// The states that stand under their names in `source`, or in codes; and the headers of those.
pub(super) fn states_in<'py>(
    py: Python<'py>,
    source: Option<&Bound<'py, PyDict>>,
    names: &[&'static str],
    keys: &mut Keys,
) -> Going<(States<Bound<'py, PyAny>>, Beside<'py>)> {
    let (mut states, mut beside) = (States::new(), Beside::default());
    for (k, name) in names.iter().enumerate() {
        let value = source.map(|source| source.get_item(keys.get(py, name))).transpose()?.flatten();
        let codes = match (&value, source) {
            (None, Some(source)) => codes_in(source, name)?,
            _ => None,
        };
        match (value, codes) {
            (Some(value), _) => states.push(value),
            (None, Some((codes, header))) => {
                states.push(codes);
                beside.headers.push((k, header));
            }
            (None, None) => return Err(format!("its state lacks {name:?}").into()),
        }
    }
    Ok((states, beside))
}

impl Item {
    /// Its entry in `optimizer.state`, of which looking up runs no Python code.
    pub(super) fn plain_entry<'py>(&self, py: Python<'py>) -> Going<Option<Bound<'py, PyDict>>> {
        let entry = self.entry.as_ref().map(|entry| entry.bind(py).clone());
        if entry.as_ref().is_some_and(|entry| !has_plain_keys(entry)) {
            return Err("its state has keys that are no strings, and comparing with them may run code".into());
        }
        Ok(entry)
    }

    /// Makes the states, and does not store them. Runs Python code.
    pub(super) fn make_states<'py>(
        &mut self,
        look: &Look<'_, 'py>,
        is_dtensor: bool,
        entry: Option<&Bound<'py, PyDict>>,
        (leaf, missing): (Option<&Leaf>, &[&'static str]),
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = look.optimizer.py();
        fault::point("make states")?;
        let of_item = (look.optimizer, &self.param, &self.grad, look.values);
        let make = if is_dtensor { pyo3::intern!(py, "make_shards") } else { pyo3::intern!(py, "make_state") };
        let made = match leaf {
            None => look.definition.call_method1(make, of_item)?,
            Some(leaf) => {
                let (optimizer, param, grad, values) = of_item;
                // the very objects that steps look for: see `values_under`
                let missing: Vec<_> = missing.iter().map(|name| PyString::intern(py, name)).collect();
                look.definition.call_method1(make, (optimizer, param, grad, values, missing, &leaf.begins))?
            }
        };
        let made = made.cast_into::<PyDict>().map_err(|_| PyTypeError::new_err("make_state must return a dict"))?;
        self.fresh = Some(made.clone().unbind());
        if let Some(entry) = entry.filter(|entry| !entry.is_empty()) {
            let mut names = made.keys().iter().collect::<Vec<_>>();
            names.retain(|name| entry.contains(name).unwrap_or(false));
            self.nothing_under = Some(PyList::new(py, names)?.unbind());
            let all = entry.copy()?;
            all.update(made.as_mapping())?;
            return Ok(all);
        }
        Ok(made)
    }

    /// Makes the average of the parameter, and does not store it. Runs Python code.
    pub(super) fn make_average<'py>(
        &mut self,
        look: &Look<'_, 'py>,
        is_dtensor: bool,
        source: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = look.optimizer.py();
        fault::point("make average")?;
        let of_item = (look.optimizer, &self.param, is_dtensor);
        let average = look.definition.call_method1(pyo3::intern!(py, "make_average"), of_item)?;
        let fresh = self.fresh.get_or_insert_with(|| PyDict::new(py).unbind()).bind(py);
        fresh.set_item(AVERAGE, &average)?;
        let all = source.map_or_else(|| Ok(PyDict::new(py)), |source| source.copy())?;
        all.set_item(AVERAGE, average)?;
        Ok(all)
    }
}
