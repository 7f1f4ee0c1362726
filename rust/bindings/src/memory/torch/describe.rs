//! torch's class of tensors: which objects are plain ones, and describing them.
//!
//! A tensor is described afresh at every step: through the C functions of torch's stable ABI (`shim.rs`); before torch
//! 2.14, and for whatever is not strided and on the CPU, through its DLPack exchange table (`exchange.rs`).

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString, PyType};

use crate::memory::dtype::DType;
use crate::memory::python::{Attribute, ClassRef};
use crate::memory::stream::{Described, Memory};
use crate::memory::torch::dlpack;
use crate::memory::torch::dtensors::DTensors;
use crate::memory::torch::exchange::{Table, int64_matrix, shape_of, understood, understood_codes};
use crate::memory::torch::shim::{Answer, CppGrads, Shim, TensorRef, words};
use crate::memory::torch::subclasses::Subclasses;
use crate::memory::unfit::{Unfit, outside};

/// torch's classes and its exchange table.
pub(crate) struct Torch {
    tensor: Py<PyType>,
    parameter: Py<PyType>,
    /// `None` if it is of a version that is not known here: then no tensor is described, by the shim neither.
    table: Option<Table>,
    shim: Option<Shim>,
    grad: Option<Attribute>,
    requires_grad: Option<Attribute>,
    version: Option<Attribute>,
    cpp_grads: Option<CppGrads>,
    function_modes: Py<PyAny>,
    subclasses: Subclasses,
    pub(crate) dtensors: DTensors,
}

impl Torch {
    /// Looks torch up; it must have been imported.
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let torch = py.import("torch")?;
        let tensor = torch.getattr("Tensor")?.cast_into::<PyType>()?;
        let parameter = torch.getattr("nn")?.getattr("Parameter")?.cast_into::<PyType>()?;
        let table = Table::of(&tensor)?;
        let shim = table.as_ref().and_then(|_| Shim::new(&torch, &tensor));
        let grad = Attribute::new(&parameter, "grad");
        let requires_grad = Attribute::new(&parameter, "requires_grad");
        let version = Attribute::new(&parameter, "_version");
        let cpp_grads = shim.as_ref().and_then(|shim| CppGrads::new(&torch, shim));
        let function_modes = torch.getattr("_C")?.getattr("_len_torch_function_stack")?.unbind();
        let (tensor, parameter) = (tensor.unbind(), parameter.unbind());
        Ok(Self {
            tensor,
            parameter,
            table,
            shim,
            grad,
            requires_grad,
            version,
            cpp_grads,
            function_modes,
            subclasses: Subclasses::default(),
            dtensors: DTensors::new(),
        })
    }

    /// Whether the class is Tensor or Parameter, or adds nothing to one of them that a step would notice: other
    /// subclasses may keep their elements elsewhere.
    pub(crate) fn is_plain(&self, object: &Bound<'_, PyAny>) -> bool {
        self.is_plain_class(object.py(), ClassRef::of(object))
    }

    #[inline(always)]
    fn is_plain_class(&self, py: Python<'_>, class: ClassRef<'_>) -> bool {
        class.is(&self.tensor)
            || class.is(&self.parameter)
            || self.subclasses.is_plain(py, class, &self.tensor, &self.parameter)
    }

    /// What reads `.grad` of plain tensors and DTensors without running Python code; `None` while something might be in
    /// its way.
    pub(crate) fn grad_attribute(&self, py: Python<'_>) -> PyResult<Option<&Attribute>> {
        let no_mode = self.function_modes.call0(py)?.extract::<usize>(py)? == 0;
        Ok(self.grad.as_ref().filter(|_| no_mode && self.grad_is_torchs(py)))
    }

    /// Whether reading `.grad` of these is torch's own code, and no property's that was put in its place.
    pub(crate) fn grad_is_torchs(&self, py: Python<'_>) -> bool {
        let is_torchs = |grad: &Attribute| grad.holds(self.parameter.bind(py)) && self.dtensors.grad_is(py, grad);
        self.grad.as_ref().is_some_and(is_torchs)
    }

    /// The first byte and one past the last of a tensor, or of the local shard of a DTensor, where that is known.
    pub(crate) fn interval(&self, object: &Bound<'_, PyAny>) -> Option<(usize, usize)> {
        let interval = |object| self.describe(object).ok().map(|described| described.memory.interval());
        if self.is_plain(object) { interval(object) } else { interval(&self.dtensors.local(object)?) }
    }

    /// Describes a tensor, or says why it is left to torch. Changes nothing. The description borrows from the object,
    /// so the caller keeps it alive; it must not run Python code that could reshape it while using the description.
    #[inline(always)]
    pub(crate) fn describe<'t>(&self, object: &'t Bound<'_, PyAny>) -> Result<Described<'t>, Unfit> {
        let described = self.describe_bits(object)?;
        // A lazily negated real tensor is a view of the imaginary parts of a conjugated one, so not all of its storage.
        // Asking costs a call: only those are asked that could be one. (Where the storage is not known, dense tensors
        // of several elements are taken for what they seem.)
        let suspicious = described.may_be_lazy();
        if suspicious && is_lazy(object, described.memory.complex) { Err(Unfit::Lazy) } else { Ok(described) }
    }

    /// As [`Torch::describe`], for what was a plain tensor on the CPU at the last step and most likely still is.
    #[inline(always)]
    pub(crate) fn describe_known<'t>(&self, object: &'t Bound<'_, PyAny>) -> Option<Described<'t>> {
        if !self.is_plain(object) {
            return None;
        }
        let Some(shim) = &self.shim else { return self.describe(object).ok() };
        let described = known(shim, shim.tensor_in(object))?;
        let lazy = described.may_be_lazy() && is_lazy(object, described.memory.complex);
        if lazy { None } else { Some(described) }
    }

    /// The gradient of a plain tensor, without a Python object being made for it or referred to; `Err` if that cannot
    /// be, or more has to be asked.
    #[inline(always)]
    pub(crate) fn describe_grad<'t>(&self, param: &'t Bound<'_, PyAny>) -> Result<Option<Described<'t>>, ()> {
        let Some((shim, grads)) = self.shim.as_ref().zip(self.cpp_grads.as_ref()) else { return Err(()) };
        let Some(grad) = grads.of(shim.tensor_in(param)) else { return Ok(None) };
        let class = grads.class(grad);
        if !(class.is_none() || self.is_plain_class(param.py(), class)) {
            return Err(());
        }
        known(shim, grad).filter(|described| !described.may_be_lazy()).map(Some).ok_or(())
    }

    /// Describes a tensor; `None` if it is left to torch.
    ///
    /// # Errors
    /// If it reaches beyond its storage.
    pub(crate) fn plain<'t>(&self, object: &'t Bound<'_, PyAny>) -> PyResult<Option<Described<'t>>> {
        match self.describe(object) {
            Ok(described) => Ok(Some(described)),
            Err(Unfit::Outside(bytes)) => Err(outside("a tensor", bytes)),
            Err(_) => Ok(None),
        }
    }

    /// An error if a tensor of any dtype reaches beyond its storage, where that is known.
    pub(crate) fn check_inside(&self, object: &Bound<'_, PyAny>, what: &str) -> PyResult<()> {
        self.is_inside(object).map(drop).map_err(|bytes| outside(what, bytes))
    }

    /// Whether a tensor of any dtype is known to lie inside its storage, or not to be on the CPU.
    ///
    /// # Errors
    /// If it reaches beyond its storage, which has so many bytes.
    pub(crate) fn is_inside(&self, object: &Bound<'_, PyAny>) -> Result<bool, usize> {
        let (Ok(tensor), Some(shim)) = (self.raw(object), &self.shim) else { return Ok(false) };
        if tensor.device.kind != dlpack::DEVICE_CPU {
            return Ok(true);
        }
        let Some((offset, bytes)) = shim.storage(shim.tensor_in(object)) else { return Ok(false) };
        let shape = shape_of(&tensor);
        let size = usize::from(tensor.dtype.bits / 8) * usize::from(tensor.dtype.lanes);
        let (extent, end) = (shape.extent(), offset.saturating_add(shape.extent()).saturating_mul(size));
        if extent > 0 && end > bytes { Err(bytes) } else { Ok(true) }
    }

    /// The elements of a contiguous matrix of int64 on the CPU, such as the indices of a sparse tensor, copied, with
    /// the lengths of its two dimensions. It must lie inside its storage: see [`Torch::check_inside`].
    pub(crate) fn copy_indices(&self, object: &Bound<'_, PyAny>) -> Option<(Vec<i64>, usize, usize)> {
        int64_matrix(&self.raw(object).ok()?)
    }

    /// What torch says of a tensor.
    #[inline(always)]
    pub(crate) fn raw(&self, object: &Bound<'_, PyAny>) -> Result<dlpack::Tensor, Unfit> {
        if !self.is_plain(object) {
            return Err(Unfit::Class);
        }
        match self.shim.as_ref().map(|shim| shim.describe(object)) {
            Some(Answer::Tensor(tensor)) => Ok(tensor),
            Some(Answer::NoMemory) => Err(Unfit::NoMemory),
            Some(Answer::Unknown) | None => self.table.as_ref().ok_or(Unfit::Interface)?.describe(object),
        }
    }

    /// Words of the tensor object behind a plain tensor, and its address: see [`words`].
    pub(crate) fn words<const N: usize>(
        &self,
        object: &Bound<'_, PyAny>,
        at: [usize; N],
    ) -> Option<(usize, [usize; N])> {
        if self.is_plain(object) { words(object, at) } else { None }
    }

    /// Whether torch tells of storages without running Python code.
    pub(crate) fn tells_storages(&self) -> bool {
        self.shim.is_some()
    }

    /// Whether a tensor lies inside its storage, where that is known.
    pub(crate) fn is_inside_storage(&self, object: &Bound<'_, PyAny>, memory: &Memory) -> Option<bool> {
        let shim = self.shim.as_ref()?;
        whole(shim, shim.tensor_in(object), memory).map_or(Some(false), |whole| whole.map(|_| true))
    }

    /// Describes a counter: as [`Torch::describe`], but where storages are not known it is not asked whether it is
    /// lazily negated, since a single element gives no hint.
    #[inline(always)]
    pub(crate) fn describe_values<'t>(&self, object: &'t Bound<'_, PyAny>) -> Result<Described<'t>, Unfit> {
        let described = self.describe_bits(object)?;
        let suspicious = described.whole.is_some() && described.may_be_lazy();
        if suspicious && is_lazy(object, described.memory.complex) { Err(Unfit::Lazy) } else { Ok(described) }
    }

    /// As [`Torch::describe_values`], for what was a plain tensor on the CPU at the last step and most likely still is.
    /// `may_be_integer`: also of int64.
    #[inline(always)]
    pub(crate) fn describe_known_count<'t>(
        &self,
        object: &'t Bound<'_, PyAny>,
        may_be_integer: bool,
    ) -> Option<Described<'t>> {
        let shim = self.shim.as_ref().filter(|_| self.is_plain(object));
        match shim.and_then(|shim| known(shim, shim.tensor_in(object))) {
            Some(described) if !described.may_be_lazy() => Some(described),
            _ => self.describe_odd_count(object, may_be_integer),
        }
    }

    #[inline(never)]
    fn describe_odd_count<'t>(&self, object: &'t Bound<'_, PyAny>, may_be_integer: bool) -> Option<Described<'t>> {
        match self.describe_values(object) {
            Err(Unfit::DType) if may_be_integer => self.describe_count(object).ok(),
            described => described.ok(),
        }
    }

    /// As [`Torch::describe_values`], for a counter of int64 too, which some programs make.
    pub(crate) fn describe_count<'t>(&self, object: &'t Bound<'_, PyAny>) -> Result<Described<'t>, Unfit> {
        let mut raw = self.raw(object)?;
        if (raw.dtype.code, raw.dtype.bits, raw.dtype.lanes) != (0, 64, 1) {
            return self.describe_values(object);
        }
        (raw.dtype.code, raw.dtype.bits) = (2, 64); // the same bytes
        let mut described = understood(raw)?;
        described.memory.integer = true;
        if let Some(shim) = &self.shim {
            described.whole = whole(shim, shim.tensor_in(object), &described.memory)?;
        }
        Ok(described)
    }

    /// As [`Torch::describe`], for codes (uint8) and residuals (int16) too.
    pub(crate) fn describe_codes<'t>(&self, object: &'t Bound<'_, PyAny>) -> Result<Described<'t>, Unfit> {
        let mut described = understood_codes(self.raw(object)?)?;
        if !matches!(described.memory.dtype, DType::U8 | DType::I16) {
            return self.describe(object);
        }
        if let Some(shim) = &self.shim {
            described.whole = whole(shim, shim.tensor_in(object), &described.memory)?;
        }
        Ok(described)
    }

    /// As [`Torch::describe_known`], for codes and residuals too.
    #[inline]
    pub(crate) fn describe_known_codes<'t>(&self, object: &'t Bound<'_, PyAny>) -> Option<Described<'t>> {
        if !self.is_plain(object) {
            return None;
        }
        let Some(shim) = &self.shim else { return self.describe_codes(object).ok() };
        let tensor = shim.tensor_in(object);
        let mut described = understood_codes(shim.describe_strided(tensor)?).ok()?;
        described.whole = Some(whole(shim, tensor, &described.memory).ok()??);
        let is_number = !matches!(described.memory.dtype, DType::U8 | DType::I16);
        let lazy = is_number && described.may_be_lazy() && is_lazy(object, described.memory.complex);
        if lazy { None } else { Some(described) }
    }

    /// How often a plain tensor was written to, as autograd counts; `None` where it is not counted. Runs no Python code
    /// where no torch function mode is active.
    #[inline]
    pub(crate) fn version(&self, param: &Bound<'_, PyAny>) -> Option<u64> {
        self.version.as_ref()?.of(param).ok()?.extract().ok()
    }

    /// The value and dtype of a plain tensor of one element that requires no gradient; `None` for all else, and where
    /// torch does not tell storages. Runs no Python code where no torch function mode is active.
    pub(crate) fn read_number(&self, object: &Bound<'_, PyAny>) -> Option<(f64, DType)> {
        if !self.is_plain(object) {
            return None;
        }
        // torch's own function, whatever stands in the class now
        let requires_grad = self.requires_grad.as_ref()?.of(object).ok()?;
        if !requires_grad.is(PyBool::new(object.py(), false)) {
            return None;
        }
        let described = self.describe_values(object).ok()?;
        described.whole?; // where storages are not known, one that was shrunk is for torch to find
        described.number().map(|x| (x, described.memory.dtype))
    }

    /// Describes what stands in a tensor's memory, whether or not its elements stand for their negatives or conjugates.
    #[inline(always)]
    fn describe_bits<'t>(&self, object: &'t Bound<'_, PyAny>) -> Result<Described<'t>, Unfit> {
        let mut described = understood(self.raw(object)?)?;
        if let Some(shim) = &self.shim {
            described.whole = whole(shim, shim.tensor_in(object), &described.memory)?;
        }
        Ok(described)
    }
}

/// Describes a tensor that most likely is strided, and is known to lie inside its storage. (One function that all of a
/// parameter's tensors go through: five copies of it are much of what the first-level cache holds of a step.)
#[inline(never)]
fn known<'t>(shim: &Shim, tensor: TensorRef<'t>) -> Option<Described<'t>> {
    let mut described = understood(shim.describe_strided(tensor)?).ok()?;
    described.whole = Some(whole(shim, tensor, &described.memory).ok()??);
    Some(described)
}

/// Whether a tensor with this memory is all of its storage; `None` where that is not known. An error if it reaches
/// beyond.
#[inline(always)]
fn whole(shim: &Shim, tensor: TensorRef<'_>, memory: &Memory) -> Result<Option<bool>, Unfit> {
    let Some((offset, bytes)) = shim.storage(tensor) else { return Ok(None) };
    let reals = if memory.complex { 2 } else { 1 };
    let end = offset.saturating_mul(reals).saturating_add(memory.extent).saturating_mul(memory.dtype.size());
    if end > bytes && memory.extent > 0 {
        return Err(Unfit::Outside(bytes));
    }
    Ok(Some(offset == 0 && end == bytes))
}

/// Whether the elements stand for their negatives or conjugates.
#[inline(never)]
fn is_lazy(object: &Bound<'_, PyAny>, complex: bool) -> bool {
    is(object, pyo3::intern!(object.py(), "is_neg")) || (complex && is(object, pyo3::intern!(object.py(), "is_conj")))
}

/// Asks a tensor a yes-or-no question; no answer counts as yes.
fn is(tensor: &Bound<'_, PyAny>, question: &Bound<'_, PyString>) -> bool {
    tensor.call_method0(question).and_then(|answer| answer.is_truthy()).unwrap_or(true)
}

/// Whether torch has warned when it was asked for the gradient of this tensor, which has none: a warning is shown by
/// Python code, the user's if there is any.
pub(crate) fn warns_of_missing_grad(tensor: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(!tensor.getattr(pyo3::intern!(tensor.py(), "is_leaf"))?.is_truthy()?)
}
