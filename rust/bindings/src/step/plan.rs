//! A step over the parameters of a torch optimizer: everything is looked up and checked, over all groups, before the
//! first write.
//!
//! What is kept between steps is memory for lists and answers that are proved again at every step: where states were
//! found in `optimizer.state` (compared by object identity) and which address ranges were written (compared by value).
//! Pointers, dtypes, sizes and hyperparameters are read afresh.
#![allow(unsafe_code)]

use std::any::Any;

use numpy::PyReadwriteArray2;
use oxistep_kernels::overlap::Written;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Kind, Scalars, Step, driver};
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use crate::error::panicked_over;
use crate::fault;
use crate::memory::collector::CollectorRests;
use crate::memory::keys::has_plain_keys;
use crate::memory::nearby::{ITEMS_AHEAD, Nearby};
use crate::memory::torch::gradient::warns_of_missing_grad;
use crate::memory::torch::modules::modules;
use crate::memory::unfit::Reason;
use crate::optimizer::group::{FLAGS, Group, Keys, asks_for_foreach, read_rule};
use crate::optimizer::state_map::{Place, StateMap};
use crate::services::clip::Gradients;
use crate::step::guard::Guard;
use crate::step::item::{Item, Route};
use crate::step::left::{FOREIGN_DICT, looks_up_otherwise};
use crate::step::look::Look;
use crate::step::ranks::Ranks;
use crate::step::steady::{Attempt, Steady};
use crate::step::versions::Versions;
use crate::step::watch::Watch;
use crate::threads::with_pool;
use crate::whole::adafactor::{self, Whole};

/// For each parameter (group, index, path, reason), path being "native", "torch" or "skipped".
type Rows = Vec<(u32, u32, &'static str, String)>;

/// Looks up and runs the native steps of one optimizer.
#[pyclass(module = "oxistep._core", weakref)]
pub(crate) struct Plan {
    pub(super) kind: Kind,
    /// How the class of the optimizer steps: what is asked of Python.
    pub(super) definition: Py<PyAny>,
    /// What torch's step calls of its class, by name, as our class has it.
    pub(super) methods: Vec<(Py<PyString>, Py<PyAny>)>,
    pub(super) keys: Keys,
    pub(super) state_map: StateMap,
    pub(super) items: Vec<Item>,
    /// Where in `optimizer.state` each item was found.
    pub(super) places: Vec<Place>,
    pub(super) rules: Vec<(AnyRule, f64)>,
    /// The scalar states after the step, item by item.
    pub(super) advanced: Vec<Scalars>,
    pub(super) written: Written,
    pub(super) hints: Vec<u32>,
    /// What looking up each item touches, as of when the list of parameters last changed: many small tensors lie
    /// anywhere, and waiting for one after the other is half of what their step costs.
    pub(super) nearby: Vec<Nearby>,
    pub(super) step: Option<Step<'static>>,
    pub(super) gradients: Gradients,
    /// The specifications of the DTensors among the parameters, with a gradient or without, in order.
    pub(super) specs: Vec<Py<PyAny>>,
    pub(super) ranks: Ranks,
    /// The other ranks of this step need not be told that it fails: its norm was reduced, or is not.
    pub(super) joined: bool,
    pub(super) steady: Steady,
    /// The native parameters of the last step.
    pub(super) versions: Option<Versions>,
    /// The addresses of their states' objects, as one number: another number, other objects.
    pub(super) known_states: usize,
    /// Whether one of all these was made in inference mode.
    pub(super) holds_inference_tensor: bool,
    /// This step measures its gradients.
    pub(super) measuring: bool,
    /// Looking something up may have run Python code, which could have changed what was described before.
    pub(super) foreign: bool,
    /// `OXISTEP_CHECK=1`
    pub(super) check_always: bool,
    /// Steps are to be measured.
    pub(super) watch: Option<Box<Watch>>,
    /// Group, index and route of each parameter of the last step, and whether it is a DTensor; none after a step that
    /// was left to torch as a whole. (A steady step is as the last general one.)
    pub(super) last: Option<Vec<(u32, u32, Route, bool)>>,
}

#[pymethods]
impl Plan {
    #[new]
    fn new(rule: &str, definition: &Bound<'_, PyAny>) -> PyResult<Self> {
        let kind = Kind::from_name(rule).ok_or_else(|| {
            PyValueError::new_err(format!("unknown rule {rule:?}; there are {}", Kind::NAMES.join(", ")))
        })?;
        Ok(Self {
            kind,
            definition: definition.clone().unbind(),
            methods: definition.getattr("methods")?.extract()?,
            keys: Keys::default(),
            state_map: StateMap::default(),
            items: Vec::new(),
            places: Vec::new(),
            rules: Vec::new(),
            advanced: Vec::new(),
            written: Written::default(),
            hints: Vec::new(),
            nearby: Vec::new(),
            step: Some(Step::default()),
            gradients: Gradients::default(),
            specs: Vec::new(),
            ranks: Ranks::default(),
            joined: false,
            steady: Steady::default(),
            versions: None,
            known_states: 0,
            holds_inference_tensor: false,
            measuring: false,
            foreign: false,
            check_always: std::env::var_os("OXISTEP_CHECK").is_some_and(|value| value == "1"),
            watch: None,
            last: None,
        })
    }

    /// Takes one step of `optimizer`: natively where possible, the rest through the definition's `torch_step`. Returns
    /// the norm of all gradients if `max_grad_norm` or `skip_nonfinite` is given. `unscale` is called when all has been
    /// checked. `has_group`: the norm is summed over ranks also of what is no DTensor.
    #[pyo3(signature = (optimizer, max_grad_norm=None, skip_nonfinite=false, unscale=None, has_group=false))]
    fn step<'py>(
        slf: &Bound<'py, Self>,
        optimizer: &Bound<'py, PyAny>,
        max_grad_norm: Option<f64>,
        skip_nonfinite: bool,
        unscale: Option<&Bound<'py, PyAny>>,
        has_group: bool,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut plan = slf.try_borrow_mut().map_err(|_| {
            PyRuntimeError::new_err(
                "this optimizer is taking a step already: in another thread, or further up this call stack. \
                 Give each thread its own optimizer, or hold a lock around step()",
            )
        })?;
        let guard = Guard { max_grad_norm, skip_nonfinite, unscale, has_group };
        plan.joined = !guard.measures();
        let result = plan.take_step(optimizer, &guard);
        plan.forget(slf.py());
        if result.is_err() && !plan.joined {
            // the error that comes is this rank's own
            drop(plan.definition.call_method1(slf.py(), pyo3::intern!(slf.py(), "call_off"), (optimizer,)));
        }
        result
    }

    /// Why the next step is torch's as a whole, if it is.
    fn because(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
        if !self.is_torchs(optimizer)? {
            return Ok(None);
        }
        let overridden = self.definition.call_method1(optimizer.py(), "overridden", (optimizer,))?;
        let reason = overridden.extract::<Option<String>>(optimizer.py())?;
        Ok(Some(reason.unwrap_or_else(|| FOREIGN_DICT.to_owned())))
    }

    /// What became of each parameter that had a gradient in the last step, if that was this plan's.
    fn last(&self) -> Option<Rows> {
        let told = |(group, index, route, is_dtensor): &(u32, u32, Route, bool)| {
            let (path, reason) = route.told(*is_dtensor);
            (*group, *index, path, reason)
        };
        self.last.as_ref().map(|last| last.iter().map(told).collect())
    }

    /// What would become of each parameter in a step now.
    fn explain(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<Rows> {
        let skipped = self.survey(optimizer, false)?;
        let mut lines: Vec<_> =
            skipped.into_iter().map(|(g, i)| (g, i, "skipped", "it has no gradient".into())).collect();
        for item in &self.items {
            let (path, reason) = item.route.told(item.spec.is_some());
            lines.push((item.group, item.index, path, reason));
        }
        lines.sort();
        self.forget(optimizer.py());
        Ok(lines)
    }

    /// From now on tells `watcher` (`None`: nobody) of each step, before it writes, which parameters kernels will not
    /// measure.
    #[pyo3(signature = (watcher=None))]
    fn watch(&mut self, watcher: Option<Py<PyAny>>) {
        self.watch = watcher.map(|watcher| Box::new(Watch::new(watcher)));
    }

    /// Writes what kernels measured in the last step into `out`, see `Watch::report`.
    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn updates(&self, out: PyReadwriteArray2<'_, f64>, starts: Vec<usize>) -> PyResult<bool> {
        self.watch.as_ref().map_or(Ok(false), |watch| watch.report(out, &starts))
    }

    // A parameter may lead back to its optimizer (through a hook, say): Python's collector must see the way.
    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.watch.as_ref().map_or(Ok(()), |watch| visit.call(&watch.watcher))?;
        self.specs.iter().chain(self.steady.specs()).try_for_each(|spec| visit.call(spec))?;
        self.versions.as_ref().map_or(Ok(()), |versions| versions.visit(&visit))
    }

    fn __clear__(&mut self) {
        self.versions = None;
        self.watch = None;
        self.specs.clear();
        self.steady.clear();
    }
}

impl Plan {
    fn take_step<'py>(
        &mut self,
        optimizer: &Bound<'py, PyAny>,
        guard: &Guard<'_, '_>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = optimizer.py();
        self.measuring = guard.measures();
        if self.is_overridden(optimizer)? {
            return self.leave_everything(optimizer, guard);
        }
        let rests = CollectorRests::new(py);
        let attempt = match guard.unscale {
            None if self.watch.is_none() && !self.is_shared(guard) => self.take_steady_step(optimizer, guard, rests)?,
            _ => Attempt::Failed(rests),
        };
        let rests = match attempt {
            Attempt::Done(norm) => return Ok(norm),
            Attempt::Failed(rests) => rests,
        };
        if looks_up_otherwise(optimizer)? {
            drop(rests);
            return self.leave_everything(optimizer, guard);
        }
        fault::point("survey")?;
        self.survey(optimizer, true)?;
        fault::point("rehearse")?;
        let mut asked = self.rehearse(optimizer)? | self.foreign;
        if guard.unscale.is_some() || self.items.iter().any(|item| item.route != Route::Native) {
            // what is checked further down is checked before others write
            self.check_storages(py)?;
            self.check_left(optimizer)?;
            self.holds_inference_tensor = self.find_inference_tensor(py)?;
            self.check_inference_mode(py)?;
        }
        if let Some(unscale) = guard.unscale {
            fault::point("unscale")?;
            unscale.call0()?;
            fault::point("survey again")?;
            self.survey(optimizer, true)?; // a sparse gradient was looked up as a copy
            asked = self.foreign;
        }
        if let Some(watch) = &mut self.watch {
            watch.done = false;
            asked |= watch.begin(py, &self.items)?;
        }
        let mut norm = None;
        if guard.measures() && (!self.items.is_empty() || self.is_shared(guard)) {
            if asked || self.items.iter().any(|item| item.fresh.is_some()) {
                self.describe_again(py)?; // Python code has run
                asked = false;
            }
            fault::point("judge")?;
            let torch = &modules(py)?.torch;
            let verdict = if self.is_shared(guard) {
                let definition = self.definition.bind(py);
                self.ranks.ask(definition, &self.specs)?;
                self.joined = true;
                asked = true;
                let of_step = (optimizer, definition);
                guard.judge_over_ranks(torch, &self.items, &mut self.gradients, &mut self.ranks, of_step)?
            } else {
                guard.judge(py, torch, &self.items, &mut self.gradients)?
            };
            norm = Some(verdict.norm);
            if verdict.skip {
                return Ok(norm);
            }
            self.rules.iter_mut().for_each(|(_, factor)| *factor *= verdict.factor);
        }
        self.update(optimizer, asked, rests)?;
        if let Some(watch) = &mut self.watch {
            watch.done = true;
        }
        Ok(norm)
    }

    /// Whether the norm of this step is summed over ranks. (Of a step that was not surveyed: as far as the last one
    /// tells.)
    pub(super) fn is_shared(&self, guard: &Guard<'_, '_>) -> bool {
        guard.measures() && (guard.has_group || !self.specs.is_empty())
    }

    /// Lets torch update what is left to it, and updates the rest. `asked`: Python code has run since all was
    /// described.
    fn update<'py>(
        &mut self,
        optimizer: &Bound<'py, PyAny>,
        asked: bool,
        mut rests: CollectorRests<'py>,
    ) -> PyResult<()> {
        let py = optimizer.py();
        let told = |item: &Item| (item.group, item.index, item.route.clone(), item.spec.is_some());
        let last = self.last.get_or_insert_default();
        last.clear();
        last.extend(self.items.iter().map(told));
        let left = self.items.iter().any(|item| item.route != Route::Native);
        if left {
            drop(rests);
            self.run_torch(optimizer)?;
            rests = CollectorRests::new(py);
            self.items.retain(|item| item.route == Route::Native);
        }
        if left || asked {
            self.describe_again(py)?;
        }
        if self.items.is_empty() {
            return Ok(());
        }
        fault::point("params")?;
        self.settle_versions(py)?;
        self.check_inference_mode(py)?;
        if self.items.iter().any(|item| item.fresh.is_some()) {
            // Making and storing states runs Python code, which could have changed tensors described before it.
            self.store_fresh_states(optimizer)?;
            if let Err(error) = self.describe_again(py) {
                self.take_out_fresh_states(optimizer, self.items.len())?;
                return Err(error);
            }
        }
        self.write(optimizer, rests)
    }

    /// Finds out, for every parameter with a gradient, who updates it and where everything lies. Writes nothing.
    /// Returns the parameters without a gradient, if `make_states` is false.
    fn survey(&mut self, optimizer: &Bound<'_, PyAny>, make_states: bool) -> PyResult<Vec<(u32, u32)>> {
        let py = optimizer.py();
        let torch = &modules(py)?.torch;
        self.forget(py);
        self.places.clear();
        self.specs.clear();
        self.foreign = !torch.grad_is_torchs(py);
        let groups = optimizer.getattr(pyo3::intern!(py, "param_groups"))?;
        let state = optimizer.getattr(pyo3::intern!(py, "state"))?;
        let state = state.cast::<PyDict>().map_err(|_| PyTypeError::new_err("optimizer.state must be a dict"))?;
        self.state_map.read(state);
        let mut skipped = Vec::new();

        self.foreign |= !groups.is_exact_instance_of::<PyList>();
        for (g, values) in groups.try_iter()?.enumerate() {
            let values =
                values?.cast_into::<PyDict>().map_err(|_| PyTypeError::new_err("a param group must be a dict"))?;
            self.foreign |= !has_plain_keys(&values);
            let params = values.get_item(pyo3::intern!(py, "params"))?;
            let params = params.ok_or_else(|| PyKeyError::new_err("params"))?;
            self.foreign |= !params.is_instance_of::<PyList>();
            // torch iterates over whatever stands there
            let params = params
                .cast_into::<PyList>()
                .or_else(|other| PyList::new(py, other.into_inner().try_iter()?.collect::<PyResult<Vec<_>>>()?))?;
            let mut group = Group::of(&values, &mut self.keys);
            let rule = read_rule(&mut group, self.kind)?;
            let single_lr = group.single_lr;
            let foreach = asks_for_foreach(group.find("foreach")?.as_ref());
            self.foreign |= group.foreign;
            if let Ok(rule) = &rule {
                self.rules.push(*rule);
            }
            fault::point("group")?;
            for (i, param) in params.iter().enumerate() {
                fault::point("parameter")?;
                let mut spec = None;
                if !torch.is_plain(&param) {
                    self.foreign = true;
                    if let Some(shard) = torch.dtensors.shard(&param) {
                        spec = Some(self.specs.len() as u32);
                        self.specs.push(shard.spec.unbind());
                    }
                }
                let grad = param.getattr(pyo3::intern!(py, "grad"))?;
                if grad.is_none() {
                    self.foreign |= warns_of_missing_grad(&param)?;
                    if !make_states {
                        skipped.push((g as u32, i as u32));
                    }
                    continue;
                }
                if let Some(nearby) = self.nearby.get(self.items.len() + ITEMS_AHEAD) {
                    nearby.prefetch();
                }
                if let (Ok(_), Some((rule, _))) = (&rule, self.rules.last_mut()) {
                    adafactor::settle(rule, &param)?;
                }
                let found = rule.as_ref().map_err(Reason::clone);
                let found = found.and_then(|(rule, _)| Ok((rule, self.state_map.entry(py, &param)?)));
                self.items.push(Item::new((g, i), self.rules.len().saturating_sub(1), param, grad));
                self.places.push(self.state_map.last_place());
                let Some(item) = self.items.last_mut() else { continue };
                (item.foreach, item.spec) = (foreach, spec);
                item.route = match found {
                    Err(reason) => {
                        // a flag that torch has a path for is no cause for doubt
                        item.unsure = !FLAGS.iter().any(|(_, flag)| reason == *flag);
                        Route::Torch(reason)
                    }
                    Ok((rule, entry)) => {
                        item.entry = entry;
                        let measuring = self.measuring;
                        let definition = self.definition.bind(py);
                        let look = Look {
                            torch,
                            rule,
                            definition,
                            optimizer,
                            values: &values,
                            make_states,
                            single_lr,
                            measuring,
                        };
                        item.look_up(py, &look, &mut self.keys)?
                    }
                };
            }
        }
        self.settle_overlaps(py, torch);
        Ok(skipped)
    }

    /// Has torch take the step on copies of three elements wherever it might refuse the numbers of a step, so that it
    /// does so before anything is written. Returns whether there was such a parameter.
    fn rehearse(&self, optimizer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = optimizer.py();
        let mut last = None;
        for item in self.items.iter().filter(|item| item.unusual) {
            let this = (item.rule, item.scalar_values, item.memory[0].map(|memory| memory.dtype));
            if last != Some(this) {
                let of_item = (optimizer, item.group, &item.param, item.entry.as_ref());
                self.definition.call_method1(py, pyo3::intern!(py, "rehearse"), of_item)?;
            }
            last = Some(this);
        }
        Ok(last.is_some())
    }

    /// Reads the native tensors' pointers again, after Python code has run.
    fn describe_again(&mut self, py: Python<'_>) -> PyResult<()> {
        fault::point("describe again")?;
        let torch = &modules(py)?.torch;
        let native = |items: &[Item]| items.iter().filter(|item| item.route == Route::Native).count();
        let before = native(&self.items);
        for item in self.items.iter_mut().filter(|item| item.route == Route::Native) {
            if !item.describe_again(py, torch) {
                return Err(PyRuntimeError::new_err(format!(
                    "param_groups[{}]['params'][{}] was changed while this step was under way (by a hook, a state or \
                     torch's part of the step); oxistep has not updated any parameter",
                    item.group, item.index
                )));
            }
        }
        self.settle_overlaps(py, torch);
        if native(&self.items) != before {
            return Err(PyRuntimeError::new_err(
                "tensors came to overlap while torch updated other parameters of this step; oxistep has not updated \
                 any",
            ));
        }
        Ok(())
    }

    /// Notes the native parameters, unless they and their states are those of the last step, and holds them.
    fn settle_versions(&mut self, py: Python<'_>) -> PyResult<()> {
        self.note_versions(py)?;
        if let Some(versions) = &mut self.versions {
            for (k, item) in self.items.iter().enumerate() {
                versions.hold(k, item.param.bind(py))?;
            }
        }
        Ok(())
    }

    fn note_versions(&mut self, py: Python<'_>) -> PyResult<()> {
        let states = self.items.iter().flat_map(Item::state_addresses);
        let states = states.fold(0_usize, |sum, address| sum.rotate_left(5).wrapping_add(address));
        let known_states = std::mem::replace(&mut self.known_states, states);
        let known = self.versions.as_ref().is_some_and(|versions| versions.are_of(py, &self.items));
        if !self.check_always && known && known_states == states {
            return if modules(py)?.torch.tells_storages() { self.check_storages(py) } else { Ok(()) };
        }
        let versions = Versions::of(py, &self.items)?;
        self.check_storages(py)?;
        self.nearby = self.items.iter().map(|item| item.nearby(py)).collect();
        self.holds_inference_tensor = self.find_inference_tensor(py)?;
        self.versions = Some(versions);
        Ok(())
    }

    pub(super) fn count_versions(&self, py: Python<'_>) -> PyResult<()> {
        self.versions.as_ref().map_or(Ok(()), |versions| versions.count(py, &self.nearby))
    }

    /// Updates the native parameters.
    fn write<'py>(&mut self, optimizer: &Bound<'py, PyAny>, rests: CollectorRests<'py>) -> PyResult<()> {
        let py = optimizer.py();
        let mut step: Step<'_> = self.step.take().unwrap_or_default();
        let watch = self.watch.as_deref_mut();
        self.advanced.clear();
        self.advanced.extend(self.items.iter().map(|item| item.scalar_values));
        // parameters that share memory are updated one after the other, as torch does, each in a step of its own
        let mut turns = Vec::new();
        let free = |item: &Item| !item.tied;
        let ready = fill(&mut step, &self.items, free, &self.rules, &mut self.advanced, watch)
            .and_then(|()| {
                for tied in self.items.iter().filter(|item| item.tied) {
                    let mut turn = Step::default();
                    let this = |item: &Item| std::ptr::eq(item, tied);
                    fill(&mut turn, &self.items, this, &self.rules, &mut self.advanced, None)?;
                    turns.push(turn);
                }
                Ok(())
            })
            .and_then(|()| self.set_python_counters(py, 1))
            .and_then(|()| fault::point("versions"))
            .and_then(|()| self.count_versions(py));
        if let Err(error) = ready {
            self.step = Some(step.recycle());
            self.set_python_counters(py, 0)?;
            self.take_out_fresh_states(optimizer, self.items.len())?;
            return Err(error);
        }
        // From here on nothing can fail, but for a defect in a kernel.
        let elements = step.elements() + turns.iter().map(Step::elements).sum::<usize>();
        let small = elements < driver::SERIAL;
        drop(rests);
        let mut measured = self.watch.as_mut().map(|watch| &mut watch.measured);
        let mut run = || {
            with_pool(|pool| {
                match &mut measured {
                    None => step.run(pool, Level::current()),
                    Some(measured) => step.run_measured(measured, pool, Level::current()),
                }?;
                turns.iter_mut().try_for_each(|turn| turn.run(pool, Level::current()))
            })
        };
        let done = if small { run() } else { py.detach(&mut run) };
        for (item, advanced) in self.items.iter().zip(&self.advanced) {
            for (i, memory) in item.scalar_memory.iter().enumerate() {
                if let Some(memory) = memory {
                    // SAFETY: as above.
                    unsafe { memory.write_scalar(advanced.get(i)) };
                }
            }
        }
        drop(turns);
        self.step = Some(step.recycle());
        self.expect_steady(py, elements);
        done.map_err(|panic| self.broke_off(py, &*panic))
    }

    /// What a panic in a kernel becomes.
    pub(super) fn broke_off(&self, py: Python<'_>, panic: &(dyn Any + Send)) -> PyErr {
        match self.versions.as_ref().map_or_else(|| Ok(PyList::empty(py)), |versions| versions.params(py)) {
            Ok(params) => panicked_over(panic, params),
            Err(error) => error,
        }
    }

    /// Drops what was looked up for a step, keeping the lists' memory.
    pub(super) fn forget(&mut self, py: Python<'_>) {
        self.items.clear();
        self.rules.clear();
        self.advanced.clear();
        self.ranks.forget();
        self.state_map.forget();
        if let Some(versions) = &mut self.versions {
            versions.let_go(py);
        }
    }
}

/// Adds those of the native parameters that are `wanted` to a step, with their constants, and notes their scalar states
/// after it.
fn fill<'a>(
    step: &mut Step<'a>,
    items: &'a [Item],
    wanted: impl Fn(&Item) -> bool,
    rules: &[(AnyRule, f64)],
    advanced: &mut [Scalars],
    mut watch: Option<&mut Watch>,
) -> PyResult<()> {
    let mut last = None;
    for (item, advanced) in items.iter().zip(advanced).filter(|(item, _)| wanted(item)) {
        let (rule, factor) = &rules[item.rule as usize];
        // parameters of a group nearly always stand at the same step: their constants are computed once
        let before = (item.rule, item.scalar_values, item.first);
        let after = match last {
            Some((known, after)) if known == before => after,
            _ => {
                let mut scalars = item.scalar_values;
                step.constants(rule.constants(&mut scalars, item.first));
                last = Some((before, scalars));
                scalars
            }
        };
        *advanced = after;
        fault::point("push")?;
        // SAFETY: the tensors were described after the last Python code that could change them ran (counting versions
        // and setting Python integers runs none), and are kept alive by the items until the step is done.
        // `settle_overlaps` found that what is written overlaps no other tensor of the step, but for parameters that
        // take turns, of which a step holds one. That nobody else uses them meanwhile is what torch, too, leaves to its
        // callers.
        let tensors = unsafe { item.tensors() };
        let pushed = match (item.rows.as_deref(), item.whole) {
            (None, Whole::No) => step.push(tensors, *factor),
            (None, Whole::Vector) => step.push_factored(tensors, None, *factor),
            (None, Whole::Matrix(rows, cols)) => step.push_factored(tensors, Some((rows, cols)), *factor),
            (Some(rows), _) => step.push_rows(tensors, rows.named(), *factor),
        };
        pushed.map_err(|refused| PyRuntimeError::new_err(format!("oxistep: {refused}; this is a defect")))?;
        if let Some(watch) = &mut watch {
            watch.pushed(item, step);
        }
    }
    Ok(())
}
