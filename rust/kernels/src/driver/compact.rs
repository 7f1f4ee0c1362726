//! Streams in fewer bytes: tiles of `f32` are read from them, updated, and written back in one pass over memory.

use super::source::Source;
use super::tensors::in_layout;
use crate::compact::{
    BLOCK, Bits, Compact, Kept, Weights, fair, read_kahan, read_magnitudes, read_master, read_master_bf16,
    read_relative, read_residual8, read_residual16, read_signed, write_kahan, write_magnitudes, write_relative,
    write_residual8, write_residual16, write_signed,
};
use crate::formats::{Element, Format, Refused, Slice, SliceMut, bf16, decode, encode};
use crate::program::{Pass, STREAMS};
use crate::rule::StateKind;
use crate::simd::{Level, Simd, Vectorized};

/// Elements of a tile: a few blocks, so that all tiles of a parameter stay in the first-level cache.
const TILE: usize = 2 * BLOCK;
/// The most streams of a parameter of nearly every rule: itself, its gradient, three states.
pub(super) const FEW: usize = 5;

/// A tile, and room that keeps the elements of the next one from lying at the same place in a page: processors take
/// such addresses for each other.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Tile {
    x: [f32; TILE],
    _room: [f32; 48],
}

/// Whether streams are of the formats and lengths that a compact parameter has.
pub(super) fn check(written: &[SliceMut<'_>], grad: &Slice<'_>, compact: &Compact) -> Result<(), Refused> {
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
    if !weights || !number(grad.format()) || !compact.states.iter().enumerate().all(state) {
        return Err(Refused::Types);
    }
    let fits = |(k, stream): (usize, &SliceMut<'_>)| stream.len() == compact.len_of(k, grad.len());
    if written.iter().enumerate().all(fits) { Ok(()) } else { Err(Refused::Lengths) }
}

/// Whether a state can be kept in codes of this kind.
fn fits(kind: StateKind, compact: &Compact) -> bool {
    match kind {
        StateKind::Exact => false,
        StateKind::Signed | StateKind::Magnitude => true,
        StateKind::Relative { to, .. } => {
            let divisor = compact.states.get(usize::from(to));
            divisor.is_some_and(|kept| !matches!(kept, Kept::Codes(StateKind::Relative { .. })))
        }
    }
}

/// A part of compact streams, handed out in tiles.
#[repr(align(64))]
pub(super) struct Unpacked<'c, 'a, const S: usize> {
    tiles: [Tile; S],
    written: &'c mut [SliceMut<'a>],
    grad: Slice<'c>,
    compact: &'c Compact,
    level: Level,
    /// The first of its elements in the whole of the parameter.
    first: usize,
    /// What is done of it, and how many elements of that are in the tiles.
    done: usize,
    held: usize,
    /// Whether anything writes the parameter, and each of the states, as bits.
    writes: u32,
}

/// Which streams are to be written back: those that a walk of a program writes, or all.
pub(super) fn writes(pass: Option<&Pass>, compact: &Compact) -> u32 {
    let all = (0..=compact.states.len()).filter(|&k| pass.is_none_or(|pass| pass.is_written(in_layout(k))));
    let writes = all.fold(0, |bits, k| bits | 1 << k);
    // what is kept relative to a state is written with it
    let relative = |(k, kept): (usize, &Kept)| match kept {
        Kept::Codes(StateKind::Relative { to, .. }) if writes >> (1 + to) & 1 == 1 => 2 << k,
        _ => 0,
    };
    compact.states.iter().enumerate().map(relative).fold(writes, |bits, more| bits | more)
}

impl<'c, 'a, const S: usize> Unpacked<'c, 'a, S> {
    pub(super) fn new(
        written: &'c mut [SliceMut<'a>],
        grad: Slice<'c>,
        (compact, writes): (&'c Compact, u32),
        first: usize,
        level: Level,
    ) -> Self {
        let tile = Tile { x: [0.0; TILE], _room: [0.0; 48] };
        Self { tiles: [tile; S], written, grad, compact, level, first, done: 0, held: 0, writes }
    }

    /// Reads the next elements into tiles, but for those that are handed out where they are.
    fn read(&mut self) {
        let Self { compact, level, done, .. } = *self;
        let n = TILE.min(self.grad.len() - done);
        let Some((param, states)) = self.tiles.split_first_mut() else { return };
        if !is_direct(compact, self.written, 0) {
            let (p, rest) = self.written.split_at(compact.companion().min(self.written.len()));
            let companion = rest.first().map(SliceMut::as_slice);
            level.run(ReadWeights {
                weights: compact.weights,
                p: p[0].as_slice(),
                companion,
                start: done,
                tile: &mut param.x[..n],
            });
        }
        for relative in [false, true] {
            for (k, kept) in compact.states.iter().enumerate() {
                if is_relative(*kept) != relative || is_direct(compact, self.written, 1 + k) {
                    continue;
                }
                let (tile, of) = with_divisor(states, k, *kept);
                match (*kept, self.written[1 + k].as_slice()) {
                    (Kept::Codes(kind), Slice::U8(codes)) => {
                        let Slice::F32(headers) = self.written[compact.header_of(k)].as_slice() else { continue };
                        level.run(ReadCodes {
                            kind,
                            codes: &codes[done..done + n],
                            headers: &headers[done / BLOCK..],
                            of,
                            tile,
                        });
                    }
                    (_, numbers) => {
                        read_numbers(level, numbers, done, &mut tile.x[..n]);
                        tile.x[n..].fill(0.0);
                    }
                }
            }
        }
        if self.grad.format() != Format::F32 {
            read_numbers(level, self.grad, done, &mut states[compact.states.len()].x[..n]);
        }
        (self.done, self.held) = (done + n, n);
    }

    /// Writes the tiles back.
    fn write(&mut self) {
        let Self { compact, level, held: n, writes, .. } = *self;
        if n == 0 {
            return;
        }
        let start = self.done - n;
        let noise = |stream: usize| self.compact.noise.stream(stream, self.first + start);
        let Some((param, states)) = self.tiles.split_first_mut() else { return };
        if writes & 1 == 1 && !is_direct(compact, self.written, 0) {
            let (p, rest) = self.written.split_at_mut(compact.companion().min(self.written.len()));
            let (p, companion) = (p[0].whole(), rest.first_mut().map(SliceMut::whole));
            level.run(WriteWeights {
                weights: compact.weights,
                p,
                companion,
                start,
                noise: noise(0),
                tile: &param.x[..n],
            });
        }
        for relative in [false, true] {
            for (k, kept) in compact.states.iter().enumerate() {
                let is_written = writes >> (1 + k) & 1 == 1;
                if !is_written || is_relative(*kept) != relative || is_direct(compact, self.written, 1 + k) {
                    continue;
                }
                let (tile, of) = with_divisor(states, k, *kept);
                if let Kept::Codes(kind) = *kept {
                    tile.x[n..].fill(0.0);
                    let (codes, headers) = self.written.split_at_mut(compact.header_of(k));
                    let (SliceMut::U8(codes), SliceMut::F32(headers)) = (&mut codes[1 + k], &mut headers[0]) else {
                        continue;
                    };
                    let (codes, headers) = (&mut codes[start..start + n], &mut headers[start / BLOCK..]);
                    level.run(WriteCodes { kind, codes, headers, of, tile, noise: noise(1 + k) });
                    continue;
                }
                match (&mut self.written[1 + k], *kept) {
                    (SliceMut::Bf16(x), Kept::Fair) => {
                        level.run(WriteFair { to: &mut x[start..start + n], tile: &tile.x[..n], noise: noise(1 + k) });
                    }
                    (numbers, _) => write_numbers(level, numbers, start, &tile.x[..n]),
                }
                if is_divisor(compact, k) {
                    read_numbers(level, self.written[1 + k].as_slice(), start, &mut tile.x[..n]);
                }
            }
        }
    }
}

impl<const S: usize> Source for Unpacked<'_, '_, S> {
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<Slice<'s>> {
        self.write();
        if self.done == self.grad.len() {
            self.held = 0;
            return None;
        }
        self.read();
        let Self { tiles, written, grad, compact, done, held, .. } = self;
        let (start, n, streams) = (*done - *held, *held, 1 + compact.states.len());
        let (tiles, of_grad) = tiles.split_at_mut(streams);
        let direct = std::array::from_fn::<bool, STREAMS, _>(|k| k < streams && is_direct(compact, written, k));
        for (k, ((slot, stream), tile)) in slots.iter_mut().zip(&mut **written).zip(tiles).enumerate() {
            *slot = if direct[k] { stream.part(start, n) } else { SliceMut::F32(&mut tile.x[..n]) };
        }
        let grad_tile = || Slice::F32(&of_grad[0].x[..n]);
        Some(if grad.format() == Format::F32 { grad.part(start, n) } else { grad_tile() })
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

fn read_numbers(level: Level, from: Slice<'_>, start: usize, tile: &mut [f32]) {
    let n = tile.len();
    match from {
        Slice::F32(x) => tile.copy_from_slice(&x[start..start + n]),
        Slice::F16(x) => level.run(Decode(&x[start..start + n], tile)),
        Slice::Bf16(x) => level.run(Decode(&x[start..start + n], tile)),
        Slice::F64(_) | Slice::U8(_) | Slice::I16(_) => unreachable!("checked when pushed"),
    }
}

fn write_numbers(level: Level, to: &mut SliceMut<'_>, start: usize, tile: &[f32]) {
    let n = tile.len();
    match to {
        SliceMut::F32(x) => x[start..start + n].copy_from_slice(tile),
        SliceMut::F16(x) => level.run(Encode(tile, &mut x[start..start + n])),
        SliceMut::Bf16(x) => level.run(Encode(tile, &mut x[start..start + n])),
        SliceMut::F64(_) | SliceMut::U8(_) | SliceMut::I16(_) => unreachable!("checked when pushed"),
    }
}

struct Decode<'a, E>(&'a [E], &'a mut [f32]);

impl<E: Element<Arith = f32>> Vectorized for Decode<'_, E> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        decode(simd, self.0, self.1);
    }
}

struct Encode<'a, E>(&'a [f32], &'a mut [E]);

impl<E: Element<Arith = f32>> Vectorized for Encode<'_, E> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        encode(simd, self.0, self.1);
    }
}

struct WriteFair<'a> {
    to: &'a mut [bf16],
    tile: &'a [f32],
    noise: Bits,
}

impl Vectorized for WriteFair<'_> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        for (i, (to, &x)) in self.to.iter_mut().zip(self.tile).enumerate() {
            *to = fair(x, self.noise.word(i));
        }
    }
}

struct ReadCodes<'a> {
    kind: StateKind,
    codes: &'a [u8],
    headers: &'a [f32],
    of: Option<(&'a Tile, bool)>,
    tile: &'a mut Tile,
}

impl Vectorized for ReadCodes<'_> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { kind, codes, headers, of, tile } = self;
        let (blocks, tail) = codes.as_chunks::<BLOCK>();
        let mut padded = [0; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        let blocks = blocks.iter().chain((!tail.is_empty()).then_some(&padded));
        let (tiles, _) = tile.x.as_chunks_mut::<BLOCK>();
        for (b, ((codes, tile), &header)) in blocks.zip(tiles).zip(headers).enumerate() {
            match (kind, of) {
                (StateKind::Magnitude, _) => read_magnitudes(codes, header, tile),
                (StateKind::Relative { .. }, Some((of, root))) => {
                    read_relative(codes, header, (&of.x.as_chunks::<BLOCK>().0[b], root), tile);
                }
                _ => read_signed(codes, header, tile),
            }
        }
    }
}

struct WriteCodes<'a> {
    kind: StateKind,
    codes: &'a mut [u8],
    headers: &'a mut [f32],
    of: Option<(&'a Tile, bool)>,
    tile: &'a mut Tile,
    noise: Bits,
}

impl Vectorized for WriteCodes<'_> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { kind, codes, headers, of, tile, noise } = self;
        let (blocks, tail) = codes.as_chunks_mut::<BLOCK>();
        let mut padded = [0; BLOCK];
        let last = (!tail.is_empty()).then_some(&mut padded);
        let (tiles, _) = tile.x.as_chunks_mut::<BLOCK>();
        for (b, ((codes, tile), header)) in blocks.iter_mut().chain(last).zip(tiles).zip(headers).enumerate() {
            let noise = noise.skip(b * BLOCK);
            *header = match (kind, of) {
                (StateKind::Magnitude, _) => write_magnitudes(tile, codes, noise),
                (StateKind::Relative { .. }, Some((of, root))) => {
                    write_relative(tile, (&of.x.as_chunks::<BLOCK>().0[b], root), codes)
                }
                _ => write_signed(tile, codes, noise),
            };
        }
        tail.copy_from_slice(&padded[..tail.len()]);
    }
}

struct ReadWeights<'a> {
    weights: Weights,
    p: Slice<'a>,
    companion: Option<Slice<'a>>,
    start: usize,
    tile: &'a mut [f32],
}

impl Vectorized for ReadWeights<'_> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        let Self { weights, p, companion, start, tile } = self;
        let end = start + tile.len();
        match (weights, p, companion) {
            (Weights::Residual16, Slice::Bf16(p), Some(Slice::I16(rest))) => {
                both(&p[start..end], &rest[start..end], tile, read_residual16);
            }
            (Weights::Residual8, Slice::Bf16(p), Some(Slice::U8(rest))) => {
                both(&p[start..end], &rest[start..end], tile, read_residual8);
            }
            (Weights::Kahan, Slice::Bf16(p), Some(Slice::Bf16(rest))) => {
                both(&p[start..end], &rest[start..end], tile, read_kahan);
            }
            (Weights::Kahan, Slice::F16(p), Some(Slice::F16(rest))) => {
                both(&p[start..end], &rest[start..end], tile, read_kahan);
            }
            (Weights::Master, Slice::Bf16(p), Some(Slice::F32(master))) => {
                both(&p[start..end], &master[start..end], tile, read_master_bf16);
            }
            (Weights::Master, Slice::F16(p), Some(Slice::F32(master))) => {
                both(&p[start..end], &master[start..end], tile, read_master);
            }
            (_, Slice::Bf16(p), _) => decode(simd, &p[start..end], tile),
            (_, Slice::F16(p), _) => decode(simd, &p[start..end], tile),
            (_, Slice::F32(p), _) => tile.copy_from_slice(&p[start..end]),
            _ => {}
        }
    }
}

/// Makes numbers of two halves.
#[inline(always)]
fn both<A: Copy, B: Copy>(a: &[A], b: &[B], tile: &mut [f32], read: impl Fn(A, B) -> f32) {
    tile.iter_mut().zip(a.iter().zip(b)).for_each(|(x, (&a, &b))| *x = read(a, b));
}

struct WriteWeights<'a> {
    weights: Weights,
    p: SliceMut<'a>,
    companion: Option<SliceMut<'a>>,
    start: usize,
    noise: Bits,
    tile: &'a [f32],
}

impl Vectorized for WriteWeights<'_> {
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        let Self { weights, p, companion, start, noise, tile } = self;
        let end = start + tile.len();
        match (weights, p, companion) {
            (Weights::Fair, SliceMut::Bf16(p), _) => WriteFair { to: &mut p[start..end], tile, noise }.run(simd),
            (Weights::Residual16, SliceMut::Bf16(p), Some(SliceMut::I16(rest))) => {
                apart(tile, &mut p[start..end], &mut rest[start..end], |_, x| write_residual16(x));
            }
            (Weights::Residual8, SliceMut::Bf16(p), Some(SliceMut::U8(rest))) => {
                apart(tile, &mut p[start..end], &mut rest[start..end], |i, x| write_residual8(x, noise.word(i)));
            }
            (Weights::Kahan, SliceMut::Bf16(p), Some(SliceMut::Bf16(rest))) => {
                apart(tile, &mut p[start..end], &mut rest[start..end], |_, x| write_kahan(x));
            }
            (Weights::Kahan, SliceMut::F16(p), Some(SliceMut::F16(rest))) => {
                apart(tile, &mut p[start..end], &mut rest[start..end], |_, x| write_kahan(x));
            }
            (_, SliceMut::Bf16(p), companion) => {
                encode(simd, tile, &mut p[start..end]);
                keep_master(companion, start, tile);
            }
            (_, SliceMut::F16(p), companion) => {
                encode(simd, tile, &mut p[start..end]);
                keep_master(companion, start, tile);
            }
            (_, SliceMut::F32(p), _) => p[start..end].copy_from_slice(tile),
            _ => {}
        }
    }
}

/// Takes numbers apart into two halves.
#[inline(always)]
fn apart<A, B>(tile: &[f32], a: &mut [A], b: &mut [B], write: impl Fn(usize, f32) -> (A, B)) {
    for (i, ((a, b), &x)) in a.iter_mut().zip(b).zip(tile).enumerate() {
        (*a, *b) = write(i, x);
    }
}

#[inline(always)]
fn keep_master(companion: Option<SliceMut<'_>>, start: usize, tile: &[f32]) {
    if let Some(SliceMut::F32(master)) = companion {
        master[start..start + tile.len()].copy_from_slice(tile);
    }
}
