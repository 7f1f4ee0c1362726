//! The Python module `oxistep._core`: checks, borrows, releases the interpreter, calls the kernels, translates errors.
//!
//! Floors, of which each uses only those before it: what stands here, `memory`, `optimizer`, `services` and `whole`,
//! `step`. Where `unsafe` stands, and why it holds: docs/architecture.md.

use pyo3::prelude::*;

mod error;
mod fault;
mod memory;
mod optimizer;
mod processor;
mod services;
mod step;
mod threads;
mod whole;

/// Native kernels of oxistep. Private: use oxistep.optim, oxistep.numpy and the functions of oxistep.
#[pymodule]
mod _core {
    use super::PyModule;
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::optimizer::traced::Tree;
    #[pymodule_export]
    use super::processor::{cpu_features, force_simd, simd_levels};
    #[pymodule_export]
    use super::services::clip::{clamp, clip_factor, grad_norm, grad_norm_in_double, scale};
    #[pymodule_export]
    use super::services::compact::{block_of_codes, pack_codes, state_kinds, unpack_codes};
    #[pymodule_export]
    use super::services::pages::zero_large;
    #[pymodule_export]
    use super::services::placement::in_the_way;
    #[pymodule_export]
    use super::services::probe::probe;
    #[pymodule_export]
    use super::services::start::use_torch_threads;
    #[pymodule_export]
    use super::services::statistics::GradientStatistics;
    #[pymodule_export]
    use super::step::array_plan::ArrayPlan;
    #[pymodule_export]
    use super::step::arrays::{rule_states, step_arrays};
    #[pymodule_export]
    use super::step::plan::Plan;
    #[pymodule_export]
    use super::threads::{get_num_threads, set_num_threads};
    #[pymodule_export]
    use super::whole::lbfgs::{
        lbfgs_differences, lbfgs_direction, lbfgs_dot, lbfgs_gather, lbfgs_max_abs, lbfgs_move, lbfgs_sum_abs,
        lbfgs_unfit,
    };
    #[pymodule_export]
    use super::whole::muon::{muon_momentum, muon_unfit, muon_update};

    #[cfg(feature = "trespass")]
    #[pymodule_export]
    use super::services::trespass::trespass;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::services::start::set_up(module)?;
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
