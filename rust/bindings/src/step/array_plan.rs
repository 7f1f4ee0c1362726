//! Steps of an optimizer over arrays, one after the other: what one finds out is kept for the next.
//!
//! A step like the last one, which nearly every step is, takes a short way: everything is read afresh and compared with
//! what is known, in one pass that runs no Python code and leaves slices for the kernels. Whatever is out of the
//! ordinary ends it before the first write, and the general step (`arrays.rs`) decides.

use std::cell::Cell;

use numpy::PyReadwriteArray2;
use oxistep_kernels::norm::Norm;
use oxistep_kernels::pool::Serial;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, MAX_SCALARS, Precision, Scalars, Slice, Step, driver};
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyList, PyTuple};
use smallvec::SmallVec;

use crate::error::panicked_over;
use crate::fault;
use crate::memory::dtype::{DType, promoted};
use crate::memory::numpy::array::{Array, Lent, Together};
use crate::memory::python::{are_alike, are_values, each_item, prepare_lists};
use crate::optimizer::group::Keys;
use crate::optimizer::rule::{ClassRule, GroupRule};
use crate::step::array_guard::ArrayGuard;
use crate::step::array_known::{Known, KnownLeaf};
use crate::step::arrays::{Asked, Taken, take};
use crate::step::found::{GroupNumbers, find, holds};
use crate::step::lists::Counters;
use crate::step::structure::Structure;
use crate::step::traced::{Inputs, OfCounters, OfGroup, Traced};
use crate::threads::with_pool;

/// What an optimizer over arrays knows from its last step. A copy of one knows nothing yet.
#[pyclass(module = "oxistep._core")]
pub(crate) struct ArrayPlan {
    given: Py<PyAny>,
    rule: ClassRule,
    keys: Keys,
    known: Option<Known>,
    /// Whether the last attempt failed at the structure of gradients.
    misfit: bool,
    /// How many steps in a row were none like the last one.
    failures: u32,
    /// Kept for their memory.
    step: Option<Step<'static>>,
    norm: Option<Norm<'static>>,
    after: Vec<(usize, Scalars)>,
    programs: Vec<(usize, Traced)>,
    /// What the numbers of groups become.
    becomes: GroupNumbers,
}

/// How trying a short step ended: with the norm of all gradients, if it was asked for; or it is none.
type Attempt = Option<Option<f64>>;

/// So many steps that are not like the last one are looked at closely; then one of so many.
const PATIENCE: u32 = 16;

#[pymethods]
impl ArrayPlan {
    /// `rule` is the name of a compiled rule, or the `Tree` of one that a user wrote.
    #[new]
    fn new(rule: &Bound<'_, PyAny>) -> PyResult<Self> {
        prepare_lists(rule.py());
        Ok(Self {
            given: rule.clone().unbind(),
            rule: ClassRule::of(rule)?,
            keys: Keys::default(),
            known: None,
            misfit: true,
            failures: 0,
            step: None,
            norm: None,
            after: Vec::new(),
            programs: Vec::new(),
            becomes: GroupNumbers::default(),
        })
    }

    /// Takes a step like the last one, if it is one: returns the norm of all gradients, or None if it was not asked
    /// for. Else nothing was changed, and it returns the learning rates that were computed for this step, if any; or
    /// False, if one of the containers in `seen` cannot be seen to hold what it held, a list of which stands beside it.
    #[pyo3(signature = (optimizer, groups, state, grads, seen=None, max_grad_norm=None, skip_nonfinite=false))]
    #[expect(clippy::too_many_arguments, reason = "the signature is PyO3's")]
    fn again<'py>(
        slf: &Bound<'py, Self>,
        optimizer: &Bound<'py, PyAny>,
        groups: &Bound<'py, PyAny>,
        state: &Bound<'py, PyAny>,
        grads: &Bound<'py, PyAny>,
        seen: Option<&Bound<'py, PyList>>,
        max_grad_norm: Option<f64>,
        skip_nonfinite: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let mut plan = borrow(slf)?;
        let plan = &mut *plan;
        if seen.is_some_and(|seen| !seen.iter().all(|one| holds_what_it_held(&one))) {
            return Ok(PyBool::new(py, false).to_owned().into_any());
        }
        let rates = plan.rates(optimizer, groups, state)?;
        if let Some(rates) = &rates {
            let guard = ArrayGuard { max_grad_norm, skip_nonfinite };
            let attempt =
                plan.attempt((groups, state), rates, guard, Some(grads), |structure, prove| match structure {
                    Some(structure) => structure.each(grads, prove),
                    None => Ok(false),
                })?;
            if let Some(norm) = attempt {
                return Ok(told(py, norm));
            }
        }
        PyList::new(py, rates.unwrap_or_default()).map(Bound::into_any)
    }

    /// Takes one step in place over arrays, as `step_arrays` does. `given` are the gradients as they came, in whichever
    /// structure; `max_grad_norm` clips all gradients as one vector, `skip_nonfinite` leaves everything as it is if one
    /// is not finite. Returns the norm of all gradients if one of the two is given; why kernels cannot take the step;
    /// else None.
    #[pyo3(signature = (
        groups, lrs, grads, state, new_state, updates=None, given=None, max_grad_norm=None, skip_nonfinite=false
    ))]
    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn step<'py>(
        slf: &Bound<'py, Self>,
        groups: &Bound<'py, PyList>,
        lrs: Vec<Option<f64>>,
        grads: &Bound<'py, PyList>,
        state: &Bound<'py, PyList>,
        new_state: &Bound<'py, PyAny>,
        updates: Option<PyReadwriteArray2<'py, f64>>,
        given: Option<&Bound<'py, PyAny>>,
        max_grad_norm: Option<f64>,
        skip_nonfinite: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let mut plan = borrow(slf)?;
        let plan = &mut *plan;
        let guard = ArrayGuard { max_grad_norm, skip_nonfinite };
        if plan.misfit && plan.known.is_some() && updates.is_none() {
            let rates: Vec<f64> = lrs.iter().map(|lr| lr.unwrap_or(0.0)).collect();
            let both = (groups.as_any(), state.as_any());
            let attempt = plan.attempt(both, &rates, guard, None, |_, prove| {
                for list in grads.iter() {
                    let Ok(list) = list.cast_into::<PyList>() else { return Ok(false) };
                    if !each_item(&list, &mut *prove)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            })?;
            if let Some(norm) = attempt {
                return Ok(told(py, norm));
            }
        }
        let asked = Asked { groups, lrs: &lrs, grads, state, new_state, guard };
        plan.known = None;
        match take(&plan.rule, &mut plan.keys, &asked, updates)? {
            Ok(taken) => {
                let norm = taken.norm;
                if !taken.has_orphans {
                    plan.learn(&asked, taken, given);
                }
                Ok(told(py, norm))
            }
            Err(reason) => Ok(reason.into_pyobject(py)?.into_any()),
        }
    }

    /// A copy begins without what is known; that of a rule that a user wrote is made by its first step.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let (py, plan) = (slf.py(), slf.try_borrow()?);
        match &plan.rule {
            ClassRule::Compiled(_) => Ok((slf.get_type().into_any(), PyTuple::new(py, [&plan.given])?)),
            ClassRule::Traced(_) => Ok((py.None().into_bound(py).get_type().into_any(), PyTuple::empty(py))),
        }
    }

    // A learning rate that is a function may lead back to its optimizer: Python's collector must see the way.
    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.given)?;
        if let ClassRule::Traced(tree) = &self.rule {
            visit.call(tree)?;
        }
        self.known.as_ref().map_or(Ok(()), |known| known.visit(&visit))
    }

    fn __clear__(&mut self) {
        self.known = None;
    }
}

/// What Python hears of a norm.
fn told(py: Python<'_>, norm: Option<f64>) -> Bound<'_, PyAny> {
    norm.map_or_else(|| py.None().into_bound(py), |norm| PyFloat::new(py, norm).into_any())
}

/// Whether a container holds the objects of the list that stands beside it: a dict or a list of Python's own.
fn holds_what_it_held(one: &Bound<'_, PyAny>) -> bool {
    let Ok(pair) = one.cast_exact::<PyTuple>() else { return false };
    let (Ok(container), Ok(held)) = (pair.get_borrowed_item(0), pair.get_borrowed_item(1)) else { return false };
    let Ok(held) = held.cast_exact::<PyList>() else { return false };
    if let Ok(list) = container.cast_exact::<PyList>() {
        return are_alike(&list, &held);
    }
    container.cast_exact::<PyDict>().is_ok_and(|dict| are_values(&held, &dict))
}

fn borrow<'p>(slf: &'p Bound<'_, ArrayPlan>) -> PyResult<PyRefMut<'p, ArrayPlan>> {
    slf.try_borrow_mut().map_err(|_| {
        PyRuntimeError::new_err(
            "this optimizer is taking a step already: in another thread, or further up this call stack. Give each \
             thread its own optimizer, or hold a lock around step()",
        )
    })
}

impl ArrayPlan {
    /// The learning rates of this step, where nothing but them may have changed: none if they did not either. May run
    /// Python code.
    fn rates<'py>(
        &mut self,
        optimizer: &Bound<'py, PyAny>,
        groups: &Bound<'py, PyAny>,
        state: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Vec<f64>>> {
        let py = groups.py();
        let Some(known) = &mut self.known else { return Ok(None) };
        let compute = |lr: Bound<'py, PyAny>, g: usize| {
            let rate = optimizer.call_method1(pyo3::intern!(py, "_oxistep_learning_rate"), (lr, g))?;
            rate.extract::<f64>()
        };
        let Some((rates, changed)) = known.rates((groups, state), &mut self.keys, compute)? else { return Ok(None) };
        if changed {
            optimizer.setattr(pyo3::intern!(py, "_oxistep_rates"), PyList::new(py, &rates)?)?;
        }
        Ok(Some(rates))
    }

    /// Takes a step like the last one, if it is one. `each` calls back with each gradient.
    fn attempt<'py>(
        &mut self,
        both: (&Bound<'py, PyAny>, &Bound<'py, PyAny>),
        rates: &[f64],
        guard: ArrayGuard,
        given: Option<&Bound<'py, PyAny>>,
        each: impl FnOnce(Option<&Structure>, &mut dyn FnMut(&Bound<'py, PyAny>) -> PyResult<bool>) -> PyResult<bool>,
    ) -> PyResult<Attempt> {
        let py = both.0.py();
        let Some(known) = &mut self.known else { return Ok(None) };
        fault::point("short step")?;
        let mut last = true;
        // a norm is summed array by array
        let together = !guard.measures();
        let proved = known.prove(both, (&self.rule, rates, together), &mut self.keys, given, |structure, prove| {
            each(structure, &mut |grad| {
                last = prove(grad)?;
                Ok(last)
            })
        });
        // where no gradient was what stood in the way it may be the structure
        self.misfit = last && matches!(proved, Ok(false));
        let done = match proved {
            Ok(true) => self.write(py, guard),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        if let Some(known) = &mut self.known {
            known.settled.give_back();
        }
        match done {
            Ok(Some(_)) => self.failures = 0,
            Ok(None) => self.failures = self.failures.saturating_add(1),
            Err(_) => self.known = None,
        }
        done
    }

    /// Takes the step that was proved to be like the last one. `None`, and nothing is written, if a counter does not
    /// stand where counting leads.
    fn write(&mut self, py: Python<'_>, guard: ArrayGuard) -> PyResult<Attempt> {
        let Self { known, step, norm, after, programs, becomes, .. } = self;
        let Some(known) = known else { return Ok(None) };
        // numbers of groups may follow from gradients, and those are not clipped yet
        let waits = |programs: &[(usize, Traced)]| programs.iter().any(|(_, one)| !one.leaf.shared.is_empty());
        if !look_up(py, known, programs) || (guard.measures() && waits(programs)) {
            return Ok(None);
        }
        let Known { of_groups, settled, group_of_set, .. } = known;
        // told before slices are lent: the interpreter may be released below
        let _active = (settled.elements() >= driver::SERIAL).then(|| settled.start(py));
        after.clear();
        let mut now: Step<'_> = step.take().unwrap_or_default();
        let mut gradients: Option<Norm<'_>> = guard.measures().then(|| norm.take().unwrap_or_default());
        let mut last = Registered::default();
        let (mut fits, mut dtype) = (true, None);
        let mut following = programs.iter();
        let (sets, together) = settled.each();
        for one in together {
            fits &= push_together(&mut now, of_groups[group_of_set[one.set]].rule(), one);
        }
        for (k, counters, Lent { tensors, of_gradient, .. }) in sets {
            let g = group_of_set[k];
            let (rule, factor) = of_groups[g].rule();
            match rule {
                GroupRule::Traced(_) => fits &= following.next().is_some_and(|(_, one)| one.register(&mut now).is_ok()),
                GroupRule::Compiled(rule) => {
                    if let Some(scalars) = last.register(&mut now, (rule, g), counters) {
                        fits &= scalars.before.is_counted();
                        after.push((k, scalars.after));
                    }
                }
            }
            if let Some(gradients) = &mut gradients {
                gradients.push(tensors.grad, of_gradient);
                dtype = promoted(dtype, Some(dtype_of(&tensors.grad)));
            }
            fits &= now.push(tensors, *factor).is_ok();
        }
        if !fits {
            *step = Some(now.recycle());
            return Ok(None);
        }
        if !holds_what_was_asked(py, &mut now, (programs, group_of_set), becomes)? {
            *step = Some(now.recycle());
            return Ok(None);
        }
        let verdict = guard.judge(py, gradients.as_mut(), dtype.into_iter())?;
        *norm = gradients.map(Norm::recycle);
        if verdict.skip {
            *step = Some(now.recycle());
            return Ok(Some(verdict.norm));
        }
        if verdict.factor != 1.0 {
            now.scale_gradients(verdict.factor);
        }
        let level = Level::current();
        let done = if now.elements() < driver::SERIAL {
            now.run(&Serial, level) // as it would with any pool, which would have to be asked for
        } else {
            py.detach(|| with_pool(|pool| now.run(pool, level)))
        };
        let counted = programs.iter().enumerate().map(|(place, (k, one))| (*k, one.after(&now, place)));
        let counted: SmallVec<[_; 4]> = counted.collect();
        *step = Some(now.recycle());
        counted.iter().for_each(|(k, values)| settled.set_counters(*k, values));
        for (k, scalars) in after.iter() {
            let mut values = [0.0; MAX_SCALARS];
            values.iter_mut().enumerate().for_each(|(i, value)| *value = scalars.get(i));
            settled.set_counters(*k, &values);
        }
        if done.is_ok() {
            settled.write_back();
            if !becomes.is_empty() {
                becomes.write(|g| of_groups[g].values(py))?;
                of_groups.iter_mut().for_each(|group| group.renew(py));
            }
        }
        match done {
            Ok(()) => Ok(Some(verdict.norm)),
            Err(panic) => Err(panicked_over(&*panic, PyList::new(py, known.params(py).collect::<Vec<_>>())?)),
        }
    }

    /// Remembers what a general step found out.
    fn learn(&mut self, asked: &Asked<'_, '_>, taken: Taken<'_>, given: Option<&Bound<'_, PyAny>>) {
        let worth_it = self.failures < PATIENCE || self.failures.is_multiple_of(PATIENCE);
        self.known = if worth_it { Known::of(asked, taken, given) } else { None };
    }
}

/// Adds parameters that are taken together to a step; `false` if they do not fit.
fn push_together<'a>(step: &mut Step<'a>, (rule, factor): &(GroupRule, f64), one: Together<'a>) -> bool {
    let GroupRule::Compiled(rule) = rule else { return false };
    let Together { tensors, before, dtypes, after, .. } = one;
    let mut scalars = scalars_of(before.iter().copied().zip(dtypes.iter().copied()));
    let is_counted = before.is_empty() || scalars.is_counted();
    step.constants(rule.constants(&mut scalars, false));
    after.clear();
    after.extend((0..before.len()).map(|i| scalars.get(i)));
    is_counted && step.push(tensors, *factor).is_ok()
}

/// Whose constants were registered last.
#[derive(Default)]
struct Registered {
    /// Of a group without counters.
    plain: Option<usize>,
    /// Of a group at some counters.
    counted: Option<(usize, Counting)>,
}

/// Counters before a step, and after it.
#[derive(Clone, Copy)]
struct Counting {
    before: Scalars,
    after: Scalars,
}

impl Registered {
    /// Registers the constants of a parameter of group `g`, if they are not those that were registered last. Returns
    /// its counters, if it has any.
    #[inline]
    fn register(&mut self, step: &mut Step<'_>, (rule, g): (&AnyRule, usize), counters: &[Array]) -> Option<Counting> {
        if counters.is_empty() {
            if self.plain != Some(g) {
                step.constants(rule.constants(&mut scalars(&[]), false));
                *self = Self { plain: Some(g), counted: None };
            }
            return None;
        }
        let before = scalars(counters);
        match self.counted {
            Some((of, known)) if of == g && known.before == before => Some(known),
            _ => {
                let mut after = before;
                step.constants(rule.constants(&mut after, false));
                let counting = Counting { before, after };
                *self = Self { plain: None, counted: Some((g, counting)) };
                Some(counting)
            }
        }
    }
}

/// The programs of the step that was proved to be like the last one, with their numbers, if a user wrote the rule;
/// `false`: one is not known, or not one that a short step takes. No Python code runs.
fn look_up(py: Python<'_>, known: &mut Known, programs: &mut Vec<(usize, Traced)>) -> bool {
    programs.clear();
    let Known { of_groups, settled, group_of_set, leaves, .. } = known;
    let mut of_group: Option<(usize, OfGroup<'_>)> = None;
    for (k, counters) in settled.counters() {
        let group = &of_groups[group_of_set[k]];
        let GroupRule::Traced(numbers) = &group.rule().0 else { return true };
        let Some(own) = &mut leaves[k] else { return false };
        let g = group_of_set[k];
        if of_group.as_ref().is_none_or(|(of, _)| *of != g) {
            of_group = Some((g, OfGroup::of(group.values(py))));
        }
        let Some((_, of_group)) = &of_group else { return false };
        let values: Counters<(f64, Precision)> =
            counters.iter().map(|counter| (counter.number(), Precision::F64)).collect();
        let before: Counters<f64> = values.iter().map(|(value, _)| *value).collect();
        let of_counters = OfCounters {
            names: &own.leaf.counters,
            values: &before,
            group: of_group,
            asked: &own.leaf.asked,
            sizes: &own.sizes,
            is_complex: false,
            asked_sizes: Cell::new(false),
        };
        let Some(now) = numbers.known_leaf(&of_counters) else { return false };
        let same_names = now.states == own.leaf.states && now.counters == own.leaf.counters;
        let inputs: Inputs = numbers.inputs(&now.inputs, &of_counters);
        let is_counted = before.first().is_none_or(|step| (0.0..1e15).contains(step));
        if !same_names || !KnownLeaf::serves(&now) || !is_counted || of_group.unreadable.get() {
            return false;
        }
        programs.push((k, Traced::new(now.clone(), inputs, &values)));
        own.leaf = now;
    }
    true
}

/// Finds what programs are to know before anything is written, and whether what they took for granted is so. Notes what
/// the numbers of groups become.
fn holds_what_was_asked(
    py: Python<'_>,
    step: &mut Step<'_>,
    (programs, group_of_set): (&[(usize, Traced)], &[usize]),
    becomes: &mut GroupNumbers,
) -> PyResult<bool> {
    becomes.clear();
    let Some((_, first)) = programs.iter().find(|(_, one)| one.leaf.is_looked_at()) else { return Ok(true) };
    let all = programs.iter().any(|(_, one)| one.leaf.has_answers());
    find(py, step, &first.leaf.rule, all)?;
    if !all {
        return Ok(true);
    }
    // where parameters of a group do not agree, the general step says so
    let mut found = |(place, (set, one)): (usize, &(usize, Traced))| {
        let value = |node| step.value(place, node);
        holds(&one.leaf, value) && becomes.add(group_of_set[*set], &one.leaf, value).is_ok()
    };
    Ok(programs.iter().enumerate().all(&mut found))
}

/// The counters of a parameter.
#[inline]
fn scalars(counters: &[Array]) -> Scalars {
    scalars_of(counters.iter().map(|counter| (counter.number(), counter.form.number.float().unwrap_or(DType::F64))))
}

#[inline]
fn scalars_of(counters: impl Iterator<Item = (f64, DType)>) -> Scalars {
    let (mut values, mut precisions) = ([0.0; MAX_SCALARS], [Precision::F64; MAX_SCALARS]);
    for ((value, precision), counter) in values.iter_mut().zip(&mut precisions).zip(counters) {
        (*value, *precision) = (counter.0, counter.1.precision());
    }
    Scalars::new(values, precisions)
}

fn dtype_of(slice: &Slice<'_>) -> DType {
    match slice {
        Slice::F64(_) => DType::F64,
        Slice::F16(_) => DType::F16,
        _ => DType::F32,
    }
}
