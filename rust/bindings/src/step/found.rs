//! Numbers of programs that are known before anything is written: what those of groups become, and whether what was
//! taken for granted holds.

use oxistep_kernels::Step;
use oxistep_kernels::driver::{self, Stopped};
use oxistep_kernels::pool::Serial;
use oxistep_kernels::simd::Level;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::panicked_reading;
use crate::fault;
use crate::optimizer::traced::Leaf;
use crate::step::item::Item;
use crate::threads::with_pool;

/// What a number of a group becomes.
#[derive(Debug)]
pub(super) struct Becomes {
    group: usize,
    name: &'static str,
    value: f64,
    /// A rule assigned it; else it is what it was.
    assigned: bool,
}

/// What the numbers of all groups become.
#[derive(Debug, Default)]
pub(super) struct GroupNumbers(Vec<Becomes>);

impl GroupNumbers {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what the program of a parameter makes of them.
    ///
    /// # Errors
    /// If another parameter of the group made something else of them.
    pub(super) fn add(&mut self, group: usize, leaf: &Leaf, value: impl Fn(usize) -> Option<f64>) -> PyResult<()> {
        for shared in &leaf.shared {
            let (name, assigned) = (shared.name, shared.assigned);
            let Some(value) = value(shared.node) else { continue };
            match self.0.iter_mut().find(|known| known.group == group && std::ptr::eq(known.name, name)) {
                None => self.0.push(Becomes { group, name, value, assigned }),
                Some(known) if !known.assigned => (known.value, known.assigned) = (value, assigned),
                Some(known) if assigned && known.value != value && !(known.value.is_nan() && value.is_nan()) => {
                    return Err(PyTypeError::new_err(format!(
                        "rule {}: s.group.{name} of param_groups[{group}] becomes {:?} by one parameter and {value:?} \
                         by another; set it where all parameters of a group come",
                        leaf.rule, known.value
                    )));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Writes them into the groups.
    pub(super) fn write<'g, 'py: 'g>(&self, group: impl Fn(usize) -> &'g Bound<'py, PyDict>) -> PyResult<()> {
        for Becomes { group: g, name, value, assigned } in &self.0 {
            let values = group(*g);
            if *assigned || !values.contains(*name)? {
                values.set_item(*name, *value)?;
            }
        }
        Ok(())
    }
}

/// Finds the numbers of a step that are to be known before anything is written: `all` of them, or only what tensors
/// have to do with each other.
///
/// # Errors
/// If sums wait for each other, of the rule of that name; for a panic in a kernel.
pub(super) fn find(py: Python<'_>, step: &mut Step<'_>, rule: &str, all: bool) -> PyResult<()> {
    let level = Level::current();
    let found = if step.elements() < driver::SERIAL {
        // as it would be with any pool, which would have to be asked for
        if all { step.reduce(&Serial, level) } else { step.reduce_together(&Serial, level) }
    } else {
        py.detach(|| with_pool(|pool| if all { step.reduce(pool, level) } else { step.reduce_together(pool, level) }))
    };
    found.map_err(|stopped| match stopped {
        Stopped::Totals => PyTypeError::new_err(format!("rule {rule}: its totals wait for each other")),
        Stopped::Panic(panic) => panicked_reading(&*panic),
    })
}

/// Whether the numbers that a program took for granted are what they came to.
pub(super) fn holds(leaf: &Leaf, value: impl Fn(usize) -> Option<f64>) -> bool {
    leaf.asked.iter().all(|&(node, answer)| value(node).map(f64::to_bits) == Some(answer))
}

/// Finds what is to be known of the programs of a step, those of `items`, and looks at it. Returns what the numbers of
/// groups become.
pub(super) fn look_at(py: Python<'_>, step: &mut Step<'_>, items: &[Item]) -> PyResult<GroupNumbers> {
    let programs =
        || items.iter().filter(|item| !item.tied).filter_map(|item| Some((item, &item.traced.as_ref()?.leaf)));
    let mut numbers = GroupNumbers::default();
    let Some((_, first)) = programs().find(|(_, leaf)| leaf.is_looked_at()) else { return Ok(numbers) };
    fault::point("look at numbers")?;
    find(py, step, &first.rule, true)?;
    for (place, (item, leaf)) in programs().enumerate() {
        if !holds(leaf, |node| step.value(place, node)) {
            return Err(PyRuntimeError::new_err(format!(
                "param_groups[{}]['params'][{}] was changed while this step was under way; oxistep has not updated any \
                 parameter",
                item.group, item.index
            )));
        }
        numbers.add(item.group as usize, leaf, |node| step.value(place, node))?;
    }
    Ok(numbers)
}
