//! What a step reads and writes for one parameter: whether it fits together, and how it is cut.

use crate::formats::{Format, Refused, Slice, SliceMut};
use crate::layout::Layout;

/// What a step reads and writes for one parameter. Without a layout, element i of each belongs together.
#[derive(Debug)]
pub struct Tensors<'a, S> {
    /// The parameter.
    pub param: SliceMut<'a>,
    /// Its gradient.
    pub grad: Slice<'a>,
    /// Its states, in the order of the rule: anything that yields as many of them as it keeps.
    pub states: S,
    /// Where the elements lie if not one after the other; its streams are parameter, gradient, states.
    pub layout: Option<&'a Layout>,
}

/// The place in a layout of the stream that is written as the `k`-th: the gradient comes second there.
#[inline]
pub(super) fn in_layout(k: usize) -> usize {
    if k == 0 { 0 } else { k + 1 }
}

/// Where the slice of a written stream, cut before element `start`, begins in the slice that the layout speaks of.
pub(super) fn origin(layout: &Layout, s: usize, start: usize) -> usize {
    if start == 0 { 0 } else { layout.position(s, start) }
}

/// Whether streams, first those that are written, have the same arithmetic, and are as many as a body with so many
/// states wants.
#[inline]
pub(super) fn check_types(written: &[SliceMut<'_>], grad: &Slice<'_>, states: Option<usize>) -> Result<(), Refused> {
    let is_double = grad.format().is_double();
    let fits = |format: Format| !format.is_code() && format.is_double() == is_double;
    if !fits(grad.format()) || !written.iter().all(|stream| fits(stream.format())) {
        return Err(Refused::Types);
    }
    if states.is_some_and(|states| written.len() == 1 + states) { Ok(()) } else { Err(Refused::States) }
}

/// The lengths of streams, which must reach as far as the layout, if there is one.
#[inline]
pub(super) fn check_lengths(
    written: &[SliceMut<'_>],
    grad: &Slice<'_>,
    layout: Option<&Layout>,
) -> Result<(), Refused> {
    let fits = match layout {
        None => written.iter().all(|stream| stream.len() == grad.len()),
        Some(layout) => {
            let reaches = |s: usize, len: usize| layout.extent(s).is_some_and(|extent| extent <= len);
            layout.streams() > written.len()
                && reaches(1, grad.len())
                && written.iter().enumerate().all(|(k, x)| reaches(in_layout(k), x.len()))
        }
    };
    if fits { Ok(()) } else { Err(Refused::Lengths) }
}

/// Cuts each of the last `n` streams at its own place: what lies before stays, the rest becomes `n` more.
pub(super) fn cut(streams: &mut Vec<SliceMut<'_>>, n: usize, at: impl Fn(usize) -> usize) {
    let first = streams.len() - n;
    for k in 0..n {
        let (head, tail) = std::mem::take(&mut streams[first + k]).split_at(at(k));
        streams[first + k] = head;
        streams.push(tail);
    }
}

/// Drops so many elements from the beginning of each stream.
pub(super) fn skip(streams: &mut [SliceMut<'_>], elements: usize) {
    streams.iter_mut().for_each(|stream| *stream = std::mem::take(stream).split_at(elements).1);
}
