//! Looking up and checking all parameters of a step, and again after Python code has run. Nothing is written.

use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::fault;
use crate::memory::nearby::Nearby;
use crate::memory::python::has_plain_keys;
use crate::memory::torch::describe::{Torch, warns_of_missing_grad};
use crate::memory::torch::modules::modules;
use crate::memory::unfit::Reason;
use crate::optimizer::group::{FLAGS, Group, asks_for_foreach};
use crate::optimizer::rule::{ClassRule, GroupRule};
use crate::optimizer::traced::Tree;
use crate::step::item::{Item, Route};
use crate::step::look::Look;
use crate::step::plan::Plan;
use crate::step::versions::Versions;
use crate::whole::adafactor;

/// What the parameters of a group have in common.
struct OfGroup<'a, 'py> {
    optimizer: &'a Bound<'py, PyAny>,
    values: &'a Bound<'py, PyDict>,
    index: usize,
    /// As it was read: not settled by what the first parameter is.
    rule: Result<(GroupRule, f64), Reason>,
    /// Of a rule that a user wrote.
    tree: Option<Py<Tree>>,
    single_lr: bool,
    foreach: bool,
    make_states: bool,
}

impl Plan {
    /// Finds out, for every parameter with a gradient, who updates it and where everything lies. Writes nothing.
    /// Returns the parameters without a gradient, if `make_states` is false.
    pub(super) fn survey(&mut self, optimizer: &Bound<'_, PyAny>, make_states: bool) -> PyResult<Vec<(u32, u32)>> {
        let py = optimizer.py();
        let torch = &modules(py)?.torch;
        self.forget(py);
        self.places.clear();
        self.specs.clear();
        self.foreign = !torch.grad_is_torchs(py);
        let asked = self.rule.asked();
        let groups = optimizer.getattr(pyo3::intern!(py, "param_groups"))?;
        let state = optimizer.getattr(pyo3::intern!(py, "state"))?;
        let state = state.cast::<PyDict>().map_err(|_| PyTypeError::new_err("optimizer.state must be a dict"))?;
        self.state_map.read(state);
        let mut skipped = Vec::new();

        self.foreign |= !groups.is_exact_instance_of::<PyList>();
        for (g, values) in groups.try_iter()?.enumerate() {
            let values =
                values?.cast_into::<PyDict>().map_err(|_| PyTypeError::new_err("a param group must be a dict"))?;
            self.survey_group(torch, optimizer, (g, &values), make_states, &mut skipped)?;
        }
        // tracing a rule runs its function, which may do anything
        self.foreign |= asked != self.rule.asked();
        self.settle_overlaps(py, torch);
        self.settle_together();
        Ok(skipped)
    }

    /// As [`Plan::survey`], for one group.
    fn survey_group<'py>(
        &mut self,
        torch: &Torch,
        optimizer: &Bound<'py, PyAny>,
        (g, values): (usize, &Bound<'py, PyDict>),
        make_states: bool,
        skipped: &mut Vec<(u32, u32)>,
    ) -> PyResult<()> {
        let py = optimizer.py();
        self.foreign |= !has_plain_keys(values);
        let params = values.get_item(pyo3::intern!(py, "params"))?;
        let params = params.ok_or_else(|| PyKeyError::new_err("params"))?;
        self.foreign |= !params.is_instance_of::<PyList>();
        // torch iterates over whatever stands there
        let params = params
            .cast_into::<PyList>()
            .or_else(|other| PyList::new(py, other.into_inner().try_iter()?.collect::<PyResult<Vec<_>>>()?))?;
        let mut group = Group { index: g, ..Group::of(values, &mut self.keys) };
        let rule = self.rule.read(&mut group)?;
        let tree = match &self.rule {
            ClassRule::Compiled(_) => None,
            ClassRule::Traced(tree) => Some(tree.clone_ref(py)),
        };
        if tree.is_some() {
            self.groups.push(values.clone().unbind());
        }
        let single_lr = group.single_lr;
        let foreach = asks_for_foreach(group.find("foreach")?.as_ref());
        self.foreign |= group.foreign;
        if let Ok(rule) = &rule {
            self.rules.push(rule.clone());
        }
        fault::point("group")?;
        let of_group = OfGroup { optimizer, values, index: g, rule, tree, single_lr, foreach, make_states };
        for (i, param) in params.iter().enumerate() {
            if !self.survey_param(torch, &of_group, i, param)? && !make_states {
                skipped.push((g as u32, i as u32));
            }
        }
        Ok(())
    }

    /// As [`Plan::survey`], for one parameter. Returns whether it has a gradient.
    fn survey_param<'py>(
        &mut self,
        torch: &Torch,
        of_group: &OfGroup<'_, 'py>,
        i: usize,
        param: Bound<'py, PyAny>,
    ) -> PyResult<bool> {
        let py = param.py();
        fault::point("parameter")?;
        let mut spec = None;
        if !torch.is_plain(&param) {
            self.foreign = true;
            if let Some(shard) = torch.dtensors.shard(&param) {
                spec = Some(self.specs.len() as u32);
                self.specs.push(shard.spec.unbind());
            }
        }
        let grad = param.getattr(pyo3::intern!(py, "grad"))?;
        if grad.is_none() {
            self.foreign |= warns_of_missing_grad(&param)?;
            return Ok(false);
        }
        self.nearby.prefetch_after(self.items.len());
        if let (Ok(_), Some((GroupRule::Compiled(rule), _))) = (&of_group.rule, self.rules.last_mut()) {
            adafactor::settle(rule, &param)?;
        }
        let found = of_group.rule.as_ref().map_err(Reason::clone);
        let found = found.and_then(|(rule, _)| Ok((rule, self.state_map.entry(py, &param)?)));
        let mut item = Item::new((of_group.index, i), self.rules.len().saturating_sub(1), param, grad);
        self.places.push(self.state_map.last_place());
        (item.foreach, item.spec) = (of_group.foreach, spec);
        let place = self.items.len();
        self.items.push(item);
        let Some(item) = self.items.last_mut() else { return Ok(true) };
        item.route = match found {
            Err(reason) => {
                // a flag that torch has a path for is no cause for doubt
                item.unsure = !FLAGS.iter().any(|(_, flag)| reason == *flag);
                Route::Torch(reason)
            }
            Ok((rule, entry)) => {
                item.entry = entry;
                let look = Look {
                    torch,
                    rule,
                    tree: of_group.tree.as_ref().map(|tree| tree.bind(py)),
                    answers: self.answers.get(place).map_or(&[], Vec::as_slice),
                    definition: self.definition.bind(py),
                    optimizer: of_group.optimizer,
                    values: of_group.values,
                    make_states: of_group.make_states,
                    single_lr: of_group.single_lr,
                    fewer: self.fewer,
                    kinds: self.kinds.get(of_group.index).map_or(&[], Vec::as_slice),
                    measuring: self.measuring,
                };
                item.look_up(py, &look, &mut self.keys)?
            }
        };
        Ok(true)
    }

    /// Has torch take the step on copies of three elements wherever it might refuse the numbers of a step, so that it
    /// does so before anything is written. Returns whether there was such a parameter.
    pub(super) fn rehearse(&self, optimizer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = optimizer.py();
        let mut last = None;
        for item in self.items.iter().filter(|item| item.unusual) {
            let this = (item.rule, item.scalar_values, item.memory.first().map(|memory| memory.dtype));
            if last != Some(this) {
                let of_item = (optimizer, item.group, &item.param, item.entry.as_ref());
                self.definition.call_method1(py, pyo3::intern!(py, "rehearse"), of_item)?;
            }
            last = Some(this);
        }
        Ok(last.is_some())
    }

    /// Reads the native tensors' pointers again, after Python code has run.
    pub(super) fn describe_again(&mut self, py: Python<'_>) -> PyResult<()> {
        fault::point("describe again")?;
        let torch = &modules(py)?.torch;
        let native = |items: &[Item]| items.iter().filter(|item| item.route == Route::Native).count();
        let before = native(&self.items);
        for item in self.items.iter_mut().filter(|item| item.route == Route::Native) {
            if !item.describe_again(py, torch) {
                return Err(PyRuntimeError::new_err(format!(
                    "param_groups[{}]['params'][{}] was changed while this step was under way (by a hook, a state or \
                     torch's part of the step); oxistep has not updated any parameter",
                    item.group, item.index
                )));
            }
        }
        self.settle_overlaps(py, torch);
        if native(&self.items) != before {
            return Err(PyRuntimeError::new_err(
                "tensors came to overlap while torch updated other parameters of this step; oxistep has not updated \
                 any",
            ));
        }
        Ok(())
    }

    /// Notes the native parameters, unless they and their states are those of the last step, and holds them.
    pub(super) fn settle_versions(&mut self, py: Python<'_>) -> PyResult<()> {
        self.note_versions(py)?;
        if let Some(versions) = &mut self.versions {
            for (k, item) in self.items.iter().enumerate() {
                versions.hold(k, item.param.bind(py))?;
            }
        }
        Ok(())
    }

    fn note_versions(&mut self, py: Python<'_>) -> PyResult<()> {
        let states = self.items.iter().flat_map(Item::state_addresses);
        let states = states.fold(0_usize, |sum, address| sum.rotate_left(5).wrapping_add(address));
        let known_states = std::mem::replace(&mut self.known_states, states);
        let known = self.versions.as_ref().is_some_and(|versions| versions.are_of(py, &self.items));
        if !self.check_always && known && known_states == states {
            return if modules(py)?.torch.tells_storages() { self.check_storages(py) } else { Ok(()) };
        }
        let versions = Versions::of(py, &self.items)?;
        self.check_storages(py)?;
        let torch = &modules(py)?.torch;
        self.nearby = Nearby::default();
        self.items.iter().for_each(|item| item.note_nearby(py, torch, &mut self.nearby));
        self.holds_inference_tensor = self.find_inference_tensor(py)?;
        self.versions = Some(versions);
        Ok(())
    }
}
