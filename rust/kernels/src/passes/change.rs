//! Tensors changed in place, each element by itself: multiplied by a factor, or held within bounds.

use crate::arithmetic::Real;
use crate::chunks::{CHUNK, SERIAL};
use crate::formats::{Element, SliceMut};
use crate::layout::Layout;
use crate::pool::{Panic, Pool, Serial, for_each};
use crate::simd::{Level, Simd, UNIT, Vectorized, prefetch};

/// Elements between two rounds of prefetching.
const BLOCK: usize = 64;
/// How many blocks ahead memory is prefetched: the hardware sees the stream too, and further ahead stands in its way.
const AHEAD: usize = 1;
/// Elements gathered from a strided tensor at a time.
const TILE: usize = 256;

/// What becomes of an element.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Multiplied in the arithmetic of its type and rounded once (`torch.Tensor.mul_` by a number).
    Scale(f64),
    /// Not below the first, then not above the second, both rounded to its type; NaN stays (`torch.Tensor.clamp_`).
    Clamp(f64, f64),
}

/// A part of one tensor.
#[derive(Debug)]
struct Chunk<'a> {
    elements: SliceMut<'a>,
    layout: Option<&'a Layout>,
    len: usize,
}

/// A change of many tensors: filled, then run once.
#[derive(Debug, Default)]
pub struct Changes<'a> {
    chunks: Vec<Chunk<'a>>,
    elements: usize,
}

impl<'a> Changes<'a> {
    /// How many elements are to be changed.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Adds a tensor; with a layout, the elements that its first stream walks over.
    ///
    /// # Panics
    /// If the slice is too short for the layout.
    pub fn push(&mut self, elements: SliceMut<'a>, layout: Option<&'a Layout>) {
        if let Some(layout) = layout {
            assert!(layout.extent(0).is_some_and(|extent| extent <= elements.len()), "slice too short for its layout");
            self.elements += layout.len();
            self.chunks.push(Chunk { elements, layout: Some(layout), len: layout.len() });
            return;
        }
        self.elements += elements.len();
        let mut rest = elements;
        while rest.len() > CHUNK + CHUNK / 2 {
            let (first, tail) = rest.split_at(CHUNK);
            self.chunks.push(Chunk { elements: first, layout: None, len: CHUNK });
            rest = tail;
        }
        let len = rest.len();
        self.chunks.push(Chunk { elements: rest, layout: None, len });
    }

    /// Changes every tensor.
    ///
    /// # Errors
    /// The payload of a panic in a kernel, which would be a defect of this crate.
    pub fn run(mut self, change: Change, pool: &dyn Pool, level: Level) -> Result<(), Panic> {
        let pool = if self.elements < SERIAL { &Serial } else { pool };
        for_each(pool, &mut self.chunks, |chunk| chunk.len + 64, |_, chunk| chunk.run(change, level))
    }
}

impl Chunk<'_> {
    fn run(&mut self, change: Change, level: Level) {
        macro_rules! each {
            ($($Variant:ident),*) => {
                match &mut self.elements {
                    $(SliceMut::$Variant(x) => apply(x, self.layout, change, level),)*
                    SliceMut::U8(_) | SliceMut::I16(_) => unreachable!("codes are no numbers"),
                }
            };
        }
        each!(F64, F32, F16, Bf16);
    }
}

fn apply<E: Element>(x: &mut [E], layout: Option<&Layout>, change: Change, level: Level) {
    let run = |x: &mut [E]| match change {
        Change::Scale(factor) => level.run(Scale(x, E::Arith::of(factor))),
        Change::Clamp(low, high) => {
            let bound = |b: f64| E::store(E::Arith::of(b)).load();
            level.run(Clamp(x, bound(low), bound(high)));
        }
    };
    let Some(layout) = layout else { return run(x) };
    let mut tile = [E::default(); TILE];
    for first in (0..layout.len()).step_by(TILE) {
        let n = TILE.min(layout.len() - first);
        layout.walk(0, first, n, |i, at| tile[i] = x[at]);
        run(&mut tile[..n]);
        layout.walk(0, first, n, |i, at| x[at] = tile[i]);
    }
}

struct Scale<'a, E: Element>(&'a mut [E], E::Arith);

impl<E: Element> Vectorized for Scale<'_, E> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        let factor = self.1;
        sweep(simd, self.0, |x| factor * x);
    }
}

struct Clamp<'a, E: Element>(&'a mut [E], E::Arith, E::Arith);

impl<E: Element> Vectorized for Clamp<'_, E> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        let Self(x, low, high) = self;
        sweep(simd, x, |x| {
            let x = if x < low { low } else { x }; // a NaN is neither below nor above
            if x > high { high } else { x }
        });
    }
}

#[inline(always)]
fn sweep<E: Element, V: Simd>(simd: V, x: &mut [E], change: impl Fn(E::Arith) -> E::Arith) {
    let (blocks, tail) = x.as_chunks_mut::<BLOCK>();
    for b in 0..blocks.len() {
        let per_line = 64 / size_of::<E>();
        for line in 0..BLOCK / per_line {
            prefetch(blocks.as_flattened(), (b + AHEAD) * BLOCK + line * per_line);
        }
        if !(V::CONVERTS && E::HALF) {
            for x in &mut blocks[b] {
                *x = E::store(change(x.load()));
            }
            continue;
        }
        for unit in blocks[b].as_chunks_mut::<UNIT>().0 {
            let mut wide = E::widen(simd, unit);
            for x in &mut wide {
                *x = change(*x);
            }
            *unit = E::narrow(simd, &wide);
        }
    }
    for x in tail {
        *x = E::store(change(x.load()));
    }
}

/// Writes zeros, cut among the threads as a step over this tensor will be: on a machine with several memories each page
/// then lies near the thread that will use it.
///
/// # Errors
/// None in practice: the signature is that of the pool.
pub fn zero(pool: &dyn Pool, tensor: SliceMut<'_>) -> Result<(), Panic> {
    let mut chunks = Vec::with_capacity(tensor.len() / CHUNK + 1);
    let mut rest = tensor;
    while rest.len() > CHUNK + CHUNK / 2 {
        let (chunk, tail) = rest.split_at(CHUNK);
        chunks.push(chunk);
        rest = tail;
    }
    chunks.push(rest);
    for_each(pool, &mut chunks, SliceMut::len, |_, chunk| chunk.fill_zero())
}
