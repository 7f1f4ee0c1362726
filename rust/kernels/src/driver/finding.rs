//! The walks of programs before the one that writes: reductions of each tensor, and totals over all of them.
//!
//! Each tensor goes on as far as what it needs is known. A total is known when every tensor that adds to it has done
//! so. Sums are added in the order of chunks and lanes: the same bits for any number of threads. Totals keep what
//! rounding loses: the same for any order of tensors.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::alike::{Reducing, reduce_alike};
use super::bodies::{Bodies, Run};
use super::chunk::Chunk;
use super::pass::Walk;
use super::rows::RowList;
use crate::formats::SliceMut;
use crate::pool::{Panic, Pool, Serial, for_each};
use crate::program::{Joined, Lanes, Pass};
use crate::simd::Level;

/// Why the numbers of a step were not found.
#[derive(Debug)]
pub enum Stopped {
    /// A kernel panicked, which would be a defect of this crate. Nothing has been written.
    Panic(Panic),
    /// Some totals wait for each other: a tensor adds to one what it computes with another, and a second one the other
    /// way round.
    Totals,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panic(_) => "a kernel panicked",
            Self::Totals => "expected totals that can be computed one after the other, but some wait for each other",
        })
    }
}

impl std::error::Error for Stopped {}

/// A sum over all tensors.
#[derive(Clone, Copy, Debug)]
struct Sum {
    key: u32,
    /// How many tensors have still to add to it.
    waiting: usize,
    sum: f64,
    /// What the sum lost to rounding: with it, in which order tensors come does not matter.
    lost: f64,
}

impl Sum {
    /// Adds a number; what rounding loses is kept (Knuth, "The Art of Computer Programming" 2, section 4.2.2).
    fn add(&mut self, x: f64) {
        let sum = self.sum + x;
        let of_x = sum - self.sum;
        self.lost += (self.sum - (sum - of_x)) + (x - of_x);
        self.sum = sum;
    }

    fn get(&self) -> f64 {
        if self.sum.is_finite() { self.sum + self.lost } else { self.sum }
    }
}

/// What was found; kept for its memory.
#[derive(Debug, Default)]
pub(super) struct Finding {
    totals: Vec<Sum>,
    /// Of each of the things done, whether it goes on in this round.
    going: Vec<bool>,
    /// For each chunk so many numbers as bits: threads write them where they belong.
    found: Vec<AtomicU64>,
}

/// How chunks are walked over.
pub(super) enum Way<'w> {
    /// One after the other, so many in a row being alike. Programs that can wait until their tensor is updated do, if
    /// that is wanted.
    InTurn(&'w [usize], bool),
    /// By several threads.
    Shared(&'w mut Walk, &'w dyn Pool),
}

impl Way<'_> {
    /// Whether nothing is to be found for a program.
    fn is_done(&self, run: &Run<'_>) -> bool {
        run.is_found() || matches!(self, Self::InTurn(_, true)) && run.can_wait()
    }
}

/// The reductions that are found at a time by a chunk without more memory.
const FEW: usize = 4;

impl Finding {
    /// Finds all numbers of all programs.
    pub(super) fn run<'a>(
        &mut self,
        bodies: &mut Bodies<'a>,
        (chunks, streams): (&[Chunk<'a>], &mut [SliceMut<'a>]),
        rows: &RowList<'a>,
        mut way: Way<'_>,
        level: Level,
    ) -> Result<(), Stopped> {
        if bodies.runs().all(|run| way.is_done(run)) {
            return Ok(());
        }
        self.totals.clear();
        for total in bodies.runs().flat_map(|run| run.program.totals()) {
            self.total(total.key).waiting += 1;
        }
        let stride = bodies.runs().map(|run| run.program.most_reductions()).max().unwrap_or(0);
        self.found.resize_with(chunks.len() * stride, AtomicU64::default);
        loop {
            self.tell(bodies);
            if !self.choose(bodies, &way) {
                let done = bodies.runs().all(|run| way.is_done(run));
                return if done { Ok(()) } else { Err(Stopped::Totals) };
            }
            let known = &*bodies;
            let going = |chunk: &Chunk<'_>| pass_of(known, chunk).is_some() && self.going[chunk.body as usize];
            if chunks.iter().any(going) {
                self.walk(bodies, (chunks, &mut *streams), rows, &mut way, level, stride).map_err(Stopped::Panic)?;
            }
            self.join(bodies, chunks, stride);
            self.go_on(bodies);
        }
    }

    /// Finds the next reductions of all chunks that are going on.
    fn walk<'a>(
        &self,
        bodies: &mut Bodies<'a>,
        (chunks, streams): (&[Chunk<'a>], &mut [SliceMut<'a>]),
        rows: &RowList<'a>,
        way: &mut Way<'_>,
        level: Level,
        stride: usize,
    ) -> Result<(), Panic> {
        let (going, found) = (self.going.as_slice(), self.found.as_slice());
        let alone = |chunk: &Chunk<'a>, written: &mut [SliceMut<'a>], bodies: &Bodies<'_>, found: &[AtomicU64]| {
            if let Some(program) = pass_of(bodies, chunk) {
                find(chunk, program, (written, rows), level, found);
            }
        };
        match way {
            Way::InTurn(alike, _) => for_each(
                &Serial,
                &mut [(streams, bodies)],
                |_| 1,
                |_, (streams, bodies)| {
                    reduce_alike(streams, chunks, alike, bodies, Reducing { going, found, stride }, level, alone);
                },
            ),
            Way::Shared(walk, pool) => {
                let bodies = &*bodies;
                walk.each(*pool, chunks, streams, |i, chunk, written| {
                    if going[chunk.body as usize] {
                        alone(chunk, written, bodies, &found[i * stride..][..stride]);
                    }
                })
            }
        }
    }

    /// The total of a call.
    fn total(&mut self, key: u32) -> &mut Sum {
        let place = self.totals.iter().position(|total| total.key == key).unwrap_or_else(|| {
            self.totals.push(Sum { key, waiting: 0, sum: 0.0, lost: 0.0 });
            self.totals.len() - 1
        });
        &mut self.totals[place]
    }

    /// Adds to totals what has become known.
    fn tell(&mut self, bodies: &mut Bodies<'_>) {
        for place in 0..bodies.len() {
            let Some(&run) = bodies.run(place) else { continue };
            for total in run.program.totals().iter().filter(|total| (run.told..run.known).contains(&total.level)) {
                let own = bodies.row_of(&run)[total.of];
                let sum = self.total(total.key);
                sum.add(own);
                sum.waiting -= 1;
            }
            if let Some(run) = bodies.run_mut(place) {
                run.told = run.known;
            }
        }
    }

    /// Chooses what can go on; `false`: nothing can.
    fn choose(&mut self, bodies: &Bodies<'_>, way: &Way<'_>) -> bool {
        self.going.clear();
        for place in 0..bodies.len() {
            let going = bodies.run(place).is_some_and(|run| {
                let ready = |key| self.totals.iter().any(|total| total.key == key && total.waiting == 0);
                !way.is_done(run)
                    && run.program.totals().iter().filter(|total| total.level + 1 == run.known).all(|t| ready(t.key))
            });
            self.going.push(going);
        }
        self.going.contains(&true)
    }

    /// Brings what was found in chunks together.
    fn join(&self, bodies: &mut Bodies<'_>, chunks: &[Chunk<'_>], stride: usize) {
        for (i, chunk) in chunks.iter().enumerate().filter(|(_, chunk)| self.going[chunk.body as usize]) {
            let Some(&run) = bodies.run(chunk.body as usize) else { continue };
            let Some(pass) = run.program.finding(run.known - 1) else { continue };
            let row = bodies.row_mut(&run);
            for (&(joined, place), found) in pass.reductions.iter().zip(&self.found[i * stride..]) {
                let found = f64::from_bits(found.load(Ordering::Relaxed));
                row[place as usize] = joined.both(row[place as usize], found);
            }
        }
    }

    /// Computes the next numbers of all that goes on.
    fn go_on(&mut self, bodies: &mut Bodies<'_>) {
        for place in 0..bodies.len() {
            let Some(&run) = bodies.run(place).filter(|_| self.going[place]) else { continue };
            for total in run.program.totals().iter().filter(|total| total.level + 1 == run.known) {
                let sum = self.total(total.key).get();
                bodies.row_mut(&run)[total.place] = sum;
            }
            run.program.compute(run.known, bodies.row_mut(&run), &[], 0.0);
            if let Some(run) = bodies.run_mut(place) {
                run.known += 1;
            }
        }
    }
}

/// The walk that finds the next reductions of a chunk, with the numbers of its tensor and how many states it has.
fn pass_of<'b>(bodies: &'b Bodies<'_>, chunk: &Chunk<'_>) -> Option<(&'b Pass, &'b [f64], usize)> {
    let run = bodies.run(chunk.body as usize)?;
    Some((run.program.finding(run.known - 1)?, bodies.row_of(run), run.program.states()))
}

/// Finds the reductions of a chunk.
fn find(
    chunk: &Chunk<'_>,
    program: (&Pass, &[f64], usize),
    streams: (&mut [SliceMut<'_>], &RowList<'_>),
    level: Level,
    found: &[AtomicU64],
) {
    let reductions = &program.0.reductions;
    let (mut few, mut many);
    let lanes: &mut [Lanes] = if reductions.len() <= FEW {
        few = [[0.0; _]; FEW];
        &mut few
    } else {
        many = [[0.0; _]; crate::program::MAX_REDUCTIONS];
        &mut many
    };
    chunk.find(program, streams, level, lanes);
    for ((&(joined, _), lanes), found) in reductions.iter().zip(lanes).zip(found) {
        let joined: Joined = joined;
        found.store(joined.lanes(*lanes).to_bits(), Ordering::Relaxed);
    }
}
