//! A step of a torch optimizer from the top: in which order things are asked, checked and written.
//!
//! Everything is looked up and checked, over all groups, before the first write.

use pyo3::prelude::*;

use crate::fault;
use crate::memory::python::CollectorRests;
use crate::memory::torch::modules::modules;
use crate::optimizer::dicts::looks_up_otherwise;
use crate::step::guard::Guard;
use crate::step::item::{Item, Route};
use crate::step::plan::Plan;
use crate::step::steady::Attempt;

impl Plan {
    pub(super) fn take_step<'py>(
        &mut self,
        optimizer: &Bound<'py, PyAny>,
        guard: &Guard<'_, '_>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = optimizer.py();
        self.measuring = guard.measures();
        let averaged_before = self.averaged.take().map_or(0, |moved| moved.len());
        if self.is_overridden(optimizer)? {
            return self.leave_everything(optimizer, guard);
        }
        let rests = CollectorRests::new(py);
        let attempt = match guard.unscale {
            None if self.watch.is_none() && !self.is_shared(guard) => self.take_steady_step(optimizer, guard, rests)?,
            _ => Attempt::Failed(rests),
        };
        let rests = match attempt {
            Attempt::Done(norm) => return Ok(norm),
            Attempt::Failed(rests) => rests,
        };
        if looks_up_otherwise(optimizer)? {
            drop(rests);
            return self.leave_everything(optimizer, guard);
        }
        fault::point("survey")?;
        self.survey(optimizer, true)?;
        fault::point("rehearse")?;
        let mut asked =
            self.rehearse(optimizer)? | self.notice_edits(optimizer)? | self.place_shards(py)? | self.foreign;
        asked |= self.check_averages(optimizer, averaged_before)?;
        if guard.unscale.is_some() || self.items.iter().any(|item| item.route != Route::Native) {
            // what is checked further down is checked before others write
            self.check_storages(py)?;
            self.check_left(optimizer)?;
            self.holds_inference_tensor = self.find_inference_tensor(py)?;
            self.check_inference_mode(py)?;
        }
        if let Some(unscale) = guard.unscale {
            fault::point("unscale")?;
            unscale.call0()?;
            fault::point("survey again")?;
            self.survey(optimizer, true)?; // a sparse gradient was looked up as a copy
            asked = self.place_shards(py)? | self.foreign;
        }
        if let Some(watch) = &mut self.watch {
            watch.done = false;
            asked |= watch.begin(py, &self.items)?;
        }
        let (mut norm, mut factor) = (None, 1.0);
        if guard.measures() && (!self.items.is_empty() || self.is_shared(guard)) {
            if asked || self.items.iter().any(|item| item.fresh.is_some()) {
                self.describe_again(py)?; // Python code has run
                asked = false;
            }
            fault::point("judge")?;
            let torch = &modules(py)?.torch;
            let verdict = if self.is_shared(guard) {
                let definition = self.definition.bind(py);
                self.ranks.ask(definition, &self.specs)?;
                self.joined = true;
                asked = true;
                let of_step = (optimizer, definition);
                guard.judge_over_ranks(torch, &self.items, &mut self.gradients, &mut self.ranks, of_step)?
            } else {
                guard.judge(py, torch, &self.items, &mut self.gradients)?
            };
            norm = Some(verdict.norm);
            if verdict.skip {
                return Ok(norm);
            }
            factor = verdict.factor;
            self.rules.iter_mut().for_each(|(_, own)| *own *= factor);
        }
        if self.answer(optimizer, factor)? {
            asked = self.foreign;
            if self.items.iter().any(|item| item.route != Route::Native) {
                self.check_left(optimizer)?;
            }
        }
        self.update(optimizer, asked, rests)?;
        self.note_averages();
        if let Some(watch) = &mut self.watch {
            watch.done = true;
        }
        Ok(norm)
    }

    /// Lets torch update what is left to it, and updates the rest. `asked`: Python code has run since all was
    /// described.
    fn update<'py>(
        &mut self,
        optimizer: &Bound<'py, PyAny>,
        asked: bool,
        mut rests: CollectorRests<'py>,
    ) -> PyResult<()> {
        let py = optimizer.py();
        let told = |item: &Item| (item.group, item.index, item.route.clone(), item.spec.is_some());
        let last = self.last.get_or_insert_default();
        last.clear();
        last.extend(self.items.iter().map(told));
        let left = self.items.iter().any(|item| item.route != Route::Native);
        if left {
            drop(rests);
            self.run_torch(optimizer)?;
            rests = CollectorRests::new(py);
            self.items.retain(|item| item.route == Route::Native);
        }
        if left || asked {
            self.describe_again(py)?;
        }
        if self.items.is_empty() {
            return Ok(());
        }
        fault::point("params")?;
        self.settle_versions(py)?;
        self.check_inference_mode(py)?;
        if self.items.iter().any(|item| item.fresh.is_some()) {
            // Making and storing states runs Python code, which could have changed tensors described before it.
            self.store_fresh_states(optimizer)?;
            if let Err(error) = self.describe_again(py) {
                self.take_out_fresh_states(optimizer, self.items.len())?;
                return Err(error);
            }
        }
        self.write(optimizer, rests)
    }
}
