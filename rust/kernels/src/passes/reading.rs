//! Tensors that are read: cut into parts of fixed size, which threads share, with what was found in each.

use crate::chunks::{CHUNK, PLACES_AHEAD, SERIAL, recycled};
use crate::formats::{Element, Slice};
use crate::layout::Layout;
use crate::pool::{Panic, Pool, Serial, for_each};
use crate::simd::prefetch_address;

/// A part of one tensor, and what came of it.
#[derive(Debug)]
pub(super) struct Part<'a, R> {
    pub(super) elements: Slice<'a>,
    /// Where the elements lie if not one after the other: the first stream of the layout.
    layout: Option<&'a Layout>,
    /// Elements, in walking order.
    range: (usize, usize),
    /// Where a part a few places on begins, to prefetch it: many small ones lie anywhere.
    next: usize,
    pub(super) found: R,
}

/// Many tensors: filled, read, and emptied for reuse without giving memory back.
#[derive(Debug, Default)]
pub(super) struct Reading<'a, R> {
    /// Tensor after tensor, each from its beginning.
    pub(super) parts: Vec<Part<'a, R>>,
    pub(super) elements: usize,
}

impl<'a, R: Default + Send> Reading<'a, R> {
    /// Adds a tensor; with a layout, the elements that its first stream walks over.
    ///
    /// # Panics
    /// If the slice is too short for the layout.
    #[inline]
    pub(super) fn push(&mut self, elements: Slice<'a>, layout: Option<&'a Layout>) {
        if let Some(layout) = layout {
            assert!(layout.extent(0).is_some_and(|extent| extent <= elements.len()), "slice too short for its layout");
        }
        let len = layout.map_or(elements.len(), Layout::len);
        self.elements += len;
        let mut first = 0;
        while first < len {
            let end = if len - first > CHUNK + CHUNK / 2 { first + CHUNK } else { len };
            if let Some(before) = self.parts.len().checked_sub(PLACES_AHEAD) {
                self.parts[before].next = elements.address();
            }
            let (next, found) = (elements.address(), R::default());
            self.parts.push(Part { elements, layout, range: (first, end), next, found });
            first = end;
        }
    }

    /// Looks at all parts.
    ///
    /// # Errors
    /// The payload of a panic in a kernel, which would be a defect of this crate.
    #[inline]
    pub(super) fn run(&mut self, pool: &dyn Pool, find: impl Fn(&Part<'a, R>) -> R + Sync) -> Result<(), Panic> {
        let pool = if self.elements < SERIAL { &Serial } else { pool };
        // a fixed share per part stands for what it costs to take one up
        let cost = |part: &Part<'_, R>| part.range.1 - part.range.0 + 64;
        for_each(pool, &mut self.parts, cost, |_, part| {
            prefetch_address(part.next);
            part.found = find(part);
        })
    }

    /// Empties it, keeping its memory for tensors of any lifetime.
    pub(super) fn recycle<'b>(self) -> Reading<'b, R> {
        Reading { parts: recycled(self.parts), elements: 0 }
    }
}

impl<R> Part<'_, R> {
    /// Calls `take` with its elements, which are among `x`: all of them where they lie one after the other, else
    /// gathered, so many at a time.
    #[inline]
    pub(super) fn each<E: Element, const TILE: usize>(&self, x: &[E], mut take: impl FnMut(&[E])) {
        let (first, end) = self.range;
        let Some(layout) = self.layout else { return take(&x[first..end]) };
        let mut tile = [E::default(); TILE];
        for start in (first..end).step_by(TILE) {
            let n = TILE.min(end - start);
            layout.walk(0, start, n, |i, at| tile[i] = x[at]);
            take(&tile[..n]);
        }
    }
}
