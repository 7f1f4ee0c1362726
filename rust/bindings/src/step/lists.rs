//! Lists of what a parameter has: short ones take no memory of their own.

use oxistep_kernels::{MAX_SCALARS, MAX_STATES, Precision, STREAMS};
use smallvec::SmallVec;

/// Something for each stream of a parameter: those of compiled rules take no memory of their own.
pub(crate) type Streams<T> = SmallVec<[T; STREAMS]>;
/// Something for each of its states.
pub(crate) type States<T> = SmallVec<[T; MAX_STATES]>;
/// Something for each of its counters.
pub(crate) type Counters<T> = SmallVec<[T; MAX_SCALARS]>;
/// The values of its counters, with the types in which their owner keeps them.
pub(crate) type Counted = Counters<(f64, Precision)>;
