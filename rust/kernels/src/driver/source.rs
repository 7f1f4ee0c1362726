//! Where loops take streams from.

use crate::formats::{Slice, SliceMut};

/// Streams of the same types whose elements lie one after the other.
pub(super) trait Source {
    /// Puts what comes next into `slots`, parameter first, and returns its gradient; `None`: nothing is left. Whoever
    /// calls owns the slots, and so alone says how many streams there can be.
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<Slice<'s>>;
}

/// A part of streams that lie in one piece.
pub(super) struct Flat<'c, 'a> {
    written: &'c mut [SliceMut<'a>],
    grad: Slice<'c>,
    /// Its first element and how many there are, until it is handed out.
    part: Option<(usize, usize)>,
}

impl<'c, 'a> Flat<'c, 'a> {
    pub(super) fn new(written: &'c mut [SliceMut<'a>], grad: Slice<'c>, start: usize, len: usize) -> Self {
        Self { written, grad, part: Some((start, len)) }
    }
}

impl Source for Flat<'_, '_> {
    #[inline]
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<Slice<'s>> {
        let (start, len) = self.part.take()?;
        slots.iter_mut().zip(&mut *self.written).for_each(|(slot, stream)| *slot = stream.part(start, len));
        Some(self.grad.part(start, len))
    }
}
