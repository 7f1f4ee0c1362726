//! Whether memory that is written overlaps any other, for steps that look once and keep nothing.

use crate::memory::stream::Memory;

/// Memory that is read or written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    start: usize,
    end: usize,
    written: bool,
}

impl Span {
    pub(crate) fn read(memory: &Memory) -> Self {
        let (start, end) = memory.interval();
        Self { start, end, written: false }
    }

    pub(crate) fn written(memory: &Memory) -> Self {
        Self { written: true, ..Self::read(memory) }
    }
}

/// Whether memory that is written overlaps any other.
pub(crate) fn clash(spans: &mut [Span]) -> bool {
    spans.sort_unstable();
    let (mut read_to, mut written_to) = (0, 0);
    spans.iter().filter(|span| span.start < span.end).any(|span| {
        let meets = span.start < written_to || (span.written && span.start < read_to);
        let reach = if span.written { &mut written_to } else { &mut read_to };
        *reach = span.end.max(*reach);
        meets
    })
}
