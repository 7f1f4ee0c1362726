//! Which instructions compute the elements of a pass: operations that meet become one.
//!
//! From the last node to the first, each takes the longest pattern that fits: its middle values have elements, are
//! used once, and are not reduced. One that is written may be a middle value where the pattern keeps it. What has no
//! form for a number in some place gets a tile filled with it.

use super::graph::{Graph, STREAMS};
use super::instructions::{Code, KEPT, OPERANDS, PATTERNS, Pattern, operand};
use super::ops::Op;

/// An operand before registers are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    /// A value with elements: a node, or a tile filled with a number (see [`Item::node`]).
    Tile(u32),
    /// A node that is a number.
    Number(u32),
}

/// An instruction before registers are known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) code: Code,
    /// The node that it computes. Beyond the last node: a tile filled with the node so many places below.
    pub(super) node: u32,
    /// Nodes that it computes on the way, and keeps.
    kept: [u32; KEPT],
    kept_count: usize,
    args: [Operand; OPERANDS],
    count: usize,
}

impl Item {
    pub(super) fn new(code: Code, node: u32, own: &[Operand]) -> Self {
        let mut args = [Operand::Number(0); OPERANDS];
        args[..own.len()].copy_from_slice(own);
        Self { code, node, kept: [0; KEPT], kept_count: 0, args, count: own.len() }
    }

    /// Nodes that it computes on the way, and keeps.
    pub(super) fn kept(&self) -> &[u32] {
        &self.kept[..self.kept_count]
    }

    pub(super) fn args(&self) -> &[Operand] {
        &self.args[..self.count]
    }

    /// The values whose tiles it reads.
    pub(super) fn tiles(&self) -> impl Iterator<Item = u32> + '_ {
        self.args().iter().filter_map(|arg| match arg {
            Operand::Tile(node) => Some(*node),
            Operand::Number(_) => None,
        })
    }
}

/// Makes instructions of nodes.
pub(super) struct Fusing<'g> {
    graph: &'g Graph,
    /// How often each node is used by others, and how often it is written.
    uses: Vec<u32>,
    written: Vec<u32>,
    /// For each stream the first node that is it.
    streams: [Option<u32>; STREAMS],
    /// Whether an instruction may stand for several operations.
    several: bool,
}

impl<'g> Fusing<'g> {
    pub(super) fn new(graph: &'g Graph, several: bool) -> Self {
        let mut streams = [None; STREAMS];
        for (node, own) in graph.nodes.iter().enumerate() {
            if let Some(stream) = own.stream() {
                streams[stream].get_or_insert(node as u32);
            }
        }
        Self { graph, uses: Vec::new(), written: Vec::new(), streams, several }
    }

    /// A node as an operand.
    pub(super) fn operand(&self, node: u32) -> Operand {
        let own = &self.graph.nodes[node as usize];
        match (own.op, own.stream()) {
            (Op::Fill, _) => Operand::Number(own.args()[0]),
            (_, Some(stream)) => Operand::Tile(self.streams[stream].unwrap_or(node)),
            _ if own.elements => Operand::Tile(node),
            _ => Operand::Number(node),
        }
    }

    /// The stream that a value is.
    pub(super) fn stream(&self, value: u32) -> Option<usize> {
        self.graph.nodes.get(value as usize)?.stream()
    }

    /// The value that a stream holds at first.
    pub(super) fn value_of(&self, stream: usize) -> Option<u32> {
        self.streams[stream]
    }

    /// The instructions that compute some nodes, each after its operands. The nodes are such as are written, or
    /// reductions.
    pub(super) fn items(&mut self, wanted: impl Iterator<Item = u32> + Clone) -> Vec<Item> {
        self.count_uses(wanted.clone());
        let graph = self.graph;
        let mut needed = vec![false; graph.nodes.len()];
        wanted.for_each(|node| needed[node as usize] = true);
        let (mut items, mut filled) = (Vec::new(), Vec::new());
        for node in (0..needed.len() as u32).rev() {
            let own = &graph.nodes[node as usize];
            if !needed[node as usize] || own.stream().is_some() || own.op == Op::Fill {
                continue;
            }
            let Some(item) = self.item(node) else { continue };
            item.kept().iter().for_each(|&kept| needed[kept as usize] = false);
            for tile in item.tiles() {
                match needed.get_mut(tile as usize) {
                    Some(needed) => *needed = true,
                    None => filled.push(tile),
                }
            }
            items.push(item);
        }
        filled.sort_unstable();
        filled.dedup();
        let fill = |&tile: &u32| Item::new(Code::Fill, tile, &[Operand::Number(tile - graph.nodes.len() as u32)]);
        items.extend(filled.iter().map(fill));
        items.reverse();
        items
    }

    /// Counts how often each node is used by what is wanted.
    fn count_uses(&mut self, wanted: impl Iterator<Item = u32> + Clone) {
        let nodes = &self.graph.nodes;
        self.uses.clear();
        self.uses.resize(nodes.len(), 0);
        self.written.clear();
        self.written.resize(nodes.len(), 0);
        wanted.for_each(|node| self.written[node as usize] += 1);
        for node in (0..nodes.len()).rev() {
            let own = &nodes[node];
            if self.uses[node] + self.written[node] > 0 && (own.elements || own.op.reduces()) {
                // a number is not gone into: what it is made of belongs to other passes
                let elements = |arg: &&u32| nodes[**arg as usize].elements;
                own.args().iter().filter(elements).for_each(|&arg| self.uses[arg as usize] += 1);
            }
        }
    }

    /// The instruction for a node. (Each operation has a form for tiles alone, so there is one.)
    fn item(&self, node: u32) -> Option<Item> {
        let mut best: Option<(&Pattern, Match)> = None;
        for pattern in PATTERNS.iter().filter(|pattern| self.several || pattern.is_single()) {
            let Some(found) = self.matches(Match::new(pattern, node), false) else { continue };
            if best.as_ref().is_none_or(|(_, best)| found.absorbed > best.absorbed) {
                best = Some((pattern, found));
            }
        }
        for pattern in PATTERNS.iter().filter(|pattern| pattern.is_single()) {
            if best.is_some() {
                break;
            }
            best = self.matches(Match::new(pattern, node), true).map(|found| (pattern, found));
        }
        let (pattern, found) = best?;
        let args = found.args.map(|arg| arg.unwrap_or(Operand::Number(0)));
        let item = Item::new(pattern.code, node, &args[..pattern.tiles.len()]);
        Some(Item { kept: found.kept, kept_count: found.kept_count, ..item })
    }

    /// Goes on with a match; `filling`: a number may stand for a tile, which is filled with it.
    fn matches(&self, mut state: Match, filling: bool) -> Option<Match> {
        let Some((&sign, text)) = state.text.split_first() else { return (state.depth == 0).then_some(state) };
        state.text = text;
        if sign == b'>' {
            state.keeps = true;
            return self.matches(state, filling);
        }
        let keeps = std::mem::take(&mut state.keeps);
        state.depth = state.depth.checked_sub(1)?;
        let node = state.stack[state.depth];
        if let Some(place) = operand(sign) {
            let operand = match (state.tiles[place], self.operand(node)) {
                (true, Operand::Number(number)) if filling => Operand::Tile(number + self.graph.nodes.len() as u32),
                (true, operand @ Operand::Tile(_)) | (false, operand @ Operand::Number(_)) => operand,
                _ => return None,
            };
            if state.args[place].is_some_and(|bound| bound != operand) {
                return None;
            }
            state.args[place] = Some(operand);
            return self.matches(state, filling);
        }
        let own = &self.graph.nodes[node as usize];
        let free = own.elements && self.uses[node as usize] == 1 && self.written[node as usize] == u32::from(keeps);
        if Op::from_sign(sign) != Some(own.op) || state.absorbed > 0 && !free {
            return None;
        }
        if keeps {
            *state.kept.get_mut(state.kept_count)? = node;
            state.kept_count += 1;
        }
        state.absorbed += 1;
        let straight = self.matches(state.with(own.args().iter().copied())?, filling);
        if straight.is_some() || !own.op.commutes() {
            return straight;
        }
        self.matches(state.with(own.args().iter().rev().copied())?, filling)
    }
}

/// The most nodes of a pattern that wait to be looked at.
const DEPTH: usize = 12;

/// A pattern that fits so far.
#[derive(Clone, Copy)]
struct Match {
    /// What is left of it.
    text: &'static [u8],
    tiles: &'static [bool],
    /// The nodes that this speaks of, the next one last.
    stack: [u32; DEPTH],
    depth: usize,
    args: [Option<Operand>; OPERANDS],
    /// How many operations it stands for.
    absorbed: usize,
    /// Middle values that are kept, and whether the next one is.
    kept: [u32; KEPT],
    kept_count: usize,
    keeps: bool,
}

impl Match {
    /// Nothing has been looked at yet.
    fn new(pattern: &'static Pattern, node: u32) -> Self {
        let mut stack = [0; DEPTH];
        stack[0] = node;
        Self {
            text: pattern.text,
            tiles: pattern.tiles,
            stack,
            depth: 1,
            args: [None; OPERANDS],
            absorbed: 0,
            kept: [0; KEPT],
            kept_count: 0,
            keeps: false,
        }
    }

    /// With operands to be looked at next.
    fn with(mut self, args: impl DoubleEndedIterator<Item = u32>) -> Option<Self> {
        for arg in args.rev() {
            *self.stack.get_mut(self.depth)? = arg;
            self.depth += 1;
        }
        Some(self)
    }
}
