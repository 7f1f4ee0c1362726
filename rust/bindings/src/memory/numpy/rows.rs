//! Gradients that name rows of a parameter: `(indices, rows)`, in any order, some of them several times.

use oxistep_kernels::{Slice, SparseRows, f16};

use crate::memory::dtype::DType;
use crate::memory::numpy::buffer::Buffer;

/// Rows of a parameter in ascending order, each once, with their gradients.
#[derive(Debug)]
pub(crate) struct Rows {
    rows: Vec<i64>,
    width: usize,
    pub(super) sums: Buffer,
}

impl Rows {
    /// Of rows as they are named and a copy of their gradients. What is named several times is summed in the order in
    /// which it is named.
    pub(super) fn new(named: &[i64], width: usize, values: &Buffer) -> Self {
        let mut order: Vec<(i64, usize)> = named.iter().copied().zip(0..).collect();
        order.sort_unstable();
        let mut rows = Vec::with_capacity(order.len());
        let sums = match values {
            Buffer::F64(values) => Buffer::F64(sum(&order, width, values, &mut rows, |a, b| a + b)),
            Buffer::F32(values) => Buffer::F32(sum(&order, width, values, &mut rows, |a, b| a + b)),
            Buffer::F16(values) => {
                Buffer::F16(sum(&order, width, values, &mut rows, |a, b| f16::from_f32(a.to_f32() + b.to_f32())))
            }
        };
        Self { rows, width, sums }
    }

    /// As kernels take them.
    pub(super) fn named(&self) -> SparseRows<'_> {
        SparseRows { rows: &self.rows, width: self.width, sources: None, sums: Slice::F32(&[]) }
    }

    /// Of no rows.
    pub(super) fn none(dtype: DType) -> Self {
        Self { rows: Vec::new(), width: 0, sums: Buffer::new(dtype) }
    }
}

fn sum<T: Copy>(
    order: &[(i64, usize)],
    width: usize,
    values: &[T],
    rows: &mut Vec<i64>,
    add: impl Fn(T, T) -> T,
) -> Vec<T> {
    let mut sums: Vec<T> = Vec::with_capacity(order.len() * width);
    for &(row, place) in order {
        let own = &values[place * width..][..width];
        if rows.last() == Some(&row) {
            let start = sums.len() - width;
            sums[start..].iter_mut().zip(own).for_each(|(sum, &x)| *sum = add(*sum, x));
        } else {
            rows.push(row);
            sums.extend_from_slice(own);
        }
    }
    sums
}
