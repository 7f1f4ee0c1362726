//! Steps over arrays that are under way without the interpreter, and the memory that they use.
//!
//! Other threads run Python code meanwhile, and may begin a step on the same memory. All of this is looked at and
//! changed with the interpreter held, by one thread at a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use oxistep_kernels::overlap::Range;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// How many there are: mostly none, and then there is nothing to compare.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static ACTIVE: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

/// What a step uses, sorted.
struct Memory {
    id: usize,
    written: Vec<Range>,
    read: Vec<Range>,
}

/// A step under way, until it is dropped.
pub(crate) struct Active(usize);

impl Active {
    /// Begins a step that uses these ranges, each given with whose it is, and with whether it is only read.
    pub(crate) fn begin(_py: Python<'_>, ranges: &(impl Iterator<Item = (usize, bool, Range)> + Clone)) -> Self {
        let sorted = |read: bool| {
            let own = ranges.clone().filter(|(_, is_read, (start, end))| *is_read == read && start < end);
            let mut list: Vec<Range> = own.map(|(_, _, range)| range).collect();
            list.sort_unstable();
            list
        };
        let (written, read) = (sorted(false), sorted(true));
        let mut active = lock();
        let id = active.iter().map(|memory| memory.id + 1).max().unwrap_or(0);
        COUNT.fetch_add(1, Ordering::Relaxed);
        active.push(Memory { id, written, read });
        Self(id)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut active = lock();
        if let Some(place) = active.iter().position(|memory| memory.id == self.0) {
            active.swap_remove(place);
            COUNT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// In a forked child: the threads whose steps these were do not exist.
pub(crate) fn forked(_py: Python<'_>) {
    lock().clear();
    COUNT.store(0, Ordering::Relaxed);
}

/// Whether there is none.
#[inline]
pub(crate) fn none(_py: Python<'_>) -> bool {
    COUNT.load(Ordering::Relaxed) == 0
}

/// Refuses memory that a step of another thread uses. Ranges are given with whose they are, which `name` tells, and
/// with whether they are only read.
#[inline]
pub(crate) fn check<'n>(
    _py: Python<'_>,
    ranges: impl Iterator<Item = (usize, bool, Range)>,
    name: impl Fn(usize) -> &'n str,
) -> PyResult<()> {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    let active = lock();
    for (i, is_read, range) in ranges {
        for memory in active.iter() {
            if meets(&memory.written, range) || (!is_read && meets(&memory.read, range)) {
                return Err(PyRuntimeError::new_err(format!(
                    "another thread is in a step that uses the memory of {}; nothing was updated. Hold a lock around \
                     step(), or give each thread arrays of its own",
                    name(i)
                )));
            }
        }
    }
    Ok(())
}

/// Whether one of sorted ranges meets another. They may overlap each other, so ends are in no order.
fn meets(sorted: &[Range], (start, end): Range) -> bool {
    let below = sorted.partition_point(|(first, _)| *first < end);
    start < end && sorted[..below].iter().any(|(_, reach)| start < *reach)
}

fn lock() -> std::sync::MutexGuard<'static, Vec<Memory>> {
    ACTIVE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
