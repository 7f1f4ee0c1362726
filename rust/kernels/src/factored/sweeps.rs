//! The loops of a factored step: over rows and vectors, compiled once per SIMD level.
//!
//! Sums are in f64 over lanes, [`LANES`] for all but short rows, added up in a fixed order, so that their bits depend
//! on lengths alone. A square of anything but an f64 is exact there: whether it is fused with its addition makes no
//! difference.

use crate::arithmetic::Real;
use crate::factored::narrow;
use crate::formats::Element;
use crate::lanes::pairwise;
use crate::rules::adafactor::Rounded;
use crate::simd::{Simd, Vectorized, prefetch};

/// Terms that are added side by side: enough for the widest registers and the latency of an addition.
const LANES: usize = 32;
/// The same for rows shorter than that; still shorter ones are added up one by one.
const FEW: usize = 8;
/// How many elements ahead memory is prefetched.
const AHEAD: usize = 64;

#[inline(always)]
fn prefetch_lanes<T>(x: &[T], i: usize) {
    for line in 0..(LANES * size_of::<T>()).div_ceil(64) {
        prefetch(x, i + line * (64 / size_of::<T>()));
    }
}

/// Calls `$sum::<lanes>` with as many lanes as a length is worth.
macro_rules! in_lanes {
    ($n:expr, $sum:ident($($argument:expr),*)) => {
        match $n {
            LANES.. => $sum::<LANES, _, _>($($argument),*),
            FEW.. => $sum::<FEW, _, _>($($argument),*),
            _ => $sum::<1, _, _>($($argument),*),
        }
    };
}

/// The sum of `term` over `x`.
#[inline(always)]
fn sum<T: Copy>(x: &[T], term: impl Fn(T) -> f64) -> f64 {
    sum_pairs(x, x, |x, _| term(x))
}

/// The sum of `term` over pairs of elements.
#[inline(always)]
fn sum_pairs<T: Copy, U: Copy>(x: &[T], y: &[U], term: impl Fn(T, U) -> f64) -> f64 {
    #[inline(always)]
    fn lanes<const N: usize, T: Copy, U: Copy>(x: &[T], y: &[U], term: &impl Fn(T, U) -> f64) -> f64 {
        let mut lanes = [0.0; N];
        let (blocks, tail) = x.as_chunks::<N>();
        let (others, other_tail) = y[..x.len()].as_chunks::<N>();
        for (b, (block, other)) in blocks.iter().zip(others).enumerate() {
            if N == LANES {
                prefetch_lanes(x, b * N + AHEAD);
            }
            for k in 0..N {
                lanes[k] += term(block[k], other[k]);
            }
        }
        for k in 0..tail.len() {
            lanes[k] += term(tail[k], other_tail[k]);
        }
        pairwise(lanes)
    }
    in_lanes!(x.len(), lanes(x, y, &term))
}

/// The sum of `term` over pairs of elements, of which it may change the second.
#[inline(always)]
fn sum_changing<T: Copy, U>(x: &[T], y: &mut [U], term: impl Fn(T, &mut U) -> f64) -> f64 {
    #[inline(always)]
    fn lanes<const N: usize, T: Copy, U>(x: &[T], y: &mut [U], term: &impl Fn(T, &mut U) -> f64) -> f64 {
        let mut lanes = [0.0; N];
        let (blocks, tail) = x.as_chunks::<N>();
        let (others, other_tail) = y[..x.len()].as_chunks_mut::<N>();
        for (b, (block, other)) in blocks.iter().zip(others).enumerate() {
            if N == LANES {
                prefetch_lanes(x, b * N + AHEAD);
            }
            for k in 0..N {
                lanes[k] += term(block[k], &mut other[k]);
            }
        }
        for k in 0..tail.len() {
            lanes[k] += term(tail[k], &mut other_tail[k]);
        }
        pairwise(lanes)
    }
    in_lanes!(x.len(), lanes(x, y, &term))
}

/// The sum of squares.
pub(super) struct Squares<'a, P> {
    pub(super) x: &'a [P],
    pub(super) sum: &'a mut f64,
}

impl<P: Element> Vectorized for Squares<'_, P> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        *self.sum = sum(self.x, |x| {
            let x: f64 = x.load().into();
            x * x
        });
    }
}

/// A vector: moves `variance`, and sums the squares of the update.
pub(super) struct VectorMeans<'a, P: Element, S> {
    pub(super) rounded: Rounded<P::Arith>,
    pub(super) grad: &'a [P],
    pub(super) variance: &'a mut [S],
    pub(super) updates: &'a mut f64,
}

impl<P: Element, S: Element<Arith = P::Arith>> Vectorized for VectorMeans<'_, P, S> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let rounded = self.rounded;
        *self.updates = sum_changing(self.grad, self.variance, |g, v| {
            let g = rounded.factor * g.load();
            *v = S::store(v.load().lerp(g * g, rounded.weight));
            rounded.squared_update(g, v.load()).into()
        });
    }
}

/// A vector: moves theta.
pub(super) struct VectorUpdate<'a, P: Element, S> {
    pub(super) rounded: Rounded<P::Arith>,
    pub(super) scale: f64,
    pub(super) theta: &'a mut [P],
    pub(super) grad: &'a [P],
    pub(super) variance: &'a [S],
}

impl<P: Element, S: Element<Arith = P::Arith>> Vectorized for VectorUpdate<'_, P, S> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        update_row(&self.rounded, self.scale, self.theta, self.grad, self.variance, S::load);
    }
}

/// The sum of squares of a row's gradient; each square is also added to its column's.
#[inline(always)]
fn row_squares<P: Element>(factor: P::Arith, grad: &[P], columns: &mut [f64]) -> f64 {
    sum_changing(grad, columns, |g, column| {
        let g: f64 = (factor * g.load()).into();
        let square = g * g;
        *column += square;
        square
    })
}

/// The sums of squares of the rows of a whole matrix; each square is also added to its column's.
#[inline(always)]
fn squares_of_rows<P: Element>(factor: P::Arith, grad: &[P], row_sums: &mut [f64], columns: &mut [f64]) {
    let cols = columns.len();
    if narrow::fits(row_sums.len(), cols) {
        return narrow::squares_of_rows(factor, grad, row_sums, columns);
    }
    for (grad, sum) in grad.chunks_exact(cols).zip(row_sums) {
        *sum = row_squares(factor, grad, columns);
    }
}

/// The sum of squares of the update of some rows of a matrix.
#[inline(always)]
fn updates_of_rows<P: Element, S: Element<Arith = P::Arith>>(
    rounded: &Rounded<P::Arith>,
    mean: f64,
    grad: &[P],
    row_var: &[S],
    col_var: &[S],
) -> f64 {
    let term = |g: P, v| rounded.squared_update(rounded.factor * g.load(), v).into();
    let mut updates = 0.0;
    if narrow::fits(row_var.len(), col_var.len()) {
        narrow::for_blocks(rounded, mean, row_var, col_var, |range, v| updates += sum_pairs(&grad[range], v, term));
        return updates;
    }
    for (grad, row) in grad.chunks_exact(col_var.len()).zip(row_var) {
        let row = rounded.row_factor(row.load(), mean);
        updates += sum_pairs(grad, col_var, |g, c| term(g, row * c.load()));
    }
    updates
}

/// Moves theta in some rows of a matrix.
#[inline(always)]
fn update_rows<P: Element, S: Element<Arith = P::Arith>>(
    rounded: &Rounded<P::Arith>,
    scale: f64,
    mean: f64,
    theta: &mut [P],
    grad: &[P],
    row_var: &[S],
    col_var: &[S],
) {
    let cols = col_var.len();
    if narrow::fits(row_var.len(), cols) {
        narrow::for_blocks(rounded, mean, row_var, col_var, |range, v| {
            update_row(rounded, scale, &mut theta[range.clone()], &grad[range], v, |v| v);
        });
        return;
    }
    for ((theta, grad), row) in theta.chunks_exact_mut(cols).zip(grad.chunks_exact(cols)).zip(row_var) {
        let row = rounded.row_factor(row.load(), mean);
        update_row(rounded, scale, theta, grad, col_var, |c| row * c.load());
    }
}

/// Moves theta by its update; `variance` makes that of each element from what stands in `means`.
#[inline(always)]
fn update_row<P: Element, T: Copy>(
    rounded: &Rounded<P::Arith>,
    scale: f64,
    theta: &mut [P],
    grad: &[P],
    means: &[T],
    variance: impl Fn(T) -> P::Arith,
) {
    let scale = P::Arith::of(scale);
    let n = theta.len();
    let each = |theta: &mut P, g: P, mean: T| {
        *theta = P::store(rounded.updated(theta.load(), rounded.factor * g.load(), variance(mean), scale));
    };
    let (thetas, theta_tail) = theta.as_chunks_mut::<LANES>();
    let (grads, grad_tail) = grad[..n].as_chunks::<LANES>();
    let (means, mean_tail) = means[..n].as_chunks::<LANES>();
    for b in 0..thetas.len() {
        prefetch_lanes(thetas.as_flattened(), b * LANES + AHEAD);
        prefetch_lanes(grad, b * LANES + AHEAD);
        for k in 0..LANES {
            each(&mut thetas[b][k], grads[b][k], means[b][k]);
        }
    }
    for k in 0..theta_tail.len() {
        each(&mut theta_tail[k], grad_tail[k], mean_tail[k]);
    }
}

/// Moves running means towards the means of `n` squares each.
pub(super) struct MoveMeans<'a, S: Element> {
    pub(super) weight: S::Arith,
    pub(super) n: usize,
    pub(super) means: &'a mut [S],
    pub(super) sums: &'a [f64],
}

impl<S: Element> Vectorized for MoveMeans<'_, S> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        for (mean, sum) in self.means.iter_mut().zip(self.sums) {
            *mean = moved(self.weight, self.n, *mean, *sum);
        }
    }
}

#[inline(always)]
fn moved<S: Element>(weight: S::Arith, n: usize, mean: S, sum: f64) -> S {
    S::store(mean.load().lerp(S::Arith::of(sum / n as f64), weight))
}

/// The mean of all rows' means.
#[inline(always)]
pub(super) fn mean<S: Element>(row_var: &[S]) -> f64 {
    sum(row_var, |row| row.load().into()) / row_var.len() as f64
}

/// Small matrices one after the other: moves the means of rows and columns, and sums the squares of the update.
pub(super) struct MatrixMeans<'a, P: Element, S> {
    pub(super) rounded: Rounded<P::Arith>,
    pub(super) cols: usize,
    pub(super) rows: usize,
    pub(super) grad: &'a [P],
    pub(super) row_var: &'a mut [S],
    pub(super) col_var: &'a mut [S],
    /// As long as a column and a row together.
    pub(super) sums: &'a mut [f64],
    pub(super) updates: &'a mut f64,
}

impl<P: Element, S: Element<Arith = P::Arith>> Vectorized for MatrixMeans<'_, P, S> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        let Self { rounded, cols, rows, grad, row_var, col_var, sums, updates } = self;
        let (row_sums, columns) = sums.split_at_mut(rows);
        let weight = rounded.weight;
        let states = row_var.chunks_exact_mut(rows).zip(col_var.chunks_exact_mut(cols));
        for (grad, (row_var, col_var)) in grad.chunks_exact(rows * cols).zip(states) {
            columns.fill(0.0);
            squares_of_rows(rounded.factor, grad, row_sums, columns);
            MoveMeans { weight, n: cols, means: &mut *row_var, sums: row_sums }.run(simd);
            MoveMeans { weight, n: rows, means: &mut *col_var, sums: columns }.run(simd);
            *updates += updates_of_rows(&rounded, mean(row_var), grad, row_var, col_var);
        }
    }
}

/// Small matrices one after the other: moves theta.
pub(super) struct MatrixUpdate<'a, P: Element, S> {
    pub(super) rounded: Rounded<P::Arith>,
    pub(super) scale: f64,
    pub(super) cols: usize,
    pub(super) rows: usize,
    pub(super) theta: &'a mut [P],
    pub(super) grad: &'a [P],
    pub(super) row_var: &'a [S],
    pub(super) col_var: &'a [S],
}

impl<P: Element, S: Element<Arith = P::Arith>> Vectorized for MatrixUpdate<'_, P, S> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { rounded, scale, cols, rows, theta, grad, row_var, col_var } = self;
        let tensors = theta.chunks_exact_mut(rows * cols).zip(grad.chunks_exact(rows * cols));
        let states = row_var.chunks_exact(rows).zip(col_var.chunks_exact(cols));
        for ((theta, grad), (row_var, col_var)) in tensors.zip(states) {
            update_rows(&rounded, scale, mean(row_var), theta, grad, row_var, col_var);
        }
    }
}

/// A rectangle of a large matrix: the sums of squares of its rows, then of its columns.
pub(super) struct TileSums<'a, P: Element> {
    pub(super) factor: P::Arith,
    /// From the rectangle's first element on, with all that lies between its rows.
    pub(super) grad: &'a [P],
    /// From one row to the next.
    pub(super) stride: usize,
    pub(super) row_sums: &'a mut [f64],
    pub(super) column_sums: &'a mut [f64],
}

impl<P: Element> Vectorized for TileSums<'_, P> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        self.column_sums.fill(0.0);
        if self.stride == self.column_sums.len() {
            return squares_of_rows(self.factor, self.grad, self.row_sums, self.column_sums);
        }
        for (grad, sum) in self.grad.chunks(self.stride).zip(self.row_sums) {
            *sum = row_squares(self.factor, &grad[..self.column_sums.len()], self.column_sums);
        }
    }
}

/// A rectangle of a large matrix: the sum of squares of its update.
pub(super) struct TileUpdates<'a, P: Element, S> {
    pub(super) rounded: Rounded<P::Arith>,
    pub(super) mean: f64,
    /// As in [`TileSums`].
    pub(super) grad: &'a [P],
    pub(super) stride: usize,
    pub(super) row_var: &'a [S],
    pub(super) col_var: &'a [S],
    pub(super) updates: &'a mut f64,
}

impl<P: Element, S: Element<Arith = P::Arith>> Vectorized for TileUpdates<'_, P, S> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { rounded, mean, grad, stride, row_var, col_var, updates } = self;
        if stride == col_var.len() {
            *updates = updates_of_rows(&rounded, mean, grad, row_var, col_var);
            return;
        }
        for (grad, row) in grad.chunks(stride).zip(row_var.chunks(1)) {
            *updates += updates_of_rows(&rounded, mean, &grad[..col_var.len()], row, col_var);
        }
    }
}

/// Consecutive elements of a large matrix, beginning anywhere: moves theta.
pub(super) struct StripUpdate<'a, P: Element, S> {
    pub(super) rounded: Rounded<P::Arith>,
    pub(super) scale: f64,
    pub(super) mean: f64,
    /// Place of the first element in the matrix.
    pub(super) start: usize,
    pub(super) theta: &'a mut [P],
    pub(super) grad: &'a [P],
    pub(super) row_var: &'a [S],
    pub(super) col_var: &'a [S],
}

impl<P: Element, S: Element<Arith = P::Arith>> Vectorized for StripUpdate<'_, P, S> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { rounded, scale, mean, start, theta, grad, row_var, col_var } = self;
        let cols = col_var.len();
        if start.is_multiple_of(cols) && theta.len().is_multiple_of(cols) {
            let rows = &row_var[start / cols..][..theta.len() / cols];
            return update_rows(&rounded, scale, mean, theta, grad, rows, col_var);
        }
        let mut done = 0;
        while done < theta.len() {
            let (row, column) = ((start + done) / cols, (start + done) % cols);
            let run = (cols - column).min(theta.len() - done);
            let row = rounded.row_factor(row_var[row].load(), mean);
            let (theta, grad) = (&mut theta[done..done + run], &grad[done..done + run]);
            update_row(&rounded, scale, theta, grad, &col_var[column..], |column| row * column.load());
            done += run;
        }
    }
}
