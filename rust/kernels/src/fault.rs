//! A panic on demand in a running kernel, so that tests can see what it leaves behind. Only with the feature `faults`,
//! which no wheel that is given out has; without it nothing of this is compiled.

/// Called where an item of work begins and where it ends.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn at_work() {}

#[cfg(feature = "faults")]
pub use armed::*;

#[cfg(feature = "faults")]
mod armed {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    /// Beginnings and ends of items to go before one panics; 0: none does.
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    static FIRED: AtomicBool = AtomicBool::new(false);
    /// The thread that shall be spared.
    static SPARED: Mutex<Option<ThreadId>> = Mutex::new(None);

    /// From now on the `n`th beginning or end of an item panics; 0: none. With `elsewhere` only those on other threads
    /// than this one count, and this one waits for it.
    pub fn arm(n: usize, elsewhere: bool) {
        *SPARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = elsewhere.then(|| thread::current().id());
        FIRED.store(false, Ordering::SeqCst);
        LEFT.store(n, Ordering::SeqCst);
    }

    /// Whether it has happened since `arm`.
    pub fn fired() -> bool {
        FIRED.load(Ordering::SeqCst)
    }

    pub(crate) fn at_work() {
        if LEFT.load(Ordering::SeqCst) == 0 {
            return;
        }
        let spared = *SPARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if spared == Some(thread::current().id()) {
            // else this thread might take all the work before another has begun
            (0..10_000).take_while(|_| !fired()).for_each(|_| thread::sleep(Duration::from_millis(1)));
            return;
        }
        let due = LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) == Ok(1);
        if due {
            FIRED.store(true, Ordering::SeqCst);
            panic!("injected into a kernel");
        }
    }
}
