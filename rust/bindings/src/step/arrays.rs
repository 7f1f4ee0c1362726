//! A step over NumPy arrays. Everything is checked, over all groups, before the first write.

use std::sync::Arc;

use numpy::{PyReadwriteArray2, PyUntypedArrayMethods};
use oxistep_kernels::driver::{Measured, Moved, Refused};
use oxistep_kernels::norm::Norm;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{Step, driver};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::error::panicked_over;
use crate::fault;
use crate::memory::numpy::array::{Apart, Lent, Set, StateSlices};
use crate::memory::python::{CollectorRests, has_plain_keys};
use crate::memory::unfit::Reason;
use crate::optimizer::group::{Group, Keys};
use crate::optimizer::rule::{ClassRule, GroupRule, compiled};
use crate::optimizer::traced::Leaf;
use crate::step::array_guard::ArrayGuard;
use crate::step::array_item::{Item, Look, strange_keys};
use crate::step::counters::scalars;
use crate::step::found::{GroupNumbers, find, holds};
use crate::step::lists::Counters;
use crate::step::traced::Traced;
use crate::threads::with_pool;

/// The names of the state arrays that `rule` keeps with the hyperparameters of `group`.
#[pyfunction]
pub(crate) fn rule_states(rule: &str, group: &Bound<'_, PyDict>) -> PyResult<Vec<&'static str>> {
    let mut keys = Keys::default();
    let (rule, _) = Group { lr: Some(0.0), ..Group::of(group, &mut keys) }.read(compiled(rule)?)?;
    Ok(rule.states().to_vec())
}

/// Takes one step in place over arrays.
///
/// `groups` are param groups with arrays under "params"; `lrs` has one learning rate (None: what stands in the group),
/// and `grads` and `state` one list, per group, with one entry per parameter; a gradient of None skips its parameter.
/// `new_state(array, group)` makes the states of a parameter that has none yet. The norms of update, parameter and
/// gradient go into the rows of `updates`, if there is one: a row for each parameter of all groups, NaN for those
/// without a gradient.
///
/// `rule` is the name of a compiled rule, or the `Tree` of one that a user wrote. Returns why kernels cannot take the
/// step, and then nothing was changed; `None` if it was taken.
#[pyfunction]
#[pyo3(signature = (rule, groups, lrs, grads, state, new_state, updates=None))]
#[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
pub(crate) fn step_arrays(
    rule: &Bound<'_, PyAny>,
    groups: &Bound<'_, PyList>,
    lrs: Vec<Option<f64>>,
    grads: &Bound<'_, PyList>,
    state: &Bound<'_, PyList>,
    new_state: &Bound<'_, PyAny>,
    updates: Option<PyReadwriteArray2<'_, f64>>,
) -> PyResult<Option<String>> {
    let asked = Asked { groups, lrs: &lrs, grads, state, new_state, guard: ArrayGuard::default() };
    let taken = take(&ClassRule::of(rule)?, &mut Keys::default(), &asked, updates)?;
    Ok(taken.err().map(Reason::into_owned))
}

/// What a step over arrays is asked to do.
pub(super) struct Asked<'a, 'py> {
    pub(super) groups: &'a Bound<'py, PyList>,
    pub(super) lrs: &'a [Option<f64>],
    pub(super) grads: &'a Bound<'py, PyList>,
    pub(super) state: &'a Bound<'py, PyList>,
    pub(super) new_state: &'a Bound<'py, PyAny>,
    pub(super) guard: ArrayGuard,
}

/// A step that was taken.
pub(super) struct Taken<'py> {
    /// The parameters with a gradient, each with the index of its group.
    pub(super) items: Vec<(usize, Item<'py>)>,
    pub(super) arrays: Apart,
    /// The programs of the items, if a user wrote the rule.
    pub(super) leaves: Vec<Option<Arc<Leaf>>>,
    /// Of each group.
    pub(super) rules: Vec<(GroupRule, f64)>,
    /// The place of each item among all parameters.
    pub(super) rows: Vec<usize>,
    /// The norm of all gradients, if it was asked for.
    pub(super) norm: Option<f64>,
    /// Whether it made states that nobody has: it was left out.
    pub(super) has_orphans: bool,
}

/// Takes a step, or says why kernels cannot.
pub(super) fn take<'py>(
    rule: &ClassRule,
    keys: &mut Keys,
    asked: &Asked<'_, 'py>,
    updates: Option<PyReadwriteArray2<'_, f64>>,
) -> PyResult<Result<Taken<'py>, Reason>> {
    let py = asked.groups.py();
    let mut answers = Vec::new();
    let surveyed = loop {
        let surveyed = match survey(rule, asked, &answers, keys)? {
            Ok(surveyed) => surveyed,
            Err(reason) => return Ok(Err(reason)),
        };
        if !surveyed.items.iter().any(|(_, item)| question(item).is_some()) {
            break surveyed;
        }
        answer(py, surveyed, &mut answers)?;
    };
    let Surveyed { mut items, sets, rules, rows, params } = surveyed;
    let rests = CollectorRests::new(py);
    let mut measuring = updates.map(|out| Measuring::new(out, params)).transpose()?;
    let is_compiled = matches!(rule, ClassRule::Compiled(_));
    let mut arrays =
        Apart::settle(py, sets, (|k: usize| items[k].1.name.as_str(), |k: usize, s| items[k].1.what(s)), is_compiled)?;
    let active = arrays.begin(py);
    let mut step = Step::default();
    let traced: Vec<Option<Traced>> = items.iter_mut().map(|(_, item)| item.traced.take()).collect();
    let leaves = traced.iter().map(|traced| traced.as_ref().map(|traced| traced.leaf.clone())).collect();
    let mut gradients = asked.guard.measures().then(Norm::default);
    let filled = (&mut gradients, measuring.as_mut());
    let mut advanced = fill(&mut step, (&items, &traced), arrays.each(), &rules, filled)?;
    let becomes = look_at(py, &mut step, &items, &traced)?;
    let verdict = asked.guard.judge(py, gradients.as_mut(), items.iter().map(|(_, item)| item.dtype))?;
    if verdict.skip {
        if let Some(measuring) = &mut measuring {
            measuring.nothing();
        }
        drop((step, active));
        let has_orphans = items.iter().any(|(_, item)| item.fresh.is_some());
        return Ok(Ok(Taken { items, arrays, leaves, rules, rows, norm: verdict.norm, has_orphans }));
    }
    if verdict.factor != 1.0 {
        step.scale_gradients(verdict.factor);
    }
    // storing new states, below, must not run Python code: these are what they were when they were looked at. (The
    // collector rests, and to store under keys that are strings runs none.)
    if let Some((_, item)) = items.iter().find(|(_, item)| item.fresh.is_some() && !has_plain_keys(&item.entry)) {
        return Err(strange_keys(&item.name));
    }
    store_fresh_states(&items)?;
    // before anything is written, and only where numbers of groups are
    let of_groups = asked.groups.iter().filter(|_| !becomes.is_empty()).map(|group| Ok(group.cast_into::<PyDict>()?));
    let of_groups = of_groups.collect::<PyResult<Vec<_>>>()?;
    let small = step.elements() < driver::SERIAL;
    drop(rests);
    let mut measured = measuring.as_mut().map(|measuring| &mut measuring.measured);
    let mut run = || {
        with_pool(|pool| match &mut measured {
            None => step.run(pool, Level::current()),
            Some(measured) => step.run_measured(measured, pool, Level::current()),
        })
    };
    let done = if small { run() } else { py.detach(&mut run) };
    drop(active);
    let programs = traced.iter().zip(&mut advanced).filter_map(|(traced, after)| Some((traced.as_ref()?, after)));
    programs.enumerate().for_each(|(place, (traced, after))| *after = traced.after(&step, place));
    drop((step, gradients));
    if let Some(measuring) = &mut measuring {
        measuring.report(&rows);
    }
    arrays.write_back();
    advanced.iter().enumerate().for_each(|(k, after)| arrays.set_counters(k, after));
    let Err(panic) = done else {
        becomes.write(|g| &of_groups[g])?;
        return Ok(Ok(Taken { items, arrays, leaves, rules, rows, norm: verdict.norm, has_orphans: false }));
    };
    Err(panicked_over(&*panic, PyList::new(py, items.iter().map(|(_, item)| &item.param))?))
}

/// What was found of all groups.
struct Surveyed<'py> {
    /// The parameters with a gradient, each with the index of its group.
    items: Vec<(usize, Item<'py>)>,
    /// The arrays of each item.
    sets: Vec<Set>,
    /// Of each group.
    rules: Vec<(GroupRule, f64)>,
    /// The place of each item among all parameters.
    rows: Vec<usize>,
    /// How many parameters there are.
    params: usize,
}

/// Reads all groups, and checks and borrows all arrays. Nothing is written.
fn survey<'py>(
    class: &ClassRule,
    asked: &Asked<'_, 'py>,
    answers: &[Vec<u64>],
    keys: &mut Keys,
) -> PyResult<Result<Surveyed<'py>, Reason>> {
    let Asked { groups, lrs, grads, state, new_state, .. } = *asked;
    let (mut items, mut sets) = (Vec::new(), Vec::new());
    let mut rules = Vec::new();
    let (mut rows, mut first_row) = (Vec::new(), 0);
    same_length("lrs", lrs.len(), "param_groups", groups.len())?;
    same_length("grads", grads.len(), "param_groups", groups.len())?;
    same_length("state", state.len(), "param_groups", groups.len())?;

    for (g, &lr) in lrs.iter().enumerate() {
        let values = groups.get_item(g)?.cast_into::<PyDict>()?;
        let params = list(values.get_item("params")?, "param_groups[...]['params']")?;
        let (grads, states) = (list(Some(grads.get_item(g)?), "grads")?, list(Some(state.get_item(g)?), "state")?);
        same_length(&format!("grads[{g}]"), grads.len(), "its params", params.len())?;
        same_length(&format!("state[{g}]"), states.len(), "its params", params.len())?;
        let rule = match class {
            ClassRule::Compiled(kind) => {
                let (rule, factor) = Group { lr, ..Group::of(&values, keys) }.read(*kind)?;
                (GroupRule::Compiled(rule), factor)
            }
            ClassRule::Traced(_) => match class.read(&mut Group { lr, index: g, ..Group::of(&values, keys) })? {
                Ok(rule) => rule,
                Err(reason) => return Ok(Err(reason)),
            },
        };
        let tree = match class {
            ClassRule::Compiled(_) => None,
            ClassRule::Traced(tree) => Some(tree.bind(groups.py())),
        };
        rules.push(rule.clone());
        for (i, ((param, grad), entry)) in params.iter().zip(&grads).zip(&states).enumerate() {
            if grad.is_none() {
                continue;
            }
            fault::point("array")?;
            let name = name_of(&values, groups.len(), g, i)?;
            let entry = entry.cast_into::<PyDict>()?;
            let answers = answers.get(items.len()).map_or(&[][..], Vec::as_slice);
            let look = Look { name, rule: &rule.0, tree, answers, values: &values, new_state, keys: &mut *keys };
            let (item, set) = match look.item(&param, &grad, entry)? {
                Ok(found) => found,
                Err(reason) => return Ok(Err(reason)),
            };
            items.push((g, item));
            sets.push(set);
            rows.push(first_row + i);
        }
        first_row += params.len();
    }
    Ok(Ok(Surveyed { items, sets, rules, rows, params: first_row }))
}

/// What a rule asks of an array before its program is known.
fn question(item: &Item<'_>) -> Option<usize> {
    item.traced.as_ref()?.leaf.question
}

/// Answers what rules ask about elements: of each item one question more. Writes nothing.
fn answer(py: Python<'_>, surveyed: Surveyed<'_>, answers: &mut Vec<Vec<u64>>) -> PyResult<()> {
    let Surveyed { items, sets, rules, .. } = surveyed;
    let _rests = CollectorRests::new(py);
    answers.resize_with(items.len(), Vec::new);
    let asking = items.into_iter().zip(sets).zip(answers).filter(|(((_, item), _), _)| question(item).is_some());
    let ((mut items, sets), to): ((Vec<_>, Vec<_>), Vec<_>) = asking.unzip();
    let mut arrays =
        Apart::settle(py, sets, (|k: usize| items[k].1.name.as_str(), |k: usize, s| items[k].1.what(s)), false)?;
    let _active = arrays.begin(py);
    let traced: Vec<Option<Traced>> = items.iter_mut().map(|(_, item)| item.traced.take()).collect();
    let mut step = Step::default();
    fill(&mut step, (&items, &traced), arrays.each(), &rules, (&mut None, None))?;
    find(py, &mut step, rule_of(&traced), true)?;
    for (place, (traced, to)) in traced.iter().flatten().zip(to).enumerate() {
        let answer = traced.leaf.question.and_then(|node| step.value(place, node));
        to.push(answer.unwrap_or(f64::NAN).to_bits());
    }
    Ok(())
}

/// What the rule is called in messages.
fn rule_of(traced: &[Option<Traced>]) -> &str {
    traced.iter().flatten().next().map_or("", |traced| &traced.leaf.rule)
}

/// What the numbers of groups become, known before anything is written.
fn look_at(
    py: Python<'_>,
    step: &mut Step<'_>,
    items: &[(usize, Item<'_>)],
    traced: &[Option<Traced>],
) -> PyResult<GroupNumbers> {
    let mut numbers = GroupNumbers::default();
    let programs = || items.iter().zip(traced).filter_map(|((g, _), traced)| Some((*g, &traced.as_ref()?.leaf)));
    if !programs().any(|(_, leaf)| leaf.is_looked_at()) {
        return Ok(numbers);
    }
    find(py, step, rule_of(traced), true)?;
    for (place, (g, leaf)) in programs().enumerate() {
        if !holds(leaf, |node| step.value(place, node)) {
            return Err(PyRuntimeError::new_err(format!(
                "rule {}: an array was changed while this step was under way; oxistep has not updated any",
                leaf.rule
            )));
        }
        numbers.add(g, leaf, |node| step.value(place, node))?;
    }
    Ok(numbers)
}

/// Adds the items, whose `arrays` these are, to a step with their constants, and returns their counters after it.
fn fill<'a>(
    step: &mut Step<'a>,
    (items, traced): (&[(usize, Item<'_>)], &'a [Option<Traced>]),
    arrays: impl Iterator<Item = Vec<Lent<'a, StateSlices<'a>>>>,
    rules: &[(GroupRule, f64)],
    (norm, mut measuring): (&mut Option<Norm<'a>>, Option<&mut Measuring<'_>>),
) -> PyResult<Vec<Counters<f64>>> {
    let mut advanced = Vec::with_capacity(items.len());
    let refused = |refused: Refused| PyRuntimeError::new_err(format!("oxistep: {refused}; this is a defect"));
    for (((g, item), traced), pieces) in items.iter().zip(traced).zip(arrays) {
        let (rule, factor) = &rules[*g];
        advanced.push(match (rule, traced) {
            (GroupRule::Compiled(rule), _) => {
                let mut after = scalars(&item.counters);
                step.constants(rule.constants(&mut after, item.first));
                (0..item.counters.len()).map(|k| after.get(k)).collect()
            }
            (GroupRule::Traced(_), Some(traced)) => {
                traced.register(step).map_err(refused)?;
                Counters::new() // known when the step is done
            }
            (GroupRule::Traced(_), None) => return Err(PyRuntimeError::new_err("oxistep: no program; a defect")),
        });
        fault::point("push array")?;
        for Lent { tensors, rows, of_gradient } in pieces {
            if let Some(norm) = norm {
                norm.push(tensors.grad, of_gradient);
            }
            match rows {
                Some(rows) => step.push_rows(tensors, rows, *factor),
                None => step.push(tensors, *factor),
            }
            .map_err(refused)?;
        }
        if let Some(measuring) = &mut measuring {
            measuring.measured.pushed(step);
        }
    }
    Ok(advanced)
}

/// Puts states made for this step where they are kept: all or, if that fails, none. No array is touched.
fn store_fresh_states(items: &[(usize, Item<'_>)]) -> PyResult<()> {
    let mut stored = Vec::new();
    for (_, item) in items {
        let (Some(fresh), entry) = (&item.fresh, &item.entry) else { continue };
        let store = || {
            let before = entry.copy()?;
            fault::point("store")?;
            entry.update(fresh.as_mapping())?;
            PyResult::Ok((entry, before))
        };
        match store() {
            Ok(done) => stored.push(done),
            Err(error) => {
                for (entry, before) in stored {
                    entry.clear();
                    entry.update(before.as_mapping())?;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Where a step that measures itself puts what it finds.
struct Measuring<'py> {
    out: PyReadwriteArray2<'py, f64>,
    measured: Measured,
}

impl<'py> Measuring<'py> {
    fn new(out: PyReadwriteArray2<'py, f64>, rows: usize) -> PyResult<Self> {
        if out.shape() != [rows, 3] || !out.is_c_contiguous() {
            return Err(PyValueError::new_err(format!("updates must be contiguous and have the shape ({rows}, 3)")));
        }
        Ok(Self { out, measured: Measured::default() })
    }

    /// Of a step that moves nothing.
    fn nothing(&mut self) {
        self.out.as_slice_mut().unwrap_or_default().fill(f64::NAN);
    }

    fn report(&mut self, rows: &[usize]) {
        let all = self.out.as_slice_mut().unwrap_or_default();
        all.fill(f64::NAN);
        for (&row, Moved { update, param, grad }) in rows.iter().zip(self.measured.moved()) {
            all[3 * row..3 * row + 3].copy_from_slice(&[update.sqrt(), param.sqrt(), grad.sqrt()]);
        }
    }
}

fn list<'py>(object: Option<Bound<'py, PyAny>>, what: &str) -> PyResult<Bound<'py, PyList>> {
    let wrong = || PyTypeError::new_err(format!("{what} must be a list"));
    object.ok_or_else(wrong)?.cast_into::<PyList>().map_err(|_| wrong())
}

fn same_length(what: &str, got: usize, as_what: &str, expected: usize) -> PyResult<()> {
    if got == expected {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("{what} has {got} entries, expected {expected}, one for each of {as_what}")))
}

/// What an error calls a parameter.
fn name_of(values: &Bound<'_, PyDict>, groups: usize, g: usize, i: usize) -> PyResult<String> {
    if let Some(names) = values.get_item("param_names")? {
        return Ok(format!("params[{}]", names.get_item(i)?.repr()?));
    }
    Ok(if groups == 1 { format!("params[{i}]") } else { format!("param_groups[{g}]['params'][{i}]") })
}
