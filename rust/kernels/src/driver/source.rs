//! Where loops take tensors from.

use super::tensors::Tensors;

/// Tensors of the same types whose elements lie one after the other.
pub(super) trait Source {
    /// What comes next.
    fn next(&mut self) -> Option<Tensors<'_>>;
}

impl Source for Option<Tensors<'_>> {
    fn next(&mut self) -> Option<Tensors<'_>> {
        self.take()
    }
}
