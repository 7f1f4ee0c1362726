//! What is different about a rule that looks at whole tensors (Adafactor): its states have other shapes than the
//! parameter, and everything must be contiguous.

use oxistep_kernels::AnyRule;
use pyo3::prelude::*;

use crate::memory::shape::Shape;
use crate::memory::stream::Described;
use crate::memory::unfit::Reason;

/// Whether a rule updates parameters whole.
pub(crate) fn is_whole(rule: &AnyRule) -> bool {
    matches!(rule, AnyRule::Adafactor(_))
}

/// How a parameter is updated: element by element, or whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Whole {
    #[default]
    No,
    /// One dimension or none.
    Vector,
    /// Rows and columns of a matrix, or of each matrix in a batch.
    Matrix(usize, usize),
}

impl Whole {
    /// How `rule` updates a parameter and its gradient, or why that is left to torch.
    pub(crate) fn of(rule: Option<&AnyRule>, param: &Described<'_>, grad: &Described<'_>) -> Result<Self, Reason> {
        if !rule.is_some_and(is_whole) {
            return Ok(Self::No);
        }
        for (tensor, name) in [(param, "parameter"), (grad, "gradient")] {
            if tensor.memory.complex {
                return Err("Adafactor refuses complex parameters".into());
            }
            if !contiguous(&tensor.shape) {
                return Err(format!(
                    "the {name} is not contiguous: means of rows and columns are native only where it is"
                )
                .into());
            }
        }
        if grad.memory.dtype != param.memory.dtype {
            return Err("the gradient has another dtype than the parameter".into());
        }
        Ok(match *param.shape.sizes {
            [.., rows, cols] => Self::Matrix(rows as usize, cols as usize),
            _ => Self::Vector,
        })
    }

    /// Whether `state`, the `k`-th of the parameter, has the shape that it must have.
    pub(crate) fn fits(self, k: usize, state: &Shape<'_>, param: &Shape<'_>) -> bool {
        let Self::Matrix(..) = self else {
            return state.same_sizes(param) && (self == Self::No || contiguous(state));
        };
        // `row_var` has one column, `col_var` one row
        let dims = param.sizes.len();
        let shrunk = dims.wrapping_sub(k + 1);
        let expected = |d: usize| if d == shrunk { 1 } else { param.sizes[d] };
        state.sizes.len() == dims && (0..dims).all(|d| state.sizes[d] == expected(d)) && contiguous(state)
    }

    /// Whether what was described again is what it was.
    pub(crate) fn holds(self, again: &[Described<'_>]) -> bool {
        let [param, grad, states @ ..] = again else { return false };
        let same = match (self, param.shape.sizes) {
            (Self::No, _) => return false,
            (Self::Vector, sizes) => sizes.len() < 2,
            (Self::Matrix(rows, cols), sizes) => sizes.ends_with(&[rows as i64, cols as i64]),
        };
        let plain = contiguous(&param.shape) && contiguous(&grad.shape) && grad.shape.same_sizes(&param.shape);
        let fit = |(k, state): (usize, &Described<'_>)| self.fits(k, &state.shape, &param.shape);
        same && plain && states.iter().enumerate().all(fit)
    }
}

/// The strides of a tensor without elements mean nothing.
fn contiguous(shape: &Shape<'_>) -> bool {
    shape.sizes.contains(&0) || shape.is_contiguous()
}

/// Gives a rule what it takes from the first parameter of a group that has a gradient: where `eps[0]` is None, torch
/// uses the machine epsilon of that parameter's dtype for all of them.
pub(crate) fn settle(rule: &mut AnyRule, param: &Bound<'_, PyAny>) -> PyResult<()> {
    let AnyRule::Adafactor(rule) = rule else { return Ok(()) };
    if rule.eps1.is_none() {
        let py = param.py();
        let finfo = py.import(pyo3::intern!(py, "torch"))?.getattr(pyo3::intern!(py, "finfo"))?;
        let limits = finfo.call1((param.getattr(pyo3::intern!(py, "dtype"))?,))?;
        rule.eps1 = Some(limits.getattr(pyo3::intern!(py, "eps"))?.extract()?);
    }
    Ok(())
}
