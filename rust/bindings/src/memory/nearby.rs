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
const ITEMS_AHEAD: usize = 4;

/// Of more lines of one parameter most would wait for their turn.
const MOST_LINES: usize = 96;
/// The bytes of a cache line.
const LINE: usize = 64;

/// torch's tensor object begins with its virtual table, reference counts, storage and, for a parameter, what autograd
/// knows of it, where `.grad` is.
const STORAGE_WORD: usize = 2;
const AUTOGRAD_WORD: usize = 3;
/// Its version counter, another object.
const VERSION_WORD: usize = 5;

/// Where the objects of parameters lie, in the order of a step.
#[derive(Debug, Default)]
pub(crate) struct Nearby {
    /// The cache lines that looking a parameter up touches, each once, parameter after parameter.
    lines: Vec<usize>,
    /// Where those of each parameter end.
    ends: Vec<usize>,
    /// What counting the version of each parameter touches.
    versions: Vec<[usize; 3]>,
}

impl Nearby {
    /// Notes where the objects of the next parameter lie: its entry in `optimizer.state`, and its tensors, it first.
    pub(crate) fn push<'a, 'py: 'a>(
        &mut self,
        torch: &Torch,
        entry: Option<&Bound<'py, PyDict>>,
        tensors: impl Iterator<Item = (&'a Bound<'py, PyAny>, Memory)>,
    ) {
        let mut addresses = Vec::new();
        let mut add = |object: usize, lines: usize| addresses.extend((0..lines).map(|line| object + line * LINE));
        if let Some(entry) = entry {
            add(entry.as_ptr() as usize, 1);
            add(table_of(entry), 3);
        }
        let mut of_version = None;
        for (i, (object, memory)) in tensors.enumerate() {
            let words = torch.words(object, [STORAGE_WORD, AUTOGRAD_WORD, VERSION_WORD]);
            let Some((tensor, [storage, autograd, version])) = words else { continue };
            add(object.as_ptr() as usize, 1);
            // torch's tensor object is three cache lines long, its storage object two
            add(tensor, 3);
            add(storage, 2);
            if i == 0 {
                add(autograd, 2);
                of_version = Some([object.as_ptr() as usize, tensor + size_of::<usize>() * VERSION_WORD, version]);
            }
            if memory.len == 1 {
                add(memory.interval().0, 1); // a counter is read when it is looked up
            }
        }
        addresses.iter_mut().for_each(|address| *address -= *address % LINE);
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MOST_LINES);
        self.lines.append(&mut addresses);
        self.ends.push(self.lines.len());
        self.versions.push(of_version.unwrap_or_default());
    }

    /// Asks for all that looking up a parameter soon after the `k`-th touches to be brought near: into the second-level
    /// cache, since of so many lines at a time most would wait for a place in the queue of the first.
    #[inline]
    pub(crate) fn prefetch_after(&self, k: usize) {
        let Some(&[begin, end]) = self.ends.get(k + ITEMS_AHEAD - 1..).and_then(<[usize]>::first_chunk) else { return };
        self.lines[begin..end].iter().copied().for_each(prefetch_far_address);
    }

    /// What counting the versions of parameters touches, so many at a time.
    pub(crate) fn versions(&self, at_a_time: usize) -> impl Iterator<Item = &[[usize; 3]]> {
        self.versions.chunks(at_a_time)
    }
}
