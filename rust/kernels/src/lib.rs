//! The update rules of oxistep's optimizers.
//!
//! This crate knows nothing of Python or torch: it takes slices and changes them. What it promises:
//!
//! - A rule's formula is written once, for one element, in the file named after the optimizer (`rules/`). It does not
//!   know threads, chunks, processors or storage types; [`driver`] does.
//! - The same bits for any number of threads and any SIMD level: the source decides where a multiply-add is fused, and
//!   no operation is approximate.
//! - No allocation in the steady state, no temporary the size of a tensor, no panic in a formula.
//! - `unsafe` stands only in `simd.rs` (running code compiled for a processor feature that was detected, prefetching,
//!   the denormal mode), `simd/halves.rs` (conversions by the processor), `driver/streaming.rs` (writing past the
//!   caches), `program/vectors.rs` and its one caller `program/machine.rs` (gradients as operands that are only read)
//!   and `pool.rs` (handing the items of a slice to several threads).

pub mod arithmetic;
mod chunks;
pub mod compact;
mod conversions;
pub mod driver;
mod factored;
#[cfg(feature = "faults")]
pub mod fault;
#[cfg(not(feature = "faults"))]
mod fault;
pub mod formats;
mod lanes;
mod layout;
pub mod muon;
pub mod overlap;
mod passes;
pub mod pool;
pub mod probe;
pub mod program;
pub mod rule;
pub mod rules;
pub mod simd;
mod sync;
pub mod vector;

pub use driver::{SparseRows, Step, Tensors};
pub use formats::{Slice, SliceMut, bf16, f16};
pub use layout::Layout;
pub use passes::{change, norm, statistics};
pub use rule::{Gradients, Hyperparameters, MAX_SCALARS, MAX_STATES, Precision, Rule, STREAMS, Scalars, StateKind};
pub use rules::{AnyRule, Constants, Kind};
