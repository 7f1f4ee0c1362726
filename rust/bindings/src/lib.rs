//! The Python module `oxistep._core`: checks, borrows, releases the interpreter, calls the kernels, translates errors.
//!
//! `unsafe` stands in `tensors.rs` and `shim.rs` (torch's memory), `arrays.rs` (NumPy's), `arrays/step.rs`,
//! `arrays/item.rs`, `item.rs`, `rows.rs`, `plan.rs`, `plan/steady.rs`, `guard.rs`, `clip.rs`, `statistics.rs`,
//! `lbfgs.rs` and `muon.rs` (where the contract of both is met), `collector.rs` (Python's garbage collector),
//! `gradient.rs` and `state_map.rs` (attributes and dicts read without references), `keys.rs` (Python's dicts),
//! `nearby.rs` (prefetching), `pages.rs` (advice on memory), `threads.rs` (torch's thread pool) and `trespass.rs` (for
//! the proof that AddressSanitizer sees), each with the reason why it holds.

use pyo3::prelude::*;

mod arrays;
mod clip;
mod collector;
mod dlpack;
mod dtensors;
mod error;
mod factored;
mod fault;
mod gradient;
mod group;
mod guard;
mod item;
mod keys;
mod lbfgs;
mod look;
mod modules;
mod muon;
mod nearby;
mod pages;
mod placement;
mod plan;
mod probe;
mod processor;
mod ranks;
mod rows;
mod shim;
mod span;
mod start;
mod state_map;
mod statistics;
mod subclasses;
mod tensors;
mod threads;
#[cfg(feature = "trespass")]
mod trespass;
mod unfit;

/// Native kernels of oxistep. Private: use oxistep.optim, oxistep.numpy and the functions of oxistep.
#[pymodule]
mod _core {
    use super::PyModule;
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::arrays::step::{rule_states, step_arrays};
    #[pymodule_export]
    use super::clip::{clamp, clip_factor, grad_norm, grad_norm_in_double, scale};
    #[pymodule_export]
    use super::lbfgs::{
        lbfgs_differences, lbfgs_direction, lbfgs_dot, lbfgs_gather, lbfgs_max_abs, lbfgs_move, lbfgs_sum_abs,
        lbfgs_unfit,
    };
    #[pymodule_export]
    use super::muon::{muon_momentum, muon_unfit, muon_update};
    #[pymodule_export]
    use super::pages::zero_large;
    #[pymodule_export]
    use super::placement::in_the_way;
    #[pymodule_export]
    use super::plan::Plan;
    #[pymodule_export]
    use super::probe::probe;
    #[pymodule_export]
    use super::processor::{cpu_features, force_simd, simd_levels};
    #[pymodule_export]
    use super::start::use_torch_threads;
    #[pymodule_export]
    use super::statistics::GradientStatistics;
    #[pymodule_export]
    use super::threads::{get_num_threads, set_num_threads};

    #[cfg(feature = "trespass")]
    #[pymodule_export]
    use super::trespass::trespass;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::start::set_up(module)?;
        module.add("KernelError", module.py().get_type::<super::error::KernelError>())?;
        #[cfg(feature = "faults")]
        {
            use super::fault;
            module.add_function(wrap_pyfunction!(fault::fault_arm, module)?)?;
            module.add_function(wrap_pyfunction!(fault::fault_met, module)?)?;
            module.add_function(wrap_pyfunction!(fault::fault_arm_panic, module)?)?;
            module.add_function(wrap_pyfunction!(fault::fault_panicked, module)?)?;
        }
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
