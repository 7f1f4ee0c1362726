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
