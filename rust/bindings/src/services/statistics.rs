//! Statistics of gradients, for `oxistep.diagnostics`.
#![allow(unsafe_code)]

use numpy::{PyReadwriteArray2, PyUntypedArray, PyUntypedArrayMethods};
use oxistep_kernels::simd::Level;
use oxistep_kernels::statistics::{Statistics, Summary};
use oxistep_kernels::{Layout, driver};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::error::panicked_reading;
use crate::memory::numpy::{accept, array};
use crate::memory::python::CollectorRests;
use crate::memory::stream::{Memory, layout};
use crate::memory::torch::modules::modules;
use crate::threads::with_pool;

/// The columns that a row of statistics has, in order.
const FIELDS: [&str; 9] = ["elements", "mean", "variance", "norm", "smallest", "largest", "zeros", "nan", "inf"];

/// Measures gradients, keeping its memory from one time to the next.
#[pyclass(module = "oxistep._core")]
#[derive(Default)]
pub(crate) struct GradientStatistics {
    statistics: Option<Statistics<'static>>,
    /// Room for the gradients, which it keeps alive while it reads them.
    held: Vec<Py<PyAny>>,
    parts: Vec<(usize, Memory, Option<Box<Layout>>)>,
}

#[pymethods]
impl GradientStatistics {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The names of the columns.
    #[staticmethod]
    fn fields(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        PyTuple::new(py, FIELDS)
    }

    /// Writes the statistics of torch tensors into the rows of `out`; of their gradients if `of_grad`. Where there is
    /// none (`None`), the row becomes NaN. Returns the places of those that kernels do not serve; their rows are left
    /// alone.
    fn of_tensors(
        &mut self,
        tensors: &Bound<'_, PyList>,
        out: PyReadwriteArray2<'_, f64>,
        of_grad: bool,
    ) -> PyResult<Vec<usize>> {
        let py = tensors.py();
        let torch = &modules(py)?.torch;
        let mut out = rows_of(out, tensors.len())?;
        self.parts.clear();
        let mut held = std::mem::take(&mut self.held); // let go of whatever is raised
        for tensor in tensors.iter() {
            let gradient = if of_grad { tensor.getattr(pyo3::intern!(py, "grad"))? } else { tensor };
            held.push(gradient.unbind());
        }
        let mut left = Vec::new();
        let rests = CollectorRests::new(py);
        for (i, gradient) in held.iter().enumerate() {
            let gradient = gradient.bind(py);
            if gradient.is_none() {
                out.row(i).fill(f64::NAN);
                continue;
            }
            match torch.plain(gradient)? {
                Some(described) => {
                    self.parts.push((i, described.memory, layout(&[Some(described)]).map(Box::new)));
                }
                None => left.push(i),
            }
        }
        let mut statistics: Statistics<'_> = self.statistics.take().unwrap_or_default();
        for (_, memory, layout) in &self.parts {
            // SAFETY: `held` keeps the tensors alive, and no Python code of this thread has run since the first of them
            // was described: the collector rests, and only plain tensors are asked. That nobody writes to gradients or
            // resizes them while they are looked at is what torch, too, leaves to its callers. The slices end with
            // `recycle`.
            statistics.push(unsafe { memory.slice() }, layout.as_deref());
        }
        drop(rests);
        let done = compute(py, &mut statistics);
        if done.is_ok() {
            self.parts.iter().zip(statistics.summaries()).for_each(|((i, ..), summary)| write(out.row(*i), &summary));
        }
        self.statistics = Some(statistics.recycle());
        held.clear();
        self.held = held;
        done.map(|()| left)
    }

    /// Writes the statistics of NumPy arrays into the rows of `out`, NaN where there is `None`. `names` are for errors.
    fn of_arrays(
        &mut self,
        arrays: &Bound<'_, PyList>,
        names: &Bound<'_, PyList>,
        out: PyReadwriteArray2<'_, f64>,
    ) -> PyResult<()> {
        let py = arrays.py();
        if names.len() != arrays.len() {
            return Err(PyValueError::new_err("as many names as arrays are wanted"));
        }
        let mut out = rows_of(out, arrays.len())?;
        let (mut given, mut parts) = (Vec::with_capacity(arrays.len()), Vec::with_capacity(arrays.len()));
        for (i, (array, name)) in arrays.iter().zip(names).enumerate() {
            if array.is_none() {
                continue;
            }
            let array = accept::gradient(&array)?;
            let accepted = accept::accept(&array, &format!("the gradient of {}", name.repr()?), false)?;
            let (extents, layout) = array::place(std::slice::from_ref(&accepted));
            given.push(array.cast_into::<PyUntypedArray>()?);
            parts.push((i, accepted, extents[0], layout));
        }
        // asking for a name or a class may have run Python code
        if !given.iter().zip(&parts).all(|(given, (_, array, ..))| array::is_unchanged(given, array.untyped())) {
            return Err(PyRuntimeError::new_err("a gradient was reshaped or resized while gradients were looked at"));
        }
        let mut statistics: Statistics<'_> = self.statistics.take().unwrap_or_default();
        for (_, array, extent, layout) in &parts {
            // SAFETY: `parts` holds the numpy crate's shared borrows of all arrays until this function returns, so
            // nothing that keeps its account writes to them; they are alive, and were found where they were since
            // Python code of this thread last ran. The slices end with `recycle`.
            statistics.push(unsafe { array.slice(*extent) }, layout.as_ref());
        }
        let done = compute(py, &mut statistics);
        if done.is_ok() {
            (0..arrays.len()).for_each(|i| out.row(i).fill(f64::NAN));
            parts.iter().zip(statistics.summaries()).for_each(|((i, ..), summary)| write(out.row(*i), &summary));
        }
        self.statistics = Some(statistics.recycle());
        done
    }
}

fn compute(py: Python<'_>, statistics: &mut Statistics<'_>) -> PyResult<()> {
    let small = statistics.elements() < driver::SERIAL;
    let mut run = || with_pool(|pool| statistics.compute(pool, Level::current()));
    let done = if small { run() } else { py.detach(run) };
    done.map_err(|panic| panicked_reading(&*panic))
}

/// The rows that statistics are written to.
struct Rows<'py>(PyReadwriteArray2<'py, f64>);

fn rows_of(out: PyReadwriteArray2<'_, f64>, rows: usize) -> PyResult<Rows<'_>> {
    if out.shape() != [rows, FIELDS.len()] {
        return Err(PyValueError::new_err(format!("out must have the shape ({rows}, {})", FIELDS.len())));
    }
    if !out.is_c_contiguous() {
        return Err(PyTypeError::new_err("out must be contiguous"));
    }
    Ok(Rows(out))
}

impl Rows<'_> {
    fn row(&mut self, i: usize) -> &mut [f64] {
        let all = self.0.as_slice_mut().unwrap_or_default();
        all.chunks_exact_mut(FIELDS.len()).nth(i).unwrap_or_default()
    }
}

/// Writes one row: what cannot be said of no finite element is NaN.
fn write(row: &mut [f64], found: &Summary) {
    let elements = found.finite + found.nans + found.infinities;
    let of_finite = |x: f64| if found.finite == 0 { f64::NAN } else { x };
    let smallest = if found.smallest.is_finite() { found.smallest } else { 0.0 };
    row.copy_from_slice(&[
        elements as f64,
        of_finite(found.mean),
        found.variance(),
        of_finite(found.norm()),
        of_finite(smallest),
        of_finite(found.largest),
        if elements == 0 { f64::NAN } else { found.zeros as f64 / elements as f64 },
        found.nans as f64,
        found.infinities as f64,
    ]);
}
