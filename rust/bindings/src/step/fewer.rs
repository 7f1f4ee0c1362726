//! Parameters that are kept in fewer bytes: what the settings ask, what stands beside a parameter and its states, and
//! whether it fits.

use std::collections::HashMap;
use std::ops::Range;

use oxistep_kernels::compact::{BLOCK, Compact, Kept, Noise, Weights};
use oxistep_kernels::{Layout, StateKind};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use smallvec::SmallVec;

use crate::memory::dtype::DType;
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

/// Whether something is rounded with fair odds.
pub(super) fn draws(compact: &Compact) -> bool {
    let state = |kept: &Kept| matches!(kept, Kept::Fair | Kept::Codes(StateKind::Signed | StateKind::Magnitude));
    matches!(compact.weights, Weights::Fair | Weights::Residual8) || compact.states.iter().any(state)
}

impl OfCompact {
    /// Whether a step moves the average of the parameter.
    pub(super) fn has_average(&self) -> bool {
        self.compact.average.is_some()
    }

    /// With the noise of this step.
    pub(super) fn at(mut self, seed: u64, place: (u32, u32), counters: &Counted) -> Self {
        let step = counters.first().map_or(0.0, |(count, _)| *count) + 1.0;
        self.compact.noise = Noise::new(seed, [place.0.into(), place.1.into()], step as u64);
        self
    }

    /// Where among what is described the headers are.
    fn headers(&self) -> Range<usize> {
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
