//! Updating the native parameters, once everything has been checked: the general way.
#![allow(unsafe_code)]

use oxistep_kernels::driver::Refused;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{Scalars, Slice, SliceMut, Step, Tensors, driver};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::fault;
use crate::memory::python::CollectorRests;
use crate::optimizer::rule::GroupRule;
use crate::step::found::{GroupNumbers, look_at};
use crate::step::item::{Item, Route};
use crate::step::known::PATIENCE;
use crate::step::plan::Plan;
use crate::step::watch::Watch;
use crate::threads::with_pool;
use crate::whole::adafactor::Whole;

impl Plan {
    /// Updates the native parameters.
    pub(super) fn write<'py>(&mut self, optimizer: &Bound<'py, PyAny>, rests: CollectorRests<'py>) -> PyResult<()> {
        let py = optimizer.py();
        let mut step: Step<'_> = *self.step.take().unwrap_or_default();
        let watch = self.watch.as_deref_mut();
        self.advanced.clear();
        self.advanced.extend(self.items.iter().map(|item| item.scalar_values));
        // parameters that share memory are updated one after the other, as torch does, each in a step of its own
        let mut spare = std::mem::take(&mut self.turns);
        let (mut turns, mut becomes) = (Vec::new(), GroupNumbers::default());
        let free = |item: &Item| !item.tied;
        let ready = fill(&mut step, &self.items, free, &self.rules, &mut self.advanced, watch)
            .and_then(|()| {
                for (tied, advanced) in self.items.iter().zip(&mut self.advanced).filter(|(item, _)| item.tied) {
                    let mut turn: Step<'_> = spare.pop().unwrap_or_default();
                    let (tied, advanced) = (std::slice::from_ref(tied), std::slice::from_mut(advanced));
                    fill(&mut turn, tied, |_| true, &self.rules, advanced, None)?;
                    turns.push(turn);
                }
                look_at(py, &mut step, &self.items)
            })
            .map(|numbers| becomes = numbers)
            .and_then(|()| self.set_python_counters(py, 1))
            .and_then(|()| fault::point("versions"))
            .and_then(|()| self.count_versions(py));
        if let Err(error) = ready {
            spare.extend(turns.into_iter().map(Step::recycle));
            (self.step, self.turns) = (Some(Box::new(step.recycle())), spare);
            self.set_python_counters(py, 0)?;
            self.take_out_fresh_states(optimizer, self.items.len())?;
            return Err(error);
        }
        // From here on nothing can fail, but for a defect in a kernel.
        let elements = step.elements() + turns.iter().map(Step::elements).sum::<usize>();
        let small = elements < driver::SERIAL;
        drop(rests);
        let mut measured = self.watch.as_mut().map(|watch| &mut watch.measured);
        let mut run = || {
            with_pool(|pool| {
                match &mut measured {
                    None => step.run(pool, Level::current()),
                    Some(measured) => step.run_measured(measured, pool, Level::current()),
                }?;
                turns.iter_mut().try_for_each(|turn| turn.run(pool, Level::current()))
            })
        };
        let done = if small { run() } else { py.detach(&mut run) };
        let (mut programs, mut tied) = (0, turns.iter());
        for (item, advanced) in self.items.iter().zip(&self.advanced) {
            let traced = item.traced.as_ref().map(|traced| {
                let (step, place) = if item.tied { (tied.next().unwrap_or(&step), 0) } else { (&step, programs) };
                programs += usize::from(!item.tied);
                traced.after(step, place)
            });
            for (i, memory) in item.scalar_memory.iter().enumerate() {
                if let Some(memory) = memory {
                    let after = traced.as_ref().map_or_else(|| advanced.get(i), |traced| traced[i]);
                    // SAFETY: as in `fill`; the kernels are done.
                    unsafe { memory.write_scalar(after) };
                }
            }
        }
        spare.extend(turns.into_iter().map(Step::recycle));
        self.turns = spare;
        self.step = Some(Box::new(step.recycle()));
        self.expect_steady(py, elements);
        if done.is_ok() {
            self.note_weights(py);
            becomes.write(|g| self.groups[g].bind(py))?;
        }
        done.map_err(|panic| self.broke_off(py, &*panic))
    }

    /// After a general step: whether the next one may be steady.
    fn expect_steady(&mut self, py: Python<'_>, elements: usize) {
        let plain = |item: &Item| {
            item.route == Route::Native
                && item.whole == Whole::No
                && item.layout.is_none()
                && !item.tied
                && (item.compact.is_none() || item.shards.is_none())
                && item.rows.is_none()
                && item.python_counter.is_none()
        };
        self.steady.objects.clear();
        self.steady.objects.extend(self.items.iter().flat_map(Item::state_addresses));
        self.steady.leaves.clear();
        self.steady.leaves.extend(self.items.iter().filter_map(|item| Some(item.traced.as_ref()?.leaf.clone())));
        self.steady.specs.clear();
        self.steady.specs.extend(self.items.iter().flat_map(Item::specs).map(|spec| spec.clone_ref(py)));
        self.steady.complex = self.items.iter().any(|item| item.memory.first().is_some_and(|memory| memory.complex));
        self.steady.large = elements >= driver::SERIAL;
        self.steady.general += 1;
        self.steady.ready = (self.steady.failures < PATIENCE || self.steady.general.is_multiple_of(64))
            && !self.check_always
            && !self.holds_inference_tensor
            && self.fewer.average.is_none()
            && self.places.len() == self.items.len()
            && self.items.iter().all(plain);
        if self.steady.ready {
            self.note_forms(py);
        }
    }
}

/// Adds those of the native parameters that are `wanted` to a step, with their constants, and notes their scalar states
/// after it.
pub(super) fn fill<'a>(
    step: &mut Step<'a>,
    items: &'a [Item],
    wanted: impl Fn(&Item) -> bool,
    rules: &[(GroupRule, f64)],
    advanced: &mut [Scalars],
    mut watch: Option<&mut Watch>,
) -> PyResult<()> {
    let mut last = None;
    let refused = |refused: Refused| PyRuntimeError::new_err(format!("oxistep: {refused}; this is a defect"));
    for (item, advanced) in items.iter().zip(advanced).filter(|(item, _)| wanted(item)) {
        let (rule, factor) = &rules[item.rule as usize];
        // parameters of a group nearly always stand at the same step: their constants are computed once
        let before = (item.rule, item.scalar_values, item.first);
        match (rule, &item.traced, last) {
            (GroupRule::Compiled(_), _, Some((known, after))) if known == before => *advanced = after,
            (GroupRule::Compiled(rule), _, _) => {
                *advanced = item.scalar_values;
                step.constants(rule.constants(advanced, item.first));
                last = Some((before, *advanced));
            }
            (GroupRule::Traced(_), Some(traced), _) => traced.register(step).map_err(refused)?,
            (GroupRule::Traced(_), None, _) => return Err(PyRuntimeError::new_err("oxistep: no program; a defect")),
        }
        let compact = item.compact.as_deref();
        if compact.is_some_and(|compact| compact.counts) {
            advanced.count();
        }
        fault::point("push")?;
        // SAFETY: the tensors were described after the last Python code that could change them ran (counting versions
        // and setting Python integers runs none), and are kept alive by the items until the step is done.
        // `settle_overlaps` found that what is written overlaps no other tensor of the step, but for parameters that
        // take turns, of which a step holds one. That nobody else uses them meanwhile is what torch, too, leaves to its
        // callers.
        let tensors = unsafe { tensors(item) };
        let pushed = match (item.rows.as_deref(), item.whole) {
            (None, Whole::No) if let Some(compact) = compact => step.push_compact(tensors, &compact.compact, *factor),
            (None, Whole::No) => step.push(tensors, *factor),
            (None, Whole::Vector) => step.push_factored(tensors, None, *factor),
            (None, Whole::Matrix(rows, cols)) => step.push_factored(tensors, Some((rows, cols)), *factor),
            (Some(rows), _) => step.push_rows(tensors, rows.named(), *factor),
        };
        pushed.map_err(refused)?;
        if let Some(watch) = &mut watch {
            watch.pushed(item, step);
        }
    }
    Ok(())
}

/// The tensors of an item as slices.
///
/// # Safety
/// What was described still holds while the item is borrowed, and nothing that is written is used by anything else
/// meanwhile.
#[inline]
unsafe fn tensors(item: &Item) -> Tensors<'_, impl Iterator<Item = SliceMut<'_>>> {
    let states = item.memory.get(2..).unwrap_or_default();
    // SAFETY: the caller's contract is that of `slice` and `slice_mut`.
    let (param, grad) = unsafe {
        (item.memory.first().map(|memory| memory.slice_mut()), item.memory.get(1).map(|memory| memory.slice()))
    };
    Tensors {
        param: param.unwrap_or_default(),
        grad: grad.unwrap_or(Slice::F32(&[])),
        // SAFETY: as above.
        states: states.iter().map(|memory| unsafe { memory.slice_mut() }),
        layout: item.layout.as_deref(),
    }
}
