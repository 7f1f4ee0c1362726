//! Looking one parameter up, step by step: what it is, what its states are, who updates it.

use oxistep_kernels::Gradients;
use pyo3::prelude::*;

use crate::memory::unfit::Unfit;
use crate::optimizer::group::Keys;
use crate::step::counters::scalars;
use crate::step::described::{Pair, Refused, describe_pair};
use crate::step::fewer::STEP;
use crate::step::item::{Item, Route};
use crate::step::look::{Going, Look, Stop};
use crate::step::matched::{Names, are_absent, states_in};
use crate::step::sparse::take_rows;
use crate::step::traced::{Inputs, Traced};
use crate::whole::adafactor::Whole;

impl Item {
    /// Finds the states and describes all tensors. Makes missing states, but does not store them.
    pub(super) fn look_up<'py>(&mut self, py: Python<'py>, look: &Look<'_, 'py>, keys: &mut Keys) -> PyResult<Route> {
        match self.go_through(py, look, keys) {
            Ok(route) => Ok(route),
            Err(Stop::Torch(reason)) => Ok(Route::Torch(reason)),
            Err(Stop::Raise(error)) => Err(error),
        }
    }

    /// The steps, in an order in which each may end it with a reason of its own.
    fn go_through<'py>(&mut self, py: Python<'py>, look: &Look<'_, 'py>, keys: &mut Keys) -> Going<Route> {
        let shard = self.shards_of_pair(py, look)?;
        let (param, mut grad) = self.pair(py)?;
        let mut pair = describe_pair(look.torch, &param, &grad, false);
        self.refuse_outside(&pair)?;
        // only a gradient that could not be described is asked whether it is sparse
        if pair.is_err() && shard.is_none() && self.takes_rows(look, &param, &grad)? {
            grad = self.grad.bind(py).clone();
            pair = describe_pair(look.torch, &param, &grad, true);
            self.refuse_outside(&pair)?;
        }
        let mut pair = self.accepted(look, pair)?;
        self.whole = Whole::of(look.rule.compiled(), &pair.0, &pair.1)?;

        let mut source = self.plain_entry(py)?;
        let asked = look.tree.map(|tree| tree.get().asked());
        let (leaf, inputs) = self.leaf(py, look, &pair.0, source.as_ref())?.unzip();
        if shard.is_some() && leaf.as_ref().is_some_and(|leaf| leaf.is_whole) {
            return Err("the parameter is a DTensor, and its rule looks at more than single elements".into());
        }
        let names = Names::of(look.rule, leaf.as_deref(), pair.0.shape.sizes.len());
        if asked != look.tree.map(|tree| tree.get().asked()) {
            // the rule was traced: what was described may have changed
            let again = describe_pair(look.torch, &param, &grad, false);
            pair = again.map_err(|refused: Refused| refused.reason())?;
        }
        let missing = leaf.as_ref().map_or_else(Vec::new, |leaf| leaf.missing(source.as_ref()));
        let fewer = look.fewer.of(&pair.0)?;
        let absent =
            leaf.is_none() && (are_absent(names, source.as_ref(), keys)? || fewer.lacks(names, source.as_ref())?);
        if !missing.is_empty() || absent {
            self.first = true;
            if !look.make_states {
                self.traced = leaf.map(|leaf| Box::new(Traced::new(leaf, Inputs::new(), &[])));
                return self.route_before_its_states(look, &pair.0, &pair.1);
            }
            source = Some(self.make_states(look, shard.is_some(), source.as_ref(), (leaf.as_deref(), &missing))?);
            // Python code has run: what was described may have changed
            let again = describe_pair(look.torch, &param, &grad, self.rows.is_some());
            pair = again.map_err(|refused: Refused| refused.reason())?;
        }
        if look.make_states && fewer.lacks_average(source.as_ref())? {
            source = Some(self.make_average(look, shard.is_some(), source.as_ref())?);
            let again = describe_pair(look.torch, &param, &grad, self.rows.is_some());
            pair = again.map_err(|refused: Refused| refused.reason())?;
        }
        self.still_whole(look, &pair)?;

        self.unsure = true; // if one of the next is torch's, a state does not fit
        let (mut states, beside) = states_in(py, source.as_ref(), names.states, keys)?;
        let beside = fewer.beside(beside, source.as_ref())?;
        let average = beside.average.as_ref().and_then(|average| self.average_at_hand(look, average));
        let (average, held) = average.unzip();
        let plain = self.shards_of_states(look, shard.as_ref(), names.states, &states)?;
        let companions = self.shards_beside(look, shard.as_ref(), &beside)?;
        let mut described = self.describe_states(look, pair, names.states, &plain, |k| beside.is_of(k))?;
        let mut compact = fewer.compact(look, &mut described, &beside, &companions, names)?;
        if let (Some(compact), Some(_)) = (&compact, &shard) {
            compact.leave_padding(&mut described);
        }
        if self.rows.is_none() && self.whole == Whole::No {
            compact = fewer.averaged(look, &mut described, average.as_ref(), compact);
        }
        let (dtype, one_dtype) = match &compact {
            None => self.settle_types(look, &described)?,
            Some(compact) => self.settle_compact_types(compact, &described)?,
        };
        states.extend(beside.objects());
        if compact.as_ref().is_some_and(|compact| compact.has_average()) {
            states.extend(beside.average.clone());
            if let (Some(shards), Some(held)) = (&mut self.shards, held.flatten()) {
                shards.push(held);
            }
        }
        self.states = states.into_iter().map(Bound::unbind).collect();
        let counts = compact.as_ref().is_some_and(|compact| compact.counts);
        let names_of_counters = if counts { STEP } else { names.counters };
        let counters = self.read_counters(py, look, source.as_ref(), names_of_counters, keys)?;
        self.compact =
            compact.map(|compact| Box::new(compact.at(look.fewer.seed, (self.group, self.index), &counters)));
        match leaf {
            None => self.scalar_values = scalars(&counters),
            Some(leaf) => self.traced = Some(Box::new(Traced::new(leaf, inputs.unwrap_or_default(), &counters))),
        }
        self.unsure = false;
        Ok(self.settle_unusual(look, dtype, one_dtype))
    }

    /// The objects with the memory of parameter and gradient.
    fn pair<'py>(&self, py: Python<'py>) -> Going<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        match [0, 1].map(|stream| self.tensor(stream).map(|tensor| tensor.bind(py).clone())) {
            [Some(param), Some(grad)] => Ok((param, grad)),
            _ => Err("it has no tensors".into()),
        }
    }

    /// Takes the rows of the gradient, if the rule takes some and the gradient is sparse: `self.grad` then holds their
    /// values.
    fn takes_rows<'py>(
        &mut self,
        look: &Look<'_, 'py>,
        param: &Bound<'py, PyAny>,
        grad: &Bound<'py, PyAny>,
    ) -> Going<bool> {
        if look.rule.gradients() == Gradients::Dense || !matches!(look.torch.raw(grad), Err(Unfit::NoMemory)) {
            return Ok(false);
        }
        let (values, rows) = take_rows(param, grad, look)?;
        (self.grad, self.rows) = (values.unbind(), Some(Box::new(rows)));
        Ok(true)
    }

    /// Ends it if parameter or gradient are no longer what they were before their states were made.
    fn still_whole(&self, look: &Look<'_, '_>, (param, grad): &Pair<'_>) -> Going<()> {
        if Whole::of(look.rule.compiled(), param, grad).as_ref() != Ok(&self.whole) {
            return Err("the parameter or its gradient changed while its states were made".into());
        }
        Ok(())
    }
}
