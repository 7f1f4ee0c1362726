//! Parameters whose states and weights are kept in fewer bytes, in plain memory.
#![allow(dead_code, reason = "not every test uses all of it")]

use oxistep_kernels::compact::{BLOCK, Compact, Kept, Noise, Weights};
use oxistep_kernels::pool::Pool;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Layout, Precision, Scalars, Slice, SliceMut, StateKind, Step, Tensors, bf16, f16};

/// A stream of any format.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stream {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    U8(Vec<u8>),
    I16(Vec<i16>),
}

impl Stream {
    pub(crate) fn slice_mut(&mut self) -> SliceMut<'_> {
        match self {
            Self::F32(x) => SliceMut::F32(x),
            Self::F16(x) => SliceMut::F16(x),
            Self::Bf16(x) => SliceMut::Bf16(x),
            Self::U8(x) => SliceMut::U8(x),
            Self::I16(x) => SliceMut::I16(x),
        }
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        match self {
            Self::F32(x) => Slice::F32(x),
            Self::F16(x) => Slice::F16(x),
            Self::Bf16(x) => Slice::Bf16(x),
            Self::U8(x) => Slice::U8(x),
            Self::I16(x) => Slice::I16(x),
        }
    }

    pub(crate) fn bf16(values: impl Iterator<Item = f32>) -> Self {
        Self::Bf16(values.map(bf16::from_f32).collect())
    }

    pub(crate) fn number(&self, i: usize) -> f32 {
        match self {
            Self::F32(x) => x[i],
            Self::F16(x) => x[i].to_f32(),
            Self::Bf16(x) => x[i].to_f32(),
            Self::U8(_) | Self::I16(_) => panic!("codes are no numbers"),
        }
    }

    /// Their bytes; of numbers that are none, any.
    pub(crate) fn bytes(&self) -> Vec<u32> {
        match self {
            Self::F32(x) => x.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect(),
            Self::F16(x) => x.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits().into() }).collect(),
            Self::Bf16(x) => x.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits().into() }).collect(),
            Self::U8(x) => x.iter().map(|&x| x.into()).collect(),
            Self::I16(x) => x.iter().map(|&x| x as u16 as u32).collect(),
        }
    }
}

/// How the states of a rule are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum States {
    F32,
    /// Magnitudes rounded with fair odds.
    Bf16,
    /// Where the rule's states can be.
    Codes,
}

/// A parameter with all that is kept of it.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) rule: AnyRule,
    pub(crate) scalars: Scalars,
    pub(crate) compact: Compact,
    pub(crate) param: Stream,
    /// States, headers, what is beside the parameter.
    pub(crate) written: Vec<Stream>,
    pub(crate) place: [u64; 2],
    pub(crate) steps: u64,
}

impl Parameter {
    /// At its start: states are zero.
    pub(crate) fn new(rule: AnyRule, weights: Weights, states: States, values: &[f32]) -> Self {
        let n = values.len();
        let param = match weights {
            Weights::Nearest => Stream::F32(values.to_vec()),
            _ => Stream::bf16(values.iter().copied()),
        };
        let kept: Vec<Kept> = rule.kinds().iter().map(|kind| kept(*kind, states)).collect();
        let mut written: Vec<Stream> = kept
            .iter()
            .map(|kept| match kept {
                Kept::Nearest if states == States::Bf16 => Stream::bf16(std::iter::repeat_n(0.0, n)),
                Kept::Nearest => Stream::F32(vec![0.0; n]),
                Kept::Fair => Stream::bf16(std::iter::repeat_n(0.0, n)),
                Kept::Codes(_) => Stream::U8(vec![0; n]),
            })
            .collect();
        let headers = kept.iter().filter(|kept| matches!(kept, Kept::Codes(_)));
        written.extend(headers.map(|_| Stream::F32(vec![0.0; n.div_ceil(BLOCK)])).collect::<Vec<_>>());
        match weights {
            Weights::Nearest | Weights::Fair => {}
            Weights::Kahan => written.push(Stream::bf16(std::iter::repeat_n(0.0, n))),
            Weights::Residual8 => written.push(Stream::U8(vec![0; n])),
            Weights::Residual16 => written.push(Stream::I16(vec![0; n])),
            Weights::Master => written.push(Stream::F32((0..n).map(|i| param.number(i)).collect())),
        }
        let compact = Compact { weights, states: kept, noise: Noise::default(), average: None };
        let scalars = Scalars::new([0.0; 3], [Precision::F32; 3]);
        Self { rule, scalars, compact, param, written, place: [0, 0], steps: 0 }
    }

    /// With an average, which begins as the parameter.
    #[allow(dead_code, reason = "not every test has averages")]
    pub(crate) fn averaged(mut self, weight: f64) -> Self {
        self.compact.average = Some(weight);
        self.written.push(Stream::F32(self.values()));
        self
    }

    /// Begins a step.
    pub(crate) fn push<'a>(&'a mut self, step: &mut Step<'a>, grad: Slice<'a>) {
        self.push_as(step, grad, None);
    }

    /// The same with a gradient that lies as a layout says.
    pub(crate) fn push_as<'a>(&'a mut self, step: &mut Step<'a>, grad: Slice<'a>, layout: Option<&'a Layout>) {
        self.steps += 1;
        self.compact.noise = Noise::new(7, self.place, self.steps);
        step.constants(self.rule.constants(&mut self.scalars, self.steps == 1));
        let states = self.written.iter_mut().map(Stream::slice_mut);
        let tensors = Tensors { param: self.param.slice_mut(), grad, states, layout };
        step.push_compact(tensors, &self.compact, 1.0).unwrap();
    }

    pub(crate) fn step(&mut self, grad: Slice<'_>, pool: &dyn Pool, level: Level) {
        let mut step = Step::default();
        self.push(&mut step, grad);
        step.run(pool, level).unwrap();
    }

    /// The bits of all that is kept.
    pub(crate) fn bytes(&self) -> Vec<Vec<u32>> {
        std::iter::once(&self.param).chain(&self.written).map(Stream::bytes).collect()
    }

    pub(crate) fn values(&self) -> Vec<f32> {
        let n = match &self.param {
            Stream::F32(x) => x.len(),
            Stream::Bf16(x) => x.len(),
            _ => 0,
        };
        (0..n).map(|i| self.param.number(i)).collect()
    }
}

fn kept(kind: StateKind, states: States) -> Kept {
    match (states, kind) {
        (States::F32, _) | (_, StateKind::Exact) => Kept::Nearest,
        (States::Bf16, StateKind::Magnitude | StateKind::Fine) => Kept::Fair,
        (States::Bf16, _) => Kept::Nearest,
        (States::Codes, StateKind::Fine) => Kept::Fair,
        (States::Codes, kind) => Kept::Codes(kind),
    }
}
