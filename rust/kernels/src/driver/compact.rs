//! Streams in fewer bytes: tiles of `f32` are read from them, updated, and written back in one pass over memory.

use std::cell::Cell;

use super::source::Source;
use super::sweep::beyond_caches;
use super::tensors::in_layout;
use crate::chunks::SMALL_CHUNK;
use crate::compact::streams::{
    MoveAverage, ReadCodes, ReadWeights, Tile, WriteCodes, WriteFair, WriteWeights, read_numbers, write_numbers,
};
use crate::compact::{BLOCK, Compact, Kept, Weights, Words};
use crate::formats::{Element, Format, Refused, Slice, SliceMut};
use crate::layout::Layout;
use crate::program::{Pass, STREAMS};
use crate::rule::StateKind;
use crate::simd::{Level, Simd, Vectorized, prefetch_address};

thread_local! {
    static TILES: Cell<Option<Box<[Tile]>>> = const { Cell::new(None) };
}

/// Calls `f` with room for the tiles of a parameter, which each thread keeps: to clear it for each parameter would take
/// longer than the arithmetic of a small one. It holds what was left there, and nothing of that is ever read.
pub(super) fn with_tiles<R>(f: impl FnOnce(&mut [Tile]) -> R) -> R {
    let mut tiles = TILES.take().unwrap_or_else(|| vec![Tile::default(); STREAMS].into_boxed_slice());
    if cfg!(debug_assertions) {
        tiles.iter_mut().for_each(|tile| tile.x.fill(f32::NAN)); // so that tests see who reads it
    }
    let found = f(&mut tiles);
    TILES.set(Some(tiles));
    found
}

/// A gradient: beside its parameter or, with a layout, with its elements anywhere.
#[derive(Clone, Copy)]
pub(super) struct Gradient<'c> {
    slice: Slice<'c>,
    layout: Option<&'c Layout>,
}

impl<'c> Gradient<'c> {
    pub(super) fn of(slice: Slice<'c>, layout: Option<&'c Layout>) -> Self {
        Self { slice, layout }
    }

    /// Whether it is read where it is.
    fn is_direct(&self) -> bool {
        self.slice.format() == Format::F32 && self.layout.is_none()
    }

    /// Widens elements that belong together with those of the parameter from `first` on, of which the chunk's from
    /// `start` on are the same.
    #[inline(always)]
    fn read(&self, simd: impl Simd, (first, start): (usize, usize), tile: &mut [f32]) {
        match (self.layout, self.slice) {
            (None, slice) => read_numbers(simd, slice, start, tile),
            (Some(layout), Slice::F32(x)) => gather(layout, x, first, tile),
            (Some(layout), Slice::F16(x)) => gather(layout, x, first, tile),
            (Some(layout), Slice::Bf16(x)) => gather(layout, x, first, tile),
            (Some(_), _) => unreachable!("checked when pushed"),
        }
    }
}

/// A few hundred elements at a time: whoever hands over such a gradient need not have room for another one.
fn gather<E: Element<Arith = f32>>(layout: &Layout, x: &[E], first: usize, tile: &mut [f32]) {
    layout.walk(1, first, tile.len(), |i, at| tile[i] = x[at].load());
}

/// How many elements a parameter has, given its gradient.
pub(super) fn elements(grad: &Slice<'_>, layout: Option<&Layout>) -> Result<usize, Refused> {
    match layout {
        None => Ok(grad.len()),
        Some(layout) => {
            let in_order = layout.streams() == 2 && layout.is_in_order(0);
            let reaches = in_order && layout.extent(1).is_some_and(|extent| extent <= grad.len());
            if reaches { Ok(layout.len()) } else { Err(Refused::Lengths) }
        }
    }
}

/// Whether streams are of the formats and lengths that a compact parameter of so many elements has.
pub(super) fn check(
    written: &[SliceMut<'_>],
    (grad, elements): (&Slice<'_>, usize),
    compact: &Compact,
) -> Result<(), Refused> {
    let states = compact.states.len();
    if written.len() != compact.streams() || 2 + states > STREAMS {
        return Err(Refused::States);
    }
    let formats = |k: usize| written[k].format();
    let number = |format: Format| matches!(format, Format::F32 | Format::F16 | Format::Bf16);
    let (param, companion) = (formats(0), compact.companion());
    let weights = match compact.weights {
        Weights::Nearest => number(param),
        Weights::Fair => param == Format::Bf16,
        Weights::Kahan => matches!(param, Format::F16 | Format::Bf16) && formats(companion) == param,
        Weights::Residual8 => param == Format::Bf16 && formats(companion) == Format::U8,
        Weights::Residual16 => param == Format::Bf16 && formats(companion) == Format::I16,
        Weights::Master => matches!(param, Format::F16 | Format::Bf16) && formats(companion) == Format::F32,
    };
    let state = |(k, kept): (usize, &Kept)| match kept {
        Kept::Nearest => number(formats(1 + k)),
        Kept::Fair => formats(1 + k) == Format::Bf16,
        Kept::Codes(kind) => {
            formats(1 + k) == Format::U8 && formats(compact.header_of(k)) == Format::F32 && fits(*kind, compact)
        }
    };
    let average = compact.average.is_none() || formats(compact.place_of_average()) == Format::F32;
    if !weights || !average || !number(grad.format()) || !compact.states.iter().enumerate().all(state) {
        return Err(Refused::Types);
    }
    let fits = |(k, stream): (usize, &SliceMut<'_>)| stream.len() == compact.len_of(k, elements);
    if written.iter().enumerate().all(fits) { Ok(()) } else { Err(Refused::Lengths) }
}

/// Whether a state can be kept in codes of this kind.
fn fits(kind: StateKind, compact: &Compact) -> bool {
    match kind {
        StateKind::Exact | StateKind::Fine => false,
        StateKind::Signed | StateKind::Magnitude => true,
        StateKind::Relative { to, .. } => {
            // (of other codes, what was written is not known when this one is written)
            let divisor = compact.states.get(usize::from(to));
            matches!(divisor, Some(Kept::Nearest | Kept::Fair | Kept::Codes(StateKind::Magnitude)))
        }
    }
}

/// A part of compact streams, handed out in tiles.
pub(super) struct Unpacked<'c, 'a> {
    /// Of the parameter, its states and its gradient.
    tiles: &'c mut [Tile],
    written: &'c mut [SliceMut<'a>],
    grad: Gradient<'c>,
    /// How many elements there are.
    elements: usize,
    compact: &'c Compact,
    level: Level,
    /// The first of its elements in the whole of the parameter.
    first: usize,
    /// How many elements are taken at a time.
    at_once: usize,
    /// Whether the next elements are prefetched: with bursts from so many streams the processor does not look far
    /// enough ahead itself, where the parameter is read into a tile too.
    looks_ahead: bool,
    /// What is done of it, and how many elements of that are in the tiles.
    done: usize,
    held: usize,
    /// Whether anything writes the parameter, and each of the states, as bits; none where nothing is written at all.
    writes: Option<u32>,
    /// Which of them are updated where they are.
    direct: u32,
    /// Which states others are relative to.
    divisors: u32,
    words: Words,
}

/// Which streams are to be written back: those that a walk of a program writes, or all.
pub(super) fn writes(pass: Option<&Pass>, compact: &Compact) -> Option<u32> {
    let all = (0..=compact.states.len()).filter(|&k| pass.is_none_or(|pass| pass.is_written(in_layout(k))));
    let writes = all.fold(0, |bits, k| bits | 1 << k);
    // what is kept relative to a state is written with it
    let relative = |(k, kept): (usize, &Kept)| match kept {
        Kept::Codes(StateKind::Relative { to, .. }) if writes >> (1 + to) & 1 == 1 => 2 << k,
        _ => 0,
    };
    Some(compact.states.iter().enumerate().map(relative).fold(writes, |bits, more| bits | more))
}

impl<'c, 'a> Unpacked<'c, 'a> {
    pub(super) fn new(
        tiles: &'c mut [Tile],
        (written, grad): (&'c mut [SliceMut<'a>], Gradient<'c>),
        (compact, writes): (&'c Compact, Option<u32>),
        (first, end): (usize, usize),
        level: Level,
    ) -> Self {
        let bits = |n: usize, is: &dyn Fn(usize) -> bool| (0..n).fold(0, |bits, k| bits | u32::from(is(k)) << k);
        let states = compact.states.len();
        let divisors = bits(states, &|k| is_divisor(compact, k));
        let direct = bits(1 + states, &|k| is_direct(compact, written, k));
        let in_tiles = direct != bits(1 + states, &|_| true) || !grad.is_direct();
        let elements = end - first;
        let is_large = beyond_caches(elements);
        let at_once = match in_tiles {
            // where all are updated where they are, as many as the innermost loop looks far ahead for
            false => 2 * SMALL_CHUNK,
            // while a small tile waits for memory, the arithmetic of the one before goes on; codes have too much of it
            true if is_large && compact.headers() == 0 => BLOCK,
            true => Tile::LEN,
        };
        let looks_ahead = is_large && direct & 1 == 0;
        let words = Words::default();
        Self {
            tiles,
            written,
            grad,
            elements,
            compact,
            level,
            first,
            at_once,
            looks_ahead,
            done: 0,
            held: 0,
            writes,
            direct,
            divisors,
            words,
        }
    }

    /// The same without elements that have been updated, whole blocks of them.
    pub(super) fn after(self, done: usize) -> Self {
        Self { done, ..self }
    }

    /// Reads the next elements into tiles, but for those that are handed out where they are.
    #[inline(always)]
    fn read(&mut self, simd: impl Simd) {
        let Self { compact, done, direct, .. } = *self;
        let n = self.at_once.min(self.elements - done);
        let Some((param, states)) = self.tiles.split_first_mut() else { return };
        if direct & 1 == 0 {
            let (p, rest) = self.written.split_at(compact.companion().min(self.written.len()));
            let companion = rest.first().filter(|_| compact.weights.has_companion()).map(SliceMut::as_slice);
            ReadWeights {
                weights: compact.weights,
                p: p[0].as_slice(),
                companion,
                start: done,
                tile: &mut param.x[..n],
            }
            .run(simd);
        }
        // what is relative to others comes after them
        for relative in [false, true] {
            for (k, kept) in compact.states.iter().enumerate() {
                if is_relative(*kept) != relative || direct >> (1 + k) & 1 == 1 {
                    continue;
                }
                let (tile, of) = with_divisor(states, k, *kept);
                match (*kept, self.written[1 + k].as_slice()) {
                    (Kept::Codes(kind), Slice::U8(codes)) => {
                        let Slice::F32(headers) = self.written[compact.header_of(k)].as_slice() else { continue };
                        ReadCodes { kind, codes: &codes[done..done + n], headers: &headers[done / BLOCK..], of, tile }
                            .run(simd);
                    }
                    (_, numbers) => {
                        read_numbers(simd, numbers, done, &mut tile.x[..n]);
                        tile.x[n..n.next_multiple_of(BLOCK)].fill(0.0);
                    }
                }
            }
        }
        if !self.grad.is_direct() {
            self.grad.read(simd, (self.first + done, done), &mut states[compact.states.len()].x[..n]);
        }
        if self.looks_ahead {
            self.prefetch(done + n);
        }
        (self.done, self.held) = (done + n, n);
    }

    /// Prefetches as many elements of each stream as are taken at a time.
    fn prefetch(&self, start: usize) {
        let tile = |address: usize, format: Format| {
            let start = address + start * format.size();
            (0..self.at_once * format.size()).step_by(64).for_each(|byte| prefetch_address(start.wrapping_add(byte)));
        };
        let companion = self.compact.weights.has_companion().then_some(self.compact.companion());
        for k in (0..=self.compact.states.len()).chain(companion) {
            tile(self.written[k].address(), self.written[k].format());
        }
        if self.grad.layout.is_none() {
            tile(self.grad.slice.address(), self.grad.slice.format());
        }
    }

    /// Writes the tiles back.
    #[inline(always)]
    fn write(&mut self, simd: impl Simd) {
        let Self { compact, held: n, writes, direct, divisors, .. } = *self;
        let Some(writes) = writes.filter(|_| n > 0) else { return };
        let start = self.done - n;
        let (drawn, first) = (compact.noise, self.first + start);
        let noise = |stream: usize| drawn.stream(stream, first);
        let Some((param, _)) = self.tiles.split_first_mut() else { return };
        if writes & 1 == 1 && direct & 1 == 0 {
            let (p, rest) = self.written.split_at_mut(compact.companion().min(self.written.len()));
            let companion = rest.first_mut().filter(|_| compact.weights.has_companion()).map(SliceMut::whole);
            let p = p[0].whole();
            WriteWeights {
                weights: compact.weights,
                p,
                companion,
                start,
                noise: noise(0),
                words: &mut self.words,
                tile: &param.x[..n],
            }
            .run(simd);
        }
        if let Some(weight) = compact.average {
            self.move_average(simd, weight, start);
        }
        let Some((_, states)) = self.tiles.split_first_mut() else { return };
        // what is relative to others comes after them
        for relative in [false, true] {
            for (k, kept) in compact.states.iter().enumerate() {
                let is_to_do = writes & !direct & 2 << k != 0;
                if !is_to_do || is_relative(*kept) != relative {
                    continue;
                }
                let (tile, of) = with_divisor(states, k, *kept);
                if let Kept::Codes(kind) = *kept {
                    tile.x[n..n.next_multiple_of(BLOCK)].fill(0.0);
                    let (codes, headers) = self.written.split_at_mut(compact.header_of(k));
                    let (SliceMut::U8(codes), SliceMut::F32(headers)) = (&mut codes[1 + k], &mut headers[0]) else {
                        continue;
                    };
                    let (codes, headers) = (&mut codes[start..start + n], &mut headers[start / BLOCK..]);
                    let (noise, words) = (noise(1 + k), &mut self.words);
                    WriteCodes { kind, codes, headers, of, tile, noise, words }.run(simd);
                    continue;
                }
                match (&mut self.written[1 + k], *kept) {
                    (SliceMut::Bf16(x), Kept::Fair) => {
                        let (to, tile, words) = (&mut x[start..start + n], &tile.x[..n], &mut self.words);
                        WriteFair { to, tile, noise: noise(1 + k), words }.run(simd);
                    }
                    (numbers, _) => write_numbers(simd, numbers, start, &tile.x[..n]),
                }
                if divisors >> k & 1 == 1 {
                    read_numbers(simd, self.written[1 + k].as_slice(), start, &mut tile.x[..n]);
                }
            }
        }
    }

    /// Moves the average of the parameter, which has been written, towards what that stands for now.
    #[inline(always)]
    fn move_average(&mut self, simd: impl Simd, weight: f64, start: usize) {
        let Self { compact, held: n, direct, .. } = *self;
        let (written, average) = self.written.split_at_mut(compact.place_of_average());
        let Some(SliceMut::F32(average)) = average.first_mut() else { return };
        let average = &mut average[start..start + n];
        let weight = weight as f32;
        match (direct & 1 == 1, written[0].as_slice()) {
            (true, Slice::F32(p)) => MoveAverage { average, towards: &p[start..start + n], weight }.run(simd),
            (_, p) => {
                let tile = &mut self.tiles[0].x[..n];
                if !matches!(compact.weights, Weights::Residual16 | Weights::Master) {
                    // rounded as it was written
                    let companion = written.get(compact.companion()).map(SliceMut::as_slice);
                    ReadWeights { weights: compact.weights, p, companion, start, tile: &mut *tile }.run(simd);
                }
                MoveAverage { average, towards: tile, weight }.run(simd);
            }
        }
    }
}

/// Writes what is in the tiles, and reads what comes next.
struct Turn<'t, 'c, 'a>(&'t mut Unpacked<'c, 'a>);

impl Vectorized for Turn<'_, '_, '_> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        self.0.write(simd);
        self.0.held = 0;
        if self.0.done < self.0.elements {
            self.0.read(simd);
        }
    }
}

impl Source for Unpacked<'_, '_> {
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<Slice<'s>> {
        self.level.run(Turn(self));
        if self.held == 0 {
            return None;
        }
        let Self { tiles, written, grad, compact, done, held, direct, .. } = self;
        let (start, n, streams) = (*done - *held, *held, 1 + compact.states.len());
        let (tiles, of_grad) = tiles.split_at_mut(streams);
        for (k, ((slot, stream), tile)) in slots.iter_mut().zip(&mut **written).zip(tiles).enumerate() {
            let is_direct = *direct >> k & 1 == 1;
            *slot = if is_direct { stream.part(start, n) } else { SliceMut::F32(&mut tile.x[..n]) };
        }
        let grad_tile = || Slice::F32(&of_grad[0].x[..n]);
        Some(if grad.is_direct() { grad.slice.part(start, n) } else { grad_tile() })
    }
}

fn is_relative(kept: Kept) -> bool {
    matches!(kept, Kept::Codes(StateKind::Relative { .. }))
}

/// Whether another state is kept relative to this one.
fn is_divisor(compact: &Compact, state: usize) -> bool {
    compact.states.iter().any(|kept| match kept {
        Kept::Codes(StateKind::Relative { to, .. }) => usize::from(*to) == state,
        _ => false,
    })
}

/// Whether a stream, the parameter or one of the states, is updated where it is.
fn is_direct(compact: &Compact, written: &[SliceMut<'_>], k: usize) -> bool {
    let nearest = match k {
        0 => compact.weights == Weights::Nearest,
        _ => compact.states[k - 1] == Kept::Nearest && !is_divisor(compact, k - 1),
    };
    nearest && written[k].format() == Format::F32
}

/// The tile of a state, and that of the state which it is relative to: itself, and not used, if there is none.
fn with_divisor(states: &mut [Tile], k: usize, kept: Kept) -> (&mut Tile, Option<(&Tile, bool)>) {
    let Kept::Codes(StateKind::Relative { to, root }) = kept else { return (&mut states[k], None) };
    let to = usize::from(to);
    let (low, high) = states.split_at_mut(k.max(to));
    if k < to { (&mut low[k], Some((&high[0], root))) } else { (&mut high[0], Some((&low[to], root))) }
}
