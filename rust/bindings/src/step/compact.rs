//! Looking up a parameter that is kept in fewer bytes, and what becomes of what stands beside it.

use std::sync::Arc;

use oxistep_kernels::StateKind;
use oxistep_kernels::compact::{Compact, Kept, Weights};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use crate::memory::dtype::{DType, served};
use crate::memory::stream::{Described, layout};
use crate::memory::torch::modules::modules;
use crate::memory::unfit::{Unfit, outside};
use crate::optimizer::rule::GroupRule;
use crate::step::fewer::{AVERAGE, Beside, Fewer, Form, KindByName, KnownForm, LAID_OUT, OfCompact, STEP, draws};
use crate::step::item::{Item, Route};
use crate::step::lists::Streams;
use crate::step::look::{Going, Look};
use crate::step::matched::Names;
use crate::step::plan::Plan;
use crate::whole::adafactor::Whole;

impl Fewer {
    /// Whether an entry lacks what a rule without states and counters does not tell of.
    pub(super) fn lacks(self, names: Names<'_>, entry: Option<&Bound<'_, PyDict>>) -> PyResult<bool> {
        if !names.states.is_empty() || !names.counters.is_empty() {
            return Ok(false);
        }
        let counts = matches!(self.weights, Weights::Fair | Weights::Residual8);
        let wanted = self.companion().into_iter().chain(counts.then_some(STEP[0]));
        for name in wanted {
            if !entry.map_or(Ok(false), |entry| entry.contains(name))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What stands beside a parameter, with the headers of its states.
    pub(super) fn beside<'py>(self, mut beside: Beside<'py>, entry: Option<&Bound<'py, PyDict>>) -> Going<Beside<'py>> {
        if let Some(name) = self.companion() {
            let value = entry.map(|entry| entry.get_item(name)).transpose()?.flatten();
            beside.companion = Some(value.ok_or_else(|| format!("its state lacks {name:?}"))?);
        }
        if self.average.is_some() {
            beside.average = entry.map(|entry| entry.get_item(AVERAGE)).transpose()?.flatten();
        }
        Ok(beside)
    }

    /// How a parameter is kept that has an average, which is described behind the rest, if kernels can move it: else
    /// it is as it was, and Python moves the average after the step.
    pub(super) fn averaged<'t>(
        self,
        look: &Look<'_, '_>,
        described: &mut Streams<Described<'t>>,
        average: Option<&'t Bound<'_, PyAny>>,
        compact: Option<OfCompact>,
    ) -> Option<OfCompact> {
        let (Some(weight), Some(object)) = (self.average, average) else { return compact };
        let [param, grad, states @ ..] = described.as_slice() else { return compact };
        let of = |described: &Described<'_>| described.memory.dtype;
        let of_states = states.first().map(of);
        let number = !matches!(of(param), DType::F64) && !described.iter().any(|stream| stream.memory.complex);
        let usual = served(of(param), of(grad), of_states) && states.iter().all(|state| Some(of(state)) == of_states);
        let alike = |shape: &Described<'_>| shape.is_dense && shape.shape.same_sizes(&param.shape);
        // of what is in fewer bytes the gradient may lie otherwise
        let counts = |(stream, of): &(usize, &Described<'_>)| alike(of) && (compact.is_none() || *stream != 1);
        let whole = described.iter().enumerate().filter(counts).map(|(_, of)| *of);
        let mut whole: Streams<Described<'_>> = whole.collect();
        let is_complete = compact.is_some() || whole.len() == described.len();
        // one that does not fit is refused by `check_averages`, which knows its name
        let Ok(now) = look.torch.describe(object) else { return compact };
        whole.push(now);
        let fits = of(&now) == DType::F32 && !now.memory.complex && alike(&now) && layout(&whole).is_none();
        if !number || !is_complete || !fits || (compact.is_none() && !usual) {
            return compact;
        }
        let nearest = || Compact { states: vec![Kept::Nearest; states.len()], ..Compact::default() };
        let mut kept = compact.unwrap_or_else(|| OfCompact { compact: nearest(), counts: false });
        kept.compact.average = Some(weight);
        described.push(now);
        Some(kept)
    }

    /// How a parameter is kept, if in fewer bytes; describes what stands beside it, behind the rest.
    pub(super) fn compact<'t>(
        self,
        look: &Look<'_, '_>,
        described: &mut Streams<Described<'t>>,
        beside: &Beside<'_>,
        companions: &'t [Bound<'_, PyAny>],
        names: Names<'_>,
    ) -> Going<Option<OfCompact>> {
        let [param, grad, states @ ..] = described.as_slice() else { return Ok(None) };
        let (param, grad) = (param.memory.dtype, grad.memory.dtype);
        let of_states = states.first().map(|state| state.memory.dtype);
        let one_type = states.iter().all(|state| Some(state.memory.dtype) == of_states);
        let usual = (one_type && served(param, grad, of_states)) || !served(param, grad, None);
        if usual && companions.is_empty() && self.weights == Weights::Nearest && !self.fair {
            return Ok(None);
        }
        let kind = |k: usize| match look.rule {
            GroupRule::Compiled(rule) => rule.kinds().get(k).copied().unwrap_or(StateKind::Exact),
            GroupRule::Traced(_) => kind_of(look.kinds, names.states, k),
        };
        let kept = |(k, state): (usize, &Described<'_>)| match (beside.is_of(k), kind(k), state.memory.dtype) {
            // its codes were written when other words of the group had it as a magnitude
            (true, StateKind::Fine, _) => Kept::Codes(StateKind::Magnitude),
            (true, kind, _) => Kept::Codes(kind),
            (false, StateKind::Magnitude | StateKind::Fine, DType::Bf16) if self.fair || param == DType::F32 => {
                Kept::Fair
            }
            _ => Kept::Nearest,
        };
        let states_kept: Vec<Kept> = states.iter().enumerate().map(kept).collect();
        let plain = companions.is_empty() && self.weights == Weights::Nearest && !states_kept.contains(&Kept::Fair);
        if plain && usual {
            return Ok(None);
        }
        let exact = |(k, kept): (usize, &Kept)| *kept == Kept::Codes(StateKind::Exact) && k < names.states.len();
        if let Some(k) = states_kept.iter().enumerate().find(|pair| exact(*pair)).map(|(k, _)| k) {
            return Err(format!("its state {:?} is in codes, and this rule has it in full", names.states[k]).into());
        }
        for object in companions {
            match look.torch.describe_codes(object) {
                Ok(now) => described.push(now),
                Err(Unfit::Outside(bytes)) => {
                    return Err(outside("what stands beside a parameter", bytes).into());
                }
                Err(unfit) => return Err(format!("what stands beside it {}", unfit.reason()).into()),
            }
        }
        let compact = Compact { weights: self.weights, states: states_kept, ..Compact::default() };
        Ok(Some(OfCompact { counts: names.counters.is_empty() && draws(&compact), compact }))
    }
}

/// What the state in some place is, by its name.
fn kind_of(kinds: &[(String, KindByName)], names: &[&str], place: usize) -> StateKind {
    match kinds.iter().find(|(name, _)| name == names[place]) {
        Some((_, (kind, ..))) if kind == "signed" => StateKind::Signed,
        Some((_, (kind, ..))) if kind == "magnitude" => StateKind::Magnitude,
        Some((_, (kind, ..))) if kind == "fine" => StateKind::Fine,
        Some((_, (kind, Some(of), root))) if kind == "relative" => names
            .iter()
            .position(|name| name == of)
            .map_or(StateKind::Exact, |to| StateKind::Relative { to: to as u8, root: *root }),
        _ => StateKind::Exact,
    }
}

/// Where the entry of a parameter has what it is kept in.
fn form_of(py: Python<'_>, fewer: Fewer, rule: &GroupRule, item: &Item, of_compact: &OfCompact) -> Form {
    let leaf = item.traced.as_ref().map(|traced| &*traced.leaf);
    let of_rule = Names::of(rule, leaf, 0);
    let is_coded = |k: usize| matches!(of_compact.compact.states[k], Kept::Codes(_));
    let states = of_rule
        .states
        .iter()
        .enumerate()
        .map(|(k, name)| if is_coded(k) { format!("{name}_codes") } else { (*name).to_owned() });
    let headers =
        of_rule.states.iter().enumerate().filter(|(k, _)| is_coded(*k)).map(|(_, name)| format!("{name}_headers"));
    let mut names: Vec<String> = states.chain(headers).chain(fewer.companion().map(str::to_owned)).collect();
    let streams = names.len();
    let counters = if of_compact.counts { STEP } else { of_rule.counters };
    names.extend(counters.iter().map(|name| (*name).to_owned()));
    Form {
        names: names.iter().map(|name| PyString::intern(py, name).unbind()).collect(),
        streams,
        like: of_compact.without_noise(),
        kinds: rule.compiled().map_or(&[], |rule| rule.kinds()),
    }
}

impl Item {
    /// As `settle_types`, of a parameter that is kept in fewer bytes.
    pub(super) fn settle_compact_types(
        &mut self,
        of_compact: &OfCompact,
        described: &[Described<'_>],
    ) -> Going<(DType, bool)> {
        let [param, grad, ..] = described else { return Err(LAID_OUT.into()) };
        let reason = match () {
            () if self.rows.is_some() => Some("the gradient is sparse"),
            () if self.whole != Whole::No => Some("its rule looks at tensors whole"),
            () if described.iter().any(|stream| stream.memory.complex) => Some("the parameter is complex"),
            () if let Err(reason) = of_compact.serves(param, grad) => Some(reason),
            () => None,
        };
        if let Some(reason) = reason {
            return Err(reason.into());
        }
        let of_param = param.memory.dtype;
        if !described.iter().enumerate().skip(2).all(|(k, d)| of_compact.takes(k, of_param, d.memory.dtype)) {
            return Err("a state, or what stands beside it, has another dtype than it is kept in".into());
        }
        self.layout = of_compact.fits(described)?.map(Box::new);
        self.memory = described.iter().map(|d| d.memory).collect();
        Ok((param.memory.dtype, false))
    }
}

/// The version of a parameter; `None` if it has none. Asking may run Python code.
///
/// An operation on a DTensor counts there alone, one on its local shard counts there alone: the sum tells of either.
fn version(param: &Bound<'_, PyAny>) -> Option<u64> {
    let py = param.py();
    let of = |object: &Bound<'_, PyAny>| object.getattr(pyo3::intern!(py, "_version"))?.extract::<u64>();
    let own = of(param).ok()?;
    match modules(py).ok()?.torch.dtensors.local(param) {
        None => Some(own),
        Some(local) => of(&local).ok().map(|of_local| own + of_local),
    }
}

/// The version and the address of a parameter that was not looked up; `None` if it has no version or no memory.
fn found(param: &Bound<'_, PyAny>) -> Option<(u64, usize)> {
    let py = param.py();
    let local = modules(py).ok()?.torch.dtensors.local(param);
    let memory = local.as_ref().unwrap_or(param);
    let address = memory.call_method0(pyo3::intern!(py, "data_ptr")).ok()?.extract().ok()?;
    Some((version(param)?, address))
}

/// The version and the address of a parameter; `None` if it has no version. Asking may run Python code.
fn seen(item: &Item, py: Python<'_>) -> Option<(u64, usize)> {
    Some((version(item.param.bind(py))?, item.memory.first().map_or(0, |memory| memory.interval().0)))
}

impl Plan {
    /// What stands beside parameters that somebody changed since the last step is made anew. Returns whether any was
    /// asked: Python code may then have run.
    pub(super) fn notice_edits(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<bool> {
        if !self.fewer.weights.has_companion() {
            return Ok(false);
        }
        let py = optimizer.py();
        let mut any = false;
        for item in self.items.iter().filter(|item| item.route == Route::Native && item.compact.is_some()) {
            any = true;
            let Some(now) = seen(item, py) else { continue };
            let known = self.seen.get(&(item.param.as_ptr() as usize));
            if item.fresh.is_none() && known.is_some_and(|known| *known != now) {
                self.definition.call_method1(py, "weights_changed", (optimizer, &item.param))?;
            }
        }
        Ok(any)
    }

    /// The parameters whose averages this step moves.
    fn with_averages(&self) -> impl Iterator<Item = &Item> {
        let moves = |item: &&Item| item.compact.as_ref().is_some_and(|kept| kept.has_average());
        self.items.iter().filter(|item| item.route == Route::Native).filter(moves)
    }

    /// Has the averages checked that Python will move after the step, if kernels move fewer than in the last one.
    /// Returns whether Python code has run.
    pub(super) fn check_averages(&self, optimizer: &Bound<'_, PyAny>, last: usize) -> PyResult<bool> {
        let fewer = self.fewer.average.is_some() && self.with_averages().count() < last;
        if fewer {
            self.definition.call_method1(optimizer.py(), "check_averages", (optimizer,))?;
        }
        Ok(fewer)
    }

    /// Notes which averages were moved.
    pub(super) fn note_averages(&mut self) {
        if self.fewer.average.is_some() {
            self.averaged = Some(self.with_averages().map(|item| item.param.as_ptr() as usize).collect());
        }
    }

    /// What is drawn for an element of a shard is what is drawn for it in the whole. Returns whether any was asked
    /// where it begins: Python code has run then.
    pub(super) fn place_shards(&mut self, py: Python<'_>) -> PyResult<bool> {
        let mut asked = false;
        for item in self.items.iter_mut().filter(|item| item.route == Route::Native) {
            let (Some(of_compact), Some([of_param, ..])) = (&mut item.compact, item.shards.as_deref()) else {
                continue;
            };
            if !draws(&of_compact.compact) {
                continue;
            }
            let (address, spec) = (item.param.as_ptr() as usize, of_param.spec.as_ptr() as usize);
            let first = match self.firsts.get(&address) {
                Some((known, first)) if *known == spec => *first,
                _ => {
                    asked = true;
                    let first = self.definition.call_method1(py, "first_element", (&item.param,))?.extract(py)?;
                    self.firsts.insert(address, (spec, first));
                    first
                }
            };
            of_compact.compact.noise = of_compact.compact.noise.starting_at(first);
        }
        Ok(asked)
    }

    /// Notes how parameters are kept, for the next step; nothing if none is kept in fewer bytes.
    pub(super) fn note_forms(&mut self, py: Python<'_>) {
        self.steady.forms.clear();
        if self.items.iter().all(|item| item.compact.is_none()) {
            return;
        }
        let mut last: Option<(&Item, Arc<Form>)> = None;
        for item in &self.items {
            let known = item.compact.as_ref().map(|of_compact| {
                let same = last.as_ref().filter(|(other, _)| {
                    let leaf = |item: &Item| item.traced.as_ref().map(|traced| Arc::as_ptr(&traced.leaf));
                    let like = |other: &OfCompact| other.is_like(of_compact);
                    other.rule == item.rule && leaf(other) == leaf(item) && other.compact.as_deref().is_some_and(like)
                });
                let form = match same {
                    Some((_, form)) => form.clone(),
                    None => Arc::new(form_of(py, self.fewer, &self.rules[item.rule as usize].0, item, of_compact)),
                };
                last = Some((item, form.clone()));
                let (compact, param) = (of_compact.compact.clone(), item.param.as_ptr() as usize);
                Box::new(KnownForm { form, compact, param })
            });
            self.steady.forms.push(known);
        }
    }

    /// Notes that a steady step has counted the versions of parameters.
    pub(super) fn note_forms_written(&mut self) {
        if self.fewer.weights.has_companion() {
            for known in self.steady.forms.iter().flatten() {
                if let Some((version, _)) = self.seen.get_mut(&known.param) {
                    *version += 1;
                }
            }
        }
    }

    /// Notes what parameters are after a step.
    pub(super) fn note_weights(&mut self, py: Python<'_>) {
        if self.fewer.weights.has_companion() {
            for item in self.items.iter().filter(|item| item.compact.is_some()) {
                let address = item.param.as_ptr() as usize;
                match seen(item, py) {
                    Some(now) => drop(self.seen.insert(address, now)),
                    None => drop(self.seen.remove(&address)),
                }
            }
        }
    }

    /// Notes what these parameters are now.
    pub(super) fn note_again(&mut self, params: &Bound<'_, PyList>) {
        for param in params {
            let Some(known) = self.seen.get_mut(&(param.as_ptr() as usize)) else { continue };
            *known = found(&param).unwrap_or(*known);
        }
    }

    /// Whether somebody changed this parameter since it was noted last.
    pub(super) fn is_edited(&self, param: &Bound<'_, PyAny>) -> bool {
        let Some(known) = self.seen.get(&(param.as_ptr() as usize)) else { return false };
        found(param).is_some_and(|now| *known != now)
    }

    /// Sets what the settings ask.
    pub(super) fn set_fewer(
        &mut self,
        weights: Option<&str>,
        fair: bool,
        seed: u64,
        kinds: Vec<Vec<(String, KindByName)>>,
        average: Option<f64>,
    ) -> PyResult<()> {
        let weights = match weights {
            None => Weights::Nearest,
            Some("stochastic") => Weights::Fair,
            Some("kahan") => Weights::Kahan,
            Some("residual8") => Weights::Residual8,
            Some("residual16") => Weights::Residual16,
            Some("master") => Weights::Master,
            Some(other) => return Err(PyValueError::new_err(format!("no weights are kept as {other:?}"))),
        };
        self.fewer = Fewer { weights, fair, seed, average };
        self.steady.clear(); // how parameters are kept is looked up anew
        self.kinds = kinds;
        self.seen.clear();
        self.firsts.clear();
        Ok(())
    }
}
