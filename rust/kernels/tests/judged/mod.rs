//! Steps of parameters in fewer bytes, made of arbitrary bytes, and their judge: all is read as numbers, updated in
//! plain `f32` by the same body, and written again, by slow and obvious code.

mod drawn;
mod numbers;

use oxistep_kernels::compact::{Compact, Kept, pack, unpack};
use oxistep_kernels::driver::Refused;
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::program::Program;
use oxistep_kernels::rules::sgd::Sgd;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{
    AnyRule, Constants, Layout, Precision, Scalars, Slice, SliceMut, StateKind, Step, Tensors, bf16,
};

use crate::common::levels;
use crate::kept::Stream;

pub(crate) use drawn::{kinds, lie};

/// What a step does to elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'b> {
    Rule(Constants),
    /// A program, and its inputs.
    Program(&'b Program, &'b [f64]),
}

impl Body<'_> {
    /// Whether a stream is written: the parameter is 0, state k is 1 + k.
    fn writes(&self, stream: usize) -> bool {
        match self {
            Self::Rule(_) => true,
            Self::Program(program, _) => program.writes(stream),
        }
    }

    /// Whether anything is.
    fn writes_at_all(&self, streams: usize) -> bool {
        (0..streams).any(|stream| self.writes(stream))
    }
}

/// A parameter in fewer bytes, before a step.
#[derive(Clone, Debug)]
pub(crate) struct Lot {
    compact: Compact,
    param: Stream,
    /// States, headers, what is beside the parameter, its average.
    written: Vec<Stream>,
    grad: Stream,
    /// Of the parameter and the gradient, if that lies otherwise; and where its elements are.
    layout: Option<(Layout, Vec<usize>)>,
    factor: f64,
    elements: usize,
    /// Whether it is one of so many that memory is asked for what comes next.
    among_many: bool,
}

/// As many elements as make a step too large for the caches.
const MANY: usize = 1024 * 1024;

/// What a step comes to: whether it was taken, and all that is written.
type Outcome = (Result<(), Refused>, Vec<Stream>);

impl Lot {
    /// A step in every way, and what it gives beside plain numbers.
    pub(crate) fn judge(&self, body: Body<'_>) {
        let Some((pushed, expected)) = self.step(body, &Serial, Level::Baseline) else { return };
        if pushed.is_err() {
            let before: Vec<_> = std::iter::once(&self.param).chain(&self.written).cloned().collect();
            assert!(same(&expected, &before), "refused, and something is written: {:?}", self.compact);
        } else {
            self.check(body, &expected);
        }
        for level in levels() {
            for pool in [&Serial as &dyn Pool, &Rayon { threads: 2 }] {
                let Some((other, found)) = self.step(body, pool, level) else {
                    panic!("{level:?}: not at the baseline")
                };
                assert!(other == pushed && same(&found, &expected), "{level:?} {:?} {body:?}", self.compact);
            }
        }
        if pushed.is_ok() {
            // loops without tiles serve no averages
            let other = self.with_or_without_average();
            let most = expected.len().min(1 + other.written.len());
            for level in levels() {
                let found = other.step(body, &Serial, level).map(|(_, found)| found).unwrap_or_default();
                assert!(same(&found[..most], &expected[..most]), "{level:?} {:?} {:?}", self.compact, other.compact);
            }
        }
    }

    /// The same with an average, or without.
    fn with_or_without_average(&self) -> Self {
        let mut other = self.clone();
        if other.compact.average.take().is_some() {
            other.written.pop();
        } else {
            other.compact.average = Some(0.5);
            other.written.push(Stream::F32(vec![0.0; self.elements]));
        }
        other
    }

    /// A step; `None`: its numbers are not found, because totals wait for each other.
    fn step(&self, body: Body<'_>, pool: &dyn Pool, level: Level) -> Option<Outcome> {
        let (mut param, mut written) = (self.param.clone(), self.written.clone());
        let mut neighbour = self.neighbour();
        let mut step = Step::default();
        neighbour.push(&mut step);
        begin(&mut step, body);
        let states = written.iter_mut().map(Stream::slice_mut);
        let layout = self.layout.as_ref().map(|(layout, _)| layout);
        let tensors = Tensors { param: param.slice_mut(), grad: self.grad.slice(), states, layout };
        let before = step.elements();
        let pushed = step.push_compact(tensors, &self.compact, self.factor);
        assert_eq!(step.elements() - before, if pushed.is_ok() { self.elements } else { 0 });
        step.reduce(pool, level).ok()?;
        step.run(pool, level).unwrap_or_else(|_| panic!("a kernel panicked"));
        drop(step);
        Some((pushed, std::iter::once(param).chain(written).collect()))
    }

    /// What makes the step large, if it is.
    fn neighbour(&self) -> Neighbour {
        let zeros = || vec![bf16::ZERO; if self.among_many { MANY + 1 } else { 0 }];
        Neighbour { param: zeros(), grad: zeros() }
    }

    /// What a plain step makes of the numbers: those of the parameter and of its states.
    fn plain(&self, body: Body<'_>) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut param = numbers::weights(&self.compact, &self.param, self.companion());
        let mut states = self.states(&self.written);
        let grad: Vec<f32> = match &self.layout {
            None => (0..self.elements).map(|i| self.grad.number(i)).collect(),
            Some((_, places)) => places.iter().map(|&at| self.grad.number(at)).collect(),
        };
        let mut neighbour = self.neighbour();
        let mut step = Step::default();
        neighbour.push(&mut step);
        begin(&mut step, body);
        let slices = states.iter_mut().map(|state| SliceMut::F32(state));
        let tensors =
            Tensors { param: SliceMut::F32(&mut param), grad: Slice::F32(&grad), states: slices, layout: None };
        step.push(tensors, self.factor).expect("plain numbers");
        step.reduce(&Serial, Level::Baseline).expect("it was found before");
        step.run(&Serial, Level::Baseline).unwrap_or_else(|_| panic!("a kernel panicked"));
        drop(step);
        (param, states)
    }

    /// What stands beside the parameter.
    fn companion(&self) -> Option<&Stream> {
        self.compact.weights.has_companion().then(|| &self.written[self.header(self.compact.states.len())])
    }

    /// The place of the header of a state among what is written; that after the last header's of no state.
    fn header(&self, state: usize) -> usize {
        let states = &self.compact.states;
        states.len() + states[..state].iter().filter(|kept| matches!(kept, Kept::Codes(_))).count()
    }

    /// The numbers of the states.
    fn states(&self, written: &[Stream]) -> Vec<Vec<f32>> {
        let mut states = vec![Vec::new(); self.compact.states.len()];
        // what is relative to others comes after them
        for relative in [false, true] {
            for (k, &kept) in self.compact.states.iter().enumerate().filter(|(_, kept)| is_relative(**kept) == relative)
            {
                states[k] = match (kept, &written[k], written.get(self.header(k))) {
                    (Kept::Codes(kind), Stream::U8(codes), Some(Stream::F32(headers))) => {
                        let mut out = vec![0.0; self.elements];
                        unpack(kind, codes, headers, divisor(kind, &states), &mut out);
                        out
                    }
                    (_, numbers, _) => (0..self.elements).map(|i| numbers.number(i)).collect(),
                };
            }
        }
        states
    }

    /// Judges what a step has written.
    fn check(&self, body: Body<'_>, after: &[Stream]) {
        let (param, states) = self.plain(body);
        let read = self.states(&after[1..]);
        let companion = self.compact.weights.has_companion().then(|| 1 + self.header(self.compact.states.len()));
        let something = body.writes_at_all(1 + states.len());
        let what = || format!("{:?} {body:?}", self.compact);
        if body.writes(0) {
            numbers::check_weights(&self.compact, &param, &after[0], companion.map(|at| &after[at]));
        } else {
            assert!(same(&after[..1], std::slice::from_ref(&self.param)), "{}", what());
        }
        for (k, &kept) in self.compact.states.iter().enumerate() {
            let with = |k: usize| body.writes(1 + k);
            let is_written =
                with(k) || matches!(kept, Kept::Codes(StateKind::Relative { to, .. }) if something && with(to.into()));
            if !is_written {
                assert!(same(&after[1 + k..2 + k], &self.written[k..=k]), "state {k} {}", what());
                continue;
            }
            match (kept, &after[1 + k]) {
                (Kept::Codes(kind), Stream::U8(codes)) => {
                    let Stream::F32(headers) = &after[1 + self.header(k)] else { panic!("headers are numbers") };
                    self.check_codes(k, kind, (codes, headers), &states[k], &read);
                }
                (Kept::Fair, Stream::Bf16(found)) => numbers::check_fair(&states[k], found),
                (_, found) => assert!(same(&[numbers::rounded(&states[k], found)], &after[1 + k..2 + k]), "{}", what()),
            }
        }
        if let (Some(weight), true) = (self.compact.average, something) {
            let now = numbers::weights(&self.compact, &after[0], companion.map(|at| &after[at]));
            let (Some(Stream::F32(before)), Some(average)) = (self.written.last(), after.last()) else { panic!() };
            let moved = before.iter().zip(now).map(|(&a, x)| numbers::lerp(a, x, weight as f32)).collect();
            assert!(same(&[Stream::F32(moved)], std::slice::from_ref(average)), "the average: {}", what());
        }
    }

    /// Judges codes: they are those of the same numbers without what is none.
    fn check_codes(
        &self,
        k: usize,
        kind: StateKind,
        (codes, headers): (&[u8], &[f32]),
        new: &[f32],
        read: &[Vec<f32>],
    ) {
        let of = divisor(kind, read);
        let kept = |i: usize, x: f32| match kind {
            _ if !x.is_finite() => false,
            StateKind::Magnitude => x > 0.0,
            StateKind::Relative { .. } => of.is_some_and(|of| of[i].is_finite() && of[i] > 0.0),
            _ => true,
        };
        let finite: Vec<f32> = new.iter().enumerate().map(|(i, &x)| if kept(i, x) { x } else { 0.0 }).collect();
        let (mut right, mut of_right) = (vec![0; codes.len()], vec![0.0; headers.len()]);
        pack(kind, &finite, of, (&mut right, &mut of_right), self.compact.noise, 1 + k);
        // (what is relative has two codes for zero)
        let is_zero = |code: u8| matches!(kind, StateKind::Relative { .. }) && code & 0x7f == 0;
        let differs = codes.iter().zip(&right).position(|(&a, &b)| a != b && !(is_zero(a) && is_zero(b)));
        assert!(differs.is_none(), "codes of state {k}, element {differs:?}: {kind:?}");
        assert!(same(&[Stream::F32(headers.to_vec())], &[Stream::F32(of_right)]), "headers of state {k}: {kind:?}");
        for (i, (&x, &y)) in finite.iter().zip(&read[k]).enumerate() {
            let is_right = y.is_finite() && (y == 0.0 || x.signum() == y.signum());
            assert!(is_right, "state {k}, element {i}: {x} is read as {y}, {kind:?}");
        }
    }
}

/// A parameter that is pushed before another one, and is never changed.
struct Neighbour {
    param: Vec<bf16>,
    grad: Vec<bf16>,
}

impl Neighbour {
    fn push<'a>(&'a mut self, step: &mut Step<'a>) {
        let Self { param, grad } = self;
        if param.is_empty() {
            return;
        }
        let rule = Sgd { lr: 0.0, momentum: 0.0, dampening: 0.0, weight_decay: 0.0, nesterov: false };
        step.constants(AnyRule::Sgd(rule).constants(&mut Scalars::new([0.0; 3], [Precision::F32; 3]), true));
        let states: [SliceMut<'_>; 0] = [];
        let tensors = Tensors { param: SliceMut::Bf16(param), grad: Slice::Bf16(grad), states, layout: None };
        step.push(tensors, 1.0).expect("plain numbers");
    }
}

fn begin<'a>(step: &mut Step<'a>, body: Body<'a>) {
    match body {
        Body::Rule(constants) => step.constants(constants),
        Body::Program(program, inputs) => step.program(program, inputs).unwrap(),
    }
}

fn is_relative(kept: Kept) -> bool {
    matches!(kept, Kept::Codes(StateKind::Relative { .. }))
}

/// What a state in codes is relative to.
fn divisor(kind: StateKind, states: &[Vec<f32>]) -> Option<&[f32]> {
    let StateKind::Relative { to, .. } = kind else { return None };
    // one that is relative itself is read later, and refused
    states.get(usize::from(to)).map(Vec::as_slice).filter(|of| !of.is_empty())
}

/// Whether all bits are the same, but for those of NaNs.
fn same(a: &[Stream], b: &[Stream]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bytes() == b.bytes())
}
