//! One parameter of a step: finding its states, describing its tensors, deciding who updates it.

use oxistep_kernels::{Gradients, Layout, MAX_SCALARS, MAX_STATES, Precision, STREAMS, Scalars};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyList};

use crate::fault;
use crate::memory::dtype::DType;
use crate::memory::nearby::Nearby;
use crate::memory::python::has_plain_keys;
use crate::memory::stream::{Described, Memory, layout};
use crate::memory::torch::describe::Torch;
use crate::memory::torch::dtensors::{Held, Shard};
use crate::memory::unfit::{Reason, Unfit, outside};
use crate::optimizer::group::{Keys, is_fused};
use crate::step::look::Look;
use crate::step::sparse::{NamedRows, take_rows};
use crate::whole::adafactor::{self, Whole};

const NO_KERNEL: &str = "no kernel for this combination of dtypes";

const NOT_ALL_COMPLEX: &str = "parameter, gradient and states are not all complex";

const GRAD_SHAPE: &str = "the gradient has another shape than the parameter";

const SINGLE_LR: &str = "lr is a float32 tensor: torch computes constants of a float64 step in float32";

const WHOLE_RULE: &str = "the parameter is a DTensor, and the rule looks at more than single elements";

const UNUSUAL: &str = "a hyperparameter or counter is outside its usual range, torch decides what that means";

/// Who updates a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Route {
    Native,
    Torch(Reason),
}

impl Route {
    /// What `oxistep.explain` says of it: a path, and why.
    pub(crate) fn told(&self, is_dtensor: bool) -> (&'static str, String) {
        match self {
            Self::Native if is_dtensor => ("native", "DTensors with plain CPU tensors".to_owned()),
            Self::Native => ("native", "plain CPU tensors".to_owned()),
            Self::Torch(reason) => ("torch", reason.clone().into_owned()),
        }
    }
}

/// One parameter with a gradient, in this step.
pub(crate) struct Item {
    pub(crate) group: u32,
    pub(crate) index: u32,
    pub(crate) route: Route,
    /// Place of its rule among those of the step.
    pub(crate) rule: u32,
    pub(crate) first: bool,
    /// Its hyperparameters or counters are such that torch might refuse them: torch is asked before the first write.
    pub(crate) unusual: bool,
    /// It is torch's, which may refuse its tensors or its group: torch is asked before the first write.
    pub(crate) unsure: bool,
    /// It shares memory with other parameters, and is updated when those before it have been.
    pub(crate) tied: bool,
    /// Its group asks for torch's foreach path.
    pub(crate) foreach: bool,
    pub(crate) param: Py<PyAny>,
    pub(crate) grad: Py<PyAny>,
    pub(crate) states: [Option<Py<PyAny>>; MAX_STATES],
    /// The local shards of parameter, gradient and states, if these are DTensors.
    pub(crate) shards: Option<Box<[Option<Held>; STREAMS]>>,
    /// Place of its specification among those of the step's DTensors, if it is one.
    pub(crate) spec: Option<u32>,
    pub(crate) scalars: [Option<Py<PyAny>>; MAX_SCALARS],
    /// Parameter, gradient, states.
    pub(crate) memory: [Option<Memory>; STREAMS],
    pub(crate) scalar_memory: [Option<Memory>; MAX_SCALARS],
    pub(crate) scalar_values: Scalars,
    pub(crate) layout: Option<Box<Layout>>,
    /// The rows that a sparse gradient names. `grad` then holds its values.
    pub(crate) rows: Option<Box<NamedRows>>,
    /// Whether it is updated whole, and then the shape of its matrices.
    pub(crate) whole: Whole,
    /// The name of the counter that is a Python integer instead of a tensor.
    pub(crate) python_counter: Option<&'static str>,
    /// States made for this step, not yet in `optimizer.state`.
    pub(crate) fresh: Option<Py<PyDict>>,
    /// The names under which the entry holds `None` where states were made, if any.
    pub(crate) nothing_under: Option<Py<PyList>>,
    /// The parameter's entry in `optimizer.state`, if it has one.
    pub(crate) entry: Option<Py<PyDict>>,
}

impl Item {
    pub(crate) fn new(
        (group, index): (usize, usize),
        rule: usize,
        param: Bound<'_, PyAny>,
        grad: Bound<'_, PyAny>,
    ) -> Self {
        Self {
            group: group as u32,
            index: index as u32,
            route: Route::Native,
            rule: rule as u32,
            first: false,
            unusual: false,
            unsure: false,
            tied: false,
            foreach: false,
            param: param.unbind(),
            grad: grad.unbind(),
            states: [const { None }; MAX_STATES],
            shards: None,
            spec: None,
            scalars: [const { None }; MAX_SCALARS],
            memory: [None; STREAMS],
            scalar_memory: [None; MAX_SCALARS],
            scalar_values: Scalars::new([0.0; MAX_SCALARS], [Precision::F64; MAX_SCALARS]),
            layout: None,
            rows: None,
            whole: Whole::No,
            python_counter: None,
            fresh: None,
            nothing_under: None,
            entry: None,
        }
    }

    /// Finds the states and describes all tensors. Makes missing states, but does not store them.
    pub(crate) fn look_up(&mut self, py: Python<'_>, look: &Look<'_, '_>, keys: &mut Keys) -> PyResult<Route> {
        let left = |reason: &str| Ok(Route::Torch(reason.to_owned().into()));
        let takes = look.rule.gradients();
        let shard = match self.shards_of_pair(py, look)? {
            Ok(shard) => shard,
            Err(reason) => return Ok(Route::Torch(reason)),
        };
        let [Some(param_object), Some(mut grad_object)] = [0, 1].map(|s| self.tensor(s).map(|t| t.bind(py).clone()))
        else {
            return left("it has no tensors");
        };
        let mut pair = describe_pair(look.torch, &param_object, &grad_object, false);
        self.refuse_outside(&pair)?;
        // only a gradient that could not be described is asked whether it is sparse
        if takes != Gradients::Dense
            && shard.is_none()
            && pair.is_err()
            && matches!(look.torch.raw(&grad_object), Err(Unfit::NoMemory))
        {
            match take_rows(&param_object, &grad_object, look)? {
                Err(reason) => return Ok(Route::Torch(reason)),
                Ok((values, rows)) => (self.grad, self.rows) = (values.unbind(), Some(Box::new(rows))),
            }
            grad_object = self.grad.clone_ref(py).into_bound(py);
            pair = describe_pair(look.torch, &param_object, &grad_object, true);
            self.refuse_outside(&pair)?;
        }
        let is_sparse = self.rows.is_some();
        let mut pair = match pair {
            Err(refused) => {
                self.unsure = matches!(refused, Refused::Pair(GRAD_SHAPE));
                return Ok(Route::Torch(refused.reason()));
            }
            Ok(_) if takes == Gradients::Sparse && !is_sparse => return left("the gradient is not sparse"),
            Ok(pair) => pair,
        };
        if pair.0.memory.complex && is_fused(look.values)? {
            return left("the parameter is complex, which fused=True refuses");
        }

        self.whole = match Whole::of(look.rule, &pair.0, &pair.1) {
            Ok(whole) => whole,
            Err(reason) => return Ok(Route::Torch(reason)),
        };
        let (names, scalar_names) = (look.rule.states_of(pair.0.shape.sizes.len()), look.rule.scalars());
        let entry = self.entry.as_ref().map(|entry| entry.bind(py).clone());
        if entry.as_ref().is_some_and(|entry| !has_plain_keys(entry)) {
            return left("its state has keys that are no strings, and comparing with them may run code");
        }
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
                // states not yet made overlap nothing; their dtype is the parameter's
                let (param, grad) = (pair.0.memory, pair.1.memory);
                if look.single_lr && param.dtype == DType::F64 {
                    return left(SINGLE_LR);
                }
                if param.complex != grad.complex {
                    return left(NOT_ALL_COMPLEX);
                }
                (self.memory[0], self.memory[1]) = (Some(param), Some(grad));
                return if served(param.dtype, grad.dtype, Some(param.dtype)) {
                    Ok(self.settle_unusual(look, param.dtype, grad.dtype == param.dtype))
                } else {
                    left(NO_KERNEL)
                };
            }
            fault::point("make states")?;
            let of_item = (look.optimizer, &self.param, &self.grad, look.values);
            let make = match &shard {
                None => pyo3::intern!(py, "make_state"),
                Some(_) => pyo3::intern!(py, "make_shards"),
            };
            let made = look.definition.call_method1(make, of_item)?;
            let made = made.cast_into::<PyDict>().map_err(|_| PyTypeError::new_err("make_state must return a dict"))?;
            self.fresh = Some(made.clone().unbind());
            if let Some(entry) = entry.as_ref().filter(|entry| !entry.is_empty()) {
                let mut names = made.keys().iter().collect::<Vec<_>>();
                names.retain(|name| entry.contains(name).unwrap_or(false));
                self.nothing_under = Some(PyList::new(py, names)?.unbind());
            }
            source = Some(made);
            // Python code has run: what was described may have changed
            pair = match describe_pair(look.torch, &param_object, &grad_object, is_sparse) {
                Ok(pair) => pair,
                Err(refused) => return Ok(Route::Torch(refused.reason())),
            };
        }

        let (param, grad) = pair;
        if Whole::of(look.rule, &param, &grad).as_ref() != Ok(&self.whole) {
            return left("the parameter or its gradient changed while its states were made");
        }
        self.unsure = true; // if one of the next is torch's, a state does not fit
        let mut described: [Option<Described<'_>>; STREAMS] = [Some(param), Some(grad), None, None, None];
        let mut objects: [Option<Bound<'_, PyAny>>; MAX_STATES] = Default::default();
        for (k, name) in names.iter().enumerate() {
            let Some(value) = source.as_ref().map(|s| s.get_item(keys.get(py, name))).transpose()?.flatten() else {
                return left(&format!("its state lacks {name:?}"));
            };
            objects[k] = Some(value);
        }
        let mut plain = objects.clone();
        if let (Some(shard), Some(shards)) = (&shard, &mut self.shards) {
            for (k, name) in names.iter().enumerate() {
                let Some(object) = &objects[k] else { continue };
                let state = look.torch.dtensors.shard(object);
                if let Some(reason) =
                    look.torch.dtensors.differs(&format!("its state {name:?}"), shard, state.as_ref())?
                {
                    self.unsure = false; // torch moves what is placed otherwise
                    return Ok(Route::Torch(reason));
                }
                shards[2 + k] = state.as_ref().map(Shard::hold);
                plain[k] = state.map(|state| state.local);
            }
        }
        for (k, name) in names.iter().enumerate() {
            let Some(object) = &plain[k] else { continue };
            match look.torch.describe(object) {
                Ok(state) if !self.whole.fits(k, &state.shape, &param.shape) => {
                    return left(&format!("its state {name:?} has another shape than the parameter"));
                }
                Ok(state) if is_sparse && !state.shape.is_contiguous() => {
                    return left(&format!("the gradient is sparse and its state {name:?} not contiguous"));
                }
                Ok(state) if !state.is_dense && !state.shape.is_free_of_overlap() => {
                    return left(&format!("several elements of its state {name:?} share memory"));
                }
                Ok(state) => described[2 + k] = Some(state),
                Err(Unfit::Outside(bytes)) => return Err(self.outside(bytes)),
                Err(unfit) => return left(&format!("its state {name:?} {}", unfit.reason())),
            }
        }
        let dtype = |k: usize| described[k].map(|d| d.memory.dtype);
        if look.single_lr && param.memory.dtype == DType::F64 {
            self.unsure = false;
            return left(SINGLE_LR);
        }
        let complex = |k: usize| described[k].map(|d| d.memory.complex);
        if (1..2 + names.len()).any(|k| complex(k) != complex(0)) {
            return left(NOT_ALL_COMPLEX);
        }
        if (2..2 + names.len()).any(|k| dtype(k) != dtype(2))
            || !served(param.memory.dtype, grad.memory.dtype, dtype(2))
        {
            return left(NO_KERNEL);
        }
        let (param_dtype, one_dtype) = (param.memory.dtype, (1..2 + names.len()).all(|k| dtype(k) == dtype(0)));
        self.layout = if is_sparse || self.whole != Whole::No {
            None
        } else {
            layout(&described[..2 + names.len()]).map(Box::new)
        };
        for (memory, described) in self.memory.iter_mut().zip(&described) {
            *memory = described.map(|d| d.memory);
        }
        self.states = objects.map(|object| object.map(Bound::unbind));

        let mut values = [0.0; MAX_SCALARS];
        let mut precisions = [Precision::F64; MAX_SCALARS];
        for (k, name) in scalar_names.iter().enumerate() {
            let value = source.as_ref().map(|s| s.get_item(keys.get(py, name))).transpose()?.flatten();
            let count = value.as_ref().and_then(|value| value.cast_exact::<PyInt>().ok()?.extract::<u32>().ok());
            if let (Some(count), Gradients::Sparse) = (count, look.rule.gradients()) {
                // SparseAdam alone counts in Python integers
                (values[k], self.python_counter) = (f64::from(count), Some(*name));
                continue;
            }
            // torch computes with an integer as with a float, but for what it makes a tensor of the counter's dtype
            let may_be_integer = scalar_names.len() == 1;
            let described = value.as_ref().map(|value| match may_be_integer {
                true => look.torch.describe_count(value),
                false => look.torch.describe_values(value),
            });
            let counter = match described {
                Some(Ok(counter)) => counter.number().map(|number| (number, counter.memory)),
                Some(Err(Unfit::Outside(bytes))) => return Err(self.outside(bytes)),
                _ => None,
            };
            let Some((number, memory)) = counter else {
                return left(&format!("its state {name:?} is no CPU tensor of one number"));
            };
            (values[k], precisions[k]) = (number, memory.dtype.precision());
            self.scalar_memory[k] = Some(memory);
            self.scalars[k] = value.map(Bound::unbind);
        }
        self.scalar_values = Scalars::new(values, precisions);
        self.unsure = false;
        Ok(self.settle_unusual(look, param_dtype, one_dtype))
    }

    /// Notes the local shards of parameter and gradient, if the parameter is a DTensor, and returns it; or says why it
    /// is torch's.
    fn shards_of_pair<'py>(
        &mut self,
        py: Python<'py>,
        look: &Look<'_, 'py>,
    ) -> PyResult<Result<Option<Shard<'py>>, Reason>> {
        let param = self.param.bind(py);
        if look.torch.is_plain(param) {
            return Ok(Ok(None));
        }
        let dtensors = &look.torch.dtensors;
        let Some(shard) = dtensors.shard(param) else { return Ok(Ok(None)) };
        if look.rule.gradients() == Gradients::Sparse || adafactor::is_whole(look.rule) {
            return Ok(Err(WHOLE_RULE.into()));
        }
        let grad = dtensors.shard(self.grad.bind(py));
        if let Some(reason) = dtensors.differs("the gradient", &shard, grad.as_ref())? {
            return Ok(Err(reason));
        }
        let locals = [Some(&shard), grad.as_ref(), None, None, None];
        self.shards = Some(Box::new(locals.map(|shard| shard.map(Shard::hold))));
        Ok(Ok(Some(shard)))
    }

    /// The object with the memory of a stream: of parameter, gradient, states. (Where they are DTensors, their shards.)
    pub(crate) fn tensor(&self, stream: usize) -> Option<&Py<PyAny>> {
        match (&self.shards, stream) {
            (Some(shards), _) => shards[stream].as_ref().map(|held| &held.local),
            (None, 0) => Some(&self.param),
            (None, 1) => Some(&self.grad),
            (None, _) => self.states[stream - 2].as_ref(),
        }
    }

    /// Whether the shards are still those of their DTensors.
    fn has_its_shards(&self, py: Python<'_>, torch: &Torch) -> bool {
        let Some(shards) = &self.shards else { return true };
        let objects = [Some(&self.param), Some(&self.grad)].into_iter().chain(self.states.iter().map(Option::as_ref));
        objects.zip(shards.iter()).all(|(object, shard)| match (object, shard) {
            (Some(object), Some(held)) => torch.dtensors.shard(object.bind(py)).is_some_and(|shard| held.is(&shard)),
            _ => true,
        })
    }

    /// The specifications of gradient and states, if they are DTensors.
    pub(crate) fn specs(&self) -> impl Iterator<Item = &Py<PyAny>> {
        self.shards.iter().flat_map(|shards| shards.iter().skip(1).flatten()).map(|held| &held.spec)
    }

    /// An error if the parameter or its gradient reaches beyond its storage.
    fn refuse_outside<T>(&self, described: &Result<T, Refused>) -> PyResult<()> {
        match described {
            Err(Refused::Unfit(_, Unfit::Outside(bytes))) => Err(self.outside(*bytes)),
            _ => Ok(()),
        }
    }

    /// The exception for a tensor beyond its storage.
    pub(crate) fn outside(&self, bytes: usize) -> PyErr {
        let (group, index) = (self.group, self.index);
        let what = "(the parameter, its gradient or a state)";
        outside(&format!("a tensor of param_groups[{group}]['params'][{index}] {what}"), bytes)
    }

    /// Native, if torch could not possibly refuse the numbers of this step; else torch's, where it takes these dtypes.
    fn settle_unusual(&mut self, look: &Look<'_, '_>, dtype: DType, one_dtype: bool) -> Route {
        self.unusual = !look.rule.is_usual(&self.scalar_values, dtype.largest_usual());
        if self.unusual && one_dtype { Route::Torch(UNUSUAL.into()) } else { Route::Native }
    }

    /// Describes everything again; `false` if more than pointers has changed.
    pub(crate) fn describe_again(&mut self, py: Python<'_>, torch: &Torch) -> bool {
        let mut again: [Option<Described<'_>>; STREAMS] = [None; STREAMS];
        let mut same = self.has_its_shards(py, torch);
        let mut memories = self.memory;
        for (stream, (memory, again)) in memories.iter_mut().zip(&mut again).enumerate() {
            let (Some(object), Some(memory)) = (self.tensor(stream), memory) else { continue };
            match torch.describe(object.bind(py)) {
                Ok(now) if now.memory.dtype == memory.dtype && now.memory.extent == memory.extent => {
                    *memory = now.memory;
                    *again = Some(now);
                }
                _ => same = false,
            }
        }
        let streams = again.iter().take_while(|d| d.is_some()).count();
        let mut all = again[..streams].iter().flatten();
        same = same
            && if self.rows.is_some() {
                all.all(|d| d.shape.is_contiguous())
            } else {
                self.whole.holds(&again)
                    || all.all(|d| Some(d.shape.sizes) == again[0].map(|p| p.shape.sizes))
                        && layout(&again[..streams]).as_ref() == self.layout.as_deref()
            };
        if let Some(name) = self.python_counter {
            // counting replaces this object, at a time when no Python code may run any more
            let is_number =
                |value: Option<Bound<'_, PyAny>>| value.is_none_or(|value| value.is_exact_instance_of::<PyInt>());
            let is_plain = |dict: &Bound<'_, PyDict>| has_plain_keys(dict) && dict.get_item(name).is_ok_and(is_number);
            same = same && [&self.fresh, &self.entry].into_iter().flatten().all(|dict| is_plain(dict.bind(py)));
        }
        for (object, memory) in self.scalars.iter().zip(&mut self.scalar_memory) {
            let (Some(object), Some(memory)) = (object, memory) else { continue };
            match torch.describe_count(object.bind(py)) {
                Ok(now)
                    if (now.memory.dtype, now.memory.integer, now.memory.len) == (memory.dtype, memory.integer, 1) =>
                {
                    *memory = now.memory;
                }
                _ => same = false,
            }
        }
        self.memory = memories;
        same
    }

    /// Calls `f` with every range of memory that updating this parameter writes.
    pub(crate) fn written(&self, py: Python<'_>, torch: &Torch, mut f: impl FnMut((usize, usize))) {
        if self.route == Route::Native {
            // where parameters take turns, that they overlap is known
            let streams =
                self.memory.iter().enumerate().filter(|(stream, _)| *stream > 1 || (*stream == 0 && !self.tied));
            let memories =
                streams.filter_map(|(_, memory)| *memory).chain(self.scalar_memory.iter().copied().flatten());
            memories.for_each(|memory| f(memory.interval()));
        } else if let Some(interval) = torch.interval(self.param.bind(py)) {
            f(interval);
        }
    }

    /// The range of memory that it only reads.
    pub(crate) fn read(&self, py: Python<'_>, torch: &Torch) -> Option<(usize, usize)> {
        match &self.route {
            Route::Native => self.memory[1].map(|memory| memory.interval()),
            Route::Torch(_) => torch.interval(self.grad.bind(py)),
        }
    }

    /// Every plain tensor that a native update touches, with its memory.
    pub(crate) fn tensors_and_memory(&self) -> impl Iterator<Item = (&Py<PyAny>, Memory)> {
        let objects = (0..STREAMS).map(|stream| self.tensor(stream));
        let streams = objects.zip(&self.memory).chain(self.scalars.iter().map(Option::as_ref).zip(&self.scalar_memory));
        streams.filter_map(|(object, memory)| Some((object?, (*memory)?)))
    }

    /// Whether it is known without asking torch's Python that parameter, gradient and states (or their shards) lie
    /// inside their storages, as far as they are of torch's own classes.
    ///
    /// # Errors
    /// If one of them does not.
    pub(crate) fn tells_storages(&self, py: Python<'_>, torch: &Torch) -> PyResult<bool> {
        // asking a subclass may cost a call of Python
        let grad = match self.rows {
            None => self.grad.bind(py).clone(),
            Some(_) => self.param.bind(py).getattr(pyo3::intern!(py, "grad"))?, // `self.grad` holds the values of rows
        };
        let states = self.entry.as_ref().map(|entry| entry.bind(py).values());
        let states = states.into_iter().flatten();
        let tensors = [self.param.bind(py).clone(), grad].into_iter().chain(states);
        let mut all_known = torch.tells_storages();
        for tensor in tensors {
            let plain = if torch.is_plain(&tensor) { Some(tensor) } else { torch.dtensors.local(&tensor) };
            let Some(tensor) = plain.filter(|plain| torch.is_plain(plain)) else { continue };
            all_known &= torch.is_inside(&tensor).map_err(|bytes| self.outside(bytes))?;
        }
        Ok(all_known)
    }

    /// The tensors that a native update writes.
    pub(crate) fn written_tensors(&self) -> impl Iterator<Item = &Py<PyAny>> {
        let shards = (0..STREAMS).filter(|&stream| stream != 1 && self.shards.is_some()).flat_map(|s| self.tensor(s));
        std::iter::once(&self.param).chain(self.states.iter().chain(&self.scalars).flatten()).chain(shards)
    }

    /// Where its states' Python objects lie; another address is another object.
    pub(crate) fn state_addresses(&self) -> impl Iterator<Item = usize> {
        self.states.iter().chain(&self.scalars).flatten().map(|object| object.as_ptr() as usize)
    }

    /// Where Python and torch keep the objects that looking this parameter up touches.
    pub(crate) fn nearby(&self, py: Python<'_>, torch: &Torch) -> Nearby {
        let objects = self.tensors_and_memory().map(|(object, memory)| (object.bind(py), memory));
        Nearby::of(torch, self.entry.as_ref().map(|entry| entry.bind(py)), objects)
    }
}

/// Why a parameter and its gradient are left to torch.
enum Refused {
    /// What one of them is.
    Unfit(&'static str, Unfit),
    /// What both are.
    Pair(&'static str),
}

impl Refused {
    fn reason(&self) -> Reason {
        match self {
            Self::Unfit(which, unfit) => format!("{which} {}", unfit.reason()).into(),
            Self::Pair(reason) => (*reason).into(),
        }
    }
}

/// Describes a parameter and its gradient, or says why they are left to torch.
fn describe_pair<'t>(
    torch: &Torch,
    param: &'t Bound<'_, PyAny>,
    grad: &'t Bound<'_, PyAny>,
    is_sparse: bool,
) -> Result<(Described<'t>, Described<'t>), Refused> {
    let param = torch.describe(param).map_err(|unfit| Refused::Unfit("the parameter", unfit))?;
    let grad = torch.describe(grad).map_err(|unfit| Refused::Unfit("the gradient", unfit))?;
    if is_sparse {
        // what `take_rows` made: the values of the rows, whose number it has compared
        let plain = param.shape.is_contiguous() && grad.shape.is_contiguous() && !param.memory.complex;
        return if plain { Ok((param, grad)) } else { Err(Refused::Pair("sparse, and not all contiguous and real")) };
    }
    if !param.shape.same_sizes(&grad.shape) {
        return Err(Refused::Pair(GRAD_SHAPE));
    }
    if !param.is_dense && !param.shape.is_free_of_overlap() {
        return Err(Refused::Pair("several elements of the parameter share memory"));
    }
    Ok((param, grad))
}

/// The combinations of parameter, gradient and state types that kernels serve.
#[inline]
pub(crate) fn served(param: DType, grad: DType, state: Option<DType>) -> bool {
    let half = |dtype| matches!(dtype, DType::F16 | DType::Bf16);
    let grad_fits = grad == param || (param == DType::F32 && half(grad));
    let state_fits = state.is_none_or(|state| state == param || (half(param) && state == DType::F32));
    grad_fits && state_fits
}
