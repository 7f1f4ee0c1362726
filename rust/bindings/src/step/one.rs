//! What the parameters of a group have in common in a steady step.

use std::cell::Cell;
use std::sync::Arc;

use oxistep_kernels::Scalars;
use pyo3::ffi;
use pyo3::prelude::*;
use smallvec::SmallVec;

use crate::memory::dtype::DType;
use crate::memory::stream::Described;
use crate::optimizer::group::Keys;
use crate::optimizer::rule::GroupRule;
use crate::optimizer::traced::Leaf;
use crate::step::fewer::Form;
use crate::step::lists::Counters;
use crate::step::traced::{Inputs, OfCounters, OfGroup};

/// Whether the elements of a tensor lie like those of its parameter, without gaps.
#[inline(always)]
pub(super) fn alike(param: &Described<'_>, tensor: &Described<'_>) -> bool {
    tensor.is_dense
        && tensor.memory.complex == param.memory.complex
        && param.shape.same_sizes(&tensor.shape)
        && param.shape.same_order(&tensor.shape)
}

/// So many states and counters are looked up in this way.
pub(super) const LARGEST_NAMES: usize = 24;
/// Most rules have no more, and room for few is cleared in less time: for a small tensor that is seen.
pub(super) const FEW_NAMES: usize = 6;

/// What the parameters of a group have in common.
pub(super) struct One<'a> {
    pub(super) rule: GroupRule,
    /// The numbers that its parameters share, if a user wrote the rule.
    pub(super) of_group: OfGroup<'a>,
    pub(super) factor: f64,
    pub(super) single_lr: bool,
    /// Which group it is.
    pub(super) index: usize,
    /// What a parameter keeps that is not kept in fewer bytes.
    pub(super) names: Names,
    /// The counters of the last parameter, its dtype, and its counters after the step: mostly those of the next one.
    pub(super) last: Option<(Scalars, DType, Scalars)>,
    /// The program of the last parameter, of which `names` are the names.
    pub(super) leaf: Option<Arc<Leaf>>,
    /// What the last parameter got, if a user wrote the rule.
    pub(super) found: Option<Found>,
    /// Where the last parameter that is kept in fewer bytes has what it keeps.
    pub(super) form: Option<(Arc<Form>, Names)>,
}

/// The sizes of a parameter's dimensions.
type Sizes = SmallVec<[i64; 4]>;

/// With which program and at which counters a parameter came, and which program with which numbers it got.
pub(super) struct Found {
    of: Arc<Leaf>,
    at: Counters<f64>,
    /// Its sizes, if anything depends on them.
    sizes: Option<(Sizes, bool)>,
    pub(super) now: Arc<Leaf>,
    pub(super) inputs: Inputs,
}

impl Found {
    /// Whether another parameter that comes so gets the same.
    #[inline]
    fn is_for(&self, leaf: &Arc<Leaf>, values: &[f64], p: &Described<'_>) -> bool {
        let alike = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits();
        let same_sizes = |(sizes, complex): &(Sizes, bool)| sizes[..] == *p.shape.sizes && *complex == p.memory.complex;
        Arc::ptr_eq(&self.of, leaf)
            && self.at.iter().zip(values).all(alike)
            && self.sizes.as_ref().is_none_or(same_sizes)
    }
}

impl One<'_> {
    /// Finds the program and the numbers of a parameter that comes with these counters; `false` if they are not known.
    #[inline]
    pub(super) fn find(&mut self, values: &[f64], p: &Described<'_>, is_dtensor: bool) -> bool {
        let (Some(leaf), GroupRule::Traced(numbers)) = (&self.leaf, &self.rule) else { return false };
        // parameters of a group nearly always stand at the same step: conditions and numbers are computed once
        if let Some(found) = self.found.as_ref().filter(|found| found.is_for(leaf, values, p)) {
            return !(is_dtensor && found.now.is_whole);
        }
        let of_counters = OfCounters {
            names: &leaf.counters,
            values,
            group: &self.of_group,
            asked: &leaf.asked,
            sizes: p.shape.sizes,
            is_complex: p.memory.complex,
            asked_sizes: Cell::new(false),
        };
        let Some(now) = numbers.known_leaf(&of_counters) else { return false };
        let same_names = now.states == leaf.states && now.counters == leaf.counters;
        if !Arc::ptr_eq(&now, leaf) && (!same_names || (now.is_whole && is_dtensor)) {
            return false;
        }
        let inputs = numbers.inputs(&now.inputs, &of_counters);
        let sizes = of_counters.asked_sizes.get().then(|| (Sizes::from_slice(p.shape.sizes), p.memory.complex));
        self.found = Some(Found { of: leaf.clone(), at: values.into(), sizes, now, inputs });
        !self.of_group.unreadable.get()
    }
}

/// The names of states, then those of counters, as Python's strings, which `Keys` or a [`Form`] keeps alive.
#[derive(Default)]
pub(super) struct Names {
    strings: SmallVec<[*mut ffi::PyObject; LARGEST_NAMES]>,
    pub(super) states: usize,
}

impl Names {
    pub(super) fn of(py: Python<'_>, states: &[&'static str], counters: &[&'static str], keys: &mut Keys) -> Self {
        let strings = states.iter().chain(counters).map(|name| keys.get(py, name).as_ptr()).collect();
        Self { strings, states: states.len() }
    }

    /// Of a parameter that is kept in fewer bytes; the form keeps them alive.
    pub(super) fn of_form(form: &Form) -> Self {
        Self { strings: form.names.iter().map(Py::as_ptr).collect(), states: form.streams }
    }

    pub(super) fn count(&self) -> usize {
        self.strings.len()
    }

    pub(super) fn all(&self) -> &[*mut ffi::PyObject] {
        &self.strings
    }
}
