//! Norms of gradients and changing them in place, for `oxistep.clip_grad_norm_` and its kin.
//!
//! Tensors that kernels do not serve are named to the caller, who turns to torch with them.

use std::cell::RefCell;

use oxistep_kernels::change::{Change, Changes};
use oxistep_kernels::norm::Order;
use oxistep_kernels::overlap::Written;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{bf16, driver, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::panicked;
use crate::memory::dtype::DType;
use crate::memory::python::CollectorRests;
use crate::memory::stream::{Memory, layout, lend};
use crate::memory::torch::modules::modules;
use crate::services::norm::{factor, norm_of, zero_dim};
use crate::threads::with_pool;

/// The norm of those of `tensors` that kernels serve, as a 0-dimensional tensor of torch's dtype (`None` if there are
/// none), and the places of the others. `norm_type` is 1, 2 or infinity.
#[pyfunction]
pub(crate) fn grad_norm<'py>(
    tensors: &Bound<'py, PyList>,
    norm_type: f64,
) -> PyResult<(Option<Bound<'py, PyAny>>, Vec<usize>)> {
    let py = tensors.py();
    // torch refuses the largest element of nothing
    let (norm, dtype, left) = measured(tensors, norm_type, |memory| norm_type.is_finite() || memory.len > 0)?;
    Ok((dtype.map(|dtype| zero_dim(py, norm, dtype)).transpose()?, left))
}

/// The norm of those of `tensors` that kernels serve, not rounded to their dtype, and the places of the others.
/// `norm_type` is 1, 2 or infinity; what has no elements counts as zero.
#[pyfunction]
pub(crate) fn grad_norm_in_double(tensors: &Bound<'_, PyList>, norm_type: f64) -> PyResult<(f64, Vec<usize>)> {
    measured(tensors, norm_type, |_| true).map(|(norm, _, left)| (norm, left))
}

/// The norm of those of `tensors` that kernels serve and that are `wanted`, the dtype that torch would give it, and the
/// places of the others.
fn measured(
    tensors: &Bound<'_, PyList>,
    norm_type: f64,
    wanted: impl Fn(&Memory) -> bool,
) -> PyResult<(f64, Option<DType>, Vec<usize>)> {
    let order = match norm_type {
        1.0 => Order::One,
        2.0 => Order::Two,
        f64::INFINITY => Order::Max,
        _ => return Err(PyValueError::new_err(format!("no kernel for norms of order {norm_type}"))),
    };
    let py = tensors.py();
    let torch = &modules(py)?.torch;
    let (mut found, mut left) = (Vec::new(), Vec::new());
    let objects: Vec<_> = tensors.iter().collect(); // others may change the list
    for (i, tensor) in objects.iter().enumerate() {
        match torch.plain(tensor)? {
            // the absolute value of a complex number is no matter of its parts, but for its square
            Some(described) if (order == Order::Two || !described.memory.complex) && wanted(&described.memory) => {
                found.push(described);
            }
            _ => left.push(i),
        }
    }
    let (norm, dtype) = norm_of(py, &found, order)?;
    Ok((norm, dtype, left))
}

/// What `torch.nn.utils.clip_grad_norm_` multiplies by, given the total norm; `None` if that is no plain CPU tensor.
#[pyfunction]
pub(crate) fn clip_factor(total_norm: &Bound<'_, PyAny>, max_norm: f64) -> PyResult<Option<f64>> {
    let torch = &modules(total_norm.py())?.torch;
    let Some(described) = torch.plain(total_norm)? else { return Ok(None) };
    let norm = described.number().filter(|_| !described.memory.complex);
    Ok(norm.map(|norm| factor(norm, max_norm, described.memory.dtype)))
}

/// Multiplies tensors in place. `False`, and nothing done, if that is torch's: see `change`.
#[pyfunction]
pub(crate) fn scale(tensors: &Bound<'_, PyList>, factor: f64) -> PyResult<bool> {
    // a complex product adds products with a zero, which matter to infinities
    let complex = factor.is_finite() && factor != 0.0;
    change(tensors, Change::Scale(factor), complex)
}

/// Brings every element of tensors between bounds, in place. `False`, and nothing done, if that is torch's.
#[pyfunction]
pub(crate) fn clamp(tensors: &Bound<'_, PyList>, low: f64, high: f64) -> PyResult<bool> {
    change(tensors, Change::Clamp(low, high), false)
}

/// Changes tensors in place. `False`, and nothing done, unless every one of them is served and they overlap nowhere.
/// Bounds beyond the range of a dtype are torch's to refuse.
fn change(tensors: &Bound<'_, PyList>, change: Change, complex: bool) -> PyResult<bool> {
    thread_local! {
        /// Remembers what it sorted: a training loop gives the same gradients again.
        static WRITTEN: RefCell<Written> = RefCell::default();
    }
    let py = tensors.py();
    let modules = modules(py)?;
    let objects: Vec<_> = tensors.iter().collect();
    let (mut parts, mut layouts) = (Vec::with_capacity(objects.len()), Vec::with_capacity(objects.len()));
    let rests = CollectorRests::new(py);
    for tensor in &objects {
        match modules.torch.plain(tensor)? {
            Some(d)
                if (d.is_dense || d.shape.is_free_of_overlap())
                    && (complex || !d.memory.complex)
                    && within_range(change, d.memory.dtype) =>
            {
                parts.push(d);
                layouts.push(layout(&[d]));
            }
            _ => return Ok(false),
        }
    }
    let mut written = WRITTEN.take();
    let done = lend(&mut written, &parts, &[], |slices, _| {
        // nothing is written yet; the collector rests, so that no Python code runs
        modules.increment_version.call1(py, (tensors,))?;
        drop(rests);
        let mut changes = Changes::default();
        slices.into_iter().zip(&layouts).for_each(|(slice, layout)| changes.push(slice, layout.as_ref()));
        let small = changes.elements() < driver::SERIAL;
        let run = || with_pool(|pool| changes.run(change, pool, Level::current()));
        let done = if small { run() } else { py.detach(run) };
        done.map_err(|panic| panicked(&*panic))
    });
    WRITTEN.set(written);
    Ok(done.transpose()?.is_some())
}

/// Whether bounds that are finite are so in `dtype`.
fn within_range(change: Change, dtype: DType) -> bool {
    let largest = match dtype {
        DType::F64 => f64::MAX,
        DType::F32 => f32::MAX.into(),
        DType::F16 => f16::MAX.to_f64(),
        DType::Bf16 => bf16::MAX.to_f64(),
        DType::U8 | DType::I16 => f64::MAX, // no gradient is described so
    };
    match change {
        Change::Scale(_) => true,
        Change::Clamp(low, high) => [low, high].iter().all(|bound| bound.abs() <= largest || !bound.is_finite()),
    }
}
