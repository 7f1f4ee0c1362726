//! How an array's elements lie and what they are: all that its header says, but for where its memory is.

use oxistep_kernels::Layout;
use smallvec::SmallVec;

use crate::memory::dtype::DType;

/// Something for each dimension: few arrays have more than two, and forms of many are walked over.
pub(crate) type Dims<T> = SmallVec<[T; 2]>;

/// The elements of arrays that a step reads. It writes floats only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    Float(DType),
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

impl Number {
    /// Of one of NumPy's kinds and so many bytes.
    pub(super) fn of(kind: u8, itemsize: usize) -> Option<Self> {
        Some(match (kind, itemsize) {
            (b'f', 8) => Self::Float(DType::F64),
            (b'f', 4) => Self::Float(DType::F32),
            (b'f', 2) => Self::Float(DType::F16),
            (b'i', 1) => Self::I8,
            (b'i', 2) => Self::I16,
            (b'i', 4) => Self::I32,
            (b'i', 8) => Self::I64,
            (b'u', 1) => Self::U8,
            (b'u', 2) => Self::U16,
            (b'u', 4) => Self::U32,
            (b'u', 8) => Self::U64,
            (b'b', 1) => Self::Bool,
            _ => return None,
        })
    }

    pub(crate) fn float(self) -> Option<DType> {
        if let Self::Float(dtype) = self { Some(dtype) } else { None }
    }

    pub(super) fn size(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.size(),
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 => 4,
            Self::I64 | Self::U64 => 8,
        }
    }
}

/// What an array's header says, but for where its memory is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Form {
    pub(crate) number: Number,
    /// NumPy's number of the type (-1: it is no array's), and what its flags say of writing and alignment.
    pub(super) type_num: i32,
    pub(super) flags: i32,
    pub(crate) shape: Dims<usize>,
    /// In bytes, as NumPy has them.
    pub(super) strides: Dims<isize>,
    pub(crate) len: usize,
    /// Elements from the lowest to the highest in memory, gaps counted.
    pub(crate) extent: usize,
    /// How many of them lie below the first.
    start: usize,
}

impl Form {
    pub(super) fn new(number: Number, (type_num, flags): (i32, i32), shape: &[usize], strides: &[isize]) -> Self {
        let len = shape.iter().product();
        let (mut low, mut high) = (0, 0);
        for (&n, &stride) in shape.iter().zip(strides) {
            let reach = stride / number.size() as isize * (n as isize - 1);
            if reach < 0 { low += reach } else { high += reach }
        }
        let (extent, start) = if len == 0 { (0, 0) } else { ((high - low) as usize + 1, low.unsigned_abs()) };
        let (shape, strides) = (shape.into(), strides.into());
        Self { number, type_num, flags, shape, strides, len, extent, start }
    }

    /// Of elements that follow each other in logical order.
    pub(super) fn contiguous(dtype: DType, shape: &[usize]) -> Self {
        let mut strides: Dims<isize> = shape.iter().map(|_| 0).collect();
        let mut step = dtype.size();
        for (stride, &n) in strides.iter_mut().zip(shape).rev() {
            *stride = step as isize;
            step *= n;
        }
        Self::new(Number::Float(dtype), (-1, 0), shape, &strides)
    }

    /// Whether the elements fill their memory.
    pub(super) fn is_dense(&self) -> bool {
        self.extent == self.len
    }

    /// That of a copy of another dtype in the order of memory, of elements that fill theirs.
    pub(super) fn cast(&self, dtype: DType) -> Self {
        let strides: Dims<isize> = (0..self.shape.len()).map(|d| self.elements(d) * dtype.size() as isize).collect();
        Self::new(Number::Float(dtype), (-1, 0), &self.shape, &strides)
    }

    /// Where the first element lies among those from the lowest on, in bytes.
    pub(super) fn below(&self) -> usize {
        self.start * self.number.size()
    }

    /// Whether strides are whole elements.
    pub(super) fn is_even(&self) -> bool {
        let fits = |(n, stride): (&usize, &isize)| *n == 1 || stride.unsigned_abs().is_multiple_of(self.number.size());
        self.len == 0 || self.shape.iter().zip(&self.strides).all(fits)
    }

    /// Whether two indices may name the same element.
    pub(super) fn overlaps_itself(&self) -> bool {
        let dims = self.shape.iter().zip(&self.strides).filter(|(n, _)| **n > 1);
        let mut dims: Dims<(usize, usize)> = dims.map(|(&n, stride)| (stride.unsigned_abs(), n)).collect();
        dims.sort_unstable();
        let mut covered = 1;
        self.len > 0
            && dims.iter().any(|&(stride, n)| {
                let overlap = stride < covered;
                covered += stride * (n - 1);
                overlap
            })
    }

    /// The elements that follow each other in memory from any index on whose last so many places are zero: how many
    /// places, of at most `most`, and how many elements.
    pub(super) fn run(&self, most: usize) -> (usize, usize) {
        let (mut places, mut elements) = (0, 1);
        for (&n, &stride) in self.shape.iter().zip(&self.strides).rev().take(most) {
            if n != 1 && stride != (elements * self.number.size()) as isize {
                break;
            }
            (places, elements) = (places + 1, elements * n);
        }
        (places, elements)
    }

    /// Calls `f` with the distance in bytes from the first element to each whose last `places` indices are zero, in
    /// logical order.
    pub(super) fn each(&self, places: usize, mut f: impl FnMut(isize)) {
        let dims = self.shape.len() - places;
        if self.len == 0 {
            return;
        }
        let mut index: Dims<usize> = SmallVec::from_elem(0, dims);
        let mut offset = 0;
        loop {
            f(offset);
            let mut d = dims;
            loop {
                let Some(next) = d.checked_sub(1) else { return };
                d = next;
                index[d] += 1;
                offset += self.strides[d];
                if index[d] < self.shape[d] {
                    break;
                }
                offset -= self.strides[d] * self.shape[d] as isize;
                index[d] = 0;
            }
        }
    }
}

/// How the elements of arrays of one shape correspond; `None` if all lie one after the other in one order.
pub(super) fn layout(forms: &[&Form]) -> Option<Layout> {
    let Form { shape, len, .. } = forms[0];
    let streams = forms.len();
    let alike = |d: usize| shape[d] == 1 || forms.iter().all(|form| form.elements(d) == forms[0].elements(d));
    let together = forms.iter().all(|form| form.extent == *len && form.start == 0);
    if *len == 0 || (together && (0..shape.len()).all(alike)) {
        return None;
    }
    let mut strides = Vec::with_capacity(shape.len() * streams);
    (0..shape.len()).for_each(|d| strides.extend(forms.iter().map(|form| form.elements(d))));
    let starts: SmallVec<[usize; 5]> = forms.iter().map(|form| form.start).collect();
    Some(Layout::new(shape, &strides, &starts))
}

impl Form {
    /// The distance between neighbours in a dimension, in elements.
    fn elements(&self, d: usize) -> isize {
        self.strides[d] / self.number.size() as isize
    }
}
