//! A walk over all chunks of a step, which threads share.

use super::chunk::Chunk;
use crate::chunks::{PLACES_AHEAD, recycled};
use crate::formats::SliceMut;
use crate::pool::{Panic, Pool, for_each};

/// Memory for walks, empty between them.
#[derive(Debug, Default)]
pub(super) struct Walk {
    work: Vec<Work<'static, 'static>>,
    /// Where each of the streams begins: the list itself may be another thread's.
    addresses: Vec<usize>,
}

/// A chunk with what it writes.
#[derive(Debug)]
struct Work<'r, 'a> {
    chunk: &'r Chunk<'a>,
    written: &'r mut [SliceMut<'a>],
}

impl Walk {
    /// Calls `run` with each chunk, its number and what it writes; chunks that come next are prefetched.
    ///
    /// # Errors
    /// The payload of a panic in `run`.
    pub(super) fn each<'a>(
        &mut self,
        pool: &dyn Pool,
        chunks: &[Chunk<'a>],
        mut streams: &mut [SliceMut<'a>],
        run: impl Fn(usize, &Chunk<'a>, &mut [SliceMut<'a>]) + Sync,
    ) -> Result<(), Panic> {
        let Self { work, addresses } = self;
        addresses.clear();
        addresses.extend(streams.iter().map(SliceMut::address));
        let mut items: Vec<Work<'_, 'a>> = recycled(std::mem::take(work));
        items.extend(chunks.iter().map(|chunk| {
            let (written, rest) = std::mem::take(&mut streams).split_at_mut(chunk.written as usize);
            streams = rest;
            Work { chunk, written }
        }));
        let addresses = addresses.as_slice();
        let done = for_each(
            pool,
            &mut items,
            |work| work.chunk.cost(),
            |i, Work { chunk, written }| {
                if let Some(ahead) = chunks.get(i + PLACES_AHEAD) {
                    ahead.prefetch(
                        addresses[ahead.first as usize..][..ahead.written as usize].iter().copied(),
                        u32::MAX,
                    );
                }
                run(i, chunk, written);
            },
        );
        *work = recycled(items);
        done
    }
}
