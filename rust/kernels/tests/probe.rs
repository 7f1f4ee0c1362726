//! The probe touches every element of every stream, for any number of threads, and undoes itself.

use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::probe::{Arrays, run};
use oxistep_kernels::simd::Level;

const N: usize = 3 * 64 * 1024 + 77;

fn check(pool: &dyn Pool, level: Level, states: usize) {
    let numbers = |from: usize| (from..from + N).map(|i| i as f32).collect::<Vec<f32>>();
    let (mut param, grad) = (numbers(1), numbers(3));
    let mut kept: Vec<Vec<f32>> = (0..states).map(|k| numbers(10 + k)).collect();
    let mut step = || {
        let mut slices: [&mut [f32]; 3] = Default::default();
        slices.iter_mut().zip(&mut kept).for_each(|(slice, state)| *slice = state);
        run(pool, level, Arrays { param: &mut param, grad: &grad, states: slices }).unwrap().unwrap();
        (param.clone(), kept.clone())
    };
    let (param, states) = step();
    assert!(param.iter().all(|&theta| theta == 2.0));
    for (k, state) in states.iter().enumerate() {
        assert!(state.iter().enumerate().all(|(i, &s)| s == -((10 + k + i) as f32)));
    }
    let (param, states) = step();
    assert_eq!(param, numbers(1));
    assert!(states.iter().enumerate().all(|(k, state)| *state == numbers(10 + k)));
}

#[test]
fn every_element_of_every_stream() {
    for level in Level::ALL.into_iter().filter(|level| level.available()) {
        for states in 0..=3 {
            check(&Serial, level, states);
            check(&Rayon { threads: 3 }, level, states);
        }
    }
}

#[test]
fn arrays_that_do_not_fit_are_refused_untouched() {
    let (mut param, mut a, mut b) = ([1.0; 4], [1.0; 4], [1.0; 3]);
    let mut refused = |grad: &[f32], states: [&mut [f32]; 3]| {
        let refused = run(&Serial, Level::Baseline, Arrays { param: &mut param, grad, states }).is_none();
        assert_eq!(param, [1.0; 4]);
        refused
    };
    assert!(refused(&[0.0; 3], [&mut [], &mut [], &mut []]));
    assert!(refused(&[0.0; 4], [&mut a, &mut b, &mut []]));
    assert!(refused(&[0.0; 4], [&mut [], &mut a, &mut []]));
    assert!(!refused(&[1.0 + 1.0; 4], [&mut [], &mut [], &mut []]));
}
