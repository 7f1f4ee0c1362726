//! The vector work of L-BFGS against f64 references written as the book states them, and the same bits everywhere.

mod common;

use common::{Random, levels};
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::simd::Level;
use oxistep_kernels::vector::{
    History, Means, Piece, SERIAL, Scalar, Transfer, differences, direction, dot, max_abs, sum_abs, transfer,
};

const LENGTHS: [usize; 8] = [0, 1, 2, 31, 33, 1000, 16 * 1024 + 5, SERIAL + 77];

fn means(pool: &dyn Pool, level: Level) -> Means<'_> {
    Means { pool, level }
}

/// Values around zero, of different sizes.
fn values<T: Scalar>(n: usize, rng: &mut Random) -> Vec<T> {
    (0..n).map(|i| T::of(rng.between(-0.5, 0.5) * if i % 7 == 0 { 30.0 } else { 1.0 })).collect()
}

fn wide<T: Scalar>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.wide()).collect()
}

/// A product, summed with a running compensation, and what rounding may do to it: the sum of absolute products.
fn product(a: &[f64], b: &[f64]) -> (f64, f64) {
    let (mut sum, mut lost, mut size) = (0.0, 0.0, 0.0);
    for x in a.iter().zip(b).map(|(a, b)| a * b) {
        let y = x - lost;
        lost = ((sum + y) - sum) - y;
        sum += y;
        size += x.abs();
    }
    (sum, size)
}

fn close(got: f64, (expected, size): (f64, f64), unit: f64) {
    assert!((got - expected).abs() <= size * unit, "{got} against {expected}, {size}");
}

fn products_are_right<T: Scalar>(unit: f64) {
    let mut rng = Random(1);
    for n in LENGTHS {
        let (a, b): (Vec<T>, Vec<T>) = (values(n, &mut rng), values(n, &mut rng));
        let here = means(&Serial, Level::current());
        close(dot(here, &a, &b).unwrap(), product(&wide(&a), &wide(&b)), unit);
        let ones = vec![1.0; n];
        let absolute: Vec<f64> = wide(&a).iter().map(|a| a.abs()).collect();
        close(sum_abs(here, &a).unwrap(), product(&absolute, &ones), unit);
        let t = T::of(-0.3);
        let largest = a.iter().map(|&a| (a * t).abs().wide()).fold(0.0, f64::max);
        assert_eq!(max_abs(here, &a, t).unwrap().wide(), largest);
        if let Some(middle) = a.len().checked_div(2).filter(|_| n > 0) {
            let mut spoilt = a.clone();
            spoilt[middle] = T::of(f64::NAN);
            assert!(max_abs(here, &spoilt, t).unwrap().wide().is_nan());
        }
    }
}

#[test]
fn products_of_f32_are_right() {
    products_are_right::<f32>(1e-14);
}

#[test]
fn products_of_f64_are_right() {
    products_are_right::<f64>(1e-14);
}

/// Nocedal and Wright, algorithm 7.4, in f64.
fn two_loops(grad: &[f64], dirs: &[Vec<f64>], steps: &[Vec<f64>], ro: &[f64], scale: f64) -> Vec<f64> {
    let mut q: Vec<f64> = grad.iter().map(|g| -g).collect();
    let mut alphas = vec![0.0; ro.len()];
    for i in (0..ro.len()).rev() {
        alphas[i] = ro[i] * product(&steps[i], &q).0;
        q.iter_mut().zip(&dirs[i]).for_each(|(q, y)| *q -= alphas[i] * y);
    }
    let mut r: Vec<f64> = q.iter().map(|q| q * scale).collect();
    for i in 0..ro.len() {
        let beta = ro[i] * product(&dirs[i], &r).0;
        r.iter_mut().zip(&steps[i]).for_each(|(r, s)| *r += (alphas[i] - beta) * s);
    }
    r
}

struct Problem<T> {
    grad: Vec<T>,
    dirs: Vec<Vec<T>>,
    steps: Vec<Vec<T>>,
    ro: Vec<T>,
    scale: T,
}

/// A history of positive curvature, as a minimiser's is.
fn problem<T: Scalar>(n: usize, count: usize, seed: u64) -> Problem<T> {
    let mut rng = Random(seed);
    let grad = values(n, &mut rng);
    let steps: Vec<Vec<T>> = (0..count).map(|_| values(n, &mut rng)).collect();
    let curve = |(i, &s): (usize, &T)| s * T::of(0.5 + (i % 5) as f64 * 0.3);
    let dirs: Vec<Vec<T>> = steps.iter().map(|s| s.iter().enumerate().map(curve).collect()).collect();
    let inverse = |(y, s): (&Vec<T>, &Vec<T>)| T::of(1.0 / product(&wide(y), &wide(s)).0.max(1e-3));
    let ro = dirs.iter().zip(&steps).map(inverse).collect();
    Problem { grad, dirs, steps, ro, scale: T::of(0.8) }
}

impl<T: Scalar> Problem<T> {
    fn solve(&self, means: Means<'_>) -> (T, Vec<T>, Vec<T>) {
        let dirs: Vec<&[T]> = self.dirs.iter().map(Vec::as_slice).collect();
        let steps: Vec<&[T]> = self.steps.iter().map(Vec::as_slice).collect();
        let history = History { dirs: &dirs, steps: &steps, ro: &self.ro };
        let mut alphas = vec![T::of(f64::NAN); self.ro.len()];
        let mut out = vec![T::of(f64::NAN); self.grad.len()]; // nothing of what stood there may matter
        let product = direction(means, &self.grad, history, self.scale, &mut alphas, &mut out).unwrap();
        (product, alphas, out)
    }
}

fn directions_are_right<T: Scalar>(tolerance: f64) {
    for n in LENGTHS {
        for count in [0, 1, 2, 7] {
            let problem = problem::<T>(n, count, 5 + n as u64);
            let (slope, _, out) = problem.solve(means(&Rayon { threads: 2 }, Level::current()));
            let lists = |x: &[Vec<T>]| x.iter().map(|x| wide(x)).collect::<Vec<_>>();
            let expected = two_loops(
                &wide(&problem.grad),
                &lists(&problem.dirs),
                &lists(&problem.steps),
                &wide(&problem.ro),
                problem.scale.wide(),
            );
            let size = expected.iter().fold(1.0, |size: f64, x| size.max(x.abs()));
            for (got, expected) in out.iter().zip(&expected) {
                assert!((got.wide() - expected).abs() <= tolerance * size, "{n} {count}: {got:?} against {expected}");
            }
            close(slope.wide(), product(&wide(&problem.grad), &wide(&out)), tolerance);
        }
    }
}

#[test]
fn directions_of_f32_are_right() {
    directions_are_right::<f32>(3e-6);
}

#[test]
fn directions_of_f64_are_right() {
    directions_are_right::<f64>(1e-14);
}

#[test]
fn differences_are_right_and_the_gradient_is_kept() {
    for n in LENGTHS {
        let mut rng = Random(9);
        let (grad, old, way): (Vec<f32>, Vec<f32>, Vec<f32>) =
            (values(n, &mut rng), values(n, &mut rng), values(n, &mut rng));
        let (mut before, mut y, mut s) = (old.clone(), vec![f32::NAN; n], vec![f32::NAN; n]);
        let here = means(&Rayon { threads: 3 }, Level::current());
        let (ys, yy) = differences(here, &grad, &mut before, &way, 0.25, &mut y, &mut s).unwrap();
        assert_eq!(before, grad);
        assert!((0..n).all(|i| y[i] == grad[i] - old[i] && s[i] == 0.25 * way[i]));
        close(ys, product(&wide(&y), &wide(&s)), 1e-14);
        close(yy, product(&wide(&y), &wide(&y)), 1e-14);
    }
}

#[test]
fn pieces_are_gathered_and_spread() {
    for lengths in [vec![], vec![0, 1, 5], vec![3, SERIAL, 1, 40_000]] {
        let total = lengths.iter().sum();
        let mut rng = Random(3);
        let source: Vec<f64> = values(total, &mut rng);
        let here = means(&Rayon { threads: 2 }, Level::current());
        for (transfer_, expected) in [
            (Transfer::Copy, source.clone()),
            (Transfer::Negate, source.iter().map(|x| -x).collect()),
            (Transfer::Add(3.0), source.iter().map(|x| 3.0f64.mul_add(*x, 0.5)).collect::<Vec<_>>()),
        ] {
            let (mut target, mut from) = (vec![0.5; total], source.as_slice());
            let mut pieces = Vec::new();
            let mut to = target.as_mut_slice();
            for &n in &lengths {
                let (here, rest) = to.split_at_mut(n);
                let (source, rest_of_source) = from.split_at(n);
                pieces.push(Piece { to: here, from: Some(source) });
                (to, from) = (rest, rest_of_source);
            }
            transfer(here, pieces, transfer_).unwrap();
            assert_eq!(target, expected);
        }
    }
    let mut target = [1.0f32; 3];
    transfer(means(&Serial, Level::current()), vec![Piece { to: &mut target, from: None }], Transfer::Negate).unwrap();
    assert!(target.iter().all(|x| *x == 0.0 && x.is_sign_negative()));
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_level() {
    fn bits<T: Scalar>(n: usize, means: Means<'_>) -> Vec<u64> {
        let problem = problem::<T>(n, 5, 3);
        let (slope, alphas, out) = problem.solve(means);
        let mut all = vec![slope.wide(), dot(means, &out, &problem.grad).unwrap(), sum_abs(means, &out).unwrap()];
        all.push(max_abs(means, &out, T::of(0.3)).unwrap().wide());
        all.extend(alphas.iter().chain(&out).map(|x| x.wide()));
        all.into_iter().map(f64::to_bits).collect()
    }
    for n in LENGTHS {
        let expected =
            (bits::<f32>(n, means(&Serial, Level::Baseline)), bits::<f64>(n, means(&Serial, Level::Baseline)));
        for level in levels() {
            for pool in [&Serial as &dyn Pool, &Rayon { threads: 2 }, &Rayon { threads: 5 }] {
                let got = (bits::<f32>(n, means(pool, level)), bits::<f64>(n, means(pool, level)));
                assert!(got == expected, "{n} elements, {level:?}, {} threads", pool.threads());
            }
        }
    }
}
