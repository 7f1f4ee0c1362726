//! How fast programs are beside compiled rules: `cargo test --release --test program_speed -- --ignored --nocapture`.
//!
//! Both run in turn in the same process on one thread. What is printed are medians of the ratios: time of the rule by
//! time of the program. `OXISTEP_SPEED=large` adds tensors that are larger than the caches.

mod common;
mod traced;

use std::time::Instant;

use common::levels;
use oxistep_kernels::pool::Serial;
use oxistep_kernels::program::Program;
use oxistep_kernels::rules::adam::Adam;
use oxistep_kernels::rules::sgd::Sgd;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Constants, Precision, Scalars, Slice, SliceMut, Step, Tensors};
use traced::Draft;

/// Tensors of the same length with so many states.
struct Memory {
    params: Vec<Vec<f32>>,
    grads: Vec<Vec<f32>>,
    states: Vec<Vec<Vec<f32>>>,
}

impl Memory {
    fn new(tensors: usize, n: usize, states: usize) -> Self {
        let fill = |k: usize| (0..n).map(|i| ((i * 7 + k * 13) % 101) as f32 / 101.0 + 0.01).collect::<Vec<f32>>();
        let all = |k: usize| (0..tensors).map(|t| fill(t + k)).collect::<Vec<_>>();
        let states = (0..tensors).map(|t| (0..states).map(|k| fill(t + k)).collect()).collect();
        Self { params: all(0), grads: all(1), states }
    }

    /// One step, which `begin` tells what is to be done.
    fn step<'a>(&'a mut self, idle: Step<'static>, level: Level, begin: impl FnOnce(&mut Step<'a>)) -> Step<'static> {
        let mut step = idle.recycle();
        begin(&mut step);
        for ((param, grad), states) in self.params.iter_mut().zip(&self.grads).zip(&mut self.states) {
            let states = states.iter_mut().map(|state| SliceMut::F32(state));
            let (param, grad) = (SliceMut::F32(param), Slice::F32(grad));
            step.push(Tensors { param, grad, states, layout: None }, 1.0).unwrap();
        }
        step.run(&Serial, level).unwrap();
        step.recycle()
    }
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// The medians: nanoseconds an element of the rule, and the ratio of the rule's time to that of each program.
fn measure(
    rule: Constants,
    programs: &[&Program],
    inputs: &[f64],
    (tensors, n): (usize, usize),
    level: Level,
) -> (f64, Vec<f64>) {
    let mut memory = Memory::new(tensors, n, programs[0].states());
    let elements = tensors * n;
    let repeated = ((1 << 22) / elements).clamp(1, 1000);
    let mut idle: Step<'static> = Step::default();
    let (mut times, mut ratios) = (Vec::new(), vec![Vec::new(); programs.len()]);
    for round in 0..if elements > 1 << 23 { 9 } else { 25 } {
        let start = Instant::now();
        for _ in 0..repeated {
            idle = memory.step(idle, level, |step| step.constants(rule));
        }
        let compiled = start.elapsed().as_secs_f64();
        for (program, ratios) in programs.iter().zip(&mut ratios) {
            let start = Instant::now();
            for _ in 0..repeated {
                idle = memory.step(idle, level, |step| step.program(program, inputs).unwrap());
            }
            if round > 1 {
                ratios.push(compiled / start.elapsed().as_secs_f64());
            }
        }
        times.push(compiled / (repeated * elements) as f64 * 1e9);
    }
    (median(times), ratios.into_iter().map(median).collect())
}

fn compiled(draft: &Draft) -> [Program; 2] {
    [Program::new(&draft.description()).unwrap(), Program::plain(&draft.description()).unwrap()]
}

#[test]
#[ignore = "a measurement"]
fn programs_beside_rules() {
    let scalars = || Scalars::new([2.0, 0.0, 0.0], [Precision::F32; 3]);
    let (lr, beta1, beta2, eps, weight_decay) = (1e-3, 0.9, 0.999, 1e-8, 0.0);
    let adam =
        AnyRule::Adam(Adam { lr, beta1, beta2, eps, weight_decay, amsgrad: false, decoupled_weight_decay: false });
    let sgd = AnyRule::Sgd(Sgd { lr, momentum: 0.9, dampening: 0.0, weight_decay, nesterov: false });
    let adam_inputs = [lr, beta1, beta2, eps, 3.0];
    let cases = [
        ("Adam as torch's", adam, traced::adam(), &adam_inputs[..]),
        ("Adam as textbooks'", adam, traced::textbook_adam(), &adam_inputs[..]),
        ("momentum, SGD", sgd, traced::momentum(), &[lr, 0.9][..]),
        ("LAMB, Adam", adam, traced::lamb(), &adam_inputs[..4]),
        ("Lion, SGD", sgd, traced::lion(), &[lr, 0.9, 0.99, 0.1][..]),
    ];
    let mut sizes = vec![(2000, 64), (1, 1 << 12), (1, 1 << 16), (1, 1 << 20)];
    if std::env::var_os("OXISTEP_SPEED").is_some() {
        sizes.push((1, 1 << 26));
    }
    for level in levels().filter(|&level| level != Level::Baseline) {
        for (name, rule, draft, inputs) in &cases {
            let programs = compiled(draft);
            for &size in &sizes {
                let constants = rule.constants(&mut scalars(), false);
                let (time, ratios) = measure(constants, &[&programs[0], &programs[1]], inputs, size, level);
                let counts = programs.each_ref().map(Program::instructions);
                println!(
                    "{:8} {name:20} {:5} x {:9}: rule {time:.3} ns; program {:.2} ({} instructions), plain {:.2} ({})",
                    level.name(),
                    size.0,
                    size.1,
                    ratios[0],
                    counts[0],
                    ratios[1],
                    counts[1],
                );
            }
        }
    }
}
