//! Reading `.grad` of plain tensors.
//!
//! Asking the object looks the attribute up in its class for every parameter anew, and torch makes a Python object for
//! each gradient that backward has made, or counts references to the one it has: 40 ns, or 140. Where the interpreter
//! is not released before the step is done, the gradient is read as torch's C++ code holds it.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use crate::memory::torch::shim::{Shim, TensorRef};
use crate::threads::torch_library;

/// The descriptor of an attribute of torch's tensors, such as `.grad` or a slot, and the function it is made of.
pub(crate) struct Attribute {
    name: Py<PyString>,
    descriptor: Py<PyAny>,
    get: ffi::descrgetfunc,
}

impl Attribute {
    /// Looks it up; `None` if it is anything but a descriptor of C functions.
    pub(crate) fn new(class: &Bound<'_, PyType>, name: &str) -> Option<Self> {
        let name = PyString::intern(class.py(), name);
        let descriptor = class.getattr(&name).ok()?;
        let types = class.py().import("types").ok()?;
        let is_kind = |kind| types.getattr(kind).is_ok_and(|kind| descriptor.get_type().is(&kind));
        if !(is_kind("GetSetDescriptorType") || is_kind("MemberDescriptorType")) {
            return None;
        }
        // SAFETY: the class is one of Python's own, and a function found in this slot has this signature.
        let get = unsafe {
            let get = ffi::PyType_GetSlot(descriptor.get_type_ptr(), ffi::Py_tp_descr_get);
            std::mem::transmute::<*mut std::ffi::c_void, Option<ffi::descrgetfunc>>(get)?
        };
        Some(Self { name: name.unbind(), descriptor: descriptor.unbind(), get })
    }

    /// Whether the class still has this descriptor: somebody may have put another in its place.
    pub(crate) fn holds(&self, class: &Bound<'_, PyType>) -> bool {
        let now = class.getattr(self.name.bind(class.py()));
        now.is_ok_and(|now| now.is(&self.descriptor))
    }

    /// What it is for an object of the class, or of one that inherits it.
    #[inline]
    pub(crate) fn of<'py>(&self, tensor: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: the function is the descriptor's own, and compares the object's class with its own before it reads
        // it; a reference or an exception comes back.
        unsafe {
            let class = tensor.get_type_ptr().cast();
            let value = (self.get)(self.descriptor.as_ptr(), tensor.as_ptr(), class);
            Bound::from_owned_ptr_or_err(tensor.py(), value)
        }
    }
}

/// Whether torch has warned when it was asked for the gradient of this tensor, which has none: a warning is shown by
/// Python code, the user's if there is any.
pub(crate) fn warns_of_missing_grad(tensor: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(!tensor.getattr(pyo3::intern!(tensor.py(), "is_leaf"))?.is_truthy()?)
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
            if !tells || found.class(grad) != given.get_type_ptr() {
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

    /// The class of the tensor's Python object; null if it has none, and so is of no class but torch's own.
    #[inline(always)]
    pub(crate) fn class(&self, tensor: TensorRef<'_>) -> *mut ffi::PyTypeObject {
        // SAFETY: the word was found to hold the address of the tensor's Python object, which lives as long as it
        // stands there.
        unsafe {
            let object = word_of(tensor, self.object_word) as *mut ffi::PyObject;
            if object.is_null() { std::ptr::null_mut() } else { ffi::Py_TYPE(object) }
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
