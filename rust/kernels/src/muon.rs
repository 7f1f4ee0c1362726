//! What Muon does besides its matrix products, which are torch's: momentum before them, decay and update after.
//!
//! ```text
//! b = lerp(b, g, 1 - μ),   u = lerp(g, b, μ)        u rounded to bf16, where the products are made
//! θ = θ (1 - γλ),          θ = θ - γ' O(u)          γ' = γ adjusted to the shape
//! ```
//!
//! (Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024.) Order of operations and places of
//! rounding are those of torch's for-loop. The product comes transposed for matrices with more rows than columns.

use crate::arithmetic::Real;
use crate::chunks::SERIAL;
use crate::formats::{Element, bf16};
use crate::pool::{Panic, Pool, Serial, for_each};
use crate::simd::{Level, Simd, Vectorized};
use crate::vector::Scalar;

/// Elements of a chunk.
const CHUNK: usize = 64 * 1024;
/// Elements of a row that are gathered at a time from a transposed product.
const TILE: usize = 64;

/// Something that a thread does at some level.
pub trait Work: Send {
    /// How many elements it is about.
    fn len(&self) -> usize;
    /// Whether there is nothing to do.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Does it.
    fn run(&mut self, level: Level);
}

/// Does all of it, shared between threads if it is much.
///
/// # Errors
/// If a kernel panicked.
pub fn run(pool: &dyn Pool, level: Level, work: &mut [Box<dyn Work + '_>]) -> Result<(), Panic> {
    let elements: usize = work.iter().map(|work| work.len()).sum();
    let pool = if elements < SERIAL { &Serial } else { pool };
    for_each(pool, work, |work| work.len(), |_, work| work.run(level))
}

/// The momentum of one matrix.
#[derive(Debug)]
pub struct Momentum<'a, G, B> {
    /// g
    pub grad: &'a [G],
    /// b
    pub buffer: &'a mut [B],
    /// u, if Nesterov's is wanted.
    pub update: Option<&'a mut [bf16]>,
    /// μ
    pub momentum: f64,
}

impl<'a, G: Element, B: Element<Arith = G::Arith>> Momentum<'a, G, B>
where
    G::Arith: Scalar,
{
    /// Adds this to the work, in parts.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn push(self, work: &mut Vec<Box<dyn Work + 'a>>) {
        let Self { grad, buffer, update, momentum } = self;
        assert!(grad.len() == buffer.len() && update.as_ref().is_none_or(|update| update.len() == grad.len()));
        let mut update = update.map(|update| update.chunks_mut(CHUNK));
        for (grad, buffer) in grad.chunks(CHUNK).zip(buffer.chunks_mut(CHUNK)) {
            let update = update.as_mut().and_then(Iterator::next);
            work.push(Box::new(Momentum { grad, buffer, update, momentum }));
        }
    }
}

impl<G: Element, B: Element<Arith = G::Arith>> Work for Momentum<'_, G, B>
where
    G::Arith: Scalar,
{
    fn len(&self) -> usize {
        self.grad.len()
    }
    fn run(&mut self, level: Level) {
        level.run(self);
    }
}

impl<G: Element, B: Element<Arith = G::Arith>> Vectorized for &mut Momentum<'_, G, B>
where
    G::Arith: Scalar,
{
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let (momentum, weight) = (G::Arith::of(self.momentum), G::Arith::of(1.0 - self.momentum));
        let moved = |buffer: &mut B, grad: G| {
            *buffer = B::store(buffer.load().lerp(grad.load(), weight));
            *buffer
        };
        match &mut self.update {
            None => {
                for (buffer, &grad) in self.buffer.iter_mut().zip(self.grad) {
                    moved(buffer, grad);
                }
            }
            Some(update) => {
                for ((buffer, &grad), update) in self.buffer.iter_mut().zip(self.grad).zip(update.iter_mut()) {
                    let buffer = moved(buffer, grad);
                    let ahead = G::store(grad.load().lerp(buffer.load(), momentum));
                    *update = bf16::store(ahead.load().wide() as f32);
                }
            }
        }
    }
}

/// Where the elements of a matrix lie: those of a line of the parameter, and from line to line.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// How many elements a line has, which follow each other in the parameter.
    pub width: usize,
    /// From an element of the product to its neighbour in the line.
    pub step: usize,
    /// From line to line in the product.
    pub pitch: usize,
}

/// Decay and update of one matrix.
#[derive(Debug)]
pub struct Update<'a, P> {
    /// θ, line after line.
    pub param: &'a mut [P],
    /// O(u)
    pub product: &'a [bf16],
    /// How the product's elements belong to the parameter's.
    pub lines: Lines,
    /// 1 - γλ
    pub decay: f64,
    /// -γ'
    pub alpha: f64,
}

impl<'a, P: Element> Update<'a, P> {
    /// Adds this to the work, in parts of whole lines.
    ///
    /// # Panics
    /// If the product is too short.
    pub fn push(self, work: &mut Vec<Box<dyn Work + 'a>>) {
        let Self { param, product, lines, decay, alpha } = self;
        if param.is_empty() {
            return;
        }
        let count = param.len() / lines.width;
        let last = (count - 1) * lines.pitch + (lines.width - 1) * lines.step;
        assert!(count * lines.width == param.len() && last < product.len());
        let at_once = CHUNK.div_ceil(lines.width);
        for (c, param) in param.chunks_mut(at_once * lines.width).enumerate() {
            let product = &product[c * at_once * lines.pitch..];
            work.push(Box::new(Update { param, product, lines, decay, alpha }));
        }
    }
}

impl<P: Element> Work for Update<'_, P> {
    fn len(&self) -> usize {
        self.param.len()
    }
    fn run(&mut self, level: Level) {
        level.run(self);
    }
}

impl<P: Element> Vectorized for &mut Update<'_, P> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let (decay, alpha) = (P::Arith::of(self.decay), P::Arith::of(self.alpha));
        let Lines { width, step, pitch } = self.lines;
        let apply = |param: &mut [P], product: &[bf16]| {
            for (param, product) in param.iter_mut().zip(product) {
                let decayed = P::store(param.load() * decay);
                *param = P::store(decayed.load().add_scaled(P::Arith::of(f64::from(product.load())), alpha));
            }
        };
        if step == 1 {
            for (line, param) in self.param.chunks_mut(width).enumerate() {
                apply(param, &self.product[line * pitch..][..width]);
            }
            return;
        }
        // Neighbours of a line lie far apart in the product, but its cache lines hold the elements of the next lines
        // too: as many of both as fit into the first-level cache are worked on together.
        for (band, params) in self.param.chunks_mut(TILE * width).enumerate() {
            for left in (0..width).step_by(TILE) {
                let right = (left + TILE).min(width);
                for (line, param) in params.chunks_mut(width).enumerate() {
                    let start = (band * TILE + line) * pitch;
                    let mut gathered = [bf16::ZERO; TILE];
                    for (to, column) in gathered.iter_mut().zip(left..right) {
                        *to = self.product[start + column * step];
                    }
                    apply(&mut param[left..right], &gathered);
                }
            }
        }
    }
}
