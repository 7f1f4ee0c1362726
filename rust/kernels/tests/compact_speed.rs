//! How fast a step is in fewer bytes: `cargo test --release --test compact_speed -- --ignored --nocapture`.
//!
//! All run in turn, with two threads. What is printed are medians of ratios: time of AdamW in float32 by time of each.
//! `OXISTEP_SPEED=large` adds tensors that are larger than the caches; `OXISTEP_ONLY=` takes the settings with these
//! words.

mod common;
mod kept;

use std::time::Instant;

use common::levels;
use kept::{Parameter, States, Stream};
use oxistep_kernels::compact::Weights;
use oxistep_kernels::pool::{Pool, Rayon};
use oxistep_kernels::rules::adam::Adam;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Step, Tensors};

fn adamw() -> AnyRule {
    let (lr, beta1, beta2, eps, weight_decay) = (1e-3, 0.9, 0.999, 1e-8, 0.01);
    AnyRule::Adam(Adam { lr, beta1, beta2, eps, weight_decay, amsgrad: false, decoupled_weight_decay: true })
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// A plain step, of float32 or all of bfloat16.
fn plain(parameter: &mut Parameter, grad: &Stream, pool: &dyn Pool, level: Level) {
    let mut step = Step::default();
    step.constants(parameter.rule.constants(&mut parameter.scalars, false));
    let states = parameter.written.iter_mut().map(Stream::slice_mut);
    let tensors = Tensors { param: parameter.param.slice_mut(), grad: grad.slice(), states, layout: None };
    step.push(tensors, 1.0).unwrap();
    step.run(pool, level).unwrap();
}

#[test]
#[ignore = "a measurement"]
fn fewer_bytes_beside_float32() {
    let mut sizes = vec![1 << 16, 1 << 20];
    if std::env::var_os("OXISTEP_SPEED").is_some() {
        sizes.push(1 << 26);
    }
    let pool = Rayon { threads: std::env::var("OXISTEP_THREADS").map_or(2, |n| n.parse().unwrap()) };
    let settings = [
        ("float32, 8-bit states", Weights::Nearest, States::Codes),
        ("float32, bfloat16 states", Weights::Nearest, States::Bf16),
        ("stochastic, float32 states", Weights::Fair, States::F32),
        ("residual16, float32 states", Weights::Residual16, States::F32),
        ("residual16, bfloat16 states", Weights::Residual16, States::Bf16),
        ("residual16, 8-bit states", Weights::Residual16, States::Codes),
        ("residual8, 8-bit states", Weights::Residual8, States::Codes),
        ("kahan, bfloat16 states", Weights::Kahan, States::Bf16),
        ("master, float32 states", Weights::Master, States::F32),
    ];
    for level in levels().filter(|&level| level != Level::Baseline) {
        for &n in &sizes {
            let values: Vec<f32> = (0..n).map(|i| ((i * 7) % 101) as f32 / 101.0 - 0.5).collect();
            let single = Stream::F32(values.iter().map(|x| x * 0.1 + 1e-3).collect());
            let half = Stream::bf16(values.iter().map(|x| x * 0.1 + 1e-3));
            let mut reference = Parameter::new(adamw(), Weights::Nearest, States::F32, &values);
            let rounds = if n > 1 << 22 { 9 } else { 25 };
            let repeated = ((1 << 22) / n).max(1);
            let only = std::env::var("OXISTEP_ONLY").unwrap_or_default();
            for (name, weights, states) in settings.into_iter().filter(|(name, ..)| name.contains(&only)) {
                let mut compact = Parameter::new(adamw(), weights, states, &values);
                let grad = if weights == Weights::Nearest { &single } else { &half };
                let (mut ratios, mut times) = (Vec::new(), Vec::new());
                for round in 0..rounds {
                    let start = Instant::now();
                    (0..repeated).for_each(|_| plain(&mut reference, &single, &pool, level));
                    let of_reference = start.elapsed().as_secs_f64();
                    let start = Instant::now();
                    (0..repeated).for_each(|_| compact.step(grad.slice(), &pool, level));
                    let own = start.elapsed().as_secs_f64();
                    if round > 1 {
                        ratios.push(of_reference / own);
                        times.push(own / (repeated * n) as f64 * 1e9);
                    }
                }
                println!(
                    "{:8} {n:9} {name:28} {:.2} of float32's speed; {:.3} ns an element",
                    level.name(),
                    median(ratios),
                    median(times)
                );
            }
        }
    }
}
