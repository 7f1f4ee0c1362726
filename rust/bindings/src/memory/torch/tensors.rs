//! torch tensors: the only place where a pointer of torch's becomes a slice.
//!
//! A tensor is described afresh at every step: through the C functions of torch's stable ABI (`shim.rs`); before torch
//! 2.14, and for whatever is not strided and on the CPU, through its DLPack exchange table. [`Memory`] is what the
//! description says, checked; [`Memory::slice`] and [`Memory::slice_mut`] are where it is believed.
#![allow(unsafe_code)]

use std::ffi::c_void;

use oxistep_kernels::{Layout, Precision, STREAMS, Slice, SliceMut, bf16, f16};
use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyCapsule, PyCapsuleMethods, PyString, PyType};

use crate::memory::torch::dlpack;
use crate::memory::torch::dtensors::DTensors;
use crate::memory::torch::gradient::{Attribute, CppGrads};
use crate::memory::torch::shim::{Answer, Shim, TensorRef};
use crate::memory::torch::subclasses::Subclasses;
use crate::memory::unfit::{Unfit, outside};

/// Storage types of tensors that kernels can read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DType {
    F64,
    F32,
    F16,
    Bf16,
}

impl DType {
    pub(crate) fn precision(self) -> Precision {
        match self {
            Self::F64 => Precision::F64,
            Self::F32 => Precision::F32,
            Self::F16 => Precision::F16,
            Self::Bf16 => Precision::Bf16,
        }
    }

    /// A hyperparameter beyond this might not fit the type that torch hands its scalars over in; there is room for a
    /// division by 1 - beta.
    pub(crate) fn largest_usual(self) -> f64 {
        match self {
            Self::F64 => 1e100,
            Self::F32 | Self::Bf16 => 1e20,
            Self::F16 => 6e4,
        }
    }

    pub(crate) fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// The dimensions of a tensor: sizes and strides, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape<'a> {
    pub(crate) sizes: &'a [i64],
    pub(crate) strides: &'a [i64],
}

impl Shape<'_> {
    /// Whether both have the same sizes. (Shapes are short: comparing them as bytes would cost a call.)
    #[inline]
    pub(crate) fn same_sizes(&self, other: &Shape<'_>) -> bool {
        self.sizes.len() == other.sizes.len() && self.sizes.iter().zip(other.sizes).all(|(a, b)| a == b)
    }

    /// Whether both place equal indices at equal offsets. The strides of dimensions of size one mean nothing.
    pub(crate) fn same_order(&self, other: &Shape<'_>) -> bool {
        self.sizes.iter().zip(self.strides).zip(other.strides).all(|((&n, a), b)| n == 1 || a == b)
    }

    /// Whether the elements lie one after the other in the order of their indices.
    #[inline]
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.sizes.iter().zip(self.strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected = expected.saturating_mul(n.max(1)); // torch's strides around an empty dimension
            fits
        })
    }

    /// Whether the elements fill their memory without gaps or overlap, in any order of dimensions.
    #[inline]
    pub(crate) fn is_dense(&self) -> bool {
        self.is_contiguous() || self.nested(|stride, covered| stride == covered)
    }

    /// Whether no two indices can name the same element: each stride steps over all that smaller strides reach.
    pub(crate) fn is_free_of_overlap(&self) -> bool {
        self.nested(|stride, covered| stride >= covered)
    }

    fn nested(&self, steps_over: impl Fn(i64, i64) -> bool) -> bool {
        const MOST: usize = 16;
        if self.sizes.len() > MOST || self.sizes.contains(&0) {
            return self.sizes.contains(&0);
        }
        let mut dims = [(0, 0); MOST];
        let mut count = 0;
        for (&n, &stride) in self.sizes.iter().zip(self.strides).filter(|(n, _)| **n != 1) {
            dims[count] = (stride, n);
            count += 1;
        }
        dims[..count].sort_unstable();
        let mut covered = 1;
        dims[..count].iter().all(|&(stride, n)| {
            let fits = stride > 0 && steps_over(stride, covered);
            covered = stride.saturating_mul(n - 1).saturating_add(covered);
            fits
        })
    }

    /// One past the largest offset, counted from the first element.
    pub(crate) fn extent(&self) -> usize {
        if self.sizes.contains(&0) {
            return 0;
        }
        let reach: i64 = self.sizes.iter().zip(self.strides).map(|(&n, &stride)| (n - 1) * stride).sum();
        reach as usize + 1
    }
}

/// Where a tensor's elements lie: what describing it told, good until Python code runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    data: *mut c_void,
    pub(crate) dtype: DType,
    /// Whether the elements are pairs of reals, which then count as two.
    pub(crate) complex: bool,
    /// Whether it is a counter of int64, which counts as float64: that holds any count that a program reaches.
    pub(crate) integer: bool,
    /// Elements.
    pub(crate) len: usize,
    /// Elements from the first to the last in memory, gaps counted.
    pub(crate) extent: usize,
}

// SAFETY: numbers and an address; it is only followed in functions whose contracts say when that is allowed.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// A tensor's memory with its sizes and strides, which lie inside the tensor that was described.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described<'t> {
    pub(crate) memory: Memory,
    pub(crate) shape: Shape<'t>,
    pub(crate) is_dense: bool,
    /// Where its storage is known: whether it is all of it.
    whole: Option<bool>,
}

impl Described<'_> {
    /// Whether it could be a lazily negated or conjugated view.
    #[inline]
    fn may_be_lazy(&self) -> bool {
        let Memory { len, complex, .. } = self.memory;
        let whole = self.whole.unwrap_or(len != 1);
        !whole || !self.is_dense || complex
    }
}

impl Memory {
    /// First byte and one past the last.
    pub(crate) fn interval(&self) -> (usize, usize) {
        let start = self.data as usize;
        (start, start + self.extent * self.dtype.size())
    }

    /// The elements, from the first to the last in memory.
    ///
    /// # Safety
    /// The tensor that was described lives and owns its memory, unchanged, for all of `'a`, and nothing writes to the
    /// memory in `'a`.
    pub(crate) unsafe fn slice<'a>(&self) -> Slice<'a> {
        // SAFETY: `understood` has checked pointer and alignment. `extent` follows from the tensor's own sizes and
        // strides, and was found to lie within its storage (`whole`); where torch does not tell of storages, that
        // nobody has shrunk one is what SECURITY.md says is trusted. Lifetime and aliasing are the caller's (contract).
        unsafe {
            match self.dtype {
                DType::F64 => Slice::F64(raw(self.data, self.extent)),
                DType::F32 => Slice::F32(raw(self.data, self.extent)),
                DType::F16 => Slice::F16(raw::<f16>(self.data, self.extent)),
                DType::Bf16 => Slice::Bf16(raw::<bf16>(self.data, self.extent)),
            }
        }
    }

    /// The elements, from the first to the last in memory, to be written.
    ///
    /// # Safety
    /// As for [`Memory::slice`], and nothing else reads or writes the memory in `'a`.
    pub(crate) unsafe fn slice_mut<'a>(&self) -> SliceMut<'a> {
        // SAFETY: as in `slice`; that no other reference to the memory is used in `'a` is the caller's (contract).
        unsafe {
            match self.dtype {
                DType::F64 => SliceMut::F64(raw_mut(self.data, self.extent)),
                DType::F32 => SliceMut::F32(raw_mut(self.data, self.extent)),
                DType::F16 => SliceMut::F16(raw_mut::<f16>(self.data, self.extent)),
                DType::Bf16 => SliceMut::Bf16(raw_mut::<bf16>(self.data, self.extent)),
            }
        }
    }

    /// The value of a tensor of one element; `None` if it has another number of them.
    ///
    /// # Safety
    /// The tensor that was described lives and owns its memory, unchanged.
    pub(crate) unsafe fn read_scalar(&self) -> Option<f64> {
        // SAFETY: one element of the checked type, aligned; the tensor lives (contract).
        unsafe {
            match self.dtype {
                _ if self.len != 1 => None,
                _ if self.integer => Some(self.data.cast::<i64>().read() as f64),
                DType::F64 => Some(self.data.cast::<f64>().read()),
                DType::F32 => Some(f64::from(self.data.cast::<f32>().read())),
                DType::F16 => Some(self.data.cast::<f16>().read().to_f64()),
                DType::Bf16 => Some(self.data.cast::<bf16>().read().to_f64()),
            }
        }
    }

    /// Sets the value of a tensor of one element that [`Memory::read_scalar`] could read.
    ///
    /// # Safety
    /// As for [`Memory::read_scalar`], and nothing else reads or writes the memory now.
    pub(crate) unsafe fn write_scalar(&self, x: f64) {
        // SAFETY: as in `read_scalar`; exclusive by contract.
        unsafe {
            match self.dtype {
                _ if self.len != 1 => {}
                _ if self.integer => self.data.cast::<i64>().write(x as i64),
                DType::F64 => self.data.cast::<f64>().write(x),
                DType::F32 => self.data.cast::<f32>().write(x as f32),
                DType::F16 => self.data.cast::<f16>().write(f16::from_f32(x as f32)),
                DType::Bf16 => self.data.cast::<bf16>().write(bf16::from_f32(x as f32)),
            }
        }
    }
}

/// # Safety
/// As for `std::slice::from_raw_parts`, but an empty slice may have a null pointer.
unsafe fn raw<'a, T>(data: *mut c_void, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's contract.
    unsafe { std::slice::from_raw_parts(data.cast(), len) }
}

/// # Safety
/// As for `std::slice::from_raw_parts_mut`, but an empty slice may have a null pointer.
unsafe fn raw_mut<'a, T>(data: *mut c_void, len: usize) -> &'a mut [T] {
    if len == 0 {
        return &mut [];
    }
    // SAFETY: the caller's contract.
    unsafe { std::slice::from_raw_parts_mut(data.cast(), len) }
}

/// torch's classes and its exchange table.
pub(crate) struct Torch {
    tensor: Py<PyType>,
    parameter: Py<PyType>,
    describe: dlpack::DescribeFn,
    shim: Option<Shim>,
    grad: Option<Attribute>,
    requires_grad: Option<Attribute>,
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
        let too_old =
            || PyImportError::new_err("oxistep.optim needs torch >= 2.10 (its tensors lack __dlpack_c_exchange_api__)");
        let capsule = tensor.getattr("__dlpack_c_exchange_api__").map_err(|_| too_old())?;
        let capsule = capsule.cast_into::<PyCapsule>().map_err(|_| too_old())?;
        let api = capsule.pointer_checked(Some(c"dlpack_exchange_api"))?.cast::<dlpack::ExchangeApi>();
        // SAFETY: a capsule of this name holds a static table that begins with a version; the fields read beyond the
        // version are those of major version 1, asked for first.
        let describe = unsafe {
            let major = (*api.as_ptr()).version.major;
            if major != 1 {
                return Err(PyImportError::new_err(format!(
                    "oxistep understands version 1 of torch's DLPack exchange table, this torch has version {major}"
                )));
            }
            (*api.as_ptr()).describe
        };
        let shim = Shim::new(&torch, &tensor);
        let describe = describe.ok_or_else(too_old)?;
        let grad = Attribute::new(&parameter, "grad");
        let requires_grad = Attribute::new(&parameter, "requires_grad");
        let cpp_grads = shim.as_ref().and_then(|shim| CppGrads::new(&torch, shim));
        let function_modes = torch.getattr("_C")?.getattr("_len_torch_function_stack")?.unbind();
        let (tensor, parameter) = (tensor.unbind(), parameter.unbind());
        Ok(Self {
            tensor,
            parameter,
            describe,
            shim,
            grad,
            requires_grad,
            cpp_grads,
            function_modes,
            subclasses: Subclasses::default(),
            dtensors: DTensors::new(),
        })
    }

    /// Whether the class is Tensor or Parameter, or adds nothing to one of them that a step would notice: other
    /// subclasses may keep their elements elsewhere.
    pub(crate) fn is_plain(&self, object: &Bound<'_, PyAny>) -> bool {
        self.is_plain_class(object.py(), object.get_type_ptr())
    }

    #[inline(always)]
    fn is_plain_class(&self, py: Python<'_>, class: *mut pyo3::ffi::PyTypeObject) -> bool {
        class == self.tensor.as_ptr().cast()
            || class == self.parameter.as_ptr().cast()
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
        if !(class.is_null() || self.is_plain_class(param.py(), class)) {
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
        let ndim = tensor.ndim as usize;
        let shape = if ndim == 0 {
            Shape { sizes: &[], strides: &[] }
        } else {
            // SAFETY: the description points at `ndim` sizes and strides inside the tensor, which lives.
            unsafe {
                Shape {
                    sizes: std::slice::from_raw_parts(tensor.shape, ndim),
                    strides: std::slice::from_raw_parts(tensor.strides, ndim),
                }
            }
        };
        let size = usize::from(tensor.dtype.bits / 8) * usize::from(tensor.dtype.lanes);
        let (extent, end) = (shape.extent(), offset.saturating_add(shape.extent()).saturating_mul(size));
        if extent > 0 && end > bytes { Err(bytes) } else { Ok(true) }
    }

    /// The elements of a contiguous matrix of int64 on the CPU, such as the indices of a sparse tensor, copied, with
    /// the lengths of its two dimensions. It must lie inside its storage: see [`Torch::check_inside`].
    pub(crate) fn copy_indices(&self, object: &Bound<'_, PyAny>) -> Option<(Vec<i64>, usize, usize)> {
        let tensor = self.raw(object).ok()?;
        let int64 = dlpack::DataType { code: 0, bits: 64, lanes: 1 };
        if tensor.device.kind != dlpack::DEVICE_CPU || tensor.dtype != int64 || tensor.ndim != 2 {
            return None;
        }
        // SAFETY: the description points at two sizes and strides inside the tensor, which lives; if they are those of
        // a contiguous matrix its memory holds their product of elements, which are copied before Python runs again.
        unsafe {
            let shape = Shape {
                sizes: std::slice::from_raw_parts(tensor.shape, 2),
                strides: std::slice::from_raw_parts(tensor.strides, 2),
            };
            let data = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize).cast::<i64>();
            let (rows, columns) = (shape.sizes[0] as usize, shape.sizes[1] as usize);
            if !shape.is_contiguous() || (data.is_null() && rows * columns > 0) || !data.is_aligned() {
                return None;
            }
            let elements: &[i64] =
                if rows * columns == 0 { &[] } else { std::slice::from_raw_parts(data, rows * columns) };
            Some((elements.to_vec(), rows, columns))
        }
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
            Some(Answer::Unknown) | None => self.exchange(object),
        }
    }

    /// What the exchange table says of a plain tensor.
    #[inline(never)]
    fn exchange(&self, object: &Bound<'_, PyAny>) -> Result<dlpack::Tensor, Unfit> {
        let mut tensor = std::mem::MaybeUninit::<dlpack::Tensor>::uninit();
        // SAFETY: the object is a torch tensor, the class that the table was found on; on success the table has
        // filled the description.
        unsafe {
            if (self.describe)(object.as_ptr().cast(), tensor.as_mut_ptr()) != 0 {
                drop(PyErr::take(object.py()));
                return Err(Unfit::NoMemory);
            }
            Ok(tensor.assume_init())
        }
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
        let Described { memory, whole, .. } = self.describe_values(object).ok()?;
        whole?; // where storages are not known, one that was shrunk is for torch to find
        // SAFETY: described just now, inside its storage; nothing has run since.
        unsafe { memory.read_scalar() }.map(|x| (x, memory.dtype))
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

/// Describes a tensor that most likely is strided, and is known to lie inside its storage.
#[inline(always)]
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

/// What torch said of a tensor, checked. Its sizes and strides lie inside the tensor, which the caller keeps alive for
/// all of `'t`.
#[inline(always)]
fn understood<'t>(tensor: dlpack::Tensor) -> Result<Described<'t>, Unfit> {
    if tensor.device.kind != dlpack::DEVICE_CPU {
        return Err(Unfit::Device);
    }
    let (dtype, complex) = match (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) {
        (2, 32, 1) => (DType::F32, false),
        (2, 64, 1) => (DType::F64, false),
        (2, 16, 1) => (DType::F16, false),
        (4, 16, 1) => (DType::Bf16, false),
        (5, 64, 1) => (DType::F32, true),
        (5, 128, 1) => (DType::F64, true),
        _ => return Err(Unfit::DType),
    };
    let ndim = tensor.ndim as usize;
    let shape = if ndim == 0 {
        Shape { sizes: &[], strides: &[] }
    } else {
        // SAFETY: the description points at `ndim` sizes and strides inside the tensor, which the caller keeps alive.
        unsafe {
            Shape {
                sizes: std::slice::from_raw_parts(tensor.shape, ndim),
                strides: std::slice::from_raw_parts(tensor.strides, ndim),
            }
        }
    };
    let data = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
    let is_dense = shape.is_dense();
    let reals = if complex { 2 } else { 1 };
    let len = shape.sizes.iter().product::<i64>() as usize * reals;
    let extent = if is_dense { len } else { shape.extent() * reals };
    if len > 0 && data.is_null() {
        return Err(Unfit::NoMemory);
    }
    if !(data as usize).is_multiple_of(dtype.size()) {
        return Err(Unfit::Misaligned);
    }
    Ok(Described {
        memory: Memory { data: data.cast(), dtype, complex, integer: false, len, extent },
        shape,
        is_dense,
        whole: None,
    })
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

/// Where the elements of the streams of a step lie; `None` if simply one after the other, in the same order in each.
pub(crate) fn layout(described: &[Option<Described<'_>>]) -> Option<Layout> {
    let first = described.first().copied().flatten()?;
    let alike = |d: &Described<'_>| d.is_dense && first.shape.same_order(&d.shape);
    if first.memory.len == 0 || described.iter().flatten().all(alike) {
        return None;
    }
    let reals = if first.memory.complex { 2 } else { 1 };
    let mut sizes: Vec<usize> = first.shape.sizes.iter().map(|&n| n as usize).collect();
    let mut strides = vec![[0; STREAMS]; sizes.len()];
    for (s, stream) in described.iter().enumerate() {
        let Some(stream) = stream else { continue };
        strides.iter_mut().zip(stream.shape.strides).for_each(|(to, &stride)| to[s] = stride as isize * reals);
    }
    if first.memory.complex {
        sizes.push(2);
        strides.push([1; STREAMS]);
    }
    Some(Layout::new(&sizes, &strides, [0; STREAMS]))
}
