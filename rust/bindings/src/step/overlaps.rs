//! Which parameters of a step share memory, and what becomes of them.

use pyo3::prelude::*;

use crate::memory::torch::describe::Torch;
use crate::step::item::{Item, Route};
use crate::step::plan::Plan;
use crate::whole::adafactor::Whole;

const SHARED: &str = "its memory overlaps memory of another tensor in the step";

impl Plan {
    /// Leaves to torch whatever writes memory that something else in the step uses; parameters that share memory with
    /// nothing but one another, such as weights tied through `.data`, take turns.
    pub(super) fn settle_overlaps(&mut self, py: Python<'_>, torch: &Torch) {
        self.items.iter_mut().for_each(|item| item.tied = false);
        loop {
            self.written.begin();
            for (k, item) in self.items.iter().enumerate() {
                item.written(py, torch, |range| self.written.add(k, range));
            }
            if !self.written.conflicts().is_empty() && self.tie() {
                continue;
            }
            let mut left = self.written.conflicts().to_vec();
            self.hints.resize(self.items.len(), 0);
            for (k, item) in self.items.iter().enumerate() {
                let mut hint = self.hints[k];
                let mut meet = |range, hint: &mut u32| {
                    let before = left.len();
                    self.written.meeting(range, hint, |other| left.push(other));
                    if left.len() > before {
                        left.push(k);
                    }
                };
                if let Some(range) = item.read(py, torch) {
                    meet(range, &mut hint);
                }
                if item.tied
                    && let Some(&param) = item.memory.first()
                {
                    meet(param.interval(), &mut 0);
                }
                self.hints[k] = hint;
            }
            self.find_gradients_in_tied(py, torch, &mut left);
            let mut changed = false;
            for k in left {
                let item = &mut self.items[k];
                if item.route == Route::Native {
                    item.route = Route::Torch(SHARED.into());
                    item.tied = false;
                    changed = true;
                }
            }
            if !changed {
                return;
            }
        }
    }

    /// Lets parameters that overlap something take turns, where that may be all there is to do; `false` if all of them
    /// do already.
    fn tie(&mut self) -> bool {
        let conflicts = self.written.conflicts().to_vec();
        let mut any = false;
        for k in conflicts {
            let object = self.items[k].param.as_ptr();
            let twice = self.items.iter().filter(|item| item.param.as_ptr() == object).count() > 1;
            if self.watch.is_none() && !twice && !self.items[k].tied && may_take_turns(&self.items[k]) {
                self.items[k].tied = true;
                any = true;
            }
        }
        any
    }

    /// Adds items of which one reads what the other, which takes turns, writes.
    fn find_gradients_in_tied(&self, py: Python<'_>, torch: &Torch, found: &mut Vec<usize>) {
        for (t, tied) in self.items.iter().enumerate().filter(|(_, item)| item.tied) {
            let Some((start, end)) = tied.memory.first().map(|memory| memory.interval()) else { continue };
            for (k, item) in self.items.iter().enumerate() {
                if item.read(py, torch).is_some_and(|(first, last)| first < end && start < last) {
                    found.extend([t, k]);
                }
            }
        }
    }
}

/// Whether updating a parameter whole, before the next one, is what torch would do: its foreach path does operation
/// after operation.
fn may_take_turns(item: &Item) -> bool {
    // torch's norms come first
    let knows_of_others = item.traced.as_ref().is_some_and(|traced| traced.leaf.is_whole || traced.leaf.is_together());
    let is_whole = item.whole != Whole::No || knows_of_others;
    item.route == Route::Native && item.rows.is_none() && item.compact.is_none() && !is_whole && !item.foreach
}
