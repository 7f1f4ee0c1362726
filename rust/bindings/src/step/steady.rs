//! A step like the last one, which nearly every step is: all parameters native and dense, all states there, nothing
//! moved but gradients.
//!
//! Everything is read afresh and checked as in the general step, in one pass that leaves ready-made chunks. Whatever is
//! out of the ordinary ends it before the first write, and the general step decides. Many small tensors cost what is
//! touched for each of them: this is where that is kept low.
//!
//! From the moment the parameters' lists are read no Python code runs, and no other thread runs any, until the
//! interpreter is released for a large step or for making the norm's tensor. (Where torch warns when it is asked for a
//! gradient, the attempt ends.) So objects are borrowed from the lists and dicts that hold them; `held` keeps what the
//! step uses alive where the interpreter is released.
#![allow(unsafe_code)]

use std::sync::Arc;

use oxistep_kernels::compact::{BLOCK, Compact};
use oxistep_kernels::pool::Serial;
use oxistep_kernels::program::Program;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{MAX_SCALARS, MAX_STATES, Precision, Scalars, SliceMut, Step, Tensors, driver};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::fault;
use crate::memory::dtype::{DType, served};
use crate::memory::python::{Attribute, CollectorRests, entry_at, has_plain_keys, values_under};
use crate::memory::stream::Described;
use crate::memory::torch::describe::{Torch, warns_of_missing_grad};
use crate::memory::torch::modules::modules;
use crate::optimizer::group::{Group, is_fused};
use crate::optimizer::rule::GroupRule;
use crate::step::fewer::{Form, noise_at};
use crate::step::found::{find, holds};
use crate::step::guard::Guard;
use crate::step::one::{FEW_NAMES, Found, LARGEST_NAMES, Names, One, alike};
use crate::step::plan::Plan;
use crate::step::traced::OfGroup;
use crate::threads::with_pool;

/// How trying a steady step ended.
pub(super) enum Attempt<'py> {
    /// With the norm of all gradients, if it was asked for.
    Done(Option<Bound<'py, PyAny>>),
    /// It is none; nothing was written. The collector still rests.
    Failed(CollectorRests<'py>),
}

impl Plan {
    /// Takes a step like the last one, if it is one.
    pub(super) fn take_steady_step<'py>(
        &mut self,
        optimizer: &Bound<'py, PyAny>,
        guard: &Guard<'_, '_>,
        rests: CollectorRests<'py>,
    ) -> PyResult<Attempt<'py>> {
        if !self.steady.ready {
            return Ok(Attempt::Failed(rests));
        }
        self.forget(optimizer.py());
        self.steady.begin(self.steady.large || guard.measures());
        self.gradients.clear();
        let mut step = self.step.take().unwrap_or_default();
        let gathered = self.gather(optimizer, &mut step);
        let done = match gathered {
            Ok(true) => {
                // until a step ends well, the next one is not tried in this way
                let done = self.write_steady(optimizer.py(), guard, &mut step, rests);
                self.steady.ready = matches!(done, Ok(Attempt::Done(_)));
                self.steady.failures = if self.steady.ready { 0 } else { self.steady.failures + 1 };
                done
            }
            Ok(false) => {
                self.steady.failures += 1;
                Ok(Attempt::Failed(rests))
            }
            Err(error) => Err(error),
        };
        step.clear();
        self.step = Some(step);
        self.steady.held.clear();
        self.steady.counters.clear();
        done
    }

    /// Looks up, checks and pushes everything; `false` as soon as something is not as it was.
    fn gather(&mut self, optimizer: &Bound<'_, PyAny>, step: &mut Step<'static>) -> PyResult<bool> {
        let py = optimizer.py();
        let live = self.versions.as_ref().filter(|versions| versions.all_live());
        let Some(parameters) = live.map(|versions| versions.len()) else { return Ok(false) };
        let groups = optimizer.getattr(pyo3::intern!(py, "param_groups"))?;
        let state = optimizer.getattr(pyo3::intern!(py, "state"))?;
        let Ok(state) = state.cast::<PyDict>() else { return Ok(false) };
        // of what is there a defaultdict hands out no more than a dict
        if !(state.is_exact_instance_of::<PyDict>() || state.get_type().is(&modules(py)?.defaultdict)) {
            return Ok(false);
        }
        let Ok(groups) = groups.cast::<PyList>() else { return Ok(false) };
        let torch = &modules(py)?.torch;
        let Some(grad) = torch.grad_attribute(py)? else { return Ok(false) };
        self.written.begin();
        let mut k = 0;
        for (index, values) in groups.iter().enumerate() {
            let Ok(values) = values.cast_into_exact::<PyDict>() else { return Ok(false) };
            if !has_plain_keys(&values) {
                return Ok(false);
            }
            fault::point("steady group")?;
            if self.steady.complex && is_fused(&values)? {
                return Ok(false);
            }
            let Some(params) = values.get_item(pyo3::intern!(py, "params"))? else { return Ok(false) };
            let Ok(params) = params.cast_into::<PyList>() else { return Ok(false) };
            let mut group = Group { torch: Some(torch), ..Group::of(&values, &mut self.keys) };
            let Some((rule, factor)) = self.rule.read_again(&mut group)? else { return Ok(false) };
            if group.foreign {
                return Ok(false);
            }
            let single_lr = group.single_lr;
            let names = match &rule {
                GroupRule::Compiled(rule) => Names::of(py, rule.states(), rule.scalars(), &mut self.keys),
                GroupRule::Traced(_) => Names::default(),
            };
            if matches!(rule, GroupRule::Traced(_)) {
                self.groups.push(values.clone().unbind());
            }
            let of_group = OfGroup::of(&values);
            let mut one = One {
                rule,
                factor,
                single_lr,
                index,
                names,
                of_group,
                last: None,
                leaf: None,
                found: None,
                form: None,
            };
            for i in 0..params.len() {
                // SAFETY: the index is below the list's length. The item is borrowed from the list, which is not
                // changed while it is used: no Python code runs.
                let param = unsafe { Borrowed::from_ptr(py, ffi::PyList_GetItem(params.as_ptr(), i as isize)) };
                if !self.gather_param(torch, grad, &mut one, (&mut k, i), (state, param), step)? {
                    return Ok(false);
                }
            }
        }
        Ok(k == parameters
            && self.steady.met_shards == self.specs.len()
            && self.written.is_complete()
            && (self.steady.large || step.elements() < driver::SERIAL))
    }

    /// As [`Plan::gather`], for one parameter, which is the `k`-th with a gradient if it has one.
    #[inline(always)]
    fn gather_param(
        &mut self,
        torch: &Torch,
        grad: &Attribute,
        one: &mut One<'_>,
        (k, i): (&mut usize, usize),
        (state, param): (&Bound<'_, PyDict>, Borrowed<'_, '_, PyAny>),
        step: &mut Step<'static>,
    ) -> PyResult<bool> {
        let shard = if torch.is_plain(&param) {
            None
        } else {
            let Some(local) = self.next_param_shard(torch, &param) else { return Ok(false) };
            Some(local)
        };
        fault::point("steady parameter")?;
        let held;
        let described = if shard.is_none() { torch.describe_grad(&param) } else { Err(()) };
        let (grad, g) = match described {
            Ok(None) => return Ok(true),
            Ok(Some(described)) if !self.steady.holding => (None, described),
            Ok(Some(described)) => {
                held = grad.of(&param)?;
                (Some(&held), described)
            }
            Err(()) => {
                let param = param.to_owned(); // what a warning runs may take it out of the list
                let grad = grad.of(&param)?;
                if grad.is_none() {
                    if warns_of_missing_grad(&param)? {
                        return Ok(false);
                    }
                    return Ok(true);
                }
                held = if shard.is_none() {
                    grad
                } else {
                    let Some(local) = self.steady.next_shard(torch, &grad) else { return Ok(false) };
                    local
                };
                let Some(described) = torch.describe_known(&held) else { return Ok(false) };
                (Some(&held), described)
            }
        };
        self.nearby.prefetch_after(*k);
        let known = self.versions.as_mut().filter(|versions| versions.holds(*k, &param));
        let Some(versions) = known else { return Ok(false) };
        versions.hold(*k, &param)?;
        if !self.gather_one(torch, one, (*k, i), state, (&param, shard.as_ref()), (grad, g), step)? {
            return Ok(false);
        }
        *k += 1;
        Ok(true)
    }

    /// The local shard of a parameter that is a DTensor, placed as at the last step.
    fn next_param_shard<'py>(&mut self, torch: &Torch, param: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        // where the last step met none, to ask of which class it is could import a module
        let spec = self.specs.get(self.steady.met_shards)?;
        self.steady.met_shards += 1;
        let shard = torch.dtensors.shard(param)?;
        shard.spec.is(spec).then_some(shard.local)
    }

    #[inline]
    fn gather_one(
        &mut self,
        torch: &Torch,
        one: &mut One<'_>,
        (k, i): (usize, usize),
        state: &Bound<'_, PyDict>,
        (param, shard): (&Bound<'_, PyAny>, Option<&Bound<'_, PyAny>>),
        (grad, g): (Option<&Bound<'_, PyAny>>, Described<'_>),
        step: &mut Step<'static>,
    ) -> PyResult<bool> {
        let py = state.py();
        let Some(p) = torch.describe_known(shard.unwrap_or(param)) else { return Ok(false) };
        if let Some(shard) = shard {
            self.steady.hold(shard);
        }
        let mut met = false;
        let Some(hint) = self.hints.get_mut(k) else { return Ok(false) };
        self.written.meeting(g.memory.interval(), hint, |_| met = true);
        if met || !p.is_dense || !alike(&p, &g) || !self.written.add_known(k, p.memory.interval()) {
            return Ok(false);
        }
        if let Some(Some(known)) = self.steady.forms.get(k) {
            let of = (state, param);
            let many = known.form.names.len() > FEW_NAMES;
            let done = if shard.is_some() || known.form.names.len() > LARGEST_NAMES {
                false
            } else if many {
                self.gather_compact::<LARGEST_NAMES>(torch, one, (k, i), of, (&p, &g), step)?
            } else {
                self.gather_compact::<FEW_NAMES>(torch, one, (k, i), of, (&p, &g), step)?
            };
            if let (true, Some(grad)) = (done, grad) {
                self.steady.hold(grad);
            }
            return Ok(done);
        }
        if let GroupRule::Traced(_) = &one.rule {
            if !self.gather_names(py, one, k) {
                return Ok(false);
            }
            let tensors = (&p, &g);
            let done = if one.names.count() <= FEW_NAMES {
                self.gather_traced::<FEW_NAMES>(torch, one, k, state, (param, shard.is_some()), tensors, step)?
            } else {
                self.gather_traced::<LARGEST_NAMES>(torch, one, k, state, (param, shard.is_some()), tensors, step)?
            };
            if let (true, Some(grad)) = (done, grad) {
                self.steady.hold(grad);
            }
            return Ok(done);
        }
        let names = &one.names;
        // SAFETY: described just now. No Python code of this thread runs until the step is done: the collector rests,
        // and what is asked here is asked of Python's own numbers, of plain tensors and of the slots of DTensors. Where
        // other threads may run, `held` keeps alive what they drop, and that they do not resize tensors of a step under
        // way is what torch, too, leaves to its callers. The range is the one that the general step found to overlap
        // nothing else that is written (the step is run only if that holds for all), and the gradient meets none of
        // those.
        let (param_slice, grad_slice) = unsafe { (p.memory.slice_mut(), g.memory.slice()) };
        let mut objects = [std::ptr::null_mut(); MAX_STATES + MAX_SCALARS];
        if names.count() > 0 {
            let Some(&place) = self.places.get(k) else { return Ok(false) };
            // SAFETY: no Python code runs, so nobody changes the dicts while what they hold is used. The names are
            // strings.
            unsafe {
                let Some(entry) = entry_at(state, place, param) else { return Ok(false) };
                objects = values_under(entry, names.all());
            }
        }
        let mut states: [SliceMut<'static>; MAX_STATES] = Default::default();
        let (states, known) = (&mut states[..names.states], &objects[..names.states]);
        // SAFETY: borrowed from the dict, as above, or null.
        let dtype = unsafe { self.gather_states(torch, py, k, known, shard.is_some(), &p, states) };
        let Some(states_dtype) = dtype? else { return Ok(false) };
        if !served(p.memory.dtype, g.memory.dtype, states_dtype) || (one.single_lr && p.memory.dtype == DType::F64) {
            return Ok(false);
        }

        let (mut values, mut precisions) = ([0.0; MAX_SCALARS], [Precision::F64; MAX_SCALARS]);
        // SAFETY: as above.
        let first = unsafe {
            self.read_counters(torch, py, k, &objects[names.states..names.count()], (&mut values, &mut precisions))
        };
        let Some(first_counter) = first? else { return Ok(false) };
        let before = Scalars::new(values, precisions);
        if !self.advance_counters(one, before, p.memory.dtype, first_counter, step) {
            return Ok(false);
        }
        if self.measuring {
            self.gradients.push_dense(g.memory);
        }
        if let Some(grad) = grad {
            self.steady.hold(grad);
        }
        let states = states.iter_mut().map(std::mem::take);
        let tensors = Tensors { param: param_slice, grad: grad_slice, states, layout: None };
        Ok(step.push(tensors, one.factor).is_ok())
    }

    /// As [`Plan::gather_one`], where the rule is one that a user wrote; parameter and gradient have been met. Of names
    /// there are at most `N`.
    fn gather_traced<const N: usize>(
        &mut self,
        torch: &Torch,
        one: &mut One<'_>,
        k: usize,
        state: &Bound<'_, PyDict>,
        (param, is_dtensor): (&Bound<'_, PyAny>, bool),
        (p, g): (&Described<'_>, &Described<'_>),
        step: &mut Step<'static>,
    ) -> PyResult<bool> {
        let py = state.py();
        let (Some(leaf), Some(&place)) = (&one.leaf, self.places.get(k)) else { return Ok(false) };
        if leaf.is_whole && is_dtensor {
            return Ok(false);
        }
        let names = &one.names;
        // SAFETY: as in `gather_one`.
        let objects: [_; N] = unsafe {
            let Some(entry) = entry_at(state, place, param) else { return Ok(false) };
            values_under(entry, names.all())
        };
        let mut states: [SliceMut<'static>; N] = std::array::from_fn(|_| SliceMut::default());
        let (states, known) = (&mut states[..names.states], &objects[..names.states]);
        // SAFETY: as in `gather_one`.
        let dtype = unsafe { self.gather_states(torch, py, k, known, is_dtensor, p, states) };
        let Some(states_dtype) = dtype? else { return Ok(false) };
        if !served(p.memory.dtype, g.memory.dtype, states_dtype) {
            return Ok(false);
        }
        let (mut values, mut precisions) = ([0.0; N], [Precision::F64; N]);
        // SAFETY: as in `gather_one`.
        let first = unsafe {
            self.read_counters(torch, py, k, &objects[names.states..names.count()], (&mut values, &mut precisions))
        };
        let Some(first_counter) = first? else { return Ok(false) };
        if !self.take_program(one, k, (p, is_dtensor), (&values[..leaf.counters.len()], first_counter), step) {
            return Ok(false);
        }
        if self.measuring {
            self.gradients.push_dense(g.memory);
        }
        // SAFETY: as in `gather_one`.
        let (param, grad) = unsafe { (p.memory.slice_mut(), g.memory.slice()) };
        let states = states.iter_mut().map(std::mem::take);
        Ok(step.push(Tensors { param, grad, states, layout: None }, one.factor).is_ok())
    }

    /// Finds the program of parameter `k` with its numbers, which become those of the step, and notes its counters
    /// after it; `false` if they are not known.
    #[inline(always)]
    fn take_program(
        &mut self,
        one: &mut One<'_>,
        k: usize,
        (p, is_dtensor): (&Described<'_>, bool),
        (values, first_counter): (&[f64], usize),
        step: &mut Step<'static>,
    ) -> bool {
        if !one.find(values, p, is_dtensor) {
            return false;
        }
        let Some(Found { now, inputs, .. }) = &one.found else { return false };
        self.steady.looks |= now.is_looked_at();
        self.steady.group_of.push(self.groups.len() - 1);
        self.steady.counters[first_counter].1 = values[0] + 1.0;
        for (i, &node) in now.becomes.iter().enumerate() {
            self.steady.counters[first_counter + 1 + i].1 = values[1 + i];
            self.steady.awaited.push((first_counter + 1 + i, self.steady.programs, node));
        }
        self.steady.programs += 1;
        if !Arc::ptr_eq(now, &self.steady.leaves[k]) {
            self.steady.leaves[k] = now.clone();
        }
        // SAFETY: `leaves` holds the program until the step is done: it is the only one that this place of it holds in
        // this step.
        let program: &'static Program = unsafe { &*Arc::as_ptr(&now.program) };
        step.program(program, inputs).is_ok()
    }

    /// As [`Plan::gather_one`], for a parameter that is kept in fewer bytes, under at most `N` names.
    fn gather_compact<const N: usize>(
        &mut self,
        torch: &Torch,
        one: &mut One<'_>,
        (k, i): (usize, usize),
        (state, param): (&Bound<'_, PyDict>, &Bound<'_, PyAny>),
        (p, g): (&Described<'_>, &Described<'_>),
        step: &mut Step<'static>,
    ) -> PyResult<bool> {
        let py = state.py();
        let (Some(Some(known)), Some(&place)) = (self.steady.forms.get(k), self.places.get(k)) else {
            return Ok(false);
        };
        let form = known.form.clone();
        if !one.form.as_ref().is_some_and(|(last, _)| Arc::ptr_eq(last, &form)) {
            one.form = Some((form.clone(), Names::of_form(&form)));
        }
        let Some((_, names)) = &one.form else { return Ok(false) };
        let streams = names.states;
        // SAFETY: as in `gather_one`; the form keeps the names.
        let objects: [_; N] = unsafe {
            let Some(entry) = entry_at(state, place, param) else { return Ok(false) };
            // of a state that stands there twice, in codes and not, a general step knows which counts
            if entry.len() != names.count() {
                return Ok(false);
            }
            values_under(entry, names.all())
        };
        let (objects, counters) = objects[..names.count()].split_at(streams);
        if p.memory.complex || self.fewer.of(p).is_err() || form.like.serves(p, g).is_err() {
            return Ok(false);
        }
        let mut slots: [SliceMut<'static>; N] = std::array::from_fn(|_| SliceMut::default());
        // SAFETY: as in `gather_one`.
        if !unsafe { self.gather_kept(torch, py, (k, p), &form, objects, &mut slots)? } {
            return Ok(false);
        }
        let (mut values, mut precisions) = ([0.0; N], [Precision::F64; N]);
        // SAFETY: as in `gather_one`.
        let first = unsafe { self.read_counters(torch, py, k, counters, (&mut values, &mut precisions))? };
        let Some(first_counter) = first else { return Ok(false) };
        fault::point("steady weights")?;
        if form.like.compact.weights.has_companion() {
            // what stands beside a parameter that somebody changed is made anew
            let now = torch.version(param).map(|version| (version, p.memory.interval().0));
            if now.is_none() || self.seen.get(&(param.as_ptr() as usize)).copied() != now {
                return Ok(false);
            }
        }
        match &one.rule {
            GroupRule::Compiled(rule) => {
                if rule.kinds() != form.kinds {
                    return Ok(false);
                }
                let of_rule = if form.like.counts { 0 } else { counters.len() };
                let (mut of_before, mut types) = ([0.0; MAX_SCALARS], [Precision::F64; MAX_SCALARS]);
                of_before[..of_rule].copy_from_slice(&values[..of_rule]);
                types[..of_rule].copy_from_slice(&precisions[..of_rule]);
                let before = Scalars::new(of_before, types);
                if !self.advance_counters(one, before, p.memory.dtype, first_counter, step) {
                    return Ok(false);
                }
                if form.like.counts {
                    self.steady.counters[first_counter].1 = values[0] + 1.0;
                }
            }
            GroupRule::Traced(_) => {
                let Some(leaf) = self.steady.leaves.get(k) else { return Ok(false) };
                if !one.leaf.as_ref().is_some_and(|last| Arc::ptr_eq(last, leaf)) {
                    one.names = Names::of(py, &leaf.states, &leaf.counters, &mut self.keys);
                    one.leaf = Some(leaf.clone());
                }
                let counters = (&values[..counters.len()], first_counter);
                if !self.take_program(one, k, (p, false), counters, step) {
                    return Ok(false);
                }
            }
        }
        if self.measuring {
            self.gradients.push_dense(g.memory);
        }
        let first = values[..counters.len()].first().copied();
        let noise = noise_at(self.fewer.seed, (one.index, i), first);
        let Some(Some(known)) = self.steady.forms.get_mut(k) else { return Ok(false) };
        known.compact.noise = noise;
        // SAFETY: `forms` holds it in memory of its own until the next general step, and nothing changes it before this
        // step is done: each place of the list is taken up once.
        let compact: &'static Compact = unsafe { &*std::ptr::from_ref(&known.compact) };
        // SAFETY: as in `gather_one`.
        let (param, grad) = unsafe { (p.memory.slice_mut(), g.memory.slice()) };
        let states = slots[..streams].iter_mut().map(std::mem::take);
        Ok(step.push_compact(Tensors { param, grad, states, layout: None }, compact, one.factor).is_ok())
    }

    /// Checks what parameter `k` keeps in fewer bytes, and puts it into `slots`; `false` if something is not as it was.
    ///
    /// # Safety
    /// `objects` are what it keeps, or null, and live. Their memory may be written as that of the parameter.
    #[inline(always)]
    unsafe fn gather_kept(
        &mut self,
        torch: &Torch,
        py: Python<'_>,
        (k, p): (usize, &Described<'_>),
        form: &Form,
        objects: &[*mut ffi::PyObject],
        slots: &mut [SliceMut<'static>],
    ) -> PyResult<bool> {
        let headers = form.like.headers();
        for ((stream, &object), slot) in (2..).zip(objects).zip(slots) {
            fault::point("steady state")?;
            // SAFETY: the contract.
            let Some(object) = (unsafe { Borrowed::from_ptr_or_opt(py, object) }) else { return Ok(false) };
            if !self.steady.is_next(&object) {
                return Ok(false);
            }
            let Some(kept) = torch.describe_known_codes(&object) else { return Ok(false) };
            let fits = if headers.contains(&stream) {
                kept.shape.is_contiguous() && kept.memory.len == p.memory.len.div_ceil(BLOCK)
            } else {
                alike(p, &kept)
            };
            if !fits
                || kept.memory.complex
                || !form.like.takes(stream, p.memory.dtype, kept.memory.dtype)
                || !self.written.add_known(k, kept.memory.interval())
            {
                return Ok(false);
            }
            // SAFETY: as for the parameter, in `gather_one`.
            *slot = unsafe { kept.memory.slice_mut() };
            self.steady.hold(&object);
        }
        Ok(true)
    }

    /// Takes up the names of what parameter `k` keeps, where a user wrote the rule; `false` if there are too many.
    #[inline]
    fn gather_names(&mut self, py: Python<'_>, one: &mut One<'_>, k: usize) -> bool {
        let Some(leaf) = self.steady.leaves.get(k) else { return false };
        if !one.leaf.as_ref().is_some_and(|known| Arc::ptr_eq(known, leaf)) {
            if leaf.states.len() + leaf.counters.len() > LARGEST_NAMES {
                return false;
            }
            one.names = Names::of(py, &leaf.states, &leaf.counters, &mut self.keys);
            one.leaf = Some(leaf.clone());
        }
        true
    }

    /// Checks the states of parameter `k`, and puts them into `slots`; `None` if one is not as it was, else their
    /// dtype.
    ///
    /// # Safety
    /// `objects` are the states, or null, and live. Their memory may be written as that of the parameter.
    #[inline(always)]
    unsafe fn gather_states(
        &mut self,
        torch: &Torch,
        py: Python<'_>,
        k: usize,
        objects: &[*mut ffi::PyObject],
        is_dtensor: bool,
        param: &Described<'_>,
        slots: &mut [SliceMut<'static>],
    ) -> PyResult<Option<Option<DType>>> {
        let mut states_dtype = None;
        for (&object, slot) in objects.iter().zip(slots) {
            fault::point("steady state")?;
            // SAFETY: the contract.
            let Some(object) = (unsafe { Borrowed::from_ptr_or_opt(py, object) }) else { return Ok(None) };
            if !self.steady.is_next(&object) {
                return Ok(None);
            }
            let local;
            let object: &Bound<'_, PyAny> = if is_dtensor {
                let Some(shard) = self.steady.next_shard(torch, &object) else { return Ok(None) };
                local = shard;
                &local
            } else {
                &object
            };
            let Some(state) = torch.describe_known(object) else { return Ok(None) };
            let dtype = state.memory.dtype;
            if !alike(param, &state)
                || *states_dtype.get_or_insert(dtype) != dtype
                || !self.written.add_known(k, state.memory.interval())
            {
                return Ok(None);
            }
            // SAFETY: as for the parameter, in `gather_one`.
            *slot = unsafe { state.memory.slice_mut() };
            self.steady.hold(object);
        }
        Ok(Some(states_dtype))
    }

    /// Reads the counters of parameter `k` into two lists that have room for them, notes them, and tells from which on
    /// they are its own; `None` if one is not as it was.
    ///
    /// # Safety
    /// `objects` are the counters, or null, and live.
    #[inline(always)]
    unsafe fn read_counters(
        &mut self,
        torch: &Torch,
        py: Python<'_>,
        k: usize,
        objects: &[*mut ffi::PyObject],
        (values, precisions): (&mut [f64], &mut [Precision]),
    ) -> PyResult<Option<usize>> {
        let first_counter = self.steady.counters.len();
        for ((&object, to), precision) in objects.iter().zip(values).zip(precisions) {
            fault::point("steady counter")?;
            // SAFETY: the contract.
            let Some(object) = (unsafe { Borrowed::from_ptr_or_opt(py, object) }) else { return Ok(None) };
            if !self.steady.is_next(&object) {
                return Ok(None);
            }
            let may_be_integer = objects.len() == 1;
            let Some(counter) = torch.describe_known_count(&object, may_be_integer) else { return Ok(None) };
            let Some(value) = counter.number() else { return Ok(None) };
            if !self.written.add_known(k, counter.memory.interval()) {
                return Ok(None);
            }
            (*to, *precision) = (value, counter.memory.dtype.precision());
            self.steady.counters.push((counter.memory, 0.0));
            self.steady.hold(&object);
        }
        Ok(Some(first_counter))
    }

    /// Computes the constants of a parameter with these counters, or finds them computed, and notes the counters after
    /// the step; `false` if torch may refuse such numbers.
    #[inline(always)]
    fn advance_counters(
        &mut self,
        one: &mut One<'_>,
        before: Scalars,
        dtype: DType,
        first_counter: usize,
        step: &mut Step<'static>,
    ) -> bool {
        let after = match one.last {
            Some((known, of, after)) if known == before && of == dtype => after,
            _ => {
                let Some(rule) = one.rule.compiled().filter(|rule| rule.is_usual(&before, dtype.largest_usual()))
                else {
                    return false;
                };
                let mut scalars = before;
                step.constants(rule.constants(&mut scalars, false));
                one.last = Some((before, dtype, scalars));
                scalars
            }
        };
        for (i, counter) in self.steady.counters[first_counter..].iter_mut().enumerate() {
            counter.1 = after.get(i);
        }
        true
    }

    /// Measures the gradients, if that is asked for, and writes what was gathered. From the version counters on nothing
    /// can fail, but for a defect in a kernel.
    fn write_steady<'py>(
        &mut self,
        py: Python<'py>,
        guard: &Guard<'_, '_>,
        step: &mut Step<'static>,
        rests: CollectorRests<'py>,
    ) -> PyResult<Attempt<'py>> {
        let mut norm = None;
        if guard.measures() {
            // SAFETY: described just now, and held.
            let verdict = unsafe { guard.judge_native(py, &mut self.gradients)? };
            norm = Some(verdict.norm);
            if verdict.skip {
                return Ok(Attempt::Done(norm));
            }
            if verdict.factor != 1.0 {
                step.scale_gradients(verdict.factor);
            }
        }
        if self.steady.looks && !self.look_steady(py, step)? {
            return Ok(Attempt::Failed(rests));
        }
        fault::point("steady versions")?;
        self.count_versions(py)?;
        drop(rests);
        let level = Level::current();
        let done = if self.steady.large {
            py.detach(|| with_pool(|pool| step.run(pool, level)))
        } else {
            step.run(&Serial, level) // as it would with any pool, which would have to be asked for
        };
        for &(counter, program, node) in &self.steady.awaited {
            if let Some(value) = step.value(program, node) {
                self.steady.counters[counter].1 = value;
            }
        }
        for (memory, value) in &self.steady.counters {
            // SAFETY: as for the slices in `gather_one`.
            unsafe { memory.write_scalar(*value) };
        }
        if done.is_ok() {
            self.note_forms_written();
            self.steady.numbers.write(|g| self.groups[g].bind(py))?;
        }
        done.map(|()| Attempt::Done(norm)).map_err(|panic| self.broke_off(py, &*panic))
    }

    /// Finds what is to be known of programs before anything is written, and looks at it; `false` if something came out
    /// otherwise than at the last step.
    fn look_steady(&mut self, py: Python<'_>, step: &mut Step<'static>) -> PyResult<bool> {
        fault::point("look at numbers again")?;
        let steady = &mut self.steady;
        let all = steady.leaves.iter().any(|leaf| leaf.has_answers());
        find(py, step, steady.leaves.first().map_or("", |leaf| &leaf.rule), all)?;
        if !all {
            return Ok(true);
        }
        for (place, (leaf, &group)) in steady.leaves.iter().zip(&steady.group_of).enumerate() {
            let value = |node| step.value(place, node);
            if !holds(leaf, value) || steady.numbers.add(group, leaf, value).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
