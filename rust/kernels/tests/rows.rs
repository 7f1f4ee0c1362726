//! Sparse gradients: the rows they name are updated as any tensor is, the others keep their bits.

mod common;

use common::{Buffer, COMBINATIONS, Parameter, Random, Types, Values, cases, every_combination, every_rule, update};
use oxistep_kernels::driver::{Refused, SERIAL};
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Layout, STREAMS, Slice, SparseRows, Step};
use proptest::prelude::*;

/// A parameter of `count` rows whose gradient holds only `rows`.
fn sparse(rule: AnyRule, types: Types, count: usize, width: usize, rows: &[i64], rng: &mut Random) -> Parameter {
    let mut parameter = Parameter::new(rule, types, count * width, Values::Scaled, rng).aged(10, Values::Scaled, rng);
    parameter.grad = Values::Scaled.buffer(types.1, rows.len() * width, rng);
    parameter.grad_factor = -0.3;
    parameter
}

/// The named rows alone, as a dense parameter.
fn dense(parameter: &Parameter, rows: &[i64], width: usize) -> Parameter {
    let gather = |buffer: &Buffer| {
        let elements = rows.iter().flat_map(|&row| row as usize * width..(row as usize + 1) * width);
        Buffer::new(buffer.ty(), elements.map(|i| buffer.get(i)))
    };
    Parameter {
        param: gather(&parameter.param),
        states: parameter.states.iter().map(gather).collect(),
        ..parameter.clone()
    }
}

/// What the bits must be: those of the dense update in the named rows, those from before elsewhere.
fn expected(before: &Parameter, rows: &[i64], width: usize) -> Vec<Vec<u64>> {
    let mut dense = dense(before, rows, width);
    update(std::slice::from_mut(&mut dense), &Serial, Level::best());
    let mut bits = before.bits();
    for (all, updated) in bits.iter_mut().zip(dense.bits()) {
        for (i, &row) in rows.iter().enumerate() {
            let at = row as usize * width;
            all[at..at + width].copy_from_slice(&updated[i * width..(i + 1) * width]);
        }
    }
    bits
}

fn update_rows(parameter: &mut Parameter, rows: &[i64], width: usize, pool: &dyn Pool) -> Result<(), Refused> {
    let mut step = Step::default();
    step.constants(parameter.rule.constants(&mut parameter.scalars, parameter.first));
    let grad_factor = parameter.grad_factor;
    let answer = step.push_rows(parameter.tensors(), in_order(rows, width), grad_factor);
    assert_eq!(step.elements(), if answer.is_ok() { rows.len() * width } else { 0 });
    assert!(step.run(pool, Level::best()).is_ok());
    answer
}

fn in_order(rows: &[i64], width: usize) -> SparseRows<'_> {
    SparseRows { rows, width, sources: None, sums: Slice::F32(&[]) }
}

/// Each of `count` rows by a throw of the dice; neighbours often together.
fn choose(count: usize, rng: &mut Random) -> Vec<i64> {
    let mut taken = false;
    let mut rows = Vec::new();
    for row in 0..count {
        taken = if rng.below(3) == 0 { !taken } else { taken };
        if taken {
            rows.push(row as i64);
        }
    }
    rows
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn named_rows_are_updated_and_others_untouched(
        rule in prop::sample::select(every_rule()),
        types in prop::sample::select(every_combination()),
        count in 0..40usize,
        width in prop_oneof![0..70usize, Just(1)],
        seed: u64,
    ) {
        let mut rng = Random(seed);
        let rows = choose(count, &mut rng);
        let mut parameter = sparse(rule, types, count, width, &rows, &mut rng);
        let expected = expected(&parameter, &rows, width);
        prop_assert_eq!(update_rows(&mut parameter, &rows, width, &Serial), Ok(()));
        prop_assert_eq!(parameter.bits(), expected);
    }

    /// Rows out of order, twice, negative or beyond the end; a gradient, a parameter or a state of another length.
    #[test]
    fn rows_that_do_not_fit_are_refused(
        rule in prop::sample::select(every_rule()),
        types in prop::sample::select(every_combination()),
        count in 3..20usize,
        width in 1..20usize,
        seed: u64,
    ) {
        let mut rng = Random(seed);
        let last = count as i64 - 1;
        for rows in [
            vec![1, 0], vec![1, 1], vec![0, last, 1], vec![-1], vec![-1, 0], vec![last + 1], vec![0, last + 1],
            vec![i64::MAX], vec![i64::MIN, 0], vec![0, i64::MAX],
        ] {
            let mut parameter = sparse(rule, types, count, width, &rows, &mut rng);
            let before = parameter.bits();
            prop_assert_eq!(update_rows(&mut parameter, &rows, width, &Serial), Err(Refused::Lengths), "{:?}", rows);
            prop_assert_eq!(parameter.bits(), before);
        }
        let rows = [0, last];
        let sound = sparse(rule, types, count, width, &rows, &mut rng);
        let shorter = |buffer: &Buffer| Buffer::zeros(buffer.ty(), buffer.len() - 1);
        let longer = |buffer: &Buffer| Buffer::zeros(buffer.ty(), buffer.len() + 1);
        let mut spoiled = vec![
            Parameter { grad: shorter(&sound.grad), ..sound.clone() },
            Parameter { grad: longer(&sound.grad), ..sound.clone() },
            Parameter { layout: Some(Layout::new(&[count * width], &[1; STREAMS], &[0; STREAMS])), ..sound.clone() },
        ];
        if rule.states().is_empty() {
            spoiled.push(Parameter { param: shorter(&sound.param), ..sound.clone() });
        }
        for k in 0..rule.states().len() {
            for other in [shorter(&sound.states[k]), longer(&sound.states[k])] {
                let mut parameter = sound.clone();
                parameter.states[k] = other;
                spoiled.push(parameter);
            }
        }
        for mut parameter in spoiled {
            let before = parameter.bits();
            prop_assert_eq!(update_rows(&mut parameter, &rows, width, &Serial), Err(Refused::Lengths));
            prop_assert_eq!(parameter.bits(), before);
        }
        let mut untold = sound.clone();
        let grad_factor = untold.grad_factor;
        let refused = Step::default().push_rows(untold.tensors(), in_order(&rows, width), grad_factor);
        prop_assert_eq!(refused, Err(Refused::States));
    }
}

/// Runs of rows longer than a chunk, rows wider than one, and many rows apart, on threads.
#[test]
fn long_runs_and_wide_rows() {
    let mut rng = Random(6);
    for (i, rule) in every_rule().into_iter().step_by(3).enumerate() {
        let types = COMBINATIONS[i % COMBINATIONS.len()];
        let apart: Vec<i64> = (0..SERIAL as i64 / 8).map(|row| 2 * row).collect();
        for (count, width, rows) in [
            (3000, 70, (5..2900).collect::<Vec<i64>>()),
            (4, 100_000, vec![0, 2, 3]),
            (SERIAL / 4, 9, apart),
            (150_000, 1, (1..150_000).collect()),
        ] {
            let mut parameter = sparse(rule, types, count, width, &rows, &mut rng);
            let expected = expected(&parameter, &rows, width);
            assert_eq!(update_rows(&mut parameter, &rows, width, &Rayon { threads: 3 }), Ok(()));
            assert!(parameter.bits() == expected, "{rule:?} {types:?} {} rows of {width}", rows.len());
        }
    }
}

/// Gradients in any order, some of them beyond the gradient proper.
#[test]
fn gradients_are_found_by_their_sources() {
    let types = COMBINATIONS.into_iter().find(|types| types.1 == common::Type::F32).unwrap();
    let mut rng = Random(5);
    for rule in every_rule() {
        let (count, width, rows) = (700, 24, (0..700).step_by(2).collect::<Vec<i64>>());
        let mut parameter = sparse(rule, types, count, width, &rows, &mut rng);
        let expected = expected(&parameter, &rows, width);
        // the last ten rows' gradients are moved to `sums`, the others reversed
        let grad: Vec<f32> = (0..rows.len() * width).map(|i| parameter.grad.get(i) as f32).collect();
        let kept = rows.len() - 10;
        let reversed: Vec<f32> = (0..kept).rev().flat_map(|row| grad[row * width..][..width].to_vec()).collect();
        let sums = &grad[kept * width..];
        let sources: Vec<u32> = (0..kept as u32).rev().chain(kept as u32..rows.len() as u32).collect();
        parameter.grad = Buffer::new(parameter.grad.ty(), reversed.iter().map(|&x| f64::from(x)));
        let named = |sources| SparseRows { rows: &rows, width, sources: Some(sources), sums: Slice::F32(sums) };
        let (constants, grad_factor) = (rule.constants(&mut parameter.scalars.clone(), parameter.first), -0.3);
        let mut beyond = sources.clone();
        beyond[3] = rows.len() as u32;
        for (sources, fits) in [(&beyond[..], false), (&sources[1..], false), (&sources[..], true)] {
            let mut step = Step::default();
            step.constants(constants);
            let answer = step.push_rows(parameter.tensors(), named(sources), grad_factor);
            assert_eq!(answer, if fits { Ok(()) } else { Err(Refused::Lengths) });
            step.run(&Rayon { threads: 3 }, Level::best()).unwrap();
        }
        rule.constants(&mut parameter.scalars, parameter.first);
        parameter.grad = Buffer::new(parameter.grad.ty(), grad.iter().map(|&x| f64::from(x)));
        assert!(parameter.bits() == expected, "{rule:?}");
    }
}
