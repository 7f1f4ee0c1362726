//! NumPy arrays: the only place where a pointer of NumPy's becomes a slice.
//!
//! An array is looked at once: [`Array`] is what its header said. Before the first write the header is asked again, and
//! from then on no Python code of this thread runs until the step is done: the rule of [`Apart`] and [`Settled`], which
//! alone lend slices, and have found that nothing that is written overlaps anything else.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use numpy::npyffi::{NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use oxistep_kernels::overlap::{Range, Written};
use oxistep_kernels::{Layout, MAX_STATES, STREAMS, Slice, SliceMut, SparseRows, Tensors, f16};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;
use pyo3::types::{PyList, PyType};
use smallvec::SmallVec;

use crate::memory::dtype::DType;
use crate::memory::numpy::active::{self, Active};
use crate::memory::numpy::buffer::{Buffer, Cast, CastTo};
use crate::memory::numpy::form::{Form, Number, layout};
use crate::memory::numpy::overlaps::{GRADIENT, Way, ways};
use crate::memory::numpy::rows::Rows;
use crate::memory::numpy::scalar::number_of;
use crate::memory::python::{ClassRef, is_at};
use crate::memory::stream::Memory;

type Streams<T> = SmallVec<[T; STREAMS]>;

/// What an array's header says now.
struct Header<'t> {
    data: usize,
    type_num: c_int,
    /// Whether its bytes are in the machine's order.
    native: bool,
    flags: c_int,
    shape: &'t [usize],
    strides: &'t [isize],
}

#[inline(always)]
fn header<'t>(array: &'t Bound<'_, PyUntypedArray>) -> Header<'t> {
    let (shape, strides) = (array.shape(), array.strides());
    // SAFETY: the object is an array, which the reference keeps alive, and its dtype with it.
    let (data, flags, dtype) = unsafe {
        let array = &*array.as_array_ptr();
        (array.data as usize, array.flags, &*array.descr)
    };
    let native = matches!(dtype.byteorder as u8, b'=' | b'|');
    Header { data, type_num: dtype.type_num, native, flags: flags & WHICH_FLAGS, shape, strides }
}

const WHICH_FLAGS: c_int = NPY_ARRAY_ALIGNED | NPY_ARRAY_WRITEABLE;

impl Form {
    #[inline(always)]
    fn is_of(&self, header: &Header<'_>) -> bool {
        let Header { type_num, native, flags, shape, strides, .. } = *header;
        let same = shape.iter().zip(&self.shape).all(|(a, b)| a == b) && shape.len() == self.shape.len();
        let alike = || strides.iter().zip(&self.strides).all(|(a, b)| a == b);
        type_num == self.type_num && native && flags == self.flags && same && alike()
    }
}

/// An array as it was when it was looked at.
#[derive(Debug)]
pub(crate) struct Array {
    /// `None`: a gradient that is a number, or that was given back.
    object: Option<Py<PyUntypedArray>>,
    data: usize,
    pub(crate) form: Form,
}

impl Array {
    /// `None` if its dtype is not served.
    pub(crate) fn of(array: &Bound<'_, PyUntypedArray>) -> Option<Self> {
        let Header { data, type_num, native, flags, shape, strides } = header(array);
        let dtype = array.dtype();
        let number = Number::of(dtype.kind(), dtype.itemsize()).filter(|_| native)?;
        let form = Form::new(number, (type_num, flags), shape, strides);
        Some(Self { object: Some(array.clone().unbind()), data, form })
    }

    /// Stands for a number.
    fn of_number(dtype: DType) -> Self {
        Self { object: None, data: 0, form: Form::contiguous(dtype, &[]) }
    }

    /// Whether the elements lie one after the other in logical order.
    pub(crate) fn is_in_one_piece(&self) -> bool {
        self.form.run(usize::MAX).0 == self.form.shape.len()
    }

    /// The elements as integers, if they are: a copy.
    pub(crate) fn integers(&self) -> Option<Vec<i64>> {
        if self.form.number.float().is_some() || self.form.number == Number::Bool {
            return None;
        }
        let mut integers = Buffer::F64(Vec::new());
        self.copy_to(&mut integers); // exact as far as there are elements
        let Buffer::F64(integers) = integers else { return None };
        Some(integers.into_iter().map(|x| x as i64).collect())
    }

    pub(crate) fn is_writeable(&self) -> bool {
        self.form.flags & NPY_ARRAY_WRITEABLE != 0
    }

    /// Whether every element lies at a multiple of its size.
    pub(crate) fn is_aligned(&self) -> bool {
        let size = self.form.number.size();
        self.form.len == 0 || (self.data.is_multiple_of(size) && self.form.is_even())
    }

    pub(crate) fn overlaps_itself(&self) -> bool {
        self.form.overlaps_itself()
    }

    /// Whether the header says what it said.
    #[inline]
    pub(crate) fn is_unchanged(&self, py: Python<'_>) -> bool {
        self.object.as_ref().is_none_or(|object| {
            let header = header(object.bind(py));
            header.data == self.data && self.form.is_of(&header)
        })
    }

    /// The address of the lowest element.
    fn first(&self) -> usize {
        self.data.wrapping_sub(self.form.below())
    }

    /// The addresses from the lowest element to the end of the highest.
    #[inline]
    pub(crate) fn range(&self) -> Range {
        (self.first(), self.first() + self.form.extent * self.form.number.size())
    }

    /// The address of each element whose last `places` indices are zero.
    pub(super) fn each_address(&self, places: usize, mut f: impl FnMut(usize)) {
        self.form.each(places, |offset| f(self.data.wrapping_add_signed(offset)));
    }

    /// So many elements from an address on; of a gradient of another dtype, none.
    #[inline(always)]
    fn memory(&self, first: usize, len: usize) -> Memory {
        let (dtype, len) = self.form.number.float().map_or((DType::F32, 0), |dtype| (dtype, len));
        Memory::at(first as *mut c_void, dtype, false, len, len)
    }

    /// All of them, from the lowest to the highest.
    #[inline(always)]
    fn whole(&self) -> Memory {
        self.memory(self.first(), self.form.extent)
    }

    /// The elements, and how they lie. As for [`Array::copy_to`], until the last use of them.
    pub(crate) fn read(&self) -> (Slice<'_>, Option<Layout>) {
        // SAFETY: the array is what it was when it was looked at, and kept alive by this.
        (unsafe { self.whole().slice() }, layout(&[&self.form]))
    }

    /// The value of an array of one float; NaN for any other. As for [`Array::copy_to`].
    #[inline]
    pub(crate) fn number(&self) -> f64 {
        // SAFETY: the array is what it was when it was looked at.
        unsafe { self.whole().read_scalar() }.unwrap_or(f64::NAN)
    }

    /// Sets the value of an array of one float. As for [`Array::copy_to`], and nobody has a slice of it.
    #[inline]
    fn set_number(&mut self, x: f64) {
        // SAFETY: as in `number`; it was found to be writeable.
        unsafe { self.whole().write_scalar(x) };
    }

    /// Makes a copy in logical order, of another dtype perhaps. Whoever calls has asked whether the array is unchanged
    /// since Python code last ran.
    fn copy_to(&self, to: &mut Buffer) {
        self.copy(true, to);
    }

    /// As above; or in the order of memory, of elements that fill theirs.
    fn copy(&self, in_order: bool, to: &mut Buffer) {
        macro_rules! copy {
            ($t:ty) => {
                match to {
                    Buffer::F64(to) => self.read_into::<$t, f64>(in_order, to),
                    Buffer::F32(to) => self.read_into::<$t, f32>(in_order, to),
                    Buffer::F16(to) => self.read_into::<$t, f16>(in_order, to),
                }
            };
        }
        match self.form.number {
            Number::Float(DType::F64) => copy!(f64),
            Number::Float(DType::F16) => copy!(f16),
            Number::Float(_) => copy!(f32),
            Number::I8 => copy!(i8),
            Number::I16 => copy!(i16),
            Number::I32 => copy!(i32),
            Number::I64 => copy!(i64),
            Number::U8 | Number::Bool => copy!(u8),
            Number::U16 => copy!(u16),
            Number::U32 => copy!(u32),
            Number::U64 => copy!(u64),
        }
    }

    fn read_into<T: Cast, U: CastTo>(&self, in_order: bool, to: &mut Vec<U>) {
        to.clear();
        to.reserve(self.form.len);
        let mut add = |first: usize, len: usize| {
            // SAFETY: so many elements follow each other there, says the array's own form; they are aligned, of a type
            // that any bits are a value of, and live: the array is unchanged. Nobody writes to them now.
            let run = unsafe { std::slice::from_raw_parts(first as *const T, len) };
            to.extend(run.iter().map(|&x| U::from(x)));
        };
        if self.form.len == 0 {
            return;
        }
        if !in_order && self.form.is_dense() {
            return add(self.first(), self.form.len);
        }
        let (places, run) = self.form.run(usize::MAX);
        self.each_address(places, |address| add(address, run));
    }

    /// Writes the elements of a copy of the same dtype back. As for [`Array::set_number`].
    fn copy_from(&mut self, from: &Buffer) {
        match from {
            Buffer::F64(from) => self.write_from(from),
            Buffer::F32(from) => self.write_from(from),
            Buffer::F16(from) => self.write_from(from),
        }
    }

    fn write_from<T: Copy>(&mut self, from: &[T]) {
        let mut from = from.iter();
        self.each_address(0, |address| {
            if let Some(&x) = from.next() {
                // SAFETY: an aligned element of the array, which is writeable and of this type: the buffer was made
                // from it.
                unsafe { *(address as *mut T) = x };
            }
        });
    }
}

/// The slices of a parameter, its gradient and its states.
pub(crate) struct Lent<'a, S> {
    pub(crate) tensors: Tensors<'a, S>,
    /// The rows that the gradient is of, if not of all.
    pub(crate) rows: Option<SparseRows<'a>>,
    /// How the elements of the gradient lie, if not one after the other.
    pub(crate) of_gradient: Option<&'a Layout>,
}

/// As many slices as there are states.
pub(crate) type StateSlices<'a> = SmallVec<[SliceMut<'a>; MAX_STATES]>;

/// A gradient in the dtype of its parameter, copied from another, or from a number.
#[derive(Debug)]
struct Copied {
    buffer: Buffer,
    form: Form,
}

/// What is given as a gradient.
pub(crate) enum Gradient {
    Array(Array),
    /// Of a parameter without dimensions.
    Number(f64),
    /// Of some rows of the parameter: which, each inside it, and an array with a row for each.
    Rows(Vec<i64>, Array),
}

/// The arrays of one parameter, all of one shape: the parameter, its gradient, its states; and its counters.
#[derive(Debug)]
pub(crate) struct Set {
    arrays: Vec<Array>,
    pub(crate) counters: Vec<Array>,
    /// The gradient, where it is of another dtype or a number.
    copied: Option<Box<Copied>>,
    /// The rows that it names, as they were named and then in order, if it is of some rows only.
    rows: Option<Box<(Vec<i64>, Rows)>>,
    layout: Option<Box<Layout>>,
    of_gradient: Option<Box<Layout>>,
    /// Where the gradient lay among what is written.
    hint: u32,
    /// Whether it has a gradient in the step under way.
    pub(crate) takes_part: bool,
}

impl Set {
    pub(crate) fn of(
        param: Array,
        gradient: Gradient,
        states: impl Iterator<Item = Array>,
        counters: Vec<Array>,
    ) -> Self {
        let dtype = param.form.number.float().unwrap_or(DType::F32);
        let mut rows = None;
        let (gradient, copied) = match gradient {
            Gradient::Rows(named, array) => {
                rows = Some(Box::new((named, Rows::none(dtype))));
                let form = Form::contiguous(dtype, &array.form.shape);
                (array, Some(Box::new(Copied { buffer: Buffer::new(dtype), form })))
            }
            Gradient::Array(array) if array.form.number == param.form.number => (array, None),
            Gradient::Array(array) => {
                let is_dense = array.form.is_dense();
                let form = if is_dense { array.form.cast(dtype) } else { Form::contiguous(dtype, &array.form.shape) };
                (array, Some(Box::new(Copied { buffer: Buffer::new(dtype), form })))
            }
            Gradient::Number(x) => {
                let mut buffer = Buffer::new(dtype);
                buffer.set(x);
                let form = Form::contiguous(dtype, &[]);
                (Array::of_number(dtype), Some(Box::new(Copied { buffer, form })))
            }
        };
        let arrays = [param, gradient].into_iter().chain(states).collect();
        let mut set =
            Self { arrays, counters, copied, rows, layout: None, of_gradient: None, hint: 0, takes_part: true };
        if set.rows.is_some() {
            return set; // parameter and states lie in one piece
        }
        let (of_all, of_gradient) = {
            let forms = set.forms();
            (layout(&forms), layout(&forms[1..2]))
        };
        (set.layout, set.of_gradient) = (of_all.map(Box::new), of_gradient.map(Box::new));
        set
    }

    /// How what kernels read and write lies.
    fn forms(&self) -> Streams<&Form> {
        let mut forms: Streams<&Form> = self.arrays.iter().map(|array| &array.form).collect();
        if let Some(copied) = &self.copied {
            forms[1] = &copied.form;
        }
        forms
    }

    /// What a step writes, and a gradient that is not copied before: each with whether it is only read.
    fn pieces(&self) -> impl Iterator<Item = (&Array, bool)> + Clone {
        let states = self.arrays[2..].iter().chain(&self.counters);
        let written = self.arrays.iter().take(1).chain(states).map(|array| (array, false));
        written.chain(self.copied.is_none().then(|| (&self.arrays[1], true)))
    }

    fn is_unchanged(&self, py: Python<'_>) -> bool {
        self.arrays.iter().chain(&self.counters).all(|array| array.is_unchanged(py))
    }

    /// As above, where the gradient has just been looked at.
    #[inline]
    fn rest_is_unchanged(&self, py: Python<'_>) -> bool {
        let unchanged = |array: &Array| array.is_unchanged(py);
        unchanged(&self.arrays[0]) && self.arrays[2..].iter().all(unchanged) && self.counters.iter().all(unchanged)
    }

    /// Copies a gradient of another dtype. As for [`Array::copy_to`].
    fn copy_gradient(&mut self) {
        if let (Some(copied), true) = (&mut self.copied, self.arrays[1].object.is_some()) {
            let in_order = self.rows.is_some() || !self.arrays[1].form.is_dense();
            self.arrays[1].copy(in_order, &mut copied.buffer);
            if let Some(rows) = &mut self.rows {
                let width = self.arrays[0].form.shape[1..].iter().product();
                rows.1 = Rows::new(&rows.0, width, &copied.buffer);
            }
        }
    }

    /// The gradient, where it is a copy.
    fn copy(&self) -> Option<Slice<'_>> {
        match (&self.rows, &self.copied) {
            (Some(rows), _) => Some(rows.1.sums.slice()),
            (None, copied) => copied.as_ref().map(|copied| copied.buffer.slice()),
        }
    }

    /// The places of the last indices along which the elements of all arrays follow each other, and how many those are.
    pub(super) fn run(&self) -> (usize, usize) {
        let mut places = usize::MAX;
        let forms = self.forms();
        forms.iter().for_each(|form| places = form.run(places).0);
        forms[0].run(places)
    }

    /// What kernels update, in one piece.
    ///
    /// # Safety
    /// The arrays are what they were when they were looked at, for all of `'a`, and no slice of them that is written
    /// overlaps any other in use in `'a`.
    #[inline(always)]
    unsafe fn whole<'a>(&'a self) -> Lent<'a, impl Iterator<Item = SliceMut<'a>>> {
        // SAFETY: the contract of this function.
        let (param, grad) = unsafe {
            let grad = match self.copy() {
                Some(copy) => copy,
                None => self.arrays[1].whole().slice(),
            };
            (self.arrays[0].whole().slice_mut(), grad)
        };
        // SAFETY: as above.
        let states = self.arrays[2..].iter().map(|state| unsafe { state.whole().slice_mut() });
        let tensors = Tensors { param, grad, states, layout: self.layout.as_deref() };
        Lent { tensors, rows: self.rows.as_ref().map(|rows| rows.1.named()), of_gradient: self.of_gradient.as_deref() }
    }

    /// What kernels update, row by row, each of which lies in one piece.
    ///
    /// # Safety
    /// As for [`Set::whole`]; rows may lie between those of other sets.
    unsafe fn rows<'a>(&'a self, places: usize) -> Vec<Lent<'a, StateSlices<'a>>> {
        let width = self.arrays[0].form.run(places).1;
        let firsts = |array: &Array| {
            let mut firsts = Vec::new();
            array.each_address(places, |address| firsts.push(address));
            firsts
        };
        let all: Streams<Vec<usize>> = self.arrays.iter().map(firsts).collect();
        let mut in_copy = Vec::new();
        if let Some(Copied { form, .. }) = self.copied.as_deref() {
            form.each(places, |offset| in_copy.push(form.below().wrapping_add_signed(offset) / form.number.size()));
        }
        // SAFETY: the contract of this function; so many elements follow each other from each of these addresses on.
        let piece = |i: usize| unsafe {
            let memory = |s: usize| self.arrays[s].memory(all[s][i], width);
            let grad = match &self.copied {
                Some(copied) => copied.buffer.part(in_copy[i], width),
                None => memory(1).slice(),
            };
            let states = (2..self.arrays.len()).map(|s| memory(s).slice_mut()).collect();
            let tensors = Tensors { param: memory(0).slice_mut(), grad, states, layout: None };
            Lent { tensors, rows: None, of_gradient: None }
        };
        (0..all[0].len()).map(piece).collect()
    }
}

/// What the sets of a step that take part use: whose it is, whether it is only read, and where it lies.
fn ranges(sets: &[Set]) -> impl Iterator<Item = (usize, bool, Range)> + Clone {
    let sets = sets.iter().enumerate().filter(|(_, set)| set.takes_part);
    sets.flat_map(|(k, set)| set.pieces().map(move |(array, is_read)| (k, is_read, array.range())))
}

/// The sets of a step, in whose slices nothing that is written overlaps anything else.
///
/// Whoever has one in hand runs no Python code of this thread until the last use of its slices: that could resize an
/// array. That other threads do not is left to the caller.
pub(crate) struct Apart {
    pub(crate) sets: Vec<Set>,
    ways: Vec<Way>,
}

impl Apart {
    /// `name` is what errors call the parameter of a set, `what` an array of it (the parameter, its gradient, states,
    /// counters); `by_rows`: its rows may be handed out one by one.
    ///
    /// # Errors
    /// If an array is not what it was when it was looked at (making states runs Python code), or if arrays share
    /// elements, or if another thread is in a step on their memory.
    pub(crate) fn settle<'n>(
        py: Python<'_>,
        mut sets: Vec<Set>,
        (name, what): (impl Fn(usize) -> &'n str, impl Fn(usize, usize) -> String),
        by_rows: bool,
    ) -> PyResult<Self> {
        if let Some(k) = sets.iter().position(|set| !set.is_unchanged(py)) {
            return Err(PyRuntimeError::new_err(format!(
                "an array of {} (the parameter, its gradient or a state) was reshaped or resized while this step was \
                 under way; nothing was updated",
                name(k)
            )));
        }
        active::check(py, ranges(&sets), &name)?;
        let runs = |k: usize, add: &mut dyn FnMut(Range, usize)| {
            let set = &sets[k];
            for (s, array) in set.arrays.iter().chain(&set.counters).enumerate() {
                let (places, len) = array.form.run(usize::MAX);
                let size = len * array.form.number.size();
                if s != GRADIENT || set.copied.is_none() {
                    array.each_address(places, |first| add((first, first + size), s));
                }
            }
        };
        let rows = |k: usize| (by_rows && sets[k].rows.is_none()).then(|| sets[k].run());
        let ways = ways(sets.len(), ranges(&sets), runs, rows, what)?;
        sets.iter_mut().for_each(Set::copy_gradient);
        let mut apart = Self { sets, ways };
        for (set, way) in apart.sets.iter().zip(&mut apart.ways) {
            if let Way::Copies(buffers) = way {
                for (s, array) in set.arrays.iter().enumerate() {
                    let mut buffer = Buffer::new(set.arrays[0].form.number.float().unwrap_or(DType::F32));
                    match &set.copied {
                        Some(copied) if s == GRADIENT && array.object.is_none() => buffer.copy_from(&copied.buffer),
                        _ => array.copy_to(&mut buffer),
                    }
                    buffers.push(buffer);
                }
            }
        }
        Ok(apart)
    }

    /// Whether all sets are handed out in one piece, and all of it.
    pub(crate) fn is_whole(&self) -> bool {
        self.ways.iter().all(|way| matches!(way, Way::Whole)) && self.sets.iter().all(|set| set.rows.is_none())
    }

    /// What kernels update of each set: pieces.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = Vec<Lent<'_, StateSlices<'_>>>> {
        self.sets.iter().zip(&mut self.ways).map(|(set, way)| {
            // SAFETY: `settle` has found the arrays what they were when they were looked at, and no Python code runs
            // from then on: the rule of this type. The sets keep the arrays alive. What overlaps another slice was
            // copied, or is handed out by rows, which were compared. The slices borrow from this, which lends them to
            // one caller at a time.
            unsafe {
                match way {
                    Way::Whole => {
                        let Lent { tensors: Tensors { param, grad, states, layout }, rows, of_gradient } = set.whole();
                        let tensors = Tensors { param, grad, states: states.collect(), layout };
                        vec![Lent { tensors, rows, of_gradient }]
                    }
                    Way::Rows(places) => set.rows(*places),
                    Way::Copies(copies) => {
                        let mut copies = copies.iter_mut();
                        let (Some(param), Some(grad)) = (copies.next(), copies.next()) else { return Vec::new() };
                        let states = copies.map(Buffer::slice_mut).collect();
                        // rows are copied anyway, and in their own order
                        let grad = if set.rows.is_some() { set.copy() } else { None }.unwrap_or_else(|| grad.slice());
                        let tensors = Tensors { param: param.slice_mut(), grad, states, layout: None };
                        let rows = set.rows.as_ref().map(|rows| rows.1.named());
                        vec![Lent { tensors, rows, of_gradient: None }]
                    }
                }
            }
        })
    }

    /// Tells other threads that the step is under way.
    pub(crate) fn begin(&self, py: Python<'_>) -> Active {
        Active::begin(py, &ranges(&self.sets))
    }

    /// Writes the copies back.
    pub(crate) fn write_back(&mut self) {
        for (set, way) in self.sets.iter_mut().zip(&self.ways) {
            let Way::Copies(copies) = way else { continue };
            let arrays = set.arrays.iter_mut().zip(copies).enumerate();
            arrays.filter(|(s, _)| *s != 1).for_each(|(_, (array, buffer))| array.copy_from(buffer));
        }
    }

    /// Sets a counter, when the step is done.
    pub(crate) fn set_counters(&mut self, k: usize, values: &[f64]) {
        self.sets[k].set_counters(values);
    }
}

impl Set {
    fn set_counters(&mut self, values: &[f64]) {
        self.counters.iter_mut().zip(values).for_each(|(counter, &x)| counter.set_number(x));
    }
}

/// Sets that a step found apart, kept for the next one, which asks their headers again.
///
/// As with [`Apart`]: from the first [`Settled::take`] of a step to the last use of its slices no Python code runs.
#[derive(Default)]
pub(crate) struct Settled {
    sets: Vec<Set>,
    /// What they write.
    account: Written,
    /// NumPy's class of arrays.
    class: Option<Py<PyType>>,
}

impl Settled {
    /// `None` if their slices are not apart as they are.
    pub(crate) fn of(apart: Apart) -> Option<Self> {
        if !apart.is_whole() {
            return None;
        }
        let mut settled = Self { sets: apart.sets, ..Self::default() };
        let Self { sets, account, .. } = &mut settled;
        account.begin();
        for (k, set) in sets.iter().enumerate() {
            set.pieces().filter(|(_, is_read)| !is_read).for_each(|(array, _)| account.add(k, array.range()));
        }
        let apart = account.conflicts().is_empty();
        settled.give_back();
        apart.then_some(settled)
    }

    pub(crate) fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// How many elements those have that take part.
    pub(crate) fn elements(&self) -> usize {
        self.sets.iter().filter(|set| set.takes_part).map(|set| set.arrays[0].form.len).sum()
    }

    /// All arrays, for Python's collector.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Py<PyUntypedArray>> {
        let arrays = self.sets.iter().flat_map(|set| set.arrays.iter().chain(&set.counters));
        arrays.filter_map(|array| array.object.as_ref())
    }

    /// Begins a step, in which no set takes part yet.
    pub(crate) fn begin(&mut self) {
        self.sets.iter_mut().for_each(|set| set.takes_part = false);
    }

    /// Lets set `k` take part with this gradient, if the parameter is still the one in this place of a list and all its
    /// arrays are what they were, but for where the gradient lies; else the step is to be begun again.
    #[inline]
    pub(crate) fn take(
        &mut self,
        k: usize,
        (params, place): (&Bound<'_, PyList>, usize),
        grad: Bound<'_, PyAny>,
    ) -> bool {
        let py = params.py();
        let Self { sets, account, class } = self;
        let set = &mut sets[k];
        let own = &mut set.arrays[1];
        if ClassRef::of(&grad).is(class.get_or_insert_with(|| PyUntypedArray::type_object(py).unbind())) {
            // SAFETY: that is NumPy's class of arrays.
            let grad = unsafe { grad.cast_into_unchecked::<PyUntypedArray>() };
            let header = header(&grad);
            if !own.form.is_of(&header) || !header.data.is_multiple_of(own.form.number.size()) {
                return false;
            }
            own.data = header.data;
            own.object = Some(grad.unbind());
        } else if own.form.type_num < 0 {
            let (Some(x), Some(copied)) = (number_of(&grad), &mut set.copied) else { return false };
            copied.buffer.set(x);
        } else {
            return false;
        }
        let is_there = set.arrays[0].object.as_ref().is_some_and(|object| is_at(params, place, object.as_any()));
        if !is_there || !set.rest_is_unchanged(py) {
            return false;
        }
        if set.copied.is_none() {
            let mut met = false;
            account.meeting(set.arrays[1].range(), &mut set.hint, |_| met = true);
            if met {
                return false;
            }
        }
        if set.copied.is_some() {
            set.copy_gradient();
        }
        set.takes_part = true;
        true
    }

    /// What kernels update of each set that takes part, with its place among them and its counters.
    #[inline]
    pub(crate) fn each(
        &mut self,
    ) -> impl Iterator<Item = (usize, &[Array], Lent<'_, impl Iterator<Item = SliceMut<'_>>>)> {
        self.sets.iter().enumerate().filter(|(_, set)| set.takes_part).map(|(k, set)| {
            // SAFETY: `take` has found the arrays what they were when they were found apart, the gradient apart from
            // all that is written, and no Python code runs from then on: the rule of this type. The sets keep the
            // arrays alive. The slices borrow from this, which lends them to one caller at a time.
            (k, &set.counters[..], unsafe { set.whole() })
        })
    }

    /// Whether no other thread is in a step on their memory.
    #[inline]
    pub(crate) fn is_free(&self, py: Python<'_>) -> bool {
        active::check(py, ranges(&self.sets), |_| "").is_ok()
    }

    /// Tells other threads that the step is under way.
    pub(crate) fn start(&self, py: Python<'_>) -> Active {
        Active::begin(py, &ranges(&self.sets))
    }

    /// Sets the counters of set `k`, when the step is done.
    pub(crate) fn set_counters(&mut self, k: usize, values: &[f64]) {
        self.sets[k].set_counters(values);
    }

    /// Lets gradients go, and large copies of them.
    pub(crate) fn give_back(&mut self) {
        for set in &mut self.sets {
            set.arrays[1].object = None;
            if let Some(copied) = set.copied.as_mut().filter(|copied| copied.form.len > LARGE) {
                copied.buffer = Buffer::new(copied.form.number.float().unwrap_or(DType::F32));
            }
        }
    }
}

/// Elements of a gradient of another dtype from which on its copy is not kept.
const LARGE: usize = 16 * 1024;
