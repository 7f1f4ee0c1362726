//! Arbitrary bytes are descriptions of programs that users write; the tests of the kernels judge them.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../kernels/tests/common/mod.rs"]
mod common;
#[path = "../../kernels/tests/described/mod.rs"]
mod described;
#[path = "../../kernels/tests/judged/mod.rs"]
mod judged;
#[path = "../../kernels/tests/kept/mod.rs"]
mod kept;

fuzz_target!(|data: &[u8]| {
    described::run(data);
});
