//! Finding the states of parameters in `optimizer.state`.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::item::Reason;

/// `optimizer.state` as an identity map: `state[p]` would cost a call of `Tensor.__hash__` for every parameter, and
/// insert missing entries.
#[derive(Default)]
pub(crate) struct StateMap {
    /// (address of the key, entry), in the dict's own order.
    order: Vec<(usize, Py<PyAny>)>,
    /// Address of a key -> its place, as of some step: proved against `order` when used.
    places: HashMap<usize, usize>,
    next: usize,
}

impl StateMap {
    pub(crate) fn read(&mut self, state: &Bound<'_, PyDict>) {
        self.order.clear();
        self.next = 0;
        self.order.extend(state.iter().map(|(key, entry)| (key.as_ptr() as usize, entry.unbind())));
    }

    /// The entry of `param`, if it has one. Parameters are mostly asked for in the order of the dict.
    pub(crate) fn entry(&mut self, py: Python<'_>, param: &Bound<'_, PyAny>) -> Result<Option<Py<PyDict>>, Reason> {
        let address = param.as_ptr() as usize;
        let holds = |place: usize| self.order.get(place).is_some_and(|(key, _)| *key == address);
        let place = if holds(self.next) {
            self.next
        } else {
            if !self.places.get(&address).is_some_and(|&place| holds(place)) {
                let Some(place) = self.order.iter().position(|(key, _)| *key == address) else { return Ok(None) };
                // one absence proves nothing about the others: index everything once
                self.places.clear();
                self.places.extend(self.order.iter().enumerate().map(|(place, (key, _))| (*key, place)));
                debug_assert_eq!(self.places.get(&address), Some(&place));
            }
            self.places[&address]
        };
        self.next = place + 1;
        match self.order[place].1.bind(py).cast::<PyDict>() {
            Ok(entry) => Ok(Some(entry.clone().unbind())),
            Err(_) => Err("its entry in optimizer.state is no dict".into()),
        }
    }

    /// Where the entry that was asked for last was found.
    pub(crate) fn last_place(&self) -> u32 {
        self.next.saturating_sub(1) as u32
    }

    /// The entry at a place, if it is that of `param`.
    pub(crate) fn at<'py>(
        &self,
        py: Python<'py>,
        place: usize,
        param: &Bound<'_, PyAny>,
    ) -> Option<Bound<'py, PyDict>> {
        let (key, entry) = self.order.get(place)?;
        if *key != param.as_ptr() as usize {
            return None;
        }
        entry.bind(py).cast::<PyDict>().ok().cloned()
    }

    pub(crate) fn forget(&mut self) {
        self.order.clear();
    }
}
