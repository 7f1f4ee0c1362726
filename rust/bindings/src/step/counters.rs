//! The counters of a parameter: scalar states, which a step reads first and writes last.

use oxistep_kernels::{Gradients, MAX_SCALARS, Precision, Scalars};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt};

use crate::memory::python::has_plain_keys;
use crate::memory::torch::describe::Torch;
use crate::memory::unfit::Unfit;
use crate::optimizer::group::Keys;
use crate::step::item::Item;
use crate::step::lists::{Counted, Counters};
use crate::step::look::{Going, Look};

/// The counters of a compiled rule.
pub(super) fn scalars(counters: &[(f64, Precision)]) -> Scalars {
    let mut values = [0.0; MAX_SCALARS];
    let mut precisions = [Precision::F64; MAX_SCALARS];
    for ((value, precision), counter) in values.iter_mut().zip(&mut precisions).zip(counters) {
        (*value, *precision) = *counter;
    }
    Scalars::new(values, precisions)
}

impl Item {
    /// Reads the counters that stand in `source`, and notes where.
    pub(super) fn read_counters<'py>(
        &mut self,
        py: Python<'py>,
        look: &Look<'_, 'py>,
        source: Option<&Bound<'py, PyDict>>,
        names: &[&'static str],
        keys: &mut Keys,
    ) -> Going<Counted> {
        let mut counters = Counters::new();
        for name in names {
            let value = source.map(|s| s.get_item(keys.get(py, name))).transpose()?.flatten();
            let count = value.as_ref().and_then(|value| value.cast_exact::<PyInt>().ok()?.extract::<u32>().ok());
            if let (Some(count), Gradients::Sparse) = (count, look.rule.gradients()) {
                // SparseAdam alone counts in Python integers
                self.python_counter = Some(*name);
                counters.push((f64::from(count), Precision::F64));
                self.scalar_memory.push(None);
                self.scalars.push(None);
                continue;
            }
            // torch computes with an integer as with a float, but for what it makes a tensor of the counter's dtype
            let may_be_integer = names.len() == 1;
            let described = value.as_ref().map(|value| match may_be_integer {
                true => look.torch.describe_count(value),
                false => look.torch.describe_values(value),
            });
            let counter = match described {
                Some(Ok(counter)) => counter.number().map(|number| (number, counter.memory)),
                Some(Err(Unfit::Outside(bytes))) => return Err(self.outside(bytes).into()),
                _ => None,
            };
            let Some((number, memory)) = counter else {
                return Err(format!("its state {name:?} is no CPU tensor of one number").into());
            };
            counters.push((number, memory.dtype.precision()));
            self.scalar_memory.push(Some(memory));
            self.scalars.push(value.map(Bound::unbind));
        }
        Ok(counters)
    }

    /// Whether a counter that is a Python integer, if there is one, can still be set without running Python code.
    pub(super) fn python_counter_is_plain(&self, py: Python<'_>) -> bool {
        let Some(name) = self.python_counter else { return true };
        // counting replaces this object, at a time when no Python code may run any more
        let is_number =
            |value: Option<Bound<'_, PyAny>>| value.is_none_or(|value| value.is_exact_instance_of::<PyInt>());
        let is_plain = |dict: &Bound<'_, PyDict>| has_plain_keys(dict) && dict.get_item(name).is_ok_and(is_number);
        [&self.fresh, &self.entry].into_iter().flatten().all(|dict| is_plain(dict.bind(py)))
    }

    /// Describes the counters again; `false` if more than pointers has changed.
    pub(super) fn describe_counters_again(&mut self, py: Python<'_>, torch: &Torch) -> bool {
        let mut same = true;
        for (object, memory) in self.scalars.iter().zip(&mut self.scalar_memory) {
            let (Some(object), Some(memory)) = (object, memory) else { continue };
            match torch.describe_count(object.bind(py)) {
                Ok(now)
                    if (now.memory.dtype, now.memory.integer, now.memory.len) == (memory.dtype, memory.integer, 1) =>
                {
                    *memory = now.memory;
                }
                _ => same = false,
            }
        }
        same
    }
}
