//! Statistics of many tensors: against plain float64 loops, the same bits everywhere, NaN and infinity, hard variances.

use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::simd::Level;
use oxistep_kernels::statistics::{Statistics, Summary};
use oxistep_kernels::{Layout, Slice, bf16, f16};
use proptest::prelude::*;

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x as f32 / u32::MAX as f32 - 0.4) * 4.0
    };
    (0..n).map(|_| next()).collect()
}

fn summaries(tensors: &[Slice<'_>], pool: &dyn Pool, level: Level) -> Vec<Summary> {
    let mut statistics = Statistics::default();
    tensors.iter().for_each(|&tensor| statistics.push(tensor, None));
    statistics.compute(pool, level).unwrap();
    statistics.summaries().collect()
}

fn summary(tensor: Slice<'_>) -> Summary {
    summaries(&[tensor], &Serial, Level::best())[0]
}

/// Compensated, so that the reference is the better of the two.
fn sum(terms: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0_f64, 0.0);
    for term in terms {
        let new = sum + term;
        lost += if sum.abs() > term.abs() { (sum - new) + term } else { (term - new) + sum };
        sum = new;
    }
    sum + lost
}

/// The plain way, in two passes.
fn plainly(x: &[f64]) -> Summary {
    let finite: Vec<f64> = x.iter().copied().filter(|x| x.is_finite()).collect();
    let n = finite.len() as f64;
    let mean = if finite.is_empty() { 0.0 } else { sum(finite.iter().copied()) / n };
    let count = |what: &dyn Fn(&f64) -> bool| x.iter().filter(|x| what(x)).count() as u64;
    Summary {
        finite: finite.len() as u64,
        mean,
        squares: sum(finite.iter().map(|x| (x - mean) * (x - mean))),
        smallest: finite.iter().map(|x| x.abs()).filter(|&x| x > 0.0).fold(f64::INFINITY, f64::min),
        largest: finite.iter().map(|x| x.abs()).fold(0.0, f64::max),
        zeros: count(&|x| *x == 0.0),
        nans: count(&|x| x.is_nan()),
        infinities: count(&|x| x.is_infinite()),
    }
}

/// Whether the sums agree as well as float64 sums of these numbers can, and all else exactly.
fn check(got: &Summary, x: &[f64]) {
    let expected = plainly(x);
    let magnitude = sum(x.iter().filter(|x| x.is_finite()).map(|x| x.abs())) / (expected.finite as f64).max(1.0);
    assert!((got.mean - expected.mean).abs() <= 1e-14 * magnitude, "{} elements: {got:?} {expected:?}", x.len());
    assert!((got.squares - expected.squares).abs() <= 1e-13 * expected.squares, "{got:?} {expected:?}");
    assert_eq!(Summary { mean: 0.0, squares: 0.0, ..*got }, Summary { mean: 0.0, squares: 0.0, ..expected });
    let norm = sum(x.iter().filter(|x| x.is_finite()).map(|x| x * x)).sqrt();
    assert!((got.norm() - norm).abs() <= 1e-13 * norm, "{} {norm}", got.norm());
}

#[test]
fn equals_float64_for_every_type_and_length() {
    for n in [0, 1, 2, 63, 64, 65, 127, 2047, 2048, 2049, 5000, 65_536, 98_304, 98_305, 200_001] {
        let mut x = numbers(n, 3);
        x.iter_mut().step_by(7).for_each(|x| *x = 0.0);
        x.iter_mut().skip(3).step_by(14).for_each(|x| *x = -0.0);
        let doubles: Vec<f64> = x.iter().map(|&x| f64::from(x) * 1.000_000_1).collect();
        let halves: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
        let brains: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        check(&summary(Slice::F32(&x)), &wide);
        check(&summary(Slice::F64(&doubles)), &doubles);
        check(&summary(Slice::F16(&halves)), &halves.iter().map(|x| x.to_f64()).collect::<Vec<_>>());
        check(&summary(Slice::Bf16(&brains)), &brains.iter().map(|x| x.to_f64()).collect::<Vec<_>>());
    }
}

#[test]
fn the_same_bits_for_any_threads_and_levels() {
    let (a, b, c) = (numbers(200_001, 1), numbers(77, 2), numbers(150_000, 3));
    let mut doubles: Vec<f64> = numbers(100_003, 4).into_iter().map(|x| f64::from(x) / 3.0).collect();
    (doubles[5], doubles[70_000], doubles[70_001]) = (f64::NAN, f64::INFINITY, f64::NEG_INFINITY);
    let halves: Vec<bf16> = numbers(40_000, 5).into_iter().map(bf16::from_f32).collect();
    let small: Vec<f16> = numbers(9_000, 6).into_iter().map(f16::from_f32).collect();
    let tensors = [
        Slice::F32(&a),
        Slice::F32(&b),
        Slice::F64(&doubles),
        Slice::F32(&c),
        Slice::Bf16(&halves),
        Slice::F32(&[]),
        Slice::F16(&small),
    ];
    let bits = |all: &[Summary]| all.iter().map(|s| (s.mean.to_bits(), s.squares.to_bits())).collect::<Vec<_>>();
    let expected = summaries(&tensors, &Serial, Level::Baseline);
    for level in Level::ALL.into_iter().filter(|level| level.available()) {
        for threads in 1..5 {
            let found = summaries(&tensors, &Rayon { threads }, level);
            assert_eq!(found, expected, "{level:?} {threads}");
            assert_eq!(bits(&found), bits(&expected), "{level:?} {threads}");
        }
    }
}

/// Where the textbook's mean of squares less the square of the mean has no digit left.
#[test]
fn the_variance_of_large_numbers_that_hardly_differ_is_right() {
    let x: Vec<f64> = (0..300_000).map(|i| 1e9 + f64::from(i % 3)).collect();
    let found = summary(Slice::F64(&x));
    // means carry an error of 1e-7 here; it enters squared, or times a distance between tiles of 1e-3
    assert!((found.variance() - 2.0 / 3.0).abs() < 1e-10, "{}", found.variance());
    assert!((found.mean - (1e9 + 1.0)).abs() < 1e-6);
    let naive =
        x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 - (x.iter().sum::<f64>() / x.len() as f64).powi(2);
    assert!((naive - 2.0 / 3.0).abs() > 1.0, "the test is worth something only if the naive formula fails: {naive}");
    let ramp: Vec<f64> = (0..200_000).map(f64::from).collect();
    check(&summary(Slice::F64(&ramp)), &ramp);
}

#[test]
fn constant_tensors_have_no_variance() {
    for value in [0.0_f32, 1.0, -0.1, 3e38, 1e-44] {
        let x = vec![value; 150_000];
        let found = summary(Slice::F32(&x));
        assert_eq!(found.mean, f64::from(value));
        assert!(found.squares <= 1e-20 * f64::from(value).powi(2) * 150_000.0, "{found:?}");
        assert_eq!(found.zeros, if value == 0.0 { 150_000 } else { 0 });
        assert_eq!(found.largest, f64::from(value.abs()));
    }
}

#[test]
fn what_is_not_finite_is_counted_and_left_out() {
    for at in [0, 1, 63, 64, 2047, 2048, 70_000, 99_999] {
        let mut x: Vec<f64> = numbers(100_000, 9).into_iter().map(f64::from).collect();
        x[at] = f64::NEG_INFINITY;
        x[(at + 1) % 100_000] = f64::INFINITY;
        x[99_998 - at / 2] = f64::NAN;
        check(&summary(Slice::F64(&x)), &x);
        let single: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        check(&summary(Slice::F32(&single)), &x);
        let half: Vec<f16> = single.iter().map(|&x| f16::from_f32(x)).collect();
        check(&summary(Slice::F16(&half)), &half.iter().map(|x| x.to_f64()).collect::<Vec<_>>());
    }
    for nothing in [vec![f32::NAN; 3000], vec![-f32::NAN], vec![f32::INFINITY; 70], vec![]] {
        let found = summary(Slice::F32(&nothing));
        assert_eq!((found.finite, found.norm(), found.largest), (0, 0.0, 0.0));
        assert!(found.variance().is_nan());
        assert_eq!((found.nans + found.infinities) as usize, nothing.len());
    }
}

#[test]
fn beyond_float64_is_infinite_and_never_nan() {
    let mut x = vec![f64::MAX; 5000];
    x.iter_mut().step_by(3).for_each(|x| *x = -*x);
    for n in [2, 5000] {
        let found = summary(Slice::F64(&x[..n]));
        assert_eq!((found.squares, found.norm(), found.largest), (f64::INFINITY, f64::INFINITY, f64::MAX));
        assert!(!found.mean.is_nan());
    }
    let tiny = [f32::from_bits(1), 0.0, -f32::from_bits(3)];
    let found = summary(Slice::F32(&tiny));
    assert!(found.norm() > 0.0 && found.variance() > 0.0);
    assert_eq!(found.smallest, f64::from(f32::from_bits(1)));
}

#[test]
fn strided_tensors_have_the_statistics_of_their_elements() {
    let (mut strides, sizes) = (vec![0; 3], [30, 50, 70]);
    let mut stride = 2;
    for (to, &size) in strides.iter_mut().zip(&sizes).rev() {
        *to = stride;
        stride *= size as isize + 1;
    }
    let layout = Layout::new(&sizes, &strides, &[0]);
    let x = numbers(layout.extent(0).unwrap(), 8);
    let mut inside = Vec::new();
    for i in 0..30 {
        for j in 0..50 {
            (0..70).for_each(|k| inside.push(f64::from(x[2 * k + 2 * 71 * j + 2 * 71 * 51 * i])));
        }
    }
    let mut statistics = Statistics::default();
    statistics.push(Slice::F32(&x), Some(&layout));
    statistics.compute(&Serial, Level::best()).unwrap();
    let strided = statistics.summaries().next().unwrap();
    check(&strided, &inside);
    assert_eq!(strided, summary(Slice::F64(&inside)));
}

#[test]
fn statistics_can_be_used_again() {
    let x = numbers(1000, 2);
    let mut statistics = Statistics::default();
    statistics.push(Slice::F32(&x), None);
    statistics.compute(&Serial, Level::best()).unwrap();
    let first: Vec<_> = statistics.summaries().collect();
    let mut statistics = statistics.recycle();
    assert_eq!((statistics.elements(), statistics.summaries().count()), (0, 0));
    statistics.push(Slice::F32(&x), None);
    statistics.compute(&Serial, Level::best()).unwrap();
    assert_eq!(statistics.summaries().collect::<Vec<_>>(), first);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Numbers of all sizes, some not finite, at every level.
    #[test]
    fn any_numbers(bits in prop::collection::vec(any::<u32>(), 0..5000)) {
        let x: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for level in Level::ALL.into_iter().filter(|level| level.available()) {
            check(&summaries(&[Slice::F32(&x)], &Serial, level)[0], &wide);
        }
    }
}
