//! Describing a tensor through the C functions of torch's stable ABI: 10 ns instead of the exchange table's 40, which
//! go into making and dropping a reference to the tensor.
//!
//! The functions take the address of a C++ `at::Tensor`. One lies inside every Python tensor; at which offset torch
//! does not say, but tells the value that must be found there (`_cdata`). So the offset is looked for, on several
//! tensors, when torch is first met. Where it cannot be found, or a function is missing, or a tensor is anything but
//! strided and on the CPU, the exchange table is asked instead.
//!
//! `.grad` is read here, too. Asking the object looks the attribute up in its class for every parameter anew, and torch
//! makes a Python object for each gradient that backward has made, or counts references to the one it has: 40 ns, or
//! 140. Where the interpreter is not released before the step is done, the gradient is read as torch's C++ code holds
//! it.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::memory::python::ClassRef;
use crate::memory::torch::dlpack;
use crate::threads::torch_library;

type Ask<T> = unsafe extern "C" fn(*const c_void, *mut T) -> c_int;

/// The address of an `at::Tensor` of which the tensor lives.
#[derive(Clone, Copy)]
pub(crate) struct TensorRef<'t> {
    address: *const c_void,
    lives: PhantomData<&'t ()>,
}

impl TensorRef<'_> {
    /// # Safety
    /// An `at::Tensor` lies at the address, and lives that long.
    pub(crate) unsafe fn new(address: *const c_void) -> Self {
        Self { address, lives: PhantomData }
    }

    pub(crate) fn address(self) -> *const c_void {
        self.address
    }
}

/// The functions, and where in a Python tensor they find theirs.
pub(crate) struct Shim {
    offset: usize,
    has_storage: Ask<bool>,
    layout: Ask<i32>,
    device: Ask<i32>,
    dtype: Ask<i32>,
    data: Ask<*mut c_void>,
    dim: Ask<i64>,
    sizes: Ask<*const i64>,
    strides: Ask<*const i64>,
    storage_offset: Ask<i64>,
    storage_bytes: Ask<i64>,
    /// torch's numbers of the types, with those of DLPack.
    dtypes: [(i32, dlpack::DataType); 9],
    cpu: i32,
    strided: i32,
}

/// What the functions can say of a tensor.
pub(crate) enum Answer {
    Tensor(dlpack::Tensor),
    /// It is sparse, or inside a transform. The exchange table would raise an exception, which takes its time.
    NoMemory,
    /// The exchange table is to be asked.
    Unknown,
}

impl Shim {
    /// Finds functions and offset; `None` if this torch lacks one of them.
    pub(crate) fn new(torch: &Bound<'_, PyModule>, tensor: &Bound<'_, PyType>) -> Option<Self> {
        let offset = find_offset(torch, tensor)?;
        let library = torch_library()?;
        // SAFETY: these functions have had these signatures since torch's stable ABI began; the constants' take
        // nothing.
        unsafe {
            let constant = |name: &[u8]| Some(library.get::<unsafe extern "C" fn() -> i32>(name).ok()?());
            // a torch without this function reports errors, which here are answers, to the standard error stream
            library.get::<*const c_void>(b"torch_exception_get_what\0").ok()?;
            let dl = |code, bits| dlpack::DataType { code, bits, lanes: 1 };
            Some(Self {
                offset,
                has_storage: *library.get(b"torch_has_storage\0").ok()?,
                layout: *library.get(b"aoti_torch_get_layout\0").ok()?,
                device: *library.get(b"aoti_torch_get_device_type\0").ok()?,
                dtype: *library.get(b"aoti_torch_get_dtype\0").ok()?,
                data: *library.get(b"aoti_torch_get_data_ptr\0").ok()?,
                dim: *library.get(b"aoti_torch_get_dim\0").ok()?,
                sizes: *library.get(b"aoti_torch_get_sizes\0").ok()?,
                strides: *library.get(b"aoti_torch_get_strides\0").ok()?,
                storage_offset: *library.get(b"aoti_torch_get_storage_offset\0").ok()?,
                storage_bytes: *library.get(b"aoti_torch_get_storage_size\0").ok()?,
                dtypes: [
                    (constant(b"aoti_torch_dtype_float32\0")?, dl(2, 32)),
                    (constant(b"aoti_torch_dtype_bfloat16\0")?, dl(4, 16)),
                    (constant(b"aoti_torch_dtype_float64\0")?, dl(2, 64)),
                    (constant(b"aoti_torch_dtype_float16\0")?, dl(2, 16)),
                    (constant(b"aoti_torch_dtype_complex64\0")?, dl(5, 64)),
                    (constant(b"aoti_torch_dtype_complex128\0")?, dl(5, 128)),
                    (constant(b"aoti_torch_dtype_int64\0")?, dl(0, 64)),
                    (constant(b"aoti_torch_dtype_uint8\0")?, dl(1, 8)),
                    (constant(b"aoti_torch_dtype_int16\0")?, dl(0, 16)),
                ],
                cpu: constant(b"aoti_torch_device_type_cpu\0")?,
                strided: constant(b"aoti_torch_layout_strided\0")?,
            })
        }
    }

    /// What the functions say of an object whose class is exactly Tensor or Parameter.
    #[inline(always)]
    pub(crate) fn describe(&self, object: &Bound<'_, PyAny>) -> Answer {
        let tensor = self.tensor_in(object).address;
        // SAFETY: each function writes one value of the type in its signature to the local that the pointer names, or
        // fails.
        unsafe {
            let (mut has_storage, mut layout) = (false, -1);
            let failed = (self.has_storage)(tensor, &raw mut has_storage) | (self.layout)(tensor, &raw mut layout);
            if failed == 0 && !has_storage {
                return Answer::NoMemory;
            }
            if failed != 0 || layout != self.strided {
                return Answer::Unknown;
            }
        }
        self.describe_strided(self.tensor_in(object)).map_or(Answer::Unknown, Answer::Tensor)
    }

    /// The tensor inside an object whose class is exactly Tensor or Parameter.
    #[inline(always)]
    pub(crate) fn tensor_in<'t>(&self, object: &'t Bound<'_, PyAny>) -> TensorRef<'t> {
        // SAFETY: `find_offset` has found an `at::Tensor` at this offset in objects of the class.
        unsafe { TensorRef::new(object.as_ptr().cast::<u8>().add(self.offset).cast()) }
    }

    /// What the functions say of a tensor that most likely is strided and on the CPU. (Of another one they fail to tell
    /// strides or memory, which takes its time.)
    #[inline(always)]
    pub(crate) fn describe_strided(&self, tensor: TensorRef<'_>) -> Option<dlpack::Tensor> {
        let tensor = tensor.address;
        // SAFETY: as in `describe`. Sizes and strides lie inside the tensor.
        unsafe {
            let (mut device, mut dtype, mut dim, mut data) = (-1, -1, 0, std::ptr::null_mut());
            let (mut sizes, mut strides) = (std::ptr::null(), std::ptr::null());
            let failed = (self.device)(tensor, &raw mut device) | (self.dtype)(tensor, &raw mut dtype);
            if failed != 0 || device != self.cpu {
                return None;
            }
            let &(_, dtype) = self.dtypes.iter().find(|(known, _)| *known == dtype)?;
            let failed = (self.dim)(tensor, &raw mut dim)
                | (self.sizes)(tensor, &raw mut sizes)
                | (self.strides)(tensor, &raw mut strides)
                | (self.data)(tensor, &raw mut data);
            let device = dlpack::Device { kind: dlpack::DEVICE_CPU, id: 0 };
            let ndim = dim as i32;
            let tensor = dlpack::Tensor { data, device, ndim, dtype, shape: sizes, strides, byte_offset: 0 };
            (failed == 0).then_some(tensor)
        }
    }

    /// Where in its storage, in elements, a tensor with plain memory begins, and how many bytes the storage has.
    #[inline(always)]
    pub(crate) fn storage(&self, tensor: TensorRef<'_>) -> Option<(usize, usize)> {
        let tensor = tensor.address;
        // SAFETY: as in `describe`.
        unsafe {
            let (mut offset, mut bytes) = (0, 0);
            let failed = (self.storage_offset)(tensor, &raw mut offset) | (self.storage_bytes)(tensor, &raw mut bytes);
            if failed != 0 { None } else { Some((usize::try_from(offset).ok()?, usize::try_from(bytes).ok()?)) }
        }
    }
}

/// The offset of the `at::Tensor` in Python tensors.
fn find_offset(torch: &Bound<'_, PyModule>, tensor: &Bound<'_, PyType>) -> Option<usize> {
    let size: usize = tensor.getattr("__basicsize__").ok()?.extract().ok()?;
    let word = size_of::<usize>();
    let made = |n: usize| torch.getattr("empty")?.call1((n,));
    let parameter = torch.getattr("nn").ok()?.getattr("Parameter").ok()?.call1((made(3).ok()?,)).ok()?;
    let samples = [made(0).ok()?, made(5).ok()?, parameter];
    let holds = |sample: &Bound<'_, PyAny>, offset: usize| {
        // SAFETY: `__basicsize__` bytes of an instance are its own, of which this word is a part; it is aligned.
        let value = unsafe { sample.as_ptr().cast::<u8>().add(offset).cast::<usize>().read() };
        sample.getattr("_cdata").and_then(|cdata| cdata.extract::<usize>()).is_ok_and(|cdata| cdata == value)
    };
    // the reference count and the class come first
    (2 * word..=size.checked_sub(word)?).step_by(word).find(|&offset| samples.iter().all(|s| holds(s, offset)))
}

/// Gradients as torch's C++ code holds them.
///
/// `c10::TensorImpl::grad()` is no part of the stable ABI. So it is looked up by its name, tried on tensors of which
/// the answer is known, and done without where anything is not as expected.
pub(crate) struct CppGrads {
    grad: unsafe extern "C" fn(*const c_void) -> *const c_void,
    is_defined: unsafe extern "C" fn(*const c_void, *mut bool) -> c_int,
    /// Which word of a tensor holds the address of its Python object, or null if it has none.
    object_word: usize,
}

impl CppGrads {
    pub(crate) fn new(torch: &Bound<'_, PyModule>, shim: &Shim) -> Option<Self> {
        let library = torch_library()?;
        // SAFETY: the name says that the function is a member of a constant `TensorImpl` that takes nothing, and C++
        // passes such an object's address. It returns a reference to an `at::Tensor`, since `.grad` can be told from it
        // below. The other one is of the stable ABI.
        let (grad, is_defined) = unsafe {
            (*library.get(b"_ZNK3c1010TensorImpl4gradEv\0").ok()?, *library.get(b"aoti_torch_is_defined\0").ok()?)
        };
        let made = |n: usize| torch.getattr("ones")?.call1((n,));
        let parameter = |n: usize| torch.getattr("nn")?.getattr("Parameter")?.call1((made(n)?,));
        let samples = [parameter(1).ok()?, parameter(5).ok()?, parameter(7).ok()?];
        let object_word = (2..MOST_WORDS).find(|&word| {
            // SAFETY: torch's tensor object has more words; the samples live.
            samples.iter().all(|s| unsafe { word_of(shim.tensor_in(s), word) } == s.as_ptr() as usize)
        })?;
        let found = Self { grad, is_defined, object_word };
        for sample in &samples {
            if found.of(shim.tensor_in(sample)).is_some() {
                return None;
            }
            let given = made(sample.len().ok()?).ok()?;
            sample.setattr("grad", &given).ok()?;
            let grad = found.of(shim.tensor_in(sample))?;
            // SAFETY: as above.
            let tells = unsafe { tensor_of(grad) == tensor_of(shim.tensor_in(&given)) };
            if !tells || found.class(grad) != ClassRef::of(&given) {
                return None;
            }
        }
        Some(found)
    }

    /// The gradient of a tensor, if it has one: good until Python code or other threads may change it.
    #[inline(always)]
    pub(crate) fn of<'t>(&self, tensor: TensorRef<'t>) -> Option<TensorRef<'t>> {
        // SAFETY: the function takes the address of torch's tensor object, which the reference names. It returns that
        // of the `at::Tensor` in which the tensor keeps its gradient, or of one that stands for none.
        unsafe {
            let grad = (self.grad)(tensor_of(tensor) as *const c_void);
            let mut defined = false;
            let failed = (self.is_defined)(grad, &raw mut defined) != 0;
            (defined && !failed).then(|| TensorRef::new(grad))
        }
    }

    /// The class of the tensor's Python object; none if it has none, and so is of no class but torch's own.
    #[inline(always)]
    pub(crate) fn class<'t>(&self, tensor: TensorRef<'t>) -> ClassRef<'t> {
        // SAFETY: the word was found to hold the address of the tensor's Python object, which lives as long as it
        // stands there.
        unsafe {
            let object = word_of(tensor, self.object_word) as *mut ffi::PyObject;
            ClassRef::at(if object.is_null() { std::ptr::null_mut() } else { ffi::Py_TYPE(object) })
        }
    }
}

/// How many words of torch's tensor object are searched.
const MOST_WORDS: usize = 16;

/// The address of torch's tensor object, which is all that an `at::Tensor` holds.
///
/// # Safety
/// The tensor lives.
#[inline(always)]
unsafe fn tensor_of(tensor: TensorRef<'_>) -> usize {
    // SAFETY: an `at::Tensor` is a pointer.
    unsafe { tensor.address().cast::<usize>().read() }
}

/// # Safety
/// The tensor lives, and its object has more words than `index`.
#[inline(always)]
unsafe fn word_of(tensor: TensorRef<'_>, index: usize) -> usize {
    // SAFETY: inside the object, aligned (contract); any bits are a number.
    unsafe { (tensor_of(tensor) as *const usize).add(index).read() }
}

/// Words of torch's tensor object: its address, and those at the given places. Any numbers: they are not followed.
/// (Without the shim, too: Python tells the address.)
pub(super) fn words<const N: usize>(plain: &Bound<'_, PyAny>, at: [usize; N]) -> Option<(usize, [usize; N])> {
    assert!(at.iter().all(|&index| index < MOST_WORDS));
    let tensor: usize = plain.getattr(pyo3::intern!(plain.py(), "_cdata")).ok()?.extract().ok()?;
    // SAFETY: `_cdata` is the address of torch's tensor object, which has that many words, and which the Python object
    // keeps alive; any bits are a number.
    Some((tensor, at.map(|index| unsafe { (tensor as *const usize).add(index).read() })))
}
