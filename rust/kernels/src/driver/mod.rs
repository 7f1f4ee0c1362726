//! The loop of a step, element by element: tensors -> chunks -> threads -> SIMD level -> formula.
//!
//! [`Tensors`] (`tensors`, their storage types in `types`) are pushed to a [`Step`] (`push`), which cuts them into
//! chunks (`chunk`) of one flat list of streams, and runs these (`step`). A large step shares them among threads
//! (`pass`), a small one runs those of many small tensors together (`alike`, `one_by_one`). A chunk goes one of three
//! ways, its elements lying one after the other, in some rows (`rows`), or apart (`strided`, `gather`, `apart`). All
//! are sources (`source`) of streams that lie in one piece, to which a body is applied, the formula of a rule (`body`),
//! by the innermost loop (`sweep`, `streaming`); or a light one where elements lie. Streams that no loop is compiled
//! for are brought into tiles of `f32` (`decoded`), and so are those in fewer bytes (`compact`), but for a few
//! combinations that have loops of their own (`fused`). `measured` looks at what this does to each parameter.

mod alike;
mod apart;
mod bodies;
mod body;
mod chunk;
mod compact;
mod decoded;
mod finding;
mod fused;
mod gather;
mod measured;
mod one_by_one;
mod pass;
mod programmed;
mod push;
mod rows;
mod source;
mod step;
mod streaming;
mod strided;
pub(crate) mod sweep;
mod tensors;
mod types;

pub use crate::chunks::SERIAL;
pub use crate::formats::Refused;
pub use finding::Stopped;
pub use measured::{Measured, Moved};
pub use rows::SparseRows;
pub use step::Step;
pub use tensors::Tensors;
