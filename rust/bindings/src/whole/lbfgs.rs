//! The vector work of LBFGS over torch's memory. The class in Python decides what is done when; each function here
//! checks all tensors that it is given before it writes the first.
//!
//! `gather`, `spread` and `move_along` answer `False`, having done nothing, for tensors that torch must serve. The
//! others are given vectors and scalars that the class has made, or that `unfit` has looked at: they raise.
#![allow(unsafe_code)]
#![allow(clippy::needless_pass_by_value, reason = "the signatures are PyO3's")]

use oxistep_kernels::pool::Panic;
use oxistep_kernels::simd::Level;
use oxistep_kernels::vector::{self, History, Means, Piece, SERIAL, Scalar, Transfer};
use oxistep_kernels::{Slice, SliceMut};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::panicked;
use crate::memory::dtype::DType;
use crate::memory::span::{Span, clash};
use crate::memory::stream::Memory;
use crate::memory::torch::describe::Torch;
use crate::memory::torch::modules::modules;
use crate::memory::unfit::{Unfit, outside};
use crate::threads::with_pool;

/// Why LBFGS with these parameters, flat vectors and scalars (of its state) is left to torch; `None` if it is native.
#[pyfunction]
pub(crate) fn lbfgs_unfit(
    py: Python<'_>,
    params: &Bound<'_, PyList>,
    vectors: Vec<Bound<'_, PyAny>>,
    scalars: Vec<Bound<'_, PyAny>>,
) -> PyResult<Option<String>> {
    let torch = &modules(py)?.torch;
    let mut found: Option<DType> = None;
    let mut spans = Vec::with_capacity(params.len());
    let mut elements = 0;
    for (i, param) in params.iter().enumerate() {
        let Some(memory) = contiguous(torch, &param)? else {
            return Ok(Some(format!("params[{i}] is no plain, contiguous tensor on the CPU")));
        };
        if !matches!(memory.dtype, DType::F32 | DType::F64) || *found.get_or_insert(memory.dtype) != memory.dtype {
            return Ok(Some(format!("params[{i}] is not float32 or float64 like the others")));
        }
        spans.push(Span::written(&memory));
        elements += memory.len;
    }
    let Some(dtype) = found else { return Ok(Some("there are no parameters".into())) };
    if clash(&mut spans) {
        return Ok(Some("parameters overlap".into()));
    }
    let states = vectors.iter().map(|object| (object, elements)).chain(scalars.iter().map(|object| (object, 1)));
    for (object, len) in states {
        let fits = |memory: Memory| memory.dtype == dtype && memory.len == len && !memory.complex;
        if !contiguous(torch, object)?.is_some_and(fits) {
            return Ok(Some("a state is no tensor of the parameters' dtype and size".into()));
        }
    }
    Ok(None)
}

/// Copies the gradients into `flat`, one after the other, negated if asked for; zeros for missing ones.
#[pyfunction]
pub(crate) fn lbfgs_gather(
    py: Python<'_>,
    params: &Bound<'_, PyList>,
    flat: &Bound<'_, PyAny>,
    negate: bool,
) -> PyResult<bool> {
    let torch = &modules(py)?.torch;
    // all gradients are fetched before the first is described: fetching runs Python
    let grads: Vec<_> = params.iter().map(|p| p.getattr(pyo3::intern!(py, "grad"))).collect::<PyResult<_>>()?;
    let Some(to) = contiguous(torch, flat)? else { return Ok(false) };
    let mut from = Vec::with_capacity(grads.len());
    for (param, grad) in params.iter().zip(&grads) {
        let Some(param) = contiguous(torch, &param)? else { return Ok(false) };
        if grad.is_none() {
            from.push((param.len, None));
            continue;
        }
        match contiguous(torch, grad)? {
            Some(grad) if grad.len == param.len => from.push((grad.len, Some(grad))),
            _ => return Ok(false),
        }
    }
    if from.iter().map(|(len, _)| len).sum::<usize>() != to.len {
        return Ok(false);
    }
    let mut spans = vec![Span::written(&to)];
    spans.extend(from.iter().filter_map(|(_, grad)| grad.as_ref().map(Span::read)));
    if from.iter().any(|(_, grad)| grad.is_some_and(|grad| grad.dtype != to.dtype)) || clash(&mut spans) {
        return Ok(false);
    }
    match to.dtype {
        DType::F32 => gather::<f32>(py, to, &from, negate),
        DType::F64 => gather::<f64>(py, to, &from, negate),
        _ => return Ok(false),
    }
    .map(|()| true)
}

fn gather<T: Stored>(py: Python<'_>, to: Memory, from: &[(usize, Option<Memory>)], negate: bool) -> PyResult<()> {
    // SAFETY: contract of `Stored`, see there; `clash` found that what is written overlaps nothing else.
    let mut rest = unsafe { T::slice_mut(&to) };
    let mut pieces = Vec::with_capacity(from.len());
    for (len, grad) in from {
        let (to, tail) = rest.split_at_mut(*len);
        rest = tail;
        // SAFETY: as above.
        pieces.push(Piece { to, from: grad.as_ref().map(|grad| unsafe { T::slice(grad) }) });
    }
    let transfer = if negate { Transfer::Negate } else { Transfer::Copy };
    run(py, to.len, |means| vector::transfer(means, pieces, transfer))
}

/// Adds `t` times the flat vector `way` to the parameters.
#[pyfunction]
pub(crate) fn lbfgs_move(py: Python<'_>, params: &Bound<'_, PyList>, way: &Bound<'_, PyAny>, t: f64) -> PyResult<bool> {
    let torch = &modules(py)?.torch;
    let Some(way) = contiguous(torch, way)? else { return Ok(false) };
    // kept alive by this, whatever another thread does to the list
    let params: Vec<_> = params.iter().collect();
    let mut to = Vec::with_capacity(params.len());
    for param in &params {
        match contiguous(torch, param)? {
            Some(param) if param.dtype == way.dtype => to.push(param),
            _ => return Ok(false),
        }
    }
    let mut spans: Vec<_> = to.iter().map(Span::written).collect();
    spans.push(Span::read(&way));
    if to.iter().map(|param| param.len).sum::<usize>() != way.len || clash(&mut spans) {
        return Ok(false);
    }
    match way.dtype {
        DType::F32 => move_along::<f32>(py, &to, way, t),
        DType::F64 => move_along::<f64>(py, &to, way, t),
        _ => return Ok(false),
    }
    .map(|()| true)
}

fn move_along<T: Stored>(py: Python<'_>, to: &[Memory], way: Memory, t: f64) -> PyResult<()> {
    // SAFETY: contract of `Stored`, see there; `clash` found that what is written overlaps nothing else.
    let mut rest = unsafe { T::slice(&way) };
    let mut pieces = Vec::with_capacity(to.len());
    for param in to {
        let (from, tail) = rest.split_at(param.len);
        rest = tail;
        // SAFETY: as above.
        pieces.push(Piece { to: unsafe { T::slice_mut(param) }, from: Some(from) });
    }
    run(py, way.len, |means| vector::transfer(means, pieces, Transfer::Add(T::of(t))))
}

/// The largest absolute value of `t` times a vector.
#[pyfunction]
pub(crate) fn lbfgs_max_abs(py: Python<'_>, vector: &Bound<'_, PyAny>, t: f64) -> PyResult<f64> {
    fn max_abs<T: Stored>(py: Python<'_>, x: Memory, t: f64) -> PyResult<f64> {
        // SAFETY: contract of `Stored`, see there; nothing is written.
        let x = unsafe { T::slice(&x) };
        run(py, x.len(), |means| vector::max_abs(means, x, T::of(t))).map(T::wide)
    }
    let memory = vectors(py, &[vector])?[0];
    if memory.dtype == DType::F64 { max_abs::<f64>(py, memory, t) } else { max_abs::<f32>(py, memory, t) }
}

/// The sum of absolute values of a vector, rounded to its dtype.
#[pyfunction]
pub(crate) fn lbfgs_sum_abs(py: Python<'_>, vector: &Bound<'_, PyAny>) -> PyResult<f64> {
    fn sum_abs<T: Stored>(py: Python<'_>, x: Memory) -> PyResult<f64> {
        // SAFETY: contract of `Stored`, see there; nothing is written.
        let x = unsafe { T::slice(&x) };
        run(py, x.len(), |means| vector::sum_abs(means, x)).map(|sum| T::of(sum).wide())
    }
    let memory = vectors(py, &[vector])?[0];
    if memory.dtype == DType::F64 { sum_abs::<f64>(py, memory) } else { sum_abs::<f32>(py, memory) }
}

/// The dot product of two vectors, rounded to their dtype.
#[pyfunction]
pub(crate) fn lbfgs_dot(py: Python<'_>, a: &Bound<'_, PyAny>, b: &Bound<'_, PyAny>) -> PyResult<f64> {
    fn dot<T: Stored>(py: Python<'_>, a: Memory, b: Memory) -> PyResult<f64> {
        // SAFETY: contract of `Stored`, see there; nothing is written.
        let (a, b) = unsafe { (T::slice(&a), T::slice(&b)) };
        run(py, a.len(), |means| vector::dot(means, a, b)).map(|sum| T::of(sum).wide())
    }
    let memory = vectors(py, &[a, b])?;
    if memory[0].dtype == DType::F64 {
        dot::<f64>(py, memory[0], memory[1])
    } else {
        dot::<f32>(py, memory[0], memory[1])
    }
}

/// Writes the differences of gradients `y` = `grad` - `before` and of parameters `s` = `t` `way`, and takes `before` to
/// `grad`. `True` if their product is positive enough to be kept; then `ro` is its inverse and `scale` the new H.
#[pyfunction]
pub(crate) fn lbfgs_differences(
    py: Python<'_>,
    grad: &Bound<'_, PyAny>,
    before: &Bound<'_, PyAny>,
    way: &Bound<'_, PyAny>,
    t: f64,
    y: &Bound<'_, PyAny>,
    s: &Bound<'_, PyAny>,
    ro: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let memory = vectors(py, &[grad, way, before, y, s])?;
    let torch = &modules(py)?.torch;
    let (ro, scale) = (scalar(torch, ro, memory[0].dtype)?, scalar(torch, scale, memory[0].dtype)?);
    let mut spans: Vec<_> = memory[..2].iter().map(Span::read).collect();
    spans.extend(memory[2..].iter().map(Span::written));
    if clash(&mut spans) {
        return Err(overlapping());
    }
    if memory[0].dtype == DType::F64 {
        differences::<f64>(py, &memory, t, ro, scale)
    } else {
        differences::<f32>(py, &memory, t, ro, scale)
    }
}

fn differences<T: Stored>(py: Python<'_>, memory: &[Memory], t: f64, ro: Memory, scale: Memory) -> PyResult<bool> {
    // SAFETY: contract of `Stored`, see there; `clash` found that what is written overlaps nothing else.
    let (grad, way) = unsafe { (T::slice(&memory[0]), T::slice(&memory[1])) };
    // SAFETY: as above.
    let (before, y, s) = unsafe { (T::slice_mut(&memory[2]), T::slice_mut(&memory[3]), T::slice_mut(&memory[4])) };
    let (ys, yy) = run(py, grad.len(), |means| vector::differences(means, grad, before, way, T::of(t), y, s))?;
    let (ys, yy) = (T::of(ys), T::of(yy));
    // torch's threshold
    let keep = ys > T::of(1e-10);
    if keep {
        // SAFETY: one element each, described above; no Python has run since, and no slice is in use any more.
        unsafe {
            ro.write_scalar((T::ONE / ys).wide());
            scale.write_scalar((ys / yy).wide());
        }
    }
    Ok(keep)
}

/// Writes the direction of descent to `out`, by the two-loop recursion, and the coefficients of its first loop to `al`.
/// Returns the product of direction and gradient, rounded to their dtype.
#[pyfunction]
pub(crate) fn lbfgs_direction(
    py: Python<'_>,
    grad: &Bound<'_, PyAny>,
    old_dirs: Vec<Bound<'_, PyAny>>,
    old_stps: Vec<Bound<'_, PyAny>>,
    ro: Vec<Bound<'_, PyAny>>,
    scale: f64,
    al: &Bound<'_, PyList>,
    out: &Bound<'_, PyAny>,
) -> PyResult<f64> {
    let torch = &modules(py)?.torch;
    let count = old_dirs.len();
    if old_stps.len() != count || ro.len() != count {
        return Err(PyRuntimeError::new_err(format!(
            "old_dirs, old_stps and ro of an LBFGS state must be equally long, got {count}, {} and {}",
            old_stps.len(),
            ro.len()
        )));
    }
    let dtype = vectors(py, &[grad])?[0].dtype;
    let coefficients = (0..count).map(|i| coefficient(torch, al, i, grad, dtype)).collect::<PyResult<Vec<_>>>()?;
    // from here on no Python runs
    let given = [grad, out].into_iter().chain(&old_dirs).chain(&old_stps).collect::<Vec<_>>();
    let memory = vectors(py, &given)?;
    let written = memory[1].interval();
    if memory.iter().enumerate().any(|(i, m)| i != 1 && m.interval().0 < written.1 && written.0 < m.interval().1) {
        return Err(overlapping());
    }
    let scalars = |objects: &[Bound<'_, PyAny>]| {
        objects.iter().map(|object| scalar(torch, object, dtype)).collect::<PyResult<Vec<_>>>()
    };
    let (ro, al) = (scalars(&ro)?, scalars(&coefficients)?);
    if dtype == DType::F64 {
        direction::<f64>(py, &memory, &ro, scale, &al)
    } else {
        direction::<f32>(py, &memory, &ro, scale, &al)
    }
}

fn direction<T: Stored>(py: Python<'_>, memory: &[Memory], ro: &[Memory], scale: f64, al: &[Memory]) -> PyResult<f64> {
    // SAFETY: contract of `Stored`, see there; the caller found that what is written overlaps nothing else.
    let (grad, out) = unsafe { (T::slice(&memory[0]), T::slice_mut(&memory[1])) };
    // SAFETY: as above.
    let vectors: Vec<&[T]> = memory[2..].iter().map(|memory| unsafe { T::slice(memory) }).collect();
    let (dirs, steps) = vectors.split_at(ro.len());
    // SAFETY: one element each, described above; no Python has run since.
    let ro: Vec<T> = ro.iter().map(|ro| T::of(unsafe { ro.read_scalar() }.unwrap_or(f64::NAN))).collect();
    let mut alphas = vec![T::ZERO; ro.len()];
    let history = History { dirs, steps, ro: &ro };
    let product = run(py, out.len(), |means| vector::direction(means, grad, history, T::of(scale), &mut alphas, out))?;
    for (to, alpha) in al.iter().zip(alphas) {
        // SAFETY: as above; no slice is in use any more.
        unsafe { to.write_scalar(alpha.wide()) };
    }
    Ok(product.wide())
}

/// The tensor that takes coefficient `i`: the one of the last step, or a new one.
fn coefficient<'py>(
    torch: &Torch,
    al: &Bound<'py, PyList>,
    i: usize,
    like: &Bound<'py, PyAny>,
    dtype: DType,
) -> PyResult<Bound<'py, PyAny>> {
    let known = al.get_item(i)?;
    if scalar(torch, &known, dtype).is_ok() {
        return Ok(known);
    }
    let new = like.call_method1(pyo3::intern!(al.py(), "new_empty"), ((),))?;
    al.set_item(i, &new)?;
    Ok(new)
}

/// Describes a tensor whose elements lie one after the other in the order of their indices. Complex ones are pairs.
fn contiguous(torch: &Torch, object: &Bound<'_, PyAny>) -> PyResult<Option<Memory>> {
    let described = torch.plain(object)?;
    Ok(described.filter(|described| described.shape.is_contiguous()).map(|described| described.memory))
}

/// Describes flat vectors of one length and dtype.
fn vectors(py: Python<'_>, objects: &[&Bound<'_, PyAny>]) -> PyResult<Vec<Memory>> {
    let torch = &modules(py)?.torch;
    let mut memory: Vec<Memory> = Vec::with_capacity(objects.len());
    for object in objects {
        let found = contiguous(torch, object)?.filter(|found| {
            let like = memory.first().unwrap_or(found);
            matches!(found.dtype, DType::F32 | DType::F64)
                && !found.complex
                && (found.dtype, found.len) == (like.dtype, like.len)
        });
        memory.push(found.ok_or_else(|| {
            PyRuntimeError::new_err(
                "LBFGS expects the flat gradient and its states as contiguous vectors on the CPU, of one dtype and one \
                 length for all; did a gradient change its dtype while the step ran?",
            )
        })?);
    }
    Ok(memory)
}

fn scalar(torch: &Torch, object: &Bound<'_, PyAny>, dtype: DType) -> PyResult<Memory> {
    let found = match torch.describe_values(object) {
        Ok(found) => Some(found.memory),
        Err(Unfit::Outside(bytes)) => return Err(outside("a state of LBFGS", bytes)),
        Err(_) => None,
    };
    let found = found.filter(|memory| memory.len == 1 && !memory.complex && memory.dtype == dtype);
    found.ok_or_else(|| PyRuntimeError::new_err("LBFGS expects its scalar states as tensors of one element"))
}

fn overlapping() -> PyErr {
    PyRuntimeError::new_err("states of LBFGS overlap in memory; load them from a checkpoint that owns its tensors")
}

/// Runs vector work; without the interpreter if there is much of it.
fn run<R: Send>(
    py: Python<'_>,
    elements: usize,
    work: impl FnOnce(Means<'_>) -> Result<R, Panic> + Send,
) -> PyResult<R> {
    let run = || with_pool(|pool| work(Means { pool, level: Level::current() }));
    let done = if elements < SERIAL { run() } else { py.detach(run) };
    done.map_err(|panic| panicked(&*panic))
}

/// Types of elements that LBFGS is native for.
///
/// Callers of the two functions have described the tensor since Python code last ran, hold a reference to it, and run
/// none before they are done with the slice. That nobody else uses the memory meanwhile is what torch, too, leaves to
/// its callers.
trait Stored: Scalar {
    /// # Safety
    /// As for [`Memory::slice`].
    unsafe fn slice<'a>(memory: &Memory) -> &'a [Self];

    /// # Safety
    /// As for [`Memory::slice_mut`].
    unsafe fn slice_mut<'a>(memory: &Memory) -> &'a mut [Self];
}

macro_rules! stored {
    ($($t:ty: $Variant:ident),*) => {$(
        impl Stored for $t {
            unsafe fn slice<'a>(memory: &Memory) -> &'a [Self] {
                // SAFETY: the caller's contract.
                match unsafe { memory.slice() } {
                    Slice::$Variant(x) => x,
                    _ => &[],
                }
            }

            unsafe fn slice_mut<'a>(memory: &Memory) -> &'a mut [Self] {
                // SAFETY: the caller's contract.
                match unsafe { memory.slice_mut() } {
                    SliceMut::$Variant(x) => x,
                    _ => &mut [],
                }
            }
        }
    )*};
}
stored!(f32: F32, f64: F64);
