//! Who updates a parameter, as far as its types and numbers tell.

use oxistep_kernels::AnyRule;

use crate::memory::dtype::{DType, served};
use crate::memory::stream::{Described, layout};
use crate::step::item::{Item, Route};
use crate::step::look::{Going, Look};
use crate::whole::adafactor::Whole;

const NO_KERNEL: &str = "no kernel for this combination of dtypes";

const NOT_ALL_COMPLEX: &str = "parameter, gradient and states are not all complex";

const SINGLE_LR: &str = "lr is a float32 tensor: torch computes constants of a float64 step in float32";

const UNUSUAL: &str = "a hyperparameter or counter is outside its usual range, torch decides what that means";

impl Item {
    /// The route of a parameter whose states are yet to be made, of which nothing is to be written: they overlap
    /// nothing, and their dtype will be the parameter's.
    pub(super) fn route_before_its_states(
        &mut self,
        look: &Look<'_, '_>,
        param: &Described<'_>,
        grad: &Described<'_>,
    ) -> Going<Route> {
        let (param, grad) = (param.memory, grad.memory);
        if look.single_lr && param.dtype == DType::F64 {
            return Err(SINGLE_LR.into());
        }
        if param.complex != grad.complex {
            return Err(NOT_ALL_COMPLEX.into());
        }
        self.memory = [param, grad].into_iter().collect();
        if !served(param.dtype, grad.dtype, Some(param.dtype)) {
            return Err(NO_KERNEL.into());
        }
        Ok(self.settle_unusual(look, param.dtype, grad.dtype == param.dtype))
    }

    /// Notes where everything lies, if kernels serve these types. `described` has parameter, gradient and
    /// states. Returns the parameter's dtype, and whether it is that of all.
    pub(super) fn settle_types(&mut self, look: &Look<'_, '_>, described: &[Described<'_>]) -> Going<(DType, bool)> {
        let [param, others @ ..] = described else { return Err(NO_KERNEL.into()) };
        let [grad, states @ ..] = others else { return Err(NO_KERNEL.into()) };
        let (complex, param, grad) = (param.memory.complex, param.memory.dtype, grad.memory.dtype);
        if look.single_lr && param == DType::F64 {
            self.unsure = false;
            return Err(SINGLE_LR.into());
        }
        if others.iter().any(|d| d.memory.complex != complex) {
            return Err(NOT_ALL_COMPLEX.into());
        }
        let of_states = states.first().map(|d| d.memory.dtype);
        if states.iter().any(|d| Some(d.memory.dtype) != of_states) || !served(param, grad, of_states) {
            return Err(NO_KERNEL.into());
        }
        self.layout =
            if self.rows.is_some() || self.whole != Whole::No { None } else { layout(described).map(Box::new) };
        self.memory = described.iter().map(|d| d.memory).collect();
        Ok((param, others.iter().all(|d| d.memory.dtype == param)))
    }

    /// Native, if torch could not possibly refuse the numbers of this step; else torch's, where it takes these dtypes.
    pub(super) fn settle_unusual(&mut self, look: &Look<'_, '_>, dtype: DType, one_dtype: bool) -> Route {
        let is_usual = |rule: &AnyRule| rule.is_usual(&self.scalar_values, dtype.largest_usual());
        self.unusual = !look.rule.compiled().is_none_or(is_usual);
        if self.unusual && one_dtype { Route::Torch(UNUSUAL.into()) } else { Route::Native }
    }
}
