//! States and weights in fewer bytes: the same bits everywhere, exact where that is promised, near float64 elsewhere.

mod common;
mod kept;

use common::{Random, brief, every_rule, levels};
use kept::{Parameter, States, Stream};
use oxistep_kernels::compact::{BLOCK, Compact, Kept, Noise, Weights, pack, unpack};
use oxistep_kernels::driver::Refused;
use oxistep_kernels::pool::{Rayon, Serial};
use oxistep_kernels::rules::adagrad::Adagrad;
use oxistep_kernels::rules::adam::Adam;
use oxistep_kernels::rules::sgd::Sgd;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Layout, Precision, Scalars, Slice, SliceMut, StateKind, Step, Tensors, bf16};

const WEIGHTS: [Weights; 6] =
    [Weights::Nearest, Weights::Fair, Weights::Kahan, Weights::Residual8, Weights::Residual16, Weights::Master];
const STATES: [States; 3] = [States::F32, States::Bf16, States::Codes];

fn adam(lr: f64) -> AnyRule {
    let (beta1, beta2, eps, weight_decay) = (0.9, 0.999, 1e-8, 0.0);
    AnyRule::Adam(Adam { lr, beta1, beta2, eps, weight_decay, amsgrad: false, decoupled_weight_decay: false })
}

fn sgd(lr: f64, momentum: f64) -> AnyRule {
    AnyRule::Sgd(Sgd { lr, momentum, dampening: 0.0, weight_decay: 0.0, nesterov: false })
}

/// Numbers of a normal distribution.
fn normal(rng: &mut Random) -> f32 {
    let (u, v) = (rng.between(1e-12, 1.0), rng.between(0.0, std::f64::consts::TAU));
    ((-2.0 * u.ln()).sqrt() * v.cos()) as f32
}

fn normals(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Random(seed);
    (0..n).map(|_| normal(&mut rng)).collect()
}

fn half(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&x| bf16::from_f32(x)).collect()
}

#[test]
fn the_same_bits_for_any_threads_and_level() {
    // several chunks, the last one with a block that is not full
    let n = 3 * 8192 + 5000 + 77;
    let values = normals(n, 1);
    for (i, rule) in every_rule().into_iter().enumerate() {
        if rule.kinds().is_empty() || matches!(rule, AnyRule::Adafactor(_)) {
            continue;
        }
        for (k, weights) in WEIGHTS.into_iter().enumerate() {
            for (j, states) in STATES.into_iter().enumerate() {
                if brief() && (i + 2 * j + 3 * k) % 7 != 0 {
                    continue;
                }
                let runs = levels().flat_map(|level| [(level, 1), (level, 3)]);
                let outcomes = runs.map(|(level, threads)| {
                    let mut parameter = Parameter::new(rule, weights, states, &values);
                    for step in 0..3 {
                        let grad = normals(n, 10 + step);
                        let single = Stream::F32(grad.clone());
                        let halves = Stream::Bf16(half(&grad));
                        let grad = if weights == Weights::Nearest { &single } else { &halves };
                        parameter.step(grad.slice(), &Rayon { threads }, level);
                    }
                    parameter.bytes()
                });
                let mut outcomes = outcomes.collect::<Vec<_>>().into_iter();
                let first = outcomes.next().unwrap();
                assert!(outcomes.all(|other| other == first), "{rule:?} {weights:?} {states:?}");
            }
        }
    }
}

/// Gradients that are transposed, have gaps, or are one number expanded have the bits of the same ones side by side.
#[test]
fn a_gradient_may_lie_otherwise() {
    let (rows, columns) = (130, 171); // several chunks, none of which ends with a row, and a block that is not full
    let n = rows * columns;
    let cases: [(&str, [isize; 2], usize); 4] = [
        ("transposed", [1, rows as isize], n),
        ("with gaps", [2 * columns as isize + 3, 2], 2 * rows * columns + 3 * rows),
        ("a row for all", [0, 1], columns),
        ("one number", [0, 0], 1),
    ];
    let values = normals(n, 1);
    for (name, [row, column], len) in cases {
        let layout = Layout::new(&[rows, columns], &[columns as isize, row, 1, column], &[0; 2]);
        let at = |i: usize| ((i / columns) as isize * row + (i % columns) as isize * column) as usize;
        for (k, weights) in WEIGHTS.into_iter().enumerate() {
            for (j, states) in STATES.into_iter().enumerate() {
                if brief() && (j + k) % 3 != 0 {
                    continue;
                }
                let parameter = || Parameter::new(adam(1e-3), weights, states, &values);
                let mut right = parameter();
                let mut others: Vec<_> = levels().map(|level| (level, parameter())).collect();
                for step in 0..2 {
                    let x = normals(len, 20 + step);
                    let beside = (0..n).map(|i| x[at(i)]).collect::<Vec<_>>();
                    let of = |x: Vec<f32>| match weights {
                        Weights::Nearest if step == 0 => Stream::F32(x),
                        _ => Stream::bf16(x.into_iter()),
                    };
                    let (x, beside) = (of(x), of(beside));
                    right.step(beside.slice(), &Serial, Level::best());
                    for (level, other) in &mut others {
                        let mut step = Step::default();
                        other.push_as(&mut step, x.slice(), Some(&layout));
                        step.run(&Rayon { threads: 3 }, *level).unwrap();
                    }
                }
                let same = others.iter().all(|(_, other)| other.bytes() == right.bytes());
                assert!(same, "{name} {weights:?} {states:?}");
            }
        }
    }
}

#[test]
fn residuals_and_masters_are_a_float32_run_bit_for_bit() {
    let n = 9000;
    let values: Vec<f32> = half(&normals(n, 2)).into_iter().map(f32::from).collect();
    for rule in [adam(1e-3), sgd(1e-4, 0.9), sgd(1e-4, 0.0)] {
        let mut single = Parameter::new(rule, Weights::Nearest, States::F32, &values);
        let mut residual = Parameter::new(rule, Weights::Residual16, States::F32, &values);
        let mut master = Parameter::new(rule, Weights::Master, States::F32, &values);
        for step in 0..50 {
            let grad = Stream::Bf16(half(&normals(n, 100 + step)));
            for parameter in [&mut single, &mut residual, &mut master] {
                parameter.step(grad.slice(), &Serial, Level::best());
            }
        }
        let (Stream::Bf16(p), Some(Stream::I16(rest))) = (&residual.param, residual.written.last()) else { panic!() };
        let joined = p.iter().zip(rest).map(|(p, &r)| (u32::from(p.to_bits()) << 16).wrapping_add(r as i32 as u32));
        let Stream::F32(wanted) = &single.param else { panic!() };
        assert!(joined.eq(wanted.iter().map(|x| x.to_bits())), "{rule:?}");
        assert_eq!(master.written.last().unwrap().bytes(), single.param.bytes(), "{rule:?}");
        assert_eq!(master.param.bytes(), Stream::Bf16(half(wanted)).bytes(), "{rule:?}");
    }
}

#[test]
fn a_residual_holds_every_number() {
    let zero = Slice::Bf16(&[bf16::ZERO]);
    let mut count = 0;
    for high in 0..=u16::MAX {
        for low in [0, 1, 2, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xffff, high, high.rotate_left(7)] {
            let bits = u32::from(high) << 16 | u32::from(low);
            let x = f32::from_bits(bits);
            // a step of SGD with lr = 0 reads and writes what is there
            let joined = (bits.wrapping_add(0x8000) >> 16, bits as u16 as i16);
            let (p, r) = if x.is_nan() { (bits >> 16 | 0x40, 0) } else { joined };
            let (mut p, mut r) = ([bf16::from_bits(p as u16)], [r]);
            let compact = Compact { weights: Weights::Residual16, states: vec![], ..Compact::default() };
            let mut step = Step::default();
            step.constants(sgd(0.0, 0.0).constants(&mut Scalars::new([0.0; 3], [Precision::F32; 3]), false));
            let tensors =
                Tensors { param: SliceMut::Bf16(&mut p), grad: zero, states: [SliceMut::I16(&mut r)], layout: None };
            step.push_compact(tensors, &compact, 1.0).unwrap();
            step.run(&Serial, Level::Baseline).unwrap();
            drop(step);
            let after = (u32::from(p[0].to_bits()) << 16).wrapping_add(r[0] as i32 as u32);
            if x.is_nan() {
                assert!(p[0].is_nan() && f32::from_bits(after).is_nan(), "{bits:#x}");
            } else {
                assert_eq!(after, bits, "{bits:#x}");
                // the largest ones are nearer to infinity than to any number
                let beyond = bits & 0x7fff_ffff >= 0x7f7f_8000;
                assert!(beyond || (p[0].to_f32() - x).abs() <= (x.abs() / 128.0).max(1e-38), "{bits:#x}");
                count += 1;
            }
        }
    }
    assert!(count > 600_000);
}

#[test]
fn averages_are_those_of_a_separate_pass_and_change_nothing_else() {
    let n = if brief() { 8192 + 5000 + 77 } else { 3 * 65536 + 5000 + 77 };
    let values: Vec<f32> = half(&normals(n, 3)).into_iter().map(f32::from).collect();
    let weights = WEIGHTS.into_iter().map(|weights| (weights, false)).chain([(Weights::Nearest, true)]);
    for ((weights, is_half), states) in weights.flat_map(|weights| STATES.map(|states| (weights, states))) {
        for level in levels() {
            let mut alone = Parameter::new(adam(1e-2), weights, states, &values);
            if is_half {
                alone.param = Stream::Bf16(half(&values));
            }
            let mut with = alone.clone().averaged(0.01);
            let mut wanted = values.clone();
            for step in 0..4 {
                let grad = normals(n, 20 + step);
                let grad = if weights == Weights::Nearest { Stream::F32(grad) } else { Stream::Bf16(half(&grad)) };
                alone.step(grad.slice(), &Serial, level);
                with.step(grad.slice(), &Rayon { threads: 2 }, level);
                let now = masters(&alone);
                wanted.iter_mut().zip(&now).for_each(|(average, x)| *average = (x - *average).mul_add(0.01, *average));
            }
            let mut all = with.bytes();
            let average = all.pop().unwrap();
            assert_eq!(all, alone.bytes(), "{weights:?} {states:?} {level:?}");
            let wanted: Vec<u32> = wanted.into_iter().map(f32::to_bits).collect();
            assert!(average == wanted, "{weights:?} {states:?} {level:?}");
        }
    }
}

/// Loops that do all in registers serve no averages; what has one is brought into tiles.
#[test]
fn loops_without_tiles_have_the_bits_of_tiles() {
    let n = 8192 + 3 * BLOCK + 77;
    let special = [0.0, -0.0, 1e-40, -3e-39, 1e-30, 1e18, -3e38, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    // in some blocks, not in all
    let with_special = |mut x: Vec<f32>, every: usize| {
        for (i, x) in x.iter_mut().enumerate().filter(|(i, _)| (i / BLOCK).is_multiple_of(3) && i.is_multiple_of(every))
        {
            *x = special[(i / every) % special.len()];
        }
        x
    };
    let (lr, beta1, beta2, eps) = (1e-2, 0.9, 0.999, 1e-8);
    for decoupled_weight_decay in [false, true] {
        let rule = Adam { lr, beta1, beta2, eps, weight_decay: 0.1, amsgrad: false, decoupled_weight_decay };
        for (weights, states) in WEIGHTS.into_iter().flat_map(|weights| STATES.map(|states| (weights, states))) {
            let values = with_special(normals(n, 3), 7);
            for level in levels() {
                let mut without = Parameter::new(AnyRule::Adam(rule), weights, states, &values);
                let mut with = without.clone().averaged(0.5);
                for step in 0..4 {
                    let mut grad = with_special(normals(n, 20 + step), 5);
                    grad[BLOCK..2 * BLOCK].fill(0.0);
                    let grad = if weights == Weights::Nearest { Stream::F32(grad) } else { Stream::Bf16(half(&grad)) };
                    without.step(grad.slice(), &Serial, level);
                    with.step(grad.slice(), &Serial, level);
                }
                let mut all = with.bytes();
                all.pop();
                assert!(all == without.bytes(), "{weights:?} {states:?} {level:?} {decoupled_weight_decay}");
            }
        }
    }
}

/// What parameters stand for, with what is beside them.
fn masters(parameter: &Parameter) -> Vec<f32> {
    let bits = |x: f32| x.to_bits();
    let joined = |p: f32, rest: i32| f32::from_bits(bits(p).wrapping_add(rest as u32));
    match (parameter.compact.weights, parameter.written.last()) {
        (Weights::Kahan, Some(Stream::Bf16(rest))) => {
            parameter.values().iter().zip(rest).map(|(p, rest)| p + rest.to_f32()).collect()
        }
        (Weights::Residual8, Some(Stream::U8(rest))) => {
            parameter.values().iter().zip(rest).map(|(&p, &rest)| joined(p, i32::from(rest as i8) << 8)).collect()
        }
        (Weights::Residual16, Some(Stream::I16(rest))) => {
            parameter.values().iter().zip(rest).map(|(&p, &rest)| joined(p, i32::from(rest))).collect()
        }
        (Weights::Master, Some(Stream::F32(master))) => master.clone(),
        _ => parameter.values(),
    }
}

#[test]
fn steps_that_a_half_type_loses_are_kept_in_each_mode() {
    let n = 4096;
    let grad = Stream::bf16((0..n).map(|_| 1.0));
    let rule = sgd(1e-4, 0.0);
    for weights in WEIGHTS {
        let mut parameter = Parameter::new(rule, weights, States::F32, &vec![1.0; n]);
        if weights == Weights::Nearest {
            parameter.param = Stream::bf16((0..n).map(|_| 1.0));
        }
        for _ in 0..1000 {
            parameter.step(grad.slice(), &Serial, Level::best());
        }
        let mean = parameter.values().iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        match weights {
            Weights::Nearest => assert_eq!(mean, 1.0, "that is what the modes are for"),
            // compensation is rounded, each time the same way here
            Weights::Kahan => assert!((mean - 0.9).abs() < 4e-3, "{weights:?}: {mean}"),
            // an element is off by half a unit, 2^-9, or its random walk
            _ => assert!((mean - 0.9).abs() < 2e-3, "{weights:?}: {mean}"),
        }
    }
}

#[test]
fn rounding_with_fair_odds_is_unbiased_and_goes_to_a_neighbour() {
    let n = 1 << 16;
    for (value, below, above) in [(1.001_953_1_f32, 1.0, 1.007_812_5), (-3.145_5, -3.140_625, -3.156_25)] {
        let mut parameter = Parameter::new(sgd(1.0, 0.0), Weights::Fair, States::F32, &vec![0.0; n]);
        // the gradient in float32 is what the parameter becomes
        let grad = vec![-value; n];
        parameter.step(Slice::F32(&grad), &Serial, Level::best());
        let values = parameter.values();
        assert!(values.iter().all(|&x| x == below || x == above), "{value}: {:?}", &values[..8]);
        let share = values.iter().filter(|&&x| x == above).count() as f64 / n as f64;
        let wanted = f64::from((value - below) / (above - below));
        let deviation = (wanted * (1.0 - wanted) / n as f64).sqrt();
        assert!((share - wanted).abs() < 5.0 * deviation, "{value}: {share} of {wanted}");
    }
}

/// What is read of numbers that were written in codes.
fn coded(kind: StateKind, numbers: &[f32], of: Option<&[f32]>, place: u64) -> Vec<f32> {
    let n = numbers.len();
    let (mut codes, mut headers, mut out) = (vec![0; n], vec![0.0; n.div_ceil(BLOCK)], vec![9.0; n]);
    pack(kind, numbers, of, (&mut codes, &mut headers), Noise::new(3, [place, 0], 1), 1);
    unpack(kind, &codes, &headers, of, &mut out);
    out
}

#[test]
fn codes_hold_zero_any_scale_and_no_more_than_was_there() {
    let n = 1000;
    for scale in [1e-34_f32, 1e-30, 1e-20, 1e-9, 1.0, 1e10, 1e37] {
        let signed: Vec<f32> =
            normals(n, 4).iter().enumerate().map(|(i, x)| if i % 7 == 0 { 0.0 } else { x * scale }).collect();
        let magnitudes: Vec<f32> = signed.iter().map(|x| x.abs()).collect();
        // a quarter of these lie deep, the last ones 24 octaves below the first
        let wide: Vec<f32> = signed.iter().enumerate().map(|(i, x)| x * 2.0_f32.powi(-((i % 25) as i32))).collect();
        let roots: Vec<f32> = normals(n, 5).iter().map(|x| (x.abs() + 0.1) * scale.sqrt()).collect();
        let cases = [
            (StateKind::Magnitude, &magnitudes, None, 0.13),
            (StateKind::Signed, &signed, None, 2.0),
            (StateKind::Signed, &wide, None, 4.0),
            (StateKind::Relative { to: 0, root: false }, &signed, Some(magnitudes.as_slice()), 0.033),
            (StateKind::Relative { to: 0, root: true }, &roots, Some(magnitudes.as_slice()), 0.033),
        ];
        for (kind, numbers, of, error) in cases {
            let largest: Vec<f32> =
                numbers.chunks(BLOCK).map(|block| block.iter().fold(0.0_f32, |most, x| most.max(x.abs()))).collect();
            for ((&x, &y), i) in numbers.iter().zip(&coded(kind, numbers, of, 0)).zip(0..) {
                let divisor = of.map_or(1.0, |of| of[i]);
                if x == 0.0 || divisor == 0.0 {
                    assert_eq!(y, 0.0, "{kind:?} {scale}");
                    continue;
                }
                assert!(y.is_finite() && (y == 0.0 || y.signum() == x.signum()), "{kind:?} {scale}: {x} {y}");
                if kind == StateKind::Signed {
                    // a power of one of 127 codes, of which one is above the number and the next below
                    let codes = |x: f32| 127.0 * (f64::from(x.abs()) / f64::from(largest[i / BLOCK])).powf(1.0 / error);
                    let slack = 0.01 + 127.0 * (1e-44 / f64::from(largest[i / BLOCK])).powf(1.0 / error);
                    assert!((codes(y) - codes(x)).abs() < 1.0 + slack, "{kind:?} {scale}: {x} {y}");
                    continue;
                }
                let small = kind != StateKind::Magnitude && y == 0.0;
                assert!(
                    small || f64::from((y - x).abs()) <= error * f64::from(x.abs()) + 1e-44,
                    "{kind:?} {scale}: {x} {y}"
                );
            }
        }
    }
}

#[test]
fn codes_are_unbiased_where_they_are_drawn() {
    // one value among others that reach over many octaves
    for kind in [StateKind::Magnitude, StateKind::Signed] {
        let mut numbers = vec![0.3_f32; 1 << 16];
        numbers.iter_mut().step_by(64).enumerate().for_each(|(i, x)| *x = if i % 2 == 0 { 1e-3 } else { 900.0 });
        let read = coded(kind, &numbers, None, 0);
        let own: Vec<f64> = numbers.iter().zip(&read).filter(|(x, _)| **x == 0.3).map(|(_, y)| (*y).into()).collect();
        let mean = own.iter().sum::<f64>() / own.len() as f64;
        let deviation = (own.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (own.len() as f64).powi(2)).sqrt();
        assert!(deviation > 0.0 && (mean - f64::from(0.3_f32)).abs() < 5.0 * deviation, "{kind:?}: {mean}");
    }
    // far below the largest it is zero, or the least that there is
    let mut numbers = vec![1e-9_f32; 1 << 16];
    numbers.iter_mut().step_by(BLOCK).for_each(|x| *x = 1.0);
    let read = coded(StateKind::Signed, &numbers, None, 1);
    let small: Vec<f64> = read.iter().filter(|x| **x < 0.5).map(|x| f64::from(*x)).collect();
    let mean = small.iter().sum::<f64>() / small.len() as f64;
    assert!(small.contains(&0.0) && (mean / 1e-9 - 1.0).abs() < 0.1, "{mean}");
}

/// All of a block hangs on its largest number, which is now and then rounded down to another one than the last.
#[test]
fn what_was_read_has_the_same_codes_again() {
    let largest = |block: &[f32]| block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    for spread in [0.0, 3.0, 8.0] {
        for scale in [1e-44_f32, 1e-42, 1e-40, 1e-38, 1e-36, 1e-34, 1e-20, 1e-3, 0.7, 1e30, 3e38] {
            let numbers: Vec<f32> =
                normals(1 << 14, 8).iter().map(|x| scale * (x / 8.0) * (x.abs() / 8.0).powf(spread)).collect();
            let read = coded(StateKind::Signed, &numbers, None, 0);
            for place in 1..4 {
                let again = coded(StateKind::Signed, &read, None, place);
                let mut others = 0;
                for (again, read) in again.chunks(BLOCK).zip(read.chunks(BLOCK)) {
                    if largest(again) == largest(read) {
                        assert_eq!(again, read, "{spread} {scale}");
                    } else {
                        others += 1;
                    }
                }
                assert!(others <= 4, "{spread} {scale}: {others} of 64 blocks");
            }
        }
    }
}

#[test]
fn signed_codes_reach_to_the_ends_of_float32() {
    // a block of one size, and one that is wide; and what is read of the largest number is written as it was
    for (deep, slack) in [(1.0, 1e-6), (1e-3, 2e-6)] {
        let mut numbers: Vec<f32> = normals(BLOCK, 9).iter().map(|x| (x / 8.0) * deep * f32::MAX).collect();
        (numbers[3], numbers[200]) = (f32::MAX, f32::MIN);
        let read = coded(StateKind::Signed, &numbers, None, 0);
        for i in [3, 200] {
            assert!((read[i] / numbers[i] - 1.0).abs() < slack, "{} {}", read[i], numbers[i]);
        }
        assert_eq!(coded(StateKind::Signed, &read, None, 1), read);
    }
    // what is smaller than any code comes as often as makes it right in the mean
    for x in [1e-45_f32, 1e-44, -2e-44] {
        let numbers = vec![x; 1 << 16];
        let read = coded(StateKind::Signed, &numbers, None, 0);
        let mean = read.iter().map(|&x| f64::from(x)).sum::<f64>() / read.len() as f64;
        assert!((mean / f64::from(x) - 1.0).abs() < 0.1, "{x}: {mean}");
    }
}

/// A mean of gradients remembers what rounding added to it. So a number is rounded up as often as it should be among a
/// few steps, up to one or two; of independent draws some element would be off by ten.
#[test]
fn signed_codes_are_rounded_evenly_over_steps() {
    let (n, steps) = (1 << 13, 34);
    for sign in [1.0, -1.0] {
        let mut numbers = vec![0.3_f32 * sign; n];
        numbers.iter_mut().step_by(BLOCK).for_each(|x| *x = 1.0);
        let (mut codes, mut headers, mut out) = (vec![0; n], vec![0.0; n.div_ceil(BLOCK)], vec![0.0; n]);
        let mut sums = vec![0.0_f64; n];
        let (mut least, mut most) = (f64::MAX, f64::MIN);
        for step in 1..=steps {
            let noise = Noise::new(5, [0, 0], step);
            pack(StateKind::Signed, &numbers, None, (&mut codes, &mut headers), noise, 1);
            unpack(StateKind::Signed, &codes, &headers, None, &mut out);
            for (i, (sum, &x)) in sums.iter_mut().zip(&out).enumerate().filter(|(i, _)| i % BLOCK != 0) {
                assert!((x - numbers[i]).abs() < 0.01);
                *sum += f64::from(x);
                (least, most) = (least.min(x.into()), most.max(x.into()));
            }
        }
        assert!(most > least, "it lies between two");
        let wanted = steps as f64 * f64::from(0.3 * sign);
        for (_, sum) in sums.iter().enumerate().filter(|(i, _)| i % BLOCK != 0) {
            assert!((sum - wanted).abs() <= 2.0 * (most - least), "{sum} for {wanted}");
        }
    }
}

#[test]
fn what_is_not_finite_spoils_nothing_else() {
    let n = 2 * BLOCK;
    for rule in [adam(1e-2), sgd(1e-2, 0.9)] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let grad = normals(n, 6);
            let mut wrong = grad.clone();
            wrong[5] = bad;
            let mut parameters = [&grad, &wrong].map(|grad| {
                let mut parameter = Parameter::new(rule, Weights::Nearest, States::Codes, &vec![1.0; n]);
                parameter.step(Slice::F32(grad), &Serial, Level::best());
                parameter
            });
            for parameter in &mut parameters {
                for _ in 0..3 {
                    parameter.step(Slice::F32(&grad), &Serial, Level::best());
                }
            }
            let [good, spoilt] = parameters.map(|parameter| parameter.values());
            assert!(!spoilt[5].is_finite());
            for (i, (a, b)) in good.iter().zip(&spoilt).enumerate().filter(|(i, _)| *i != 5) {
                assert!((a - b).abs() < 2e-2 * (a - 1.0).abs() + 1e-3, "{i}: {a} {b}");
            }
        }
    }
}

/// The updates of Adam in float64, and how far those of a setting are from them, relative to their size: root mean
/// squares over the last steps. Also how much larger its largest update is.
fn against_float64(states: States, steps: usize, grad: impl Fn(usize, usize, &mut Random) -> f32) -> (f64, f64) {
    let n = 2048;
    let lr = 1e-3;
    let mut parameter = Parameter::new(adam(lr), Weights::Nearest, states, &vec![0.0; n]);
    let (mut m, mut v) = (vec![0.0_f64; n], vec![0.0_f64; n]);
    let (mut wrong, mut right) = (0.0, 0.0);
    let (mut most, mut most_right) = (0.0_f64, 0.0_f64);
    let mut rng = Random(11);
    for t in 1..=steps {
        let grads: Vec<f32> = (0..n).map(|i| grad(t, i, &mut rng)).collect();
        let before = parameter.values();
        parameter.step(Slice::F32(&grads), &Serial, Level::best());
        let after = parameter.values();
        let t = t as i32;
        for i in 0..n {
            let g = f64::from(grads[i]);
            m[i] += 0.1 * (g - m[i]);
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let update = lr * m[i] / (1.0 - 0.9_f64.powi(t)) / ((v[i] / (1.0 - 0.999_f64.powi(t))).sqrt() + 1e-8);
            let own = f64::from(before[i]) - f64::from(after[i]);
            assert!(own.is_finite());
            (most, most_right) = (most.max(own.abs()), most_right.max(update.abs()));
            if t as usize + 100 > steps {
                wrong += (own - update).powi(2);
                right += update * update;
            }
        }
    }
    ((wrong / right).sqrt(), most / most_right)
}

#[test]
fn updates_are_near_those_of_float64() {
    // (which gradients, the largest error with 8-bit states, with bfloat16 ones); measured: about two thirds of these
    type Case<'c> = (&'c str, f64, f64, Box<dyn Fn(usize, usize, &mut Random) -> f32>);
    let cases: [Case<'_>; 7] = [
        ("normal", 0.05, 0.02, Box::new(|_, _, rng| normal(rng))),
        (
            "heavy tails",
            0.12,
            0.03,
            Box::new(|_, _, rng| normal(rng) / (rng.between(0.0, 1.0) as f32).sqrt().max(1e-3)),
        ),
        (
            "one outlier in a block",
            0.25,
            0.02,
            Box::new(|_, i, rng| normal(rng) * if i % 256 == 7 { 1e5 } else { 1.0 }),
        ),
        ("scale 1e-20", 0.05, 0.02, Box::new(|_, _, rng| normal(rng) * 1e-20)),
        ("scale 1e10", 0.05, 0.02, Box::new(|_, _, rng| normal(rng) * 1e10)),
        (
            "half of them decay",
            0.1,
            0.03,
            Box::new(|t, i, rng| normal(rng) * if i % 2 == 0 { (-(t as f32) / 200.0).exp() } else { 1.0 }),
        ),
        ("few are not zero", 0.1, 0.05, Box::new(|_, _, rng| if rng.below(50) == 0 { normal(rng) } else { 0.0 })),
    ];
    let steps = if brief() { 400 } else { 1500 };
    for (name, of_codes, of_bf16, grad) in &cases {
        let (error, most) = against_float64(States::F32, steps, grad);
        assert!(*name == "scale 1e-20" || error < 1e-3 && most < 1.01, "{name}: {error} {most}");
        for (states, largest) in [(States::Codes, *of_codes), (States::Bf16, *of_bf16)] {
            let (error, most) = against_float64(states, steps, grad);
            println!("{name} {states:?}: {error:.4}, largest update {most:.2} of float64's");
            assert!(error < largest, "{name} {states:?}: {error}");
            assert!(most < 2.0, "{name} {states:?}: {most}");
        }
    }
}

#[test]
fn second_moments_do_not_stick() {
    // gradients that vanish: a mean of squares has to fall by a thousandth in a step
    let n = 1024;
    let rule = adam(1e-3);
    for states in [States::Codes, States::Bf16] {
        let mut parameter = Parameter::new(rule, Weights::Nearest, states, &vec![0.0; n]);
        for t in 0..1500 {
            let grad: Vec<f32> = normals(n, 1000 + t).iter().map(|x| if t < 500 { *x } else { 0.0 }).collect();
            let before = parameter.values();
            parameter.step(Slice::F32(&grad), &Serial, Level::best());
            let moved = parameter.values().iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(moved < 8e-3, "{states:?} at {t}: {moved}");
        }
        let v = match (&parameter.written[..], states) {
            ([Stream::U8(_), Stream::U8(codes), _, Stream::F32(headers)], States::Codes) => {
                let mut out = vec![0.0; n];
                unpack(StateKind::Magnitude, codes, headers, None, &mut out);
                out
            }
            (written, _) => (0..n).map(|i| written[1].number(i)).collect(),
        };
        let mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let wanted = (1.0 - 0.999_f64.powi(500)) * 0.999_f64.powi(1000);
        assert!((mean / wanted - 1.0).abs() < 0.1, "{states:?}: {mean} for {wanted}");
    }
    let rule = AnyRule::Adagrad(Adagrad { lr: 1e-2, lr_decay: 0.0, weight_decay: 0.0, eps: 1e-10 });
    let mut parameter = Parameter::new(rule, Weights::Nearest, States::Codes, &vec![0.0; n]);
    for t in 0..2000 {
        parameter.step(Slice::F32(&normals(n, 5000 + t)), &Serial, Level::best());
    }
    let [Stream::U8(codes), Stream::F32(headers)] = &parameter.written[..] else { panic!() };
    let mut sums = vec![0.0; n];
    unpack(StateKind::Magnitude, codes, headers, None, &mut sums);
    let mean = sums.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
    assert!((mean / 2000.0 - 1.0).abs() < 0.05, "{mean}");
}

#[test]
fn a_master_follows_a_parameter_that_was_changed() {
    let mut parameter = Parameter::new(sgd(1e-4, 0.0), Weights::Master, States::F32, &[1.0, 2.0]);
    let grad = [bf16::from_f32(1.0); 2];
    parameter.step(Slice::Bf16(&grad), &Serial, Level::best());
    let Stream::Bf16(p) = &mut parameter.param else { panic!() };
    p[1] = bf16::from_f32(7.0);
    parameter.step(Slice::Bf16(&grad), &Serial, Level::best());
    assert_eq!(parameter.written[0], Stream::F32(vec![1.0 - 1e-4 - 1e-4, 7.0 - 1e-4]));
}

#[test]
fn what_does_not_belong_together_is_refused_and_nothing_added() {
    let codes = |kind| Kept::Codes(kind);
    let relative = StateKind::Relative { to: 1, root: true };
    let right = Compact {
        weights: Weights::Residual16,
        states: vec![codes(relative), codes(StateKind::Magnitude)],
        ..Compact::default()
    };
    let n = 300;
    let streams = || {
        let header = || Stream::F32(vec![0.0; 2]);
        let codes = || Stream::U8(vec![0; n]);
        [codes(), codes(), header(), header(), Stream::I16(vec![0; n])]
    };
    let pushed = |compact: &Compact, param: &mut Stream, states: &mut [Stream], grad: &Stream| {
        let mut step = Step::default();
        step.constants(adam(1e-3).constants(&mut Scalars::new([0.0; 3], [Precision::F32; 3]), true));
        let states = states.iter_mut().map(Stream::slice_mut);
        let tensors = Tensors { param: param.slice_mut(), grad: grad.slice(), states, layout: None };
        let pushed = step.push_compact(tensors, compact, 1.0);
        assert_eq!(step.elements(), if pushed.is_ok() { n } else { 0 });
        step.run(&Serial, Level::best()).unwrap();
        pushed
    };
    let grad = Stream::bf16((0..n).map(|_| 1.0));
    let param = || Stream::bf16((0..n).map(|_| 1.0));
    assert_eq!(pushed(&right, &mut param(), &mut streams(), &grad), Ok(()));
    let with = |change: &dyn Fn(&mut Compact)| {
        let mut compact = right.clone();
        change(&mut compact);
        compact
    };
    let wrong = [
        (with(&|c| c.states.truncate(1)), Refused::States),
        (with(&|c| c.states[0] = codes(StateKind::Exact)), Refused::Types),
        (with(&|c| c.states[0] = codes(StateKind::Relative { to: 7, root: true })), Refused::Types),
        (with(&|c| c.states[1] = codes(StateKind::Relative { to: 0, root: true })), Refused::Types),
        (with(&|c| c.states[1] = codes(StateKind::Signed)), Refused::Types),
        (with(&|c| c.states[1] = Kept::Fair), Refused::States),
        (with(&|c| c.weights = Weights::Residual8), Refused::Types),
        (with(&|c| c.weights = Weights::Fair), Refused::States),
    ];
    for (compact, refused) in wrong {
        assert_eq!(pushed(&compact, &mut param(), &mut streams(), &grad), Err(refused), "{compact:?}");
    }
    let mut short = streams();
    short[2] = Stream::F32(vec![0.0; 1]);
    assert_eq!(pushed(&right, &mut param(), &mut short, &grad), Err(Refused::Lengths));
    let mut short = streams();
    short[4] = Stream::I16(vec![0; n - 1]);
    assert_eq!(pushed(&right, &mut param(), &mut short, &grad), Err(Refused::Lengths));
    assert_eq!(pushed(&right, &mut Stream::F32(vec![0.0; n]), &mut streams(), &grad), Err(Refused::Types));
    assert_eq!(pushed(&right, &mut param(), &mut streams(), &Stream::U8(vec![0; n])), Err(Refused::Types));
    // a layout of all streams, one with gaps in the parameter, or backwards, or elements twice, and one that reaches
    // beyond the gradient
    let wrong = [
        Layout::new(&[n], &[1; 5], &[0; 5]),
        Layout::new(&[n], &[2, 1], &[0; 2]),
        Layout::new(&[n], &[-1, 1], &[n - 1, 0]),
        Layout::new(&[2, 2, 2], &[1, 4, 1, 2, 5, 1], &[0; 2]),
        Layout::new(&[n], &[1, 2], &[0; 2]),
    ];
    for layout in wrong {
        let (mut param, mut streams) = (param(), streams());
        let mut step = Step::default();
        step.constants(adam(1e-3).constants(&mut Scalars::new([0.0; 3], [Precision::F32; 3]), true));
        let states = streams.iter_mut().map(Stream::slice_mut);
        let tensors = Tensors { param: param.slice_mut(), grad: grad.slice(), states, layout: Some(&layout) };
        assert_eq!(step.push_compact(tensors, &right, 1.0), Err(Refused::Lengths), "{layout:?}");
    }
}
