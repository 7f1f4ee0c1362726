//! Strided tensors, updated where they lie as far as that is possible.
//!
//! A stream whose rows are contiguous is updated in place, row by row. Any other is gathered into a tile on the stack,
//! and scattered back if it is written. Where a stream runs across the rows (a transposed gradient, channels last),
//! tiles are so many rows high that its cache lines are used whole.

use std::ops::{Deref, DerefMut};

use super::apart::Apart;
use super::body::Body;
use super::gather::{Place, ahead, gather, scatter};
use super::measured::{Lanes, update};
use super::source::Source;
use super::tensors::origin;
use super::types::{Types, match_types};
use crate::chunks::CHUNK;
use crate::formats::{Element, Slice, SliceMut, Storage, bf16, f16};
use crate::layout::Layout;
use crate::layout::grid::{Grid, Tile, Tiles};
use crate::rule::MAX_STATES;
use crate::simd::Level;

/// Rows that a chunk has at least, if some stream runs across them: so many elements of it share a cache line.
const ROWS: usize = 16;
/// Bytes of what is gathered of parameter, gradient, and states each: together they stay near the processor.
const BYTES: usize = 16 * 1024;
/// Shorter rows are gathered, too: to take up a row costs as much as a few dozen elements.
const SHORT: usize = 32;
/// How many elements ahead a row that is worked on in place is prefetched, in whole rows.
const AHEAD: usize = 512;

/// Elements of a chunk.
pub(super) fn chunk(layout: &Layout, states: usize) -> usize {
    let (block, grid) = (layout.block(states).max(1), layout.grid());
    if grid.crossed && block <= grid.step {
        return (CHUNK / grid.step).max(ROWS) * grid.step;
    }
    (CHUNK / block).max(1) * block
}

/// Updates a range of elements.
pub(super) fn run(
    body: &Body<'_>,
    level: Level,
    factor: f64,
    types: Types,
    (written, grad): (&mut [SliceMut<'_>], Slice<'_>),
    (layout, range): (&Layout, (usize, usize)),
    sums: Option<&mut Lanes>,
) {
    macro_rules! in_tiles {
        ($p:ty, $g:ty, $s:ty) => {{
            let Some((param, states)) = written.split_first_mut() else { return };
            let (Some(param), Some(grad)) = (<$p>::slice_mut(param), <$g>::slice(&grad)) else { return };
            let state = states.first_mut().and_then(|state| <$s>::slice_mut(state)).unwrap_or_default();
            if sums.is_none() && one_by_one(body, level, factor, (param, grad, state), (layout, range)) {
                return;
            }
            const ELEMENTS: usize = BYTES / largest([size_of::<$p>(), size_of::<$g>(), size_of::<$s>()]);
            let mut states = states.iter_mut().map(|state| <$s>::slice_mut(state));
            let states = std::array::from_fn(|_| states.next().flatten());
            let (mut p, mut g) = ([<$p>::default(); ELEMENTS], [<$g>::default(); ELEMENTS]);
            let mut s = [<$s>::default(); ELEMENTS];
            let mut source = Strided::new(layout, range, param, grad, states, (&mut p, &mut g, &mut s));
            update(body, level, factor, types, &mut source, sums);
        }};
    }
    match_types!(types, in_tiles, unreachable!("looked up when pushed"));
}

/// Tries to update a range without tiles, where that is the better way.
fn one_by_one<P, G, S>(
    body: &Body<'_>,
    level: Level,
    factor: f64,
    (param, grad, state): (&mut [P], &[G], &mut [S]),
    (layout, range): (&Layout, (usize, usize)),
) -> bool
where
    P: Element,
    G: Element<Arith = P::Arith>,
    S: Element<Arith = P::Arith>,
{
    let Body::Rule(constants) = body else { return false };
    let (grid, streams) = (layout.grid(), if state.is_empty() { 2 } else { 3 });
    if (0..streams).all(|s| in_place(&grid, s)) {
        return false;
    }
    let origins = [origin(layout, 0, range.0), 0, if state.is_empty() { 0 } else { origin(layout, 2, range.0) }];
    let mut range = Apart { layout, grid, range, param, grad, state, origins };
    range.serves() && range.update(constants, level, factor)
}

const fn largest([a, b, c]: [usize; 3]) -> usize {
    let largest = if a > b { a } else { b };
    if largest > c { largest } else { c }
}

/// Whether stream `s` is worked on in place.
fn in_place(grid: &Grid<'_>, s: usize) -> bool {
    grid.is_dense(s) || (grid.has_rows(s) && grid.columns >= SHORT)
}

/// One of the tensors.
struct Stream<'c, M, T> {
    memory: M,
    /// Its number in the layout, and where its memory begins in the slice that the layout speaks of.
    number: usize,
    origin: usize,
    /// What is gathered of it; `None`: it is worked on in place.
    tile: Option<&'c mut [T]>,
    /// Where the tile lies.
    place: Place,
}

impl<M: Deref<Target = [T]>, T: Copy> Stream<'_, M, T> {
    fn take_up(&mut self, layout: &Layout, grid: &Grid<'_>, tile: Tile) {
        let first = layout.position(self.number, tile.first) - self.origin;
        self.place = Place { first, row: grid.row[self.number], column: grid.column[self.number] };
        if let Some(gathered) = &mut self.tile {
            gather(&mut gathered[..tile.len()], tile.columns, &self.memory, self.place);
        }
    }

    /// Whether all of the tile lies in one piece.
    fn is_whole(&self, tile: Tile) -> bool {
        self.tile.is_some() || tile.rows == 1 || self.place.row == tile.columns as isize
    }

    /// Prefetches what is in place of a row that follows the one that element `first` begins: a gap lies in between.
    fn prefetch(&self, tile: Tile, first: usize) {
        if self.tile.is_none() && self.place.row != tile.columns as isize {
            let row = first / tile.columns + 1 + AHEAD / tile.columns;
            ahead(&self.memory, self.place.at(row, 0), tile.columns);
        }
    }

    /// Some elements of the tile, from the beginning of a row on.
    fn run(&self, tile: Tile, first: usize, len: usize) -> &[T] {
        match &self.tile {
            Some(gathered) => &gathered[first..first + len],
            None => &self.memory[self.place.at(first / tile.columns, 0)..][..len],
        }
    }
}

impl<M: DerefMut<Target = [T]>, T: Copy> Stream<'_, M, T> {
    fn write_back(&mut self, tile: Tile) {
        if let Some(gathered) = &self.tile {
            scatter(&gathered[..tile.len()], tile.columns, &mut self.memory, self.place);
        }
    }

    fn run_mut(&mut self, tile: Tile, first: usize, len: usize) -> &mut [T] {
        match &mut self.tile {
            Some(gathered) => &mut gathered[first..first + len],
            None => &mut self.memory[self.place.at(first / tile.columns, 0)..][..len],
        }
    }
}

/// The elements of a chunk: tile by tile, and those of a tile in runs.
struct Strided<'c, P, G, S> {
    layout: &'c Layout,
    grid: Grid<'c>,
    tiles: Tiles<'c>,
    param: Stream<'c, &'c mut [P], P>,
    grad: Stream<'c, &'c [G], G>,
    states: [Option<Stream<'c, &'c mut [S], S>>; MAX_STATES],
    tile: Tile,
    /// Elements of a run: a row, or the whole tile where that lies in one piece.
    run: usize,
    /// Elements of the tile that have been handed out.
    done: usize,
}

impl<'c, P: Storage, G: Storage, S: Storage> Strided<'c, P, G, S> {
    /// The last three are room for what is gathered: of the parameter, of the gradient, of all states together.
    fn new(
        layout: &'c Layout,
        range: (usize, usize),
        param: &'c mut [P],
        grad: &'c [G],
        states: [Option<&'c mut [S]>; MAX_STATES],
        (p, g, mut s): (&'c mut [P], &'c mut [G], &'c mut [S]),
    ) -> Self {
        let grid = layout.grid();
        let gathered = |number: usize| !in_place(&grid, number);
        let streams = 2 + states.iter().flatten().count();
        let elements = s.len() / (2..streams).filter(|&number| gathered(number)).count().max(1);
        let origin = |number| origin(layout, number, range.0);
        let mut numbers = 2..;
        Self {
            layout,
            grid,
            tiles: grid.tiles(range, if (0..streams).any(gathered) { elements } else { usize::MAX }),
            param: Stream {
                memory: param,
                number: 0,
                origin: origin(0),
                tile: gathered(0).then_some(p),
                place: Place::default(),
            },
            grad: Stream {
                memory: grad,
                number: 1,
                origin: 0,
                tile: gathered(1).then_some(g),
                place: Place::default(),
            },
            states: states.map(|state| {
                let (number, memory) = (numbers.next()?, state?);
                let tile = if gathered(number) { s.split_off_mut(..elements) } else { None };
                Some(Stream { memory, number, origin: origin(number), tile, place: Place::default() })
            }),
            tile: Tile::default(),
            run: 0,
            done: 0,
        }
    }

    /// Writes the last tile back and takes up the next; `false` if there is none.
    fn turn(&mut self) -> bool {
        let Self { layout, grid, param, grad, states, .. } = self;
        if self.tile.len() > 0 {
            param.write_back(self.tile);
            states.iter_mut().flatten().for_each(|state| state.write_back(self.tile));
        }
        let Some(tile) = self.tiles.next() else { return false };
        param.take_up(layout, grid, tile);
        grad.take_up(layout, grid, tile);
        states.iter_mut().flatten().for_each(|state| state.take_up(layout, grid, tile));
        let whole =
            param.is_whole(tile) && grad.is_whole(tile) && states.iter().flatten().all(|state| state.is_whole(tile));
        (self.tile, self.run, self.done) = (tile, if whole { tile.len() } else { tile.columns }, 0);
        true
    }
}

impl<P: Storage, G: Storage, S: Storage> Source for Strided<'_, P, G, S> {
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<Slice<'s>> {
        if self.done == self.tile.len() && !self.turn() {
            return None;
        }
        let (tile, first, len) = (self.tile, self.done, self.run);
        self.done += len;
        if len < tile.len() {
            self.param.prefetch(tile, first);
            self.grad.prefetch(tile, first);
            self.states.iter().flatten().for_each(|state| state.prefetch(tile, first));
        }
        let [param, states @ ..] = slots else { return None };
        *param = P::wrap_mut(self.param.run_mut(tile, first, len));
        for (slot, state) in states.iter_mut().zip(&mut self.states) {
            let Some(state) = state else { break };
            *slot = S::wrap_mut(state.run_mut(tile, first, len));
        }
        Some(G::wrap(self.grad.run(tile, first, len)))
    }
}
