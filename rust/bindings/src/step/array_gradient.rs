//! What is given as a gradient of an array: an array, a number, or rows; and what is wrong with it.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use oxistep_kernels::Gradients;
use pyo3::exceptions::{PyIndexError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::memory::numpy::accept::{accept_gradient, gradient, plain};
use crate::memory::numpy::array::{Array, Gradient};
use crate::memory::numpy::scalar::number_of;

/// A gradient as far as its kind is known.
pub(super) enum Given<'py> {
    Array(Bound<'py, PyAny>),
    Number(f64),
    Rows(GivenRows<'py>),
}

impl<'py> Given<'py> {
    /// Asks what it is. It may run Python code.
    pub(super) fn of(
        grad: &Bound<'py, PyAny>,
        array: &Array,
        (param, name): (&Bound<'py, PyAny>, &str),
        takes: Gradients,
    ) -> PyResult<Self> {
        let what = format!("the gradient of {name}");
        if let Some(rows) = rows_in(grad, param)? {
            return if takes == Gradients::Dense { Err(no_rows(&what, grad)) } else { Ok(Self::Rows(rows)) };
        }
        if takes == Gradients::Sparse {
            return Err(PyRuntimeError::new_err(format!(
                "{what} is dense, and this optimizer takes rows: (indices, rows), or a scipy.sparse matrix; use Adam \
                 for dense gradients"
            )));
        }
        // where there are no dimensions a number will do
        if let (true, Some(x)) = (array.form.shape.is_empty(), number_of(grad)) {
            return Ok(Self::Number(x));
        }
        let grad = gradient(grad)?;
        plain(&grad, &what)?;
        Ok(Self::Array(grad))
    }

    /// Looks at it.
    pub(super) fn look_at(self, param: &Bound<'py, PyAny>, array: &Array, name: &str) -> PyResult<Gradient> {
        let what = format!("the gradient of {name}");
        match self {
            Self::Number(x) => Ok(Gradient::Number(x)),
            Self::Rows(rows) => rows_of(&what, &rows, (array, name)),
            Self::Array(grad) => {
                let looked_at = accept_gradient(&grad, &what)?;
                refuse_other_shape(&what, &grad, param, name)?;
                Ok(Gradient::Array(looked_at))
            }
        }
    }
}

/// What stands for a gradient of some rows: their indices and an array with a row for each.
pub(super) type GivenRows<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// A pair of indices and rows, or those of a sparse matrix of SciPy's, if `grad` is one.
fn rows_in<'py>(grad: &Bound<'py, PyAny>, param: &Bound<'py, PyAny>) -> PyResult<Option<GivenRows<'py>>> {
    if let Ok(pair) = grad.cast_exact::<PyTuple>() {
        return Ok(if pair.len() == 2 { Some((pair.get_item(0)?, pair.get_item(1)?)) } else { None });
    }
    if is_sparse(grad)? {
        let rows_of = grad.py().import("oxistep.numpy._rows")?.getattr("rows_of")?;
        return rows_of.call1((grad, param))?.extract().map(Some);
    }
    Ok(None)
}

fn is_sparse(grad: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(grad.cast::<PyUntypedArray>().is_err() && grad.hasattr("tocsr")?)
}

/// What an optimizer says to rows that it does not take.
fn no_rows(what: &str, grad: &Bound<'_, PyAny>) -> PyErr {
    let remedy = match is_sparse(grad) {
        Ok(true) => "make it dense with .toarray()",
        _ => "pass an array of the parameter's shape",
    };
    PyRuntimeError::new_err(format!(
        "{what} is of some rows only, and this optimizer moves every row (SGD does with momentum or weight decay): \
         {remedy}, or use SGD, Adagrad or SparseAdam"
    ))
}

pub(super) fn not_in_one_piece(what: &str) -> PyErr {
    PyValueError::new_err(format!("{what} must lie in one piece, row after row, for a gradient of rows"))
}

/// A gradient of rows, each found inside the parameter.
fn rows_of(what: &str, (indices, values): &GivenRows<'_>, (param, name): (&Array, &str)) -> PyResult<Gradient> {
    let Some((&count, row)) = param.form.shape.split_first() else {
        return Err(PyValueError::new_err(format!("{what} is of some rows only, and {name} has no dimensions")));
    };
    if !param.is_in_one_piece() {
        return Err(not_in_one_piece(name));
    }
    let indices = match indices.cast::<PyUntypedArray>() {
        Ok(_) => indices.clone(),
        Err(_) => indices.py().import("numpy")?.call_method1("asarray", (indices,))?,
    };
    let named = accept_gradient(&indices, &format!("the indices in {what}"))?;
    let values = accept_gradient(values, &format!("the rows in {what}"))?;
    let empty = named.form.len == 0;
    let Some(rows) = named.integers().or_else(|| empty.then(Vec::new)) else {
        return Err(PyTypeError::new_err(format!("the indices in {what} must be integers, (indices, rows)")));
    };
    if named.form.shape.len() != 1 {
        let got = tuple(&named.form.shape);
        return Err(PyValueError::new_err(format!("the indices in {what} have shape {got}, expected one dimension")));
    }
    let mut expected = vec![rows.len()];
    expected.extend_from_slice(row);
    if values.form.shape.as_slice() != expected {
        return Err(PyValueError::new_err(format!(
            "the rows in {what} have shape {}, expected {}: a row like those of {name} for each index",
            tuple(&values.form.shape),
            tuple(&expected)
        )));
    }
    if let Some(outside) = rows.iter().find(|row| usize::try_from(**row).map_or(true, |row| row >= count)) {
        return Err(PyIndexError::new_err(format!(
            "index {outside} in {what} is out of range: {name} has {count} rows"
        )));
    }
    Ok(Gradient::Rows(rows, values))
}

/// Refuses a state of another dtype or shape than the parameter, which is called `name`.
pub(super) fn refuse_unlike<'py>(
    what: &str,
    array: &Bound<'py, PyAny>,
    param: &Bound<'py, PyAny>,
    name: &str,
) -> PyResult<()> {
    let dtype = |object: &Bound<'py, PyAny>| Ok::<_, PyErr>(object.cast::<PyUntypedArray>()?.dtype());
    let (got, expected) = (dtype(array)?, dtype(param)?);
    if !got.is_equiv_to(&expected) {
        return Err(PyTypeError::new_err(format!(
            "{what} has dtype {got}, expected {expected} like {name}: replace it in optimizer.state by its \
             .astype(np.{expected})"
        )));
    }
    refuse_other_shape(what, array, param, name)
}

fn refuse_other_shape(what: &str, array: &Bound<'_, PyAny>, param: &Bound<'_, PyAny>, name: &str) -> PyResult<()> {
    let (array, param) = (array.cast::<PyUntypedArray>()?, param.cast::<PyUntypedArray>()?);
    if array.shape() != param.shape() {
        return Err(PyValueError::new_err(format!(
            "{what} has shape {}, expected {} like {name}",
            tuple(array.shape()),
            tuple(param.shape())
        )));
    }
    Ok(())
}

fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}
