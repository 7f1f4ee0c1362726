//! Arbitrary bytes are programs on the kernels' public API; the tests of the kernels judge them.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../kernels/tests/common/mod.rs"]
mod common;
#[path = "../../kernels/tests/fuzzed/mod.rs"]
mod fuzzed;
#[path = "../../kernels/tests/judged/mod.rs"]
mod judged;
#[path = "../../kernels/tests/kept/mod.rs"]
mod kept;
#[path = "../../kernels/tests/traced/mod.rs"]
mod traced;

fuzz_target!(|data: &[u8]| fuzzed::run(data));
