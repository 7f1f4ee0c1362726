//! What a steady step keeps, and what tells whether the next one may be one.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::memory::stream::Memory;
use crate::memory::torch::describe::Torch;
use crate::optimizer::traced::Leaf;
use crate::step::fewer::KnownForm;
use crate::step::found::GroupNumbers;

/// How many steps in a row may begin as steady ones and turn out not to be, before it is tried but once in a while.
pub(super) const PATIENCE: u32 = 4;

/// What a steady step keeps while it is under way, and the memory of its lists.
#[derive(Default)]
pub(super) struct Steady {
    /// The next step may be tried in this way.
    pub(super) ready: bool,
    /// One of the parameters of the last step was complex.
    pub(super) complex: bool,
    /// The last step was large: the interpreter is released.
    pub(super) large: bool,
    pub(super) failures: u32,
    /// How many general steps there were.
    pub(super) general: u32,
    /// The addresses of all states' objects, in order: of another object more must be asked than a steady step asks.
    pub(super) objects: Vec<usize>,
    /// How many of them this step has met.
    pub(super) met: usize,
    /// Gradients and states of this step are held.
    pub(super) holding: bool,
    /// Keeps alive what the step uses, whatever other threads do: gradients and states. (`versions` holds the
    /// parameters.)
    pub(super) held: Vec<Py<PyAny>>,
    /// Counters with their values after the step.
    pub(super) counters: Vec<(Memory, f64)>,
    /// The programs of rules that users wrote, parameter by parameter: as of the last step, and held for this one.
    pub(super) leaves: Vec<Arc<Leaf>>,
    /// How parameters are kept, one by one, if in fewer bytes; empty if none is.
    pub(super) forms: Vec<Option<Box<KnownForm>>>,
    /// Counters that are known when the step is done: which of them, which program of the step tells, and which of its
    /// numbers.
    pub(super) awaited: Vec<(usize, usize, usize)>,
    /// How many programs the step has.
    pub(super) programs: usize,
    /// Some programs are to be looked at before anything is written.
    pub(super) looks: bool,
    /// Of each program the place of its group among those of the step.
    pub(super) group_of: Vec<usize>,
    /// What the numbers of groups become.
    pub(super) numbers: GroupNumbers,
    /// The specifications of the DTensors among gradients and states, in order: those that the general step found to be
    /// like their parameters'.
    pub(super) specs: Vec<Py<PyAny>>,
    /// How many of these, and of those of parameters, this step has met.
    pub(super) met_specs: usize,
    pub(super) met_shards: usize,
}

impl Steady {
    pub(super) fn specs(&self) -> impl Iterator<Item = &Py<PyAny>> {
        self.specs.iter()
    }

    /// What leads to other objects is let go of: the next step is no steady one.
    pub(super) fn clear(&mut self) {
        self.ready = false;
        self.specs.clear();
        self.forms.clear();
    }

    /// The local shard of a gradient or a state that is a DTensor like its parameter, as at the last step.
    #[inline]
    pub(super) fn next_shard<'py>(&mut self, torch: &Torch, object: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        let shard = torch.dtensors.shard(object)?;
        self.met_specs += 1;
        self.specs.get(self.met_specs - 1).is_some_and(|spec| shard.spec.is(spec)).then_some(shard.local)
    }

    #[inline]
    pub(super) fn begin(&mut self, holding: bool) {
        self.ready = false;
        (self.met, self.met_specs, self.met_shards) = (0, 0, 0);
        self.holding = holding;
        self.held.clear();
        self.counters.clear();
        self.awaited.clear();
        self.programs = 0;
        self.looks = false;
        self.group_of.clear();
        self.numbers.clear();
    }

    /// Whether this is the state that the last step met in this place.
    #[inline]
    pub(super) fn is_next(&mut self, object: &Bound<'_, PyAny>) -> bool {
        self.met += 1;
        self.objects.get(self.met - 1) == Some(&(object.as_ptr() as usize))
    }

    #[inline]
    pub(super) fn hold(&mut self, object: &Bound<'_, PyAny>) {
        if self.holding {
            self.held.push(object.clone().unbind());
        }
    }
}
