//! Runs a pass over streams that lie in one piece, a tile at a time.
//!
//! Streams in the arithmetic type are worked on where they lie. Others, a gradient that is multiplied by a factor, and
//! what is left at the end of a stream are brought into tiles of their own. A tile is short: so the processor overlaps
//! an instruction with the next ones.

use std::cell::Cell;

use super::graph::{MAX_NODES, STREAMS};
use super::instructions::{Job, Table, Tile};
use super::pass::Pass;
use super::reduce::Lanes;
use super::registers::MAX_REGISTERS;
pub(crate) use super::tiles::Computes;
use super::vectors::{Vector, to_read};
use crate::chunks::SMALL_CHUNK;
use crate::formats::{Slice, SliceMut};
use crate::simd::{Level, prefetch_far_address};

/// Elements of a tile.
pub(crate) const TILE: usize = 256;
/// Elements of a tile where one instruction does all, where the streams lie: nothing waits in a register.
const LONG: usize = 4096;
/// Bytes of a stream in a tile where one instruction or two do all, in steps that are too large for the caches. What a
/// tile brings near is asked for at once, and the processor waits if that is more than it can ask for.
const SHORT: usize = 512;
/// Of longer tiles, with more instructions, a part is asked for before each of so many.
const PARTS: usize = 4;
/// How many bytes ahead streams are brought into the second-level cache, in steps that are too large for it. Measured
/// on Zen 5, with the two above (docs/experiments.md).
const AHEAD: usize = 2048;

/// A pass with what it needs while it runs.
pub(crate) struct Machine<'m, A, const W: usize> {
    pass: &'m Pass,
    /// Rounded to the arithmetic type.
    numbers: &'m [A],
    factor: A,
    /// Tiles of those streams that are not worked on where they lie, and registers.
    tiles: &'m [Vector<A, W>],
    lanes: &'m [Cell<Lanes>],
    level: Level,
}

/// A stream as it is worked on.
enum View<'v, 'a, A, const W: usize> {
    Absent,
    /// Where it lies: whole vectors, and what is left at the end.
    Direct(&'v [Vector<A, W>], &'v mut [A]),
    /// In a tile of its own.
    Staged(&'v mut SliceMut<'a>),
    /// The gradient where it lies: it is only read.
    Shared(&'v [Vector<A, W>], &'v [A]),
    /// The gradient in a tile, multiplied by its factor.
    Grad(Slice<'v>, A),
}

impl<'v, 'a, A: Computes, const W: usize> View<'v, 'a, A, W> {
    #[inline]
    fn new(stream: &'v mut SliceMut<'a>) -> Self {
        if A::slice_mut(stream).is_none() {
            return Self::Staged(stream);
        }
        let (whole, rest) = A::slice_mut(stream).unwrap_or_default().as_chunks_mut::<W>();
        Self::Direct(Cell::from_mut(whole).as_slice_of_cells(), rest)
    }

    /// The view of a gradient.
    #[inline]
    #[allow(unsafe_code)]
    fn of_grad(grad: Slice<'v>, factor: A) -> Self {
        match A::slice(&grad) {
            Some(elements) if factor == A::ONE => {
                let (whole, rest) = elements.as_chunks::<W>();
                // SAFETY: no instruction of a pass writes to the gradient's slot: `Pass::of` has looked at all.
                Self::Shared(unsafe { to_read(whole) }, rest)
            }
            _ => Self::Grad(grad, factor),
        }
    }

    /// Whether its elements take as many bytes as those of a tile.
    #[inline]
    fn is_full(&self) -> bool {
        match self {
            Self::Absent | Self::Direct(..) | Self::Shared(..) => true,
            Self::Staged(stream) => stream.format().size() == size_of::<A>(),
            Self::Grad(grad, _) => grad.format().size() == size_of::<A>(),
        }
    }

    /// Prefetches what lies some way on of some elements, or one part of so many of it.
    #[inline]
    fn prefetch(&self, at: usize, elements: usize, (part, parts): (usize, usize)) {
        let (address, size) = match self {
            Self::Absent => return,
            Self::Direct(vectors, _) | Self::Shared(vectors, _) => (vectors.as_ptr() as usize, size_of::<A>()),
            Self::Staged(stream) => (stream.address(), stream.format().size()),
            Self::Grad(grad, _) => (grad.address(), grad.format().size()),
        };
        let ahead = address.wrapping_add(at * size + AHEAD);
        let lines = (elements * size).div_ceil(64);
        let own = lines * part / parts..lines * (part + 1) / parts;
        own.for_each(|line| prefetch_far_address(ahead.wrapping_add(64 * line)));
    }
}

impl Pass {
    /// How many numbers of the arithmetic type a machine needs room for.
    pub(crate) fn room(&self) -> usize {
        (self.registers + self.streams) * TILE + self.numbers.len()
    }
}

/// Slots of most passes; those of any.
const FEW: usize = 12;
const MANY: usize = STREAMS + MAX_REGISTERS;
/// The most that [`Pass::room`] says.
pub(crate) const LARGEST_ROOM: usize = MANY * TILE + MAX_NODES;

impl<'m, A: Computes, const W: usize> Machine<'m, A, W> {
    /// Vectors of a tile.
    const VECTORS: usize = TILE / W;

    /// A machine with the numbers of a tensor, in some memory of the size that [`Pass::room`] says.
    pub(crate) fn new(
        pass: &'m Pass,
        row: &[f64],
        (level, factor): (Level, f64),
        room: &'m mut [A],
        lanes: &'m mut [Lanes],
    ) -> Self {
        let (tiles, numbers) = room.split_at_mut((pass.streams + pass.registers) * TILE);
        numbers.iter_mut().zip(&pass.numbers).for_each(|(to, &place)| *to = A::of(row[place as usize]));
        let tiles = Cell::from_mut(tiles.as_chunks_mut::<W>().0).as_slice_of_cells();
        let lanes = Cell::from_mut(lanes).as_slice_of_cells();
        Self { pass, numbers, factor: A::of(factor), tiles, lanes, level }
    }

    /// Runs the pass over streams of the same length, at most `S` of them.
    pub(crate) fn run<'s, const S: usize>(&self, written: &'s mut [SliceMut<'_>], grad: Slice<'s>)
    where
        'm: 's,
    {
        let Pass { streams, registers, .. } = *self.pass;
        let mut views: [View<'s, '_, A, W>; S] = [const { View::Absent }; S];
        for (k, stream) in written.iter_mut().enumerate() {
            let s = if k == 0 { 0 } else { k + 1 };
            if self.pass.is_read(s) || self.pass.is_written(s) {
                views[s] = View::new(stream);
            }
        }
        if self.pass.is_read(1) {
            views[1] = View::of_grad(grad, self.factor);
        }
        let (mut few, mut many);
        let table: &mut [&'s [Vector<A, W>]] = if streams + registers <= FEW {
            few = [&[][..]; FEW];
            &mut few
        } else {
            many = [&[][..]; MANY];
            &mut many
        };
        table.iter_mut().zip(self.tiles.chunks_exact(Self::VECTORS)).for_each(|(slot, tile)| *slot = tile);
        self.walk(&mut views[..streams], grad.len(), table);
    }

    /// Runs the pass tile by tile; what is no whole vector comes last.
    fn walk<'s>(&self, views: &mut [View<'s, '_, A, W>], elements: usize, table: &mut [&'s [Vector<A, W>]])
    where
        'm: 's,
    {
        let level = self.level.at_hand();
        let far = elements > SMALL_CHUNK + SMALL_CHUNK / 2;
        let whole = elements / W * W;
        let direct = views.iter().all(|view| matches!(view, View::Absent | View::Direct(..) | View::Shared(..)));
        let count = self.pass.instructions.len();
        let tile = match (far, count) {
            (false, 1) if direct => LONG,
            (true, ..=2) if views.iter().all(View::is_full) => SHORT / size_of::<A>(),
            _ => TILE,
        };
        let parts = if tile < TILE { 1 } else { count.min(PARTS) };
        let mut at = 0;
        while at < elements {
            let n = if at < whole { tile.min(whole - at) } else { elements - at };
            self.fill(views, (at, n, whole), table);
            let (numbers, lanes) = (self.numbers, self.lanes);
            let tile = Tile { slots: &*table, numbers, lanes, count: n.div_ceil(W), at, elements: n };
            for (i, instruction) in self.pass.instructions.iter().enumerate() {
                if far && i < parts {
                    views.iter().for_each(|view| view.prefetch(at, n, (i, parts)));
                }
                Table::<A, W>::ALL[instruction.code as usize].at(level)(Job { tile: &tile, instruction });
            }
            self.store(views, (at, n, whole), table);
            at += n;
        }
    }

    /// Takes up what a tile reads: `n` elements from `at` on, of which those before `whole` are whole vectors.
    #[inline]
    fn fill<'s>(
        &self,
        views: &mut [View<'s, '_, A, W>],
        (at, n, whole): (usize, usize, usize),
        table: &mut [&'s [Vector<A, W>]],
    ) where
        'm: 's,
    {
        for (s, view) in views.iter_mut().enumerate() {
            match view {
                View::Direct(vectors, _) | View::Shared(vectors, _) if at < whole => {
                    table[s] = &vectors[at / W..][..n / W];
                }
                View::Shared(_, rest) => {
                    table[s] = &self.tiles[s * Self::VECTORS..][..1];
                    A::read(self.level, A::wrap(rest), table[s], A::ONE);
                }
                View::Grad(grad, factor) => A::read(self.level, grad.part(at, n), table[s], *factor),
                View::Direct(_, rest) => {
                    table[s] = &self.tiles[s * Self::VECTORS..][..1];
                    A::read(self.level, A::wrap(rest), table[s], A::ONE);
                }
                View::Staged(stream) if self.pass.is_read(s) => {
                    A::read(self.level, stream.as_slice().part(at, n), table[s], A::ONE);
                }
                _ => {}
            }
        }
    }

    /// Writes what was not computed where it lies.
    #[inline]
    fn store(
        &self,
        views: &mut [View<'_, '_, A, W>],
        (at, n, whole): (usize, usize, usize),
        table: &[&[Vector<A, W>]],
    ) {
        for (s, view) in views.iter_mut().enumerate().filter(|&(s, _)| self.pass.is_written(s)) {
            match view {
                View::Direct(_, rest) if at == whole => {
                    A::write(self.level, table[s], &mut A::wrap_mut(rest), (0, n));
                }
                View::Staged(stream) => A::write(self.level, table[s], stream, (at, n)),
                _ => {}
            }
        }
    }
}
