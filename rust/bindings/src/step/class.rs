//! What Python sees of a plan.

use numpy::PyReadwriteArray2;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::optimizer::dicts::FOREIGN_DICT;
use crate::optimizer::rule::ClassRule;
use crate::step::fewer::KindByName;
use crate::step::guard::Guard;
use crate::step::item::Route;
use crate::step::plan::Plan;
use crate::step::watch::Watch;

/// For each parameter (group, index, path, reason), path being "native", "torch" or "skipped".
type Rows = Vec<(u32, u32, &'static str, String)>;

#[pymethods]
impl Plan {
    #[new]
    fn new(rule: &Bound<'_, PyAny>, definition: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::of(ClassRule::of(rule)?, definition)
    }

    /// Takes one step of `optimizer`: natively where possible, the rest through the definition's `torch_step`. Returns
    /// the norm of all gradients if `max_grad_norm` or `skip_nonfinite` is given. `unscale` is called when all has been
    /// checked. `has_group`: the norm is summed over ranks also of what is no DTensor.
    #[pyo3(signature = (optimizer, max_grad_norm=None, skip_nonfinite=false, unscale=None, has_group=false))]
    fn step<'py>(
        slf: &Bound<'py, Self>,
        optimizer: &Bound<'py, PyAny>,
        max_grad_norm: Option<f64>,
        skip_nonfinite: bool,
        unscale: Option<&Bound<'py, PyAny>>,
        has_group: bool,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut plan = slf.try_borrow_mut().map_err(|_| {
            PyRuntimeError::new_err(
                "this optimizer is taking a step already: in another thread, or further up this call stack. \
                 Give each thread its own optimizer, or hold a lock around step()",
            )
        })?;
        let guard = Guard { max_grad_norm, skip_nonfinite, unscale, has_group };
        plan.joined = !guard.measures();
        let result = plan.take_step(optimizer, &guard);
        plan.forget(slf.py());
        plan.answers.clear(); // of this step alone
        if result.is_err() && !plan.joined {
            // the error that comes is this rank's own
            drop(plan.definition.call_method1(slf.py(), pyo3::intern!(slf.py(), "call_off"), (optimizer,)));
        }
        result
    }

    /// Says how parameters of half types are kept, whether second moments in bfloat16 are rounded with fair odds beside
    /// them, the seed of what is drawn, what the states of a traced rule are, by name, group by group, and how far the
    /// averages of parameters move towards them. Forgets what parameters were after the last step.
    #[pyo3(signature = (weights=None, fair=false, seed=0, kinds=Vec::new(), average=None))]
    fn keep(
        &mut self,
        weights: Option<&str>,
        fair: bool,
        seed: u64,
        kinds: Vec<Vec<(String, KindByName)>>,
        average: Option<f64>,
    ) -> PyResult<()> {
        self.set_fewer(weights, fair, seed, kinds, average)
    }

    /// Says how far the averages of parameters move towards them in the next step.
    fn average(&mut self, weight: f64) {
        self.fewer.average = Some(weight);
    }

    /// How many averages the last step moved; `None`: there was no step.
    fn averaged(&self) -> Option<usize> {
        self.averaged.as_ref().map(Vec::len)
    }

    /// The ids of their parameters.
    fn averaged_ids(&self) -> Vec<usize> {
        self.averaged.clone().unwrap_or_default()
    }

    /// Notes what parameters are now: somebody changed them, and changed them back.
    fn note(&mut self, params: &Bound<'_, PyList>) {
        self.note_again(params);
    }

    /// Whether somebody changed a parameter since the last step, or since it was noted.
    /// (Not in a step, which has seen to it.)
    fn edited(slf: &Bound<'_, Self>, param: &Bound<'_, PyAny>) -> bool {
        slf.try_borrow().is_ok_and(|plan| plan.is_edited(param))
    }

    /// Why the next step is torch's as a whole, if it is.
    fn because(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
        if !self.is_torchs(optimizer)? {
            return Ok(None);
        }
        let overridden = self.definition.call_method1(optimizer.py(), "overridden", (optimizer,))?;
        let reason = overridden.extract::<Option<String>>(optimizer.py())?;
        Ok(Some(reason.unwrap_or_else(|| FOREIGN_DICT.to_owned())))
    }

    /// What became of each parameter that had a gradient in the last step, if that was this plan's.
    fn last(&self) -> Option<Rows> {
        let told = |(group, index, route, is_dtensor): &(u32, u32, Route, bool)| {
            let (path, reason) = route.told(*is_dtensor);
            (*group, *index, path, reason)
        };
        self.last.as_ref().map(|last| last.iter().map(told).collect())
    }

    /// What would become of each parameter in a step now.
    fn explain(&mut self, optimizer: &Bound<'_, PyAny>) -> PyResult<Rows> {
        let skipped = self.survey(optimizer, false)?;
        let mut lines: Vec<_> =
            skipped.into_iter().map(|(g, i)| (g, i, "skipped", "it has no gradient".into())).collect();
        for item in &self.items {
            let (path, reason) = item.route.told(item.spec.is_some());
            lines.push((item.group, item.index, path, reason));
        }
        lines.sort();
        self.forget(optimizer.py());
        Ok(lines)
    }

    /// From now on tells `watcher` (`None`: nobody) of each step, before it writes, which parameters kernels will not
    /// measure.
    #[pyo3(signature = (watcher=None))]
    fn watch(&mut self, watcher: Option<Py<PyAny>>) {
        self.watch = watcher.map(|watcher| Box::new(Watch::new(watcher)));
    }

    /// Writes what kernels measured in the last step into `out`, see `Watch::report`.
    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn updates(&self, out: PyReadwriteArray2<'_, f64>, starts: Vec<usize>) -> PyResult<bool> {
        self.watch.as_ref().map_or(Ok(false), |watch| watch.report(out, &starts))
    }

    // A parameter may lead back to its optimizer (through a hook, say): Python's collector must see the way.
    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.definition)?;
        self.methods.iter().try_for_each(|(_, method)| visit.call(method))?;
        if let ClassRule::Traced(tree) = &self.rule {
            visit.call(tree)?; // which leads to what the function of the rule knows
        }
        self.watch.as_ref().map_or(Ok(()), |watch| visit.call(&watch.watcher))?;
        self.specs.iter().chain(self.steady.specs()).try_for_each(|spec| visit.call(spec))?;
        self.versions.as_ref().map_or(Ok(()), |versions| versions.visit(&visit))
    }

    fn __clear__(&mut self) {
        self.versions = None;
        self.watch = None;
        self.specs.clear();
        self.steady.clear();
    }
}
