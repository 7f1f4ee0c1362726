//! Which program a parameter has, if its rule is one that a user wrote.

use std::cell::Cell;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::memory::stream::Described;
use crate::memory::torch::describe::Torch;
use crate::optimizer::rule::GroupRule;
use crate::optimizer::traced::{Known, Leaf};
use crate::step::item::Item;
use crate::step::look::{Going, Look};

/// What is known of a parameter before its program is.
struct OfEntry<'a, 'py> {
    torch: &'a Torch,
    entry: Option<&'a Bound<'py, PyDict>>,
    sizes: Vec<i64>,
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

    fn sizes(&self) -> &[i64] {
        &self.sizes
    }
}

impl Leaf {
    /// The names that an entry lacks.
    pub(super) fn missing(&self, entry: Option<&Bound<'_, PyDict>>) -> Vec<&'static str> {
        let is_there = |name: &str| entry.is_some_and(|entry| entry.contains(name).unwrap_or(false));
        self.counters.iter().chain(&self.states).copied().filter(|name| !is_there(name)).collect()
    }
}

impl Item {
    /// The program, if its rule is one that a user wrote. May run the rule's function.
    pub(super) fn leaf(
        &self,
        py: Python<'_>,
        look: &Look<'_, '_>,
        param: &Described<'_>,
        entry: Option<&Bound<'_, PyDict>>,
    ) -> Going<Option<Arc<Leaf>>> {
        let (GroupRule::Traced(numbers), Some(tree)) = (look.rule, look.tree) else { return Ok(None) };
        if param.memory.complex {
            return Err("the parameter is complex, and its rule is for real numbers".into());
        }
        let sizes = param.shape.sizes.to_vec();
        let known = OfEntry { torch: look.torch, entry, sizes, unreadable: Cell::new(false) };
        let leaf = numbers.leaf(tree.get(), py, &known)??;
        if known.unreadable.get() {
            return Err("a state of one number is no CPU tensor of one".into());
        }
        Ok(Some(leaf))
    }
}
