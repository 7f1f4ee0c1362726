//! What the tests share: tensors of any storage type that own their elements, random values, every rule and variant.
#![allow(dead_code)] // each test file uses its own part

use std::panic::resume_unwind;

use oxistep_kernels::pool::Pool;
use oxistep_kernels::rules::{
    adadelta::Adadelta, adagrad::Adagrad, adam::Adam, adamax::Adamax, asgd::Asgd, nadam::NAdam, radam::RAdam,
    rmsprop::RmsProp, rprop::Rprop, sgd::Sgd, sparse_adam::SparseAdam,
};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Layout, MAX_SCALARS, Precision, Scalars, Slice, SliceMut, Step, Tensors, bf16, f16};
use proptest::test_runner::Config;

/// A storage type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    F64,
    F32,
    F16,
    Bf16,
}
use Type::{Bf16, F16, F32, F64};

impl Type {
    /// The number of this type nearest to `x`, seen as f32 first. (`half` has `from_f64`, but that drops the last 32
    /// bits before it rounds, and so takes what is just above the middle for the middle.)
    pub(crate) fn round(self, x: f64) -> f64 {
        match self {
            F64 => x,
            F32 => f64::from(x as f32),
            F16 => f64::from(f16::from_f32(x as f32)),
            Bf16 => f64::from(bf16::from_f32(x as f32)),
        }
    }
}

pub(crate) const TYPES: [Type; 4] = [F64, F32, F16, Bf16];

/// The storage types of parameter, gradient and states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Types(pub(crate) Type, pub(crate) Type, pub(crate) Type);

/// Every combination that a loop is compiled for.
pub(crate) const COMBINATIONS: [Types; 8] = [
    Types(F64, F64, F64),
    Types(F32, F32, F32),
    Types(F32, Bf16, F32),
    Types(F32, F16, F32),
    Types(Bf16, Bf16, Bf16),
    Types(Bf16, Bf16, F32),
    Types(F16, F16, F16),
    Types(F16, F16, F32),
];

/// All of them, and two of the others that are updated.
pub(crate) fn every_combination() -> Vec<Types> {
    COMBINATIONS.into_iter().chain([Types(F32, F32, Bf16), Types(Bf16, F16, F32)]).collect()
}

/// The elements of one tensor.
#[derive(Clone, Debug)]
pub(crate) enum Buffer {
    F64(Vec<f64>),
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Buffer {
    /// The values, rounded to the type.
    pub(crate) fn new(ty: Type, values: impl Iterator<Item = f64>) -> Self {
        match ty {
            F64 => Self::F64(values.collect()),
            F32 => Self::F32(values.map(|x| x as f32).collect()),
            F16 => Self::F16(values.map(|x| f16::from_f32(x as f32)).collect()),
            Bf16 => Self::Bf16(values.map(|x| bf16::from_f32(x as f32)).collect()),
        }
    }

    pub(crate) fn zeros(ty: Type, len: usize) -> Self {
        Self::new(ty, std::iter::repeat_n(0.0, len))
    }

    pub(crate) fn ty(&self) -> Type {
        match self {
            Self::F64(_) => F64,
            Self::F32(_) => F32,
            Self::F16(_) => F16,
            Self::Bf16(_) => Bf16,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slice().len()
    }

    pub(crate) fn get(&self, i: usize) -> f64 {
        match self {
            Self::F64(x) => x[i],
            Self::F32(x) => f64::from(x[i]),
            Self::F16(x) => f64::from(x[i]),
            Self::Bf16(x) => f64::from(x[i]),
        }
    }

    pub(crate) fn set(&mut self, i: usize, value: f64) {
        match self {
            Self::F64(x) => x[i] = value,
            Self::F32(x) => x[i] = value as f32,
            Self::F16(x) => x[i] = f16::from_f32(value as f32),
            Self::Bf16(x) => x[i] = bf16::from_f32(value as f32),
        }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The bits of every element, all NaNs alike: their payloads are not promised.
    pub(crate) fn bits(&self) -> Vec<u64> {
        fn same<T: Copy>(x: &[T], nan: impl Fn(T) -> bool, bits: impl Fn(T) -> u64) -> Vec<u64> {
            x.iter().map(|&x| if nan(x) { u64::MAX } else { bits(x) }).collect()
        }
        match self {
            Self::F64(x) => same(x, f64::is_nan, f64::to_bits),
            Self::F32(x) => same(x, f32::is_nan, |x| x.to_bits().into()),
            Self::F16(x) => same(x, f16::is_nan, |x| x.to_bits().into()),
            Self::Bf16(x) => same(x, bf16::is_nan, |x| x.to_bits().into()),
        }
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        match self {
            Self::F64(x) => Slice::F64(x),
            Self::F32(x) => Slice::F32(x),
            Self::F16(x) => Slice::F16(x),
            Self::Bf16(x) => Slice::Bf16(x),
        }
    }

    pub(crate) fn slice_mut(&mut self) -> SliceMut<'_> {
        match self {
            Self::F64(x) => SliceMut::F64(x),
            Self::F32(x) => SliceMut::F32(x),
            Self::F16(x) => SliceMut::F16(x),
            Self::Bf16(x) => SliceMut::Bf16(x),
        }
    }
}

/// A parameter with all that belongs to it.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) rule: AnyRule,
    pub(crate) param: Buffer,
    pub(crate) grad: Buffer,
    pub(crate) states: Vec<Buffer>,
    pub(crate) layout: Option<Layout>,
    pub(crate) scalars: Scalars,
    /// Scalars other than `step` are kept in the type of the states. (Often they are f32; a checkpoint may change
    /// that.)
    pub(crate) scalar_type: Type,
    /// The next step is the one that the states were made for.
    pub(crate) first: bool,
    pub(crate) grad_factor: f64,
}

impl Parameter {
    /// Before its first step. States are zero but for Rprop's step sizes.
    pub(crate) fn new(rule: AnyRule, types: Types, len: usize, values: Values, rng: &mut Random) -> Self {
        let state = |name: &&str| {
            let initial = if *name == "step_size" { 0.01 } else { 0.0 };
            Buffer::new(types.2, std::iter::repeat_n(initial, len))
        };
        Self {
            rule,
            param: values.buffer(types.0, len, rng),
            grad: values.buffer(types.1, len, rng),
            states: rule.states().iter().map(state).collect(),
            layout: None,
            scalars: scalars(&rule, types.2, |name| match (name, &rule) {
                ("eta", AnyRule::Asgd(h)) => h.lr,
                ("mu" | "mu_product", _) => 1.0,
                _ => 0.0,
            }),
            scalar_type: types.2,
            first: true,
            grad_factor: 1.0,
        }
    }

    /// As if `steps` had been made before: states of that age. What is never negative is not so here, and the average
    /// of squares is no smaller than the square of the average.
    pub(crate) fn aged(mut self, steps: u32, values: Values, rng: &mut Random) -> Self {
        for (name, state) in self.rule.states().iter().zip(&mut self.states) {
            let signed = matches!(*name, "momentum_buffer" | "exp_avg" | "ax" | "prev");
            let drawn = values.buffer(state.ty(), state.len(), rng);
            *state = Buffer::new(state.ty(), drawn.values().map(|x| if signed { x } else { x.abs() }));
        }
        if let Some(average) = self.rule.states().iter().position(|&name| name == "grad_avg") {
            let roots = self.states[0].values().map(|square| square.sqrt() * rng.between(-0.9, 0.9));
            self.states[average] = Buffer::new(self.states[average].ty(), roots);
        }
        let rule = self.rule;
        self.scalars = scalars(&rule, self.scalar_type, |name| match (name, &rule) {
            ("step", _) => f64::from(steps),
            ("eta", AnyRule::Asgd(h)) => h.lr * rng.between(0.1, 1.0),
            ("mu", _) => [1.0, 1.0 / (1.0 + rng.below(100) as f64)][rng.below(2)],
            _ => rng.between(0.0, 0.9),
        });
        self.first = false;
        self
    }

    pub(crate) fn tensors(&mut self) -> Tensors<'_, impl IntoIterator<Item = SliceMut<'_>>> {
        let states = self.states.iter_mut().map(Buffer::slice_mut);
        Tensors { param: self.param.slice_mut(), grad: self.grad.slice(), states, layout: self.layout.as_ref() }
    }

    /// Parameter and states, bit for bit.
    pub(crate) fn bits(&self) -> Vec<Vec<u64>> {
        std::iter::once(&self.param).chain(&self.states).map(Buffer::bits).collect()
    }
}

fn scalars(rule: &AnyRule, ty: Type, mut value: impl FnMut(&str) -> f64) -> Scalars {
    let (counter, others) = match ty {
        F64 => (Precision::F64, Precision::F64),
        F32 => (Precision::F32, Precision::F32),
        F16 => (Precision::F32, Precision::F16),
        Bf16 => (Precision::F32, Precision::Bf16),
    };
    let mut precisions = [others; MAX_SCALARS];
    precisions[0] = counter;
    let mut scalars = Scalars::new([0.0; MAX_SCALARS], precisions);
    rule.scalars().iter().enumerate().for_each(|(i, name)| scalars.set(i, value(name)));
    scalars
}

/// One step of all parameters together.
pub(crate) fn update(parameters: &mut [Parameter], pool: &dyn Pool, level: Level) {
    let mut step = Step::default();
    for parameter in parameters {
        step.constants(parameter.rule.constants(&mut parameter.scalars, parameter.first));
        parameter.first = false;
        let grad_factor = parameter.grad_factor;
        step.push(parameter.tensors(), grad_factor).unwrap();
    }
    step.run(pool, level).unwrap_or_else(|panic| resume_unwind(panic));
}

/// Whether each test is to do as little as it can: under valgrind everything takes a hundred times as long.
pub(crate) fn under_valgrind() -> bool {
    std::env::var_os("OXISTEP_TESTS_BRIEFLY").is_some_and(|value| value == "valgrind")
}

/// Whether the run is to be short, as that of `make test` (`make test-whole` is not): of what is tried with every rule,
/// every combination of types and many elements, as much as meets each of these, not all of them with each other.
pub(crate) fn brief() -> bool {
    std::env::var_os("OXISTEP_TESTS_BRIEFLY").is_some()
}

/// Every variant of every rule with every combination of types; in a short run each rule with two combinations, each
/// combination with every fourth rule.
pub(crate) fn rules_and_types() -> impl Iterator<Item = (AnyRule, Types)> {
    let all = every_rule().into_iter().enumerate();
    let pairs =
        all.flat_map(|(i, rule)| COMBINATIONS.into_iter().enumerate().map(move |(j, types)| (i + j, rule, types)));
    pairs.filter(|(turn, ..)| !brief() || turn % 4 == 0).map(|(_, rule, types)| (rule, types))
}

/// So many random cases, in a short run a third. A failing one is printed whole, seed included, so none is kept in a
/// file.
pub(crate) fn cases(n: u32) -> Config {
    Config { cases: if brief() { n.div_ceil(3) } else { n }, failure_persistence: None, ..Config::default() }
}

/// The levels of this processor.
pub(crate) fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.available())
}

/// Random numbers from a seed (splitmix64), so that a case stays small enough to print and shrink.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A whole number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * ((self.bits() >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// What random elements look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Between 0.01 and 10, either sign, some zero: what training looks like.
    Scaled,
    /// Over many decades; zeros and denormals among them.
    Wide,
    /// Any bits at all: NaN, infinities, denormals.
    Any,
}

impl Values {
    pub(crate) fn buffer(self, ty: Type, len: usize, rng: &mut Random) -> Buffer {
        Buffer::new(ty, (0..len).map(|_| self.draw(ty, rng)))
    }

    fn draw(self, ty: Type, rng: &mut Random) -> f64 {
        let sign = if rng.below(2) == 0 { 1.0 } else { -1.0 };
        let (decades, smallest) = match ty {
            F64 => ((-60.0, 60.0), f64::from_bits(1)),
            F32 => ((-12.0, 12.0), f64::from(f32::from_bits(1))),
            Bf16 => ((-12.0, 12.0), f64::from(bf16::from_bits(1))),
            F16 => ((-6.0, 2.0), f64::from(f16::from_bits(1))),
        };
        match (self, rng.below(16)) {
            (Self::Any, _) => match ty {
                F64 => f64::from_bits(rng.bits()),
                F32 => f64::from(f32::from_bits(rng.bits() as u32)),
                F16 => f64::from(f16::from_bits(rng.bits() as u16)),
                Bf16 => f64::from(bf16::from_bits(rng.bits() as u16)),
            },
            (_, 0) => sign * 0.0,
            (Self::Scaled, _) => sign * 10f64.powf(rng.between(-2.0, 1.0)),
            (Self::Wide, 1) => sign * smallest * rng.below(1000) as f64,
            (Self::Wide, _) => sign * 10f64.powf(rng.between(decades.0, decades.1)),
        }
    }
}

/// Every rule in every variant of its formula. (RAdam's two and SGD's two also depend on the step: the sixth step and
/// the first one differ from the others.)
pub(crate) fn every_rule() -> Vec<AnyRule> {
    let mut rules = Vec::new();
    for weight_decay in [0.0, 0.01] {
        for (momentum, dampening, nesterov) in [(0.0, 0.0, false), (0.9, 0.2, false), (0.8, 0.0, true)] {
            rules.push(AnyRule::Sgd(Sgd { lr: 0.1, momentum, dampening, weight_decay, nesterov }));
        }
        rules.push(AnyRule::Adagrad(Adagrad { lr: 0.1, lr_decay: 0.05, weight_decay, eps: 1e-10 }));
        for (momentum, centered) in [(0.0, false), (0.9, false), (0.0, true), (0.9, true)] {
            rules.push(AnyRule::RmsProp(RmsProp { lr: 0.1, alpha: 0.99, eps: 1e-8, weight_decay, momentum, centered }));
        }
        for (amsgrad, decoupled_weight_decay) in [(false, false), (false, true), (true, false), (true, true)] {
            let (beta1, beta2) = (0.9, 0.999);
            let (lr, eps) = (0.1, 1e-8);
            rules.push(AnyRule::Adam(Adam { lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled_weight_decay }));
        }
        let (lr, beta1, beta2, eps, momentum_decay) = (0.1, 0.9, 0.999, 1e-8, 0.004);
        for decoupled_weight_decay in [false, true] {
            rules.push(AnyRule::NAdam(NAdam {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                momentum_decay,
                decoupled_weight_decay,
            }));
            rules.push(AnyRule::RAdam(RAdam { lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay }));
        }
        rules.push(AnyRule::Adadelta(Adadelta { lr, rho: 0.9, eps: 1e-6, weight_decay }));
        rules.push(AnyRule::Adamax(Adamax { lr, beta1, beta2, eps, weight_decay }));
        for t0 in [0.0, 1e6] {
            rules.push(AnyRule::Asgd(Asgd { lr, lambd: 1e-4, alpha: 0.75, t0, weight_decay }));
        }
    }
    rules.push(AnyRule::SparseAdam(SparseAdam { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8 }));
    rules.push(AnyRule::Rprop(Rprop { eta_minus: 0.5, eta_plus: 1.2, smallest: 1e-6, largest: 50.0 }));
    rules
}
