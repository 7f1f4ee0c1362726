//! One parameter of a step over arrays: its states, what is wrong with any of them, where they lie.
#![allow(unsafe_code)]

use numpy::{
    PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use oxistep_kernels::overlap::Written;
use oxistep_kernels::{AnyRule, Layout, MAX_SCALARS, MAX_STATES, Precision, Scalars, SliceMut, Tensors};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::fault;
use crate::memory::numpy::accept::{accept, gradient, plain};
use crate::memory::numpy::array::{Array, Buffer, Extent, place, private_view};
use crate::memory::python::has_plain_keys;
use crate::optimizer::group::Keys;

/// One parameter with a gradient, checked and borrowed.
pub(super) struct Item<'py> {
    pub(super) name: String,
    pub(super) first: bool,
    /// Parameter, gradient, states.
    pub(super) arrays: Vec<Array<'py>>,
    pub(super) extents: Vec<Extent>,
    pub(super) layout: Option<Layout>,
    pub(super) scalars: Vec<Scalar<'py>>,
    pub(super) scalar_values: Scalars,
    pub(super) entry: Bound<'py, PyDict>,
    pub(super) fresh: Option<Bound<'py, PyDict>>,
    /// The arrays as they were given, the parameter first, each with the view that was borrowed instead.
    pub(super) watched: Vec<(Bound<'py, PyUntypedArray>, Bound<'py, PyUntypedArray>)>,
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
    pub(super) fn item(
        self,
        param: &Bound<'py, PyAny>,
        grad: &Bound<'py, PyAny>,
        entry: Bound<'py, PyDict>,
    ) -> PyResult<Item<'py>> {
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
        let mut given = vec![param.clone(), grad.clone()];
        for state_name in self.rule.states() {
            let what = format!("state {state_name:?} of {name}");
            let state = source.get_item(self.keys.get(py, state_name))?.ok_or_else(|| {
                PyValueError::new_err(format!("{what} is missing: load a state dict that has it, or start afresh"))
            })?;
            plain(&state, &what)?;
            refuse_unlike(&what, &state, param, name)?;
            arrays.push(accept(&state, &what, true)?);
            given.push(state);
        }
        let mut watched = Vec::with_capacity(given.len() + self.rule.scalars().len());
        for (given, array) in given.into_iter().zip(&arrays) {
            watched.push((given.cast_into::<PyUntypedArray>()?, array.untyped().clone()));
        }
        let (scalars, scalar_values) = borrow_counters(name, self.rule.scalars(), source, self.keys, &mut watched)?;
        let (extents, layout) = place(&arrays);
        if let Some(counter) = self.rule.scalars().first()
            && !scalar_values.is_counted()
        {
            // no constructor checks it, but a state can be replaced, and the corrections would divide by zero
            return Err(PyValueError::new_err(format!(
                "state {counter:?} of {name} must be a number of steps, got {}",
                scalar_values.get(0)
            )));
        }
        let (name, first) = (self.name, fresh.is_some());
        Ok(Item { name, first, arrays, extents, layout, scalars, scalar_values, entry, fresh, watched })
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

/// The arrays of the parameter's counters, borrowed, and their values. Adds them to what is `watched`.
fn borrow_counters<'py>(
    name: &str,
    counters: &[&'static str],
    source: &Bound<'py, PyDict>,
    keys: &mut Keys,
    watched: &mut Vec<(Bound<'py, PyUntypedArray>, Bound<'py, PyUntypedArray>)>,
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
        watched.push((array.clone(), view.cast_into::<PyUntypedArray>()?));
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

/// For each item, whether the extent of one of its arrays reaches into that of another array of the step, so that both
/// cannot be slices at once. (Their elements are distinct: borrowing has seen to that.)
pub(super) fn overlapping_extents(items: &[(usize, Item<'_>)]) -> Vec<bool> {
    let mut apart = vec![false; items.len()];
    let mut written = Written::default();
    written.begin();
    let range = |array: &Array<'_>, extent: &Extent| {
        (extent.first, extent.first + extent.len * array.untyped().dtype().itemsize())
    };
    for (k, (_, item)) in items.iter().enumerate() {
        let arrays = item.arrays.iter().zip(&item.extents).enumerate();
        arrays.filter(|(s, _)| *s != 1).for_each(|(_, (array, extent))| written.add(k, range(array, extent)));
    }
    written.conflicts().iter().for_each(|&k| apart[k] = true);
    for (k, (_, item)) in items.iter().enumerate() {
        let mut met = Vec::new();
        written.meeting(range(&item.arrays[1], &item.extents[1]), &mut 0, |other| met.push(other));
        if !met.is_empty() {
            apart[k] = true;
            met.into_iter().for_each(|other| apart[other] = true);
        }
    }
    apart
}

/// Refuses items whose arrays share elements. The numpy crate has seen to that for arrays with one owner; two arrays
/// over one buffer may have different owners, so those that lie close together are compared element by element.
pub(super) fn refuse_shared_elements(items: &[(usize, Item<'_>)], set_apart: &[bool]) -> PyResult<()> {
    let mut elements: Vec<(usize, usize, usize)> = Vec::new(); // (address, item, array)
    for (k, (_, item)) in items.iter().enumerate().filter(|(k, _)| set_apart[*k]) {
        for (s, array) in item.arrays.iter().enumerate() {
            array.addresses().for_each(|address| elements.push((address, k, s)));
        }
    }
    elements.sort_unstable();
    let size = |&(_, k, s): &(usize, usize, usize)| items[k].1.arrays[s].untyped().dtype().itemsize();
    // two gradients may share elements: they are only read
    let mut last_written: Option<(usize, usize)> = None; // (end, item)
    let mut last_read: Option<(usize, usize)> = None;
    for element in &elements {
        let &(address, k, s) = element;
        let is_read = s == 1;
        for last in [last_written, if is_read { None } else { last_read }].into_iter().flatten() {
            if address < last.0 {
                return Err(PyValueError::new_err(format!(
                    "{} shares memory with {} or its gradient: pass a copy, .copy(), of one of them",
                    items[k].1.name, items[last.1].1.name
                )));
            }
        }
        let last = if is_read { &mut last_read } else { &mut last_written };
        *last = Some((address + size(element), k)).max(*last);
    }
    Ok(())
}

impl Item<'_> {
    /// # Safety
    /// The borrows are held for all of `'a`, and no slice that is written overlaps any other in use in `'a`.
    pub(super) unsafe fn tensors<'a>(&'a self) -> Tensors<'a> {
        let mut states: [SliceMut<'a>; MAX_STATES] = Default::default();
        // SAFETY: the caller's contract is that of `slice` and `slice_mut`.
        unsafe {
            for (s, state) in states.iter_mut().enumerate().take(self.arrays.len() - 2) {
                *state = self.arrays[2 + s].slice_mut(self.extents[2 + s]);
            }
            Tensors {
                param: self.arrays[0].slice_mut(self.extents[0]),
                grad: self.arrays[1].slice(self.extents[1]),
                states,
                layout: self.layout.as_ref(),
            }
        }
    }
}

/// Copies of an item's arrays, for the rare item whose elements lie between those of another array of the step.
#[derive(Default)]
pub(super) struct Copies(Vec<Buffer>);

impl Copies {
    pub(super) fn in_use(&self) -> bool {
        !self.0.is_empty()
    }

    pub(super) fn fill(&mut self, item: &Item<'_>) {
        self.0 = item.arrays.iter().map(Array::to_buffer).collect();
    }

    pub(super) fn tensors(&mut self) -> Tensors<'_> {
        let mut states: [SliceMut<'_>; MAX_STATES] = Default::default();
        let (head, tail) = self.0.split_at_mut(2);
        states.iter_mut().zip(tail).for_each(|(state, buffer)| *state = buffer.slice_mut());
        let (param, grad) = head.split_at_mut(1);
        Tensors { param: param[0].slice_mut(), grad: grad[0].slice(), states, layout: None }
    }

    pub(super) fn write_back(&self, item: &mut Item<'_>) {
        for (s, (array, buffer)) in item.arrays.iter_mut().zip(&self.0).enumerate() {
            if s != 1 {
                array.assign(buffer);
            }
        }
    }
}
