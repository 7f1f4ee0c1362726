//! Bringing near what looking a parameter up will touch.
//!
//! Many small tensors lie anywhere, and waiting for one after the other is half of what their step costs. So the
//! addresses of their objects are noted when the list of parameters changes, and prefetched some items ahead. Nothing
//! else is done with them: one that no longer holds, or never was what it was taken for, costs nothing but its
//! prefetch.

use oxistep_kernels::simd::prefetch_far_address;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::memory::python::table_of;
use crate::memory::stream::Memory;
use crate::memory::torch::describe::Torch;

/// How many items ahead is prefetched what the last step touched.
pub(crate) const ITEMS_AHEAD: usize = 4;

/// Parameter, gradient, two states and a counter.
const TENSORS: usize = 5;
/// torch's tensor object begins with its virtual table, reference counts, storage and, for a parameter, what autograd
/// knows of it, where `.grad` is.
const STORAGE_WORD: usize = 2;
const AUTOGRAD_WORD: usize = 3;
/// Its version counter, another object.
const VERSION_WORD: usize = 5;

/// Where the objects of one parameter lie.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nearby {
    /// Its entry in `optimizer.state`, and that dict's table.
    entry: [usize; 2],
    autograd: usize,
    /// The number in a counter, which is read when it is looked up.
    counter: usize,
    /// The parameter's version counter.
    version: usize,
    /// The Python object, torch's tensor object and its storage object.
    tensors: [[usize; 3]; TENSORS],
}

impl Nearby {
    /// Notes where the objects of one parameter lie: its entry, and its tensors, itself first.
    pub(crate) fn of<'a, 'py: 'a>(
        torch: &Torch,
        entry: Option<&Bound<'py, PyDict>>,
        tensors: impl Iterator<Item = (&'a Bound<'py, PyAny>, Memory)>,
    ) -> Self {
        let mut nearby = Self::default();
        if let Some(entry) = entry {
            nearby.entry = [entry.as_ptr() as usize, table_of(entry)];
        }
        for (i, (place, (object, memory))) in nearby.tensors.iter_mut().zip(tensors).enumerate() {
            let words = torch.words(object, [STORAGE_WORD, AUTOGRAD_WORD, VERSION_WORD]);
            let Some((tensor, [storage, autograd, version])) = words else { continue };
            *place = [object.as_ptr() as usize, tensor, storage];
            if i == 0 {
                (nearby.autograd, nearby.version) = (autograd, version);
            }
            if memory.len == 1 {
                nearby.counter = memory.interval().0;
            }
        }
        nearby
    }

    /// What counting the parameter's version touches.
    #[inline]
    pub(crate) fn version(&self) -> [usize; 3] {
        let [object, tensor, _] = self.tensors[0];
        [object, tensor + size_of::<usize>() * VERSION_WORD, self.version]
    }

    /// Asks for all that looking the parameter up touches to be brought near: into the second-level cache, since of so
    /// many lines at a time most would wait for a place in the queue of the first.
    #[inline]
    pub(crate) fn prefetch(&self) {
        let [entry, table] = self.entry;
        let lines = [entry, table, table + 64, table + 128, self.autograd, self.autograd + 64, self.counter];
        lines.into_iter().for_each(prefetch_far_address);
        for [object, tensor, storage] in self.tensors.into_iter().take_while(|[object, ..]| *object != 0) {
            // torch's tensor object is three cache lines long, its storage object two
            let lines = [object, tensor, tensor + 64, tensor + 128, storage, storage + 64];
            lines.into_iter().for_each(prefetch_far_address);
        }
    }
}
