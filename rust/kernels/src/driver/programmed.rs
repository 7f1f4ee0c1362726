//! A walk of a program over streams: room for its tiles, the SIMD level, and streams whose elements lie apart.

use super::source::Source;
use super::tensors::{in_layout, origin};
use crate::arithmetic::Real;
use crate::formats::{Element, Slice, SliceMut};
use crate::layout::Layout;
use crate::program::{Computes, LARGEST_ROOM, Lanes, Machine, Pass, STREAMS};
use crate::simd::Level;

/// Runs a pass of a program, with the numbers of a tensor and so many states, over all that a source hands out.
/// Reductions add to `lanes`. `double`: its arithmetic is in `f64`.
pub(super) fn run(
    program: (&Pass, &[f64], usize),
    level: Level,
    factor: f64,
    double: bool,
    source: &mut dyn Source,
    lanes: &mut [Lanes],
) {
    let walk = Walking { program, level, factor, source, lanes };
    if double { walk.begin::<f64>() } else { walk.begin::<f32>() }
}

/// What a walk needs before its arithmetic is known.
struct Walking<'w> {
    program: (&'w Pass, &'w [f64], usize),
    level: Level,
    factor: f64,
    source: &'w mut dyn Source,
    lanes: &'w mut [Lanes],
}

/// Memory for tiles, each of whole cache lines.
#[repr(align(64))]
struct Room<A, const N: usize>([A; N]);

/// Hands over room for tiles on the stack, no more than is needed by far: it is cleared.
pub(super) fn in_room<A: Computes>(needed: usize, run: impl FnOnce(&mut [A])) {
    match needed {
        0..=1552 => in_room_of::<A, 1552>(needed, run),
        1553..=8192 => in_room_of::<A, 8192>(needed, run),
        _ => in_room_of::<A, LARGEST_ROOM>(needed, run),
    }
}

#[inline(never)]
fn in_room_of<A: Computes, const N: usize>(needed: usize, run: impl FnOnce(&mut [A])) {
    let mut room = Room([A::ZERO; N]);
    run(&mut room.0[..needed]);
}

impl Walking<'_> {
    fn begin<A: Computes>(self) {
        in_room::<A>(self.program.0.room(), |room| self.within(room));
    }

    fn within<A: Computes>(self, room: &mut [A]) {
        // vectors of 64 bytes where the processor has them and the pass gains, else of 32
        match (size_of::<A>() == 4, self.level.is_wide() && self.program.0.is_wide()) {
            (true, true) => self.among::<A, 16>(room),
            (true, false) | (false, true) => self.among::<A, 8>(room),
            (false, false) => self.among::<A, 4>(room),
        }
    }

    fn among<A: Computes, const W: usize>(self, room: &mut [A]) {
        if self.program.2 <= 3 { self.each::<A, W, 5>(room) } else { self.each::<A, W, STREAMS>(room) }
    }

    /// Runs the pass over all that the source hands out, at most so many streams.
    fn each<A: Computes, const W: usize, const S: usize>(self, room: &mut [A]) {
        let Self { program: (pass, row, states), level, factor, source, lanes } = self;
        let machine = Machine::<A, W>::new(pass, row, (level, factor), room, lanes);
        loop {
            let mut slots: [SliceMut<'_>; S] = std::array::from_fn(|_| SliceMut::default());
            let Some(grad) = source.next(&mut slots) else { return };
            machine.run::<S>(&mut slots[..1 + states], grad);
        }
    }
}

/// Elements of a tile that is gathered.
const TILE: usize = 256;

/// Streams whose elements lie apart: gathered, and scattered again if they are written.
pub(super) struct Gathered<'g, 'a, A> {
    written: &'g mut [SliceMut<'a>],
    grad: Slice<'g>,
    layout: &'g Layout,
    range: (usize, usize),
    /// What is done, in walking order, and how many elements of it are in the tiles.
    done: usize,
    held: usize,
    tiles: [[A; TILE]; STREAMS],
    /// Whether anything is written; and which of the streams.
    pass: &'g Pass,
}

impl<'g, 'a, A: Computes> Gathered<'g, 'a, A> {
    pub(super) fn new(
        pass: &'g Pass,
        (written, grad): (&'g mut [SliceMut<'a>], Slice<'g>),
        (layout, range): (&'g Layout, (usize, usize)),
    ) -> Self {
        Self { written, grad, layout, range, done: range.0, held: 0, tiles: [[A::ZERO; TILE]; STREAMS], pass }
    }

    /// Writes the tiles back that are written.
    fn scatter(&mut self) {
        let Self { layout, range, done, held, .. } = *self;
        for (k, (stream, tile)) in self.written.iter_mut().zip(&self.tiles).enumerate() {
            let s = in_layout(k);
            if !self.pass.is_written(s) {
                continue;
            }
            let origin = origin(layout, s, range.0);
            macro_rules! each {
                ($($Variant:ident),*) => {
                    match stream {
                        $(SliceMut::$Variant(x) => {
                            layout.walk(s, done - held, held, |i, at| x[at - origin] = narrowed(tile[i]));
                        })*
                        SliceMut::U8(_) | SliceMut::I16(_) => unreachable!("refused when pushed"),
                    }
                };
            }
            each!(F64, F32, F16, Bf16);
        }
    }

    /// Fills the tiles with what comes next.
    fn gather(&mut self) {
        let Self { layout, range, done, .. } = *self;
        let n = TILE.min(range.1 - done);
        let streams = self.written.iter().map(SliceMut::as_slice).enumerate().map(|(k, x)| (in_layout(k), x));
        let origin = |s| if s == 1 { 0 } else { origin(layout, s, range.0) };
        for ((s, stream), tile) in streams.chain([(1, self.grad)]).zip(&mut self.tiles) {
            let origin = origin(s);
            macro_rules! each {
                ($($Variant:ident),*) => {
                    match stream {
                        $(Slice::$Variant(x) => layout.walk(s, done, n, |i, at| tile[i] = widened(x[at - origin])),)*
                        Slice::U8(_) | Slice::I16(_) => unreachable!("refused when pushed"),
                    }
                };
            }
            each!(F64, F32, F16, Bf16);
        }
        (self.done, self.held) = (done + n, n);
    }
}

/// A stored number in the arithmetic of its step, which is its own.
#[inline(always)]
fn widened<E: Element, A: Real>(x: E) -> A {
    let wide: f64 = x.load().into();
    A::of(wide)
}

/// A number as it is stored.
#[inline(always)]
fn narrowed<E: Element, A: Real>(x: A) -> E {
    E::store(E::Arith::of(x.into()))
}

impl<A: Computes> Source for Gathered<'_, '_, A> {
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<Slice<'s>> {
        self.scatter();
        if self.done == self.range.1 {
            self.held = 0;
            return None;
        }
        self.gather();
        let (n, streams) = (self.held, self.written.len());
        let (tiles, grad) = self.tiles.split_at_mut(streams);
        slots.iter_mut().zip(tiles).for_each(|(slot, tile)| *slot = A::wrap_mut(&mut tile[..n]));
        Some(A::wrap(&grad[0][..n]))
    }
}
