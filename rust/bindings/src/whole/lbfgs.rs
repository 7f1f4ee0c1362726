//! The vector work of LBFGS over torch's memory. The class in Python decides what is done when; each function here
//! checks all tensors that it is given before it writes the first.
//!
//! `gather`, `spread` and `move_along` answer `False`, having done nothing, for tensors that torch must serve. The
//! others are given vectors and scalars that the class has made, or that `unfit` has looked at: they raise.
#![allow(clippy::needless_pass_by_value, reason = "the signatures are PyO3's")]

use oxistep_kernels::overlap::Written;
use oxistep_kernels::pool::Panic;
use oxistep_kernels::simd::Level;
use oxistep_kernels::vector::{self, History, Means, Piece, SERIAL, Scalar, Transfer};
use oxistep_kernels::{Slice, SliceMut};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::panicked;
use crate::memory::dtype::DType;
use crate::memory::span::are_apart;
use crate::memory::stream::{Described, Memory, lend};
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
    let mut intervals = Vec::with_capacity(params.len());
    let mut elements = 0;
    for (i, param) in params.iter().enumerate() {
        let Some(Described { memory, .. }) = contiguous(torch, &param)? else {
            return Ok(Some(format!("params[{i}] is no plain, contiguous tensor on the CPU")));
        };
        if !matches!(memory.dtype, DType::F32 | DType::F64) || *found.get_or_insert(memory.dtype) != memory.dtype {
            return Ok(Some(format!("params[{i}] is not float32 or float64 like the others")));
        }
        intervals.push(memory.interval());
        elements += memory.len;
    }
    let Some(dtype) = found else { return Ok(Some("there are no parameters".into())) };
    if !are_apart(&mut Written::default(), intervals.into_iter(), std::iter::empty()) {
        return Ok(Some("parameters overlap".into()));
    }
    let states = vectors.iter().map(|object| (object, elements)).chain(scalars.iter().map(|object| (object, 1)));
    for (object, len) in states {
        let fits =
            |Described { memory, .. }: Described<'_>| memory.dtype == dtype && memory.len == len && !memory.complex;
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
    let (mut pieces, mut from) = (Vec::with_capacity(grads.len()), Vec::with_capacity(grads.len()));
    for (param, grad) in params.iter().zip(&grads) {
        let Some(len) = contiguous(torch, &param)?.map(|param| param.memory.len) else { return Ok(false) };
        pieces.push((len, !grad.is_none()));
        if grad.is_none() {
            continue;
        }
        match contiguous(torch, grad)? {
            Some(grad) if grad.memory.len == len => from.push(grad),
            _ => return Ok(false),
        }
    }
    let Memory { dtype, len, .. } = to.memory;
    if pieces.iter().map(|(len, _)| len).sum::<usize>() != len || from.iter().any(|grad| grad.memory.dtype != dtype) {
        return Ok(false);
    }
    match dtype {
        DType::F32 => gather::<f32>(py, to, &pieces, &from, negate),
        DType::F64 => gather::<f64>(py, to, &pieces, &from, negate),
        _ => Ok(false),
    }
}

/// Fills `to` with `pieces`: the length of each, and whether it comes `from` the next gradient.
fn gather<T: Stored>(
    py: Python<'_>,
    to: Described<'_>,
    pieces: &[(usize, bool)],
    from: &[Described<'_>],
    negate: bool,
) -> PyResult<bool> {
    let transfer = if negate { Transfer::Negate } else { Transfer::Copy };
    let done = lend(&mut Written::default(), &[to], from, |to, from| {
        let mut rest = to.into_iter().map(T::elements_mut).next().unwrap_or_default();
        let mut from = from.into_iter().map(T::elements);
        let mut cut = Vec::with_capacity(pieces.len());
        for &(len, has_grad) in pieces {
            let (to, tail) = rest.split_at_mut(len);
            rest = tail;
            cut.push(Piece { to, from: if has_grad { from.next() } else { None } });
        }
        run(py, pieces.iter().map(|(len, _)| len).sum(), |means| vector::transfer(means, cut, transfer))
    });
    Ok(done.transpose()?.is_some())
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
            Some(param) if param.memory.dtype == way.memory.dtype => to.push(param),
            _ => return Ok(false),
        }
    }
    if to.iter().map(|param| param.memory.len).sum::<usize>() != way.memory.len {
        return Ok(false);
    }
    match way.memory.dtype {
        DType::F32 => move_along::<f32>(py, &to, way, t),
        DType::F64 => move_along::<f64>(py, &to, way, t),
        _ => Ok(false),
    }
}

fn move_along<T: Stored>(py: Python<'_>, to: &[Described<'_>], way: Described<'_>, t: f64) -> PyResult<bool> {
    let done = lend(&mut Written::default(), to, &[way], |to, way| {
        let way = way.into_iter().map(T::elements).next().unwrap_or_default();
        let (mut rest, mut pieces) = (way, Vec::with_capacity(to.len()));
        for param in to.into_iter().map(T::elements_mut) {
            let (from, tail) = rest.split_at(param.len());
            rest = tail;
            pieces.push(Piece { to: param, from: Some(from) });
        }
        run(py, way.len(), |means| vector::transfer(means, pieces, Transfer::Add(T::of(t))))
    });
    Ok(done.transpose()?.is_some())
}

/// The largest absolute value of `t` times a vector.
#[pyfunction]
pub(crate) fn lbfgs_max_abs(py: Python<'_>, vector: &Bound<'_, PyAny>, t: f64) -> PyResult<f64> {
    fn max_abs<T: Stored>(py: Python<'_>, x: &[T], t: f64) -> PyResult<f64> {
        run(py, x.len(), |means| vector::max_abs(means, x, T::of(t))).map(T::wide)
    }
    vectors(py, &[vector])?[0].read(|x| match x {
        Slice::F64(x) => max_abs(py, x, t),
        x => max_abs(py, f32::elements(x), t),
    })
}

/// The sum of absolute values of a vector, rounded to its dtype.
#[pyfunction]
pub(crate) fn lbfgs_sum_abs(py: Python<'_>, vector: &Bound<'_, PyAny>) -> PyResult<f64> {
    fn sum_abs<T: Stored>(py: Python<'_>, x: &[T]) -> PyResult<f64> {
        run(py, x.len(), |means| vector::sum_abs(means, x)).map(|sum| T::of(sum).wide())
    }
    vectors(py, &[vector])?[0].read(|x| match x {
        Slice::F64(x) => sum_abs(py, x),
        x => sum_abs(py, f32::elements(x)),
    })
}

/// The dot product of two vectors, rounded to their dtype.
#[pyfunction]
pub(crate) fn lbfgs_dot(py: Python<'_>, a: &Bound<'_, PyAny>, b: &Bound<'_, PyAny>) -> PyResult<f64> {
    fn dot<T: Stored>(py: Python<'_>, a: &[T], b: &[T]) -> PyResult<f64> {
        run(py, a.len(), |means| vector::dot(means, a, b)).map(|sum| T::of(sum).wide())
    }
    let vectors = vectors(py, &[a, b])?;
    vectors[0].read(|a| {
        vectors[1].read(|b| match (a, b) {
            (Slice::F64(a), Slice::F64(b)) => dot(py, a, b),
            _ => dot(py, f32::elements(a), f32::elements(b)),
        })
    })
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
    let vectors = vectors(py, &[grad, way, before, y, s])?;
    let (torch, dtype) = (&modules(py)?.torch, vectors[0].memory.dtype);
    let (ro, scale) = (scalar(torch, ro, dtype)?, scalar(torch, scale, dtype)?);
    let (read, written) = vectors.split_at(2);
    if dtype == DType::F64 {
        differences::<f64>(py, read, t, written, ro, scale)
    } else {
        differences::<f32>(py, read, t, written, ro, scale)
    }
}

fn differences<T: Stored>(
    py: Python<'_>,
    read: &[Described<'_>],
    t: f64,
    written: &[Described<'_>],
    ro: Described<'_>,
    scale: Described<'_>,
) -> PyResult<bool> {
    let done = lend(&mut Written::default(), written, read, |written, read| {
        let (mut read, mut written) = (read.into_iter().map(T::elements), written.into_iter().map(T::elements_mut));
        let mut vector = || read.next().unwrap_or_default();
        let (grad, way) = (vector(), vector());
        let mut vector = || written.next().unwrap_or_default();
        let (before, y, s) = (vector(), vector(), vector());
        run(py, grad.len(), |means| vector::differences(means, grad, before, way, T::of(t), y, s))
    });
    let (ys, yy) = done.ok_or_else(overlapping)??;
    let (ys, yy) = (T::of(ys), T::of(yy));
    // torch's threshold
    let keep = ys > T::of(1e-10);
    if keep {
        ro.set_number((T::ONE / ys).wide());
        scale.set_number((ys / yy).wide());
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
    let dtype = vectors(py, &[grad])?[0].memory.dtype;
    let coefficients = (0..count).map(|i| coefficient(torch, al, i, grad, dtype)).collect::<PyResult<Vec<_>>>()?;
    // from here on no Python runs
    let given = [grad, out].into_iter().chain(&old_dirs).chain(&old_stps).collect::<Vec<_>>();
    let mut vectors = vectors(py, &given)?;
    vectors.swap(0, 1); // what is written first
    // what is wrong with them is told after what is wrong with the vectors
    let scalars = scalars(torch, &ro, dtype).and_then(|ro| Ok((ro, scalars(torch, &coefficients, dtype)?)));
    if dtype == DType::F64 {
        direction::<f64>(py, &vectors, scale, scalars)
    } else {
        direction::<f32>(py, &vectors, scale, scalars)
    }
}

/// `vectors` are direction, gradient, and the history's two halves; `scalars` its `ro` and where its coefficients go.
fn direction<T: Stored>(
    py: Python<'_>,
    vectors: &[Described<'_>],
    scale: f64,
    scalars: PyResult<(Vec<Described<'_>>, Vec<Described<'_>>)>,
) -> PyResult<f64> {
    let (out, read) = vectors.split_at(1);
    let found = scalars.map(|(ro, al)| {
        let values: Vec<T> = ro.iter().map(|ro| T::of(ro.number().unwrap_or(f64::NAN))).collect();
        (values, al)
    });
    let done = lend(&mut Written::default(), out, read, |out, read| {
        let (ro, al) = found?;
        let out = out.into_iter().map(T::elements_mut).next().unwrap_or_default();
        let vectors: Vec<&[T]> = read.into_iter().map(T::elements).collect();
        let (dirs, steps) = vectors[1..].split_at(ro.len());
        let mut alphas = vec![T::ZERO; ro.len()];
        let history = History { dirs, steps, ro: &ro };
        let work = |means: Means<'_>| vector::direction(means, vectors[0], history, T::of(scale), &mut alphas, out);
        let product = run(py, vectors[0].len(), work)?;
        PyResult::Ok((product, alphas, al))
    });
    let (product, alphas, al) = done.ok_or_else(overlapping)??;
    al.iter().zip(alphas).for_each(|(to, alpha)| to.set_number(alpha.wide()));
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
fn contiguous<'t>(torch: &Torch, object: &'t Bound<'_, PyAny>) -> PyResult<Option<Described<'t>>> {
    Ok(torch.plain(object)?.filter(|described| described.shape.is_contiguous()))
}

/// Describes flat vectors of one length and dtype.
fn vectors<'t>(py: Python<'_>, objects: &[&'t Bound<'_, PyAny>]) -> PyResult<Vec<Described<'t>>> {
    let torch = &modules(py)?.torch;
    let mut vectors: Vec<Described<'_>> = Vec::with_capacity(objects.len());
    for &object in objects {
        let found = contiguous(torch, object)?.filter(|Described { memory, .. }| {
            let like = vectors.first().map_or(memory, |first| &first.memory);
            matches!(memory.dtype, DType::F32 | DType::F64)
                && !memory.complex
                && (memory.dtype, memory.len) == (like.dtype, like.len)
        });
        vectors.push(found.ok_or_else(|| {
            PyRuntimeError::new_err(
                "LBFGS expects the flat gradient and its states as contiguous vectors on the CPU, of one dtype and one \
                 length for all; did a gradient change its dtype while the step ran?",
            )
        })?);
    }
    Ok(vectors)
}

fn scalar<'t>(torch: &Torch, object: &'t Bound<'_, PyAny>, dtype: DType) -> PyResult<Described<'t>> {
    let found = match torch.describe_values(object) {
        Ok(found) => Some(found),
        Err(Unfit::Outside(bytes)) => return Err(outside("a state of LBFGS", bytes)),
        Err(_) => None,
    };
    let fits = |Described { memory, .. }: &Described<'_>| memory.len == 1 && !memory.complex && memory.dtype == dtype;
    found
        .filter(fits)
        .ok_or_else(|| PyRuntimeError::new_err("LBFGS expects its scalar states as tensors of one element"))
}

fn scalars<'t>(torch: &Torch, objects: &'t [Bound<'_, PyAny>], dtype: DType) -> PyResult<Vec<Described<'t>>> {
    objects.iter().map(|object| scalar(torch, object, dtype)).collect()
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
trait Stored: Scalar {
    /// The elements; none if they are of another type.
    fn elements(slice: Slice<'_>) -> &[Self];

    /// As [`Stored::elements`], to be written.
    fn elements_mut(slice: SliceMut<'_>) -> &mut [Self];
}

macro_rules! stored {
    ($($t:ty: $Variant:ident),*) => {$(
        impl Stored for $t {
            fn elements(slice: Slice<'_>) -> &[Self] {
                if let Slice::$Variant(x) = slice { x } else { &[] }
            }

            fn elements_mut(slice: SliceMut<'_>) -> &mut [Self] {
                if let SliceMut::$Variant(x) = slice { x } else { &mut [] }
            }
        }
    )*};
}
stored!(f32: F32, f64: F64);
