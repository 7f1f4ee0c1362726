//! What is done to the tensors of a step: rules with their constants, and programs with their numbers.

use super::body::{Body, states_of};
use crate::chunks::recycled;
use crate::formats::Refused;
use crate::program::Program;
use crate::rules::Constants;

/// What is done to some tensors.
#[derive(Clone, Copy, Debug)]
enum Kept<'a> {
    Rule(Constants),
    Program(Run<'a>),
}

/// A program with its numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    pub(super) program: &'a Program,
    /// Where its row begins in the list of numbers.
    first: usize,
    /// How many levels of its numbers are known.
    pub(super) known: usize,
    /// For how many levels it has been added to totals.
    pub(super) told: usize,
    /// The place of the first of those in a row that have this program and numbers of their own; else its own place.
    like: u32,
    /// Its tensor is one chunk of streams that lie in one piece.
    is_one: bool,
}

impl Run<'_> {
    /// Whether all its numbers are known.
    pub(super) fn is_found(&self) -> bool {
        self.known >= self.program.levels()
    }

    /// Whether nothing but its tensor's one chunk has to be looked at to find the rest of its numbers: then one walk
    /// can follow the other while the chunk is near. (A total stands in the row two levels after what adds to it.)
    pub(super) fn can_wait(&self) -> bool {
        self.is_one && self.program.totals().iter().all(|total| total.level + 2 <= self.known)
    }
}

/// The program that each tensor gets with numbers of its own.
#[derive(Clone, Copy, Debug)]
struct Each<'a> {
    program: &'a Program,
    /// Where the row begins of the last tensor with the same inputs, and how many elements that has.
    last: Option<(usize, usize)>,
}

/// All that is done in a step.
#[derive(Debug, Default)]
pub(super) struct Bodies<'a> {
    list: Vec<Kept<'a>>,
    numbers: Vec<f64>,
    /// What was handed over for the program registered last.
    inputs: Vec<f64>,
    each: Option<Each<'a>>,
    /// Of each tensor with a program the place of what is done to it.
    tensors: Vec<u32>,
    /// How many states what was registered last keeps, if it takes streams as they are pushed.
    pub(super) states: Option<usize>,
}

impl<'a> Bodies<'a> {
    /// Registers a rule.
    pub(super) fn rule(&mut self, constants: Constants) {
        self.states = states_of(&constants);
        self.each = None;
        self.list.push(Kept::Rule(constants));
    }

    /// Registers a program.
    pub(super) fn program(&mut self, program: &'a Program, inputs: &[f64]) -> Result<(), Refused> {
        if inputs.len() != program.inputs() {
            return Err(Refused::Inputs);
        }
        let known = match (self.each, self.list.last()) {
            (Some(last), _) => std::ptr::eq(last.program, program),
            (None, Some(Kept::Program(last))) => std::ptr::eq(last.program, program),
            _ => false,
        };
        let alike = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits();
        if known && self.inputs.iter().zip(inputs).all(alike) {
            return Ok(());
        }
        self.states = Some(program.states());
        self.inputs.clear();
        self.inputs.extend_from_slice(inputs);
        self.each = program.is_individual().then_some(Each { program, last: None });
        if self.each.is_none() {
            self.row(program, 0);
        }
        Ok(())
    }

    /// Adds a program with its first numbers.
    fn row(&mut self, program: &'a Program, numel: usize) {
        let first = self.numbers.len();
        self.numbers.resize(first + program.row(), 0.0);
        match self.each.as_mut().map(|each| each.last.replace((first, numel))) {
            // what is known at once depends on the inputs, and perhaps on how many elements there are
            Some(Some((last, of))) if of == numel || !program.asks_numel() => {
                self.numbers.copy_within(last..last + program.known_at_once(), first);
            }
            _ => program.compute(0, &mut self.numbers[first..], &self.inputs, numel as f64),
        }
        let place = self.list.len() as u32;
        let like = match self.list.last() {
            Some(Kept::Program(last)) if self.each.is_some() && std::ptr::eq(last.program, program) => last.like,
            _ => place,
        };
        self.list.push(Kept::Program(Run { program, first, known: 1, told: 0, like, is_one: false }));
    }

    /// What is done to a tensor that is pushed, and has so many elements; `None`: nothing was registered.
    #[inline]
    pub(super) fn next(&mut self, numel: usize) -> Option<u32> {
        if let Some(Each { program, .. }) = self.each {
            self.row(program, numel);
        }
        let last = self.list.len().checked_sub(1)?;
        if let Kept::Program(_) = self.list[last] {
            self.tensors.push(last as u32);
        }
        Some(last as u32)
    }

    /// Notes that the tensor pushed last is one chunk of streams that lie in one piece.
    #[inline]
    pub(super) fn is_one(&mut self) {
        if let (Some(_), Some(Kept::Program(run))) = (self.each, self.list.last_mut()) {
            run.is_one = true;
        }
    }

    /// What is the same for all that is done alike, but for numbers of each tensor.
    #[inline]
    pub(super) fn likeness(&self, place: u32) -> u32 {
        match &self.list[place as usize] {
            Kept::Program(run) => run.like,
            Kept::Rule(_) => place,
        }
    }

    /// The program, if it is one with numbers of its tensor's own.
    #[inline]
    pub(super) fn individual(&self, place: u32) -> Option<&'a Program> {
        self.run(place as usize).map(|run| run.program).filter(|program| program.is_individual())
    }

    /// The numbers of a program that is run, to be found, and how many levels of them are known.
    #[inline]
    pub(super) fn own(&mut self, place: u32) -> Option<(&mut [f64], &mut usize)> {
        match &mut self.list[place as usize] {
            Kept::Program(run) => Some((&mut self.numbers[run.first..][..run.program.row()], &mut run.known)),
            Kept::Rule(_) => None,
        }
    }

    /// The rule registered last.
    pub(super) fn last_rule(&self) -> Option<&Constants> {
        match self.list.last() {
            Some(Kept::Rule(constants)) if self.each.is_none() => Some(constants),
            _ => None,
        }
    }

    /// What is done in the walk that writes; `None`: nothing is written.
    #[inline]
    pub(super) fn body(&self, place: u32) -> Option<Body<'_>> {
        match &self.list[place as usize] {
            Kept::Rule(constants) => Some(Body::Rule(constants)),
            Kept::Program(run) => Some(Body::Program(run.program.writing()?, self.row_of(run), run.program.states())),
        }
    }

    /// The numbers of a program that is run.
    pub(super) fn row_of(&self, run: &Run<'a>) -> &[f64] {
        &self.numbers[run.first..][..run.program.row()]
    }

    /// The numbers of a program that is run, to be found.
    pub(super) fn row_mut(&mut self, run: &Run<'a>) -> &mut [f64] {
        &mut self.numbers[run.first..][..run.program.row()]
    }

    /// How many things are done.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// A program that is run.
    #[inline]
    pub(super) fn run(&self, place: usize) -> Option<&Run<'a>> {
        match &self.list[place] {
            Kept::Program(run) => Some(run),
            Kept::Rule(_) => None,
        }
    }

    /// A program that is run, to be brought further.
    pub(super) fn run_mut(&mut self, place: usize) -> Option<&mut Run<'a>> {
        match &mut self.list[place] {
            Kept::Program(run) => Some(run),
            Kept::Rule(_) => None,
        }
    }

    /// All programs that are run.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Run<'a>> {
        self.list.iter().filter_map(|kept| match kept {
            Kept::Program(run) => Some(run),
            Kept::Rule(_) => None,
        })
    }

    /// A number of a tensor that has a program.
    pub(super) fn value(&self, tensor: usize, node: usize) -> Option<f64> {
        let run = self.run(*self.tensors.get(tensor)? as usize)?;
        let (place, level) = run.program.place(node)?;
        (level < run.known).then(|| self.row_of(run)[place])
    }

    /// Empties it, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.numbers.clear();
        self.inputs.clear();
        self.each = None;
        self.tensors.clear();
        self.states = None;
    }

    /// Empties it, keeping its memory for programs of any lifetime.
    pub(super) fn recycle<'b>(mut self) -> Bodies<'b> {
        self.clear();
        let Self { list, numbers, inputs, tensors, .. } = self;
        Bodies { list: recycled(list), numbers, inputs, each: None, tensors, states: None }
    }
}
