//! A step over the parameters of a torch optimizer: everything is looked up and checked, over all groups, before the
//! first write.
//!
//! What is kept between steps is memory for lists and answers that are proved again at every step: where states were
//! found in `optimizer.state` (compared by object identity) and which address ranges were written (compared by value).
//! Pointers, dtypes, sizes and hyperparameters are read afresh.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::collections::HashMap;

use oxistep_kernels::overlap::Written;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{
    AnyRule, Kind, Layout, MAX_SCALARS, MAX_STATES, STREAMS, Scalars, SliceMut, Step, Tensors, driver,
};
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList};

use crate::error::panicked;
use crate::group::{Group, Keys};
use crate::tensors::{DType, Described, Memory, Torch, Unfit, strides_of};
use crate::threads::with_pool;

type Reason = Cow<'static, str>;

const NO_KERNEL: &str = "no kernel for this combination of dtypes";

/// Who updates a parameter.
#[derive(Clone, Debug, PartialEq)]
enum Route {
    Native,
    Torch(Reason),
}

/// One parameter with a gradient, in this step.
struct Item {
    group: u32,
    index: u32,
    route: Route,
    /// Place of its rule among those of the step.
    rule: u32,
    first: bool,
    param: Py<PyAny>,
    grad: Py<PyAny>,
    states: [Option<Py<PyAny>>; MAX_STATES],
    scalars: [Option<Py<PyAny>>; MAX_SCALARS],
    /// Parameter, gradient, states.
    memory: [Option<Memory>; STREAMS],
    scalar_memory: [Option<Memory>; MAX_SCALARS],
    scalar_values: Scalars,
    layout: Option<Layout>,
    /// States made for this step, not yet in `optimizer.state`.
    fresh: Option<Py<PyDict>>,
    /// The parameter's entry in `optimizer.state`, if it has one.
    entry: Option<Py<PyDict>>,
}

/// Looks up and runs the native steps of one optimizer.
#[pyclass(module = "oxistep._core", weakref)]
pub(crate) struct Plan {
    kind: Kind,
    keys: Keys,
    state_map: StateMap,
    items: Vec<Item>,
    rules: Vec<(AnyRule, f64)>,
    /// The scalar states after the step, item by item.
    advanced: Vec<Scalars>,
    written: Written,
    hints: Vec<u32>,
    step: Option<Step<'static>>,
    /// The native parameters of the last step, as a list for torch.
    bumped: Option<Py<PyList>>,
    /// Whether one of them was made in inference mode.
    holds_inference_tensor: bool,
}

/// `torch.Tensor`, `torch.nn.Parameter` and what is needed of `torch._C`, looked up once.
pub(crate) struct Modules {
    pub(crate) torch: Torch,
    increment_version: Py<PyAny>,
}

static MODULES: PyOnceLock<Modules> = PyOnceLock::new();

pub(crate) fn modules(py: Python<'_>) -> PyResult<&Modules> {
    MODULES.get_or_try_init(py, || {
        let increment_version = py.import("torch")?.getattr("_C")?.getattr("_increment_version")?.unbind();
        Ok(Modules { torch: Torch::new(py)?, increment_version })
    })
}

#[pymethods]
impl Plan {
    #[new]
    fn new(rule: &str) -> PyResult<Self> {
        let kind = Kind::from_name(rule).ok_or_else(|| {
            PyValueError::new_err(format!("unknown rule {rule:?}; there are {}", Kind::NAMES.join(", ")))
        })?;
        Ok(Self {
            kind,
            keys: Keys::default(),
            state_map: StateMap::default(),
            items: Vec::new(),
            rules: Vec::new(),
            advanced: Vec::new(),
            written: Written::default(),
            hints: Vec::new(),
            step: Some(Step::default()),
            bumped: None,
            holds_inference_tensor: false,
        })
    }

    /// Takes one step of `optimizer`: natively where possible, the rest through `optimizer._torch_step`.
    fn step(slf: &Bound<'_, Self>, optimizer: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut plan = slf.try_borrow_mut().map_err(|_| {
            PyRuntimeError::new_err(
                "this optimizer is taking a step already: in another thread, or further up this call stack. \
                 Give each thread its own optimizer, or hold a lock around step()",
            )
        })?;
        let result = plan.take_step(optimizer);
        plan.forget();
        result
    }

    /// For each parameter (group, index, path, reason), path being "native", "torch" or "skipped".
    fn explain(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<Vec<(u32, u32, &'static str, String)>> {
        let skipped = self.survey(optimizer, false)?;
        let mut lines: Vec<_> =
            skipped.into_iter().map(|(g, i)| (g, i, "skipped", "it has no gradient".into())).collect();
        for item in &self.items {
            let (path, reason) = match &item.route {
                Route::Native => ("native", "plain CPU tensors".to_owned()),
                Route::Torch(reason) => ("torch", reason.clone().into_owned()),
            };
            lines.push((item.group, item.index, path, reason));
        }
        lines.sort();
        self.forget();
        Ok(lines)
    }

    // A parameter may lead back to its optimizer (through a hook, say): Python's collector must see the way.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.bumped)
    }

    fn __clear__(&mut self) {
        self.bumped = None;
    }
}

impl Plan {
    fn take_step(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = optimizer.py();
        self.survey(optimizer, true)?;
        if self.items.iter().any(|item| item.route != Route::Native) {
            self.run_torch(optimizer)?;
            self.items.retain(|item| item.route == Route::Native);
            self.describe_again(py)?;
        }
        if self.items.is_empty() {
            return Ok(());
        }
        let params = self.params(py)?;
        if self.holds_inference_tensor && !py.import("torch")?.call_method0("is_inference_mode_enabled")?.is_truthy()? {
            return Err(PyRuntimeError::new_err(
                "Inplace update to inference tensor outside InferenceMode is not allowed. Make the parameter outside \
                 torch.inference_mode(), or step inside it",
            ));
        }
        modules(py)?.increment_version.call1(py, (params,))?;
        self.store_fresh_states(optimizer)?;
        self.write(py)
    }

    /// Finds out, for every parameter with a gradient, who updates it and where everything lies. Writes nothing.
    /// Returns the parameters without a gradient, if `make_states` is false.
    fn survey(&mut self, optimizer: &Bound<'_, PyAny>, make_states: bool) -> PyResult<Vec<(u32, u32)>> {
        let py = optimizer.py();
        let torch = &modules(py)?.torch;
        self.forget();
        let groups = optimizer.getattr(pyo3::intern!(py, "param_groups"))?;
        let state = optimizer.getattr(pyo3::intern!(py, "state"))?;
        let state = state.cast::<PyDict>().map_err(|_| PyTypeError::new_err("optimizer.state must be a dict"))?;
        self.state_map.read(state);
        let mut skipped = Vec::new();

        for (g, values) in groups.try_iter()?.enumerate() {
            let values =
                values?.cast_into::<PyDict>().map_err(|_| PyTypeError::new_err("a param group must be a dict"))?;
            let params = values.get_item(pyo3::intern!(py, "params"))?;
            let params = params.ok_or_else(|| PyKeyError::new_err("params"))?;
            // torch iterates over whatever stands there
            let params = params
                .cast_into::<PyList>()
                .or_else(|other| PyList::new(py, other.into_inner().try_iter()?.collect::<PyResult<Vec<_>>>()?))?;
            let mut group = Group { values: &values, keys: &mut self.keys, lr: None };
            let rule = read_rule(&mut group, self.kind)?;
            if let Ok(rule) = &rule {
                self.rules.push(*rule);
            }
            for (i, param) in params.iter().enumerate() {
                let grad = param.getattr(pyo3::intern!(py, "grad"))?;
                if grad.is_none() {
                    if !make_states {
                        skipped.push((g as u32, i as u32));
                    }
                    continue;
                }
                let found = rule.as_ref().map_err(Reason::clone);
                let found = found.and_then(|(rule, _)| Ok((rule, self.state_map.entry(py, &param)?)));
                let mut item = Item::new((g, i), self.rules.len().saturating_sub(1), param, grad);
                item.route = match found {
                    Err(reason) => Route::Torch(reason),
                    Ok((rule, entry)) => {
                        item.entry = entry;
                        let look = Look { torch, rule, optimizer, values: &values, make_states };
                        item.look_up(py, &look, &mut self.keys)?
                    }
                };
                self.items.push(item);
            }
        }
        self.settle_overlaps(py, torch);
        Ok(skipped)
    }

    /// Leaves to torch whatever writes memory that something else in the step uses.
    fn settle_overlaps(&mut self, py: Python<'_>, torch: &Torch) {
        loop {
            self.written.begin();
            for (k, item) in self.items.iter().enumerate() {
                item.written(py, torch, |range| self.written.add(k, range));
            }
            let shared = || Route::Torch("its memory overlaps memory of another tensor in the step".into());
            let mut changed = false;
            let mut leave = |item: &mut Item| {
                if item.route == Route::Native {
                    item.route = shared();
                    changed = true;
                }
            };
            for &k in self.written.conflicts() {
                leave(&mut self.items[k]);
            }
            self.hints.resize(self.items.len(), 0);
            for k in 0..self.items.len() {
                let Some(range) = self.items[k].read(py, torch) else { continue };
                let mut met = false;
                self.written.meeting(range, &mut self.hints[k], |other| {
                    met = true;
                    leave(&mut self.items[other]);
                });
                if met {
                    leave(&mut self.items[k]);
                }
            }
            if !changed {
                return;
            }
        }
    }

    /// Lets torch update what is left to it.
    fn run_torch(&self, optimizer: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = optimizer.py();
        let left = PyList::empty(py);
        for item in self.items.iter().filter(|item| item.route != Route::Native) {
            left.append((item.group, item.param.bind(py)))?;
        }
        optimizer.call_method1(pyo3::intern!(py, "_torch_step"), (left,)).map(drop)
    }

    /// Reads the native tensors' pointers again, after Python code has run.
    fn describe_again(&mut self, py: Python<'_>) -> PyResult<()> {
        let torch = &modules(py)?.torch;
        for item in &mut self.items {
            if !item.describe_again(py, torch) {
                return Err(PyRuntimeError::new_err(format!(
                    "param_groups[{}]['params'][{}] was changed while torch updated other parameters of this step; \
                     oxistep has not updated any",
                    item.group, item.index
                )));
            }
        }
        self.settle_overlaps(py, torch);
        if self.items.iter().any(|item| item.route != Route::Native) {
            return Err(PyRuntimeError::new_err(
                "tensors came to overlap while torch updated other parameters of this step; oxistep has not updated any",
            ));
        }
        Ok(())
    }

    /// The native parameters as a list; the one of the last step if it still holds.
    fn params<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        if let Some(list) = &self.bumped {
            let list = list.bind(py);
            if list.len() == self.items.len() && list.iter().zip(&self.items).all(|(p, item)| p.is(&item.param)) {
                return Ok(list.clone());
            }
        }
        let list = PyList::new(py, self.items.iter().map(|item| item.param.bind(py)))?;
        self.holds_inference_tensor = false;
        for param in &list {
            self.holds_inference_tensor |= param.call_method0(pyo3::intern!(py, "is_inference"))?.is_truthy()?;
        }
        self.bumped = Some(list.clone().unbind());
        Ok(list)
    }

    /// Puts states made for this step where torch keeps them. If that fails, those already stored are taken out again.
    fn store_fresh_states(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = optimizer.py();
        if self.items.iter().all(|item| item.fresh.is_none()) {
            return Ok(());
        }
        let state = optimizer.getattr(pyo3::intern!(py, "state"))?;
        let store = |item: &Item| match (&item.fresh, &item.entry) {
            (Some(fresh), Some(entry)) => entry.bind(py).update(fresh.bind(py).as_mapping()),
            (Some(fresh), None) => state.set_item(&item.param, fresh),
            (None, _) => Ok(()),
        };
        for (k, item) in self.items.iter().enumerate() {
            if let Err(error) = store(item) {
                for item in &self.items[..=k] {
                    match (&item.fresh, &item.entry) {
                        (Some(fresh), Some(entry)) => {
                            fresh.bind(py).keys().iter().for_each(|key| drop(entry.bind(py).del_item(key)));
                        }
                        (Some(_), None) => drop(state.del_item(&item.param)),
                        (None, _) => {}
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Updates the native parameters. From here on nothing can fail, but for a defect in a kernel.
    fn write(&mut self, py: Python<'_>) -> PyResult<()> {
        let mut step: Step<'_> = self.step.take().unwrap_or_default();
        let mut last = None;
        for item in &self.items {
            let (rule, factor) = &self.rules[item.rule as usize];
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
            self.advanced.push(after);
            // SAFETY: the tensors were described after the last Python code that could change them ran, and are kept
            // alive by the items until the step is done. `settle_overlaps` found that what is written overlaps no
            // other tensor of the step. That nobody else uses them meanwhile is what torch, too, leaves to its callers.
            let pushed = step.push(unsafe { item.tensors() }, *factor);
            pushed.map_err(|refused| PyRuntimeError::new_err(format!("oxistep: {refused}; this is a defect")))?;
        }
        let small = step.elements() < driver::SERIAL;
        let mut run = || with_pool(|pool| step.run(pool, Level::current()));
        let done = if small { run() } else { py.detach(&mut run) };
        for (item, advanced) in self.items.iter().zip(&self.advanced) {
            for (i, memory) in item.scalar_memory.iter().enumerate() {
                if let Some(memory) = memory {
                    // SAFETY: as above.
                    unsafe { memory.write_scalar(advanced.get(i)) };
                }
            }
        }
        self.step = Some(step.recycle());
        done.map_err(|panic| panicked(&*panic))
    }

    /// Drops what was looked up for a step, keeping the lists' memory.
    fn forget(&mut self) {
        self.items.clear();
        self.rules.clear();
        self.advanced.clear();
        self.state_map.forget();
    }
}

/// Reads a group's rule, or says why the whole group is torch's.
fn read_rule(group: &mut Group<'_, '_>, kind: Kind) -> PyResult<Result<(AnyRule, f64), Reason>> {
    for (flag, reason) in [
        ("differentiable", "differentiable=True: autograd goes through the step"),
        ("capturable", "capturable=True: the step may be captured in a graph"),
    ] {
        if group.is_set(flag)? {
            return Ok(Err(reason.into()));
        }
    }
    let py = group.values.py();
    Ok(group.read(kind).map_err(|error| {
        format!("a hyperparameter is no plain number ({}), torch decides what that means", error.value(py)).into()
    }))
}

/// What looking up an item needs to know.
struct Look<'a, 'py> {
    torch: &'a Torch,
    rule: &'a AnyRule,
    optimizer: &'a Bound<'py, PyAny>,
    values: &'a Bound<'py, PyDict>,
    make_states: bool,
}

impl Item {
    fn new((group, index): (usize, usize), rule: usize, param: Bound<'_, PyAny>, grad: Bound<'_, PyAny>) -> Self {
        Self {
            group: group as u32,
            index: index as u32,
            route: Route::Native,
            rule: rule as u32,
            first: false,
            param: param.unbind(),
            grad: grad.unbind(),
            states: [const { None }; MAX_STATES],
            scalars: [const { None }; MAX_SCALARS],
            memory: [None; STREAMS],
            scalar_memory: [None; MAX_SCALARS],
            scalar_values: Scalars::new([0.0; MAX_SCALARS], true),
            layout: None,
            fresh: None,
            entry: None,
        }
    }

    /// Finds the states and describes all tensors. Makes missing states, but does not store them.
    fn look_up(&mut self, py: Python<'_>, look: &Look<'_, '_>, keys: &mut Keys) -> PyResult<Route> {
        let left = |reason: &str| Ok(Route::Torch(reason.to_owned().into()));
        let param_object = self.param.clone_ref(py).into_bound(py);
        let grad_object = self.grad.clone_ref(py).into_bound(py);
        let mut pair = match describe_pair(look.torch, &param_object, &grad_object) {
            Ok(pair) => pair,
            Err(reason) => return Ok(Route::Torch(reason)),
        };

        let (names, scalar_names) = (look.rule.states(), look.rule.scalars());
        let entry = self.entry.as_ref().map(|entry| entry.bind(py).clone());
        let found = |keys: &mut Keys, name| match &entry {
            Some(entry) => Ok(entry.get_item(keys.get(py, name))?.filter(|value| !value.is_none())),
            None => PyResult::Ok(None),
        };
        // torch asks whether the entry is empty; SGD, which keeps no step, whether there is a buffer
        let absent = match (names.first(), scalar_names.is_empty()) {
            (None, _) => false,
            (Some(name), true) => found(keys, name)?.is_none(),
            (Some(_), false) => entry.as_ref().is_none_or(|entry| entry.is_empty()),
        };
        let mut source = entry.clone();
        if absent {
            self.first = true;
            if !look.make_states {
                // states not yet made overlap nothing; their dtype is the parameter's, for SGD the gradient's
                let (param, grad) = (pair.0.memory, pair.1.memory);
                (self.memory[0], self.memory[1]) = (Some(param), Some(grad));
                let state = if scalar_names.is_empty() { grad.dtype } else { param.dtype };
                return if served(param.dtype, grad.dtype, Some(state)) { Ok(Route::Native) } else { left(NO_KERNEL) };
            }
            let made =
                look.optimizer.call_method1(pyo3::intern!(py, "_new_state"), (&self.param, &self.grad, look.values))?;
            let made = made.cast_into::<PyDict>().map_err(|_| PyTypeError::new_err("_new_state must return a dict"))?;
            self.fresh = Some(made.clone().unbind());
            source = Some(made);
            // Python code has run: what was described may have changed
            pair = match describe_pair(look.torch, &param_object, &grad_object) {
                Ok(pair) => pair,
                Err(reason) => return Ok(Route::Torch(reason)),
            };
        }

        let (param, grad) = pair;
        let mut described: [Option<Described<'_>>; STREAMS] = [Some(param), Some(grad), None, None, None];
        let mut objects: [Option<Bound<'_, PyAny>>; MAX_STATES] = Default::default();
        for (k, name) in names.iter().enumerate() {
            let Some(value) = source.as_ref().map(|s| s.get_item(keys.get(py, name))).transpose()?.flatten() else {
                return left(&format!("its state lacks {name:?}"));
            };
            objects[k] = Some(value);
        }
        for (k, name) in names.iter().enumerate() {
            let Some(object) = &objects[k] else { continue };
            match look.torch.describe(object) {
                Ok(state) if state.shape.sizes != param.shape.sizes => {
                    return left(&format!("its state {name:?} has another shape than the parameter"));
                }
                Ok(state) if !state.is_dense && !state.shape.is_free_of_overlap() => {
                    return left(&format!("several elements of its state {name:?} share memory"));
                }
                Ok(state) => described[2 + k] = Some(state),
                Err(unfit) => return left(&format!("its state {name:?} {}", unfit.reason())),
            }
        }
        let dtype = |k: usize| described[k].map(|d| d.memory.dtype);
        if (2..2 + names.len()).any(|k| dtype(k) != dtype(2))
            || !served(param.memory.dtype, grad.memory.dtype, dtype(2))
        {
            return left(NO_KERNEL);
        }
        self.layout = layout(&described[..2 + names.len()]);
        for (memory, described) in self.memory.iter_mut().zip(&described) {
            *memory = described.map(|d| d.memory);
        }
        self.states = objects.map(|object| object.map(Bound::unbind));

        let mut values = [0.0; MAX_SCALARS];
        let mut single = true;
        for (k, name) in scalar_names.iter().enumerate() {
            let value = source.as_ref().map(|s| s.get_item(keys.get(py, name))).transpose()?.flatten();
            let memory = value.as_ref().and_then(|value| look.torch.describe_values(value).ok().map(|d| d.memory));
            // SAFETY: described just now.
            let number = memory.and_then(|memory| unsafe { memory.read_scalar() });
            let (Some(number), Some(memory)) = (number, memory) else {
                return left(&format!("its state {name:?} is no CPU tensor of one float32 or float64"));
            };
            let this_single = memory.dtype == DType::F32;
            if k > 0 && this_single != single {
                return left("its scalar states differ in dtype");
            }
            (values[k], single) = (number, this_single);
            self.scalar_memory[k] = Some(memory);
            self.scalars[k] = value.map(Bound::unbind);
        }
        self.scalar_values = Scalars::new(values, single);
        Ok(Route::Native)
    }

    /// Describes everything again; `false` if more than pointers has changed.
    fn describe_again(&mut self, py: Python<'_>, torch: &Torch) -> bool {
        let objects = [Some(&self.param), Some(&self.grad)].into_iter().chain(self.states.iter().map(Option::as_ref));
        let mut again: [Option<Described<'_>>; STREAMS] = [None; STREAMS];
        let mut same = true;
        for ((object, memory), again) in objects.zip(&mut self.memory).zip(&mut again) {
            let (Some(object), Some(memory)) = (object, memory) else { continue };
            match torch.describe(object.bind(py)) {
                Ok(now) if now.memory.dtype == memory.dtype && now.memory.extent == memory.extent => {
                    *memory = now.memory;
                    *again = Some(now);
                }
                _ => same = false,
            }
        }
        let streams = again.iter().take_while(|d| d.is_some()).count();
        same = same
            && again[..streams].iter().flatten().all(|d| Some(d.shape.sizes) == again[0].map(|p| p.shape.sizes))
            && layout(&again[..streams]) == self.layout;
        for (object, memory) in self.scalars.iter().zip(&mut self.scalar_memory) {
            let (Some(object), Some(memory)) = (object, memory) else { continue };
            match torch.describe_values(object.bind(py)) {
                Ok(now) if now.memory.dtype == memory.dtype && now.memory.len == 1 => *memory = now.memory,
                _ => same = false,
            }
        }
        same
    }

    /// Calls `f` with every range of memory that updating this parameter writes.
    fn written(&self, py: Python<'_>, torch: &Torch, mut f: impl FnMut((usize, usize))) {
        if self.route == Route::Native {
            let streams = self.memory.iter().enumerate().filter(|(stream, _)| *stream != 1);
            let memories =
                streams.filter_map(|(_, memory)| *memory).chain(self.scalar_memory.iter().copied().flatten());
            memories.for_each(|memory| f(memory.interval()));
        } else if let Ok(param) = torch.describe(self.param.bind(py)) {
            f(param.memory.interval());
        }
    }

    /// The range of memory that it only reads.
    fn read(&self, py: Python<'_>, torch: &Torch) -> Option<(usize, usize)> {
        match &self.route {
            Route::Native => self.memory[1].map(|memory| memory.interval()),
            Route::Torch(_) => torch.describe(self.grad.bind(py)).ok().map(|grad| grad.memory.interval()),
        }
    }

    /// The tensors as slices.
    ///
    /// # Safety
    /// What was described still holds for all of `'a`, and nothing that is written is used by anything else in `'a`.
    unsafe fn tensors<'a>(&'a self) -> Tensors<'a> {
        let absent = SliceMut::Absent;
        // SAFETY: the caller's contract is that of `slice` and `slice_mut`.
        unsafe {
            let grad = self.memory[1].map(|memory| memory.slice());
            let mut states: [SliceMut<'a>; MAX_STATES] = Default::default();
            for (state, memory) in states.iter_mut().zip(&self.memory[2..]) {
                *state = memory.map_or(SliceMut::Absent, |memory| memory.slice_mut());
            }
            Tensors {
                param: self.memory[0].map_or(absent, |memory| memory.slice_mut()),
                grad: grad.unwrap_or(oxistep_kernels::Slice::F32(&[])),
                states,
                layout: self.layout.as_ref(),
            }
        }
    }
}

/// Describes a parameter and its gradient, or says why they are left to torch.
fn describe_pair<'t>(
    torch: &Torch,
    param: &'t Bound<'_, PyAny>,
    grad: &'t Bound<'_, PyAny>,
) -> Result<(Described<'t>, Described<'t>), Reason> {
    let param = torch.describe(param).map_err(|unfit| format!("the parameter {}", unfit.reason()))?;
    let grad = torch.describe(grad).map_err(|unfit| format!("the gradient {}", unfit.reason()))?;
    if param.shape.sizes != grad.shape.sizes {
        return Err("the gradient has another shape than the parameter".into());
    }
    if !param.is_dense && !param.shape.is_free_of_overlap() {
        return Err("several elements of the parameter share memory".into());
    }
    Ok((param, grad))
}

/// The combinations of parameter, gradient and state types that kernels serve.
fn served(param: DType, grad: DType, state: Option<DType>) -> bool {
    let half = |dtype| matches!(dtype, DType::F16 | DType::Bf16);
    let grad_fits = grad == param || (param == DType::F32 && half(grad));
    let state_fits = state.is_none_or(|state| state == param || (half(param) && state == DType::F32));
    grad_fits && state_fits
}

/// Where the elements lie; `None` if simply one after the other, in the same order in every tensor.
fn layout(described: &[Option<Described<'_>>]) -> Option<Layout> {
    let first = described.first().copied().flatten()?;
    let alike = |d: &Described<'_>| d.is_dense && first.shape.same_order(&d.shape);
    if first.memory.len == 0 || described.iter().flatten().all(alike) {
        return None;
    }
    let mut shapes = [first.shape; STREAMS];
    for (shape, d) in shapes.iter_mut().zip(described.iter().flatten()) {
        *shape = d.shape;
    }
    let sizes: Vec<usize> = first.shape.sizes.iter().map(|&n| n as usize).collect();
    Some(Layout::new(&sizes, &strides_of(&shapes), [0; STREAMS]))
}

impl Unfit {
    fn reason(self) -> &'static str {
        match self {
            Self::Class => "is of a subclass of Tensor",
            Self::NoMemory => "has no plain memory (sparse, quantised, meta, freed, or inside a transform)",
            Self::Device => "is not on the CPU",
            Self::DType => "is not of dtype float64, float32, float16 or bfloat16",
            Self::Misaligned => "is not aligned to its element size",
            Self::Negated => "is a lazily negated view",
        }
    }
}

/// `optimizer.state` as an identity map: `state[p]` would cost a call of `Tensor.__hash__` for every parameter, and
/// insert missing entries.
#[derive(Default)]
struct StateMap {
    /// (address of the key, entry), in the dict's own order.
    order: Vec<(usize, Py<PyAny>)>,
    /// Address of a key -> its place, as of some step: proved against `order` when used.
    places: HashMap<usize, usize>,
    next: usize,
}

impl StateMap {
    fn read(&mut self, state: &Bound<'_, PyDict>) {
        self.order.clear();
        self.next = 0;
        self.order.extend(state.iter().map(|(key, entry)| (key.as_ptr() as usize, entry.unbind())));
    }

    /// The entry of `param`, if it has one. Parameters are mostly asked for in the order of the dict.
    fn entry(&mut self, py: Python<'_>, param: &Bound<'_, PyAny>) -> Result<Option<Py<PyDict>>, Reason> {
        let address = param.as_ptr() as usize;
        let holds = |place: usize| self.order.get(place).is_some_and(|(key, _)| *key == address);
        let place = if holds(self.next) {
            self.next
        } else {
            if !self.places.get(&address).is_some_and(|&place| holds(place)) {
                let Some(place) = self.order.iter().position(|(key, _)| *key == address) else { return Ok(None) };
                // one absence proves nothing about the others: index everything once
                self.places.clear();
                self.places.extend(self.order.iter().enumerate().map(|(place, (key, _))| (*key, place)));
                debug_assert_eq!(self.places.get(&address), Some(&place));
            }
            self.places[&address]
        };
        self.next = place + 1;
        match self.order[place].1.bind(py).cast::<PyDict>() {
            Ok(entry) => Ok(Some(entry.clone().unbind())),
            Err(_) => Err("its entry in optimizer.state is no dict".into()),
        }
    }

    fn forget(&mut self) {
        self.order.clear();
    }
}
