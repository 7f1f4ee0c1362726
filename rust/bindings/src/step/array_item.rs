//! One parameter of a step over arrays: its states, and what is wrong with any of them.

use numpy::{
    PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use oxistep_kernels::{AnyRule, MAX_SCALARS, Precision, Scalars};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::fault;
use crate::memory::numpy::accept::{accept, gradient, plain};
use crate::memory::numpy::array::{Set, private_view};
use crate::memory::python::has_plain_keys;
use crate::optimizer::group::Keys;

/// One parameter with a gradient: what a step needs to know of it beside its arrays.
pub(super) struct Item<'py> {
    pub(super) name: String,
    /// The parameter as it was given.
    pub(super) param: Bound<'py, PyAny>,
    pub(super) first: bool,
    pub(super) scalars: Vec<Scalar<'py>>,
    pub(super) scalar_values: Scalars,
    pub(super) entry: Bound<'py, PyDict>,
    pub(super) fresh: Option<Bound<'py, PyDict>>,
}

/// What checking a parameter needs to know.
pub(super) struct Look<'a, 'py> {
    pub(super) name: String,
    pub(super) rule: &'a AnyRule,
    pub(super) values: &'a Bound<'py, PyDict>,
    pub(super) new_state: &'a Bound<'py, PyAny>,
    pub(super) keys: &'a mut Keys,
}

impl<'py> Look<'_, 'py> {
    /// Checks a parameter with its gradient and states, and borrows them.
    pub(super) fn item(
        self,
        param: &Bound<'py, PyAny>,
        grad: &Bound<'py, PyAny>,
        entry: Bound<'py, PyDict>,
    ) -> PyResult<(Item<'py>, Set<'py>)> {
        let py = param.py();
        let name = self.name.as_str();
        let param_array = accept(param, name, true)?;
        let grad_name = format!("the gradient of {name}");
        if !has_plain_keys(&entry) {
            return Err(strange_keys(name));
        }
        let grad = &gradient(grad)?;
        // the state is made before the gradient is borrowed, which may be what `new_state` looks at
        plain(grad, &grad_name)?;
        let fresh = self.fresh_states(param, &entry)?;
        let source = fresh.as_ref().unwrap_or(&entry);
        if !has_plain_keys(source) {
            return Err(strange_keys(name));
        }

        refuse_unlike(&grad_name, grad, param, name)?;
        let mut arrays = vec![param_array, accept(grad, &grad_name, false)?];
        let untyped = |array: &Bound<'py, PyAny>| Ok::<_, PyErr>(array.cast::<PyUntypedArray>()?.clone());
        let mut given = vec![untyped(param)?, untyped(grad)?];
        for state_name in self.rule.states() {
            let what = format!("state {state_name:?} of {name}");
            let state = source.get_item(self.keys.get(py, state_name))?.ok_or_else(|| {
                PyValueError::new_err(format!("{what} is missing: load a state dict that has it, or start afresh"))
            })?;
            plain(&state, &what)?;
            refuse_unlike(&what, &state, param, name)?;
            arrays.push(accept(&state, &what, true)?);
            given.push(untyped(&state)?);
        }
        let mut set = Set::of(arrays, given);
        let (scalars, scalar_values) = borrow_counters(name, self.rule.scalars(), source, self.keys, &mut set)?;
        if let Some(counter) = self.rule.scalars().first()
            && !scalar_values.is_counted()
        {
            // no constructor checks it, but a state can be replaced, and the corrections would divide by zero
            return Err(PyValueError::new_err(format!(
                "state {counter:?} of {name} must be a number of steps, got {}",
                scalar_values.get(0)
            )));
        }
        let (name, param, first) = (self.name, param.clone(), fresh.is_some());
        Ok((Item { name, param, first, scalars, scalar_values, entry, fresh }, set))
    }

    /// New states, if `entry` has none.
    fn fresh_states(
        &self,
        param: &Bound<'py, PyAny>,
        entry: &Bound<'py, PyDict>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let absent = match (self.rule.states().first(), self.rule.scalars().is_empty()) {
            (None, _) => false,
            (Some(buffer), true) => entry.get_item(buffer)?.is_none_or(|value| value.is_none()),
            (Some(_), false) => entry.is_empty(),
        };
        if !absent {
            return Ok(None);
        }
        fault::point("make arrays")?;
        Ok(Some(self.new_state.call1((param, self.values))?.cast_into::<PyDict>()?))
    }
}

/// Refuses an array of another dtype or shape than the parameter, which is called `name`.
fn refuse_unlike(what: &str, array: &Bound<'_, PyAny>, param: &Bound<'_, PyAny>, name: &str) -> PyResult<()> {
    let (array, param) = (array.cast::<PyUntypedArray>()?, param.cast::<PyUntypedArray>()?);
    let (got, expected) = (array.dtype(), param.dtype());
    if !got.is_equiv_to(&expected) {
        return Err(PyTypeError::new_err(format!(
            "{what} has dtype {got}, expected {expected} like {name}: convert it with .astype({expected})"
        )));
    }
    if array.shape() != param.shape() {
        return Err(PyValueError::new_err(format!(
            "{what} has shape {}, expected {} like {name}",
            tuple(array.shape()),
            tuple(param.shape())
        )));
    }
    Ok(())
}

/// The arrays of the parameter's counters, borrowed, and their values. `set` watches them.
fn borrow_counters<'py>(
    name: &str,
    counters: &[&'static str],
    source: &Bound<'py, PyDict>,
    keys: &mut Keys,
    set: &mut Set<'py>,
) -> PyResult<(Vec<Scalar<'py>>, Scalars)> {
    let (mut scalars, mut values) = (Vec::new(), [0.0; MAX_SCALARS]);
    for (k, counter) in counters.iter().enumerate() {
        let what = format!("state {counter:?} of {name}");
        let wrong =
            || PyTypeError::new_err(format!("{what} must be a writeable, aligned array of one float32 or float64"));
        let value = source.get_item(keys.get(source.py(), counter))?.ok_or_else(wrong)?;
        // looked at before a reference to its element is made
        let array = value.cast::<PyUntypedArray>().map_err(|_| wrong())?;
        if array.len() != 1 || !array.is_aligned() {
            return Err(wrong());
        }
        let view = private_view(array)?;
        let scalar = if let Ok(array) = view.cast::<PyArrayDyn<f32>>() {
            Scalar::Single(array.try_readwrite().map_err(|_| wrong())?)
        } else {
            let array = view.cast::<PyArrayDyn<f64>>().map_err(|_| wrong())?;
            Scalar::Double(array.try_readwrite().map_err(|_| wrong())?)
        };
        set.watch(array.clone(), view.cast_into::<PyUntypedArray>()?);
        values[k] = scalar.get().ok_or_else(wrong)?;
        scalars.push(scalar);
    }
    let mut precisions = [Precision::F32; MAX_SCALARS];
    for (precision, scalar) in precisions.iter_mut().zip(&scalars) {
        *precision = if matches!(scalar, Scalar::Single(_)) { Precision::F32 } else { Precision::F64 };
    }
    Ok((scalars, Scalars::new(values, precisions)))
}

/// A scalar state.
pub(super) enum Scalar<'py> {
    Single(PyReadwriteArrayDyn<'py, f32>),
    Double(PyReadwriteArrayDyn<'py, f64>),
}

impl Scalar<'_> {
    fn get(&self) -> Option<f64> {
        match self {
            Self::Single(array) => array.as_array().first().map(|&x| f64::from(x)),
            Self::Double(array) => array.as_array().first().copied(),
        }
    }

    pub(super) fn set(&mut self, x: f64) {
        match self {
            Self::Single(array) => array.as_array_mut().iter_mut().for_each(|to| *to = x as f32),
            Self::Double(array) => array.as_array_mut().iter_mut().for_each(|to| *to = x),
        }
    }
}

pub(super) fn strange_keys(name: &str) -> PyErr {
    PyTypeError::new_err(format!("the state of {name} must be a dict whose keys are strings"))
}

fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}
