//! Whether memory that is written overlaps any other: ranges of addresses, whose empty ones overlap nothing.

use oxistep_kernels::overlap::{Range, Written};

/// Whether no range that is written overlaps any other, written or read. Remembers in `known` what it sorted.
pub(crate) fn are_apart(
    known: &mut Written,
    written: impl Iterator<Item = Range>,
    read: impl Iterator<Item = Range>,
) -> bool {
    known.begin();
    written.enumerate().for_each(|(k, range)| known.add(k, range));
    if !known.conflicts().is_empty() {
        return false;
    }
    let mut apart = true;
    read.for_each(|range| known.meeting(range, &mut 0, |_| apart = false));
    apart
}

/// For each of so many items, whether one of its ranges overlaps another, of the same item or not, and one of the two
/// is written. `ranges` are given with their items, and with whether they are only read.
pub(crate) fn meeting(items: usize, ranges: impl Iterator<Item = (usize, bool, Range)> + Clone) -> Vec<bool> {
    let (mut meets, mut written) = (vec![false; items], Written::default());
    written.begin();
    ranges.clone().filter(|(_, is_read, _)| !is_read).for_each(|(k, _, range)| written.add(k, range));
    written.conflicts().iter().for_each(|&k| meets[k] = true);
    for (k, _, range) in ranges.filter(|(_, is_read, _)| *is_read) {
        written.meeting(range, &mut 0, |other| {
            meets[k] = true;
            meets[other] = true;
        });
    }
    meets
}

/// Two items that share memory which one of them writes; both may be the same. Pieces of memory are given with their
/// items, and with whether they are only read.
pub(crate) fn shared<I: Copy + Ord>(mut pieces: Vec<(Range, I, bool)>) -> Option<(I, I)> {
    pieces.sort_unstable();
    let (mut last_written, mut last_read) = (None, None); // (end, item)
    for ((start, end), item, is_read) in pieces {
        for (reach, other) in [last_written, if is_read { None } else { last_read }].into_iter().flatten() {
            if start < reach {
                return Some((item, other));
            }
        }
        let last = if is_read { &mut last_read } else { &mut last_written };
        *last = Some((end, item)).max(*last);
    }
    None
}
