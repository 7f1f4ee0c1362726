//! Threads: handing the items of a slice to the workers of some pool, each item to exactly one.
#![allow(unsafe_code)]

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::fault;
use crate::simd::DenormalMode;
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// Something that runs a task on several threads.
pub trait Pool: Sync {
    /// How many threads a fork-join may use.
    fn threads(&self) -> usize;

    /// Calls `task(0)` to `task(n - 1)`, on at most `n` threads, and returns when all are done. `task` never panics.
    fn fork_join(&self, n: usize, task: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug)]
pub struct Serial;

impl Pool for Serial {
    fn threads(&self) -> usize {
        1
    }
    fn fork_join(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(task);
    }
}

/// Rayon's threads, of the pool that the caller stands in or the global one.
#[derive(Clone, Copy, Debug)]
pub struct Rayon {
    /// At most this many threads.
    pub threads: usize,
}

impl Pool for Rayon {
    fn threads(&self) -> usize {
        self.threads
    }
    fn fork_join(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        rayon::in_place_scope(|scope| {
            for i in 1..n {
                scope.spawn(move |_| task(i));
            }
            task(0);
        });
    }
}

/// What a panic carried.
pub type Panic = Box<dyn Any + Send>;

/// Calls `work` once for every item, with its place, on up to `pool.threads()` threads, and returns when all are done.
///
/// The items are cut into as many parts of equal `cost` as there are threads, in order, so that from step to step a
/// thread meets the same memory; a thread that is done with its part helps with the others. Workers take the caller's
/// denormal mode. A panic in `work` ends that worker's share, not the process: the first one is returned.
pub fn for_each<T: Send>(
    pool: &dyn Pool,
    items: &mut [T],
    cost: impl Fn(&T) -> usize,
    work: impl Fn(usize, &mut T) + Sync,
) -> Result<(), Panic> {
    let work = |index: usize, item: &mut T| {
        fault::at_work();
        work(index, item);
        fault::at_work();
    };
    let threads = pool.threads().min(items.len()).min(MAX_THREADS);
    if threads <= 1 {
        return catch_unwind(AssertUnwindSafe(|| items.iter_mut().enumerate().for_each(|(i, item)| work(i, item))));
    }

    let parts = cut(items, threads, cost);
    let shared = Shared { base: items.as_mut_ptr(), len: items.len(), items: PhantomData::<&mut [T]> };
    let mode = DenormalMode::of_this_thread();
    let first_panic: Mutex<Option<Panic>> = Mutex::new(None);

    pool.fork_join(threads, &|me| {
        let drain = || {
            for turn in 0..threads {
                let part = &parts.each[(me + turn) % threads];
                loop {
                    let index = part.next.fetch_add(1, Ordering::Relaxed);
                    if index >= part.end {
                        break;
                    }
                    // SAFETY: `index` is below the length that the items were cut with. The parts do not overlap and
                    // `fetch_add` gives each index out once, so this is the only reference to the item; the borrow
                    // of `items` outlives the fork-join, which returns when every worker has.
                    work(index, unsafe { shared.item(index) });
                }
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| mode.within(drain))) {
            first_panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(panic);
        }
    });
    match first_panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        None => Ok(()),
        Some(panic) => Err(panic),
    }
}

/// A slice whose items are given out to different threads.
struct Shared<'a, T> {
    base: *mut T,
    len: usize,
    items: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared reference gives access to items only through `item`, whose caller answers for giving each index to
// one thread; the items themselves may move between threads (`T: Send`).
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<T> Shared<'_, T> {
    /// # Safety
    /// `index` is below the length, and no other reference to that item lives.
    #[allow(clippy::mut_from_ref)] // the contract above is what makes it sound
    unsafe fn item(&self, index: usize) -> &mut T {
        debug_assert!(index < self.len);
        // SAFETY: in bounds and unaliased by the contract of this function.
        unsafe { &mut *self.base.add(index) }
    }
}

/// The most threads that share a step; more than any fork-join of this kind pays for.
pub const MAX_THREADS: usize = 128;

/// A range of items being given out. On a cache line of its own: every item taken writes it.
#[repr(align(64))]
struct Part {
    next: AtomicUsize,
    end: usize,
}

struct Parts {
    each: [Part; MAX_THREADS],
}

/// Cuts `items` into `n` consecutive parts of about equal cost.
fn cut<T>(items: &[T], n: usize, cost: impl Fn(&T) -> usize) -> Parts {
    let total: usize = items.iter().map(&cost).sum();
    let mut parts = Parts { each: std::array::from_fn(|_| Part { next: AtomicUsize::new(0), end: 0 }) };
    let (mut index, mut spent) = (0, 0);
    for (k, part) in parts.each.iter_mut().take(n).enumerate() {
        part.next = AtomicUsize::new(index);
        // an item belongs to the part in which its middle lies
        while index < items.len() && (k + 1 == n || 2 * spent + cost(&items[index]) <= 2 * total * (k + 1) / n) {
            spent += cost(&items[index]);
            index += 1;
        }
        part.end = index;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_met_once_whatever_the_costs() {
        for threads in [1, 2, 3, 8] {
            for costs in [vec![], vec![1], vec![0; 7], vec![5; 100], vec![1000, 1, 1, 1, 1, 1000, 3]] {
                let mut items: Vec<(usize, u32)> = costs.iter().map(|&cost| (cost, 0)).collect();
                for_each(&Rayon { threads }, &mut items, |item| item.0, |_, item| item.1 += 1).unwrap();
                assert!(items.iter().all(|item| item.1 == 1), "{threads} threads, {costs:?}");
            }
        }
    }

    #[test]
    fn parts_are_about_equal() {
        let items = [10; 64];
        let parts = cut(&items, 4, |&cost| cost);
        let ends: Vec<usize> = parts.each.iter().take(4).map(|part| part.end).collect();
        assert_eq!(ends, [16, 32, 48, 64]);
    }

    #[test]
    fn a_panic_is_caught_and_the_others_are_done() {
        let mut items = vec![0; 64];
        let panic = for_each(
            &Rayon { threads: 2 },
            &mut items,
            |_| 1,
            |_, item| {
                *item += 1;
                assert_eq!(*item, 1, "met twice");
            },
        );
        assert!(panic.is_ok());
        let mut items: Vec<usize> = (0..64).collect();
        let panic = for_each(
            &Rayon { threads: 2 },
            &mut items,
            |_| 1,
            |_, item| {
                assert_ne!(*item, 40, "on purpose");
                *item = 1000;
            },
        );
        assert!(panic.is_err());
        assert!(items.iter().filter(|&&item| item == 1000).count() >= 31);
    }
}
