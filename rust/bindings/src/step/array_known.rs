//! What is known of an optimizer over arrays after a step, so that the next one need not be found out anew: it is
//! proved again, by identity, pointer and flags.

use oxistep_kernels::{AnyRule, Kind};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyList, PyString, PyTuple};

use crate::memory::numpy::array::Settled;
use crate::memory::python::{Entries, has_plain_keys, is_at};
use crate::optimizer::group::{Group, Keys, is_number};
use crate::step::arrays::{Asked, Taken};
use crate::step::structure::Structure;

/// An optimizer's groups, states and arrays after a step.
pub(super) struct Known {
    groups: Py<PyList>,
    state: Py<PyList>,
    pub(super) of_groups: Vec<KnownGroup>,
    /// The parameters of all groups.
    items: Vec<KnownItem>,
    pub(super) settled: Settled,
    /// Of each of the sets.
    pub(super) group_of_set: Vec<usize>,
    /// In which gradients came; `None`: Python code made lists of them.
    pub(super) structure: Option<Structure>,
}

/// A group.
pub(super) struct KnownGroup {
    values: Py<PyDict>,
    entries: Entries,
    /// Where its learning rate stands among the entries.
    place_of_lr: usize,
    /// The learning rate that stood there, and what it is, if it is a number.
    lr: (Py<PyAny>, Option<f64>),
    params: Py<PyList>,
    count: usize,
    states: Py<PyList>,
    /// The rule at the learning rate of the last step, and the factor on gradients.
    rule: (AnyRule, f64),
    rate: f64,
}

/// A parameter.
struct KnownItem {
    group: usize,
    index: usize,
    /// Its arrays, if it had a gradient.
    set: Option<usize>,
    entry: Option<(Py<PyDict>, Entries)>,
}

impl Known {
    /// `given` are the gradients as they came. `None` if something cannot be proved again.
    pub(super) fn of(asked: &Asked<'_, '_>, taken: Taken<'_>, given: Option<&Bound<'_, PyAny>>) -> Option<Self> {
        if !taken.arrays.is_whole() {
            return None;
        }
        let (mut of_groups, mut items) = (Vec::new(), Vec::new());
        for (g, values) in asked.groups.iter().enumerate() {
            let values = values.cast_into_exact::<PyDict>().ok()?;
            let (rule, factor) = taken.rules.get(g)?;
            let group = KnownGroup::of(&values, asked, g, (*rule.compiled()?, *factor))?;
            items.extend((0..group.count).map(|index| KnownItem { group: g, index, set: None, entry: None }));
            of_groups.push(group);
        }
        for (set, (&place, (_, item))) in taken.rows.iter().zip(&taken.items).enumerate() {
            let known = items.get_mut(place)?;
            known.set = Some(set);
            known.entry = Some((item.entry.clone().unbind(), Entries::of(&item.entry)));
        }
        let lists = asked.grads.iter().map(|list| list.cast_into::<PyList>().ok()).collect::<Option<Vec<_>>>()?;
        let leaves = lists.iter().flat_map(|list| list.iter());
        let structure = given.and_then(|given| Structure::of(given, leaves));
        let settled = Settled::of(taken.arrays)?;
        let (groups, state) = (asked.groups.clone().unbind(), asked.state.clone().unbind());
        let group_of_set = taken.items.iter().map(|(g, _)| *g).collect();
        Some(Self { groups, state, of_groups, items, settled, group_of_set, structure })
    }

    /// Whether these are the groups and states, as far as the lists go. It runs no Python code.
    #[inline]
    fn are_the_same(&self, groups: &Bound<'_, PyAny>, state: &Bound<'_, PyAny>) -> bool {
        let py = groups.py();
        let (own_groups, own_state) = (self.groups.bind(py), self.state.bind(py));
        let count = self.of_groups.len();
        own_groups.is(groups) && own_state.is(state) && own_groups.len() == count && own_state.len() == count
    }

    /// The learning rates of this step, by `compute` where one is no number; the second says whether they are others
    /// than those of the last step. `None` if the groups are not the same ones. It may run Python code.
    pub(super) fn rates<'py>(
        &mut self,
        (groups, state): (&Bound<'py, PyAny>, &Bound<'py, PyAny>),
        keys: &mut Keys,
        compute: impl Fn(Bound<'py, PyAny>, usize) -> PyResult<f64>,
    ) -> PyResult<Option<(Vec<f64>, bool)>> {
        let py = groups.py();
        if !self.are_the_same(groups, state) {
            return Ok(None);
        }
        let (mut rates, mut changed) = (Vec::new(), false);
        for (g, known) in self.of_groups.iter_mut().enumerate() {
            let values = known.values.bind(py);
            let Some(lr) = values.get_item(keys.get(py, "lr"))? else { return Ok(None) };
            if let (true, Some(_)) = (lr.is(&known.lr.0), known.lr.1) {
                continue;
            }
            changed = true;
            let number = plain_rate(&lr);
            let rate = match number {
                Some(rate) => rate,
                None => compute(lr.clone(), g)?,
            };
            known.lr = (lr.unbind(), number);
            rates.push((g, rate));
        }
        let rates_of_all = if changed {
            let mut all: Vec<f64> = self.of_groups.iter().map(|known| known.lr.1.unwrap_or(known.rate)).collect();
            rates.into_iter().for_each(|(g, rate)| all[g] = rate);
            all
        } else {
            Vec::new()
        };
        Ok(Some((rates_of_all, changed)))
    }

    /// Lets all parameters with a gradient take part in a step, if everything is what it was; `rates` are the groups'
    /// learning rates, or none if they are those of the last step. `each` calls back with each gradient. No Python code
    /// runs.
    pub(super) fn prove<'py>(
        &mut self,
        (groups, state): (&Bound<'py, PyAny>, &Bound<'py, PyAny>),
        (kind, rates): (Kind, &[f64]),
        keys: &mut Keys,
        each: impl FnOnce(Option<&Structure>, &mut dyn FnMut(Bound<'py, PyAny>) -> PyResult<bool>) -> PyResult<bool>,
    ) -> PyResult<bool> {
        let py = groups.py();
        if !self.are_the_same(groups, state) {
            return Ok(false);
        }
        let Self { of_groups, items, settled, structure, groups: own_groups, state: own_state, .. } = self;
        for (g, known) in of_groups.iter_mut().enumerate() {
            let is_same = is_at(own_groups.bind(py), g, known.values.as_any())
                && is_at(own_state.bind(py), g, known.states.as_any())
                && known.params.bind(py).len() == known.count
                && known.states.bind(py).len() == known.count
                && known.entries.are_in(known.values.bind(py), known.place_of_lr);
            if !is_same {
                return Ok(false);
            }
            let Some(rate) = rates.get(g).copied().or(known.lr.1) else { return Ok(false) };
            known.set_rate(py, kind, rate, keys)?;
        }
        settled.begin();
        let mut k = 0;
        let mut prove = |grad: Bound<'py, PyAny>| {
            let Some(item) = items.get(k) else { return Ok(false) };
            k += 1;
            if grad.is_none() {
                return Ok(true);
            }
            let (Some(set), Some((entry, entries))) = (item.set, &item.entry) else { return Ok(false) };
            let group = &of_groups[item.group];
            let entry = entry.bind(py);
            Ok(is_at(group.states.bind(py), item.index, entry.as_unbound().as_any())
                && entries.are_in(entry, usize::MAX)
                && settled.take(set, (group.params.bind(py), item.index), grad))
        };
        Ok(each(structure.as_ref(), &mut prove)? && k == items.len() && settled.is_free(py))
    }

    /// The parameters that take part in the step under way.
    pub(super) fn params<'py>(&self, py: Python<'py>) -> impl Iterator<Item = Bound<'py, PyAny>> {
        let taking = self.items.iter().filter(|item| item.set.is_some_and(|set| self.settled.sets()[set].takes_part));
        taking.filter_map(move |item| self.of_groups[item.group].params.bind(py).get_item(item.index).ok())
    }

    pub(super) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.groups)?;
        visit.call(&self.state)?;
        for group in &self.of_groups {
            visit.call(&group.values)?;
            visit.call(&group.params)?;
            visit.call(&group.states)?;
            visit.call(&group.lr.0)?;
            visit_entries(&group.entries, visit)?;
        }
        for (entry, entries) in self.items.iter().filter_map(|item| item.entry.as_ref()) {
            visit.call(entry)?;
            visit_entries(entries, visit)?;
        }
        self.structure.as_ref().map_or(Ok(()), |structure| structure.visit(visit))?;
        self.settled.objects().try_for_each(|object| visit.call(object))
    }
}

fn visit_entries(entries: &Entries, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
    entries.iter().try_for_each(|(key, value)| {
        visit.call(key)?;
        visit.call(value)
    })
}

impl KnownGroup {
    fn of(values: &Bound<'_, PyDict>, asked: &Asked<'_, '_>, g: usize, rule: (AnyRule, f64)) -> Option<Self> {
        if !has_plain_keys(values) {
            return None;
        }
        let mut place_of_lr = None;
        for (i, (key, value)) in values.iter().enumerate() {
            let key = key.cast_into::<PyString>().ok()?.to_string();
            match key.as_str() {
                "lr" => place_of_lr = Some(i),
                "params" | "param_names" | "name" => {}
                _ if is_lasting(&value) => {}
                _ => return None,
            }
        }
        let params = values.get_item("params").ok()??.cast_into_exact::<PyList>().ok()?;
        let states = asked.state.get_item(g).ok()?.cast_into_exact::<PyList>().ok()?;
        let lr = values.get_item("lr").ok()??;
        let number = plain_rate(&lr);
        Some(Self {
            values: values.clone().unbind(),
            entries: Entries::of(values),
            place_of_lr: place_of_lr?,
            lr: (lr.unbind(), number),
            count: params.len(),
            params: params.unbind(),
            states: states.unbind(),
            rule,
            rate: (*asked.lrs.get(g)?)?,
        })
    }

    /// The rule at the learning rate of this step.
    fn set_rate(&mut self, py: Python<'_>, kind: Kind, rate: f64, keys: &mut Keys) -> PyResult<()> {
        if rate.to_bits() != self.rate.to_bits() {
            let values = self.values.bind(py);
            self.rule = Group { lr: Some(rate), ..Group::of(values, keys) }.read(kind)?;
            self.rate = rate;
        }
        Ok(())
    }

    pub(super) fn rule(&self) -> &(AnyRule, f64) {
        &self.rule
    }
}

/// A learning rate that is a plain number, and may be one.
fn plain_rate(lr: &Bound<'_, PyAny>) -> Option<f64> {
    let rate = if is_number(lr) { lr.extract::<f64>().ok()? } else { return None };
    (rate >= 0.0).then_some(rate)
}

/// Whether an object says the same for as long as it lives, and reading it runs no Python code.
fn is_lasting(value: &Bound<'_, PyAny>) -> bool {
    value.is_none()
        || value.is_exact_instance_of::<PyBool>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyString>()
        || is_number(value)
        || value.cast_exact::<PyTuple>().is_ok_and(|tuple| tuple.iter().all(|part| is_lasting(&part)))
}
