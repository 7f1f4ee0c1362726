//! A walk over memory: what is computed for each element, found in all of them, or written.

use super::fuse::Fusing;
use super::graph::Graph;
use super::instructions::{Code, Instruction};
use super::numbers::Numbers;
use super::reduce::Joined;
use super::registers::{MAX_REGISTERS, place};
use super::wrong::Wrong;

/// The most reductions of a walk.
pub(crate) const MAX_REDUCTIONS: usize = 64;

/// A walk over memory.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(super) instructions: Vec<Instruction>,
    /// How many streams there are, first among the slots.
    pub(super) streams: usize,
    pub(super) registers: usize,
    /// Places in the row of a tensor of the numbers that instructions count.
    pub(super) numbers: Vec<u32>,
    /// How each reduction is joined, and its place in the row.
    pub(crate) reductions: Vec<(Joined, u32)>,
    /// Bit s: stream s is read; the parameter is 0, the gradient 1.
    pub(crate) reads: u32,
    /// Bit s: stream s is written.
    pub(super) written: u32,
    /// Whether it gains by vectors of 64 bytes.
    wide: bool,
}

impl Pass {
    /// The walk that finds some reductions.
    pub(super) fn finding(graph: &Graph, numbers: &Numbers, found: &[u32], several: bool) -> Result<Self, Wrong> {
        if found.len() > MAX_REDUCTIONS {
            return Err(Wrong::Many { what: "reductions of a pass", came: found.len(), most: MAX_REDUCTIONS });
        }
        Self::of(graph, numbers, found.iter().copied(), &[], several)
    }

    /// The walk that writes.
    pub(super) fn writing(graph: &Graph, numbers: &Numbers, several: bool) -> Result<Self, Wrong> {
        Self::of(graph, numbers, graph.writes.iter().map(|&(_, node)| node), &graph.writes, several)
    }

    fn of(
        graph: &Graph,
        numbers: &Numbers,
        wanted: impl Iterator<Item = u32> + Clone,
        writes: &[(usize, u32)],
        several: bool,
    ) -> Result<Self, Wrong> {
        let mut fusing = Fusing::new(graph, several);
        let items = fusing.items(wanted);
        let streams = 2 + graph.states;
        let placed = place(&fusing, &items, writes, 2 * graph.nodes.len(), streams);
        let many = Wrong::Many { what: "values of elements at a time", came: MAX_REGISTERS + 1, most: MAX_REGISTERS };
        let placed = placed.ok_or(many)?;
        // `machine.rs` relies on this: the gradient, stream 1, is only read
        let reduces = |code| matches!(code, Code::Sum | Code::Dot | Code::MaxAbs);
        assert!(
            placed.instructions.iter().all(|own| reduces(own.code) || own.out != 1 && !own.kept.contains(&1)),
            "the gradient is written"
        );
        let in_row = |&node: &u32| numbers.place(node as usize).unwrap_or(0) as u32;
        let joined = |code| if code == Code::MaxAbs { Joined::Largest } else { Joined::Sum };
        Ok(Self {
            wide: placed.instructions.iter().all(|own| own.code.is_wide()),
            instructions: placed.instructions,
            streams,
            registers: placed.registers,
            numbers: placed.numbers.iter().map(in_row).collect(),
            reductions: placed.reductions.iter().map(|(code, node)| (joined(*code), in_row(node))).collect(),
            reads: placed.reads,
            written: writes.iter().fold(0, |bits, &(stream, _)| bits | 1 << stream),
        })
    }

    /// How many instructions there are.
    pub(super) fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Whether it gains by vectors of 64 bytes.
    pub(crate) fn is_wide(&self) -> bool {
        self.wide
    }

    /// Whether a stream is written; the gradient is stream 1.
    pub(crate) fn is_written(&self, stream: usize) -> bool {
        self.written.checked_shr(stream as u32).is_some_and(|bits| bits & 1 == 1)
    }

    /// Whether a stream is read.
    pub(super) fn is_read(&self, stream: usize) -> bool {
        self.reads >> stream & 1 == 1
    }
}
