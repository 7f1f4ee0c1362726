//! The norm of gradients, and what follows from it.
#![allow(unsafe_code)]

use oxistep_kernels::norm::{Norm, Order};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{Layout, driver};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::error::panicked_reading;
use crate::memory::dtype::{DType, promoted, rounded};
use crate::memory::stream::{Described, Memory, layout};
use crate::threads::with_pool;

/// Tensors whose norm is wanted; kept between steps for its memory.
#[derive(Default)]
pub(crate) struct Gradients {
    parts: Vec<(Memory, Option<Box<Layout>>)>,
    /// What torch would give their norm.
    dtype: Option<DType>,
    norm: Option<Norm<'static>>,
}

impl Gradients {
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.dtype = None;
    }

    pub(crate) fn push(&mut self, described: &Described<'_>) {
        self.add(described.memory, layout(&[*described]).map(Box::new));
    }

    /// Adds a tensor whose elements lie one after the other, in some order.
    #[inline]
    pub(crate) fn push_dense(&mut self, memory: Memory) {
        self.add(memory, None);
    }

    #[inline]
    fn add(&mut self, memory: Memory, layout: Option<Box<Layout>>) {
        self.dtype = promoted(self.dtype, Some(memory.dtype));
        self.parts.push((memory, layout));
    }

    /// Their dtype as torch promotes it; `None` without tensors.
    pub(crate) fn dtype(&self) -> Option<DType> {
        self.dtype
    }

    /// Their norm as one vector, not yet rounded to the dtype.
    ///
    /// # Safety
    /// The tensors live and own their memory, unchanged since they were described, and nothing writes to it meanwhile.
    pub(crate) unsafe fn norm(&mut self, py: Python<'_>, order: Order) -> PyResult<f64> {
        let mut norm: Norm<'_> = self.norm.take().unwrap_or_default();
        for (memory, layout) in &self.parts {
            // SAFETY: the contract of this function is that of `slice`; the slices do not outlive it.
            norm.push(unsafe { memory.slice() }, layout.as_deref());
        }
        let small = norm.elements() < driver::SERIAL;
        let mut run = || with_pool(|pool| norm.compute(order, pool, Level::current()));
        let computed = if small { run() } else { py.detach(&mut run) };
        self.norm = Some(norm.recycle());
        computed.map_err(|panic| panicked_reading(&*panic))
    }
}

/// The norm of tensors as one vector, not yet rounded, and the dtype that torch would give it.
pub(crate) fn norm_of(py: Python<'_>, of: &[Described<'_>], order: Order) -> PyResult<(f64, Option<DType>)> {
    let mut gradients = Gradients::default();
    of.iter().for_each(|described| gradients.push(described));
    // SAFETY: the tensors live, and are what they were when they were described: the rule of the type. That nobody
    // writes to gradients while their norm is computed is what torch, too, leaves to its callers.
    let norm = unsafe { gradients.norm(py, order)? };
    Ok((norm, gradients.dtype()))
}

/// What torch multiplies gradients of this norm by, rounding where torch rounds (of half types the constant, too):
/// `max_norm * (1 / (norm + 1e-6))`, not above one; NaN for a norm of NaN.
pub(crate) fn factor(norm: f64, max_norm: f64, dtype: DType) -> f64 {
    let coefficient = if dtype == DType::F64 {
        1.0 / (norm + 1e-6) * max_norm
    } else {
        let round = |x: f32| rounded(x.into(), dtype) as f32;
        let inverse = round(1.0 / round(norm as f32 + round(1e-6)));
        round(inverse * max_norm as f32).into()
    };
    if coefficient > 1.0 { 1.0 } else { coefficient }
}

/// A number as a 0-dimensional tensor on the CPU.
pub(crate) fn zero_dim(py: Python<'_>, x: f64, dtype: DType) -> PyResult<Bound<'_, PyAny>> {
    static MAKE: PyOnceLock<(Py<PyAny>, [Py<PyDict>; 4])> = PyOnceLock::new();
    let (scalar_tensor, keywords) = MAKE.get_or_try_init(py, || {
        let torch = py.import("torch")?;
        let keywords = |dtype: &str| {
            let keywords = PyDict::new(py);
            keywords.set_item("dtype", torch.getattr(dtype)?)?;
            keywords.set_item("device", "cpu")?;
            PyResult::Ok(keywords.unbind())
        };
        let keywords = [keywords("float64")?, keywords("float32")?, keywords("float16")?, keywords("bfloat16")?];
        PyResult::Ok((torch.getattr("scalar_tensor")?.unbind(), keywords))
    })?;
    let keywords = match dtype {
        DType::F64 => &keywords[0],
        DType::F32 | DType::U8 | DType::I16 => &keywords[1],
        DType::F16 => &keywords[2],
        DType::Bf16 => &keywords[3],
    };
    scalar_tensor.bind(py).call((rounded(x, dtype),), Some(keywords.bind(py)))
}
