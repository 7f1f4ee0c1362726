//! The norm of many tensors and changes in place: against float64, the same bits everywhere, NaN and infinity.

use oxistep_kernels::change::{Change, Changes};
use oxistep_kernels::norm::{Norm, Order};
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{Layout, Slice, SliceMut, bf16, f16};
use proptest::prelude::*;

const ORDERS: [Order; 3] = [Order::One, Order::Two, Order::Max];

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x as f32 / u32::MAX as f32 - 0.5) * 4.0
    };
    (0..n).map(|_| next()).collect()
}

fn norm_of(tensors: &[Slice<'_>], order: Order, pool: &dyn Pool, level: Level) -> f64 {
    let mut norm = Norm::default();
    tensors.iter().for_each(|&tensor| norm.push(tensor, None));
    norm.compute(order, pool, level).unwrap()
}

/// Compensated, so that the reference is the better of the two.
fn sum(terms: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0, 0.0);
    for term in terms {
        let new: f64 = sum + term;
        lost += if sum > term { (sum - new) + term } else { (term - new) + sum };
        sum = new;
    }
    sum + lost
}

fn plainly(order: Order, elements: impl Iterator<Item = f64>) -> f64 {
    match order {
        Order::One => sum(elements.map(f64::abs)),
        Order::Two => sum(elements.map(|x| x * x)).sqrt(),
        Order::Max => elements.map(f64::abs).fold(0.0, f64::max),
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-14 * b.abs()
}

#[test]
fn equals_float64_for_every_type_and_length() {
    for n in [0, 1, 2, 63, 64, 65, 127, 300, 65_536, 98_304, 98_305, 200_001] {
        let x = numbers(n, 3);
        let doubles: Vec<f64> = x.iter().map(|&x| f64::from(x) * 1.000_000_1).collect();
        let halves: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
        let brains: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
        for order in ORDERS {
            let check = |slice, expected| {
                let norm = norm_of(&[slice], order, &Serial, Level::best());
                assert!(close(norm, expected), "{n} {order:?} {slice:?}: {norm} {expected}");
            };
            check(Slice::F32(&x), plainly(order, x.iter().map(|&x| f64::from(x))));
            check(Slice::F64(&doubles), plainly(order, doubles.iter().copied()));
            check(Slice::F16(&halves), plainly(order, halves.iter().map(|x| x.to_f64())));
            check(Slice::Bf16(&brains), plainly(order, brains.iter().map(|x| x.to_f64())));
        }
    }
}

#[test]
fn the_same_bits_for_any_threads_levels_and_order_of_tensors() {
    let (a, b, c) = (numbers(200_001, 1), numbers(77, 2), numbers(150_000, 3));
    let doubles: Vec<f64> = numbers(100_003, 4).into_iter().map(|x| f64::from(x) / 3.0).collect();
    let halves: Vec<bf16> = numbers(40_000, 5).into_iter().map(bf16::from_f32).collect();
    let mut tensors = vec![Slice::F32(&a), Slice::F32(&b), Slice::F64(&doubles), Slice::F32(&c), Slice::Bf16(&halves)];
    for order in ORDERS {
        let expected = norm_of(&tensors, order, &Serial, Level::Baseline);
        for level in Level::ALL.into_iter().filter(|level| level.available()) {
            for threads in 1..5 {
                for _ in 0..tensors.len() {
                    tensors.rotate_left(1);
                    let norm = norm_of(&tensors, order, &Rayon { threads }, level);
                    assert_eq!(norm.to_bits(), expected.to_bits(), "{order:?} {level:?} {threads}");
                }
            }
        }
    }
}

#[test]
fn squares_neither_overflow_nor_vanish() {
    for scale in [5e37f32, 1e-38, 1e-44] {
        let x = [3.0 * scale, 0.0, -4.0 * scale];
        let expected = plainly(Order::Two, x.iter().map(|&x| f64::from(x)));
        assert!(expected > 0.0 && expected.is_finite());
        assert!(close(norm_of(&[Slice::F32(&x)], Order::Two, &Serial, Level::best()), expected));
    }
}

#[test]
fn nan_wins_over_infinity_wherever_they_are() {
    for order in ORDERS {
        for at in [0, 1, 63, 64, 70_000, 99_999] {
            let mut x = numbers(100_000, 9);
            x[at] = f32::NEG_INFINITY;
            assert_eq!(norm_of(&[Slice::F32(&x)], order, &Serial, Level::best()), f64::INFINITY);
            for nan in [f32::NAN, -f32::NAN] {
                x[99_998 - at / 2] = nan;
                let quiet = numbers(10, 1);
                let tensors = [Slice::F32(&quiet), Slice::F32(&x), Slice::F32(&quiet)];
                assert!(norm_of(&tensors, order, &Serial, Level::best()).is_nan(), "{order:?} {at}");
            }
        }
    }
}

fn every(step: isize, sizes: &[usize]) -> Layout {
    let mut strides = vec![0; sizes.len()];
    let mut stride = step;
    for (to, &size) in strides.iter_mut().zip(sizes).rev() {
        *to = stride;
        stride *= size as isize + 1;
    }
    Layout::new(sizes, &strides, &[0])
}

#[test]
fn strided_tensors_have_the_norm_of_their_elements() {
    let layout = every(2, &[30, 50, 70]);
    let x = numbers(layout.extent(0).unwrap(), 8);
    let mut inside = Vec::new();
    for i in 0..30 {
        for j in 0..50 {
            (0..70).for_each(|k| inside.push(f64::from(x[2 * k + 2 * 71 * j + 2 * 71 * 51 * i])));
        }
    }
    for order in ORDERS {
        let mut norm = Norm::default();
        norm.push(Slice::F32(&x), Some(&layout));
        assert_eq!(norm.elements(), 105_000);
        let strided = norm.compute(order, &Serial, Level::best()).unwrap();
        assert!(close(strided, plainly(order, inside.iter().copied())), "{order:?}");
        assert_eq!(strided.to_bits(), norm_of(&[Slice::F64(&inside)], order, &Serial, Level::best()).to_bits());
    }
}

#[test]
fn a_norm_can_be_used_again() {
    let x = numbers(1000, 2);
    let mut norm = Norm::default();
    norm.push(Slice::F32(&x), None);
    let first = norm.compute(Order::Two, &Serial, Level::best()).unwrap();
    let mut norm = norm.recycle();
    assert_eq!((norm.elements(), norm.compute(Order::Two, &Serial, Level::best()).unwrap()), (0, 0.0));
    norm.push(Slice::F32(&x), None);
    assert_eq!(norm.compute(Order::Two, &Serial, Level::best()).unwrap(), first);
}

fn changed(x: SliceMut<'_>, layout: Option<&Layout>, change: Change, pool: &dyn Pool, level: Level) {
    let mut changes = Changes::default();
    changes.push(x, layout);
    changes.run(change, pool, level).unwrap();
}

#[test]
fn scaling_rounds_once() {
    let x = numbers(200_003, 5);
    let factor = 0.123_456_79f32;
    for level in Level::ALL.into_iter().filter(|level| level.available()) {
        let mut floats = x.clone();
        changed(SliceMut::F32(&mut floats), None, Change::Scale(factor.into()), &Rayon { threads: 3 }, level);
        assert!(floats.iter().zip(&x).all(|(y, x)| y.to_bits() == (x * factor).to_bits()));
        let mut halves: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
        let before = halves.clone();
        changed(SliceMut::Bf16(&mut halves), None, Change::Scale(factor.into()), &Serial, level);
        assert!(halves.iter().zip(&before).all(|(y, x)| *y == bf16::from_f32(x.to_f32() * factor)));
    }
}

#[test]
fn only_the_elements_of_a_layout_are_changed() {
    let layout = every(3, &[40, 20]);
    let x = numbers(layout.extent(0).unwrap(), 5);
    let mut y = x.clone();
    changed(SliceMut::F32(&mut y), Some(&layout), Change::Scale(0.5), &Serial, Level::best());
    let mut expected = x.clone();
    for i in 0..40 {
        (0..20).for_each(|j| expected[3 * j + 3 * 21 * i] *= 0.5);
    }
    assert_eq!(y, expected);
    assert_ne!(y, x);
}

proptest! {
    #[test]
    fn bounds_hold_and_nan_stays(x in prop::collection::vec(prop::num::f32::ANY, 0..300), bound in 0f32..1e3) {
        let mut y = x.clone();
        let change = Change::Clamp((-bound).into(), bound.into());
        changed(SliceMut::F32(&mut y), None, change, &Serial, Level::best());
        for (y, x) in y.iter().zip(&x) {
            let expected = if x.is_nan() { *x } else { x.clamp(-bound, bound) };
            prop_assert!(y.to_bits() == expected.to_bits() || *y == expected || y.is_nan() && x.is_nan());
        }
    }
}

#[test]
fn bounds_are_those_of_the_type() {
    let mut x: Vec<bf16> = numbers(100, 4).into_iter().map(bf16::from_f32).collect();
    let bound = 0.123_456; // between two bfloat16
    changed(SliceMut::Bf16(&mut x), None, Change::Clamp(-bound, bound), &Serial, Level::best());
    let rounded = bf16::from_f64(bound);
    assert!(x.iter().all(|x| x.to_f32().abs() <= rounded.to_f32()) && x.contains(&rounded) && x.contains(&-rounded));
}
