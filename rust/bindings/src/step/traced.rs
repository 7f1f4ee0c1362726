//! What a step knows of a parameter whose rule a user wrote.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use oxistep_kernels::driver::Refused;
use oxistep_kernels::{Precision, Step};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use smallvec::SmallVec;

use crate::memory::unfit::Reason;
use crate::optimizer::group::{is_number, number};
use crate::optimizer::traced::{Known, Leaf};
use crate::step::lists::Counters;

/// The numbers that a program is given.
pub(crate) type Inputs = SmallVec<[f64; 12]>;

/// A program, or the question that is to be answered first, with its numbers.
pub(super) type Found = (Arc<Leaf>, Inputs);

/// The program of a parameter, and its numbers.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) leaf: Arc<Leaf>,
    /// `step`, then its states of one number, before the step.
    before: Counters<f64>,
    inputs: Inputs,
}

impl Traced {
    pub(super) fn new(leaf: Arc<Leaf>, inputs: Inputs, counters: &[(f64, Precision)]) -> Self {
        Self { leaf, inputs, before: counters.iter().map(|(value, _)| *value).collect() }
    }

    /// Registers the program with its numbers.
    pub(super) fn register<'a>(&'a self, step: &mut Step<'a>) -> Result<(), Refused> {
        step.program(&self.leaf.program, &self.inputs)
    }

    /// The counters after the step, of which this parameter was the `place`-th program.
    pub(super) fn after(&self, step: &Step<'_>, place: usize) -> Counters<f64> {
        let becomes = self.leaf.becomes.iter().zip(&self.before[1..]);
        let numbers = becomes.map(|(&node, &before)| step.value(place, node).unwrap_or(before));
        self.before.first().map(|step| step + 1.0).into_iter().chain(numbers).collect()
    }
}

/// Counters as they were read.
pub(super) struct OfCounters<'c> {
    pub(super) names: &'c [&'static str],
    pub(super) values: &'c [f64],
    pub(super) group: &'c OfGroup<'c>,
    /// What questions about elements came to in the last step.
    pub(super) asked: &'c [(usize, u64)],
    pub(super) sizes: &'c [i64],
    pub(super) is_complex: bool,
    /// Whether anything asked for the sizes.
    pub(super) asked_sizes: Cell<bool>,
}

impl Known for OfCounters<'_> {
    fn step(&self) -> f64 {
        self.values.first().map_or(1.0, |step| step + 1.0)
    }

    fn number(&self, name: &'static str) -> Option<f64> {
        let place = self.names.iter().position(|known| std::ptr::eq(*known, name))?;
        self.values.get(place).copied()
    }

    fn of_group(&self, name: &'static str) -> Option<f64> {
        self.group.get(name)
    }

    fn sizes(&self) -> &[i64] {
        self.asked_sizes.set(true);
        self.sizes
    }

    fn numel(&self) -> f64 {
        self.asked_sizes.set(true);
        self.sizes.iter().product::<i64>() as f64 * if self.is_complex { 2.0 } else { 1.0 }
    }

    fn answer(&self, question: usize) -> Option<u64> {
        self.asked.get(question).map(|(_, answer)| *answer)
    }
}

/// The name of a number of a group, and what stands there.
type Looked = (&'static str, Option<f64>);

/// The numbers of a group, each looked up once.
#[derive(Debug)]
pub(super) struct OfGroup<'a> {
    values: &'a Bound<'a, PyDict>,
    known: RefCell<SmallVec<[Looked; 4]>>,
    /// Something that is no number stands where one should.
    pub(super) unreadable: Cell<bool>,
}

impl<'a> OfGroup<'a> {
    pub(super) fn of(values: &'a Bound<'a, PyDict>) -> Self {
        Self { values, known: RefCell::default(), unreadable: Cell::new(false) }
    }

    fn get(&self, name: &'static str) -> Option<f64> {
        let mut known = self.known.borrow_mut();
        if let Some((_, value)) = known.iter().find(|(known, _)| std::ptr::eq(*known, name)) {
            return *value;
        }
        let value = number_in(self.values, name).unwrap_or_else(|_| {
            self.unreadable.set(true);
            None
        });
        known.push((name, value));
        value
    }
}

/// The number of that name in a group, if there is one; an error if something else stands there.
pub(super) fn number_in(group: &Bound<'_, PyDict>, name: &str) -> Result<Option<f64>, Reason> {
    let wrong = || Reason::from("a number of the group is none");
    match group.get_item(name) {
        Ok(Some(value)) if is_number(&value) => number(&value, name).map(Some).map_err(|_| wrong()),
        Ok(None) => Ok(None),
        _ => Err(wrong()),
    }
}
