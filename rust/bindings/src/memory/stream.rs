//! Memory of torch's tensors: the only place where a pointer of torch's becomes a slice of elements.
//!
//! A tensor is described afresh at every step (`torch/describe.rs`). [`Memory`] is what the description says, checked;
//! [`Memory::slice`] and [`Memory::slice_mut`] are where it is believed.
#![allow(unsafe_code)]

use std::ffi::c_void;

use oxistep_kernels::overlap::Written;
use oxistep_kernels::{Layout, Slice, SliceMut, bf16, f16};

use crate::memory::dtype::DType;
use crate::memory::shape::Shape;
use crate::memory::span::are_apart;

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

/// A tensor's memory with its sizes and strides, which lie inside the tensor that was described, for whose life they
/// are lent.
///
/// Whoever has one in hand runs no Python code of this thread until the last use of it, and of what it lends: Python
/// code could reshape the tensor, or take its memory away. (Asking plain tensors, slots, and Python's own numbers,
/// lists and dicts runs none.) That other threads do neither is what torch, too, leaves to its callers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described<'t> {
    pub(crate) memory: Memory,
    pub(crate) shape: Shape<'t>,
    pub(crate) is_dense: bool,
    /// Where its storage is known: whether it is all of it.
    pub(super) whole: Option<bool>,
}

impl Described<'_> {
    /// Whether it could be a lazily negated or conjugated view.
    #[inline]
    pub(super) fn may_be_lazy(&self) -> bool {
        let Memory { len, complex, .. } = self.memory;
        let whole = self.whole.unwrap_or(len != 1);
        !whole || !self.is_dense || complex
    }

    /// The value of a tensor of one element; `None` if it has another number of them.
    #[inline]
    pub(crate) fn number(&self) -> Option<f64> {
        // SAFETY: the tensor lives, and is what it was when it was described: the rule of this type.
        unsafe { self.memory.read_scalar() }
    }

    /// Sets the value of a tensor of one element. Not to be called where elements of this tensor are lent.
    pub(crate) fn set_number(&self, x: f64) {
        // SAFETY: as in `number`; nobody else has a slice of the element.
        unsafe { self.memory.write_scalar(x) };
    }

    /// Calls `work` with the elements, from the first to the last in memory.
    pub(crate) fn read<R>(&self, work: impl for<'l> FnOnce(Slice<'l>) -> R) -> R {
        // SAFETY: as in `number`. The slice does not outlive the call, in which `work` writes to no tensor.
        work(unsafe { self.memory.slice() })
    }

    /// Calls `work` with the elements, from the first to the last in memory, to be written. Not to be called where
    /// elements of this tensor are lent already.
    pub(crate) fn write<R>(&self, work: impl for<'l> FnOnce(SliceMut<'l>) -> R) -> R {
        // SAFETY: as in `number`. The slice does not outlive the call, and is the only one to these elements.
        work(unsafe { self.memory.slice_mut() })
    }

    /// Asks for large pages where the elements lie, as far as whole pages do. It is advice: nothing that they hold
    /// changes.
    #[cfg(target_os = "linux")]
    pub(crate) fn advise_large_pages(&self, page: usize) {
        let (start, end) = self.memory.interval();
        let (first, last) = (start.next_multiple_of(page), end / page * page);
        if first < last {
            // SAFETY: whole pages inside memory that the tensor owns; this advice changes how it is mapped, not what it
            // holds.
            unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_HUGEPAGE) };
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn advise_large_pages(&self, _page: usize) {}

    /// As if the tensor had as many more elements: wrong, on purpose.
    #[cfg(feature = "trespass")]
    pub(crate) fn reaching_beyond(mut self, more: usize) -> Self {
        self.memory.extent += more;
        self
    }
}

impl Memory {
    /// Memory of a tensor, whose description was checked: where it begins, of what type its elements are, whether they
    /// are pairs, how many of them (of their parts) there are, and how far they reach.
    #[inline(always)]
    pub(super) fn at(data: *mut c_void, dtype: DType, complex: bool, len: usize, extent: usize) -> Self {
        Self { data, dtype, complex, integer: false, len, extent }
    }

    /// First byte and one past the last.
    #[inline]
    pub(crate) fn interval(&self) -> (usize, usize) {
        let start = self.data as usize;
        (start, start + self.extent * self.dtype.size())
    }

    /// The elements, from the first to the last in memory.
    ///
    /// # Safety
    /// The tensor that was described lives and owns its memory, unchanged, for all of `'a`, and nothing writes to the
    /// memory in `'a`.
    #[inline]
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
                DType::U8 => Slice::U8(raw(self.data, self.extent)),
                DType::I16 => Slice::I16(raw(self.data, self.extent)),
            }
        }
    }

    /// The elements, from the first to the last in memory, to be written.
    ///
    /// # Safety
    /// As for [`Memory::slice`], and nothing else reads or writes the memory in `'a`.
    #[inline]
    pub(crate) unsafe fn slice_mut<'a>(&self) -> SliceMut<'a> {
        // SAFETY: as in `slice`; that no other reference to the memory is used in `'a` is the caller's (contract).
        unsafe {
            match self.dtype {
                DType::F64 => SliceMut::F64(raw_mut(self.data, self.extent)),
                DType::F32 => SliceMut::F32(raw_mut(self.data, self.extent)),
                DType::F16 => SliceMut::F16(raw_mut::<f16>(self.data, self.extent)),
                DType::Bf16 => SliceMut::Bf16(raw_mut::<bf16>(self.data, self.extent)),
                DType::U8 => SliceMut::U8(raw_mut(self.data, self.extent)),
                DType::I16 => SliceMut::I16(raw_mut(self.data, self.extent)),
            }
        }
    }

    /// The value of a tensor of one element; `None` if it has another number of them.
    ///
    /// # Safety
    /// The tensor that was described lives and owns its memory, unchanged.
    #[inline]
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
                DType::U8 | DType::I16 => None,
            }
        }
    }

    /// Sets the value of a tensor of one element that [`Memory::read_scalar`] could read.
    ///
    /// # Safety
    /// As for [`Memory::read_scalar`], and nothing else reads or writes the memory now.
    #[inline]
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
                DType::U8 | DType::I16 => {}
            }
        }
    }
}

/// Calls `work` with the elements of tensors, each from the first to the last in memory: of those to be written, and of
/// those that are only read. `None`, and it is not called, if what is written overlaps anything else. Remembers in
/// `known` what it sorted. Not to be called where elements of one of these tensors are lent already.
pub(crate) fn lend<R>(
    known: &mut Written,
    written: &[Described<'_>],
    read: &[Described<'_>],
    work: impl for<'l> FnOnce(Vec<SliceMut<'l>>, Vec<Slice<'l>>) -> R,
) -> Option<R> {
    let interval = |described: &Described<'_>| described.memory.interval();
    if !are_apart(known, written.iter().map(interval), read.iter().map(interval)) {
        return None;
    }
    // SAFETY: the tensors live, and are what they were when they were described: the rule of the type. The interval of
    // what is written overlaps no other, so each of its slices is the only one to its elements. None outlives the call.
    let written = written.iter().map(|described| unsafe { described.memory.slice_mut() }).collect();
    // SAFETY: as above; nothing that is written overlaps these.
    let read = read.iter().map(|described| unsafe { described.memory.slice() }).collect();
    Some(work(written, read))
}

/// As [`lend`], of tensors that are only read.
pub(crate) fn read_all<R>(of: &[Described<'_>], work: impl for<'l> FnOnce(Vec<Slice<'l>>) -> R) -> R {
    // SAFETY: as in `Described::read`.
    work(of.iter().map(|described| unsafe { described.memory.slice() }).collect())
}

/// # Safety
/// As for `std::slice::from_raw_parts`, but an empty slice may have a null pointer.
#[inline]
unsafe fn raw<'a, T>(data: *mut c_void, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's contract.
    unsafe { std::slice::from_raw_parts(data.cast(), len) }
}

/// # Safety
/// As for `std::slice::from_raw_parts_mut`, but an empty slice may have a null pointer.
#[inline]
unsafe fn raw_mut<'a, T>(data: *mut c_void, len: usize) -> &'a mut [T] {
    if len == 0 {
        return &mut [];
    }
    // SAFETY: the caller's contract.
    unsafe { std::slice::from_raw_parts_mut(data.cast(), len) }
}

/// Where the elements of the streams of a step lie; `None` if simply one after the other, in the same order in each.
pub(crate) fn layout(described: &[Described<'_>]) -> Option<Layout> {
    let first = described.first()?;
    let alike = |d: &Described<'_>| d.is_dense && first.shape.same_order(&d.shape);
    if first.memory.len == 0 || described.iter().all(alike) {
        return None;
    }
    let reals = if first.memory.complex { 2 } else { 1 };
    let mut sizes: Vec<usize> = first.shape.sizes.iter().map(|&n| n as usize).collect();
    let streams = described.len();
    let mut strides = vec![0; sizes.len() * streams];
    for (s, stream) in described.iter().enumerate() {
        let of_stream = strides.iter_mut().skip(s).step_by(streams);
        of_stream.zip(stream.shape.strides).for_each(|(to, &stride)| *to = stride as isize * reals);
    }
    if first.memory.complex {
        sizes.push(2);
        strides.resize(sizes.len() * streams, 1);
    }
    Some(Layout::new(&sizes, &strides, &vec![0; streams]))
}
