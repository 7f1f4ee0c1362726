//! NumPy arrays: the only place where a pointer of NumPy's becomes a slice.
//!
//! An array is looked at once: [`Array`] is what its header said. Before the first write the header is asked again, and
//! from then on no Python code of this thread runs until the step is done: the rule of [`Apart`] and [`Settled`], which
//! alone lend slices, and have found that nothing that is written overlaps anything else.
#![allow(unsafe_code)]

use std::convert::Infallible;
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
use crate::memory::python::{ClassRef, each_item};
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
    /// The gradient, where it is of another dtype, which is not read as it is, or a number.
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

/// Whether loops are compiled for a gradient and a parameter of these types: of one, or a half beside a float32.
fn is_read_as_it_is(gradient: Number, param: Number) -> bool {
    let of_half = (Number::Float(DType::F16), Number::Float(DType::F32));
    gradient == param || (gradient, param) == of_half
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
            Gradient::Array(array) if is_read_as_it_is(array.form.number, param.form.number) => (array, None),
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
    singles: Vec<Singles>,
    /// What they write.
    account: Written,
    /// NumPy's class of arrays.
    class: Option<Py<PyType>>,
    /// Whether a set took part in the step under way other than together with others.
    alone: bool,
}

impl Settled {
    /// `None` if their slices are not apart as they are.
    pub(crate) fn of(apart: Apart) -> Option<Self> {
        if !apart.is_whole() {
            return None;
        }
        let mut settled = Self { sets: apart.sets, alone: true, ..Self::default() };
        let Self { sets, account, .. } = &mut settled;
        account.begin();
        for (k, set) in sets.iter().enumerate() {
            set.pieces().filter(|(_, is_read)| !is_read).for_each(|(array, _)| account.add(k, array.range()));
        }
        let apart = account.conflicts().is_empty();
        settled.give_back();
        apart.then_some(settled)
    }

    /// Takes sets together from now on, as far as they are numbers without dimensions: `run` are some in a row that a
    /// step updates in the same way. The interpreter is not released for a step of so few elements.
    pub(crate) fn take_together(&mut self, py: Python<'_>, run: std::ops::Range<usize>) -> Option<usize> {
        let singles = Singles::of(py, run.start, self.sets.get(run)?)?;
        self.singles.push(singles);
        Some(self.singles.len() - 1)
    }

    /// The shape of the parameter of set `k`.
    pub(crate) fn shape(&self, k: usize) -> &[usize] {
        &self.sets[k].arrays[0].form.shape
    }

    /// The sets that take part alone, with their counters.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (usize, &[Array])> {
        self.alone().iter().enumerate().filter(|(_, set)| set.takes_part).map(|(k, set)| (k, &set.counters[..]))
    }

    /// Whether set `k` may be one of those that are taken together.
    pub(crate) fn is_single(&self, k: usize) -> bool {
        let set = &self.sets[k];
        set.arrays[0].form.shape.is_empty() && set.arrays[GRADIENT].form.type_num < 0
    }

    /// Whether set `k` takes part in the step under way.
    pub(crate) fn takes_part(&self, k: usize) -> bool {
        let in_singles = |singles: &Singles| k.checked_sub(singles.first).is_some_and(|i| singles.taking.contains(&i));
        self.sets[k].takes_part || self.singles.iter().any(in_singles)
    }

    /// The sets among which are those that take part, but for those taken together.
    fn alone(&self) -> &[Set] {
        if self.alone { &self.sets } else { &[] }
    }

    /// How many elements those have that take part alone.
    pub(crate) fn elements(&self) -> usize {
        self.alone().iter().filter(|set| set.takes_part).map(|set| set.arrays[0].form.len).sum()
    }

    /// All arrays, for Python's collector.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Py<PyUntypedArray>> {
        let arrays = self.sets.iter().flat_map(|set| set.arrays.iter().chain(&set.counters));
        arrays.filter_map(|array| array.object.as_ref())
    }

    /// Begins a step, in which no set takes part yet.
    pub(crate) fn begin(&mut self) {
        self.sets.iter_mut().filter(|_| self.alone).for_each(|set| set.takes_part = false);
        self.alone = false;
        self.singles.iter_mut().for_each(Singles::begin);
    }

    /// Lets set `k` take part with this gradient, a number, as one of the `s`-th that are taken together; `false` as
    /// for [`Settled::take`].
    #[inline]
    pub(crate) fn take_single(&mut self, (s, k): (usize, usize), grad: &Bound<'_, PyAny>) -> bool {
        let Some(singles) = self.singles.get_mut(s) else { return false };
        number_of(grad).is_some_and(|x| singles.take(k - singles.first, x))
    }

    /// Whether all sets, so many, are taken together.
    pub(crate) fn is_all_together(&self, count: usize) -> bool {
        matches!(self.singles.as_slice(), [all] if all.each > 0 && all.arrays.len() / all.each == count)
    }

    /// Lets all sets take part with these gradients, as [`Settled::take_single`] does: without anything in between.
    #[inline]
    pub(crate) fn take_all(&mut self, grads: &Bound<'_, PyList>) -> bool {
        if let [all] = self.singles.as_mut_slice() { all.take_all(grads) } else { false }
    }

    /// Lets set `k` take part with this gradient, if all its arrays are what they were, but for where the gradient
    /// lies; else the step is to be begun again. That its parameter is still the same array is for the caller to see.
    #[inline]
    pub(crate) fn take(&mut self, k: usize, grad: &Bound<'_, PyAny>) -> bool {
        let py = grad.py();
        let Self { sets, account, class, alone, .. } = self;
        let set = &mut sets[k];
        *alone = true;
        let own = &mut set.arrays[1];
        if ClassRef::of(grad).is(class.get_or_insert_with(|| PyUntypedArray::type_object(py).unbind())) {
            // SAFETY: that is NumPy's class of arrays.
            let grad = unsafe { grad.cast_unchecked::<PyUntypedArray>() };
            let header = header(grad);
            if !own.form.is_of(&header) || !header.data.is_multiple_of(own.form.number.size()) {
                return false;
            }
            own.data = header.data;
            own.object = Some(grad.clone().unbind());
        } else if own.form.type_num < 0 {
            let (Some(x), Some(copied)) = (number_of(grad), &mut set.copied) else { return false };
            copied.buffer.set(x);
        } else {
            return false;
        }
        if !set.rest_is_unchanged(py) {
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

    /// What kernels update: of each set that takes part, with its place among them and its counters; and of those that
    /// are taken together.
    #[inline]
    pub(crate) fn each(
        &mut self,
    ) -> (
        impl Iterator<Item = (usize, &[Array], Lent<'_, impl Iterator<Item = SliceMut<'_>>>)>,
        impl Iterator<Item = Together<'_>>,
    ) {
        let sets = &self.sets[..if self.alone { self.sets.len() } else { 0 }];
        let sets = sets.iter().enumerate().filter(|(_, set)| set.takes_part).map(|(k, set)| {
            // SAFETY: `take` has found the arrays what they were when they were found apart, the gradient apart from
            // all that is written, and no Python code runs from then on: the rule of this type. The sets keep the
            // arrays alive. The slices borrow from this, which lends them to one caller at a time.
            (k, &set.counters[..], unsafe { set.whole() })
        });
        (sets, self.singles.iter_mut().filter_map(Singles::lend))
    }

    /// Whether no other thread is in a step on their memory.
    #[inline]
    pub(crate) fn is_free(&self, py: Python<'_>) -> bool {
        active::check(py, ranges(&self.sets), |_| "").is_ok()
            && (active::none(py) || self.singles.iter().all(|singles| singles.taking.is_empty()))
    }

    /// Writes what was taken together to where it is kept, when the step is done.
    pub(crate) fn write_back(&mut self) {
        self.singles.iter_mut().for_each(Singles::write_back);
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
        let sets = if self.alone { &mut self.sets[..] } else { &mut [] };
        for set in sets {
            set.arrays[1].object = None;
            if let Some(copied) = set.copied.as_mut().filter(|copied| copied.form.len > LARGE) {
                copied.buffer = Buffer::new(copied.form.number.float().unwrap_or(DType::F32));
            }
        }
    }
}

/// Elements of a gradient of another dtype from which on its copy is not kept.
const LARGE: usize = 16 * 1024;

/// An array without dimensions, as its header was. It is kept alive by the set that it is of.
#[derive(Debug)]
struct Single {
    object: usize,
    data: usize,
    dtype: usize,
    flags: c_int,
}

impl Single {
    /// `None` if it has dimensions, or is of a dtype that others may share the address of in time.
    fn of(py: Python<'_>, array: &Array) -> Option<Self> {
        let object = array.object.as_ref()?.bind(py);
        // SAFETY: an array that lives, and its dtype with it.
        let (dims, dtype, flags) = unsafe {
            let head = &*object.as_array_ptr();
            (head.nd, head.descr as usize, head.flags & WHICH_FLAGS)
        };
        // NumPy's own, of which there is one each for all time
        let known = match array.form.number {
            Number::Float(DType::F64) => numpy::dtype::<f64>(py),
            Number::Float(DType::F32) => numpy::dtype::<f32>(py),
            _ => return None,
        };
        let is_plain = dims == 0 && dtype == known.as_ptr() as usize && flags == WHICH_FLAGS;
        is_plain.then(|| Self { object: object.as_ptr() as usize, data: array.data, dtype, flags })
    }

    /// Whether the header says what it said.
    #[inline(always)]
    fn is_unchanged(&self) -> bool {
        // SAFETY: an array that lives: its set keeps it.
        let head = unsafe { &*(self.object as *const numpy::npyffi::PyArrayObject) };
        head.nd == 0
            && head.data as usize == self.data
            && head.descr as usize == self.dtype
            && head.flags & WHICH_FLAGS == self.flags
    }
}

/// Sets in a row of numbers without dimensions, of one dtype, with gradients that are numbers: a step updates copies of
/// them, which lie in one piece. To take each up alone costs fifty times its arithmetic.
#[derive(Debug)]
struct Singles {
    /// The first of the sets, and the arrays of all: parameters with their states and counters.
    first: usize,
    arrays: Vec<Single>,
    /// How many of these each set has, and how many of them, the last ones, are counters.
    each: usize,
    counters: SmallVec<[DType; 2]>,
    /// The sets that take part in the step under way.
    taking: Vec<usize>,
    copies: Copies,
    /// The counters, alike in all sets that take part; and what they become.
    before: SmallVec<[f64; 2]>,
    after: SmallVec<[f64; 2]>,
}

/// Copies of numbers in columns: parameters, gradients, states.
#[derive(Debug)]
enum Copies {
    F64(Vec<Vec<f64>>),
    F32(Vec<Vec<f32>>),
}

/// What kernels update of sets that are taken together.
pub(crate) struct Together<'a> {
    /// The first of them.
    pub(crate) set: usize,
    pub(crate) tensors: Tensors<'a, StateSlices<'a>>,
    /// The counters with their dtypes, and where to put what they become.
    pub(crate) before: &'a [f64],
    pub(crate) dtypes: &'a [DType],
    pub(crate) after: &'a mut SmallVec<[f64; 2]>,
}

impl Singles {
    /// `None` if they cannot be taken together.
    fn of(py: Python<'_>, first: usize, sets: &[Set]) -> Option<Self> {
        let own = sets.first()?;
        let dtype = own.arrays[0].form.number.float()?;
        let counters: SmallVec<[DType; 2]> =
            own.counters.iter().map(|counter| counter.form.number.float()).collect::<Option<_>>()?;
        let is_alike = |set: &Set| {
            let others = set.counters.iter().map(|counter| counter.form.number.float());
            set.rows.is_none()
                && set.arrays[GRADIENT].form.type_num < 0
                && set.arrays.len() == own.arrays.len()
                && set.arrays.iter().all(|array| array.form.number == Number::Float(dtype))
                && set.counters.iter().zip(&own.counters).all(|(a, b)| a.number().to_bits() == b.number().to_bits())
                && others.eq(counters.iter().map(|dtype| Some(*dtype)))
        };
        if !sets.iter().all(is_alike) {
            return None;
        }
        let streams = own.arrays.len();
        let of_set = |set| set_without_gradient(set).map(|array| Single::of(py, array));
        let arrays = sets.iter().flat_map(of_set).collect::<Option<Vec<_>>>()?;
        let copies = match dtype {
            DType::F64 => Copies::F64(vec![Vec::with_capacity(sets.len()); streams]),
            DType::F32 => Copies::F32(vec![Vec::with_capacity(sets.len()); streams]),
            _ => return None,
        };
        let each = streams - 1 + counters.len();
        let (before, after) = (SmallVec::new(), SmallVec::new());
        Some(Self { first, arrays, each, counters, taking: Vec::new(), copies, before, after })
    }

    fn begin(&mut self) {
        self.taking.clear();
        self.before.clear();
        match &mut self.copies {
            Copies::F64(columns) => columns.iter_mut().for_each(Vec::clear),
            Copies::F32(columns) => columns.iter_mut().for_each(Vec::clear),
        }
    }

    /// Lets one take part with this gradient, if its arrays are what they were and its counters are those of the
    /// others.
    fn take(&mut self, place: usize, grad: f64) -> bool {
        let Self { arrays, each, counters, taking, copies, before, .. } = self;
        let own = &arrays[place * *each..][..*each];
        match copies {
            Copies::F64(columns) => take_one(own, (place, grad), taking, (counters, before), columns),
            Copies::F32(columns) => take_one(own, (place, grad as f32), taking, (counters, before), columns),
        }
    }

    /// Lets all take part, with a gradient for each of them; `None` is none.
    fn take_all(&mut self, grads: &Bound<'_, PyList>) -> bool {
        let Self { arrays, each, counters, taking, copies, before, .. } = self;
        let kept = (arrays.as_slice(), *each);
        match copies {
            Copies::F64(columns) => take_each(grads, kept, taking, (counters, before), columns, |x| x),
            Copies::F32(columns) => take_each(grads, kept, taking, (counters, before), columns, |x| x as f32),
        }
    }

    /// `None`: none of them takes part.
    fn lend(&mut self) -> Option<Together<'_>> {
        let Self { first, copies, counters, before, after, taking, .. } = self;
        if taking.is_empty() {
            return None;
        }
        let tensors = match copies {
            Copies::F64(columns) => in_columns(columns, SliceMut::F64, Slice::F64)?,
            Copies::F32(columns) => in_columns(columns, SliceMut::F32, Slice::F32)?,
        };
        Some(Together { set: *first, tensors, before, dtypes: counters, after })
    }

    /// Writes copies and counters to where they are kept.
    fn write_back(&mut self) {
        let Self { arrays, each, counters, taking, copies, after, .. } = self;
        match copies {
            Copies::F64(columns) => write_columns(arrays, *each, taking, columns),
            Copies::F32(columns) => write_columns(arrays, *each, taking, columns),
        }
        if counters.is_empty() {
            return;
        }
        for own in taking.iter().map(|&place| &arrays[place * *each..][..*each]) {
            let own = &own[*each - counters.len()..];
            for ((counter, dtype), &x) in own.iter().zip(counters.iter()).zip(after.iter()) {
                // SAFETY: an array of one number of this type, writeable, aligned and alive, said its header in this
                // step, since when no Python code ran; nobody has a slice of it.
                unsafe {
                    match dtype {
                        DType::F64 => *(counter.data as *mut f64) = x,
                        _ => *(counter.data as *mut f32) = x as f32,
                    }
                }
            }
        }
    }
}

/// As [`Singles::take_all`]: there are so many `arrays` of each set.
#[inline(always)]
fn take_each<T: Copy>(
    grads: &Bound<'_, PyList>,
    (arrays, each): (&[Single], usize),
    taking: &mut Vec<usize>,
    (counters, before): (&[DType], &mut SmallVec<[f64; 2]>),
    columns: &mut [Vec<T>],
    rounded: impl Fn(f64) -> T,
) -> bool {
    let mut sets = arrays.chunks_exact(each).enumerate();
    let all = each_item(grads, |grad| {
        let Some((place, own)) = sets.next() else { return Ok::<_, Infallible>(false) };
        let Some(x) = number_of(grad) else { return Ok(grad.is_none()) };
        Ok(take_one(own, (place, rounded(x)), taking, (counters, before), columns))
    });
    all == Ok(true) && sets.next().is_none()
}

/// As [`Singles::take`]: `own` are the arrays of the set.
#[inline(always)]
fn take_one<T: Copy>(
    own: &[Single],
    (place, grad): (usize, T),
    taking: &mut Vec<usize>,
    (counters, before): (&[DType], &mut SmallVec<[f64; 2]>),
    columns: &mut [Vec<T>],
) -> bool {
    let (streams, own_counters) = own.split_at(own.len() - counters.len());
    let ([param, states @ ..], [params, grads, kept @ ..]) = (streams, columns) else { return false };
    if !own.iter().all(Single::is_unchanged) {
        return false;
    }
    for (i, (counter, dtype)) in own_counters.iter().zip(counters).enumerate() {
        // SAFETY: an array of one number of this type, says its header, aligned and alive; no Python code runs before
        // the step is done, and nobody writes to it now.
        let count = unsafe {
            match dtype {
                DType::F64 => *(counter.data as *const f64),
                _ => (*(counter.data as *const f32)).into(),
            }
        };
        match before.get(i) {
            Some(known) if known.to_bits() == count.to_bits() => {}
            None if taking.is_empty() => before.push(count),
            _ => return false,
        }
    }
    grads.push(grad);
    // SAFETY: as above; all are of the dtype of `T`.
    unsafe {
        params.push(*(param.data as *const T));
        states.iter().zip(kept).for_each(|(state, column)| column.push(*(state.data as *const T)));
    }
    taking.push(place);
    true
}

/// Writes columns of copies, but for gradients, to where they are kept.
fn write_columns<T: Copy>(arrays: &[Single], each: usize, taking: &[usize], columns: &[Vec<T>]) {
    for (k, column) in columns.iter().enumerate().filter(|(k, _)| *k != GRADIENT) {
        let own = if k == 0 { 0 } else { k - 1 };
        for (&place, &x) in taking.iter().zip(column) {
            // SAFETY: an array of one number of this type, writeable, aligned and alive, said its header in this step,
            // since when no Python code ran; nobody has a slice of it.
            unsafe { *(arrays[place * each + own].data as *mut T) = x };
        }
    }
}

/// Columns as kernels take them: a parameter, its gradient, its states.
fn in_columns<'a, T>(
    columns: &'a mut [Vec<T>],
    written: fn(&'a mut [T]) -> SliceMut<'a>,
    read: fn(&'a [T]) -> Slice<'a>,
) -> Option<Tensors<'a, StateSlices<'a>>> {
    let [param, grad, states @ ..] = columns else { return None };
    let states = states.iter_mut().map(|state| written(state)).collect();
    Some(Tensors { param: written(param), grad: read(grad), states, layout: None })
}

/// The arrays of a set that are kept from step to step: its parameter, its states, its counters.
fn set_without_gradient(set: &Set) -> impl Iterator<Item = &Array> {
    set.arrays.iter().take(1).chain(&set.arrays[2..]).chain(&set.counters)
}
