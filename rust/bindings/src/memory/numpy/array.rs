//! NumPy arrays: the only place where a pointer of NumPy's becomes a slice.
//!
//! The numpy crate checks dtype and writability, and keeps account of what is borrowed, so that arrays which share
//! elements are refused. A step gets the slices of its arrays from [`Apart`], which has compared them all.
#![allow(unsafe_code)]

use numpy::npyffi::{NpyTypes, PY_ARRAY_API, get_type_object};
use numpy::{BorrowError, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use numpy::{PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use oxistep_kernels::{Layout, MAX_SCALARS, Slice, SliceMut, Tensors, f16};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::memory::span::{meeting, shared};

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
            unsafe fn slice<'a>(&self, extent: Extent) -> Slice<'a> {
                match self { $(
                    Self::$Variant(_) if extent.len == 0 => Slice::$Variant(&[]),
                    Self::$Variant(_) => {
                        // SAFETY: the extent follows from the array's own shape and strides; alignment was checked
                        // when the array was accepted; lifetime and aliasing by contract.
                        Slice::$Variant(unsafe { std::slice::from_raw_parts(extent.first as *const $t, extent.len) })
                    }
                )* }
            }

            /// Empty if the array is borrowed for reading only.
            ///
            /// # Safety
            /// The borrow is held for all of `'a`, and no other slice overlaps this one.
            unsafe fn slice_mut<'a>(&self, extent: Extent) -> SliceMut<'a> {
                match self { $(
                    Self::$Variant(Lent::Write(_)) if extent.len > 0 => {
                        let (first, len) = (extent.first as *mut $t, extent.len);
                        // SAFETY: as in `slice`.
                        SliceMut::$Variant(unsafe { std::slice::from_raw_parts_mut(first, len) })
                    }
                    Self::$Variant(_) => SliceMut::$Variant(&mut []),
                )* }
            }

            fn itemsize(&self) -> usize {
                match self { $(Self::$Variant(_) => size_of::<$t>(),)* }
            }

            /// The address of every element.
            fn addresses(&self) -> Box<dyn Iterator<Item = usize> + '_> {
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
            fn to_buffer(&self) -> Buffer {
                match self { $(
                    Self::$Variant(Lent::Read(array)) => Buffer::$Variant(array.as_array().iter().copied().collect()),
                    Self::$Variant(Lent::Write(array)) => Buffer::$Variant(array.as_array().iter().copied().collect()),
                )* }
            }

            /// Writes the elements of a copy back.
            fn assign(&mut self, buffer: &Buffer) {
                match (self, buffer) {
                    $((Self::$Variant(Lent::Write(array)), Buffer::$Variant(buffer)) => {
                        array.as_array_mut().iter_mut().zip(buffer).for_each(|(to, from)| *to = *from);
                    })*
                    _ => {}
                }
            }
        }

        /// A copy of an array.
        enum Buffer {
            $($Variant(Vec<$t>),)*
        }

        impl Buffer {
            fn slice(&self) -> Slice<'_> {
                match self { $(Self::$Variant(buffer) => Slice::$Variant(buffer),)* }
            }

            fn slice_mut(&mut self) -> SliceMut<'_> {
                match self { $(Self::$Variant(buffer) => SliceMut::$Variant(buffer),)* }
            }
        }
    };
}
dtypes!(F64(f64), F32(f32), F16(f16));

/// Where an array lies: from its lowest to its highest element.
#[derive(Clone, Copy)]
struct Extent {
    /// Address of the lowest element.
    first: usize,
    /// Elements from lowest to highest, gaps counted.
    len: usize,
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
    /// The elements, and how they lie. Whoever reads them has asked [`is_unchanged`] since Python code last ran, and
    /// runs none until the last use of them.
    pub(crate) fn read(&self) -> (Slice<'_>, Option<Layout>) {
        let (extents, layout) = place(std::slice::from_ref(self));
        // SAFETY: the slice borrows from this, which holds the numpy crate's borrow and keeps the array alive; whoever
        // keeps that account does not write meanwhile, and who has a slice to write has promised that no other overlaps
        // it (`slice_mut`).
        (unsafe { self.slice(extents[0]) }, layout)
    }
}

/// Whether an array is what it was when this view of it was borrowed.
pub(crate) fn is_unchanged(array: &Bound<'_, PyUntypedArray>, view: &Bound<'_, PyUntypedArray>) -> bool {
    array.shape() == view.shape() && array.strides() == view.strides() && data(array) == data(view)
}

/// Where the arrays lie, and how their elements correspond; no layout if all lie one after the other in one order.
fn place(arrays: &[Array<'_>]) -> (Vec<Extent>, Option<Layout>) {
    let streams = arrays.len();
    let mut strides = vec![0isize; arrays[0].untyped().ndim() * streams];
    let mut extents = Vec::with_capacity(arrays.len());
    for (s, array) in arrays.iter().enumerate() {
        let untyped = array.untyped();
        let itemsize = untyped.dtype().itemsize();
        let (mut low, mut high) = (0, 0);
        for (d, (&n, &stride)) in untyped.shape().iter().zip(untyped.strides()).enumerate() {
            let stride = stride / itemsize as isize;
            strides[d * streams + s] = stride;
            let reach = stride * (n as isize - 1);
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
    let of = |d: usize| &strides[d * streams..][..streams];
    let alike = |d: usize| shape[d] == 1 || of(d).iter().all(|&stride| stride == of(d)[0]);
    if len == 0 || (extents.iter().all(|e| e.len == len && e.start == 0) && (0..shape.len()).all(alike)) {
        return (extents, None);
    }
    let starts: Vec<_> = extents.iter().map(|extent| extent.start).collect();
    let layout = Layout::new(shape, &strides, &starts);
    (extents, Some(layout))
}

/// The arrays of one parameter: the parameter, its gradient, its states; all of one dtype and shape.
pub(crate) struct Set<'py> {
    arrays: Vec<Array<'py>>,
    extents: Vec<Extent>,
    layout: Option<Layout>,
    /// Arrays as they were given, each with the view that was borrowed instead.
    watched: Vec<(Bound<'py, PyUntypedArray>, Bound<'py, PyUntypedArray>)>,
}

impl<'py> Set<'py> {
    /// `given` are the arrays as they were given. All but the second are borrowed for writing.
    pub(crate) fn of(arrays: Vec<Array<'py>>, given: Vec<Bound<'py, PyUntypedArray>>) -> Self {
        let (extents, layout) = place(&arrays);
        debug_assert_eq!(given.len(), arrays.len());
        let mut watched = Vec::with_capacity(arrays.len() + MAX_SCALARS);
        watched.extend(given.into_iter().zip(arrays.iter().map(|array| array.untyped().clone())));
        Self { arrays, extents, layout, watched }
    }

    /// Adds another array that must stay what it is, such as a counter, with the view that was borrowed instead.
    pub(crate) fn watch(&mut self, given: Bound<'py, PyUntypedArray>, view: Bound<'py, PyUntypedArray>) {
        self.watched.push((given, view));
    }

    /// The range of each array, and whether it is only read.
    fn ranges(&self) -> impl Iterator<Item = (bool, (usize, usize))> + Clone {
        self.arrays.iter().zip(&self.extents).enumerate().map(|(s, (array, extent))| {
            let end = extent.first + extent.len * array.itemsize();
            (s == 1, (extent.first, end))
        })
    }

    /// What kernels update: the arrays, or their copies, if there are any.
    ///
    /// # Safety
    /// The arrays are what they were when they were borrowed, for all of `'a`, and no slice of them that is written
    /// overlaps any other in use in `'a`.
    unsafe fn tensors<'a>(&'a self, copies: &'a mut [Buffer]) -> Tensors<'a, impl Iterator<Item = SliceMut<'a>>> {
        // SAFETY: the borrows are held by this; the rest is the contract.
        let array = |k: usize| unsafe { self.arrays[k].slice_mut(self.extents[k]) };
        let layout = if copies.is_empty() { self.layout.as_ref() } else { None };
        let mut copies = copies.iter_mut();
        let param = copies.next().map_or_else(|| array(0), Buffer::slice_mut);
        let grad = match copies.next() {
            Some(copy) => copy.slice(),
            // SAFETY: as above.
            None => unsafe { self.arrays[1].slice(self.extents[1]) },
        };
        let states = (2..self.arrays.len()).map(move |k| copies.next().map_or_else(|| array(k), Buffer::slice_mut));
        Tensors { param, grad, states, layout }
    }
}

/// The sets of a step, in whose slices nothing that is written overlaps anything else.
///
/// Whoever has one in hand runs no Python code of this thread until the last use of its slices: that could resize an
/// array. That other threads do not is left to the caller.
pub(crate) struct Apart<'py> {
    sets: Vec<Set<'py>>,
    /// Copies of the arrays of each set; of most there are none. They are for the rare set whose elements lie between
    /// those of another array.
    copies: Vec<Vec<Buffer>>,
}

impl<'py> Apart<'py> {
    /// `name` is what errors call the parameter of a set.
    ///
    /// # Errors
    /// If an array is not what it was when it was borrowed (making states runs Python code), or if arrays share
    /// elements. The numpy crate has seen to the latter for arrays with one owner; two arrays over one buffer may have
    /// different owners, so those that lie close together are compared element by element.
    pub(crate) fn settle<'n>(sets: Vec<Set<'py>>, name: impl Fn(usize) -> &'n str) -> PyResult<Self> {
        for (k, set) in sets.iter().enumerate() {
            if !set.watched.iter().all(|(array, view)| is_unchanged(array, view)) {
                return Err(PyRuntimeError::new_err(format!(
                    "an array of {} (the parameter, its gradient or a state) was reshaped or resized while this step \
                     was under way; nothing was updated",
                    name(k)
                )));
            }
        }
        let ranges = sets.iter().enumerate();
        let ranges = ranges.flat_map(|(k, set)| set.ranges().map(move |(is_read, range)| (k, is_read, range)));
        let meets = meeting(sets.len(), ranges);
        let mut elements = Vec::new();
        for (k, set) in sets.iter().enumerate().filter(|(k, _)| meets[*k]) {
            for (s, array) in set.arrays.iter().enumerate() {
                elements.extend(array.addresses().map(|address| (address, k, s == 1)));
            }
        }
        if let Some((one, other)) = shared(elements, |k| sets[k].arrays[0].itemsize()) {
            return Err(PyValueError::new_err(format!(
                "{} shares memory with {} or its gradient: pass a copy, .copy(), of one of them",
                name(one),
                name(other)
            )));
        }
        let copies = sets.iter().zip(meets).map(|(set, meets)| {
            let copied = if meets { &set.arrays[..] } else { &[] };
            copied.iter().map(Array::to_buffer).collect()
        });
        let copies = copies.collect();
        Ok(Self { sets, copies })
    }

    /// What kernels update of each set.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = Tensors<'_, impl Iterator<Item = SliceMut<'_>>>> {
        self.sets.iter().zip(&mut self.copies).map(|(set, copies)| {
            // SAFETY: `settle` has found the arrays what they were when they were borrowed, and no Python code runs
            // from then on: the rule of this type. The sets hold the numpy crate's borrows, which are exclusive for
            // what is written, and keep the arrays alive. What overlaps another slice was copied. The slices borrow
            // from this, which lends them to one caller at a time.
            unsafe { set.tensors(copies) }
        })
    }

    /// Writes the copies back.
    pub(crate) fn write_back(&mut self) {
        for (set, copies) in self.sets.iter_mut().zip(&self.copies) {
            let arrays = set.arrays.iter_mut().zip(copies).enumerate();
            arrays.filter(|(s, _)| *s != 1).for_each(|(_, (array, buffer))| array.assign(buffer));
        }
    }
}
