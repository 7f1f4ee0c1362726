//! Adafactor: against a float64 reference written from the formula, the same bits everywhere, what is refused.

mod common;

use common::{Buffer, Random, TYPES, Type, Values, levels};
use oxistep_kernels::driver::Refused;
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::rules::adafactor::Adafactor;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, MAX_SCALARS, Precision, Scalars, SliceMut, Step, Tensors};

const RULE: Adafactor =
    Adafactor { lr: 0.05, beta2_decay: -0.8, eps1: Some(1e-3), eps2: 1e-3, d: 1.0, weight_decay: 0.1 };
type Shape = Option<(usize, usize)>;

/// (number of matrices, or elements of a vector; shape): in one piece, in several, in tiles, in two bands of columns.
const SHAPES: [(usize, Shape); 14] = [
    (1, None),
    (77, None),
    (150_000, None),
    (1, Some((1, 1))),
    (3, Some((5, 4))),
    (1, Some((33, 70))),
    (9_000, Some((3, 3))),
    (2, Some((300, 301))),
    (1, Some((9, 9_000))),
    (1, Some((70_000, 1))),
    (1, Some((1, 70_000))),
    (1, Some((40_001, 3))),
    (2, Some((131, 7))),
    (3, Some((200, 200))),
];

#[derive(Clone)]
struct Parameter {
    shape: Shape,
    theta: Buffer,
    grad: Buffer,
    states: Vec<Buffer>,
    scalars: Scalars,
}

impl Parameter {
    fn new(ty: Type, state: Type, (n, shape): (usize, Shape), rng: &mut Random) -> Self {
        let (len, states) = match shape {
            None => (n, vec![n]),
            Some((rows, cols)) => (n * rows * cols, vec![n * rows, n * cols]),
        };
        Self {
            shape,
            theta: Values::Scaled.buffer(ty, len, rng),
            grad: Values::Scaled.buffer(ty, len, rng),
            states: states.into_iter().map(|n| Buffer::new(state, (0..n).map(|_| rng.between(0.1, 2.0)))).collect(),
            scalars: Scalars::new([4.0, 0.0, 0.0], [Precision::F64; MAX_SCALARS]),
        }
    }

    fn tensors(&mut self) -> Tensors<'_, impl IntoIterator<Item = SliceMut<'_>>> {
        let states = self.states.iter_mut().map(Buffer::slice_mut);
        Tensors { param: self.theta.slice_mut(), grad: self.grad.slice(), states, layout: None }
    }

    fn bits(&self) -> Vec<Vec<u64>> {
        std::iter::once(&self.theta).chain(&self.states).map(Buffer::bits).collect()
    }
}

fn update(parameters: &mut [Parameter], factor: f64, pool: &dyn Pool, level: Level) {
    let mut step = Step::default();
    for parameter in parameters {
        step.constants(AnyRule::Adafactor(RULE).constants(&mut parameter.scalars, false));
        let shape = parameter.shape;
        step.push_factored(parameter.tensors(), shape, factor).unwrap();
    }
    step.run(pool, level).unwrap();
}

/// Parameter and states after a step, slowly, in f64. `stored` rounds a state as it is kept.
fn reference(p: &Parameter, factor: f64, stored: impl Fn(f64) -> f64) -> Vec<Vec<f64>> {
    let t = p.scalars.get(0) + 1.0;
    let weight = t.powf(RULE.beta2_decay);
    let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
    let toward = |old: f64, new: f64| stored(old + weight * (new - old));
    let theta: Vec<f64> = p.theta.values().collect();
    let g: Vec<f64> = p.grad.values().map(|g| factor * g).collect();
    let mut states: Vec<Vec<f64>> = p.states.iter().map(|state| state.values().collect()).collect();
    let eps1 = RULE.eps1.unwrap();
    let mut v = vec![0.0; g.len()];
    match p.shape {
        None => {
            states[0].iter_mut().zip(&g).for_each(|(v, g)| *v = toward(*v, g * g));
            v.clone_from(&states[0]);
        }
        Some((rows, cols)) => {
            for m in 0..g.len() / (rows * cols) {
                let at = |i: usize, j: usize| m * rows * cols + i * cols + j;
                for i in 0..rows {
                    let mean = (0..cols).map(|j| g[at(i, j)].powi(2)).sum::<f64>() / cols as f64;
                    states[0][m * rows + i] = toward(states[0][m * rows + i], mean);
                }
                for j in 0..cols {
                    let mean = (0..rows).map(|i| g[at(i, j)].powi(2)).sum::<f64>() / rows as f64;
                    states[1][m * cols + j] = toward(states[1][m * cols + j], mean);
                }
                let mean = states[0][m * rows..][..rows].iter().sum::<f64>() / rows as f64;
                for i in 0..rows {
                    for j in 0..cols {
                        v[at(i, j)] = states[0][m * rows + i] * states[1][m * cols + j] / mean.max(eps1);
                    }
                }
            }
        }
    }
    let u: Vec<f64> = g.iter().zip(&v).map(|(g, v)| g / v.max(eps1 * eps1).sqrt()).collect();
    let alpha = RULE.eps2.max(rms(&theta)) * RULE.lr.min(1.0 / t.sqrt());
    let scale = alpha / (rms(&u) / RULE.d).max(1.0);
    let moved = theta.iter().zip(&u).map(|(x, u)| x * (1.0 - RULE.lr * RULE.weight_decay) - scale * u).collect();
    std::iter::once(moved).chain(states).collect()
}

#[test]
fn a_step_is_that_of_the_formula() {
    for shape in SHAPES {
        for (ty, state) in
            [(Type::F64, Type::F64), (Type::F32, Type::F32), (Type::Bf16, Type::Bf16), (Type::F16, Type::F32)]
        {
            for factor in [1.0, -0.5] {
                let mut parameter = Parameter::new(ty, state, shape, &mut Random(7));
                let expected = reference(&parameter, factor, |x| state.round(x));
                update(std::slice::from_mut(&mut parameter), factor, &Serial, Level::best());
                let ulp = |ty| match ty {
                    Type::F64 => 2f64.powi(-44), // the reference adds up 150,000 numbers one by one
                    Type::F32 => 2f64.powi(-20),
                    Type::F16 => 2f64.powi(-10),
                    Type::Bf16 => 2f64.powi(-7),
                };
                let buffers = std::iter::once(&parameter.theta).chain(&parameter.states);
                for (k, (buffer, expected)) in buffers.zip(expected).enumerate() {
                    // theta's terms are up to ten where their sum may be nothing
                    let (ulp, least) = if k == 0 { (ulp(ty).max(ulp(state)), 1.0) } else { (ulp(state), 0.1) };
                    for (i, (x, y)) in buffer.values().zip(expected).enumerate() {
                        assert!((x - y).abs() <= ulp * (y.abs() + least), "{ty:?} {shape:?} {factor} {k} {i}: {x} {y}");
                    }
                }
            }
        }
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_level_nor_neighbours() {
    for (ty, state) in [(Type::F64, Type::F64), (Type::F32, Type::F32), (Type::Bf16, Type::F32), (Type::F16, Type::F16)]
    {
        let mut rng = Random(3);
        let start: Vec<Parameter> = SHAPES.iter().map(|&shape| Parameter::new(ty, state, shape, &mut rng)).collect();
        let after = |reversed: bool, pool: &dyn Pool, level| {
            let mut parameters = start.clone();
            if reversed {
                parameters.reverse();
            }
            update(&mut parameters, 1.0, pool, level);
            if reversed {
                parameters.reverse();
            }
            parameters.iter().map(Parameter::bits).collect::<Vec<_>>()
        };
        let expected = after(false, &Serial, Level::best());
        for level in levels() {
            assert_eq!(after(false, &Serial, level), expected, "{ty:?} {level:?}");
        }
        for threads in [2, 3, 8] {
            assert_eq!(after(threads == 3, &Rayon { threads }, Level::best()), expected, "{ty:?} {threads} threads");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let shape = Some((5, 4));
    let good = || Parameter::new(Type::F32, Type::F32, (2, shape), &mut Random(1));
    let answer = |parameter: &mut Parameter, shape: Shape| {
        let mut step = Step::default();
        step.constants(AnyRule::Adafactor(RULE).constants(&mut parameter.scalars, false));
        let answer = step.push_factored(parameter.tensors(), shape, 1.0);
        assert_eq!(step.elements() > 0, answer.is_ok());
        answer
    };
    assert_eq!(answer(&mut good(), shape), Ok(()));
    assert_eq!(answer(&mut good(), None), Err(Refused::States));
    for wrong in [(4, 5), (5, 8), (0, 4), (usize::MAX, 2), (40, 1)] {
        assert_eq!(answer(&mut good(), Some(wrong)), Err(Refused::Lengths), "{wrong:?}");
    }
    for k in 0..2 {
        let mut parameter = good();
        parameter.states[k] = Buffer::zeros(Type::F32, 3);
        assert_eq!(answer(&mut parameter, shape), Err(Refused::Lengths));
        parameter = good();
        parameter.states[k] = Buffer::zeros(Type::F64, parameter.states[k].len());
        assert_eq!(answer(&mut parameter, shape), Err(Refused::Types));
        parameter = good();
        parameter.states.truncate(k);
        assert_eq!(answer(&mut parameter, shape), Err(Refused::States));
    }
    for ty in TYPES.into_iter().filter(|&ty| ty != Type::F32) {
        let mut parameter = good();
        parameter.grad = Buffer::zeros(ty, parameter.grad.len());
        assert_eq!(answer(&mut parameter, shape), Err(Refused::Types));
    }
    // and no other way leads in: not as a rule of elements, not for a rule of elements
    let mut parameter = good();
    let mut step = Step::default();
    assert_eq!(step.push_factored(parameter.tensors(), shape, 1.0), Err(Refused::States));
    let constants = AnyRule::Adafactor(RULE).constants(&mut parameter.scalars, false);
    let mut step = Step::default();
    step.constants(constants);
    assert_eq!(step.push(parameter.tensors(), 1.0), Err(Refused::States));
    let mut other = Step::default();
    let sgd = common::every_rule()[0];
    let mut scalars = parameter.scalars;
    other.constants(sgd.constants(&mut scalars, false));
    assert_eq!(other.push_factored(parameter.tensors(), shape, 1.0), Err(Refused::States));
}
