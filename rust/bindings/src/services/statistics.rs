//! Statistics of gradients, for `oxistep.diagnostics`.

use numpy::{PyReadwriteArray2, PyUntypedArrayMethods};
use oxistep_kernels::driver;
use oxistep_kernels::simd::Level;
use oxistep_kernels::statistics::{Statistics, Summary};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::error::panicked_reading;
use crate::memory::numpy::accept;
use crate::memory::python::CollectorRests;
use crate::memory::stream::{layout, read_all};
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
        let mut held = std::mem::take(&mut self.held); // let go of whatever is raised
        for tensor in tensors.iter() {
            let gradient = if of_grad { tensor.getattr(pyo3::intern!(py, "grad"))? } else { tensor };
            held.push(gradient.unbind());
        }
        let (mut found, mut parts, mut left) = (Vec::new(), Vec::new(), Vec::new());
        let rests = CollectorRests::new(py);
        for (i, gradient) in held.iter().enumerate() {
            let gradient = gradient.bind(py);
            if gradient.is_none() {
                out.row(i).fill(f64::NAN);
                continue;
            }
            match torch.plain(gradient)? {
                Some(described) => {
                    found.push(described);
                    parts.push((i, layout(&[described])));
                }
                None => left.push(i),
            }
        }
        let done = read_all(&found, |slices| {
            let mut statistics: Statistics<'_> = self.statistics.take().unwrap_or_default();
            slices.into_iter().zip(&parts).for_each(|(slice, (_, layout))| statistics.push(slice, layout.as_ref()));
            drop(rests);
            let done = compute(py, &mut statistics);
            if done.is_ok() {
                parts.iter().zip(statistics.summaries()).for_each(|((i, _), summary)| write(out.row(*i), &summary));
            }
            self.statistics = Some(statistics.recycle());
            done
        });
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
        let mut parts = Vec::with_capacity(arrays.len());
        for (i, (array, name)) in arrays.iter().zip(names).enumerate() {
            if array.is_none() {
                continue;
            }
            let array = accept::gradient(&array)?;
            parts.push((i, accept::floats(&array, &format!("the gradient of {}", name.repr()?))?));
        }
        // asking for a name or a class may have run Python code
        if !parts.iter().all(|(_, array)| array.is_unchanged(py)) {
            return Err(PyRuntimeError::new_err("a gradient was reshaped or resized while gradients were looked at"));
        }
        let (slices, layouts): (Vec<_>, Vec<_>) = parts.iter().map(|(_, array)| array.read()).unzip();
        let mut statistics: Statistics<'_> = self.statistics.take().unwrap_or_default();
        slices.into_iter().zip(&layouts).for_each(|(slice, layout)| statistics.push(slice, layout.as_ref()));
        let done = compute(py, &mut statistics);
        if done.is_ok() {
            (0..arrays.len()).for_each(|i| out.row(i).fill(f64::NAN));
            parts.iter().zip(statistics.summaries()).for_each(|((i, _), summary)| write(out.row(*i), &summary));
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
