//! Parameters that are kept in fewer bytes: what the settings ask, what stands beside a parameter and its states, and
//! whether it fits.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use oxistep_kernels::compact::{BLOCK, Compact, Kept, Noise, Weights};
use oxistep_kernels::{Layout, StateKind};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use smallvec::SmallVec;

use crate::memory::dtype::{DType, served};
use crate::memory::stream::{Described, layout};
use crate::step::lists::{Counted, Streams};

/// What a rule without counters counts by, where something is rounded with fair odds.
pub(super) const STEP: &[&str] = &["step"];

/// Under which name the average of a parameter stands.
pub(super) const AVERAGE: &str = "param_ema";

pub(super) const LAID_OUT: &str =
    "parameter, states and what stands beside them are not all laid out alike, without gaps";

/// What an optimizer's settings ask of its parameters and states.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fewer {
    /// How parameters of a half type are kept.
    pub(super) weights: Weights,
    /// Second moments in bfloat16 are rounded with fair odds beside parameters of a half type too.
    pub(super) fair: bool,
    pub(super) seed: u64,
    /// How far averages of parameters move towards them; `None`: there are none.
    pub(super) average: Option<f64>,
}

/// What a state of a traced rule is: "exact", "signed", "magnitude", "fine", or "relative" to the state of that name
/// or, if true, its root.
pub(crate) type KindByName = (String, Option<String>, bool);

/// What parameters were when a step was done: version and address, by the addresses of their objects.
pub(super) type Seen = HashMap<usize, (u64, usize)>;

/// Of DTensors, by the addresses of their objects: that of their specification, and which element of the whole comes
/// first in the local shard.
pub(super) type Firsts = HashMap<usize, (usize, u64)>;

/// How a parameter is kept.
#[derive(Debug)]
pub(crate) struct OfCompact {
    pub(crate) compact: Compact,
    /// Its rule has no counter: the step counts for it.
    pub(crate) counts: bool,
}

/// Where the entry of a parameter has what it is kept in: the same for most parameters of a group.
#[derive(Debug)]
pub(crate) struct Form {
    /// Names of its states or their codes, of the headers of those, and of what stands beside the parameter; then those
    /// of its counters.
    pub(super) names: Vec<Py<PyString>>,
    /// How many of them are no counters.
    pub(super) streams: usize,
    /// How it is kept, but for what is drawn.
    pub(super) like: OfCompact,
    /// What its states are to a compiled rule.
    pub(super) kinds: &'static [StateKind],
}

/// How a parameter is kept, and was kept at the last step.
#[derive(Debug)]
pub(crate) struct KnownForm {
    pub(super) form: Arc<Form>,
    /// With the noise of the step under way.
    pub(super) compact: Compact,
    /// The address of its object.
    pub(super) param: usize,
}

/// What stands beside a parameter and its states.
#[derive(Default)]
pub(super) struct Beside<'py> {
    /// The headers of states in codes, each with the state's place.
    pub(super) headers: SmallVec<[(usize, Bound<'py, PyAny>); 3]>,
    pub(super) companion: Option<Bound<'py, PyAny>>,
    /// The average of the parameter.
    pub(super) average: Option<Bound<'py, PyAny>>,
}

impl<'py> Beside<'py> {
    /// Whether a state is in codes.
    pub(super) fn is_of(&self, state: usize) -> bool {
        self.headers.iter().any(|(k, _)| *k == state)
    }

    /// All but the average, in the order in which a step writes them.
    pub(super) fn objects(&self) -> Vec<Bound<'py, PyAny>> {
        self.headers.iter().map(|(_, header)| header).chain(&self.companion).cloned().collect()
    }
}

/// The codes and headers of a state, if an entry has them.
pub(super) fn codes_in<'py>(
    entry: &Bound<'py, PyDict>,
    name: &str,
) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
    let Some(codes) = entry.get_item(format!("{name}_codes"))? else { return Ok(None) };
    Ok(entry.get_item(format!("{name}_headers"))?.map(|headers| (codes, headers)))
}

impl Fewer {
    /// What is asked of a parameter.
    ///
    /// # Errors
    /// If it has become one that cannot be kept so.
    pub(super) fn of(self, param: &Described<'_>) -> Result<Self, &'static str> {
        let half = matches!(param.memory.dtype, DType::F16 | DType::Bf16) && !param.memory.complex;
        if half || self.weights == Weights::Nearest { Ok(self) } else { Err("weights= are for half types") }
    }

    /// Whether an entry lacks the average of its parameter.
    pub(super) fn lacks_average(self, entry: Option<&Bound<'_, PyDict>>) -> PyResult<bool> {
        Ok(self.average.is_some() && !entry.map_or(Ok(false), |entry| entry.contains(AVERAGE))?)
    }

    /// Under which name what is beside a parameter stands.
    pub(super) fn companion(self) -> Option<&'static str> {
        match self.weights {
            Weights::Nearest | Weights::Fair => None,
            Weights::Kahan => Some("compensation"),
            Weights::Residual8 | Weights::Residual16 => Some("residual"),
            Weights::Master => Some("master"),
        }
    }
}

/// What is drawn for the parameter in this place of this group, whose first counter stood there before the step.
pub(super) fn noise_at(seed: u64, (group, index): (usize, usize), count: Option<f64>) -> Noise {
    Noise::new(seed, [group as u64, index as u64], (count.unwrap_or(0.0) + 1.0) as u64)
}

/// Whether something is rounded with fair odds.
pub(super) fn draws(compact: &Compact) -> bool {
    let state = |kept: &Kept| matches!(kept, Kept::Fair | Kept::Codes(StateKind::Signed | StateKind::Magnitude));
    matches!(compact.weights, Weights::Fair | Weights::Residual8) || compact.states.iter().any(state)
}

impl OfCompact {
    /// Whether parameter and gradient are of types that can be kept so.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn serves(&self, param: &Described<'_>, grad: &Described<'_>) -> Result<(), &'static str> {
        let (param, grad) = (param.memory.dtype, grad.memory.dtype);
        let needs_bf16 = matches!(self.compact.weights, Weights::Fair | Weights::Residual8 | Weights::Residual16);
        if !served(param, grad, None) || param == DType::F64 {
            return Err("no kernel for this combination of dtypes");
        }
        if needs_bf16 && param != DType::Bf16 { Err("these weights= are for bfloat16") } else { Ok(()) }
    }

    /// Whether a stream behind the gradient, of a parameter of type `param`, is of the type that it is kept in.
    pub(super) fn takes(&self, stream: usize, param: DType, dtype: DType) -> bool {
        let (k, Compact { weights, states, .. }) = (stream - 2, &self.compact);
        let beside = states.len() + self.headers().len();
        match states.get(k) {
            Some(Kept::Codes(_)) => dtype == DType::U8,
            Some(Kept::Fair) => dtype == DType::Bf16,
            Some(Kept::Nearest) => matches!(dtype, DType::F32 | DType::F16 | DType::Bf16),
            None if k == beside && weights.has_companion() => match weights {
                Weights::Residual8 => dtype == DType::U8,
                Weights::Residual16 => dtype == DType::I16,
                Weights::Kahan => dtype == param,
                _ => dtype == DType::F32,
            },
            None => dtype == DType::F32,
        }
    }

    /// The same, of a step that draws nothing.
    pub(super) fn without_noise(&self) -> Self {
        let compact = Compact { noise: Noise::default(), ..self.compact.clone() };
        Self { compact, counts: self.counts }
    }

    /// Whether another parameter is kept in the same way.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let of = |of: &Self| (of.compact.weights, of.compact.average, of.counts);
        of(self) == of(other) && self.compact.states == other.compact.states
    }

    /// Whether a step moves the average of the parameter.
    pub(super) fn has_average(&self) -> bool {
        self.compact.average.is_some()
    }

    /// With the noise of this step.
    pub(super) fn at(mut self, seed: u64, place: (u32, u32), counters: &Counted) -> Self {
        self.compact.noise = noise_at(seed, (place.0 as usize, place.1 as usize), counters.first().map(|(x, _)| *x));
        self
    }

    /// Where among what is described the headers are.
    pub(super) fn headers(&self) -> Range<usize> {
        let first = 2 + self.compact.states.len();
        first..first + self.compact.states.iter().filter(|kept| matches!(kept, Kept::Codes(_))).count()
    }

    /// A stream of a DTensor of so many elements here. Its headers have room for as many on each process: those behind
    /// the shard's own are left out.
    pub(super) fn without_padding<'t>(&self, stream: usize, mut of: Described<'t>, elements: usize) -> Described<'t> {
        let own = elements.div_ceil(BLOCK);
        if self.headers().contains(&stream) && of.shape.is_contiguous() && of.memory.len > own {
            (of.memory.len, of.memory.extent) = (own, own);
        }
        of
    }

    /// The same for all streams, of which the parameter is the first.
    pub(super) fn leave_padding(&self, described: &mut [Described<'_>]) {
        let elements = described.first().map_or(0, |param| param.memory.len);
        let streams = described.iter_mut().enumerate();
        streams.for_each(|(stream, of)| *of = self.without_padding(stream, *of, elements));
    }

    /// Whether everything has the sizes that it must have, and lies alike, but for the gradient: how that lies, if
    /// otherwise.
    pub(super) fn fits(&self, described: &[Described<'_>]) -> Result<Option<Layout>, &'static str> {
        let [param, grad, ..] = described else { return Err(LAID_OUT) };
        if described.len() != 1 + self.compact.streams() {
            return Err("something that stands beside it is missing");
        }
        let (n, headers) = (param.memory.len, self.headers());
        let mut whole: Streams<Described<'_>> = Streams::new();
        for (stream, described) in described.iter().enumerate() {
            if headers.contains(&stream) {
                if described.memory.len != n.div_ceil(BLOCK) || !described.shape.is_contiguous() {
                    return Err("the headers of its codes have another length than belongs to the parameter");
                }
            } else if described.shape.same_sizes(&param.shape) {
                if stream != 1 {
                    whole.push(*described);
                }
            } else {
                return Err("its codes, or what stands beside it, have another shape");
            }
        }
        let is_one_piece = whole.iter().all(|described| described.is_dense) && layout(&whole).is_none();
        if is_one_piece { Ok(layout(&[*param, *grad])) } else { Err(LAID_OUT) }
    }
}
