//! What a step over arrays takes, and what is wrong with what it does not.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;

use crate::memory::numpy::array::Array;
use crate::memory::numpy::scalar::is_scalar;

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
        } else if object.hasattr("toarray")? {
            "make it dense with .toarray()"
        } else {
            "convert it with np.asarray"
        };
        let module = class.module().map(|module| module.to_string()).unwrap_or_default();
        let class = class.name()?.to_string();
        let class = if module.is_empty() || module == "builtins" { class } else { format!("{module}.{class}") };
        return Err(PyTypeError::new_err(format!("{name} must be a numpy.ndarray, got {class}: {hint}")));
    }
    if object.is_instance(&py.import("numpy.ma")?.getattr("MaskedArray")?)? {
        return Err(PyTypeError::new_err(format!(
            "{name} is a masked array, whose mask a step would ignore: pass its .data, or .filled(0) for a gradient"
        )));
    }
    Ok(())
}

/// Who has an array that is written, and must get another one if no step can take it. (A copy that only the optimizer
/// has would be trained, and the model would not.)
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Model,
    Optimizer,
}

impl Owner {
    /// How to exchange the array for what a method of it makes.
    fn remedy(self, method: &str) -> String {
        match self {
            Self::Model => format!(
                "give the model another array, w = w{method}, before the optimizer is made, and let it use that array"
            ),
            Self::Optimizer => format!("replace it in optimizer.state by its {method}"),
        }
    }
}

/// Looks at an array that is written, or says what is wrong with it.
pub(crate) fn accept(object: &Bound<'_, PyAny>, name: &str, owner: Owner) -> PyResult<Array> {
    let array = look_at(object, name, || owner.remedy(".copy()"))?;
    if array.form.number.float().is_none() {
        let (dtype, remedy) = (object.cast::<PyUntypedArray>()?.dtype(), owner.remedy(".astype(np.float32)"));
        return Err(PyTypeError::new_err(format!(
            "{name} has dtype {dtype}, expected float32, float64 or float16: {remedy}"
        )));
    }
    if !array.is_writeable() {
        let remedy = owner.remedy(".copy()");
        return Err(PyValueError::new_err(format!("{name} is read-only, but a step changes it in place: {remedy}")));
    }
    if array.overlaps_itself() {
        let remedy = owner.remedy(".copy()");
        return Err(PyValueError::new_err(format!(
            "several elements of {name} share memory (a broadcast or window view): {remedy}"
        )));
    }
    Ok(array)
}

/// What becomes of an array that is only read and lies where it cannot be.
fn copied() -> String {
    "pass a copy, .copy()".into()
}

/// Looks at an array of floats that is read, or says what is wrong with it.
pub(crate) fn floats(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Array> {
    let array = look_at(object, name, copied)?;
    if array.form.number.float().is_none() {
        return Err(other_dtype(object.cast::<PyUntypedArray>()?, name));
    }
    Ok(array)
}

/// Looks at an array of any real numbers that is read, or says what is wrong with it.
pub(crate) fn accept_gradient(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Array> {
    look_at(object, name, copied)
}

/// `remedy`: against memory that is not aligned.
fn look_at(object: &Bound<'_, PyAny>, name: &str, remedy: impl Fn() -> String) -> PyResult<Array> {
    plain(object, name)?;
    let untyped = object.cast::<PyUntypedArray>()?;
    let dtype = untyped.dtype();
    let Some(array) = Array::of(untyped) else {
        if dtype.kind() == b'f' && dtype.byteorder() != b'=' && dtype.byteorder() != b'|' && dtype.itemsize() <= 8 {
            return Err(PyValueError::new_err(format!(
                "{name} is byte-swapped ({dtype}): convert it with .astype({:?})",
                format!("float{}", dtype.itemsize() * 8)
            )));
        }
        return Err(other_dtype(untyped, name));
    };
    if !array.is_aligned() {
        return Err(PyValueError::new_err(format!(
            "{name} is not aligned to its element size of {} bytes: {}",
            dtype.itemsize(),
            remedy()
        )));
    }
    Ok(array)
}

fn other_dtype(array: &Bound<'_, PyUntypedArray>, name: &str) -> PyErr {
    let dtype = array.dtype();
    // a cast would drop the other part with a warning
    let remedy = if dtype.kind() == b'c' { "give its real part, .real" } else { "convert it with .astype(np.float32)" };
    PyTypeError::new_err(format!("{name} has dtype {dtype}, expected float32, float64 or float16: {remedy}"))
}
