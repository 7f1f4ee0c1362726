//! The structure in which gradients come: lists, tuples and dicts of them, as deep as may be.

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use crate::memory::python::{each_entry, each_item, has_plain_keys};

/// A structure, whose leaves are gradients.
#[derive(Debug)]
pub(super) enum Structure {
    Leaf,
    List(Vec<Structure>),
    Tuple(Vec<Structure>),
    /// With its keys, in the order in which gradients were taken from it.
    Dict(Vec<(Py<PyAny>, Structure)>),
}

/// Deeper ones are looked at by Python code alone.
const DEEPEST: usize = 32;

impl Structure {
    pub(super) fn is_leaf(&self) -> bool {
        matches!(self, Self::Leaf)
    }

    /// That of `object`, if its leaves in order are these very objects. (Whatever else Python code made of it, such as
    /// taking the values of a dict in another order, is no structure.)
    pub(super) fn of<'py>(object: &Bound<'py, PyAny>, leaves: impl Iterator<Item = Bound<'py, PyAny>>) -> Option<Self> {
        let mut leaves = leaves;
        let structure = Self::with(object, &mut leaves, DEEPEST)?;
        leaves.next().is_none().then_some(structure)
    }

    fn with<'py>(
        object: &Bound<'py, PyAny>,
        leaves: &mut impl Iterator<Item = Bound<'py, PyAny>>,
        depth: usize,
    ) -> Option<Self> {
        let depth = depth.checked_sub(1)?;
        if let Ok(list) = object.cast_exact::<PyList>() {
            return list.iter().map(|part| Self::with(&part, leaves, depth)).collect::<Option<_>>().map(Self::List);
        }
        if let Ok(tuple) = object.cast_exact::<PyTuple>() {
            return tuple.iter().map(|part| Self::with(&part, leaves, depth)).collect::<Option<_>>().map(Self::Tuple);
        }
        if let Ok(dict) = object.cast_exact::<PyDict>() {
            let part = |(key, part): (Bound<'py, PyAny>, Bound<'py, PyAny>)| {
                Some((key.unbind(), Self::with(&part, leaves, depth)?))
            };
            return dict.iter().map(part).collect::<Option<_>>().map(Self::Dict);
        }
        leaves.next()?.is(object).then_some(Self::Leaf)
    }

    /// Calls `f` with each leaf of an object of the same structure; `false` as soon as it has another, or `f` says so.
    /// It runs no Python code.
    pub(super) fn each<'py>(
        &self,
        object: &Bound<'py, PyAny>,
        f: &mut dyn FnMut(&Bound<'py, PyAny>) -> PyResult<bool>,
    ) -> PyResult<bool> {
        match self {
            Self::Leaf => f(object),
            Self::List(parts) => {
                let Ok(list) = object.cast_exact::<PyList>() else { return Ok(false) };
                if list.len() != parts.len() {
                    return Ok(false);
                }
                let mut parts = parts.iter();
                each_item(list, |item| parts.next().map_or(Ok(false), |part| part.each(item, f)))
            }
            Self::Tuple(parts) => {
                let Ok(tuple) = object.cast_exact::<PyTuple>() else { return Ok(false) };
                if tuple.len() != parts.len() {
                    return Ok(false);
                }
                for (i, part) in parts.iter().enumerate() {
                    if !part.each(&tuple.get_item(i)?, f)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Dict(parts) => {
                let Ok(dict) = object.cast_exact::<PyDict>() else { return Ok(false) };
                if dict.len() != parts.len() {
                    return Ok(false);
                }
                // nearly always the keys are the same objects in the same order
                let (mut place, mut alike) = (0, true);
                each_entry(dict, |key, _, _| {
                    alike &= parts.get(place).is_some_and(|(own, _)| own.as_ptr() as usize == key);
                    place += 1;
                });
                if !alike && !has_plain_keys(dict) {
                    return Ok(false);
                }
                let (mut place, mut result) = (0, Ok(true));
                if alike {
                    each_entry(dict, |_, value, _| {
                        if matches!(result, Ok(true)) {
                            result = parts[place].1.each(&value, f);
                        }
                        place += 1;
                    });
                    return result;
                }
                for (key, part) in parts {
                    // keys of a dict of strings are looked up without running Python code if they are strings, too
                    let Ok(key) = key.bind(dict.py()).cast_exact::<PyString>() else { return Ok(false) };
                    let Some(value) = dict.get_item(key)? else { return Ok(false) };
                    if !part.each(&value, f)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }

    pub(super) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Leaf => Ok(()),
            Self::List(parts) | Self::Tuple(parts) => parts.iter().try_for_each(|part| part.visit(visit)),
            Self::Dict(parts) => parts.iter().try_for_each(|(key, part)| {
                visit.call(key)?;
                part.visit(visit)
            }),
        }
    }
}
