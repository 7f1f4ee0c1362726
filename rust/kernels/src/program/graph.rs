//! A description, checked: nodes that say how each value comes of earlier ones.

use super::ops::{Op, Takes};
use super::wrong::Wrong;

/// The most nodes of a program.
pub const MAX_NODES: usize = 2000;
/// The most states with elements.
pub const MAX_PROGRAM_STATES: usize = 14;
/// The most numbers that are handed over for each tensor.
pub const MAX_INPUTS: usize = 2000;
/// The most streams: the parameter, its gradient, its states.
pub(crate) const STREAMS: usize = 2 + MAX_PROGRAM_STATES;

/// A program as it is handed over: plain integers and numbers. Nothing in it is believed before it is checked.
#[derive(Clone, Copy, Debug)]
pub struct Description<'d> {
    /// Node after node: the number of its operation, then its operands.
    pub nodes: &'d [u32],
    /// The numbers that constants are.
    pub constants: &'d [f64],
    /// How many states there are that have elements.
    pub states: u32,
    /// How many numbers are handed over for each tensor.
    pub inputs: u32,
    /// Pairs of a stream and the node that is written to it. The parameter is stream 0, and state k is stream 1 + k.
    pub writes: &'d [u32],
    /// Nodes that are numbers, and will be asked for.
    pub wanted: &'d [u32],
}

/// One node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) op: Op,
    args: [u32; 4],
    /// Which state, input or constant it is; the key of a total.
    pub(super) what: u32,
    /// Whether there is a value for each element.
    pub(super) elements: bool,
    /// How many walks over memory must have ended before it can be computed.
    pub(super) level: u32,
}

impl Node {
    /// The nodes that it is made of.
    pub(super) fn args(&self) -> &[u32] {
        &self.args[..self.op.arity()]
    }

    /// The stream that it is: the parameter is 0, the gradient 1, and state k is 2 + k.
    pub(super) fn stream(&self) -> Option<usize> {
        match self.op {
            Op::Param => Some(0),
            Op::Grad => Some(1),
            Op::State => Some(2 + self.what as usize),
            _ => None,
        }
    }
}

/// The nodes of a program, each after its operands, and what is to be done with them.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) constants: Vec<f64>,
    pub(super) states: usize,
    pub(super) inputs: usize,
    /// Streams, counted as [`Node::stream`] does, and what is written to each.
    pub(super) writes: Vec<(usize, u32)>,
    pub(super) wanted: Vec<u32>,
}

impl Graph {
    /// Checks a description.
    pub(super) fn new(description: &Description<'_>) -> Result<Self, Wrong> {
        let Description { nodes: mut words, constants, states, inputs, writes, wanted } = *description;
        let bounds = [
            ("states", states as usize, MAX_PROGRAM_STATES),
            ("inputs", inputs as usize, MAX_INPUTS),
            ("constants", constants.len(), MAX_NODES),
            ("numbers that are wanted", wanted.len(), MAX_NODES),
            ("entries of what is written", writes.len(), 2 * STREAMS),
        ];
        if let Some(&(what, came, most)) = bounds.iter().find(|(_, came, most)| came > most) {
            return Err(Wrong::Many { what, came, most });
        }
        let mut graph = Self {
            nodes: Vec::new(),
            constants: constants.to_vec(),
            states: states as usize,
            inputs: inputs as usize,
            writes: Vec::new(),
            wanted: wanted.to_vec(),
        };
        while let Some((&number, rest)) = words.split_first() {
            words = rest;
            if graph.nodes.len() == MAX_NODES {
                return Err(Wrong::Nodes { most: MAX_NODES });
            }
            let op = Op::from_number(number).ok_or(Wrong::Operation(number))?;
            let (own, rest) = words.split_at_checked(op.arity() + op.further()).ok_or(Wrong::Ends)?;
            words = rest;
            graph.add(op, own)?;
        }
        graph.check_uses(writes)?;
        Ok(graph)
    }

    /// Adds a node, given its words.
    fn add(&mut self, op: Op, words: &[u32]) -> Result<(), Wrong> {
        let node = self.nodes.len();
        let (own, further) = words.split_at(op.arity());
        let mut args = [0; 4];
        args[..own.len()].copy_from_slice(own);
        if let Some(&operand) = own.iter().find(|&&operand| operand as usize >= node) {
            return Err(Wrong::Operand { node, operand });
        }
        let some = own.iter().any(|&arg| self.nodes[arg as usize].elements);
        let kind = |fits: bool, takes: &'static str| {
            if fits { Ok(()) } else { Err(Wrong::Kind { node, operation: op.name(), takes }) }
        };
        let elements = match op.takes() {
            Takes::Any => some,
            Takes::Numbers => kind(!some, "numbers").map(|()| false)?,
            Takes::Fill => kind(!some, "a number").map(|()| true)?,
            Takes::Elements => kind(some, "elements").map(|()| false)?,
            Takes::Stream => true,
            Takes::Given => false,
        };
        let what = further.first().copied().unwrap_or(0);
        let there = |name: &'static str, of: usize| {
            if (what as usize) < of { Ok(()) } else { Err(Wrong::Missing { node, what: name, number: what, of }) }
        };
        match op {
            Op::State => there("a state", self.states)?,
            Op::Input => there("an input", self.inputs)?,
            Op::Constant => there("a constant", self.constants.len())?,
            _ => {}
        }
        let (op, args) = self.shortened(op, args, elements);
        let below = own.iter().map(|&arg| self.nodes[arg as usize].level).max().unwrap_or(0);
        self.nodes.push(Node { op, args, what, elements, level: below + u32::from(op.waits()) });
        Ok(())
    }

    /// A power that is known to be a square or a root is that, for it to meet other operations.
    fn shortened(&self, op: Op, [a, b, c, d]: [u32; 4], elements: bool) -> (Op, [u32; 4]) {
        let exponent = self.nodes.get(b as usize).filter(|node| node.op == Op::Constant);
        let exponent = exponent.and_then(|node| self.constants.get(node.what as usize));
        match (op, exponent) {
            (Op::Pow, Some(2.0)) if elements => (Op::Mul, [a, a, 0, 0]),
            (Op::Pow, Some(0.5)) if elements => (Op::Sqrt, [a, 0, 0, 0]),
            _ => (op, [a, b, c, d]),
        }
    }

    /// Checks what is written and wanted.
    fn check_uses(&mut self, writes: &[u32]) -> Result<(), Wrong> {
        let (pairs, rest) = writes.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Wrong::Write(writes.len() / 2));
        }
        for (place, &[stream, node]) in pairs.iter().enumerate() {
            // the gradient, which nothing is written to, is stream 1 from here on
            let own = if stream == 0 { 0 } else { (stream as usize).saturating_add(1) };
            let elements = self.nodes.get(node as usize).is_some_and(|node| node.elements);
            let again = self.writes.iter().any(|&(other, _)| other == own);
            if !elements || again || stream as usize > self.states {
                return Err(Wrong::Write(place));
            }
            self.writes.push((own, node));
        }
        // what a stream holds already need not be written
        self.writes.retain(|&(stream, node)| self.nodes[node as usize].stream() != Some(stream));
        let number = |node: u32| self.nodes.get(node as usize).is_some_and(|node| !node.elements);
        match self.wanted.iter().find(|&&node| !number(node)) {
            Some(&node) => Err(Wrong::Wanted(node)),
            None => Ok(()),
        }
    }

    /// Of each node, whether it is needed for those that are given.
    pub(super) fn cone(&self, of: impl IntoIterator<Item = u32>) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        of.into_iter().for_each(|node| needed[node as usize] = true);
        for node in (0..self.nodes.len()).rev() {
            if needed[node] {
                self.nodes[node].args().iter().for_each(|&arg| needed[arg as usize] = true);
            }
        }
        needed
    }
}
