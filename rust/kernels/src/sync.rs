//! What the pool shares between threads. (rust/loom gives the pool a module of this name that tries every order.)

pub(crate) use std::sync::Mutex;
pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};
