//! Every rule against its readable reference: parameters and states, for every combination of storage types.
//!
//! Each step is judged on what it was given, so that errors do not pile up and the bound stays that of a few roundings.

mod common;
mod reference;

use std::cell::Cell;
use std::collections::HashMap;

use common::{
    Buffer, COMBINATIONS, Parameter, Random, Type, Types, Values, brief, cases, every_combination, every_rule, update,
};
use oxistep_kernels::arithmetic::Real;
use oxistep_kernels::pool::Serial;
use oxistep_kernels::rules::{
    adadelta::Adadelta, adafactor::Adafactor, adagrad::Adagrad, adam::Adam, adamax::Adamax, asgd::Asgd, nadam::NAdam,
    radam::RAdam, rmsprop::RmsProp, rprop::Rprop, sgd::Sgd, sparse_adam::SparseAdam,
};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{
    AnyRule, Gradients, Hyperparameters, Kind, MAX_SCALARS, MAX_STATES, Precision, Scalars, bf16, f16,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use reference::{Arithmetic, Element, Interval, Named};

/// How many random cases a rule gets for each combination of types.
const CASES: u32 = 128;

/// Some steps of one parameter.
#[derive(Clone, Debug)]
struct Case {
    rule: AnyRule,
    len: usize,
    /// Steps made before, with states of that age.
    age: u32,
    steps: u32,
    grad_factor: f64,
    values: Values,
    seed: u64,
}

/// Lengths around those of a block, a tile, a chunk, the longest tensor that is not cut, and twice a chunk.
const EDGES: [usize; 15] =
    [63, 64, 65, 255, 256, 257, 65_535, 65_536, 65_537, 98_303, 98_304, 98_305, 131_071, 131_072, 131_073];

fn case(rule: impl Strategy<Value = AnyRule>) -> impl Strategy<Value = Case> {
    let len = prop_oneof![100 => 0..200usize, 10 => 250..260usize, 1 => prop::sample::select(&EDGES)];
    let age = prop_oneof![Just(0u32), 1..20u32, 1..100_000u32];
    let grad_factor = prop_oneof![3 => Just(1.0), 3 => Just(-1.0), 1 => Just(1.0 / 65536.0), 1 => -2.0..2.0f64];
    let values = prop_oneof![2 => Just(Values::Scaled), 1 => Just(Values::Wide)];
    (rule, len, age, 1..5u32, grad_factor, values, any::<u64>()).prop_map(
        |(rule, len, age, steps, grad_factor, values, seed)| Case { rule, len, age, steps, grad_factor, values, seed },
    )
}

impl Case {
    fn parameter(&self, types: Types, rng: &mut Random) -> Parameter {
        let mut parameter = Parameter::new(self.rule, types, self.len, self.values, rng);
        if self.age > 0 {
            parameter = parameter.aged(self.age, self.values, rng);
        } else if matches!(self.rule, AnyRule::Sgd(_)) {
            // the buffer of a first step is written, never read
            parameter
                .states
                .iter_mut()
                .for_each(|state| *state = Buffer::new(state.ty(), vec![f64::NAN; self.len].into_iter()));
        }
        parameter.grad_factor = self.grad_factor;
        parameter
    }

    fn check(&self, types: Types, tally: impl Fn(f64)) -> Result<(), TestCaseError> {
        let mut rng = Random(self.seed);
        let mut parameter = self.parameter(types, &mut rng);
        for step in 0..self.steps {
            if step > 0 {
                parameter.grad = self.values.buffer(types.1, self.len, &mut rng);
            }
            let before = parameter.clone();
            update(std::slice::from_mut(&mut parameter), &Serial, Level::best());
            let t = f64::from(self.age + step + 1);
            if !self.rule.scalars().is_empty() {
                prop_assert_eq!(parameter.scalars.get(0), t, "the step counter");
            }
            tally(judge(&before, &parameter, t)?);
        }
        Ok(())
    }
}

/// Whether every element and scalar of `after` is what the reference allows, `before` given. Returns the share of
/// bounds that are too wide to mean much.
fn judge(before: &Parameter, after: &Parameter, t: f64) -> Result<f64, TestCaseError> {
    let arithmetic = if before.param.ty() == Type::F64 { Arithmetic::Double } else { Arithmetic::Single };
    let exact = |x| Interval::exact(x, arithmetic);
    let rule = &before.rule;
    let mut blunt = 0;
    for i in 0..before.param.len() {
        let mut states: Vec<Interval> = before.states.iter().map(|buffer| exact(buffer.get(i))).collect();
        let mut scalars: Vec<Interval> = (0..rule.scalars().len()).map(|k| exact(before.scalars.get(k))).collect();
        let element = Element {
            theta: exact(before.param.get(i)),
            grad: before.grad_factor * exact(before.grad.get(i)),
            states: Named { names: rule.states(), values: &mut states },
            scalars: Named { names: rule.scalars(), values: &mut scalars },
            keep: &|x| before.scalar_type.round(x),
            t,
            first: before.first,
        };
        let theta = reference::step(rule, element);

        let names = std::iter::once(&"param").chain(rule.states());
        let expected = std::iter::once(theta).chain(states);
        let got = std::iter::once(&after.param).chain(&after.states);
        for ((name, expected), got) in names.zip(expected).zip(got) {
            let Interval { low, high, .. } = expected.kept(|x| got.ty().round(x));
            let x = got.get(i);
            let inside = !expected.is_bounded() || low <= x && x <= high;
            prop_assert!(inside, "{name}[{i}] at step {t} is {x:e}, expected {low:e} to {high:e}");
            let sharp = high - low <= sharpness(got.ty()) * (1e-2 + low.abs().max(high.abs()));
            blunt += usize::from(!expected.is_bounded() || !sharp);
        }
        for (k, (name, expected)) in rule.scalars().iter().zip(&scalars).enumerate().skip(1) {
            let x = after.scalars.get(k);
            let inside = expected.low <= x && x <= expected.high;
            prop_assert!(inside, "{name} at step {t} is {x:e}, expected {:e} to {:e}", expected.low, expected.high);
        }
    }
    Ok(blunt as f64 / ((1 + rule.states().len()) * before.param.len()).max(1) as f64)
}

/// How wide the bounds may be, relative to the value, on values such as training has: what makes agreement with the
/// reference worth something. f64: many roundings, each 2e-16; f32: a hundred roundings; halves: the two neighbours.
fn sharpness(ty: Type) -> f64 {
    match ty {
        Type::F64 => 1e-12,
        Type::F32 => 100.0 * f64::from(f32::EPSILON),
        Type::F16 => 2.0 * f64::from(f16::EPSILON),
        Type::Bf16 => 2.0 * f64::from(bf16::EPSILON),
    }
}

/// Checks random cases for every combination of types. On ordinary values hardly any number may be hard to judge, as it
/// is after much cancellation.
fn check(rule: impl Strategy<Value = AnyRule>) {
    let strategy = case(rule);
    for types in every_combination() {
        let (steps, blunt) = (Cell::new(0.0), Cell::new(0.0));
        let check = |case: Case| {
            case.check(types, |share| {
                if case.values == Values::Scaled {
                    steps.set(steps.get() + 1.0);
                    blunt.set(blunt.get() + share);
                }
            })
        };
        TestRunner::new(cases(CASES)).run(&strategy, check).unwrap_or_else(|failure| panic!("{types:?}: {failure}"));
        // SparseAdam's are 0.03 on average, and scatter by 0.01
        assert!(blunt.get() < 0.1 * steps.get(), "{types:?}: too many bounds are too wide");
    }
}

/// Zero, which often selects a variant of its own, or a number of the range.
fn maybe(range: std::ops::Range<f64>) -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), range]
}

/// A learning rate, or another positive number.
fn decades(low: f64, high: f64) -> impl Strategy<Value = f64> {
    (low..high).prop_map(|exponent| 10f64.powf(exponent))
}

/// The decay of an average: `lerp` changes its form at one half, and the simple fractions are exact in f32.
fn decay() -> impl Strategy<Value = f64> {
    prop_oneof![1 => Just(0.0), 5 => positive_decay()]
}

/// Without zero, where the variance of a centered average is nothing but rounding.
fn positive_decay() -> impl Strategy<Value = f64> {
    prop_oneof![prop::sample::select(&[0.25, 0.5, 0.75, 0.9, 0.99, 0.999][..]), 0.1..0.9999]
}

fn sgd() -> impl Strategy<Value = AnyRule> {
    (decades(-4.0, 0.0), maybe(0.0..1.0), maybe(0.0..1.0), maybe(0.0..0.5), any::<bool>()).prop_map(
        |(lr, momentum, dampening, weight_decay, nesterov)| {
            AnyRule::Sgd(Sgd { lr, momentum, dampening, weight_decay, nesterov })
        },
    )
}

fn adagrad() -> impl Strategy<Value = AnyRule> {
    (decades(-4.0, 0.0), maybe(0.0..0.5), maybe(0.0..0.5), decades(-10.0, -2.0))
        .prop_map(|(lr, lr_decay, weight_decay, eps)| AnyRule::Adagrad(Adagrad { lr, lr_decay, weight_decay, eps }))
}

fn rmsprop() -> impl Strategy<Value = AnyRule> {
    (decades(-4.0, 0.0), positive_decay(), decades(-8.0, -2.0), maybe(0.0..0.5), maybe(0.0..1.0), any::<bool>())
        .prop_map(|(lr, alpha, eps, weight_decay, momentum, centered)| {
            AnyRule::RmsProp(RmsProp { lr, alpha, eps, weight_decay, momentum, centered })
        })
}

fn adam() -> impl Strategy<Value = AnyRule> {
    (decades(-4.0, 0.0), decay(), decay(), decades(-10.0, -2.0), maybe(0.0..0.5), any::<bool>(), any::<bool>())
        .prop_map(|(lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled_weight_decay)| {
            AnyRule::Adam(Adam { lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled_weight_decay })
        })
}

fn adadelta() -> impl Strategy<Value = AnyRule> {
    (decades(-4.0, 0.0), decay(), decades(-8.0, -2.0), maybe(0.0..0.5))
        .prop_map(|(lr, rho, eps, weight_decay)| AnyRule::Adadelta(Adadelta { lr, rho, eps, weight_decay }))
}

fn adamax() -> impl Strategy<Value = AnyRule> {
    (decades(-4.0, 0.0), decay(), decay(), decades(-8.0, -2.0), maybe(0.0..0.5)).prop_map(
        |(lr, beta1, beta2, eps, weight_decay)| AnyRule::Adamax(Adamax { lr, beta1, beta2, eps, weight_decay }),
    )
}

fn nadam() -> impl Strategy<Value = AnyRule> {
    let betas = (decay(), decay());
    (decades(-4.0, 0.0), betas, decades(-8.0, -2.0), maybe(0.0..0.5), maybe(0.0..0.1), any::<bool>()).prop_map(
        |(lr, (beta1, beta2), eps, weight_decay, momentum_decay, decoupled_weight_decay)| {
            AnyRule::NAdam(NAdam { lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled_weight_decay })
        },
    )
}

fn radam() -> impl Strategy<Value = AnyRule> {
    (decades(-4.0, 0.0), decay(), decay(), decades(-8.0, -2.0), maybe(0.0..0.5), any::<bool>()).prop_map(
        |(lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay)| {
            AnyRule::RAdam(RAdam { lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay })
        },
    )
}

fn asgd() -> impl Strategy<Value = AnyRule> {
    let t0 = prop_oneof![Just(0.0), Just(1e6), 0.0..20.0f64];
    (decades(-4.0, 0.0), decades(-6.0, -1.0), maybe(0.1..1.0), t0, maybe(0.0..0.5))
        .prop_map(|(lr, lambd, alpha, t0, weight_decay)| AnyRule::Asgd(Asgd { lr, lambd, alpha, t0, weight_decay }))
}

fn sparse_adam() -> impl Strategy<Value = AnyRule> {
    (decades(-4.0, 0.0), decay(), decay(), decades(-8.0, -2.0))
        .prop_map(|(lr, beta1, beta2, eps)| AnyRule::SparseAdam(SparseAdam { lr, beta1, beta2, eps }))
}

fn rprop() -> impl Strategy<Value = AnyRule> {
    (0.1..1.0f64, 1.0..2.0f64, decades(-6.0, -2.0), decades(-1.0, 2.0)).prop_map(
        |(eta_minus, eta_plus, smallest, largest)| AnyRule::Rprop(Rprop { eta_minus, eta_plus, smallest, largest }),
    )
}

#[test]
fn sgd_is_its_reference() {
    check(sgd());
}

#[test]
fn adagrad_is_its_reference() {
    check(adagrad());
}

#[test]
fn rmsprop_is_its_reference() {
    check(rmsprop());
}

#[test]
fn adam_is_its_reference() {
    check(adam());
}

#[test]
fn adadelta_is_its_reference() {
    check(adadelta());
}

#[test]
fn adamax_is_its_reference() {
    check(adamax());
}

#[test]
fn nadam_is_its_reference() {
    check(nadam());
}

#[test]
fn radam_is_its_reference() {
    check(radam());
}

#[test]
fn asgd_is_its_reference() {
    check(asgd());
}

#[test]
fn sparse_adam_is_its_reference() {
    check(sparse_adam());
}

#[test]
fn rprop_is_its_reference() {
    check(rprop());
}

fn combination() -> impl Strategy<Value = Types> {
    prop::sample::select(every_combination())
}

fn variant() -> impl Strategy<Value = AnyRule> {
    prop::sample::select(every_rule())
}

/// A parameter after a first step, so that its states are in use.
fn started(rule: AnyRule, types: Types, len: usize, rng: &mut Random) -> Parameter {
    let mut parameter = Parameter::new(rule, types, len, Values::Scaled, rng);
    update(std::slice::from_mut(&mut parameter), &Serial, Level::best());
    parameter.grad = Values::Scaled.buffer(types.1, len, rng);
    parameter
}

proptest! {
    #![proptest_config(cases(256))]

    /// `maximize` is the factor minus one, and a power of two only moves the exponent: both exact.
    #[test]
    fn an_exact_factor_is_as_good_as_another_gradient(
        rule in variant(),
        types in combination(),
        len in 0..300usize,
        factor in prop::sample::select(&[-1.0, 0.0625, 8.0, -0.5]),
        seed: u64,
    ) {
        let mut plain = started(rule, types, len, &mut Random(seed));
        let mut scaled = plain.clone();
        scaled.grad = Buffer::new(types.1, plain.grad.values().map(|g| g / factor));
        scaled.grad_factor = factor;
        update(std::slice::from_mut(&mut plain), &Serial, Level::best());
        update(std::slice::from_mut(&mut scaled), &Serial, Level::best());
        prop_assert_eq!(plain.bits(), scaled.bits());
    }

    /// A step over many parameters keeps apart whose constants, factors and states are whose.
    #[test]
    fn together_is_as_good_as_alone(
        kinds in prop::collection::vec((variant(), combination(), 0..300usize, 0..20u32, -2.0..2.0f64), 0..12),
        seed: u64,
    ) {
        let mut rng = Random(seed);
        let mut together: Vec<Parameter> = kinds
            .into_iter()
            .map(|(rule, types, len, age, factor)| {
                let mut parameter = Parameter::new(rule, types, len, Values::Scaled, &mut rng);
                if age > 0 {
                    parameter = parameter.aged(age, Values::Scaled, &mut rng);
                }
                parameter.grad_factor = factor;
                parameter
            })
            .collect();
        let mut alone = together.clone();
        update(&mut together, &Serial, Level::best());
        for (i, (alone, together)) in alone.iter_mut().zip(&together).enumerate() {
            update(std::slice::from_mut(alone), &Serial, Level::best());
            prop_assert_eq!(alone.bits(), together.bits(), "parameter {}", i);
        }
    }

    /// A gradient that is no number is seen in its parameter and all its states, and nowhere else. (Rprop asks for no
    /// more than a sign, and that has none.)
    #[test]
    fn nan_spoils_its_own_element_and_no_other(
        rule in variant().prop_filter("sign only", |rule| !matches!(rule, AnyRule::Rprop(_))),
        types in combination(),
        len in 1..300usize,
        seed: u64,
    ) {
        let mut rng = Random(seed);
        let mut sound = started(rule, types, len, &mut rng);
        let mut spoiled = sound.clone();
        let at = rng.below(len);
        spoiled.grad.set(at, f64::NAN);
        update(std::slice::from_mut(&mut sound), &Serial, Level::best());
        update(std::slice::from_mut(&mut spoiled), &Serial, Level::best());
        let mut expected = sound.bits();
        expected.iter_mut().for_each(|stream| stream[at] = u64::MAX);
        prop_assert_eq!(spoiled.bits(), expected);
    }
}

/// Three states of three types: each is rounded once, to its own, and the parameter is what it is beside wide ones.
#[test]
fn states_of_several_types_are_rounded_each_to_its_own() {
    let (mut rng, len) = (Random(8), 3000);
    let rules = every_rule().into_iter().filter(|rule| rule.states().len() == 3);
    for rule in rules {
        let singles = Types(Type::F32, Type::F32, Type::F32);
        let mut wide = Parameter::new(rule, singles, len, Values::Scaled, &mut rng);
        let mut mixed = wide.clone();
        let types = [Type::Bf16, Type::F32, Type::F16];
        mixed.states = types.map(|of| Buffer::zeros(of, len)).into();
        update(std::slice::from_mut(&mut wide), &Serial, Level::best());
        update(std::slice::from_mut(&mut mixed), &Serial, Level::best());
        assert!(mixed.param.bits() == wide.param.bits(), "{rule:?}");
        for ((mixed, wide), of) in mixed.states.iter().zip(&wide.states).zip(types) {
            assert!(mixed.bits() == Buffer::new(of, wide.values()).bits(), "{rule:?} {of:?}");
        }
    }
}

/// What the reference cannot tell, since it allows either: a multiply-add is fused where torch fuses it and nowhere
/// else, and `lerp` changes its form at one half exactly.
fn operations_round_where_torchs_do<A: Real>(x: [f64; 4], fma: fn(A, A, A) -> A) -> Result<(), TestCaseError> {
    let [a, b, c, weight] = x.map(A::of);
    prop_assert_eq!(a.add_scaled(b, c), fma(c, b, a));
    prop_assert_eq!(a.addcmul(b, c, weight), fma(weight * b, c, a));
    prop_assert_eq!(a.addcdiv(b, c, weight), a + (weight * b) / c);
    let from_start = weight < A::of(0.5);
    let expected = if from_start { fma(weight, b - a, a) } else { fma(weight - A::ONE, b - a, b) };
    prop_assert_eq!(a.lerp(b, weight), expected);
    Ok(())
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn multiply_adds_are_fused_where_torch_fuses_them(
        a in -10.0..10.0f64,
        b in -10.0..10.0f64,
        c in 0.1..10.0f64,
        weight in prop_oneof![0.0..1.0f64, Just(0.5), Just(0.5 - 1e-7), Just(1.0)],
    ) {
        operations_round_where_torchs_do::<f64>([a, b, c, weight], f64::mul_add)?;
        operations_round_where_torchs_do::<f32>([a, b, c, weight], f32::mul_add)?;
    }
}

/// Chance seldom meets them, so each of them is tried: all lengths at which blocks, tiles and chunks begin and end.
#[test]
fn every_element_is_met_around_the_edges_of_chunks() {
    let mut rng = Random(7);
    for (k, rule) in every_rule().into_iter().step_by(5).enumerate() {
        for (i, len) in EDGES.into_iter().chain([0, 1, 2, 163_840, 163_841]).enumerate() {
            if brief() && (i + k) % 3 != 0 {
                continue; // each length with a third of the rules
            }
            let types = COMBINATIONS[i % COMBINATIONS.len()];
            let mut parameter =
                Parameter::new(rule, types, len, Values::Scaled, &mut rng).aged(10, Values::Scaled, &mut rng);
            let before = parameter.clone();
            update(std::slice::from_mut(&mut parameter), &Serial, Level::best());
            judge(&before, &parameter, 11.0).unwrap_or_else(|failure| panic!("{rule:?} {types:?} {len}: {failure}"));
        }
    }
}

/// A param group of numbers; flags are zero or one, pairs two numbers.
struct Group(HashMap<&'static str, Vec<f64>>);

impl Hyperparameters for Group {
    type Error = &'static str;
    fn number(&mut self, key: &'static str) -> Result<f64, Self::Error> {
        self.0.get(key).map(|x| x[0]).ok_or(key)
    }
    fn pair(&mut self, key: &'static str) -> Result<(f64, f64), Self::Error> {
        self.0.get(key).map(|x| (x[0], x[1])).ok_or(key)
    }
    fn flag(&mut self, key: &'static str) -> Result<bool, Self::Error> {
        self.0.get(key).map(|x| x[0] != 0.0).ok_or(key)
    }
}

/// Each hyperparameter comes from the key that torch gives it, and each one missing is told.
#[test]
fn hyperparameters_are_read_by_torchs_names() {
    let group = || {
        let numbers: [(&'static str, &[f64]); 21] = [
            ("lr", &[0.125]),
            ("lr_decay", &[0.25]),
            ("weight_decay", &[0.375]),
            ("eps", &[0.5, 0.55]),
            ("momentum", &[0.625]),
            ("dampening", &[0.75]),
            ("alpha", &[0.875]),
            ("betas", &[0.1, 0.2]),
            ("etas", &[0.3, 0.4]),
            ("step_sizes", &[0.6, 0.7]),
            ("rho", &[0.8]),
            ("momentum_decay", &[0.9]),
            ("beta2_decay", &[-0.8]),
            ("d", &[2.0]),
            ("lambd", &[1.25]),
            ("t0", &[1.5]),
            ("nesterov", &[1.0]),
            ("centered", &[1.0]),
            ("amsgrad", &[1.0]),
            ("decoupled_weight_decay", &[1.0]),
            ("maximize", &[0.0]),
        ];
        Group(numbers.into_iter().map(|(key, values)| (key, values.to_vec())).collect())
    };
    let (lr, weight_decay, eps, momentum, alpha) = (0.125, 0.375, 0.5, 0.625, 0.875);
    let (beta1, beta2, decoupled_weight_decay) = (0.1, 0.2, true);
    let expected = [
        ("sgd", AnyRule::Sgd(Sgd { lr, momentum, dampening: 0.75, weight_decay, nesterov: true })),
        ("adagrad", AnyRule::Adagrad(Adagrad { lr, lr_decay: 0.25, weight_decay, eps })),
        ("rmsprop", AnyRule::RmsProp(RmsProp { lr, alpha, eps, weight_decay, momentum, centered: true })),
        ("adam", AnyRule::Adam(Adam { lr, beta1, beta2, eps, weight_decay, amsgrad: true, decoupled_weight_decay })),
        ("adadelta", AnyRule::Adadelta(Adadelta { lr, rho: 0.8, eps, weight_decay })),
        ("adamax", AnyRule::Adamax(Adamax { lr, beta1, beta2, eps, weight_decay })),
        (
            "nadam",
            AnyRule::NAdam(NAdam { lr, beta1, beta2, eps, weight_decay, momentum_decay: 0.9, decoupled_weight_decay }),
        ),
        ("radam", AnyRule::RAdam(RAdam { lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay })),
        ("asgd", AnyRule::Asgd(Asgd { lr, lambd: 1.25, alpha, t0: 1.5, weight_decay })),
        ("rprop", AnyRule::Rprop(Rprop { eta_minus: 0.3, eta_plus: 0.4, smallest: 0.6, largest: 0.7 })),
        ("sparse_adam", AnyRule::SparseAdam(SparseAdam { lr, beta1, beta2, eps })),
        (
            "adafactor",
            AnyRule::Adafactor(Adafactor { lr, beta2_decay: -0.8, eps1: Some(eps), eps2: 0.55, d: 2.0, weight_decay }),
        ),
    ];
    assert_eq!(Kind::NAMES, expected.map(|(name, _)| name));
    for (name, rule) in expected {
        let kind = Kind::from_name(name).expect("a known rule");
        assert_eq!(format!("{:?}", kind.read(&mut group()).unwrap()), format!("{rule:?}"));
        // without a key either nothing changes, or that key is missed
        let mut read = 0;
        for key in group().0.into_keys() {
            let mut group = group();
            group.0.remove(key);
            match kind.read(&mut group) {
                Ok(same) => assert_eq!(format!("{same:?}"), format!("{rule:?}")),
                Err(missing) => {
                    assert_eq!(missing, key);
                    read += 1;
                }
            }
        }
        assert!(read >= 2, "{name} reads {read} keys");
    }
    assert_eq!(Kind::from_name("adamw"), None);
}

/// The states that torch keeps, in the flags' every combination.
#[test]
fn states_have_torchs_names() {
    for rule in every_rule() {
        let (states, scalars): (&[&str], &[&str]) = match rule {
            AnyRule::Sgd(h) if h.momentum == 0.0 => (&[], &[]),
            AnyRule::Sgd(_) => (&["momentum_buffer"], &[]),
            AnyRule::Adagrad(_) => (&["sum"], &["step"]),
            AnyRule::RmsProp(h) => match (h.momentum > 0.0, h.centered) {
                (false, false) => (&["square_avg"], &["step"]),
                (false, true) => (&["square_avg", "grad_avg"], &["step"]),
                (true, false) => (&["square_avg", "momentum_buffer"], &["step"]),
                (true, true) => (&["square_avg", "momentum_buffer", "grad_avg"], &["step"]),
            },
            AnyRule::Adam(h) if h.amsgrad => (&["exp_avg", "exp_avg_sq", "max_exp_avg_sq"], &["step"]),
            AnyRule::Adam(_) | AnyRule::RAdam(_) | AnyRule::SparseAdam(_) => (&["exp_avg", "exp_avg_sq"], &["step"]),
            AnyRule::NAdam(_) => (&["exp_avg", "exp_avg_sq"], &["step", "mu_product"]),
            AnyRule::Adadelta(_) => (&["square_avg", "acc_delta"], &["step"]),
            AnyRule::Adamax(_) => (&["exp_avg", "exp_inf"], &["step"]),
            AnyRule::Asgd(_) => (&["ax"], &["step", "eta", "mu"]),
            AnyRule::Rprop(_) => (&["prev", "step_size"], &["step"]),
            AnyRule::Adafactor(_) => (&["row_var", "col_var"], &["step"]),
        };
        assert_eq!((rule.states(), rule.scalars()), (states, scalars), "{rule:?}");
        assert!(states.len() <= MAX_STATES && scalars.len() <= MAX_SCALARS);
    }
}

/// Rows without a gradient may be left alone only where a gradient of zero would leave them alone, or torch says so.
#[test]
fn sparse_gradients_are_taken_where_torch_takes_them() {
    for rule in every_rule() {
        let expected = match rule {
            AnyRule::Sgd(h) if h.momentum == 0.0 && h.weight_decay == 0.0 => Gradients::Any,
            AnyRule::Adagrad(h) if h.weight_decay == 0.0 => Gradients::Any,
            AnyRule::SparseAdam(_) => Gradients::Sparse,
            _ => Gradients::Dense,
        };
        assert_eq!(rule.gradients(), expected, "{rule:?}");
    }
}

/// A counter kept as f32 stands still at 2^24, as torch's does; kept as f64 it goes on.
#[test]
fn steps_are_counted_in_the_precision_of_their_owner() {
    for rule in every_rule().into_iter().filter(|rule| !rule.scalars().is_empty()) {
        for (precision, expected) in [(Precision::F32, 16_777_216.0), (Precision::F64, 16_777_217.0)] {
            let mut values = [0.0; MAX_SCALARS];
            values[0] = 16_777_216.0;
            let mut scalars = Scalars::new(values, [precision; MAX_SCALARS]);
            rule.constants(&mut scalars, false);
            assert_eq!(scalars.get(0), expected, "{rule:?}");
        }
    }
}

/// Scalars are rounded to nearest, ties to even, also a hair's breadth from the middle of two halves.
#[test]
fn scalars_are_rounded_to_nearest() {
    for (precision, ty, middle) in [
        (Precision::F32, Type::F32, 1.0 + f64::from(f32::EPSILON) / 2.0),
        (Precision::F16, Type::F16, 1.0 + f64::from(f16::EPSILON) / 2.0),
        (Precision::Bf16, Type::Bf16, 1.0 + f64::from(bf16::EPSILON) / 2.0),
    ] {
        for hair in [-f64::from(f32::EPSILON), 0.0, f64::from(f32::EPSILON)] {
            let mut scalars = Scalars::new([0.0, 1.0, 0.0], [Precision::F32, precision, precision]);
            scalars.set(2, middle + hair);
            assert_eq!(scalars.get(2), ty.round(middle + hair), "{precision:?} {hair:e}");
            scalars.multiply(1, middle + hair);
            assert_eq!(scalars.get(1), ty.round(middle + hair), "{precision:?} {hair:e}");
        }
        assert_eq!([ty.round(middle), ty.round(middle + 1e-7)], [1.0, 2.0 * middle - 1.0]);
    }
}
