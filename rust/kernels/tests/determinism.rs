//! The same bits for any number of threads, any order of the work and any SIMD level.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::{
    COMBINATIONS, Parameter, Random, TYPES, Types, Values, cases, every_combination, every_rule, levels,
    rules_and_types, update,
};
use oxistep_kernels::AnyRule;
use oxistep_kernels::change::zero;
use oxistep_kernels::driver::SERIAL;
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::rules::sgd::Sgd;
use oxistep_kernels::simd::Level;
use proptest::prelude::*;

/// Starts the tasks in reverse order, each on a thread of its own.
struct Reversed(usize);

impl Pool for Reversed {
    fn threads(&self) -> usize {
        self.0
    }
    fn fork_join(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        thread::scope(|scope| (0..n).rev().for_each(|i| drop(scope.spawn(move || task(i)))));
    }
}

/// Claims many threads and has one, so that the first task does all the others' work.
struct Lonely(usize);

impl Pool for Lonely {
    fn threads(&self) -> usize {
        self.0
    }
    fn fork_join(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(task);
    }
}

const POOLS: [&dyn Pool; 6] =
    [&Serial, &Rayon { threads: 2 }, &Rayon { threads: 3 }, &Rayon { threads: 1000 }, &Reversed(3), &Lonely(4)];

/// Two steps; the bits of parameters and states.
fn outcome(parameters: &[Parameter], pool: &dyn Pool, level: Level) -> Vec<Vec<Vec<u64>>> {
    let mut parameters = parameters.to_vec();
    update(&mut parameters, pool, level);
    update(&mut parameters, pool, level);
    parameters.iter().map(Parameter::bits).collect()
}

/// Parameters of these lengths, every second one with states of some age.
fn parameters(rules: &[AnyRule], types: Types, lengths: &[usize], values: Values, seed: u64) -> Vec<Parameter> {
    let mut rng = Random(seed);
    let parameter = |(i, &len): (usize, &usize)| {
        let parameter = Parameter::new(rules[i % rules.len()], types, len, values, &mut rng);
        if i % 2 == 0 { parameter } else { parameter.aged(10, values, &mut rng) }
    };
    lengths.iter().enumerate().map(parameter).collect()
}

/// The first place where two outcomes differ, if they do. (The outcomes themselves are too long to print.)
fn difference(a: &[Vec<Vec<u64>>], b: &[Vec<Vec<u64>>]) -> Option<String> {
    for (tensor, (a, b)) in a.iter().zip(b).enumerate() {
        for (stream, (a, b)) in a.iter().zip(b).enumerate() {
            if let Some(i) = (0..a.len()).find(|&i| a[i] != b[i]) {
                return Some(format!("tensor {tensor}, stream {stream}, element {i}: {:#x}, {:#x}", a[i], b[i]));
            }
        }
    }
    None
}

/// Every variant of every rule in every combination of types, at every level, on values of any bits.
#[test]
fn every_level_gives_the_same_bits() {
    let lengths = [257, 1, 63, 130];
    for rule in every_rule() {
        for types in every_combination() {
            for values in [Values::Scaled, Values::Wide, Values::Any] {
                let parameters = parameters(&[rule], types, &lengths, values, 1);
                let expected = outcome(&parameters, &Serial, Level::Baseline);
                for level in levels() {
                    let found = difference(&expected, &outcome(&parameters, &Serial, level));
                    assert_eq!(found, None, "{rule:?} {types:?} {values:?} {level:?}");
                }
            }
        }
    }
}

/// What is left of a tensor beyond whole blocks is updated another way than these.
#[test]
fn tails_of_every_length_have_the_same_bits() {
    let lengths: Vec<usize> = (0..=130).collect();
    for rule in every_rule() {
        for types in every_combination() {
            let parameters = parameters(&[rule], types, &lengths, Values::Wide, 2);
            let expected = outcome(&parameters, &Serial, Level::Baseline);
            for level in levels() {
                let found = difference(&expected, &outcome(&parameters, &Serial, level));
                assert_eq!(found, None, "{rule:?} {types:?} {level:?}");
            }
        }
    }
}

/// Every variant of every rule in every combination of types (in a short run in two of them), on every pool, on tensors
/// long enough to be cut.
#[test]
fn every_pool_gives_the_same_bits() {
    let lengths = [300, SERIAL + 1, 64, 70_001];
    for (seed, (rule, types)) in rules_and_types().enumerate() {
        let parameters = parameters(&[rule], types, &lengths, Values::Any, 1 + seed as u64);
        let expected = outcome(&parameters, &Serial, Level::best());
        for pool in POOLS {
            let found = difference(&expected, &outcome(&parameters, pool, Level::best()));
            assert_eq!(found, None, "{rule:?} {types:?} {} threads", pool.threads());
        }
    }
}

/// Every variant of every rule in every combination of types (in a short run in two of them): a step that is too large
/// for the caches has longer chunks, asks for memory further ahead, and may write past the caches.
#[test]
fn a_large_step_gives_the_same_bits() {
    let sgd = AnyRule::Sgd(Sgd { lr: 0.1, momentum: 0.0, dampening: 0.0, weight_decay: 0.0, nesterov: false });
    let large = Parameter::new(sgd, COMBINATIONS[1], 1024 * 1024, Values::Scaled, &mut Random(3));
    let mut beside = vec![large];
    for (rule, types) in rules_and_types() {
        let own = parameters(&[rule], types, &[70_001, 70_001], Values::Any, 4);
        let expected = outcome(&own, &Serial, Level::Baseline);
        for level in levels() {
            beside.splice(1.., own.iter().cloned());
            update(&mut beside, &Rayon { threads: 2 }, level);
            update(&mut beside, &Rayon { threads: 2 }, level);
            let bits: Vec<_> = beside[1..].iter().map(Parameter::bits).collect();
            assert_eq!(difference(&expected, &bits), None, "{rule:?} {types:?} {level:?}");
        }
    }
}

proptest! {
    #![proptest_config(cases(24))]

    /// Different rules in one step, random lengths, every level on every pool.
    #[test]
    fn every_level_on_every_pool_gives_the_same_bits(
        rules in prop::collection::vec(prop::sample::select(every_rule()), 1..5),
        types in prop::sample::select(every_combination()),
        short in prop::collection::vec(0..500usize, 0..20),
        long in prop::collection::vec(40_000..110_000usize, 0..3),
        values in prop::sample::select(&[Values::Scaled, Values::Wide, Values::Any]),
        seed: u64,
    ) {
        let lengths: Vec<usize> = short.into_iter().chain(long).chain([SERIAL]).collect();
        let parameters = parameters(&rules, types, &lengths, values, seed);
        let expected = outcome(&parameters, &Serial, Level::Baseline);
        for level in levels() {
            for pool in POOLS {
                let found = difference(&expected, &outcome(&parameters, pool, level));
                prop_assert_eq!(found, None, "{:?}, {} threads", level, pool.threads());
            }
        }
    }
}

/// Counts fork-joins and the threads asked for.
struct Counting {
    threads: usize,
    calls: AtomicUsize,
    tasks: AtomicUsize,
}

impl Pool for Counting {
    fn threads(&self) -> usize {
        self.threads
    }
    fn fork_join(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.tasks.fetch_add(n, Ordering::Relaxed);
        Rayon { threads: n }.fork_join(n, task);
    }
}

/// The comparisons above are worth something only if threads take part: one fork-join for a long step, none for a short
/// one or for a single thread.
#[test]
fn a_long_step_is_one_fork_join_and_a_short_one_none() {
    for (lengths, threads, expected) in [
        (vec![SERIAL - 1], 3, (0, 0)),
        (vec![1; SERIAL - 1], 3, (0, 0)),
        (vec![1; SERIAL], 3, (1, 3)),
        (vec![SERIAL + 300_000], 3, (1, 3)),
        (vec![SERIAL + 300_000], 1, (0, 0)),
    ] {
        let mut parameters = parameters(&every_rule()[..1], COMBINATIONS[1], &lengths, Values::Scaled, 1);
        let pool = Counting { threads, calls: AtomicUsize::new(0), tasks: AtomicUsize::new(0) };
        update(&mut parameters, &pool, Level::best());
        let counted = (pool.calls.into_inner(), pool.tasks.into_inner());
        assert_eq!(counted, expected, "{} tensors, {threads} threads", lengths.len());
    }
}

/// Memory is zeroed to its last element on every pool.
#[test]
fn zeros_are_zeros_on_every_pool() {
    for len in [0, 1, 65_536, 98_304, 98_305, 200_000] {
        for ty in TYPES {
            for pool in POOLS {
                let mut buffer = Values::Any.buffer(ty, len, &mut Random(4));
                assert!(zero(pool, buffer.slice_mut()).is_ok());
                assert!(buffer.bits().iter().all(|&bits| bits == 0), "{len} {ty:?} {} threads", pool.threads());
            }
        }
    }
}
