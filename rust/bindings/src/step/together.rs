//! What rules that users write must know before anything is written: sums over all parameters, numbers that a group
//! shares, and answers to their questions about elements.

use oxistep_kernels::Step;
use pyo3::prelude::*;

use crate::fault;
use crate::step::found::find;
use crate::step::item::{Item, Route};
use crate::step::plan::Plan;
use crate::step::write::fill;

const TOGETHER: &str = "its rule looks at other parameters too, and one of them is torch's";

/// What a rule asks of a parameter before its program is known.
fn question(item: &Item) -> Option<usize> {
    item.traced.as_ref().filter(|_| item.route == Route::Native)?.leaf.question
}

impl Plan {
    /// Programs that cannot be taken apart from each other are native all, or none.
    pub(super) fn settle_together(&mut self) {
        let together = |item: &Item| item.traced.as_ref().is_some_and(|traced| traced.leaf.is_together());
        let native = |item: &&Item| item.route == Route::Native;
        if self.items.iter().all(|item| native(&item)) || !self.items.iter().filter(native).any(together) {
            return;
        }
        for item in self.items.iter_mut().filter(|item| item.route == Route::Native) {
            item.route = Route::Torch(TOGETHER.into());
            item.tied = false;
        }
    }

    /// Answers what rules ask about elements, until all programs are known. Returns whether anything was asked: then
    /// all was surveyed again. `factor` is what gradients are multiplied with beside their groups' factor.
    pub(super) fn answer(&mut self, optimizer: &Bound<'_, PyAny>, factor: f64) -> PyResult<bool> {
        let py = optimizer.py();
        let mut any = false;
        while self.items.iter().any(|item| question(item).is_some()) {
            any = true;
            fault::point("questions")?;
            // tracing rules, making states and what stood before may have run code since tensors were described
            self.describe_again(py)?;
            let mut step = Step::default();
            self.advanced.clear();
            self.advanced.extend(self.items.iter().map(|item| item.scalar_values));
            let asks = |item: &Item| question(item).is_some();
            fill(&mut step, &self.items, asks, &self.rules, &mut self.advanced, None)?;
            let rule = self.items.iter().find_map(|item| Some(&item.traced.as_ref()?.leaf.rule));
            find(py, &mut step, rule.map_or("", |rule| rule), true)?;
            self.answers.resize_with(self.items.len(), Vec::new);
            let asking = self.items.iter().zip(&mut self.answers).filter_map(|(item, to)| Some((question(item)?, to)));
            for (place, (node, answers)) in asking.enumerate() {
                answers.push(step.value(place, node).unwrap_or(f64::NAN).to_bits());
            }
            drop(step);
            self.survey(optimizer, true)?;
            self.rules.iter_mut().for_each(|(_, own)| *own *= factor);
        }
        Ok(any)
    }
}
