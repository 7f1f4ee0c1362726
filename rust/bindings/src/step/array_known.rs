//! What is known of an optimizer over arrays after a step, so that the next one need not be found out anew: it is
//! proved again, by identity, pointer and flags.

use std::ops::Range;
use std::sync::Arc;

use oxistep_kernels::driver;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyList, PyString, PyTuple};

use crate::memory::numpy::array::Settled;
use crate::memory::python::{Entries, are_in, has_plain_keys, is_at};
use crate::optimizer::group::{Group, Keys, is_number};
use crate::optimizer::rule::{ClassRule, GroupRule};
use crate::optimizer::traced::Leaf;
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
    /// Of each of the sets, if a user wrote the rule.
    pub(super) leaves: Vec<Option<KnownLeaf>>,
    /// They came in one list, and all parameters are taken together.
    is_flat: bool,
}

/// A group.
pub(super) struct KnownGroup {
    values: Py<PyDict>,
    entries: Entries,
    /// Where its learning rate stands among the entries.
    place_of_lr: usize,
    /// The learning rate that stood there, and what it is, if it is a number.
    lr: (Py<PyAny>, Option<f64>),
    params: (Py<PyList>, Vec<Py<PyAny>>),
    states: (Py<PyList>, Vec<Py<PyAny>>),
    /// The rule at the learning rate of the last step, and the factor on gradients.
    rule: (GroupRule, f64),
    rate: f64,
}

/// The program of a parameter, and its shape.
pub(super) struct KnownLeaf {
    pub(super) leaf: Arc<Leaf>,
    pub(super) sizes: Vec<i64>,
}

/// A parameter.
struct KnownItem {
    group: usize,
    index: usize,
    /// Its arrays, if it had a gradient.
    set: Option<usize>,
    /// Those it is taken together with.
    singles: Option<usize>,
    entry: Option<(Py<PyDict>, Entries)>,
}

impl Known {
    /// `given` are the gradients as they came. `None` if something cannot be proved again.
    pub(super) fn of(asked: &Asked<'_, '_>, taken: Taken<'_>, given: Option<&Bound<'_, PyAny>>) -> Option<Self> {
        if !taken.arrays.is_whole() || !taken.leaves.iter().flatten().all(|leaf| KnownLeaf::serves(leaf)) {
            return None;
        }
        let (mut of_groups, mut items) = (Vec::new(), Vec::new());
        for (g, values) in asked.groups.iter().enumerate() {
            let values = values.cast_into_exact::<PyDict>().ok()?;
            let group = KnownGroup::of(&values, asked, g, taken.rules.get(g)?.clone())?;
            let item = |index| KnownItem { group: g, index, set: None, singles: None, entry: None };
            items.extend((0..group.params.1.len()).map(item));
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
        let mut settled = Settled::of(taken.arrays)?;
        let of_set = |(k, leaf): (usize, Option<_>)| leaf.map(|leaf| KnownLeaf::of(leaf, settled.shape(k)));
        let leaves: Vec<_> = taken.leaves.into_iter().enumerate().map(of_set).collect();
        let (groups, state) = (asked.groups.clone().unbind(), asked.state.clone().unbind());
        let group_of_set: Vec<usize> = taken.items.iter().map(|(g, _)| *g).collect();
        if settled.elements() < driver::SERIAL && leaves.iter().all(Option::is_none) {
            for run in runs(&group_of_set, |k| settled.is_single(k)) {
                let singles = settled.take_together(asked.groups.py(), run.clone());
                for item in items.iter_mut().filter(|item| item.set.is_some_and(|set| run.contains(&set))) {
                    item.singles = singles;
                }
            }
        }
        let is_list = matches!(&structure, Some(Structure::List(parts)) if parts.iter().all(Structure::is_leaf));
        let is_flat = is_list && settled.is_all_together(items.len());
        Some(Self { groups, state, of_groups, items, settled, group_of_set, structure, leaves, is_flat })
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
            if known.place_of_lr == NOWHERE {
                continue;
            }
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
    /// learning rates, or none if they are those of the last step. `together`: numbers without dimensions may be taken
    /// together. `each` calls back with each gradient; `given` are all of them as they came, if it
    /// does that in the remembered structure. No Python code runs.
    pub(super) fn prove<'py>(
        &mut self,
        (groups, state): (&Bound<'py, PyAny>, &Bound<'py, PyAny>),
        (class, rates, together): (&ClassRule, &[f64], bool),
        keys: &mut Keys,
        given: Option<&Bound<'py, PyAny>>,
        each: impl FnOnce(Option<&Structure>, &mut dyn FnMut(&Bound<'py, PyAny>) -> PyResult<bool>) -> PyResult<bool>,
    ) -> PyResult<bool> {
        let py = groups.py();
        if !self.are_the_same(groups, state) {
            return Ok(false);
        }
        let Self { of_groups, items, settled, structure, is_flat, groups: own_groups, state: own_state, .. } = self;
        for (g, known) in of_groups.iter_mut().enumerate() {
            let is_same = is_at(own_groups.bind(py), g, known.values.as_any())
                && is_at(own_state.bind(py), g, known.states.0.as_any())
                && are_in(known.params.0.bind(py), &known.params.1)
                && are_in(known.states.0.bind(py), &known.states.1)
                && known.entries.are_in(known.values.bind(py), known.place_of_lr);
            if !is_same {
                return Ok(false);
            }
            let Some(rate) = rates.get(g).copied().or(known.lr.1) else { return Ok(false) };
            if !known.set_rate(py, (class, g), rate, keys)? {
                return Ok(false);
            }
        }
        settled.begin();
        if let (true, true, Some(Ok(list))) = (*is_flat, together, given.map(|given| given.cast_exact::<PyList>())) {
            let holds = |item: &KnownItem| {
                item.entry.as_ref().is_some_and(|(entry, entries)| entries.are_in(entry.bind(py), usize::MAX))
            };
            return Ok(list.len() == items.len()
                && items.iter().all(holds)
                && settled.take_all(list)
                && settled.is_free(py));
        }
        let mut k = 0;
        let mut prove = |grad: &Bound<'py, PyAny>| {
            let Some(item) = items.get(k) else { return Ok(false) };
            k += 1;
            if grad.is_none() {
                return Ok(true);
            }
            let (Some(set), Some((entry, entries))) = (item.set, &item.entry) else { return Ok(false) };
            Ok(entries.are_in(entry.bind(py), usize::MAX)
                && match item.singles.filter(|_| together) {
                    Some(singles) => settled.take_single((singles, set), grad),
                    None => settled.take(set, grad),
                })
        };
        Ok(each(structure.as_ref(), &mut prove)? && k == items.len() && settled.is_free(py))
    }

    /// The parameters that take part in the step under way.
    pub(super) fn params<'py>(&self, py: Python<'py>) -> impl Iterator<Item = Bound<'py, PyAny>> {
        let taking = self.items.iter().filter(|item| item.set.is_some_and(|set| self.settled.takes_part(set)));
        taking.filter_map(move |item| self.of_groups[item.group].params.0.bind(py).get_item(item.index).ok())
    }

    pub(super) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.groups)?;
        visit.call(&self.state)?;
        for group in &self.of_groups {
            visit.call(&group.values)?;
            visit.call(&group.params.0)?;
            visit.call(&group.states.0)?;
            group.params.1.iter().chain(&group.states.1).try_for_each(|object| visit.call(object))?;
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

impl KnownLeaf {
    fn of(leaf: Arc<Leaf>, shape: &[usize]) -> Self {
        Self { leaf, sizes: shape.iter().map(|&n| n as i64).collect() }
    }

    /// Whether a short step takes such a program.
    pub(super) fn serves(leaf: &Leaf) -> bool {
        leaf.question.is_none()
    }
}

/// The place of a learning rate among the entries of a group that has none.
const NOWHERE: usize = usize::MAX;

/// Sets in a row, of the same group, of which all are numbers without dimensions: those that are worth taking together.
fn runs(group_of_set: &[usize], is_single: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for k in (0..group_of_set.len()).filter(|&k| is_single(k)) {
        match runs.last_mut() {
            Some(run) if run.end == k && group_of_set[run.start] == group_of_set[k] => run.end = k + 1,
            _ => runs.push(k..k + 1),
        }
    }
    runs.retain(|run| run.len() >= WORTH_IT);
    runs
}

/// Fewer numbers are updated where they lie.
const WORTH_IT: usize = 2;

fn visit_entries(entries: &Entries, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
    entries.iter().try_for_each(|(key, value)| {
        visit.call(key)?;
        visit.call(value)
    })
}

impl KnownGroup {
    fn of(values: &Bound<'_, PyDict>, asked: &Asked<'_, '_>, g: usize, rule: (GroupRule, f64)) -> Option<Self> {
        let py = values.py();
        let has_rate = asked.lrs.get(g)?.is_some();
        if !has_plain_keys(values) {
            return None;
        }
        let mut place_of_lr = NOWHERE;
        for (i, (key, value)) in values.iter().enumerate() {
            let key = key.cast_into::<PyString>().ok()?.to_string();
            match key.as_str() {
                "lr" if has_rate => place_of_lr = i,
                "params" | "param_names" | "name" => {}
                _ if is_lasting(&value) => {}
                _ => return None,
            }
        }
        let params = values.get_item("params").ok()??.cast_into_exact::<PyList>().ok()?;
        let states = asked.state.get_item(g).ok()?.cast_into_exact::<PyList>().ok()?;
        let lr = if has_rate { values.get_item("lr").ok()?? } else { py.None().into_bound(py) };
        let number = if has_rate { plain_rate(&lr) } else { Some(0.0) };
        Some(Self {
            values: values.clone().unbind(),
            entries: Entries::of(values),
            place_of_lr,
            lr: (lr.unbind(), number),
            params: (params.clone().unbind(), params.iter().map(Bound::unbind).collect()),
            states: (states.clone().unbind(), states.iter().map(Bound::unbind).collect()),
            rule,
            rate: asked.lrs[g].unwrap_or(0.0),
        })
    }

    /// The rule at the learning rate of this step; `false` if it is not known.
    fn set_rate(
        &mut self,
        py: Python<'_>,
        (class, index): (&ClassRule, usize),
        rate: f64,
        keys: &mut Keys,
    ) -> PyResult<bool> {
        if rate.to_bits() != self.rate.to_bits() {
            let mut group = Group { lr: Some(rate), index, ..Group::of(self.values.bind(py), keys) };
            let Some(rule) = class.read_again(&mut group)? else { return Ok(false) };
            (self.rule, self.rate) = (rule, rate);
        }
        Ok(true)
    }

    /// Takes up the numbers that a step has just written into the group.
    pub(super) fn renew(&mut self, py: Python<'_>) {
        self.entries.renew(self.values.bind(py));
    }

    pub(super) fn rule(&self) -> &(GroupRule, f64) {
        &self.rule
    }

    /// The group as Python has it.
    pub(super) fn values<'py>(&self, py: Python<'py>) -> &Bound<'py, PyDict> {
        self.values.bind(py)
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
