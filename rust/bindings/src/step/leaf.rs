//! Which program a parameter has, if its rule is one that a user wrote.

use std::cell::Cell;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::memory::stream::Described;
use crate::memory::torch::describe::Torch;
use crate::optimizer::rule::GroupRule;
use crate::optimizer::traced::{Known, Leaf};
use crate::step::fewer::codes_in;
use crate::step::item::Item;
use crate::step::look::{Going, Look};
use crate::step::traced::{Found, number_in};

/// What is known of a parameter before its program is.
struct OfEntry<'a, 'py> {
    torch: &'a Torch,
    entry: Option<&'a Bound<'py, PyDict>>,
    group: &'a Bound<'py, PyDict>,
    answers: &'a [u64],
    sizes: Vec<i64>,
    is_complex: bool,
    /// Something that is no number stands where one should.
    unreadable: Cell<bool>,
}

impl Known for OfEntry<'_, '_> {
    fn step(&self) -> f64 {
        self.number("step").unwrap_or(0.0) + 1.0
    }

    fn number(&self, name: &'static str) -> Option<f64> {
        let value = self.entry?.get_item(name).ok().flatten()?;
        let number = self.torch.describe_count(&value).ok().and_then(|counter| counter.number());
        self.unreadable.set(self.unreadable.get() || number.is_none());
        number
    }

    fn of_group(&self, name: &'static str) -> Option<f64> {
        number_in(self.group, name).unwrap_or_else(|_| {
            self.unreadable.set(true);
            None
        })
    }

    fn sizes(&self) -> &[i64] {
        &self.sizes
    }

    fn numel(&self) -> f64 {
        self.sizes.iter().product::<i64>() as f64 * if self.is_complex { 2.0 } else { 1.0 }
    }

    fn answer(&self, question: usize) -> Option<u64> {
        self.answers.get(question).copied()
    }
}

impl Leaf {
    /// The names that an entry lacks.
    pub(super) fn missing(&self, entry: Option<&Bound<'_, PyDict>>) -> Vec<&'static str> {
        let in_codes = |entry: &Bound<'_, PyDict>, name: &str| matches!(codes_in(entry, name), Ok(Some(_)));
        let is_there =
            |name: &str| entry.is_some_and(|entry| entry.contains(name).unwrap_or(false) || in_codes(entry, name));
        self.counters.iter().chain(&self.states).copied().filter(|name| !is_there(name)).collect()
    }
}

impl Item {
    /// The program, or the question that is to be answered first, with its numbers, if its rule is one that a user
    /// wrote. May run the rule's function.
    pub(super) fn leaf(
        &self,
        py: Python<'_>,
        look: &Look<'_, '_>,
        param: &Described<'_>,
        entry: Option<&Bound<'_, PyDict>>,
    ) -> Going<Option<Found>> {
        let (GroupRule::Traced(numbers), Some(tree)) = (look.rule, look.tree) else { return Ok(None) };
        let known = OfEntry {
            torch: look.torch,
            entry,
            group: look.values,
            answers: look.answers,
            sizes: param.shape.sizes.to_vec(),
            is_complex: param.memory.complex,
            unreadable: Cell::new(false),
        };
        let leaf = numbers.leaf(tree.get(), py, &known)??;
        let inputs = numbers.inputs(&leaf.inputs, &known);
        if known.unreadable.get() {
            return Err("a state of one number is no CPU tensor of one, or one of the group is no number".into());
        }
        Ok(Some((leaf, inputs)))
    }
}
