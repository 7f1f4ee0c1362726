//! One parameter of a step: what is known of it, and what its update reads and writes.

use oxistep_kernels::{Layout, MAX_SCALARS, Precision, Scalars};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::memory::nearby::Nearby;
use crate::memory::stream::Memory;
use crate::memory::torch::describe::Torch;
use crate::memory::torch::dtensors::Held;
use crate::memory::unfit::{Reason, outside};
use crate::step::fewer::OfCompact;
use crate::step::lists::{Counters, States, Streams};
use crate::step::sparse::NamedRows;
use crate::step::traced::Traced;
use crate::whole::adafactor::Whole;

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
    pub(crate) states: States<Py<PyAny>>,
    /// The local shards of parameter, gradient and states, if these are DTensors.
    pub(crate) shards: Option<Vec<Held>>,
    /// Place of its specification among those of the step's DTensors, if it is one.
    pub(crate) spec: Option<u32>,
    /// A counter that is a Python integer has no tensor.
    pub(crate) scalars: Counters<Option<Py<PyAny>>>,
    /// Parameter, gradient, states: as far as kernels are to update it.
    pub(crate) memory: Streams<Memory>,
    pub(crate) scalar_memory: Counters<Option<Memory>>,
    pub(crate) scalar_values: Scalars,
    /// Of a rule that a user wrote.
    pub(crate) traced: Option<Box<Traced>>,
    pub(crate) layout: Option<Box<Layout>>,
    /// How it is kept, if in fewer bytes. `memory` then also has, behind the states, what stands beside them and it.
    pub(crate) compact: Option<Box<OfCompact>>,
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
            states: Default::default(),
            shards: None,
            spec: None,
            scalars: Default::default(),
            memory: Default::default(),
            scalar_memory: Default::default(),
            scalar_values: Scalars::new([0.0; MAX_SCALARS], [Precision::F64; MAX_SCALARS]),
            traced: None,
            layout: None,
            compact: None,
            rows: None,
            whole: Whole::No,
            python_counter: None,
            fresh: None,
            nothing_under: None,
            entry: None,
        }
    }

    /// The object with the memory of a stream: of parameter, gradient, states. (Where they are DTensors, their shards.)
    pub(crate) fn tensor(&self, stream: usize) -> Option<&Py<PyAny>> {
        match (&self.shards, stream) {
            (Some(shards), _) => shards.get(stream).map(|held| &held.local),
            (None, 0) => Some(&self.param),
            (None, 1) => Some(&self.grad),
            (None, _) => self.states.get(stream - 2),
        }
    }

    /// The exception for a tensor beyond its storage.
    pub(crate) fn outside(&self, bytes: usize) -> PyErr {
        let (group, index) = (self.group, self.index);
        let what = "(the parameter, its gradient or a state)";
        outside(&format!("a tensor of param_groups[{group}]['params'][{index}] {what}"), bytes)
    }

    /// Calls `f` with every range of memory that updating this parameter writes.
    pub(crate) fn written(&self, py: Python<'_>, torch: &Torch, mut f: impl FnMut((usize, usize))) {
        if self.route == Route::Native {
            // where parameters take turns, that they overlap is known
            let streams =
                self.memory.iter().enumerate().filter(|(stream, _)| *stream > 1 || (*stream == 0 && !self.tied));
            let memories = streams.map(|(_, memory)| *memory).chain(self.scalar_memory.iter().copied().flatten());
            memories.for_each(|memory| f(memory.interval()));
        } else if let Some(interval) = torch.interval(self.param.bind(py)) {
            f(interval);
        }
    }

    /// The range of memory that it only reads.
    pub(crate) fn read(&self, py: Python<'_>, torch: &Torch) -> Option<(usize, usize)> {
        match &self.route {
            Route::Native => self.memory.get(1).map(Memory::interval),
            Route::Torch(_) => torch.interval(self.grad.bind(py)),
        }
    }

    /// Every plain tensor that a native update touches, with its memory.
    pub(crate) fn tensors_and_memory(&self) -> impl Iterator<Item = (&Py<PyAny>, Memory)> {
        let streams =
            self.memory.iter().enumerate().filter_map(|(stream, memory)| Some((self.tensor(stream)?, *memory)));
        let counters = self.scalars.iter().zip(&self.scalar_memory);
        streams.chain(counters.filter_map(|(object, memory)| Some((object.as_ref()?, (*memory)?))))
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
        let shards = self.shards.iter().flatten().enumerate().filter(|(stream, _)| *stream != 1);
        let shards = shards.map(|(_, held)| &held.local);
        std::iter::once(&self.param).chain(&self.states).chain(self.scalars.iter().flatten()).chain(shards)
    }

    /// Where its states' Python objects lie; another address is another object.
    pub(crate) fn state_addresses(&self) -> impl Iterator<Item = usize> {
        self.states.iter().chain(self.scalars.iter().flatten()).map(|object| object.as_ptr() as usize)
    }

    /// Notes where Python and torch keep the objects that looking this parameter up touches.
    pub(crate) fn note_nearby(&self, py: Python<'_>, torch: &Torch, nearby: &mut Nearby) {
        let objects = self.tensors_and_memory().map(|(object, memory)| (object.bind(py), memory));
        nearby.push(torch, self.entry.as_ref().map(|entry| entry.bind(py)), objects);
    }
}
