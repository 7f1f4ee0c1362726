//! A measured step: the bits of an unmeasured one, and the norms of what it did.

mod common;

use common::{COMBINATIONS, Parameter, Random, Type, Types, Values, every_combination, every_rule, levels, update};
use oxistep_kernels::driver::{Measured, Moved, SERIAL};
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{Layout, STREAMS, Step};

/// One measured step over all parameters.
fn measured(parameters: &mut [Parameter], pool: &dyn Pool, level: Level) -> Vec<Moved> {
    let (mut step, mut measured) = (Step::default(), Measured::default());
    for parameter in parameters {
        step.constants(parameter.rule.constants(&mut parameter.scalars, parameter.first));
        parameter.first = false;
        let grad_factor = parameter.grad_factor;
        step.push(parameter.tensors(), grad_factor).unwrap();
        measured.pushed(&step);
    }
    step.run_measured(&mut measured, pool, level).unwrap();
    measured.moved().collect()
}

/// The indices of a parameter's elements in its buffer.
fn places(parameter: &Parameter) -> Vec<usize> {
    match &parameter.layout {
        None => (0..parameter.param.len()).collect(),
        Some(_) => (0..15).flat_map(|column| (0..20).map(move |row| row + 40 * column)).collect(),
    }
}

fn parameters(rng: &mut Random) -> Vec<Parameter> {
    let mut parameters = Vec::new();
    for rule in every_rule() {
        for types in every_combination() {
            parameters.push(Parameter::new(rule, types, 300, Values::Scaled, rng));
            let mut strided = Parameter::new(rule, types, 600, Values::Scaled, rng).aged(10, Values::Scaled, rng);
            strided.layout = Some(Layout::new(&[20, 15], [[1; STREAMS], [40; STREAMS]].as_flattened(), &[0; STREAMS]));
            parameters.push(strided);
        }
        parameters.push(Parameter::new(rule, COMBINATIONS[1], 70_001, Values::Scaled, rng));
    }
    parameters.push(Parameter::new(every_rule()[0], COMBINATIONS[1], 0, Values::Scaled, rng));
    parameters.push(Parameter::new(every_rule()[0], COMBINATIONS[0], SERIAL + 1, Values::Scaled, rng));
    parameters
}

#[test]
fn a_measured_step_has_the_bits_of_an_unmeasured_one() {
    for level in levels() {
        let mut plain = parameters(&mut Random(5));
        let mut watched = plain.clone();
        for _ in 0..2 {
            update(&mut plain, &Serial, level);
            measured(&mut watched, &Rayon { threads: 3 }, level);
        }
        for (a, b) in plain.iter().zip(&watched) {
            assert!(a.bits() == b.bits(), "{:?} at {level:?}", a.rule);
        }
    }
}

#[test]
fn norms_are_those_of_float64_loops() {
    let mut parameters = parameters(&mut Random(6));
    let before = parameters.clone();
    let found = measured(&mut parameters, &Serial, Level::best());
    assert_eq!(found.len(), parameters.len());
    for ((old, new), found) in before.iter().zip(&parameters).zip(&found) {
        let sum = |f: &dyn Fn(usize) -> f64| places(old).into_iter().map(|i| f(i) * f(i)).sum::<f64>();
        let expected = Moved {
            update: sum(&|i| new.param.get(i) - old.param.get(i)),
            param: sum(&|i| old.param.get(i)),
            grad: sum(&|i| old.grad_factor * old.grad.get(i)),
        };
        let near = |a: f64, b: f64| a == b || (a - b).abs() <= 1e-11 * b.abs();
        assert!(
            near(found.update, expected.update) && near(found.param, expected.param) && near(found.grad, expected.grad),
            "{:?} {found:?} {expected:?}",
            old.rule
        );
    }
    assert!(found.iter().filter(|moved| moved.update > 0.0).count() > found.len() / 2);
}

#[test]
fn the_same_bits_for_any_threads_and_levels() {
    let make = || {
        let (mut rng, rule) = (Random(7), every_rule()[0]);
        let mut parameters: Vec<_> = COMBINATIONS
            .into_iter()
            .map(|types| Parameter::new(rule, types, 30_000, Values::Scaled, &mut rng))
            .collect();
        let singles = Types(Type::F32, Type::F32, Type::F32);
        parameters.push(Parameter::new(rule, singles, 200_000, Values::Scaled, &mut rng));
        parameters
    };
    let bits = |found: &[Moved]| {
        found.iter().map(|m| [m.update.to_bits(), m.param.to_bits(), m.grad.to_bits()]).collect::<Vec<_>>()
    };
    let expected = bits(&measured(&mut make(), &Serial, Level::Baseline));
    for level in levels() {
        for threads in 1..5 {
            assert_eq!(bits(&measured(&mut make(), &Rayon { threads }, level)), expected, "{level:?} {threads}");
        }
    }
}

#[test]
fn measurements_can_be_used_again() {
    let mut parameter = Parameter::new(every_rule()[0], COMBINATIONS[1], 100, Values::Scaled, &mut Random(1));
    let mut kept = Measured::default();
    for _ in 0..2 {
        kept.clear();
        assert_eq!(kept.moved().count(), 0);
        let mut step = Step::default();
        step.constants(parameter.rule.constants(&mut parameter.scalars, true));
        step.push(parameter.tensors(), 1.0).unwrap();
        kept.pushed(&step);
        step.run_measured(&mut kept, &Serial, Level::best()).unwrap();
        assert_eq!(kept.moved().count(), 1);
    }
}
