//! What the steps of one torch optimizer keep.
//!
//! Between steps it is memory for lists and answers that are proved again at every step: where states were
//! found in `optimizer.state` (compared by object identity) and which address ranges were written (compared by value).
//! Pointers, dtypes, sizes and hyperparameters are read afresh.

use std::any::Any;

use oxistep_kernels::overlap::Written;
use oxistep_kernels::{Scalars, Step};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use crate::error::panicked_over;
use crate::memory::nearby::Nearby;
use crate::memory::python::Place;
use crate::optimizer::group::Keys;
use crate::optimizer::rule::{ClassRule, GroupRule};
use crate::optimizer::state_map::StateMap;
use crate::services::norm::Gradients;
use crate::step::fewer::{Fewer, Firsts, KindByName, Seen};
use crate::step::guard::Guard;
use crate::step::item::{Item, Route};
use crate::step::known::Steady;
use crate::step::ranks::Ranks;
use crate::step::versions::Versions;
use crate::step::watch::Watch;

/// Looks up and runs the native steps of one optimizer.
#[pyclass(module = "oxistep._core", weakref)]
pub(crate) struct Plan {
    pub(super) rule: ClassRule,
    /// How the class of the optimizer steps: what is asked of Python.
    pub(super) definition: Py<PyAny>,
    /// What torch's step calls of its class, by name, as our class has it.
    pub(super) methods: Vec<(Py<PyString>, Py<PyAny>)>,
    pub(super) keys: Keys,
    pub(super) state_map: StateMap,
    pub(super) items: Vec<Item>,
    /// Where in `optimizer.state` each item was found.
    pub(super) places: Vec<Place>,
    pub(super) rules: Vec<(GroupRule, f64)>,
    /// The scalar states after the step, item by item.
    pub(super) advanced: Vec<Scalars>,
    pub(super) written: Written,
    pub(super) hints: Vec<u32>,
    /// What looking up each item touches, as of when the list of parameters last changed: many small tensors lie
    /// anywhere, and waiting for one after the other is half of what their step costs.
    pub(super) nearby: Nearby,
    pub(super) step: Option<Box<Step<'static>>>,
    /// Memory for the steps of parameters that take turns.
    pub(super) turns: Vec<Step<'static>>,
    pub(super) gradients: Gradients,
    /// The specifications of the DTensors among the parameters, with a gradient or without, in order.
    pub(super) specs: Vec<Py<PyAny>>,
    pub(super) ranks: Ranks,
    /// The other ranks of this step need not be told that it fails: its norm was reduced, or is not.
    pub(super) joined: bool,
    pub(super) steady: Steady,
    /// Of each parameter, what its rule's questions about its elements came to in this step, as far as they were asked.
    pub(super) answers: Vec<Vec<u64>>,
    /// The groups of this step, if a user wrote the rule: their numbers are written.
    pub(super) groups: Vec<Py<PyDict>>,
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
    /// What the optimizer's settings ask of parameters and states.
    pub(super) fewer: Fewer,
    /// What the states of a traced rule are, group by group, as far as that was told.
    pub(super) kinds: Vec<Vec<(String, KindByName)>>,
    /// Of parameters that something stands beside: what they were when the last step was done.
    pub(super) seen: Seen,
    /// Where the local shards of DTensors begin, as far as something of them is rounded with fair odds.
    pub(super) firsts: Firsts,
    /// The addresses of the parameters whose averages the last step moved, if it was done.
    pub(super) averaged: Option<Vec<usize>>,
    /// Steps are to be measured.
    pub(super) watch: Option<Box<Watch>>,
    /// Group, index and route of each parameter of the last step, and whether it is a DTensor; none after a step that
    /// was left to torch as a whole. (A steady step is as the last general one.)
    pub(super) last: Option<Vec<(u32, u32, Route, bool)>>,
}

impl Plan {
    pub(super) fn of(rule: ClassRule, definition: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self {
            rule,
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
            nearby: Nearby::default(),
            step: Some(Box::default()),
            turns: Vec::new(),
            gradients: Gradients::default(),
            specs: Vec::new(),
            ranks: Ranks::default(),
            joined: false,
            steady: Steady::default(),
            answers: Vec::new(),
            groups: Vec::new(),
            versions: None,
            known_states: 0,
            holds_inference_tensor: false,
            measuring: false,
            foreign: false,
            check_always: std::env::var_os("OXISTEP_CHECK").is_some_and(|value| value == "1"),
            fewer: Fewer::default(),
            kinds: Vec::new(),
            seen: Seen::default(),
            firsts: Firsts::default(),
            averaged: None,
            watch: None,
            last: None,
        })
    }

    /// Whether the norm of this step is summed over ranks. (Of a step that was not surveyed: as far as the last one
    /// tells.)
    pub(super) fn is_shared(&self, guard: &Guard<'_, '_>) -> bool {
        guard.measures() && (guard.has_group || !self.specs.is_empty())
    }

    pub(super) fn count_versions(&self, py: Python<'_>) -> PyResult<()> {
        self.versions.as_ref().map_or(Ok(()), |versions| versions.count(py, &self.nearby))
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
        self.groups.clear();
        self.advanced.clear();
        self.ranks.forget();
        self.state_map.forget();
        if let Some(versions) = &mut self.versions {
            versions.let_go(py);
        }
    }
}
