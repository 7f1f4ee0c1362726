//! Which threads run a step.
//!
//! With torch in the process its own pool runs steps: a second one would fight with its spinning workers, and
//! `torch.set_num_threads` is honoured for free. Without torch, rayon's. A forked child inherits neither pool's threads
//! (torch's OpenMP pool hangs there), so it steps on the calling thread.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use libloading::Library;
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

type ParallelFn = unsafe extern "C" fn(i64, i64, *mut c_void);
type ParallelForFn = unsafe extern "C" fn(i64, i64, i64, ParallelFn, *mut c_void) -> c_int;
type GetNumThreadsFn = unsafe extern "C" fn(*mut u32) -> c_int;

/// torch's own pool, through the stable C functions of `libtorch_cpu`.
struct TorchPool {
    parallel_for: ParallelForFn,
    get_num_threads: GetNumThreadsFn,
    /// Keeps the functions loaded.
    library: Library,
}

static TORCH: OnceLock<Option<TorchPool>> = OnceLock::new();
/// Asking the system takes microseconds. 0: not asked yet. (No lock: a forked child might find it held.)
static PROCESSORS: AtomicUsize = AtomicUsize::new(0);
/// 0: follow torch, or the number of processors.
static WANTED: AtomicUsize = AtomicUsize::new(0);
/// The process that may use pools; 0 before the module is set up.
static HOME: AtomicU32 = AtomicU32::new(0);

/// Remembers the process, so that forked children are recognised.
pub(crate) fn remember_home() {
    HOME.store(std::process::id(), Ordering::Relaxed);
}

/// Uses the pool of the torch library at `path` from now on, if it offers one.
pub(crate) fn open(path: &str) -> bool {
    TORCH.get_or_init(|| TorchPool::open(path)).is_some()
}

/// torch's library, if it was found.
pub(crate) fn torch_library() -> Option<&'static Library> {
    TORCH.get()?.as_ref().map(|torch| &torch.library)
}

/// Sets how many threads a step may use; the result does not depend on it.
///
/// Args:
///     n: a positive number, or None: as many as torch uses, without torch as many as there are processors
///         (default: None). More than torch uses do not come from torch's pool, and may wait for its threads.
///
/// Raises:
///     TypeError: for something that is no integer.
///     ValueError: for a number below one.
///
/// Example:
///     >>> import oxistep
///     >>> oxistep.set_num_threads(1)
///     >>> oxistep.get_num_threads()
///     1
///     >>> oxistep.set_num_threads(None)
#[pyfunction]
#[pyo3(signature = (n=None))]
pub(crate) fn set_num_threads(n: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    let n = match n {
        None => 0,
        Some(n) => {
            let expected = "n: expected a positive number of threads or None (follow torch), got";
            match n.extract::<i64>() {
                Ok(number) if number > 0 => number as usize,
                Err(error) if error.is_instance_of::<PyTypeError>(n.py()) => {
                    return Err(PyTypeError::new_err(format!("{expected} {}", n.get_type().qualname()?)));
                }
                _ => return Err(PyValueError::new_err(format!("{expected} {}", n.str()?))),
            }
        }
    };
    WANTED.store(n, Ordering::Relaxed);
    Ok(())
}

/// How many threads a large step uses now; a small one stays on the thread that calls.
///
/// Returns:
///     int: what `set_num_threads` was given; else the number of torch's threads, if the optimizers of `oxistep.optim`
///     are loaded; else that of processors.
///
/// Example:
///     >>> import oxistep
///     >>> oxistep.get_num_threads() >= 1
///     True
#[pyfunction]
pub(crate) fn get_num_threads() -> usize {
    match WANTED.load(Ordering::Relaxed) {
        0 => match TORCH.get() {
            Some(Some(torch)) => torch.num_threads(),
            _ => processors(),
        },
        n => n,
    }
}

fn processors() -> usize {
    match PROCESSORS.load(Ordering::Relaxed) {
        0 => {
            let n = std::thread::available_parallelism().map_or(1, usize::from);
            PROCESSORS.store(n, Ordering::Relaxed);
            n
        }
        n => n,
    }
}

/// Calls `f` with the pool for a step.
pub(crate) fn with_pool<R>(f: impl FnOnce(&dyn Pool) -> R) -> R {
    if std::process::id() != HOME.load(Ordering::Relaxed) {
        return f(&Serial);
    }
    match TORCH.get() {
        // torch's pool gives at most its own number of threads; asking for more falls back on rayon
        Some(Some(torch)) if get_num_threads() <= torch.num_threads() => f(torch),
        _ => f(&Rayon { threads: get_num_threads() }),
    }
}

impl TorchPool {
    fn open(path: &str) -> Option<Self> {
        // SAFETY: torch has loaded this very library and run its initialisers; opening it again only finds it. The
        // three symbols have had these signatures since torch 2.10, where torch's stable ABI begins.
        unsafe {
            #[cfg(unix)]
            let library: Library = {
                use libloading::os::unix;
                const RTLD_NOLOAD: c_int = if cfg!(target_os = "macos") { 0x10 } else { 0x4 };
                unix::Library::open(Some(path), unix::RTLD_LAZY | RTLD_NOLOAD).ok()?.into()
            };
            #[cfg(not(unix))]
            let library = Library::new(path).ok()?;
            let parallel_for = *library.get::<ParallelForFn>(b"torch_parallel_for\0").ok()?;
            let get_num_threads = *library.get::<GetNumThreadsFn>(b"torch_get_num_threads\0").ok()?;
            Some(Self { parallel_for, get_num_threads, library })
        }
    }

    fn num_threads(&self) -> usize {
        let mut n = 1;
        // SAFETY: the function writes a count to the local that the pointer names.
        let failed = unsafe { (self.get_num_threads)(&raw mut n) } != 0;
        if failed { 1 } else { n as usize }
    }
}

impl Pool for TorchPool {
    fn threads(&self) -> usize {
        get_num_threads()
    }

    fn fork_join(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        unsafe extern "C" fn call(begin: i64, end: i64, context: *mut c_void) {
            // SAFETY: the context is the address of the `&dyn Fn` below, which outlives the fork-join. By the
            // contract of `fork_join` the task does not panic, so nothing unwinds into C.
            let task = unsafe { *context.cast::<&(dyn Fn(usize) + Sync)>() };
            (begin..end).for_each(|i| task(i as usize));
        }
        let context: *const &(dyn Fn(usize) + Sync) = &raw const task;
        // SAFETY: the callback and its context have the types that `call` expects, and torch returns only when every
        // range has been run. With grain 1 it hands out at most n ranges.
        let failed = unsafe { (self.parallel_for)(0, n as i64, 1, call, context.cast_mut().cast()) } != 0;
        if failed {
            // torch reports an exception of its own before any range was started: do the work here
            (0..n).for_each(task);
        }
    }
}
