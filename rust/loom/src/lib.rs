//! The kernels' pool (its very source) on loom's atomics and threads: every order of their steps is tried, weak memory
//! included, and an item that two threads touch at once is an error.
#![cfg(test)]

#[allow(dead_code, unreachable_pub)]
#[path = "../../kernels/src/pool.rs"]
mod pool;

/// What the pool takes its atomics and locks from.
mod sync {
    pub(crate) use loom::sync::Mutex;
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};
}

mod fault {
    /// Stands in for the place where a test makes a worker panic.
    pub(crate) fn at_work() {}
}

mod simd {
    /// Stands in for the processor's: a worker runs what it is given.
    #[derive(Clone, Copy)]
    pub(crate) struct DenormalMode;

    impl DenormalMode {
        pub(crate) fn of_this_thread() -> Self {
            Self
        }

        pub(crate) fn within<R>(self, f: impl FnOnce() -> R) -> R {
            f()
        }
    }
}

mod model {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use loom::cell::UnsafeCell;

    use super::pool::{Pool, for_each};

    /// Threads of loom's, made for each fork-join.
    struct Threads(usize);

    impl Pool for Threads {
        fn threads(&self) -> usize {
            self.0
        }

        fn fork_join(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
            // SAFETY: the threads are joined before this function returns, so they do not outlive the task.
            let task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
            let others: Vec<_> = (1..n).map(|i| loom::thread::spawn(move || task(i))).collect();
            task(0);
            others.into_iter().for_each(|other| other.join().unwrap());
        }
    }

    /// What it costs, and how often it was met: loom sees every access.
    struct Item(usize, UnsafeCell<u32>);

    // SAFETY: that no two threads touch one at once is what loom finds out.
    unsafe impl Send for Item {}

    fn count(item: &Item) {
        // SAFETY: as above.
        item.1.with_mut(|count| unsafe { *count += 1 });
    }

    fn counts(items: &[Item]) -> Vec<u32> {
        // SAFETY: as above.
        items.iter().map(|item| item.1.with(|count| unsafe { *count })).collect()
    }

    fn items(costs: &[usize]) -> Vec<Item> {
        costs.iter().map(|&cost| Item(cost, UnsafeCell::new(0))).collect()
    }

    /// Runs the model in every order in which threads are interrupted so often at most, and tells how many there were.
    fn orders(interruptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) -> usize {
        let tried = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tried);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = interruptions;
        builder.check(move || {
            count.fetch_add(1, Ordering::SeqCst);
            model();
        });
        tried.load(Ordering::SeqCst)
    }

    #[test]
    fn each_item_is_met_once_in_any_order_of_threads() {
        // empty: as many interruptions as there may be
        let few = std::env::var("OXISTEP_LOOM_INTERRUPTIONS").unwrap_or_default().parse().ok();
        for (threads, costs, interruptions) in
            [(2, &[1, 1][..], None), (2, &[5, 1, 1], None), (2, &[0, 0, 9], None), (3, &[1, 1, 1], few)]
        {
            let tried = orders(interruptions, move || {
                let mut items = items(costs);
                let done = for_each(&Threads(threads), &mut items, |item| item.0, |_, item| count(item));
                assert!(done.is_ok());
                assert!(counts(&items).iter().all(|&count| count == 1));
            });
            println!("{threads} threads, items of {costs:?}: {tried} orders");
            assert!(tried > 20);
        }
    }

    #[test]
    fn a_panic_comes_back_in_any_order_of_threads() {
        let tried = orders(None, || {
            let mut items = items(&[1, 1, 1]);
            let work = |i: usize, item: &mut Item| {
                count(item);
                if i == 1 {
                    std::panic::resume_unwind(Box::new("on purpose"));
                }
            };
            let done = for_each(&Threads(2), &mut items, |_| 1, work);
            assert_eq!(done.unwrap_err().downcast_ref(), Some(&"on purpose"));
            assert!(counts(&items).iter().all(|&count| count <= 1));
            assert_eq!(counts(&items)[1], 1);
        });
        println!("{tried} orders");
        assert!(tried > 5);
    }

    /// loom would see what it is here to see.
    #[test]
    #[should_panic(expected = "Causality violation")]
    fn an_item_that_two_threads_touch_is_seen() {
        orders(None, || {
            let item = Item(1, UnsafeCell::new(0));
            let shared = std::ptr::from_ref(&item) as usize;
            // SAFETY: none, on purpose: both threads write it.
            Threads(2).fork_join(2, &|_| count(unsafe { &*(shared as *const Item) }));
        });
    }
}
