//! Programs: what users write as functions, traced, and run over streams in one walk over memory.
//!
//! A [`Description`] is plain integers and numbers. It is checked (`graph`, `wrong`), and becomes numbers that are
//! computed in `f64` for each tensor (`numbers`) and walks over memory (`pass`): operations that meet become one
//! instruction (`fuse`), and values live in streams or registers (`registers`). Instructions and their loops come from
//! one table (`instructions`, with `functions` and `reduce`). A machine runs them over streams that lie in one piece,
//! a tile at a time (`machine`, `tiles`, `vectors`). The driver knows about tensors, layouts and threads.

mod functions;
mod fuse;
mod graph;
mod instructions;
mod machine;
mod numbers;
pub mod ops;
mod pass;
mod reduce;
mod registers;
mod smooth;
mod tiles;
mod vectors;
mod wrong;

pub use graph::{Description, MAX_INPUTS, MAX_NODES, MAX_PROGRAM_STATES};
pub use wrong::Wrong;

pub(crate) use graph::STREAMS;
pub(crate) use machine::{Computes, LARGEST_ROOM, Machine};
pub(crate) use numbers::Total;
pub(crate) use pass::{MAX_REDUCTIONS, Pass};
pub(crate) use reduce::{Joined, Lanes};

use graph::Graph;
use numbers::Numbers;

/// A program, checked and ready to be run.
#[derive(Debug)]
pub struct Program {
    states: usize,
    inputs: usize,
    numbers: Numbers,
    /// For each level the walk that finds its reductions.
    finding: Vec<Option<Pass>>,
    /// The walk that writes; `None`: nothing is written.
    writing: Option<Pass>,
    /// Places of the numbers that are wanted.
    wanted: Vec<usize>,
}

impl Program {
    /// A program as it is described.
    ///
    /// # Errors
    /// If the description is none of a program, or of one that is too large.
    pub fn new(description: &Description<'_>) -> Result<Self, Wrong> {
        Self::compile(description, true)
    }

    /// The same program, of which each instruction stands for one operation: the same bits, more slowly. For tests and
    /// measurements.
    ///
    /// # Errors
    /// As [`Program::new`].
    pub fn plain(description: &Description<'_>) -> Result<Self, Wrong> {
        Self::compile(description, false)
    }

    fn compile(description: &Description<'_>, several: bool) -> Result<Self, Wrong> {
        let graph = Graph::new(description)?;
        let written = graph.writes.iter().map(|&(_, node)| node);
        let needed = graph.cone(written.clone().chain(graph.wanted.iter().copied()));
        let numbers = Numbers::new(&graph, &needed);
        let mut finding = Vec::new();
        for level in 1..numbers.levels() as u32 {
            let found: Vec<u32> = (0..graph.nodes.len() as u32)
                .filter(|&node| {
                    let own = &graph.nodes[node as usize];
                    needed[node as usize] && own.op.reduces() && own.level == level
                })
                .collect();
            let pass = (!found.is_empty()).then(|| Pass::finding(&graph, &numbers, &found, several));
            finding.push(pass.transpose()?);
        }
        let writing = (!graph.writes.is_empty()).then(|| Pass::writing(&graph, &numbers, several)).transpose()?;
        let wanted = graph.wanted.iter().filter_map(|&node| numbers.place(node as usize)).collect();
        Ok(Self { states: graph.states, inputs: graph.inputs, numbers, finding, writing, wanted })
    }

    /// How many states it has that have elements.
    pub fn states(&self) -> usize {
        self.states
    }

    /// How many numbers are handed over for each tensor.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many walks over memory there are.
    pub fn passes(&self) -> usize {
        self.finding.iter().flatten().count() + usize::from(self.writing.is_some())
    }

    /// Whether a stream is written: the parameter is 0, state k is 1 + k.
    pub fn writes(&self, stream: usize) -> bool {
        let own = if stream == 0 { 0 } else { stream + 1 };
        self.writing.as_ref().is_some_and(|pass| pass.is_written(own))
    }

    /// How many instructions are run for each element, over all passes.
    pub fn instructions(&self) -> usize {
        self.walks().map(Pass::len).sum()
    }

    /// Whether all numbers are known before any walk over memory, and without other tensors.
    pub fn answers_at_once(&self) -> bool {
        self.numbers.levels() <= 1
    }

    /// The numbers that are wanted, in their order; `None`: they are not known at once, or there are not as many inputs
    /// as the program has.
    pub fn numbers(&self, inputs: &[f64], numel: f64) -> Option<Vec<f64>> {
        if !self.answers_at_once() || inputs.len() != self.inputs {
            return None;
        }
        let mut row = vec![0.0; self.numbers.len()];
        self.compute(0, &mut row, inputs, numel);
        Some(self.wanted.iter().map(|&place| row[place]).collect())
    }

    /// How many numbers there are of a tensor.
    pub(crate) fn row(&self) -> usize {
        self.numbers.len()
    }

    /// Whether each tensor needs numbers of its own, even with the same inputs.
    pub(crate) fn is_individual(&self) -> bool {
        self.numbers.asks_numel || !self.answers_at_once()
    }

    /// Whether some number says how many elements there are.
    pub fn asks_numel(&self) -> bool {
        self.numbers.asks_numel
    }

    /// How many of its numbers, the first of a row, are known before any walk over memory.
    pub(crate) fn known_at_once(&self) -> usize {
        self.numbers.at_once()
    }

    /// How many levels its numbers have.
    pub(crate) fn levels(&self) -> usize {
        self.numbers.levels()
    }

    /// Computes the numbers of a level.
    pub(crate) fn compute(&self, level: usize, row: &mut [f64], inputs: &[f64], numel: f64) {
        if level < self.numbers.levels() {
            self.numbers.compute(level, row, inputs, numel);
        }
    }

    /// The totals that it asks for.
    pub(crate) fn totals(&self) -> &[Total] {
        &self.numbers.totals
    }

    /// The walk that finds the reductions of level `below + 1`.
    pub(crate) fn finding(&self, below: usize) -> Option<&Pass> {
        self.finding.get(below)?.as_ref()
    }

    /// The walk that writes.
    pub(crate) fn writing(&self) -> Option<&Pass> {
        self.writing.as_ref()
    }

    /// The walks that find reductions, and the one that writes.
    pub(crate) fn walks(&self) -> impl Iterator<Item = &Pass> {
        self.finding.iter().flatten().chain(&self.writing)
    }

    /// The most reductions of a walk.
    pub(crate) fn most_reductions(&self) -> usize {
        self.finding.iter().flatten().map(|pass| pass.reductions.len()).max().unwrap_or(0)
    }

    /// The place of a node among the numbers of a tensor, and its level.
    pub(crate) fn place(&self, node: usize) -> Option<(usize, usize)> {
        let place = self.numbers.place(node)?;
        Some((place, self.numbers.level_of(place)))
    }
}
