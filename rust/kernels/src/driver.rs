//! The loop of a step, element by element: tensors -> chunks -> threads -> SIMD level -> formula.

mod alike;
mod apart;
mod gather;
mod measured;
mod rows;
mod streaming;
mod strided;
mod sweep;

use alike::{Likeness, run_alike};
use measured::{Lanes, update};
use rows::{RowList, Rows};

pub use measured::{Measured, Moved};
pub use rows::SparseRows;
pub(crate) use sweep::Sweep;

pub use crate::chunks::SERIAL;
use crate::chunks::{CHUNK, MEDIUM, PLACES_AHEAD, SMALL_CHUNK, recycled};
use crate::factored::Factored;
pub use crate::formats::Refused;
use crate::formats::{Slice, SliceMut};
use crate::layout::{Layout, STREAMS};
use crate::pool::{Panic, Pool, Serial, for_each};
use crate::rule::{Formula, MAX_STATES, Visitor};
use crate::rules::Constants;
use crate::simd::{Level, prefetch_far_address};

/// Rows that a chunk of a strided tensor has at least, if some stream runs across them: so many elements of it share a
/// cache line.
const ROWS: usize = 16;
/// Calls `$then!(P, G, S)` for the storage types of parameter, gradient and states that match. The list of types that
/// the kernels serve; all states of a parameter share one type.
macro_rules! match_types {
    ($param:expr, $grad:expr, $state:expr, $then:ident, $otherwise:expr) => {
        match ($param, $grad, $state) {
            (SliceMut::F64(_), Slice::F64(_), SliceMut::F64(_) | SliceMut::Absent) => $then!(f64, f64, f64),
            (SliceMut::F32(_), Slice::F32(_), SliceMut::F32(_) | SliceMut::Absent) => $then!(f32, f32, f32),
            (SliceMut::F32(_), Slice::Bf16(_), SliceMut::F32(_) | SliceMut::Absent) => $then!(f32, bf16, f32),
            (SliceMut::F32(_), Slice::F16(_), SliceMut::F32(_) | SliceMut::Absent) => $then!(f32, f16, f32),
            (SliceMut::Bf16(_), Slice::Bf16(_), SliceMut::Bf16(_) | SliceMut::Absent) => $then!(bf16, bf16, bf16),
            (SliceMut::Bf16(_), Slice::Bf16(_), SliceMut::F32(_)) => $then!(bf16, bf16, f32),
            (SliceMut::F16(_), Slice::F16(_), SliceMut::F16(_) | SliceMut::Absent) => $then!(f16, f16, f16),
            (SliceMut::F16(_), Slice::F16(_), SliceMut::F32(_)) => $then!(f16, f16, f32),
            _ => $otherwise,
        }
    };
}
use match_types;

/// What a step reads and writes for one parameter. Without a layout, element i of each belongs together.
#[derive(Debug)]
pub struct Tensors<'a> {
    /// The parameter.
    pub param: SliceMut<'a>,
    /// Its gradient.
    pub grad: Slice<'a>,
    /// Its states, in the order of the rule, [`SliceMut::Absent`] beyond them.
    pub states: [SliceMut<'a>; MAX_STATES],
    /// Where the elements lie if not one after the other; its streams are parameter, gradient, states.
    pub layout: Option<&'a Layout>,
}

impl<'a> Tensors<'a> {
    /// Cuts flat tensors before element `n` of the parameter and its states, and element `grad_n` of the gradient.
    fn split_at(self, n: usize, grad_n: usize) -> (Self, Self) {
        let (param, param_rest) = self.param.split_at(n);
        let (grad, grad_rest) = self.grad.split_at(grad_n);
        let mut states: [SliceMut<'a>; MAX_STATES] = Default::default();
        let mut states_rest: [SliceMut<'a>; MAX_STATES] = Default::default();
        for (i, state) in self.states.into_iter().enumerate() {
            let at = n.min(state.len());
            (states[i], states_rest[i]) = state.split_at(at);
        }
        (
            Tensors { param, grad, states, layout: None },
            Tensors { param: param_rest, grad: grad_rest, states: states_rest, layout: None },
        )
    }

    /// Cuts strided tensors before element `i` in the order of walking, the first of these tensors being element
    /// `start`. The gradient, which is only read, stays whole in both.
    fn cut(self, layout: &'a Layout, start: usize, i: usize) -> (Self, Self) {
        let at = |s: usize| layout.position(s, i) - origin(layout, s, start);
        let grad = self.grad;
        let (param, param_rest) = self.param.split_at(at(0));
        let mut states: [SliceMut<'a>; MAX_STATES] = Default::default();
        let mut states_rest: [SliceMut<'a>; MAX_STATES] = Default::default();
        for (k, state) in self.states.into_iter().enumerate() {
            let at = if state.is_empty() { 0 } else { at(2 + k) };
            (states[k], states_rest[k]) = state.split_at(at);
        }
        let layout = Some(layout);
        (Tensors { param, grad, states, layout }, Tensors { param: param_rest, grad, states: states_rest, layout })
    }

    /// Storage types and the number of states.
    #[inline]
    fn check_kinds(&self, states: usize) -> Result<(), Refused> {
        macro_rules! known {
            ($p:ty, $g:ty, $s:ty) => {
                true
            };
        }
        if !match_types!(&self.param, &self.grad, &self.states[0], known, false) {
            return Err(Refused::Types);
        }
        let kept = |state: &SliceMut<'_>| !matches!(state, SliceMut::Absent);
        if self.states.iter().position(|state| !kept(state)).unwrap_or(MAX_STATES) != states
            || self.states.iter().skip(states).any(kept)
        {
            return Err(Refused::States);
        }
        if self.states[..states].iter().any(|s| std::mem::discriminant(s) != std::mem::discriminant(&self.states[0])) {
            return Err(Refused::Types);
        }
        Ok(())
    }

    #[inline]
    fn check_lengths(&self, states: usize) -> Result<(), Refused> {
        let mut lengths = [0; STREAMS];
        lengths[0] = self.param.len();
        lengths[1] = self.grad.len();
        self.states.iter().zip(&mut lengths[2..]).for_each(|(state, length)| *length = state.len());
        let fits = |(s, &length): (usize, &usize)| match self.layout {
            None => length == lengths[0],
            Some(layout) => layout.extent(s).is_some_and(|extent| extent <= length),
        };
        if lengths.iter().take(2 + states).enumerate().all(fits) { Ok(()) } else { Err(Refused::Lengths) }
    }
}

/// A part of one parameter's tensors, with the constants of its step: what is handed to a thread.
#[derive(Debug)]
struct Chunk<'a> {
    tensors: Tensors<'a>,
    /// Place of its constants in the step's list.
    constants: u32,
    /// The range of a strided tensor's elements in walking order.
    range: (usize, usize),
    rows: Option<Rows>,
    /// Multiplies the gradient as it is read: minus one to maximise, and whatever unscales or clips.
    grad_factor: f64,
}

/// Where the slice of a written stream, cut before element `start`, begins in the slice that the layout speaks of.
fn origin(layout: &Layout, s: usize, start: usize) -> usize {
    if start == 0 { 0 } else { layout.position(s, start) }
}

/// Where the memory of a chunk begins.
#[derive(Clone, Copy, Debug)]
struct Place {
    streams: [usize; STREAMS],
    /// Cache lines of each worth prefetching: those of a small tensor. A large one is prefetched as it is worked on.
    lines: usize,
}

impl Place {
    #[inline]
    fn of(tensors: &Tensors<'_>) -> Self {
        let mut streams = [tensors.param.address(); STREAMS];
        streams[1] = tensors.grad.address();
        streams[2..].iter_mut().zip(&tensors.states).filter(|(_, state)| !state.is_empty()).for_each(|(to, state)| {
            *to = state.address();
        });
        Self { streams, lines: (tensors.param.len() / 16 + 1).min(4) }
    }

    #[inline]
    fn prefetch(&self) {
        for stream in self.streams {
            (0..self.lines).for_each(|line| prefetch_far_address(stream + 64 * line));
        }
    }
}

/// A step over many tensors: filled, run once, and emptied for reuse without giving memory back.
#[derive(Debug, Default)]
pub struct Step<'a> {
    chunks: Vec<Chunk<'a>>,
    constants: Vec<Constants>,
    elements: usize,
    /// Parameters whose rule looks at them whole.
    factored: Factored<'a>,
    /// Where the chunks lie, to prefetch those that come next: many small ones lie anywhere.
    places: Vec<Place>,
    /// How many chunks in a row are alike, and so run by the same loop with the same constants.
    alike: Vec<usize>,
    /// What the last ones of them have in common.
    like: Option<Likeness>,
    /// How many states the constants registered last want.
    states: usize,
    rows: RowList<'a>,
}

impl<'a> Step<'a> {
    /// Registers constants; tensors pushed from now on use them.
    pub fn constants(&mut self, constants: Constants) {
        self.states = state_count(&constants);
        self.constants.push(constants);
    }

    /// How many elements are to be updated.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Adds one parameter, to be updated with the constants registered last.
    ///
    /// # Errors
    /// If the tensors do not fit together or their types are not served; nothing was added.
    #[inline]
    pub fn push(&mut self, tensors: Tensors<'a>, grad_factor: f64) -> Result<(), Refused> {
        let constants = self.constants.len().checked_sub(1).ok_or(Refused::States)?;
        let states = self.states;
        tensors.check_kinds(states)?;
        tensors.check_lengths(states)?;
        let chunk = |tensors, range| Chunk { tensors, constants: constants as u32, range, rows: None, grad_factor };
        if let Some(layout) = tensors.layout {
            let len = layout.len();
            self.elements += len;
            let each = strided_chunk(layout, states);
            let (mut rest, mut start) = (tensors, 0);
            while len - start > each + each / 2 {
                let (first, tail) = rest.cut(layout, start, start + each);
                self.add(chunk(first, (start, start + each)), None);
                (rest, start) = (tail, start + each);
            }
            self.add(chunk(rest, (start, len)), None);
            return Ok(());
        }
        self.elements += tensors.param.len();
        let like = Some(Likeness::of(&tensors, constants, grad_factor));
        let mut rest = tensors;
        let each = if self.elements <= MEDIUM { SMALL_CHUNK } else { CHUNK };
        while rest.param.len() > each + each / 2 {
            let (first, tail) = rest.split_at(each, each);
            self.add(chunk(first, (0, each)), like);
            rest = tail;
        }
        let len = rest.param.len();
        if len > 0 {
            self.add(chunk(rest, (0, len)), like);
        }
        Ok(())
    }

    /// Adds one contiguous parameter whose rule looks at it whole, to be updated with the constants registered last.
    ///
    /// `shape` is the number of rows and columns of a matrix, or of each matrix in a batch, whose states are `row_var`
    /// and `col_var`; `None` stands for a vector or a single number, whose state is `variance`.
    ///
    /// # Errors
    /// If the tensors do not fit together, their types are not served, or the rule is of another kind; nothing was
    /// added.
    pub fn push_factored(
        &mut self,
        tensors: Tensors<'a>,
        shape: Option<(usize, usize)>,
        grad_factor: f64,
    ) -> Result<(), Refused> {
        let Some(&Constants::Adafactor(constants)) = self.constants.last() else { return Err(Refused::States) };
        let Tensors { param, grad, states: [first, second, third], layout } = tensors;
        if !matches!(third, SliceMut::Absent) {
            return Err(Refused::States);
        }
        if layout.is_some() {
            return Err(Refused::Lengths);
        }
        let len = param.len();
        self.factored.push(constants, (param, grad), [first, second], shape, grad_factor)?;
        self.elements += len;
        Ok(())
    }

    /// Multiplies the gradient of every parameter pushed so far, but for those that are updated whole.
    pub fn scale_gradients(&mut self, factor: f64) {
        self.chunks.iter_mut().for_each(|chunk| chunk.grad_factor *= factor);
    }

    #[inline]
    fn add(&mut self, chunk: Chunk<'a>, like: Option<Likeness>) {
        self.places.push(Place::of(&chunk.tensors));
        self.note(like);
        self.chunks.push(chunk);
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
        // a fixed share per chunk stands for what it costs to take one up
        let cost = |chunk: &Chunk<'_>| chunk.range.1 - chunk.range.0 + 64;
        for_each(pool, chunks, cost, |i, chunk| {
            if let Some(place) = places.get(i + PLACES_AHEAD) {
                place.prefetch();
            }
            chunk.run(constants, rows, level, None);
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

/// Elements of a chunk of a strided tensor.
fn strided_chunk(layout: &Layout, states: usize) -> usize {
    let (block, grid) = (layout.block(states).max(1), layout.grid());
    if grid.crossed && block <= grid.step {
        return (CHUNK / grid.step).max(ROWS) * grid.step;
    }
    (CHUNK / block).max(1) * block
}

/// Writes zeros, cut among the threads as a step over this tensor will be: on a machine with several memories each page
/// then lies near the thread that will use it.
///
/// # Errors
/// None in practice: the signature is that of the pool.
pub fn zero(pool: &dyn Pool, tensor: SliceMut<'_>) -> Result<(), Panic> {
    let mut chunks = Vec::with_capacity(tensor.len() / CHUNK + 1);
    let mut rest = tensor;
    while rest.len() > CHUNK + CHUNK / 2 {
        let (chunk, tail) = rest.split_at(CHUNK);
        chunks.push(chunk);
        rest = tail;
    }
    chunks.push(rest);
    for_each(pool, &mut chunks, SliceMut::len, |_, chunk| chunk.fill_zero())
}

fn state_count(constants: &Constants) -> usize {
    struct Count<'c>(&'c mut usize);
    impl Visitor for Count<'_> {
        fn visit<F: Formula>(self, _: F) {
            *self.0 = F::STATES;
        }
    }
    // a rule that is not visited takes its tensors another way: no number of states fits
    let mut count = usize::MAX;
    constants.visit(Count(&mut count));
    count
}

impl Chunk<'_> {
    fn run(&mut self, constants: &[Constants], rows: &RowList<'_>, level: Level, sums: Option<&mut Lanes>) {
        let constants = &constants[self.constants as usize];
        if let Some(own) = self.rows {
            return self.run_rows(constants, own, rows, level, sums);
        }
        match self.tensors.layout {
            None => {
                let kinds = self.tensors.kinds();
                update(constants, level, self.grad_factor, kinds, &mut Some(self.tensors.whole()), sums);
            }
            Some(layout) => self.run_strided(constants, layout, level, sums),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Precision, Rule, Scalars};
    use crate::rules::adagrad::{Adagrad, Constants as AdagradConstants};

    /// The ranges of the chunks of a step over one parameter with one state.
    fn ranges(sizes: &[usize], param: &[isize], state: &[isize]) -> Vec<(usize, usize)> {
        let strides: Vec<_> = param.iter().zip(state).map(|(&p, &s)| [p, 0, s, 0, 0]).collect();
        let layout = Layout::new(sizes, &strides, [0; STREAMS]);
        let (mut p, grad) = (vec![0.0_f32; layout.extent(0).unwrap()], [1.0_f32]);
        let mut s = vec![0.0_f32; layout.extent(2).unwrap()];
        let rule = Adagrad { lr: 1.0, lr_decay: 0.0, weight_decay: 0.0, eps: 0.0 };
        let constants: AdagradConstants = rule.constants(&mut Scalars::new([0.0; 3], [Precision::F32; 3]), true);
        let mut step = Step::default();
        step.constants(Constants::Adagrad(constants));
        let states = [SliceMut::F32(&mut s), SliceMut::Absent, SliceMut::Absent];
        let tensors = Tensors { param: SliceMut::F32(&mut p), grad: Slice::F32(&grad), states, layout: Some(&layout) };
        step.push(tensors, 1.0).unwrap();
        assert_eq!(step.elements(), layout.len());
        step.chunks.iter().map(|chunk| chunk.range).collect()
    }

    #[test]
    fn strided_tensors_are_cut_between_blocks() {
        let n = CHUNK;
        assert_eq!(ranges(&[n, 3], &[6, 2], &[3, 1]), [(0, n), (n, 2 * n), (2 * n, 3 * n)]);
        // rows of 1,000 that are laid out differently: no chunk ends within one
        let each = CHUNK / 1000 * 1000;
        assert_eq!(ranges(&[200, 10, 100], &[2000, 200, 2], &[1000, 1, 10])[..2], [(0, each), (each, 2 * each)]);
        assert_eq!(ranges(&[1000, 200], &[200, 1], &[1, 1000]), [(0, 200_000)]);
        assert_eq!(ranges(&[3, 0], &[1, 1], &[1, 1]), [(0, 0)]);
    }
}
