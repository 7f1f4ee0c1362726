//! Reading the hyperparameters of a param group.

use numpy::PyArrayDescrMethods;
use oxistep_kernels::{AnyRule, Hyperparameters, Kind};
use pyo3::exceptions::{PyKeyError, PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyString, PyTuple, PyType};

use crate::memory::dtype::DType;
use crate::memory::torch::describe::Torch;
use crate::memory::unfit::Reason;

/// Python strings made once, for looking names up in dicts.
#[derive(Default)]
pub(crate) struct Keys {
    known: Vec<(&'static str, Py<PyString>)>,
    /// Where the name that was asked for after the last one stands: steps ask for the same names in the same order.
    next: usize,
}

impl Keys {
    #[inline]
    pub(crate) fn get<'py>(&mut self, py: Python<'py>, name: &'static str) -> &Bound<'py, PyString> {
        let is_next = self.known.get(self.next).is_some_and(|(known, _)| std::ptr::eq(*known, name));
        let index = if is_next { self.next } else { self.search(py, name) };
        self.next = index + 1;
        self.known[index].1.bind(py)
    }

    #[inline(never)]
    fn search(&mut self, py: Python<'_>, name: &'static str) -> usize {
        let known = self.known.iter().position(|(known, _)| std::ptr::eq(*known, name));
        known.unwrap_or_else(|| {
            self.known.push((name, PyString::intern(py, name).unbind()));
            self.known.len() - 1
        })
    }
}

/// One group's values, by name.
pub(crate) struct Group<'a, 'py> {
    pub(crate) values: &'a Bound<'py, PyDict>,
    pub(crate) keys: &'a mut Keys,
    /// Stands in for the group's `lr`, which may be a function of the step.
    pub(crate) lr: Option<f64>,
    /// Set when `lr` turns out to be a tensor of less than double precision.
    pub(crate) single_lr: bool,
    /// Set when a value turns out to be an object of which reading may run Python code.
    pub(crate) foreign: bool,
    /// Which group it is.
    pub(crate) index: usize,
    /// Reads an `lr` that is a plain tensor without running Python code. Not while a torch function mode is active.
    pub(crate) torch: Option<&'a Torch>,
}

impl<'a, 'py> Group<'a, 'py> {
    pub(crate) fn of(values: &'a Bound<'py, PyDict>, keys: &'a mut Keys) -> Self {
        Self { values, keys, lr: None, single_lr: false, foreign: false, index: 0, torch: None }
    }

    /// The value under `key`, if there is one.
    pub(crate) fn find(&mut self, key: &'static str) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.values.get_item(self.keys.get(self.values.py(), key))
    }

    pub(crate) fn value(&mut self, key: &'static str) -> PyResult<Bound<'py, PyAny>> {
        self.find(key)?.ok_or_else(|| PyKeyError::new_err(key))
    }

    /// Whether the flag under `key` is there and set.
    pub(crate) fn is_set(&mut self, key: &'static str) -> PyResult<bool> {
        match self.find(key)? {
            None => Ok(false),
            Some(value) => self.truth(&value),
        }
    }

    fn truth(&mut self, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.foreign |= !(value.is_none() || value.is_exact_instance_of::<PyBool>() || is_number(value));
        value.is_truthy()
    }

    /// Reads the rule's hyperparameters, and the factor on the gradient that `maximize` asks for.
    pub(crate) fn read(&mut self, kind: Kind) -> PyResult<(AnyRule, f64)> {
        let rule = kind.read(self)?;
        let factor = if self.is_set("maximize")? { -1.0 } else { 1.0 };
        Ok((rule, factor))
    }
}

impl Group<'_, '_> {
    /// The number that stands under `key`, a hyperparameter.
    pub(crate) fn number_of(&mut self, key: &'static str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
        let plain = self.torch.filter(|_| key == "lr").and_then(|torch| torch.read_number(value));
        if let Some((lr, dtype)) = plain {
            self.single_lr = dtype != DType::F64;
            return Ok(lr);
        }
        let foreign = !is_number(value);
        self.foreign |= foreign;
        if key == "lr" && foreign {
            let size = value.getattr_opt(pyo3::intern!(value.py(), "element_size"))?;
            self.single_lr = size.map_or(Ok(8), |size| size.call0()?.extract::<usize>())? < 8;
        }
        number(value, key)
    }
}

/// Whether a group has torch's fused path chosen, or something that asks to be asked: torch then refuses what is no
/// dense real number.
pub(crate) fn is_fused(values: &Bound<'_, PyDict>) -> PyResult<bool> {
    // anything but None and False may be an object of which asking runs Python code
    let fused = values.get_item(pyo3::intern!(values.py(), "fused"))?;
    Ok(fused.is_some_and(|fused| !fused.is_none() && !fused.is(PyBool::new(values.py(), false))))
}

/// Whether a group asks for torch's foreach path, or holds something of which asking would run code.
pub(crate) fn asks_for_foreach(value: Option<&Bound<'_, PyAny>>) -> bool {
    value.is_some_and(|value| !value.is_none() && !value.is(PyBool::new(value.py(), false)))
}

/// Whether it is a number of which reading runs no foreign code: a float or an integer of Python's own, or NumPy's
/// float64, which is a float and what schedules computed with NumPy give.
pub(crate) fn is_number(value: &Bound<'_, PyAny>) -> bool {
    value.is_exact_instance_of::<PyFloat>() || value.is_exact_instance_of::<PyInt>() || is_numpy_float(value)
}

fn is_numpy_float(value: &Bound<'_, PyAny>) -> bool {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = value.py();
    let class = || CLASS.get_or_init(py, || numpy::dtype::<f64>(py).typeobj().unbind());
    value.is_instance_of::<PyFloat>() && value.get_type().is(class())
}

/// A number given as one, or as a tensor or array of one element.
pub(crate) fn number(value: &Bound<'_, PyAny>, key: &str) -> PyResult<f64> {
    if let Ok(float) = value.cast::<PyFloat>()
        && is_number(value)
    {
        return Ok(float.value());
    }
    let py = value.py();
    let scalar = if is_number(value) {
        value.clone() // an integer, as torch's defaults are: to ask it for what it lacks would raise twice
    } else {
        if value.getattr_opt(pyo3::intern!(py, "requires_grad"))?.is_some_and(|flag| flag.is_truthy().unwrap_or(true)) {
            return Err(PyTypeError::new_err(format!("{key} requires grad")));
        }
        match value.getattr_opt(pyo3::intern!(py, "item"))? {
            Some(item) => item.call0()?,
            None => value.clone(),
        }
    };
    scalar.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(py) {
            return PyOverflowError::new_err(format!("{key:?} of a param group is beyond the range of a float"));
        }
        let class = value.get_type().name().map_or_else(|_| "something else".to_owned(), |name| name.to_string());
        PyTypeError::new_err(format!("{key:?} of a param group must be a number, got {class}"))
    })
}

/// Flags that make a group torch's.
pub(crate) const FLAGS: [(&str, &str); 2] = [
    ("differentiable", "differentiable=True: autograd goes through the step"),
    ("capturable", "capturable=True: the step may be captured in a graph"),
];

/// Reads a group's compiled rule, or says why the whole group is torch's.
pub(crate) fn read_compiled(group: &mut Group<'_, '_>, kind: Kind) -> PyResult<Result<(AnyRule, f64), Reason>> {
    for (flag, reason) in FLAGS {
        if group.is_set(flag)? {
            return Ok(Err(reason.into()));
        }
    }
    let py = group.values.py();
    Ok(group.read(kind).map_err(|error| {
        format!("a hyperparameter is no plain number ({}), torch decides what that means", error.value(py)).into()
    }))
}

impl Hyperparameters for Group<'_, '_> {
    type Error = PyErr;

    fn number(&mut self, key: &'static str) -> PyResult<f64> {
        match self.lr {
            Some(lr) if key == "lr" => Ok(lr),
            _ => {
                let value = self.value(key)?;
                self.number_of(key, &value)
            }
        }
    }

    fn pair(&mut self, key: &'static str) -> PyResult<(f64, f64)> {
        let value = self.value(key)?;
        if let Ok(tuple) = value.cast::<PyTuple>()
            && tuple.len() == 2
        {
            let (first, second) = (tuple.get_item(0)?, tuple.get_item(1)?);
            self.foreign |= !(is_number(&first) && is_number(&second));
            return Ok((number(&first, key)?, number(&second, key)?));
        }
        self.foreign = true;
        let (first, second): (Bound<'_, PyAny>, Bound<'_, PyAny>) = value.extract::<(_, _)>().or_else(|_| {
            let list: [Bound<'_, PyAny>; 2] = value.extract()?;
            let [first, second] = list;
            PyResult::Ok((first, second))
        })?;
        Ok((number(&first, key)?, number(&second, key)?))
    }

    fn pair_or_none(&mut self, key: &'static str) -> PyResult<(Option<f64>, f64)> {
        if let Some(value) = self.find(key)?
            && let Ok((first, second)) = value.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()
            && first.is_none()
        {
            self.foreign |= !is_number(&second) || !value.is_exact_instance_of::<PyTuple>();
            return Ok((None, number(&second, key)?));
        }
        self.pair(key).map(|(first, second)| (Some(first), second))
    }

    fn flag(&mut self, key: &'static str) -> PyResult<bool> {
        let value = self.value(key)?;
        self.truth(&value)
    }
}
