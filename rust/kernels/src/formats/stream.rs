//! A stream of numbers in any format: what a tensor is to those that walk over it.

use std::fmt;

use half::{bf16, f16};

use super::element::Element;
use crate::simd::prefetch;

macro_rules! storage {
    (numbers: $($Number:ident($n:ty)),*; codes: $($Code:ident($c:ty)),*) => {
        storage!(all: $($Number($n),)* $($Code($c)),*);

        $(impl Storage for $n {
            fn slice<'a>(slice: &Slice<'a>) -> Option<&'a [Self]> {
                match slice { Slice::$Number(x) => Some(x), _ => None }
            }
            fn slice_mut<'s>(slice: &'s mut SliceMut<'_>) -> Option<&'s mut [Self]> {
                match slice { SliceMut::$Number(x) => Some(x), _ => None }
            }
            fn shared<'s>(slice: &'s SliceMut<'_>) -> Option<&'s [Self]> {
                match slice { SliceMut::$Number(x) => Some(x), _ => None }
            }
            fn wrap(x: &[Self]) -> Slice<'_> {
                Slice::$Number(x)
            }
            fn wrap_mut(x: &mut [Self]) -> SliceMut<'_> {
                SliceMut::$Number(x)
            }
        })*
    };
    (all: $($Variant:ident($t:ty)),*) => {
        /// How a stream keeps its numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Format { $($Variant,)* }

        /// The elements of a tensor that is read.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs)]
        pub enum Slice<'a> { $($Variant(&'a [$t]),)* }

        /// The elements of a tensor that is read and written.
        #[derive(Debug)]
        #[allow(missing_docs)]
        pub enum SliceMut<'a> { $($Variant(&'a mut [$t]),)* }

        impl<'a> Slice<'a> {
            /// How many elements there are.
            #[inline]
            pub fn len(&self) -> usize {
                match self { $(Self::$Variant(x) => x.len(),)* }
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            #[inline]
            pub(crate) fn address(&self) -> usize {
                match self { $(Self::$Variant(x) => x.as_ptr() as usize,)* }
            }

            /// Prefetches some elements, but no more than a few cache lines of them: the rest follows of itself.
            #[inline]
            pub(crate) fn prefetch(&self, start: usize, len: usize) {
                match self { $(Self::$Variant(x) => prefetch_elements(x, start, len),)* }
            }

            /// How they are kept.
            #[inline]
            pub fn format(&self) -> Format {
                match self { $(Self::$Variant(_) => Format::$Variant,)* }
            }

            #[inline]
            pub(crate) fn part(&self, start: usize, len: usize) -> Self {
                match self { $(Self::$Variant(x) => Self::$Variant(&x[start..start + len]),)* }
            }

            pub(crate) fn split_at(self, n: usize) -> (Self, Self) {
                match self { $(Self::$Variant(x) => {
                    let (a, b) = x.split_at(n);
                    (Self::$Variant(a), Self::$Variant(b))
                })* }
            }
        }

        impl<'a> SliceMut<'a> {
            /// How many elements there are.
            #[inline]
            pub fn len(&self) -> usize {
                match self { $(Self::$Variant(x) => x.len(),)* }
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            #[inline]
            pub(crate) fn address(&self) -> usize {
                match self { $(Self::$Variant(x) => x.as_ptr() as usize,)* }
            }

            #[inline]
            pub(crate) fn prefetch(&self, start: usize, len: usize) {
                match self { $(Self::$Variant(x) => prefetch_elements(x, start, len),)* }
            }

            /// How they are kept.
            #[inline]
            pub fn format(&self) -> Format {
                match self { $(Self::$Variant(_) => Format::$Variant,)* }
            }

            /// All of them, to read.
            #[inline]
            pub(crate) fn as_slice(&self) -> Slice<'_> {
                match self { $(Self::$Variant(x) => Slice::$Variant(x),)* }
            }

            #[inline]
            pub(crate) fn whole(&mut self) -> SliceMut<'_> {
                match self { $(Self::$Variant(x) => SliceMut::$Variant(x),)* }
            }

            #[inline]
            pub(crate) fn part(&mut self, start: usize, len: usize) -> SliceMut<'_> {
                match self { $(Self::$Variant(x) => SliceMut::$Variant(&mut x[start..start + len]),)* }
            }

            pub(crate) fn fill_zero(&mut self) {
                match self { $(Self::$Variant(x) => x.fill(<$t as Default>::default()),)* }
            }

            pub(crate) fn split_at(self, n: usize) -> (Self, Self) {
                match self { $(Self::$Variant(x) => {
                    let (a, b) = x.split_at_mut(n);
                    (Self::$Variant(a), Self::$Variant(b))
                })* }
            }
        }
    };
}
// Codes are no numbers by themselves: what they stand for, `compact` says.
storage!(numbers: F64(f64), F32(f32), F16(f16), Bf16(bf16); codes: U8(u8), I16(i16));

impl Format {
    /// Whether its arithmetic is in `f64`.
    #[inline]
    pub(crate) fn is_double(self) -> bool {
        self == Self::F64
    }

    /// Whether its elements are no numbers by themselves.
    #[inline]
    pub(crate) fn is_code(self) -> bool {
        matches!(self, Self::U8 | Self::I16)
    }

    /// Bytes of an element.
    #[inline]
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::U8 => 1,
        }
    }
}

/// No elements.
impl Default for SliceMut<'_> {
    #[inline]
    fn default() -> Self {
        Self::F32(&mut [])
    }
}

/// An element type together with its variants of [`Slice`] and [`SliceMut`].
pub(crate) trait Storage: Element {
    fn slice<'a>(slice: &Slice<'a>) -> Option<&'a [Self]>;
    fn slice_mut<'s>(slice: &'s mut SliceMut<'_>) -> Option<&'s mut [Self]>;
    fn shared<'s>(slice: &'s SliceMut<'_>) -> Option<&'s [Self]>;
    fn wrap(x: &[Self]) -> Slice<'_>;
    fn wrap_mut(x: &mut [Self]) -> SliceMut<'_>;
}

/// Prefetches elements, but no more than a few cache lines of them.
#[inline]
fn prefetch_elements<T>(x: &[T], start: usize, len: usize) {
    let per_line = 64 / size_of::<T>();
    (0..len.div_ceil(per_line).min(8)).for_each(|line| prefetch(x, start + line * per_line));
}

/// Why tensors were not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The kernels do not serve this combination of storage types.
    Types,
    /// The slices differ in length, or are too short for the layout.
    Lengths,
    /// The rule keeps another number of states.
    States,
    /// The program has another number of inputs.
    Inputs,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Types => "no kernel for these storage types",
            Self::Lengths => "tensors of different lengths",
            Self::States => "wrong number of states",
            Self::Inputs => "wrong number of inputs",
        })
    }
}

impl std::error::Error for Refused {}
