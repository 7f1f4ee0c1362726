//! Programs of which each tensor has numbers of its own: one tensor after the other, and over each one walk after the
//! other while it is near. What they have in common is prepared once.

use std::sync::atomic::{AtomicU64, Ordering};

use super::programmed::in_room;
use crate::formats::{Slice, SliceMut};
use crate::program::{Computes, Lanes, MAX_REDUCTIONS, Machine, Pass, Program, STREAMS};
use crate::simd::Level;

/// Tensors of the same program, each in one piece.
pub(super) trait Individual {
    /// Puts the streams that come next into `slots`, parameter first, and returns their gradient and numbers; `None`:
    /// nothing is left.
    fn next<'s>(&'s mut self, slots: &mut [SliceMut<'s>]) -> Option<(Slice<'s>, Own<'s>)>;
}

/// The numbers of a tensor.
pub(super) struct Own<'s> {
    pub(super) row: &'s mut [f64],
    /// How many levels of them are known.
    pub(super) known: &'s mut usize,
    /// Where the next reductions go, if nothing else is wanted.
    pub(super) found: Option<&'s [AtomicU64]>,
}

/// Finds what is still to be known of each tensor, and updates it; or finds its next reductions. `double`: the
/// arithmetic is in `f64`.
pub(super) fn run(program: &Program, level: Level, factor: f64, double: bool, source: &mut dyn Individual) {
    let each = Each { program, level, factor, source };
    if double { each.begin::<f64>() } else { each.begin::<f32>() }
}

struct Each<'w> {
    program: &'w Program,
    level: Level,
    factor: f64,
    source: &'w mut dyn Individual,
}

/// The reductions that are found at a time without more memory.
const FEW: usize = 4;

impl Each<'_> {
    fn begin<A: Computes>(self) {
        let room = self.program.walks().map(Pass::room).max().unwrap_or(0);
        in_room::<A>(room, |room| {
            if self.program.most_reductions() <= FEW {
                self.among(room, &mut [[0.0; _]; FEW]);
            } else {
                self.among(room, &mut [[0.0; _]; MAX_REDUCTIONS]);
            }
        });
    }

    fn among<A: Computes>(self, room: &mut [A], lanes: &mut [Lanes]) {
        if self.program.states() <= 3 { self.each::<A, 5>(room, lanes) } else { self.each::<A, STREAMS>(room, lanes) }
    }

    /// Takes up all that the source hands out, at most so many streams.
    fn each<A: Computes, const S: usize>(self, room: &mut [A], lanes: &mut [Lanes]) {
        let Self { program, level, factor, source } = self;
        loop {
            let mut slots: [SliceMut<'_>; S] = std::array::from_fn(|_| SliceMut::default());
            let Some((grad, Own { row, known, found })) = source.next(&mut slots) else { return };
            let written = &mut slots[..1 + program.states()];
            let mut walk = |pass: &Pass, row: &[f64], lanes: &mut [Lanes]| {
                walk::<A, S>((pass, row), (level, factor), room, lanes, (&mut *written, grad));
            };
            if let Some(found) = found {
                if let Some(pass) = program.finding(*known - 1) {
                    walk(pass, row, lanes);
                    for ((&(joined, _), lanes), found) in pass.reductions.iter().zip(&*lanes).zip(found) {
                        found.store(joined.lanes(*lanes).to_bits(), Ordering::Relaxed);
                    }
                }
                continue;
            }
            while *known < program.levels() {
                if let Some(pass) = program.finding(*known - 1) {
                    walk(pass, row, lanes);
                    for (&(joined, place), lanes) in pass.reductions.iter().zip(&*lanes) {
                        let to = &mut row[place as usize];
                        *to = joined.both(*to, joined.lanes(*lanes));
                    }
                }
                program.compute(*known, row, &[], 0.0);
                *known += 1;
            }
            if let Some(pass) = program.writing() {
                walk(pass, row, lanes);
            }
        }
    }
}

/// One walk over streams that lie in one piece.
fn walk<A: Computes, const S: usize>(
    (pass, row): (&Pass, &[f64]),
    numbers: (Level, f64),
    room: &mut [A],
    lanes: &mut [Lanes],
    (written, grad): (&mut [SliceMut<'_>], Slice<'_>),
) {
    for lanes in &mut lanes[..pass.reductions.len()] {
        *lanes = [0.0; _];
    }
    let room = &mut room[..pass.room()];
    match (size_of::<A>() == 4, numbers.0.is_wide() && pass.is_wide()) {
        (true, true) => Machine::<A, 16>::new(pass, row, numbers, room, lanes).run::<S>(written, grad),
        (true, false) | (false, true) => Machine::<A, 8>::new(pass, row, numbers, room, lanes).run::<S>(written, grad),
        (false, false) => Machine::<A, 4>::new(pass, row, numbers, room, lanes).run::<S>(written, grad),
    }
}
