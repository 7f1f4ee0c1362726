//! Matrices of a few columns: rows too short for a loop of their own are taken in blocks.

use std::ops::Range;

use crate::arithmetic::Real;
use crate::formats::Element;
use crate::rules::adafactor::Rounded;

/// Rows of a block.
const ROWS: usize = 64;
/// Fewer columns than these are few.
const COLS: usize = 8;
/// Fewer rows than these are not worth a block.
const LEAST_ROWS: usize = 16;

/// Calls `$f::<cols>` for a number of columns that is small.
macro_rules! by_columns {
    ($cols:expr, $f:ident($($argument:expr),*)) => {
        match $cols {
            1 => $f::<1, _>($($argument),*),
            2 => $f::<2, _>($($argument),*),
            3 => $f::<3, _>($($argument),*),
            4 => $f::<4, _>($($argument),*),
            5 => $f::<5, _>($($argument),*),
            6 => $f::<6, _>($($argument),*),
            _ => $f::<7, _>($($argument),*),
        }
    };
}

/// Whether so many rows and columns are for this module.
#[inline(always)]
pub(super) fn fits(rows: usize, cols: usize) -> bool {
    cols < COLS && rows >= LEAST_ROWS
}

/// The sums of squares of rows; each square is also added to its column's.
#[inline(always)]
pub(super) fn squares_of_rows<P: Element>(factor: P::Arith, grad: &[P], row_sums: &mut [f64], columns: &mut [f64]) {
    /// Rows are dealt out to so many sums of columns, which then need not wait for each other.
    const LANES: usize = 8;

    #[inline(always)]
    fn rows_of<const C: usize, P: Element>(factor: P::Arith, grad: &[P], row_sums: &mut [f64], columns: &mut [f64]) {
        let mut lanes = [[0.0; C]; LANES];
        let mut block = |grad: &[[P; C]], row_sums: &mut [f64]| {
            for ((grad, sum), lane) in grad.iter().zip(row_sums).zip(&mut lanes) {
                *sum = 0.0;
                for j in 0..C {
                    let g: f64 = (factor * grad[j].load()).into();
                    let square = g * g;
                    lane[j] += square;
                    *sum += square;
                }
            }
        };
        let (grads, grad_tail) = grad.as_chunks::<C>().0.as_chunks::<LANES>();
        let (sums, sum_tail) = row_sums.as_chunks_mut::<LANES>();
        for (grad, sums) in grads.iter().zip(sums) {
            block(grad, sums);
        }
        block(grad_tail, sum_tail);
        for j in 0..C {
            columns[j] += lanes.iter().map(|lane| lane[j]).sum::<f64>();
        }
    }
    by_columns!(columns.len(), rows_of(factor, grad, row_sums, columns));
}

/// Calls `f` with the elements of each block of rows, as a range, and their V.
#[inline(always)]
pub(super) fn for_blocks<S: Element>(
    rounded: &Rounded<S::Arith>,
    mean: f64,
    row_var: &[S],
    col_var: &[S],
    mut f: impl FnMut(Range<usize>, &[S::Arith]),
) {
    #[inline(always)]
    fn products<const C: usize, A: Real>(rows: &[A], columns: &[A; COLS], into: &mut [A; ROWS * COLS]) {
        let (into, _) = into.as_chunks_mut::<C>();
        for (into, row) in into.iter_mut().zip(rows) {
            for j in 0..C {
                into[j] = *row * columns[j];
            }
        }
    }

    let cols = col_var.len();
    let mut columns = [S::Arith::ZERO; COLS];
    for (to, c) in columns.iter_mut().zip(col_var) {
        *to = c.load();
    }
    let mut v = [S::Arith::ZERO; ROWS * COLS];
    for (b, block) in row_var.chunks(ROWS).enumerate() {
        let mut rows = [S::Arith::ZERO; ROWS];
        for (to, row) in rows.iter_mut().zip(block) {
            *to = rounded.row_factor(row.load(), mean);
        }
        by_columns!(cols, products(&rows[..block.len()], &columns, &mut v));
        let start = b * ROWS * cols;
        f(start..start + block.len() * cols, &v[..block.len() * cols]);
    }
}
