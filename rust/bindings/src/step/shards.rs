//! DTensors among parameter, gradient and states: their local shards.

use oxistep_kernels::Gradients;
use pyo3::prelude::*;

use crate::memory::torch::describe::Torch;
use crate::memory::torch::dtensors::{Held, Shard};
use crate::step::fewer::Beside;
use crate::step::item::Item;
use crate::step::lists::States;
use crate::step::look::{Going, Look};
use crate::whole::adafactor;

const WHOLE_RULE: &str = "the parameter is a DTensor, and the rule looks at more than single elements";

impl Item {
    /// Notes the local shards of parameter and gradient, if the parameter is a DTensor, and returns its own.
    pub(super) fn shards_of_pair<'py>(&mut self, py: Python<'py>, look: &Look<'_, 'py>) -> Going<Option<Shard<'py>>> {
        let param = self.param.bind(py);
        if look.torch.is_plain(param) {
            return Ok(None);
        }
        let dtensors = &look.torch.dtensors;
        let Some(shard) = dtensors.shard(param) else { return Ok(None) };
        if look.rule.gradients() == Gradients::Sparse || look.rule.compiled().is_some_and(adafactor::is_whole) {
            return Err(WHOLE_RULE.into());
        }
        let grad = dtensors.shard(self.grad.bind(py));
        if let Some(reason) = dtensors.differs("the gradient", &shard, grad.as_ref())? {
            return Err(reason.into());
        }
        self.shards = Some([Some(&shard), grad.as_ref()].into_iter().flatten().map(Shard::hold).collect());
        Ok(Some(shard))
    }

    /// The states, or their local shards, which are noted, if the parameter is a DTensor.
    pub(super) fn shards_of_states<'py>(
        &mut self,
        look: &Look<'_, 'py>,
        shard: Option<&Shard<'py>>,
        names: &[&str],
        states: &[Bound<'py, PyAny>],
    ) -> Going<States<Bound<'py, PyAny>>> {
        let (Some(shard), Some(shards)) = (shard, &mut self.shards) else {
            return Ok(states.iter().cloned().collect());
        };
        let mut plain = States::new();
        for (name, object) in names.iter().zip(states) {
            let state = look.torch.dtensors.shard(object);
            let differs = look.torch.dtensors.differs(&format!("its state {name:?}"), shard, state.as_ref())?;
            if let Some(reason) = differs {
                self.unsure = false; // torch moves what is placed otherwise
                return Err(reason.into());
            }
            shards.extend(state.as_ref().map(Shard::hold));
            plain.extend(state.map(|state| state.local));
        }
        Ok(plain)
    }

    /// What stands beside a parameter and its states, but for the average; if the parameter is a DTensor, the local
    /// shards of that, which are noted.
    pub(super) fn shards_beside<'py>(
        &mut self,
        look: &Look<'_, 'py>,
        shard: Option<&Shard<'py>>,
        beside: &Beside<'py>,
    ) -> Going<Vec<Bound<'py, PyAny>>> {
        let objects = beside.objects();
        let (Some(shard), Some(shards)) = (shard, &mut self.shards) else { return Ok(objects) };
        let mut plain = Vec::new();
        for (k, object) in objects.iter().enumerate() {
            let dtensors = &look.torch.dtensors;
            let own = dtensors.shard(object);
            let differs = if k < beside.headers.len() {
                dtensors.headers_differ("the headers of a state in codes", shard, own.as_ref())
            } else {
                dtensors.differs("what stands beside it", shard, own.as_ref())
            };
            if let Some(reason) = differs? {
                return Err(reason.into());
            }
            shards.extend(own.as_ref().map(Shard::hold));
            plain.extend(own.map(|own| own.local));
        }
        Ok(plain)
    }

    /// The average of the parameter, or its local shard and what is to be noted of that, if it lies as the parameter.
    pub(super) fn average_at_hand<'py>(
        &self,
        look: &Look<'_, 'py>,
        average: &Bound<'py, PyAny>,
    ) -> Option<(Bound<'py, PyAny>, Option<Held>)> {
        let py = average.py();
        let Some([of_param, ..]) = self.shards.as_deref() else { return Some((average.clone(), None)) };
        let shard = look.torch.dtensors.shard(average)?;
        let param = look.torch.dtensors.shard(self.param.bind(py)).filter(|param| of_param.is(param))?;
        let differs = look.torch.dtensors.differs("its average", &param, Some(&shard)).ok()?;
        differs.is_none().then(|| (shard.local.clone(), Some(shard.hold())))
    }

    /// Whether the shards are still those of their DTensors.
    pub(super) fn has_its_shards(&self, py: Python<'_>, torch: &Torch) -> bool {
        let Some(shards) = &self.shards else { return true };
        let objects = [&self.param, &self.grad].into_iter().chain(&self.states);
        let is_its = |(object, held): (&Py<PyAny>, &Held)| {
            torch.dtensors.shard(object.bind(py)).is_some_and(|shard| held.is(&shard))
        };
        objects.zip(shards).all(is_its)
    }

    /// The specifications of gradient and states, if they are DTensors.
    pub(crate) fn specs(&self) -> impl Iterator<Item = &Py<PyAny>> {
        self.shards.iter().flat_map(|shards| shards.iter().skip(1)).map(|held| &held.spec)
    }
}
