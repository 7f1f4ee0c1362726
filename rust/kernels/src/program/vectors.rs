//! So many elements at a time: what instructions read and write as a whole.
#![allow(unsafe_code)]

use std::cell::Cell;

/// Elements that are read and written as a whole. The same ones may be several operands of an instruction, and its
/// result: hence the cell.
pub(super) type Vector<A, const W: usize> = Cell<[A; W]>;

/// Elements that are only read, in the form in which instructions take operands. To copy them into a tile first would
/// cost a light program a third of its time.
///
/// # Safety
/// Nothing may be written to the vectors that are returned.
#[inline(always)]
pub(super) unsafe fn to_read<A: Copy, const W: usize>(elements: &[[A; W]]) -> &[Vector<A, W>] {
    let first: *const Cell<[A; W]> = elements.as_ptr().cast();
    // SAFETY: a `Cell` lies in memory as what it holds does, so these are as many vectors at the same place, for the
    // same lifetime. That they are not written to is the caller's part.
    unsafe { std::slice::from_raw_parts(first, elements.len()) }
}
