//! torch's DLPack exchange table, and what any description of a tensor means: the only place where torch's sizes and
//! strides become slices.
#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_void};

use pyo3::exceptions::{PyImportError, PyUserWarning};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyType};

use crate::memory::dtype::DType;
use crate::memory::shape::Shape;
use crate::memory::stream::{Described, Memory};
use crate::memory::torch::dlpack;
use crate::memory::unfit::Unfit;

type DescribeFn = unsafe extern "C" fn(*mut c_void, *mut dlpack::Tensor) -> c_int;

#[repr(C)]
struct Version {
    major: u32,
    minor: u32,
}

/// `DLPackExchangeAPI`: a static table of C functions.
#[repr(C)]
struct ExchangeApi {
    version: Version,
    previous: *const c_void,
    allocate: *const c_void,
    managed_from_py: *const c_void,
    managed_to_py: *const c_void,
    /// Fills a [`dlpack::Tensor`] from a Python object; nothing is allocated.
    describe: Option<DescribeFn>,
    current_work_stream: *const c_void,
}

// What the C headers give on 64-bit platforms.
const _: () = assert!(std::mem::offset_of!(ExchangeApi, describe) == 40);

/// The major version of the table that is understood here: the one of DLPack itself.
const MAJOR: u32 = 1;

fn warn_of_unknown(py: Python<'_>, major: u32) -> PyResult<()> {
    let message = format!(
        "this torch describes tensors by version {major} of DLPack's exchange table, and oxistep understands version \
         {MAJOR}: every step falls back to torch's own operations. Upgrade oxistep to a version that knows this torch"
    );
    let message = CString::new(message).expect("no zero byte");
    PyErr::warn(py, &py.get_type::<PyUserWarning>(), &message, 1)
}

/// The function of the table that describes tensors.
pub(super) struct Table(DescribeFn);

impl Table {
    /// The table of torch's tensor class. `None`, and a warning, if its version is another one than is known here: no
    /// tensor of such a torch is described, so that its own step takes all of them.
    pub(super) fn of(tensor: &Bound<'_, PyType>) -> PyResult<Option<Self>> {
        let too_old =
            || PyImportError::new_err("oxistep.optim needs torch >= 2.10 (its tensors lack __dlpack_c_exchange_api__)");
        let capsule = tensor.getattr("__dlpack_c_exchange_api__").map_err(|_| too_old())?;
        let capsule = capsule.cast_into::<PyCapsule>().map_err(|_| too_old())?;
        let api = capsule.pointer_checked(Some(c"dlpack_exchange_api"))?.cast::<ExchangeApi>();
        // SAFETY: a capsule of this name holds a static table that begins with a version, whichever it is.
        let major = unsafe { (*api.as_ptr().cast::<Version>()).major };
        if major != MAJOR {
            warn_of_unknown(tensor.py(), major)?;
            return Ok(None);
        }
        // SAFETY: the field is one of major version 1, which this is.
        let describe = unsafe { (*api.as_ptr()).describe };
        describe.map(|describe| Some(Self(describe))).ok_or_else(too_old)
    }

    /// What the table says of a plain tensor.
    #[inline(never)]
    pub(super) fn describe(&self, object: &Bound<'_, PyAny>) -> Result<dlpack::Tensor, Unfit> {
        let mut tensor = std::mem::MaybeUninit::<dlpack::Tensor>::uninit();
        // SAFETY: the object is a torch tensor, the class that the table was found on; on success the table has
        // filled the description.
        unsafe {
            if (self.0)(object.as_ptr().cast(), tensor.as_mut_ptr()) != 0 {
                drop(PyErr::take(object.py()));
                return Err(Unfit::NoMemory);
            }
            Ok(tensor.assume_init())
        }
    }
}

/// Sizes and strides, which lie inside the tensor that was described: the caller keeps it alive, and as it is, for all
/// of `'t`.
#[inline(always)]
pub(super) fn shape_of<'t>(tensor: &dlpack::Tensor) -> Shape<'t> {
    let ndim = tensor.ndim as usize;
    if ndim == 0 {
        return Shape { sizes: &[], strides: &[] };
    }
    // SAFETY: the description points at `ndim` sizes and strides inside the tensor, which the caller keeps alive.
    unsafe {
        Shape {
            sizes: std::slice::from_raw_parts(tensor.shape, ndim),
            strides: std::slice::from_raw_parts(tensor.strides, ndim),
        }
    }
}

/// What torch said of a tensor, checked. Its sizes and strides lie inside the tensor, which the caller keeps alive for
/// all of `'t`.
#[inline(always)]
pub(super) fn understood<'t>(tensor: dlpack::Tensor) -> Result<Described<'t>, Unfit> {
    let (dtype, complex) = match (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) {
        (2, 32, 1) => (DType::F32, false),
        (2, 64, 1) => (DType::F64, false),
        (2, 16, 1) => (DType::F16, false),
        (4, 16, 1) => (DType::Bf16, false),
        (5, 64, 1) => (DType::F32, true),
        (5, 128, 1) => (DType::F64, true),
        _ => return Err(Unfit::DType),
    };
    understood_as(&tensor, dtype, complex)
}

/// As [`understood`], for codes and residuals too.
pub(super) fn understood_codes<'t>(tensor: dlpack::Tensor) -> Result<Described<'t>, Unfit> {
    match (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) {
        (1, 8, 1) => understood_as(&tensor, DType::U8, false),
        (0, 16, 1) => understood_as(&tensor, DType::I16, false),
        _ => understood(tensor),
    }
}

/// What torch said of a tensor on the CPU whose elements are of this type.
#[inline(always)]
fn understood_as<'t>(tensor: &dlpack::Tensor, dtype: DType, complex: bool) -> Result<Described<'t>, Unfit> {
    if tensor.device.kind != dlpack::DEVICE_CPU {
        return Err(Unfit::Device);
    }
    let shape = shape_of(tensor);
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
    Ok(Described { memory: Memory::at(data.cast(), dtype, complex, len, extent), shape, is_dense, whole: None })
}

/// The elements of a contiguous matrix of int64 on the CPU, copied, with the lengths of its two dimensions. The tensor
/// lives, and lies inside its storage.
pub(super) fn int64_matrix(tensor: &dlpack::Tensor) -> Option<(Vec<i64>, usize, usize)> {
    let int64 = dlpack::DataType { code: 0, bits: 64, lanes: 1 };
    if tensor.device.kind != dlpack::DEVICE_CPU || tensor.dtype != int64 || tensor.ndim != 2 {
        return None;
    }
    let shape = shape_of(tensor);
    let data = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize).cast::<i64>();
    let (rows, columns) = (shape.sizes[0] as usize, shape.sizes[1] as usize);
    if !shape.is_contiguous() || (data.is_null() && rows * columns > 0) || !data.is_aligned() {
        return None;
    }
    if rows * columns == 0 {
        return Some((Vec::new(), rows, columns));
    }
    // SAFETY: sizes and strides are those of a contiguous matrix, so its memory holds their product of elements, which
    // are copied before Python runs again.
    let elements = unsafe { std::slice::from_raw_parts(data, rows * columns) };
    Some((elements.to_vec(), rows, columns))
}
