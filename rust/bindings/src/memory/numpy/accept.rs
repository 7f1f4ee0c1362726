//! What is borrowed for a step over arrays, and what is wrong with what is not.

use numpy::{BorrowError, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;

use crate::memory::numpy::array::{Array, private_view};

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
