//! Muon's element-wise work against f64 references, and the same bits everywhere.

mod common;

use common::{Random, levels};
use oxistep_kernels::bf16;
use oxistep_kernels::driver::SERIAL;
use oxistep_kernels::muon::{Lines, Momentum, Update, run};
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::simd::Level;

fn values(n: usize, rng: &mut Random) -> Vec<f64> {
    (0..n).map(|_| rng.between(-2.0, 2.0)).collect()
}

#[test]
fn momentum_is_right() {
    for n in [0, 1, 7, 300, SERIAL + 9] {
        for momentum in [0.0, 0.3, 0.95] {
            let mut rng = Random(n as u64);
            let (grad, before) = (values(n, &mut rng), values(n, &mut rng));
            let (mut buffer, mut update) = (before.clone(), vec![bf16::ZERO; n]);
            let mut work = Vec::new();
            Momentum { grad: &grad, buffer: &mut buffer, update: Some(&mut update), momentum }.push(&mut work);
            run(&Rayon { threads: 2 }, Level::current(), &mut work).unwrap();
            drop(work);
            for i in 0..n {
                let b = momentum * before[i] + (1.0 - momentum) * grad[i];
                assert!((buffer[i] - b).abs() < 1e-15 * 4.0);
                let u = (1.0 - momentum) * grad[i] + momentum * b;
                assert!((update[i].to_f64() - u).abs() <= u.abs() / 256.0 + 1e-15);
            }
            let mut alone = before;
            let mut work = Vec::new();
            Momentum { grad: &grad, buffer: &mut alone, update: None, momentum }.push(&mut work);
            run(&Serial, Level::Baseline, &mut work).unwrap();
            drop(work);
            assert_eq!(alone, buffer);
        }
    }
}

/// The updated parameter and what it should be, for a product that lies like the parameter or transposed.
fn updated(rows: usize, columns: usize, transposed: bool, pool: &dyn Pool, level: Level) -> (Vec<f32>, Vec<f64>) {
    let mut rng = Random(rows as u64);
    let before: Vec<f32> = values(rows * columns, &mut rng).iter().map(|&x| x as f32).collect();
    let product: Vec<bf16> = values(rows * columns, &mut rng).iter().map(|&x| bf16::from_f64(x)).collect();
    let (step, pitch) = if transposed { (rows, 1) } else { (1, columns) };
    let (decay, alpha) = (0.9, -0.25);
    let mut param = before.clone();
    let mut work = Vec::new();
    Update { param: &mut param, product: &product, lines: Lines { width: columns, step, pitch }, decay, alpha }
        .push(&mut work);
    run(pool, level, &mut work).unwrap();
    drop(work);
    let expected = (0..rows * columns).map(|i| {
        let (row, column) = (i / columns, i % columns);
        f64::from(before[i]) * decay + alpha * product[row * pitch + column * step].to_f64()
    });
    (param, expected.collect())
}

#[test]
fn updates_are_right_and_the_same_everywhere() {
    for (rows, columns) in
        [(1, 1), (1, 9), (9, 1), (65, 63), (64, 128), (130, 70), (500, 300), (70_000, 3), (3, 70_000)]
    {
        for transposed in [false, true] {
            let (expected_bits, expected) = updated(rows, columns, transposed, &Serial, Level::Baseline);
            for (got, expected) in expected_bits.iter().zip(&expected) {
                assert!((f64::from(*got) - expected).abs() < 1e-6, "{rows} x {columns}, {transposed}");
            }
            for level in levels() {
                for threads in [1, 2, 3] {
                    let (got, _) = updated(rows, columns, transposed, &Rayon { threads }, level);
                    assert!(got == expected_bits, "{rows} x {columns}, {transposed}, {level:?}, {threads}");
                }
            }
        }
    }
}
