//! One parameter of a step over arrays: its states, and what is wrong with any of them.

use std::cell::Cell;

use numpy::{PyArrayDyn, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use oxistep_kernels::Precision;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::fault;
use crate::memory::dtype::DType;
use crate::memory::numpy::accept::{Owner, accept, plain};
use crate::memory::numpy::array::{Array, Gradient, Set};
use crate::memory::python::has_plain_keys;
use crate::memory::unfit::Reason;
use crate::optimizer::group::Keys;
use crate::optimizer::rule::GroupRule;
use crate::optimizer::traced::{Known, Leaf, Tree};
use crate::step::array_gradient::{Given, not_in_one_piece, refuse_unlike};
use crate::step::lists::{Counted, Counters};
use crate::step::matched::Names;
use crate::step::traced::{Found, Traced, number_in};

/// One parameter with a gradient: what a step needs to know of it beside its arrays.
pub(super) struct Item<'py> {
    pub(super) name: String,
    /// The parameter as it was given.
    pub(super) param: Bound<'py, PyAny>,
    pub(super) dtype: DType,
    pub(super) first: bool,
    pub(super) counters: Counted,
    /// Of a rule that a user wrote.
    pub(super) traced: Option<Traced>,
    pub(super) entry: Bound<'py, PyDict>,
    pub(super) fresh: Option<Bound<'py, PyDict>>,
    /// The names of its states and counters.
    kept: Vec<&'static str>,
}

impl Item<'_> {
    /// What errors call one of its arrays: the parameter, the gradient, states, counters.
    pub(super) fn what(&self, place: usize) -> String {
        match place.checked_sub(2) {
            Some(k) => format!("state {:?} of {}", self.kept.get(k).unwrap_or(&""), self.name),
            None if place == 0 => self.name.clone(),
            None => format!("the gradient of {}", self.name),
        }
    }
}

/// What checking a parameter needs to know.
pub(super) struct Look<'a, 'py> {
    pub(super) name: String,
    pub(super) rule: &'a GroupRule,
    /// Of a rule that a user wrote.
    pub(super) tree: Option<&'a Bound<'py, Tree>>,
    /// What the rule's questions about the array's elements came to, as far as they were asked.
    pub(super) answers: &'a [u64],
    pub(super) values: &'a Bound<'py, PyDict>,
    pub(super) new_state: &'a Bound<'py, PyAny>,
    pub(super) keys: &'a mut Keys,
}

impl<'py> Look<'_, 'py> {
    /// Checks a parameter with its gradient and states, and borrows them; or says why kernels cannot update it.
    pub(super) fn item(
        self,
        param: &Bound<'py, PyAny>,
        grad: &Bound<'py, PyAny>,
        entry: Bound<'py, PyDict>,
    ) -> PyResult<Result<(Item<'py>, Set), Reason>> {
        let py = param.py();
        let name = self.name.as_str();
        let param_array = accept(param, name, Owner::Model)?;
        if !has_plain_keys(&entry) {
            return Err(strange_keys(name));
        }
        let given = Given::of(grad, &param_array, (param, name), self.rule.gradients())?;
        let (leaf, inputs) = match self.leaf(param, &entry)? {
            Ok(found) => found.unzip(),
            Err(reason) => return Ok(Err(reason)),
        };
        let names = Names::of(self.rule, leaf.as_deref(), param.cast::<PyUntypedArray>()?.ndim());
        let fresh = self.fresh_states(param, &entry, names, leaf.as_deref())?;
        let source = match &fresh {
            Some(fresh) if leaf.is_some() => {
                let all = entry.copy()?;
                all.update(fresh.as_mapping())?;
                all
            }
            Some(fresh) => fresh.clone(),
            None => entry.clone(),
        };
        if !has_plain_keys(&source) {
            return Err(strange_keys(name));
        }

        let gradient = given.look_at(param, &param_array, name)?;
        let mut states = Vec::with_capacity(names.states.len());
        for state_name in names.states {
            let what = format!("state {state_name:?} of {name}");
            let state = source.get_item(self.keys.get(py, state_name))?.ok_or_else(|| {
                PyValueError::new_err(format!("{what} is missing: load a state dict that has it, or start afresh"))
            })?;
            plain(&state, &what)?;
            refuse_unlike(&what, &state, param, name)?;
            let state = accept(&state, &what, Owner::Optimizer)?;
            if matches!(gradient, Gradient::Rows(..)) && !state.is_in_one_piece() {
                return Err(not_in_one_piece(&what));
            }
            states.push(state);
        }
        let (arrays, counters) = look_at_counters(name, names.counters, &source, self.keys)?;
        let dtype = param_array.form.number.float().unwrap_or(DType::F32);
        let set = Set::of(param_array, gradient, states.into_iter(), arrays);
        if let (Some(counter), Some((count, _))) = (names.counters.first(), counters.first())
            && !is_counted(*count)
        {
            // no constructor checks it, but a state can be replaced, and the corrections would divide by zero
            return Err(PyValueError::new_err(format!(
                "state {counter:?} of {name} must be a number of steps, got {count}"
            )));
        }
        let kept = names.states.iter().chain(names.counters).copied().collect();
        let (name, param, first) = (self.name, param.clone(), fresh.is_some());
        let traced = leaf.zip(inputs).map(|(leaf, inputs)| Traced::new(leaf, inputs, &counters));
        Ok(Ok((Item { name, param, dtype, first, counters, traced, entry, fresh, kept }, set)))
    }

    /// New states, if `entry` has none.
    fn fresh_states(
        &self,
        param: &Bound<'py, PyAny>,
        entry: &Bound<'py, PyDict>,
        names: Names<'_>,
        leaf: Option<&Leaf>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        if let Some(leaf) = leaf {
            let missing = leaf.missing(Some(entry));
            if missing.is_empty() {
                return Ok(None);
            }
            fault::point("make arrays")?;
            return Ok(Some(
                self.new_state
                    .call1((param, self.values, missing, &leaf.begins, entry, &self.name))?
                    .cast_into::<PyDict>()?,
            ));
        }
        let absent = match (names.states.first(), names.counters.is_empty()) {
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

    /// The program, if the rule is one that a user wrote. May run the rule's function.
    fn leaf(&self, param: &Bound<'py, PyAny>, entry: &Bound<'py, PyDict>) -> PyResult<Result<Option<Found>, Reason>> {
        let (GroupRule::Traced(numbers), Some(tree)) = (self.rule, self.tree) else { return Ok(Ok(None)) };
        let array = param.cast::<PyUntypedArray>()?;
        let sizes = array.shape().iter().map(|&n| n as i64).collect();
        let (group, answers) = (self.values, self.answers);
        let known = OfEntry { entry, group, answers, sizes, unreadable: Cell::new(false) };
        let leaf = match numbers.leaf(tree.get(), param.py(), &known)? {
            Ok(leaf) => leaf,
            Err(reason) => return Ok(Err(reason)),
        };
        let inputs = numbers.inputs(&leaf.inputs, &known);
        if known.unreadable.get() {
            return Ok(Err("a number of the group is none".into()));
        }
        Ok(Ok(Some((leaf, inputs))))
    }
}

/// What is known of an array before its program is.
struct OfEntry<'a, 'py> {
    entry: &'a Bound<'py, PyDict>,
    group: &'a Bound<'py, PyDict>,
    answers: &'a [u64],
    sizes: Vec<i64>,
    /// Something that is no number stands where one should.
    unreadable: Cell<bool>,
}

impl Known for OfEntry<'_, '_> {
    fn of_group(&self, name: &'static str) -> Option<f64> {
        number_in(self.group, name).unwrap_or_else(|_| {
            self.unreadable.set(true);
            None
        })
    }

    fn numel(&self) -> f64 {
        self.sizes.iter().product::<i64>() as f64
    }

    fn answer(&self, question: usize) -> Option<u64> {
        self.answers.get(question).copied()
    }

    fn step(&self) -> f64 {
        self.number("step").unwrap_or(0.0) + 1.0
    }

    fn number(&self, name: &'static str) -> Option<f64> {
        let value = self.entry.get_item(name).ok().flatten()?;
        if let Ok(array) = value.cast::<PyArrayDyn<f32>>() {
            return array.try_readonly().ok()?.as_array().first().map(|&x| f64::from(x));
        }
        value.cast::<PyArrayDyn<f64>>().ok()?.try_readonly().ok()?.as_array().first().copied()
    }

    fn sizes(&self) -> &[i64] {
        &self.sizes
    }
}

/// Whether a counter stands where counting from zero leads.
fn is_counted(count: f64) -> bool {
    (0.0..1e15).contains(&count)
}

/// The arrays of the parameter's counters, and their values.
fn look_at_counters(
    name: &str,
    counters: &[&'static str],
    source: &Bound<'_, PyDict>,
    keys: &mut Keys,
) -> PyResult<(Vec<Array>, Counted)> {
    let (mut arrays, mut values) = (Vec::new(), Counters::new());
    for counter in counters {
        let what = format!("state {counter:?} of {name}");
        let wrong =
            || PyTypeError::new_err(format!("{what} must be a writeable, aligned array of one float32 or float64"));
        let value = source.get_item(keys.get(source.py(), counter))?.ok_or_else(wrong)?;
        let array = value.cast::<PyUntypedArray>().ok().and_then(Array::of).ok_or_else(wrong)?;
        let precision = match array.form.number.float() {
            Some(DType::F32) => Precision::F32,
            Some(DType::F64) => Precision::F64,
            _ => return Err(wrong()),
        };
        if array.form.len != 1 || !array.is_aligned() || !array.is_writeable() {
            return Err(wrong());
        }
        values.push((array.number(), precision));
        arrays.push(array);
    }
    Ok((arrays, values))
}

pub(super) fn strange_keys(name: &str) -> PyErr {
    PyTypeError::new_err(format!("the state of {name} must be a dict whose keys are strings"))
}
