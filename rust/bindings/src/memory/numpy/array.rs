//! NumPy arrays: the only place where a pointer of NumPy's becomes a slice.
//!
//! The numpy crate checks dtype and writability, and keeps account of what is borrowed, so that arrays which share
//! elements are refused.
#![allow(unsafe_code)]

use numpy::npyffi::{NpyTypes, PY_ARRAY_API, get_type_object};
use numpy::{BorrowError, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use numpy::{PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use oxistep_kernels::{Layout, STREAMS, Slice, SliceMut, f16};
use pyo3::prelude::*;

/// An array borrowed for reading or writing.
pub(crate) enum Lent<R, W> {
    Read(R),
    Write(W),
}

macro_rules! dtypes {
    ($($Variant:ident($t:ty)),*) => {
        /// An array of one of the dtypes that kernels serve, borrowed for reading or writing.
        pub(crate) enum Array<'py> {
            $($Variant(Lent<PyReadonlyArrayDyn<'py, $t>, PyReadwriteArrayDyn<'py, $t>>),)*
        }

        impl<'py> Array<'py> {
            /// Borrows `array`; `None` if its dtype is not served.
            pub(super) fn borrow(array: &Bound<'py, PyAny>, write: bool) -> Option<Result<Self, BorrowError>> {
                $(if let Ok(array) = array.cast::<PyArrayDyn<$t>>() {
                    return Some(if write {
                        array.try_readwrite().map(|array| Self::$Variant(Lent::Write(array)))
                    } else {
                        array.try_readonly().map(|array| Self::$Variant(Lent::Read(array)))
                    });
                })*
                None
            }

            pub(crate) fn untyped(&self) -> &Bound<'py, PyUntypedArray> {
                match self { $(
                    Self::$Variant(Lent::Read(array)) => array.as_untyped(),
                    Self::$Variant(Lent::Write(array)) => array.as_untyped(),
                )* }
            }

            pub(super) fn address(&self) -> usize {
                match self { $(
                    Self::$Variant(Lent::Read(array)) => array.data() as usize,
                    Self::$Variant(Lent::Write(array)) => array.data() as usize,
                )* }
            }

            /// # Safety
            /// The borrow is held for all of `'a`, and no slice that is written overlaps this one.
            pub(crate) unsafe fn slice<'a>(&self, extent: Extent) -> Slice<'a> {
                match self { $(
                    Self::$Variant(_) if extent.len == 0 => Slice::$Variant(&[]),
                    Self::$Variant(_) => {
                        // SAFETY: the extent follows from the array's own shape and strides; alignment was checked
                        // when the array was accepted; lifetime and aliasing by contract.
                        Slice::$Variant(unsafe { std::slice::from_raw_parts(extent.first as *const $t, extent.len) })
                    }
                )* }
            }

            /// # Safety
            /// The borrow is for writing and held for all of `'a`, and no other slice overlaps this one.
            pub(crate) unsafe fn slice_mut<'a>(&self, extent: Extent) -> SliceMut<'a> {
                match self { $(
                    Self::$Variant(_) if extent.len == 0 => SliceMut::$Variant(&mut []),
                    Self::$Variant(_) => {
                        let (first, len) = (extent.first as *mut $t, extent.len);
                        // SAFETY: as in `slice`.
                        SliceMut::$Variant(unsafe { std::slice::from_raw_parts_mut(first, len) })
                    }
                )* }
            }

            /// The address of every element.
            pub(crate) fn addresses(&self) -> Box<dyn Iterator<Item = usize> + '_> {
                match self { $(
                    Self::$Variant(Lent::Read(array)) => {
                        Box::new(array.as_array().into_iter().map(|element| std::ptr::from_ref(element) as usize))
                    }
                    Self::$Variant(Lent::Write(array)) => {
                        Box::new(array.as_array().into_iter().map(|element| std::ptr::from_ref(element) as usize))
                    }
                )* }
            }

            /// A copy of the elements in logical order.
            pub(crate) fn to_buffer(&self) -> Buffer {
                match self { $(
                    Self::$Variant(Lent::Read(array)) => Buffer::$Variant(array.as_array().iter().copied().collect()),
                    Self::$Variant(Lent::Write(array)) => Buffer::$Variant(array.as_array().iter().copied().collect()),
                )* }
            }

            /// Writes the elements of a copy back.
            pub(crate) fn assign(&mut self, buffer: &Buffer) {
                match (self, buffer) {
                    $((Self::$Variant(Lent::Write(array)), Buffer::$Variant(buffer)) => {
                        array.as_array_mut().iter_mut().zip(buffer).for_each(|(to, from)| *to = *from);
                    })*
                    _ => {}
                }
            }
        }

        /// A copy of an array whose elements lie between those of another.
        pub(crate) enum Buffer {
            $($Variant(Vec<$t>),)*
        }

        impl Buffer {
            pub(crate) fn slice(&self) -> Slice<'_> {
                match self { $(Self::$Variant(buffer) => Slice::$Variant(buffer),)* }
            }
            pub(crate) fn slice_mut(&mut self) -> SliceMut<'_> {
                match self { $(Self::$Variant(buffer) => SliceMut::$Variant(buffer),)* }
            }
        }
    };
}
dtypes!(F64(f64), F32(f32), F16(f16));

/// Where an array lies: from its lowest to its highest element.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    /// Address of the lowest element.
    pub(crate) first: usize,
    /// Elements from lowest to highest, gaps counted.
    pub(crate) len: usize,
    /// Place of the array's first element among them.
    start: usize,
}

/// The address of an array's first element.
fn data(array: &Bound<'_, PyUntypedArray>) -> usize {
    // SAFETY: the object is an array, which the reference keeps alive.
    unsafe { (*array.as_array_ptr()).data as usize }
}

/// The array's memory under an object that nobody else has: what other code does to the array's shape, in this thread
/// or another, changes neither what was checked nor the numpy crate's account of what is borrowed.
pub(crate) fn private_view<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyAny>> {
    let py = array.py();
    // SAFETY: NumPy's function takes an array, null for its own dtype, and a class; it returns a new reference, or null
    // and an exception.
    unsafe {
        let class = get_type_object(py, NpyTypes::PyArray_Type);
        let view = PY_ARRAY_API.PyArray_View(py, array.as_array_ptr(), std::ptr::null_mut(), class);
        Bound::from_owned_ptr_or_err(py, view)
    }
}

impl Array<'_> {
    /// The elements, and how they lie.
    pub(crate) fn read(&self) -> (Slice<'_>, Option<Layout>) {
        let (extents, layout) = place(std::slice::from_ref(self));
        // SAFETY: the slice borrows from this, which holds the numpy crate's borrow; whoever keeps that account does
        // not write meanwhile, and who has a slice to write has promised that no other overlaps it (`slice_mut`).
        (unsafe { self.slice(extents[0]) }, layout)
    }
}

/// Whether an array is what it was when this view of it was borrowed.
pub(crate) fn is_unchanged(array: &Bound<'_, PyUntypedArray>, view: &Bound<'_, PyUntypedArray>) -> bool {
    array.shape() == view.shape() && array.strides() == view.strides() && data(array) == data(view)
}

/// Where the arrays lie, and how their elements correspond; no layout if all lie one after the other in one order.
pub(crate) fn place(arrays: &[Array<'_>]) -> (Vec<Extent>, Option<Layout>) {
    let mut strides = vec![[0isize; STREAMS]; arrays[0].untyped().ndim()];
    let mut extents = Vec::with_capacity(arrays.len());
    for (s, array) in arrays.iter().enumerate() {
        let untyped = array.untyped();
        let itemsize = untyped.dtype().itemsize();
        let (mut low, mut high) = (0, 0);
        for (d, (&n, &stride)) in untyped.shape().iter().zip(untyped.strides()).enumerate() {
            strides[d][s] = stride / itemsize as isize;
            let reach = strides[d][s] * (n as isize - 1);
            if reach < 0 { low += reach } else { high += reach }
        }
        extents.push(if untyped.len() == 0 {
            Extent { first: array.address(), len: 0, start: 0 }
        } else {
            Extent {
                first: array.address().wrapping_add_signed(low * itemsize as isize),
                len: (high - low) as usize + 1,
                start: low.unsigned_abs(),
            }
        });
    }
    let shape = arrays[0].untyped().shape();
    let len = arrays[0].untyped().len();
    let alike = |d: usize| shape[d] == 1 || (0..arrays.len()).all(|s| strides[d][s] == strides[d][0]);
    if len == 0 || (extents.iter().all(|e| e.len == len && e.start == 0) && (0..shape.len()).all(alike)) {
        return (extents, None);
    }
    let mut starts = [0; STREAMS];
    starts.iter_mut().zip(&extents).for_each(|(start, extent)| *start = extent.start);
    let layout = Layout::new(shape, &strides, starts);
    (extents, Some(layout))
}
