//! After the first step nothing is allocated any more, nor given back.
#![allow(unsafe_code)] // a global allocator that counts

mod common;
mod traced;

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;

use common::{COMBINATIONS, Parameter, Random, Values, every_combination, every_rule, levels};
use oxistep_kernels::driver::Measured;
use oxistep_kernels::pool::Serial;
use oxistep_kernels::program::Program;
use oxistep_kernels::simd::Level;
use oxistep_kernels::statistics::Statistics;
use oxistep_kernels::{Layout, STREAMS, Slice, SliceMut, Step, Tensors};

/// Counts what this thread asks of the system's allocator; tests on other threads do not disturb.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    CALLS.with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call goes to `System`, which keeps the contract; counting touches a `Cell` that needs neither memory
// nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are those of this method.
        unsafe { System.alloc(memory) }
    }
    unsafe fn dealloc(&self, at: *mut u8, memory: Memory) {
        count();
        // SAFETY: as above; `at` came from `System`.
        unsafe { System.dealloc(at, memory) }
    }
    unsafe fn realloc(&self, at: *mut u8, memory: Memory, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(at, memory, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `f` called the allocator.
fn allocations(f: impl FnOnce()) -> usize {
    let before = CALLS.get();
    f();
    CALLS.get() - before
}

/// Every rule and every combination of types, short, cut into chunks, and strided.
fn parameters() -> Vec<Parameter> {
    let mut rng = Random(2);
    let mut parameters = Vec::new();
    for rule in every_rule() {
        for types in every_combination() {
            parameters.push(Parameter::new(rule, types, 300, Values::Scaled, &mut rng));
            let mut strided = Parameter::new(rule, types, 600, Values::Scaled, &mut rng);
            strided.layout = Some(Layout::new(&[20, 15], [[1; STREAMS], [40; STREAMS]].as_flattened(), &[0; STREAMS]));
            parameters.push(strided);
        }
        parameters.push(Parameter::new(rule, COMBINATIONS[1], 140_000, Values::Scaled, &mut rng));
    }
    parameters
}

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 2);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn filling_and_running_a_step_allocates_nothing_after_the_first() {
    let mut parameters = parameters();
    let mut idle: Step<'static> = Step::default();
    let mut first = true;
    for _ in 0..3 {
        for level in levels() {
            let calls = allocations(|| {
                let mut step = std::mem::take(&mut idle).recycle();
                for parameter in &mut parameters {
                    step.constants(parameter.rule.constants(&mut parameter.scalars, parameter.first));
                    parameter.first = false;
                    let grad_factor = parameter.grad_factor;
                    assert!(step.push(parameter.tensors(), grad_factor).is_ok());
                }
                assert!(step.run(&Serial, level).is_ok());
                idle = step.recycle();
            });
            assert_eq!(calls > 0, first, "{calls} calls at {level:?}");
            first = false;
        }
    }
}

#[test]
fn measuring_allocates_nothing_after_the_first_time() {
    let mut parameters = parameters();
    let (mut idle, mut measured): (Step<'static>, _) = (Step::default(), Measured::default());
    let mut statistics: Statistics<'static> = Statistics::default();
    for first in [true, false, false] {
        let calls = allocations(|| {
            let mut step = std::mem::take(&mut idle).recycle();
            measured.clear();
            for parameter in &mut parameters {
                step.constants(parameter.rule.constants(&mut parameter.scalars, parameter.first));
                parameter.first = false;
                assert!(step.push(parameter.tensors(), 1.0).is_ok());
                measured.pushed(&step);
            }
            assert!(step.run_measured(&mut measured, &Serial, Level::best()).is_ok());
            assert_eq!(measured.moved().count(), measured.moved().filter(|moved| moved.param >= 0.0).count());
            idle = step.recycle();
            let mut found = std::mem::take(&mut statistics).recycle();
            parameters.iter().for_each(|parameter| found.push(parameter.grad.slice(), parameter.layout.as_ref()));
            assert!(found.compute(&Serial, Level::best()).is_ok());
            assert_eq!(found.summaries().count(), parameters.len());
            statistics = found.recycle();
        });
        assert_eq!(calls > 0, first, "{calls} calls");
    }
}

#[test]
fn programs_allocate_nothing_after_the_first_step() {
    let programs = [traced::adam(), traced::lamb()].map(|draft| Program::new(&draft.description()).unwrap());
    let inputs: [&[f64]; 2] = [&[1e-3, 0.9, 0.999, 1e-8, 3.0], &[1e-3, 0.9, 0.999, 1e-8]];
    for (lengths, ahead) in [([300, 64, 64, 140_000], true), ([300, 64, 64, 9000], true), ([300, 64, 64, 9000], false)]
    {
        let grads = lengths.map(|n| vec![0.5_f32; n]);
        let mut memory = lengths.map(|n| [vec![0.5_f32; n], vec![0.5_f32; n], vec![0.5_f32; n]]);
        let mut idle: Step<'static> = Step::default();
        for first in [true, false, false] {
            let calls = allocations(|| {
                let mut step = std::mem::take(&mut idle).recycle();
                for (k, ([p, m, v], grad)) in memory.iter_mut().zip(&grads).enumerate() {
                    assert!(step.program(&programs[k % 2], inputs[k % 2]).is_ok());
                    let states = [SliceMut::F32(m), SliceMut::F32(v)];
                    let tensors = Tensors { param: SliceMut::F32(p), grad: Slice::F32(grad), states, layout: None };
                    assert!(step.push(tensors, 1.0).is_ok());
                }
                if ahead {
                    assert!(step.reduce(&Serial, Level::best()).is_ok());
                }
                assert!(step.run(&Serial, Level::best()).is_ok());
                idle = step.recycle();
            });
            assert_eq!(calls > 0, first, "{calls} calls");
        }
    }
}
