//! Putting states that were made for a step where torch keeps them, and taking them out again if the step is not to be.

use pyo3::prelude::*;

use crate::fault;
use crate::step::item::Item;
use crate::step::plan::Plan;

impl Plan {
    /// Puts states made for this step where torch keeps them. If that fails, those already stored are taken out again.
    pub(super) fn store_fresh_states(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = optimizer.py();
        let state = optimizer.getattr(pyo3::intern!(py, "state"))?;
        let store = |item: &Item| {
            fault::point("store states")?;
            match (&item.fresh, &item.entry) {
                (Some(fresh), Some(entry)) => entry.bind(py).update(fresh.bind(py).as_mapping()),
                (Some(fresh), None) => state.set_item(&item.param, fresh),
                (None, _) => Ok(()),
            }
        };
        for (k, item) in self.items.iter().enumerate() {
            if let Err(error) = store(item) {
                self.take_out_fresh_states(optimizer, k + 1)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes the states made for the first `count` items out of `optimizer.state` again.
    pub(super) fn take_out_fresh_states(&self, optimizer: &Bound<'_, PyAny>, count: usize) -> PyResult<()> {
        let py = optimizer.py();
        let state = optimizer.getattr(pyo3::intern!(py, "state"))?;
        for item in &self.items[..count] {
            match (&item.fresh, &item.entry) {
                (Some(fresh), Some(entry)) => {
                    // an entry without states may hold `None` under their names
                    let had = item.nothing_under.as_ref().map(|keys| keys.bind(py));
                    for key in fresh.bind(py).keys() {
                        drop(match had.map_or(Ok(false), |keys| keys.contains(&key)) {
                            Ok(true) => entry.bind(py).set_item(key, py.None()),
                            _ => entry.bind(py).del_item(key),
                        });
                    }
                }
                (Some(_), None) => drop(state.del_item(&item.param)),
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// Sets counters that are Python integers to what they were, plus `more`.
    pub(super) fn set_python_counters(&self, py: Python<'_>, more: u64) -> PyResult<()> {
        for item in &self.items {
            let (Some(name), Some(entry)) = (item.python_counter, item.entry.as_ref().or(item.fresh.as_ref())) else {
                continue;
            };
            fault::point("counter")?;
            entry.bind(py).set_item(name, item.scalar_values.get(0) as u64 + more)?;
        }
        Ok(())
    }
}
