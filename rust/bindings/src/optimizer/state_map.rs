//! Finding the states of parameters in `optimizer.state`.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::memory::python::{Place, each_entry};
use crate::memory::unfit::Reason;

/// `optimizer.state` as an identity map: `state[p]` would cost a call of `Tensor.__hash__` for every parameter, and
/// insert missing entries.
#[derive(Default)]
pub(crate) struct StateMap {
    /// In the dict's own order.
    order: Vec<Entry>,
    /// Address of a key -> its place, as of some step: proved against `order` when used.
    places: HashMap<usize, usize>,
    next: usize,
}

struct Entry {
    /// The address of the key.
    key: usize,
    value: Py<PyAny>,
    place: Place,
}

impl StateMap {
    pub(crate) fn read(&mut self, state: &Bound<'_, PyDict>) {
        self.order.clear();
        self.next = 0;
        each_entry(state, |key, value, place| self.order.push(Entry { key, value: value.unbind(), place }));
    }

    /// The entry of `param`, if it has one. Parameters are mostly asked for in the order of the dict.
    pub(crate) fn entry(&mut self, py: Python<'_>, param: &Bound<'_, PyAny>) -> Result<Option<Py<PyDict>>, Reason> {
        let address = param.as_ptr() as usize;
        let holds = |place: usize| self.order.get(place).is_some_and(|entry| entry.key == address);
        let place = if holds(self.next) {
            self.next
        } else {
            if !self.places.get(&address).is_some_and(|&place| holds(place)) {
                let Some(place) = self.order.iter().position(|entry| entry.key == address) else { return Ok(None) };
                // one absence proves nothing about the others: index everything once
                self.places.clear();
                self.places.extend(self.order.iter().enumerate().map(|(place, entry)| (entry.key, place)));
                debug_assert_eq!(self.places.get(&address), Some(&place));
            }
            self.places[&address]
        };
        self.next = place + 1;
        match self.order[place].value.bind(py).cast::<PyDict>() {
            Ok(entry) => Ok(Some(entry.clone().unbind())),
            Err(_) => Err("its entry in optimizer.state is no dict".into()),
        }
    }

    /// Where the entry that was asked for last was found.
    pub(crate) fn last_place(&self) -> Place {
        self.next.checked_sub(1).and_then(|last| self.order.get(last)).map_or(Place::default(), |entry| entry.place)
    }

    pub(crate) fn forget(&mut self) {
        self.order.clear();
    }
}
