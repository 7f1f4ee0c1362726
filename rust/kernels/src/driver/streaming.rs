//! Writing past the caches.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;

use crate::formats::Element;

/// Writes past the caches: memory that is overwritten whole need not be read first. What was written is in its place
/// once this is dropped, and stays borrowed until then.
pub(crate) struct Streaming<'a>(PhantomData<Cell<&'a ()>>); // a cell, so that 'a cannot be shortened

impl<'a> Streaming<'a> {
    /// Begins to.
    #[inline(always)]
    pub(crate) fn begin() -> Self {
        Self(PhantomData)
    }

    /// Copies `from` to `to`; by way of the caches where the processor cannot do else or `to` is not aligned for it.
    #[inline(always)]
    pub(crate) fn copy<T: Element, const N: usize>(&self, from: &[T; N], to: &'a mut [T; N]) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
            let vectors = size_of::<[T; N]>() / size_of::<__m128i>();
            const { assert!(size_of::<[T; N]>().is_multiple_of(size_of::<__m128i>())) };
            let (source, target) = (from.as_ptr().cast::<__m128i>(), to.as_mut_ptr().cast::<__m128i>());
            if target.is_aligned() {
                for i in 0..vectors {
                    // SAFETY: both arrays are exactly this many vectors long and, borrowed one shared and one not, do
                    // not overlap. The target is aligned, and borrowed for longer than this value lives: nobody
                    // reaches it before the fence in `drop`.
                    unsafe { _mm_stream_si128(target.add(i), _mm_loadu_si128(source.add(i))) };
                }
                return;
            }
        }
        *to = *from;
    }
}

impl Drop for Streaming<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: every x86-64 processor has this instruction, which orders writes and does nothing else.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_copies_wherever_it_begins() {
        let from: [f32; 64] = std::array::from_fn(|i| i as f32);
        for start in 0..8 {
            let mut to = [-1.0; 80];
            let streaming = Streaming::begin();
            streaming.copy(&from, (&mut to[start..start + 64]).try_into().unwrap());
            drop(streaming);
            assert_eq!(to[start..start + 64], from);
            assert!(to[..start].iter().chain(&to[start + 64..]).all(|&x| x == -1.0));
        }
    }
}
