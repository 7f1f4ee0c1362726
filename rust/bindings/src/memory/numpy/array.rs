//! NumPy arrays: the only place where a pointer of NumPy's becomes a slice.
//!
//! The numpy crate checks dtype and writability, and keeps account of what is borrowed, so that arrays which share
//! elements are refused.
#![allow(unsafe_code)]

use numpy::npyffi::{NpyTypes, PY_ARRAY_API, get_type_object};
use numpy::{BorrowError, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use numpy::{PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use oxistep_kernels::{Layout, STREAMS, Slice, SliceMut, f16};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;

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
            fn borrow(array: &Bound<'py, PyAny>, write: bool) -> Option<Result<Self, BorrowError>> {
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

            fn address(&self) -> usize {
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

/// Whether it is a number of one of NumPy's own types.
fn is_scalar(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    if object.get_type().is(PyUntypedArray::type_object(object.py())) {
        return Ok(false);
    }
    object.is_instance(&object.py().import("numpy")?.getattr("generic")?)
}

/// A gradient as an array: NumPy's own functions return scalars where there are no dimensions (`error.mean()`).
pub(crate) fn gradient<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if is_scalar(object)? {
        object.py().import("numpy")?.call_method1("asarray", (object,))
    } else {
        Ok(object.clone())
    }
}

/// Refuses what is no plain ndarray.
pub(crate) fn plain(object: &Bound<'_, PyAny>, name: &str) -> PyResult<()> {
    let py = object.py();
    let class = object.get_type();
    if class.is(PyUntypedArray::type_object(py)) {
        return Ok(());
    }
    if object.cast::<PyUntypedArray>().is_err() {
        let hint = if is_scalar(object)? {
            "a NumPy scalar cannot be changed in place: use np.array(value)"
        } else {
            "convert it with np.asarray"
        };
        return Err(PyTypeError::new_err(format!("{name} must be a numpy.ndarray, got {}: {hint}", class.name()?)));
    }
    if object.is_instance(&py.import("numpy.ma")?.getattr("MaskedArray")?)? {
        return Err(PyTypeError::new_err(format!(
            "{name} is a masked array, whose mask a step would ignore: pass its .data, or .filled(0) for a gradient"
        )));
    }
    Ok(())
}

/// Borrows an array, or says what is wrong with it.
pub(crate) fn accept<'py>(object: &Bound<'py, PyAny>, name: &str, write: bool) -> PyResult<Array<'py>> {
    plain(object, name)?;
    let untyped = object.cast::<PyUntypedArray>()?;
    let dtype = untyped.dtype();
    let Some(borrowed) = Array::borrow(&private_view(untyped)?, write) else {
        if dtype.kind() == b'f' && dtype.byteorder() != b'=' && dtype.byteorder() != b'|' && dtype.itemsize() <= 8 {
            return Err(PyValueError::new_err(format!(
                "{name} is byte-swapped ({dtype}): convert it with .astype({:?})",
                format!("float{}", dtype.itemsize() * 8)
            )));
        }
        return Err(PyTypeError::new_err(format!(
            "{name} has dtype {dtype}, expected float32, float64 or float16: convert it with .astype(np.float32)"
        )));
    };
    let array = borrowed.map_err(|error| match error {
        BorrowError::NotWriteable => {
            PyValueError::new_err(format!("{name} is read-only, but a step changes it in place: pass a copy, .copy()"))
        }
        _ => PyValueError::new_err(format!(
            "{name} shares memory with another array of this step, or lies between its rows: pass a copy, .copy(), of \
             one of them"
        )),
    })?;
    let itemsize = dtype.itemsize();
    if untyped.len() > 0 {
        let fits = |(n, stride): (&usize, &isize)| *n == 1 || stride.unsigned_abs().is_multiple_of(itemsize);
        if !array.address().is_multiple_of(itemsize) || !untyped.shape().iter().zip(untyped.strides()).all(fits) {
            return Err(PyValueError::new_err(format!(
                "{name} is not aligned to its element size of {itemsize} bytes: pass a copy, .copy()"
            )));
        }
        if write && overlaps_itself(untyped) {
            return Err(PyValueError::new_err(format!(
                "several elements of {name} share memory (a broadcast or window view): pass a copy, .copy()"
            )));
        }
    }
    Ok(array)
}

/// Whether two indices may name the same element.
fn overlaps_itself(array: &Bound<'_, PyUntypedArray>) -> bool {
    let mut dims: Vec<(usize, usize)> = array
        .shape()
        .iter()
        .zip(array.strides())
        .filter(|(n, _)| **n > 1)
        .map(|(&n, s)| (s.unsigned_abs(), n))
        .collect();
    dims.sort_unstable();
    let mut covered = 1;
    dims.iter().any(|&(stride, n)| {
        let overlap = stride < covered;
        covered += stride * (n - 1);
        overlap
    })
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
