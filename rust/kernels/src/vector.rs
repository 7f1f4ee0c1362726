//! The vector work of L-BFGS: flat vectors, dot products, and the two-loop recursion over the history.
//!
//! With g the gradient, y and s the last differences of gradients and of parameters, ρ = 1 / yᵀs and H a scalar:
//!
//! ```text
//! q = -g;   for i from the newest:  αᵢ = ρᵢ sᵢᵀq,  q = q - αᵢ yᵢ
//! r = H q;  for i from the oldest:  β  = ρᵢ yᵢᵀr,  r = r + (αᵢ - β) sᵢ
//! ```
//!
//! (Nocedal, Wright, "Numerical Optimization", algorithm 7.4.) Each step of either loop updates one vector and then
//! needs a dot product of it with another: both happen in one sweep over memory, so that the vector is read and written
//! once for each entry of the history and not twice.
//!
//! Sums are over a fixed tree, in f64: lanes within a chunk, then the chunks in order. (The product of two f32 is exact
//! in f64; products of f64 are rounded, not fused.) So the bits depend neither on threads nor on the SIMD level.

use crate::arithmetic::Real;
use crate::lanes::pairwise;
use crate::pool::{Panic, Pool, Serial, for_each};
use crate::simd::{Level, Simd, Vectorized};

/// Elements of a chunk: what one thread takes at a time, and what one partial sum is over.
const CHUNK: usize = 16 * 1024;
/// Below this many elements the calling thread works alone: a sweep takes less time than waking others up a few times.
pub const SERIAL: usize = 64 * 1024;
/// Partial sums within a chunk.
const LANES: usize = 32;

/// What vectors are made of.
pub trait Scalar: Real + Default {
    /// Widens exactly.
    fn wide(self) -> f64;
}

impl Scalar for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Scalar for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

/// Which threads and which instructions vector work uses.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Shares large vectors out.
    pub pool: &'a dyn Pool,
    /// How loops are compiled.
    pub level: Level,
}

impl Means<'_> {
    fn pool(&self, elements: usize) -> &dyn Pool {
        if elements < SERIAL { &Serial } else { self.pool }
    }
}

/// The last differences of gradients (`dirs`) and of parameters (`steps`), oldest first, with `ro` = 1 / (their
/// product).
#[derive(Clone, Copy, Debug)]
pub struct History<'a, T> {
    /// torch's `old_dirs`: y.
    pub dirs: &'a [&'a [T]],
    /// torch's `old_stps`: s.
    pub steps: &'a [&'a [T]],
    /// ρ
    pub ro: &'a [T],
}

/// Writes the direction -H g to `out` and the αs to `alphas`; returns its product with the gradient.
///
/// # Errors
/// If a kernel panicked.
///
/// # Panics
/// If lengths differ.
pub fn direction<T: Scalar>(
    means: Means<'_>,
    grad: &[T],
    history: History<'_, T>,
    scale: T,
    alphas: &mut [T],
    out: &mut [T],
) -> Result<T, Panic> {
    let History { dirs, steps, ro } = history;
    let count = dirs.len();
    assert!(steps.len() == count && ro.len() == count && alphas.len() == count);
    assert!(grad.len() == out.len() && dirs.iter().chain(steps).all(|x| x.len() == out.len()));
    let mut q = Swept::new(means, out);
    let Some(newest) = steps.last() else {
        return q.sweep(grad, grad, |_, g| -g * scale).map(T::of);
    };
    let mut product = q.sweep(grad, newest, |_, g| -g)?;
    for i in (0..count).rev() {
        alphas[i] = T::of(product) * ro[i];
        let minus = -alphas[i];
        product = if i > 0 {
            q.sweep(dirs[i], steps[i - 1], |q, y| minus.fma(y, q))?
        } else {
            q.sweep(dirs[0], dirs[0], |q, y| minus.fma(y, q) * scale)?
        };
    }
    let mut r = q;
    for i in 0..count {
        let rest = alphas[i] - T::of(product) * ro[i];
        let next = dirs.get(i + 1).copied().unwrap_or(grad);
        product = r.sweep(steps[i], next, |r, s| rest.fma(s, r))?;
    }
    Ok(T::of(product))
}

/// A vector under change, cut into chunks.
struct Swept<'m, 'a, T> {
    means: Means<'m>,
    len: usize,
    chunks: Vec<Chunk<'a, T>>,
}

struct Chunk<'a, T> {
    start: usize,
    out: &'a mut [T],
    sum: f64,
}

impl<'m, 'a, T: Scalar> Swept<'m, 'a, T> {
    fn new(means: Means<'m>, out: &'a mut [T]) -> Self {
        let len = out.len();
        let chunks = out.chunks_mut(CHUNK).enumerate();
        Self { means, len, chunks: chunks.map(|(c, out)| Chunk { start: c * CHUNK, out, sum: 0.0 }).collect() }
    }

    /// x[i] = f(x[i], a[i]); returns the dot product of x, as it is then, and b.
    fn sweep(&mut self, a: &[T], b: &[T], f: impl Fn(T, T) -> T + Copy + Sync) -> Result<f64, Panic> {
        let level = self.means.level;
        for_each(
            self.means.pool(self.len),
            &mut self.chunks,
            |chunk| chunk.out.len(),
            |_, Chunk { start, out, sum }| {
                let range = *start..*start + out.len();
                level.run(Sweep { out, a: &a[range.clone()], b: &b[range], f, sum });
            },
        )?;
        Ok(self.chunks.iter().map(|chunk| chunk.sum).sum())
    }
}

struct Sweep<'a, T, F> {
    out: &'a mut [T],
    a: &'a [T],
    b: &'a [T],
    f: F,
    sum: &'a mut f64,
}

impl<T: Scalar, F: Fn(T, T) -> T> Vectorized for Sweep<'_, T, F> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let n = self.out.len();
        let (out, out_tail) = self.out.as_chunks_mut::<LANES>();
        let (a, a_tail) = self.a[..n].as_chunks::<LANES>();
        let (b, b_tail) = self.b[..n].as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            for lane in 0..LANES {
                let x = (self.f)(out[lane], a[lane]);
                out[lane] = x;
                sums[lane] += x.wide() * b[lane].wide();
            }
        }
        for (lane, ((out, &a), b)) in out_tail.iter_mut().zip(a_tail).zip(b_tail).enumerate() {
            let x = (self.f)(*out, a);
            *out = x;
            sums[lane] += x.wide() * b.wide();
        }
        *self.sum = pairwise(sums);
    }
}

/// What [`differences`] found: yᵀs and yᵀy.
pub type Products = (f64, f64);

/// y = g - p, s = t d, then p = g: the next entry of the history from the gradient `g`, the gradient before it `p`, and
/// the way taken. Returns the products that ρ and H follow from.
///
/// # Errors
/// If a kernel panicked.
///
/// # Panics
/// If lengths differ.
pub fn differences<T: Scalar>(
    means: Means<'_>,
    grad: &[T],
    before: &mut [T],
    way: &[T],
    t: T,
    y: &mut [T],
    s: &mut [T],
) -> Result<Products, Panic> {
    let n = grad.len();
    assert!(before.len() == n && way.len() == n && y.len() == n && s.len() == n);
    let inputs = grad.chunks(CHUNK).zip(way.chunks(CHUNK));
    let outputs = before.chunks_mut(CHUNK).zip(y.chunks_mut(CHUNK)).zip(s.chunks_mut(CHUNK));
    let mut chunks: Vec<_> = inputs
        .zip(outputs)
        .map(|((grad, way), ((before, y), s))| Difference { grad, way, t, before, y, s, sums: (0.0, 0.0) })
        .collect();
    for_each(means.pool(n), &mut chunks, |chunk| chunk.grad.len(), |_, chunk| means.level.run(chunk))?;
    Ok(chunks.iter().fold((0.0, 0.0), |(ys, yy), chunk| (ys + chunk.sums.0, yy + chunk.sums.1)))
}

struct Difference<'a, T> {
    grad: &'a [T],
    way: &'a [T],
    t: T,
    before: &'a mut [T],
    y: &'a mut [T],
    s: &'a mut [T],
    sums: Products,
}

impl<T: Scalar> Vectorized for &mut Difference<'_, T> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let n = self.grad.len();
        let (grad, way) = (self.grad, &self.way[..n]);
        let (before, y, s) = (&mut self.before[..n], &mut self.y[..n], &mut self.s[..n]);
        let (mut ys, mut yy) = ([0.0; LANES], [0.0; LANES]);
        let mut start = 0;
        while start < n {
            let width = LANES.min(n - start);
            for lane in 0..width {
                let i = start + lane;
                let (dy, ds) = (grad[i] - before[i], way[i] * self.t);
                (y[i], s[i], before[i]) = (dy, ds, grad[i]);
                ys[lane] += dy.wide() * ds.wide();
                yy[lane] += dy.wide() * dy.wide();
            }
            start += width;
        }
        self.sums = (pairwise(ys), pairwise(yy));
    }
}

/// The dot product of two vectors.
///
/// # Errors
/// If a kernel panicked.
///
/// # Panics
/// If lengths differ.
pub fn dot<T: Scalar>(means: Means<'_>, a: &[T], b: &[T]) -> Result<f64, Panic> {
    assert_eq!(a.len(), b.len());
    let sums = reduced(means, a, b, 0.0, |a, b, sums: &mut [f64; LANES], lane| sums[lane] += a.wide() * b.wide())?;
    Ok(sums.into_iter().map(pairwise).sum())
}

/// The sum of absolute values.
///
/// # Errors
/// If a kernel panicked.
pub fn sum_abs<T: Scalar>(means: Means<'_>, x: &[T]) -> Result<f64, Panic> {
    let sums = reduced(means, x, x, 0.0, |x, _, sums: &mut [f64; LANES], lane| sums[lane] += x.abs().wide())?;
    Ok(sums.into_iter().map(pairwise).sum())
}

/// The largest absolute value of t x, rounded as T; NaN if one of them is.
///
/// # Errors
/// If a kernel panicked.
pub fn max_abs<T: Scalar>(means: Means<'_>, x: &[T], t: T) -> Result<T, Panic> {
    let largest = reduced(means, x, x, T::ZERO, |x, _, largest: &mut [T; LANES], lane| {
        largest[lane] = largest[lane].nan_max((x * t).abs());
    })?;
    Ok(largest.into_iter().flatten().fold(T::ZERO, T::nan_max))
}

struct Reduce<'a, T, L, F> {
    a: &'a [T],
    b: &'a [T],
    f: F,
    lanes: [L; LANES],
}

impl<T: Scalar, L: Copy, F: Fn(T, T, &mut [L; LANES], usize)> Vectorized for &mut Reduce<'_, T, L, F> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let mut lanes = self.lanes;
        let (a, a_tail) = self.a.as_chunks::<LANES>();
        let (b, b_tail) = self.b[..self.a.len()].as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                (self.f)(a[lane], b[lane], &mut lanes, lane);
            }
        }
        for (lane, (&a, &b)) in a_tail.iter().zip(b_tail).enumerate() {
            (self.f)(a, b, &mut lanes, lane);
        }
        self.lanes = lanes;
    }
}

/// The lanes of each chunk after `f` has met all its elements.
fn reduced<T: Scalar, L: Copy + Send>(
    means: Means<'_>,
    a: &[T],
    b: &[T],
    start: L,
    f: impl Fn(T, T, &mut [L; LANES], usize) + Copy + Send + Sync,
) -> Result<Vec<[L; LANES]>, Panic> {
    let chunks = a.chunks(CHUNK).zip(b.chunks(CHUNK));
    let mut chunks: Vec<_> = chunks.map(|(a, b)| Reduce { a, b, f, lanes: [start; LANES] }).collect();
    for_each(means.pool(a.len()), &mut chunks, |chunk| chunk.a.len(), |_, chunk| means.level.run(chunk))?;
    Ok(chunks.iter().map(|chunk| chunk.lanes).collect())
}

/// A piece of memory that is written from another, both as long.
#[derive(Debug)]
pub struct Piece<'a, T> {
    /// Where to.
    pub to: &'a mut [T],
    /// Where from; nothing: zeros.
    pub from: Option<&'a [T]>,
}

/// What is written to a [`Piece`].
#[derive(Clone, Copy, Debug)]
pub enum Transfer<T> {
    /// The source, as it is.
    Copy,
    /// The source, negated.
    Negate,
    /// What is there plus the source times this.
    Add(T),
}

/// Gathers pieces into a flat vector, or spreads a flat vector over pieces.
///
/// # Errors
/// If a kernel panicked.
///
/// # Panics
/// If the two sides of a piece differ in length.
pub fn transfer<T: Scalar>(means: Means<'_>, pieces: Vec<Piece<'_, T>>, transfer: Transfer<T>) -> Result<(), Panic> {
    assert!(pieces.iter().all(|piece| piece.from.is_none_or(|from| from.len() == piece.to.len())));
    let elements = pieces.iter().map(|piece| piece.to.len()).sum();
    let mut chunks = pieces;
    if elements >= SERIAL {
        chunks = chunks.into_iter().flat_map(cut).collect();
    }
    let level = means.level;
    for_each(
        means.pool(elements),
        &mut chunks,
        |piece| piece.to.len(),
        |_, piece| match transfer {
            Transfer::Copy => level.run(Move { piece, f: |_, x| x }),
            Transfer::Negate => level.run(Move { piece, f: |_, x: T| -x }),
            Transfer::Add(t) => level.run(Move { piece, f: move |p, x| t.fma(x, p) }),
        },
    )
}

/// A piece in parts that can be shared out.
fn cut<T>(Piece { to, from }: Piece<'_, T>) -> impl Iterator<Item = Piece<'_, T>> {
    to.chunks_mut(CHUNK).enumerate().map(move |(c, to)| {
        let from = from.map(|from| &from[c * CHUNK..][..to.len()]);
        Piece { to, from }
    })
}

struct Move<'p, 'a, T, F> {
    piece: &'p mut Piece<'a, T>,
    f: F,
}

impl<T: Scalar, F: Fn(T, T) -> T> Vectorized for Move<'_, '_, T, F> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Piece { to, from } = self.piece;
        match from {
            Some(from) => {
                for (to, &from) in to.iter_mut().zip(*from) {
                    *to = (self.f)(*to, from);
                }
            }
            None => {
                for to in to.iter_mut() {
                    *to = (self.f)(*to, T::ZERO);
                }
            }
        }
    }
}
