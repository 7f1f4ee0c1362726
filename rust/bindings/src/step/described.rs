//! The tensors of a parameter described: parameter and gradient, the states, and all of them again.

use oxistep_kernels::Gradients;
use pyo3::prelude::*;

use crate::memory::stream::{Described, layout};
use crate::memory::torch::describe::Torch;
use crate::memory::unfit::{Reason, Unfit};
use crate::optimizer::group::is_fused;
use crate::step::item::Item;
use crate::step::lists::Streams;
use crate::step::look::{Going, Look};

const GRAD_SHAPE: &str = "the gradient has another shape than the parameter";

/// Why a parameter and its gradient are left to torch.
pub(super) enum Refused {
    /// What one of them is.
    Unfit(&'static str, Unfit),
    /// What both are.
    Pair(&'static str),
}

impl Refused {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Unfit(which, unfit) => format!("{which} {}", unfit.reason()).into(),
            Self::Pair(reason) => (*reason).into(),
        }
    }
}

/// Parameter and gradient.
pub(super) type Pair<'t> = (Described<'t>, Described<'t>);

/// Describes a parameter and its gradient, or says why they are left to torch.
pub(super) fn describe_pair<'t>(
    torch: &Torch,
    param: &'t Bound<'_, PyAny>,
    grad: &'t Bound<'_, PyAny>,
    is_sparse: bool,
) -> Result<Pair<'t>, Refused> {
    let param = torch.describe(param).map_err(|unfit| Refused::Unfit("the parameter", unfit))?;
    let grad = torch.describe(grad).map_err(|unfit| Refused::Unfit("the gradient", unfit))?;
    if is_sparse {
        // what `take_rows` made: the values of the rows, whose number it has compared
        let plain = param.shape.is_contiguous() && grad.shape.is_contiguous() && !param.memory.complex;
        return if plain { Ok((param, grad)) } else { Err(Refused::Pair("sparse, and not all contiguous and real")) };
    }
    if !param.shape.same_sizes(&grad.shape) {
        return Err(Refused::Pair(GRAD_SHAPE));
    }
    if !param.is_dense && !param.shape.is_free_of_overlap() {
        return Err(Refused::Pair("several elements of the parameter share memory"));
    }
    Ok((param, grad))
}

impl Item {
    /// An error if the parameter or its gradient reaches beyond its storage.
    pub(super) fn refuse_outside<T>(&self, described: &Result<T, Refused>) -> PyResult<()> {
        match described {
            Err(Refused::Unfit(_, Unfit::Outside(bytes))) => Err(self.outside(*bytes)),
            _ => Ok(()),
        }
    }

    /// Parameter and gradient, if kernels may update them; else why that is left to torch.
    pub(super) fn accepted<'t>(&mut self, look: &Look<'_, '_>, pair: Result<Pair<'t>, Refused>) -> Going<Pair<'t>> {
        let pair = pair.map_err(|refused| {
            self.unsure = matches!(refused, Refused::Pair(GRAD_SHAPE));
            refused.reason()
        })?;
        if look.rule.gradients() == Gradients::Sparse && self.rows.is_none() {
            return Err("the gradient is not sparse".into());
        }
        if pair.0.memory.complex && is_fused(look.values)? {
            return Err("the parameter is complex, which fused=True refuses".into());
        }
        Ok(pair)
    }

    /// Describes the states, which are plain tensors in `plain`, behind parameter and gradient.
    pub(super) fn describe_states<'t>(
        &self,
        look: &Look<'_, '_>,
        (param, grad): Pair<'t>,
        names: &[&str],
        plain: &'t [Bound<'_, PyAny>],
        in_codes: impl Fn(usize) -> bool,
    ) -> Going<Streams<Described<'t>>> {
        let mut described: Streams<_> = [param, grad].into_iter().collect();
        for (k, (name, object)) in names.iter().zip(plain).enumerate() {
            let is_code = in_codes(k);
            match if is_code { look.torch.describe_codes(object) } else { look.torch.describe(object) } {
                Ok(state) if is_code => described.push(state), // what they are must be, is checked with their headers
                Ok(state) if !self.whole.fits(k, &state.shape, &param.shape) => {
                    return Err(format!("its state {name:?} has another shape than the parameter").into());
                }
                Ok(state) if self.rows.is_some() && !state.shape.is_contiguous() => {
                    return Err(format!("the gradient is sparse and its state {name:?} not contiguous").into());
                }
                Ok(state) if !state.is_dense && !state.shape.is_free_of_overlap() => {
                    return Err(format!("several elements of its state {name:?} share memory").into());
                }
                Ok(state) => described.push(state),
                Err(Unfit::Outside(bytes)) => return Err(self.outside(bytes).into()),
                Err(unfit) => return Err(format!("its state {name:?} {}", unfit.reason()).into()),
            }
        }
        Ok(described)
    }

    /// Describes everything again; `false` if more than pointers has changed.
    pub(super) fn describe_again(&mut self, py: Python<'_>, torch: &Torch) -> bool {
        let mut again: Streams<Described<'_>> = Streams::new();
        let mut same = self.has_its_shards(py, torch);
        let mut memories = self.memory.clone();
        let elements = memories.first().map_or(0, |memory| memory.len);
        for (stream, memory) in memories.iter_mut().enumerate() {
            let Some(object) = self.tensor(stream) else { continue };
            let object = object.bind(py);
            let now = match &self.compact {
                None => torch.describe(object),
                Some(compact) => torch.describe_codes(object).map(|now| match self.shards {
                    None => now,
                    Some(_) => compact.without_padding(stream, now, elements),
                }),
            };
            match now {
                Ok(now) if now.memory.dtype == memory.dtype && now.memory.extent == memory.extent => {
                    *memory = now.memory;
                    again.push(now);
                }
                _ => same = false,
            }
        }
        let mut all = again.iter();
        same = same
            && if self.rows.is_some() {
                all.all(|d| d.shape.is_contiguous())
            } else if let Some(compact) = &self.compact {
                compact.fits(&again).is_ok_and(|layout| layout.as_ref() == self.layout.as_deref())
            } else {
                self.whole.holds(&again)
                    || all.all(|d| d.shape.sizes == again[0].shape.sizes)
                        && layout(&again).as_ref() == self.layout.as_deref()
            };
        same = same && self.python_counter_is_plain(py);
        drop(again);
        same &= self.describe_counters_again(py, torch);
        self.memory = memories;
        same
    }
}
