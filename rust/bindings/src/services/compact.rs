//! States in 8 bits as numbers, and back: for checkpoints, and states that begin with something.

use oxistep_kernels::compact::{BLOCK, Noise, pack, unpack};
use oxistep_kernels::overlap::Written;
use oxistep_kernels::{AnyRule, Slice, SliceMut, StateKind};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::memory::dtype::DType;
use crate::memory::stream::{Described, lend};
use crate::memory::torch::describe::Torch;
use crate::memory::torch::modules::modules;
use crate::optimizer::group::{Group, Keys};
use crate::optimizer::rule::{ClassRule, GroupRule};

/// Elements of a block of codes, which has a header.
#[pyfunction]
pub(crate) fn block_of_codes() -> usize {
    BLOCK
}

/// A state's name, and what it is: its kind, what it is relative to, and whether to the root of that.
type Told = (&'static str, (&'static str, Option<&'static str>, bool));

/// What the states of a compiled rule are, as far as that matters for keeping them in fewer bytes: "exact", "signed",
/// "magnitude", "fine", or "relative" with the name of the state that divides it and whether its root does. Empty for a
/// group whose hyperparameters are torch's to judge.
#[pyfunction]
pub(crate) fn state_kinds<'py>(py: Python<'py>, rule: &str, group: &Bound<'py, PyDict>) -> PyResult<Vec<Told>> {
    let class = ClassRule::of(PyString::new(py, rule).as_any())?;
    let mut keys = Keys::default();
    let mut group = Group { torch: Some(&modules(py)?.torch), ..Group::of(group, &mut keys) };
    Ok(match class.read(&mut group)? {
        Ok((GroupRule::Compiled(rule), _)) => kinds_of(&rule),
        _ => Vec::new(),
    })
}

fn kinds_of(rule: &AnyRule) -> Vec<Told> {
    let states = rule.states();
    let told = |kind: &StateKind| match *kind {
        StateKind::Exact => ("exact", None, false),
        StateKind::Signed => ("signed", None, false),
        StateKind::Magnitude => ("magnitude", None, false),
        StateKind::Fine => ("fine", None, false),
        StateKind::Relative { to, root } => ("relative", states.get(usize::from(to)).copied(), root),
    };
    let kinds = rule.kinds().iter().chain(std::iter::repeat(&StateKind::Exact));
    states.iter().copied().zip(kinds.map(told)).collect()
}

/// Writes float32 numbers in codes, as a step would.
#[pyfunction]
#[pyo3(signature = (numbers, codes, headers, kind, of=None, root=false, seed=0, stream=1))]
#[expect(clippy::too_many_arguments, reason = "Python names them")]
pub(crate) fn pack_codes(
    numbers: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    headers: &Bound<'_, PyAny>,
    kind: &str,
    of: Option<&Bound<'_, PyAny>>,
    root: bool,
    seed: u64,
    stream: usize,
) -> PyResult<()> {
    let torch = &modules(numbers.py())?.torch;
    let kind = kind_named(kind, root, of.is_some())?;
    let (codes, headers) = (described(torch, codes, DType::U8)?, described(torch, headers, DType::F32)?);
    let mut read = vec![described(torch, numbers, DType::F32)?];
    if let Some(of) = of {
        read.push(described(torch, of, DType::F32)?);
    }
    check_lengths(&codes, &headers, &read)?;
    let done = lend(&mut Written::default(), &[codes, headers], &read, |mut written, read| {
        if let ([SliceMut::U8(codes), SliceMut::F32(headers)], Some(Slice::F32(numbers))) =
            (&mut written[..], read.first())
        {
            pack(kind, numbers, single(read.get(1)), (codes, headers), Noise::new(seed, [0, 0], 0), stream);
        }
    });
    done.ok_or_else(overlap)
}

/// Reads codes into float32 numbers.
#[pyfunction]
#[pyo3(signature = (codes, headers, out, kind, of=None, root=false))]
pub(crate) fn unpack_codes(
    codes: &Bound<'_, PyAny>,
    headers: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    kind: &str,
    of: Option<&Bound<'_, PyAny>>,
    root: bool,
) -> PyResult<()> {
    let torch = &modules(out.py())?.torch;
    let kind = kind_named(kind, root, of.is_some())?;
    let (codes, headers) = (described(torch, codes, DType::U8)?, described(torch, headers, DType::F32)?);
    let out = described(torch, out, DType::F32)?;
    let mut read = vec![codes, headers];
    if let Some(of) = of {
        read.push(described(torch, of, DType::F32)?);
    }
    let numbers = [&[out], read.get(2..).unwrap_or_default()].concat();
    check_lengths(&codes, &headers, &numbers)?;
    let done = lend(&mut Written::default(), &[out], &read, |mut written, read| {
        if let ([SliceMut::F32(out)], [Slice::U8(codes), Slice::F32(headers), of @ ..]) = (&mut written[..], &read[..])
        {
            unpack(kind, codes, headers, single(of.first()), out);
        }
    });
    done.ok_or_else(overlap)
}

fn single<'a>(slice: Option<&Slice<'a>>) -> Option<&'a [f32]> {
    match slice {
        Some(Slice::F32(x)) => Some(x),
        _ => None,
    }
}

fn kind_named(kind: &str, root: bool, has_divisor: bool) -> PyResult<StateKind> {
    match kind {
        "signed" => Ok(StateKind::Signed),
        // (fine states have codes only from when they were magnitudes)
        "magnitude" | "fine" => Ok(StateKind::Magnitude),
        "relative" if has_divisor => Ok(StateKind::Relative { to: 0, root }),
        _ => Err(PyValueError::new_err(format!("expected a kind that codes are of, got {kind:?}"))),
    }
}

/// A contiguous tensor of that type.
fn described<'t>(torch: &Torch, object: &'t Bound<'_, PyAny>, dtype: DType) -> PyResult<Described<'t>> {
    match torch.describe_codes(object) {
        Ok(now) if now.memory.dtype == dtype && now.shape.is_contiguous() && !now.memory.complex => Ok(now),
        _ => Err(PyValueError::new_err("codes, headers and numbers: expected contiguous CPU tensors of their dtypes")),
    }
}

fn check_lengths(codes: &Described<'_>, headers: &Described<'_>, numbers: &[Described<'_>]) -> PyResult<()> {
    let n = codes.memory.len;
    if headers.memory.len == n.div_ceil(BLOCK) && numbers.iter().all(|x| x.memory.len == n) {
        return Ok(());
    }
    Err(PyValueError::new_err("codes, headers and numbers: their lengths do not belong together"))
}

fn overlap() -> PyErr {
    PyValueError::new_err("codes, headers and numbers share memory")
}
