//! Finding the states of parameters in `optimizer.state`.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ptr::null_mut;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::memory::keys::has_plain_keys;
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

/// Where in a dict an entry was found: what `PyDict_Next` is to begin with to come upon it again. Another place, or one
/// beyond the dict's end, leads to another key, or to none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place(ffi::Py_ssize_t);

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
        let (mut key, mut value, mut next) = (null_mut(), null_mut(), 0);
        loop {
            let place = Place(next);
            // SAFETY: a dict, and three locals to be written. The entry is borrowed from the dict, which is not changed
            // before a reference to it is made.
            unsafe {
                if ffi::PyDict_Next(state.as_ptr(), &raw mut next, &raw mut key, &raw mut value) == 0 {
                    return;
                }
                let value = Bound::from_borrowed_ptr(state.py(), value).unbind();
                self.order.push(Entry { key: key as usize, value, place });
            }
        }
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

/// The entry at a place, if it is a dict and that of `param`.
///
/// # Safety
/// `state` is not changed while the entry is used.
#[inline]
pub(crate) unsafe fn entry_at<'py>(
    state: &Bound<'py, PyDict>,
    Place(mut next): Place,
    param: &Bound<'py, PyAny>,
) -> Option<Borrowed<'py, 'py, PyDict>> {
    let (mut key, mut value) = (null_mut(), null_mut());
    // SAFETY: a dict, a number that `PyDict_Next` compares with the dict's length, and two locals to be written. The
    // entry is borrowed from the dict, as the contract allows.
    unsafe {
        let found = ffi::PyDict_Next(state.as_ptr(), &raw mut next, &raw mut key, &raw mut value) != 0;
        let is_that = found && std::ptr::eq(key, param.as_ptr());
        if is_that { Borrowed::from_ptr(state.py(), value).cast::<PyDict>().ok() } else { None }
    }
}

/// The values under `keys` in a dict of which they are most of the keys, null for those it lacks. Runs no Python code.
///
/// # Safety
/// `keys` are strings, and live. The dict is not changed while the values are used.
#[inline]
pub(crate) unsafe fn values_under<const N: usize>(
    entry: Borrowed<'_, '_, PyDict>,
    keys: &[*mut ffi::PyObject],
) -> [*mut ffi::PyObject; N] {
    let mut values = [null_mut(); N];
    let (mut key, mut value, mut next, mut found) = (null_mut(), null_mut(), 0, 0);
    // SAFETY: a dict, and three locals to be written; what is looked up is borrowed, as the contract allows. Looking a
    // string up raises nothing.
    unsafe {
        // names are mostly the very objects that are asked for: walking compares addresses, and needs no hashes
        while found < keys.len() && ffi::PyDict_Next(entry.as_ptr(), &raw mut next, &raw mut key, &raw mut value) != 0 {
            if let Some(k) = keys.iter().position(|known| std::ptr::eq(*known, key)) {
                values[k] = value;
                found += 1;
            }
        }
        // other keys than strings may run code when they are compared with: of such a dict nothing is told
        if found < keys.len() && has_plain_keys(&entry) {
            for (value, key) in values.iter_mut().zip(keys).filter(|(value, _)| value.is_null()) {
                *value = ffi::PyDict_GetItem(entry.as_ptr(), *key);
            }
        }
    }
    values
}
