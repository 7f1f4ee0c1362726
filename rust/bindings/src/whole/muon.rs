//! Muon over torch's memory: momentum before the matrix products, decay and update after. The products, and what is
//! done when, are Python's; each function here checks all tensors that it is given before it writes the first.
#![allow(clippy::needless_pass_by_value, reason = "the signatures are PyO3's")]

use oxistep_kernels::driver::SERIAL;
use oxistep_kernels::muon::{self, Lines, Momentum, Update, Work};
use oxistep_kernels::overlap::Written;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{Slice, SliceMut};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::error::panicked;
use crate::memory::dtype::DType;
use crate::memory::span::are_apart;
use crate::memory::stream::{Described, Memory, lend};
use crate::memory::torch::describe::Torch;
use crate::memory::torch::modules::modules;
use crate::threads::with_pool;

type Objects<'py> = Vec<Bound<'py, PyAny>>;

/// For each parameter why it is left to torch, or `None`: it is native. A buffer that is yet to be made is `None`.
#[pyfunction]
pub(crate) fn muon_unfit(
    py: Python<'_>,
    params: Objects<'_>,
    grads: Objects<'_>,
    buffers: Objects<'_>,
) -> PyResult<Vec<Option<&'static str>>> {
    let torch = &modules(py)?.torch;
    let (mut written, mut read) = (Vec::with_capacity(2 * params.len()), Vec::with_capacity(params.len()));
    let mut reasons = Vec::with_capacity(params.len());
    for ((param, grad), buffer) in params.iter().zip(&grads).zip(&buffers) {
        let buffer = (!buffer.is_none()).then_some(buffer);
        reasons.push(match unfit(torch, param, grad, buffer)? {
            Err(reason) => {
                // what torch updates must not be memory of what is native either
                let interval = |object: &Bound<'_, PyAny>| Some(torch.describe(object).ok()?.memory.interval());
                written.extend(interval(param).into_iter().chain(buffer.and_then(interval)));
                read.extend(interval(grad));
                Some(reason)
            }
            Ok(_) if inference(param)? => Some("it was made in inference mode"),
            Ok((param, grad, buffer)) => {
                written.push(param.interval());
                written.extend(buffer.map(|buffer| buffer.interval()));
                read.push(grad.interval());
                None
            }
        });
    }
    if !are_apart(&mut Written::default(), written.into_iter(), read.into_iter()) {
        reasons.iter_mut().for_each(|reason| *reason = reason.or(Some("tensors of the step overlap")));
    }
    Ok(reasons)
}

/// Writing to such a tensor may be forbidden: torch decides.
fn inference(param: &Bound<'_, PyAny>) -> PyResult<bool> {
    param.call_method0(pyo3::intern!(param.py(), "is_inference"))?.is_truthy()
}

type Found = (Memory, Memory, Option<Memory>);

fn unfit(
    torch: &Torch,
    param: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
    buffer: Option<&Bound<'_, PyAny>>,
) -> PyResult<Result<Found, &'static str>> {
    let (param, grad) = (plain(torch, param)?, plain(torch, grad)?);
    let buffer = buffer.map(|buffer| plain(torch, buffer)).transpose()?;
    Ok(fit(param, grad, buffer))
}

fn fit(
    param: Option<Described<'_>>,
    grad: Option<Described<'_>>,
    buffer: Option<Option<Described<'_>>>,
) -> Result<Found, &'static str> {
    let param = param.ok_or("the parameter is no plain, dense, real tensor on the CPU")?;
    let grad = grad.ok_or("the gradient is no plain, dense, real tensor on the CPU")?;
    if grad.memory.dtype != param.memory.dtype || param.shape.sizes.len() != 2 || !grad.shape.same_sizes(&param.shape) {
        return Err("parameter and gradient differ in dtype or shape");
    }
    let Some(buffer) = buffer else { return Ok((param.memory, grad.memory, None)) };
    let buffer = buffer.ok_or("the state is no plain, dense, real tensor on the CPU")?;
    if !buffer.shape.same_sizes(&grad.shape) || !buffer.shape.same_order(&grad.shape) {
        return Err("the state lies otherwise in memory than the gradient");
    }
    if !known(grad.memory.dtype, buffer.memory.dtype) {
        return Err("no kernel for the state's dtype");
    }
    Ok((param.memory, grad.memory, Some(buffer.memory)))
}

/// Describes a dense, real tensor; `None` if it is none.
fn plain<'t>(torch: &Torch, object: &'t Bound<'_, PyAny>) -> PyResult<Option<Described<'t>>> {
    Ok(torch.plain(object)?.filter(|found| found.is_dense && !found.memory.complex))
}

/// Whether there is a kernel for gradients and buffers of these types.
fn known(grad: DType, buffer: DType) -> bool {
    grad == buffer || (buffer == DType::F32 && matches!(grad, DType::F16 | DType::Bf16))
}

/// Moves the buffers towards the gradients and writes Nesterov's updates, where a tensor is given to take one.
#[pyfunction]
pub(crate) fn muon_momentum(
    py: Python<'_>,
    grads: Objects<'_>,
    buffers: Objects<'_>,
    updates: Objects<'_>,
    momenta: Vec<f64>,
) -> PyResult<()> {
    let torch = &modules(py)?.torch;
    let mut jobs = Vec::with_capacity(grads.len());
    let (mut read, mut written) = (Vec::with_capacity(grads.len()), Vec::with_capacity(2 * grads.len()));
    for (((grad, buffer), update), momentum) in grads.iter().zip(&buffers).zip(&updates).zip(momenta) {
        let (grad, buffer) = (dense(torch, grad)?, dense(torch, buffer)?);
        let update = if update.is_none() { None } else { Some(dense(torch, update)?) };
        let alike = |other: &Described<'_>| other.shape.same_sizes(&grad.shape) && other.shape.same_order(&grad.shape);
        let fits = |update: &Described<'_>| alike(update) && update.memory.dtype == DType::Bf16;
        if !alike(&buffer) || !known(grad.memory.dtype, buffer.memory.dtype) || !update.as_ref().is_none_or(fits) {
            return Err(changed());
        }
        read.push(grad);
        written.push(buffer);
        written.extend(update);
        jobs.push((update.is_some(), momentum));
    }
    let done = lend(&mut Written::default(), &written, &read, |written, read| {
        let mut work = Vec::with_capacity(jobs.len());
        let mut written = written.into_iter();
        for ((has_update, momentum), grad) in jobs.into_iter().zip(read) {
            let Some(buffer) = written.next() else { return Err(changed()) };
            let update = if has_update { written.next() } else { None };
            add_momentum(&mut work, grad, buffer, update, momentum)?;
        }
        run(py, work)
    });
    done.unwrap_or_else(|| Err(changed()))
}

/// Adds the work of one parameter, if there is a kernel for it.
fn add_momentum<'l>(
    work: &mut Vec<Box<dyn Work + 'l>>,
    grad: Slice<'l>,
    buffer: SliceMut<'l>,
    update: Option<SliceMut<'l>>,
    momentum: f64,
) -> PyResult<()> {
    let update = match update {
        Some(SliceMut::Bf16(update)) => Some(update),
        _ => None,
    };
    match (grad, buffer) {
        (Slice::F64(grad), SliceMut::F64(buffer)) => Momentum { grad, buffer, update, momentum }.push(work),
        (Slice::F32(grad), SliceMut::F32(buffer)) => Momentum { grad, buffer, update, momentum }.push(work),
        (Slice::F16(grad), SliceMut::F16(buffer)) => Momentum { grad, buffer, update, momentum }.push(work),
        (Slice::F16(grad), SliceMut::F32(buffer)) => Momentum { grad, buffer, update, momentum }.push(work),
        (Slice::Bf16(grad), SliceMut::Bf16(buffer)) => Momentum { grad, buffer, update, momentum }.push(work),
        (Slice::Bf16(grad), SliceMut::F32(buffer)) => Momentum { grad, buffer, update, momentum }.push(work),
        _ => return Err(changed()),
    }
    Ok(())
}

/// Multiplies each parameter by its decay and adds its product times its alpha.
#[pyfunction]
pub(crate) fn muon_update(
    py: Python<'_>,
    params: Objects<'_>,
    products: Objects<'_>,
    decays: Vec<f64>,
    alphas: Vec<f64>,
) -> PyResult<()> {
    let torch = &modules(py)?.torch;
    let mut jobs = Vec::with_capacity(params.len());
    let (mut read, mut written) = (Vec::with_capacity(params.len()), Vec::with_capacity(params.len()));
    for (((param, product), decay), alpha) in params.iter().zip(&products).zip(decays).zip(alphas) {
        let (param, product) = (dense(torch, param)?, dense(torch, product)?);
        let fits = param.shape.same_sizes(&product.shape) && product.memory.dtype == DType::Bf16;
        let lines = lines(&param, &product).filter(|_| fits).ok_or_else(changed)?;
        read.push(product);
        written.push(param);
        jobs.push((lines, decay, alpha));
    }
    let done = lend(&mut Written::default(), &written, &read, |params, products| {
        let mut work: Vec<Box<dyn Work + '_>> = Vec::with_capacity(jobs.len());
        for (((lines, decay, alpha), param), product) in jobs.into_iter().zip(params).zip(products) {
            let Slice::Bf16(product) = product else { return Err(changed()) };
            match param {
                SliceMut::F64(param) => Update { param, product, lines, decay, alpha }.push(&mut work),
                SliceMut::F32(param) => Update { param, product, lines, decay, alpha }.push(&mut work),
                SliceMut::F16(param) => Update { param, product, lines, decay, alpha }.push(&mut work),
                SliceMut::Bf16(param) => Update { param, product, lines, decay, alpha }.push(&mut work),
                SliceMut::U8(_) | SliceMut::I16(_) => return Err(changed()),
            }
        }
        run(py, work)
    });
    done.unwrap_or_else(|| Err(changed()))
}

fn dense<'t>(torch: &Torch, object: &'t Bound<'_, PyAny>) -> PyResult<Described<'t>> {
    plain(torch, object)?.ok_or_else(changed)
}

fn changed() -> PyErr {
    PyRuntimeError::new_err(
        "a parameter, gradient or state of Muon was changed while the step ran; the momentum of some parameters may \
         have been updated already. Load a checkpoint before going on",
    )
}

/// How the elements of a dense matrix, line after line in memory, find theirs in another.
fn lines(param: &Described<'_>, product: &Described<'_>) -> Option<Lines> {
    let (&[rows, columns], &[by_row, by_column]) = (param.shape.sizes, param.shape.strides) else { return None };
    let &[product_by_row, product_by_column] = product.shape.strides else { return None };
    let (width, step, pitch) = if columns == 1 || (rows != 1 && by_row == 1 && by_column != 1) {
        (rows, product_by_row, product_by_column)
    } else {
        (columns, product_by_column, product_by_row)
    };
    // the strides of dimensions of size one mean nothing
    let usual = |n: i64, stride: i64| if n == 1 { 1 } else { stride };
    let pitches = rows * columns / width.max(1);
    Some(Lines {
        width: usize::try_from(width).ok()?,
        step: usize::try_from(usual(width, step)).ok()?,
        pitch: usize::try_from(usual(pitches, pitch)).ok()?,
    })
}

fn run(py: Python<'_>, mut work: Vec<Box<dyn Work + '_>>) -> PyResult<()> {
    let elements: usize = work.iter().map(|work| work.len()).sum();
    let mut run = || with_pool(|pool| muon::run(pool, Level::current(), &mut work));
    let done = if elements < SERIAL { run() } else { py.detach(run) };
    done.map_err(|panic| panicked(&*panic))
}
