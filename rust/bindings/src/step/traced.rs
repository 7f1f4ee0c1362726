//! What a step knows of a parameter whose rule a user wrote.

use std::sync::Arc;

use oxistep_kernels::{Precision, Step};

use crate::optimizer::traced::{Known, Leaf, Numbers};
use crate::step::lists::Counters;

/// The program of a parameter, and its numbers.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) leaf: Arc<Leaf>,
    /// `step`, then its states of one number, before the step.
    before: Counters<f64>,
}

impl Traced {
    pub(super) fn new(leaf: Arc<Leaf>, counters: &[(f64, Precision)]) -> Self {
        Self { leaf, before: counters.iter().map(|(value, _)| *value).collect() }
    }

    /// Registers the program with its numbers.
    pub(super) fn register<'a>(
        &'a self,
        step: &mut Step<'a>,
        numbers: &Numbers,
        buffer: &mut Vec<f64>,
    ) -> Result<(), oxistep_kernels::driver::Refused> {
        let of_counters = OfCounters { names: &self.leaf.counters, values: &self.before, sizes: &[] };
        numbers.inputs(&self.leaf.inputs, &of_counters, buffer);
        step.program(&self.leaf.program, buffer)
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
    pub(super) sizes: &'c [i64],
}

impl Known for OfCounters<'_> {
    fn step(&self) -> f64 {
        self.values.first().map_or(1.0, |step| step + 1.0)
    }

    fn number(&self, name: &'static str) -> Option<f64> {
        let place = self.names.iter().position(|known| std::ptr::eq(*known, name))?;
        self.values.get(place).copied()
    }

    fn sizes(&self) -> &[i64] {
        self.sizes
    }
}
