//! A step as it is run.

use std::sync::atomic::Ordering;

use super::alike::{Likeness, run_alike};
use super::bodies::Bodies;
use super::chunk::Chunk;
use super::finding::{Finding, Stopped, Way};
use super::measured::{Lanes, Measured};
use super::pass::Walk;
use super::rows::RowList;
use crate::chunks::{SERIAL, recycled};
use crate::factored::Factored;
use crate::formats::{Refused, SliceMut};
use crate::pool::{Panic, Pool, Serial, for_each};
use crate::program::Program;
use crate::rules::Constants;
use crate::simd::Level;

/// A step over many tensors: filled, run once, and emptied for reuse without giving memory back.
#[derive(Debug, Default)]
pub struct Step<'a> {
    /// What is written, chunk after chunk: its parameter, its states.
    pub(super) streams: Vec<SliceMut<'a>>,
    pub(super) chunks: Vec<Chunk<'a>>,
    pub(super) bodies: Bodies<'a>,
    pub(super) elements: usize,
    /// Parameters whose rule looks at them whole.
    pub(super) factored: Factored<'a>,
    /// How many chunks in a row are alike, and so run by the same loop with the same constants.
    pub(super) alike: Vec<usize>,
    /// What the last ones of them have in common.
    pub(super) like: Option<Likeness>,
    pub(super) rows: RowList<'a>,
    walk: Walk,
    finding: Finding,
}

impl<'a> Step<'a> {
    /// Registers constants; tensors pushed from now on use them.
    pub fn constants(&mut self, constants: Constants) {
        self.bodies.rule(constants);
    }

    /// Registers a program with the numbers of its inputs; tensors pushed from now on are updated by it. The same again
    /// costs nothing.
    ///
    /// # Errors
    /// If the program has another number of inputs.
    #[inline]
    pub fn program(&mut self, program: &'a Program, inputs: &[f64]) -> Result<(), Refused> {
        self.bodies.program(program, inputs)
    }

    /// Finds what programs need to know before they write: reductions of each tensor, and totals over all of them.
    /// Writes nothing. A second call does nothing.
    ///
    /// # Errors
    /// If totals wait for each other, or for a panic in a kernel, which would be a defect of this crate.
    pub fn reduce(&mut self, pool: &dyn Pool, level: Level) -> Result<(), Stopped> {
        self.find(pool, level, false)
    }

    /// As [`Step::reduce`], but what one small tensor alone decides may be left for [`Step::run`] to find.
    ///
    /// # Errors
    /// As [`Step::reduce`].
    pub fn reduce_together(&mut self, pool: &dyn Pool, level: Level) -> Result<(), Stopped> {
        self.find(pool, level, true)
    }

    /// Finds numbers of programs; of a small step not those that can `wait` until their tensor is updated.
    fn find(&mut self, pool: &dyn Pool, level: Level, wait: bool) -> Result<(), Stopped> {
        let Self { streams, chunks, bodies, elements, rows, alike, walk, finding, .. } = self;
        let way = if *elements < SERIAL { Way::InTurn(alike, wait) } else { Way::Shared(walk, pool) };
        finding.run(bodies, (chunks, streams), rows, way, level)
    }

    /// A number of a tensor that has a program; those tensors are counted in the order in which they were pushed.
    /// `None`: it is not known yet, or the program does not compute it.
    pub fn value(&self, tensor: usize, node: usize) -> Option<f64> {
        self.bodies.value(tensor, node)
    }

    /// Finds what is still to be found before anything is written.
    fn be_ready(&mut self, pool: &dyn Pool, level: Level, wait: bool) -> Result<(), Panic> {
        self.find(pool, level, wait).map_err(|stopped| match stopped {
            Stopped::Panic(panic) => panic,
            stopped @ Stopped::Totals => Box::new(stopped.to_string()),
        })
    }

    /// How many elements are to be updated.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Multiplies the gradient of every parameter pushed so far, but for those that are updated whole.
    pub fn scale_gradients(&mut self, factor: f64) {
        self.chunks.iter_mut().for_each(|chunk| chunk.grad_factor *= factor);
    }

    /// Updates every tensor.
    ///
    /// # Errors
    /// The payload of a panic in a kernel, which would be a defect of this crate: some tensors are then half written.
    pub fn run(&mut self, pool: &dyn Pool, level: Level) -> Result<(), Panic> {
        self.be_ready(pool, level, true)?;
        let Self { streams, chunks, bodies, elements, factored, rows, alike, walk, .. } = self;
        let (chunks, rows) = (chunks.as_slice(), &*rows);
        if *elements < SERIAL {
            for_each(
                &Serial,
                &mut [(streams.as_mut_slice(), bodies)],
                |_| 1,
                |_, (streams, bodies)| run_alike(streams, chunks, alike, bodies, rows, level),
            )?;
            return factored.run(&Serial, level);
        }
        let bodies = &*bodies;
        walk.each(pool, chunks, streams, |_, chunk, written| chunk.run(written, bodies, rows, level, None))?;
        factored.run(pool, level)
    }

    /// As [`Step::run`], and measures on the way all parameters but those of rules that look at them whole.
    ///
    /// # Errors
    /// As [`Step::run`].
    pub fn run_measured(&mut self, measured: &mut Measured, pool: &dyn Pool, level: Level) -> Result<(), Panic> {
        self.be_ready(pool, level, false)?;
        let Self { streams, chunks, bodies, elements, factored, rows, walk, .. } = self;
        measured.chunks.resize_with(chunks.len(), Default::default);
        let (bodies, rows, found) = (&*bodies, &*rows, measured.chunks.as_slice());
        let pool = if *elements < SERIAL { &Serial } else { pool };
        walk.each(pool, chunks, streams, |i, chunk, written| {
            let mut lanes = Lanes::default();
            chunk.run(written, bodies, rows, level, Some(&mut lanes));
            let sums = lanes.totals(chunk.grad_factor);
            found[i].iter().zip(sums).for_each(|(to, sum)| to.store(sum, Ordering::Relaxed));
        })?;
        factored.run(pool, level)
    }

    /// Empties the step, keeping its memory.
    pub fn clear(&mut self) {
        self.streams.clear();
        self.chunks.clear();
        self.bodies.clear();
        self.elements = 0;
        self.factored.clear();
        self.alike.clear();
        self.like = None;
        self.rows.clear();
    }

    /// Empties the step, keeping its memory for tensors of any lifetime.
    pub fn recycle<'b>(mut self) -> Step<'b> {
        self.clear();
        let factored = self.factored.recycle();
        Step {
            streams: recycled(self.streams),
            chunks: recycled(self.chunks),
            bodies: self.bodies.recycle(),
            elements: 0,
            factored,
            alike: self.alike,
            like: None,
            rows: self.rows.recycle(),
            walk: self.walk,
            finding: self.finding,
        }
    }
}

impl Measured {
    /// To be called after each push: the chunks pushed since the last call are one parameter's.
    pub fn pushed(&mut self, step: &Step<'_>) {
        self.ends.push(step.chunks.len());
    }
}
