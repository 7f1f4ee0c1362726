//! The same bits for any number of threads also where the caller flushes denormals (`torch.set_flush_denormal` changes
//! the calling thread alone).
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)] // the control register

mod common;

use std::arch::asm;
use std::thread;

use common::{COMBINATIONS, Parameter, Random, Type, Values, every_rule, levels, update};
use oxistep_kernels::driver::SERIAL;
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::simd::Level;

/// MXCSR with denormals flushed or kept, all else as a program finds it.
fn flush(on: bool) {
    let value: u32 = if on { 0x1f80 | 1 << 15 | 1 << 6 } else { 0x1f80 };
    // SAFETY: loads the register from a local: the default value, changed in the two flush bits at most.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags)) };
}

/// Each task but the first on a new thread that keeps denormals; the caller waits with its own, so that they do all the
/// work.
struct Fresh(usize);

impl Pool for Fresh {
    fn threads(&self) -> usize {
        self.0
    }
    fn fork_join(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        for i in 1..n {
            let worker = move || {
                flush(false);
                task(i);
            };
            thread::scope(|scope| drop(scope.spawn(worker)));
        }
        task(0);
    }
}

#[test]
fn workers_flush_as_their_caller_does() {
    let mut rng = Random(9);
    // what f16 can hold is never a denormal in f32
    let combinations = COMBINATIONS.map(|types| (types.0 != Type::F16 && types.1 != Type::F16).then_some(types));
    for (rule, types) in every_rule().into_iter().zip(combinations.into_iter().flatten().cycle()) {
        let mut parameters = vec![
            Parameter::new(rule, types, SERIAL + 1, Values::Wide, &mut rng).aged(10, Values::Wide, &mut rng),
            Parameter::new(rule, types, 1000, Values::Wide, &mut rng),
        ];
        parameters.iter_mut().for_each(|parameter| parameter.grad_factor = 1e-3);
        let run = |pool: &dyn Pool, level: Level, on: bool| {
            let mut parameters = parameters.clone();
            flush(on);
            update(&mut parameters, pool, level);
            flush(false);
            parameters.iter().map(Parameter::bits).collect::<Vec<_>>()
        };
        let flushed = run(&Serial, Level::best(), true);
        assert!(flushed != run(&Serial, Level::best(), false), "no denormal was met: {rule:?} {types:?}");
        for level in levels() {
            for pool in [&Serial as &dyn Pool, &Rayon { threads: 3 }, &Fresh(2)] {
                assert!(run(pool, level, true) == flushed, "{rule:?} {types:?} {level:?} {} threads", pool.threads());
            }
        }
    }
}
