//! Why something is left to torch, or to nobody.

use std::borrow::Cow;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// Why a parameter is left to torch, in words.
pub(crate) type Reason = Cow<'static, str>;

/// Why a tensor is left to torch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// A subclass or wrapper of Tensor, or no tensor at all.
    Class,
    /// Sparse, quantised, meta, freed: nothing that DLPack could describe.
    NoMemory,
    /// This torch describes tensors in a way that is not known here.
    Interface,
    /// Not in main memory.
    Device,
    /// Integer, complex, ...
    DType,
    /// A pointer that is no multiple of the element size.
    Misaligned,
    /// Lazily negated or conjugated (`is_neg`, `is_conj`).
    Lazy,
    /// It reaches beyond its storage, which has so many bytes. Nobody may touch such a tensor: no kernel, and not
    /// torch.
    Outside(usize),
}

impl Unfit {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Class => "is of a subclass of Tensor",
            Self::NoMemory => "has no plain memory (sparse, quantised, meta, freed, or inside a transform)",
            Self::Interface => "is described by a version of DLPack's exchange table that oxistep does not know",
            Self::Device => "is not on the CPU",
            Self::DType => "is of an integer, quantised or 8-bit dtype",
            Self::Misaligned => "is not aligned to its element size",
            Self::Lazy => "is a lazily negated or conjugated view",
            Self::Outside(_) => "reaches beyond its storage, which was resized",
        }
    }
}

/// The exception for a tensor that reaches beyond its storage of so many bytes.
pub(crate) fn outside(what: &str, bytes: usize) -> PyErr {
    PyRuntimeError::new_err(format!(
        "{what} reaches beyond its storage of {bytes} bytes, which was resized; nothing was updated"
    ))
}
