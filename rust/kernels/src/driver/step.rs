//! A step as it is run.

use std::sync::atomic::Ordering;

use super::alike::{Likeness, run_alike};
use super::body;
use super::chunk::{Chunk, Place};
use super::measured::{Lanes, Measured};
use super::rows::RowList;
use crate::chunks::{PLACES_AHEAD, SERIAL, recycled};
use crate::factored::Factored;
use crate::pool::{Panic, Pool, Serial, for_each};
use crate::rules::Constants;
use crate::simd::Level;

/// A step over many tensors: filled, run once, and emptied for reuse without giving memory back.
#[derive(Debug, Default)]
pub struct Step<'a> {
    pub(super) chunks: Vec<Chunk<'a>>,
    pub(super) constants: Vec<Constants>,
    pub(super) elements: usize,
    /// Parameters whose rule looks at them whole.
    pub(super) factored: Factored<'a>,
    /// Where the chunks lie, to prefetch those that come next: many small ones lie anywhere.
    pub(super) places: Vec<Place>,
    /// How many chunks in a row are alike, and so run by the same loop with the same constants.
    pub(super) alike: Vec<usize>,
    /// What the last ones of them have in common.
    pub(super) like: Option<Likeness>,
    /// How many states the constants registered last want.
    pub(super) states: usize,
    pub(super) rows: RowList<'a>,
}

impl<'a> Step<'a> {
    /// Registers constants; tensors pushed from now on use them.
    pub fn constants(&mut self, constants: Constants) {
        self.states = body::states(&constants);
        self.constants.push(constants);
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
        let Self { chunks, constants, elements, factored, places, rows, alike, .. } = self;
        let (constants, places, rows) = (constants.as_slice(), places.as_slice(), &*rows);
        debug_assert_eq!(chunks.len(), places.len());
        if *elements < SERIAL {
            for_each(
                &Serial,
                &mut [chunks.as_mut_slice()],
                |_| 1,
                |_, chunks| {
                    run_alike(chunks, places, alike, constants, rows, level);
                },
            )?;
            return factored.run(&Serial, level);
        }
        for_each(pool, chunks, Chunk::cost, |i, chunk| {
            if let Some(place) = places.get(i + PLACES_AHEAD) {
                place.prefetch();
            }
            chunk.run(constants, rows, level, None);
        })?;
        factored.run(pool, level)
    }

    /// As [`Step::run`], and measures on the way all parameters but those of rules that look at them whole.
    ///
    /// # Errors
    /// As [`Step::run`].
    pub fn run_measured(&mut self, measured: &mut Measured, pool: &dyn Pool, level: Level) -> Result<(), Panic> {
        let Self { chunks, constants, elements, factored, rows, .. } = self;
        measured.chunks.resize_with(chunks.len(), Default::default);
        let (constants, rows, found) = (constants.as_slice(), &*rows, measured.chunks.as_slice());
        let pool = if *elements < SERIAL { &Serial } else { pool };
        for_each(pool, chunks, Chunk::cost, |i, chunk| {
            let mut lanes = Lanes::default();
            chunk.run(constants, rows, level, Some(&mut lanes));
            let sums = lanes.totals(chunk.grad_factor);
            found[i].iter().zip(sums).for_each(|(to, sum)| to.store(sum, Ordering::Relaxed));
        })?;
        factored.run(pool, level)
    }

    /// Empties the step, keeping its memory for tensors of any lifetime.
    pub fn recycle<'b>(mut self) -> Step<'b> {
        self.constants.clear();
        self.places.clear();
        self.alike.clear();
        let factored = self.factored.recycle();
        Step {
            chunks: recycled(self.chunks),
            constants: self.constants,
            elements: 0,
            factored,
            places: self.places,
            alike: self.alike,
            like: None,
            states: 0,
            rows: self.rows.recycle(),
        }
    }
}

impl Measured {
    /// To be called after each push: the chunks pushed since the last call are one parameter's.
    pub fn pushed(&mut self, step: &Step<'_>) {
        self.ends.push(step.chunks.len());
    }
}
