//! How tensors are cut, and when the pieces are shared out among threads.

/// Elements of a chunk: small enough to share a step evenly between threads, large enough that handing one out costs
/// nothing. A multiple of the cache line for every type.
pub(crate) const CHUNK: usize = 64 * 1024;
/// Elements of a chunk while a step has no more than [`MEDIUM`]: of large ones a thread would have too few for an even
/// share.
pub(crate) const SMALL_CHUNK: usize = CHUNK / 8;
pub(crate) const MEDIUM: usize = 1024 * 1024;
/// How many chunks ahead the beginnings of small tensors are prefetched.
pub(crate) const PLACES_AHEAD: usize = 4;
/// Below this many elements a step runs on the calling thread alone: a fork-join would cost more than it gains.
pub const SERIAL: usize = 128 * 1024;

/// An empty vector for items of another lifetime, with the memory of this one: collected from a vector of the same
/// layout, it keeps the allocation.
#[inline]
pub(crate) fn recycled<T, U>(mut from: Vec<T>) -> Vec<U> {
    const { assert!(size_of::<T>() == size_of::<U>() && align_of::<T>() == align_of::<U>()) };
    from.clear();
    from.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}
