//! Steps of an optimizer over arrays, one after the other: what one finds out is kept for the next.
//!
//! A step like the last one, which nearly every step is, takes a short way: everything is read afresh and compared with
//! what is known, in one pass that runs no Python code and leaves slices for the kernels. Whatever is out of the
//! ordinary ends it before the first write, and the general step (`arrays.rs`) decides.

use numpy::PyReadwriteArray2;
use oxistep_kernels::norm::Norm;
use oxistep_kernels::pool::Serial;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{MAX_SCALARS, Precision, Scalars, Slice, Step, driver};
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyList};

use crate::error::panicked_over;
use crate::fault;
use crate::memory::dtype::{DType, promoted};
use crate::memory::numpy::array::{Array, Lent};
use crate::optimizer::group::Keys;
use crate::optimizer::rule::ClassRule;
use crate::step::array_guard::ArrayGuard;
use crate::step::array_known::Known;
use crate::step::arrays::{Asked, Taken, take};
use crate::step::structure::Structure;
use crate::threads::with_pool;

/// What an optimizer over arrays knows from its last step. A copy of one knows nothing yet.
#[pyclass(module = "oxistep._core")]
pub(crate) struct ArrayPlan {
    given: Py<PyAny>,
    rule: ClassRule,
    keys: Keys,
    known: Option<Known>,
    /// Whether the last attempt failed at the structure of gradients.
    misfit: bool,
    /// How many steps in a row were none like the last one.
    failures: u32,
    /// Kept for their memory.
    step: Option<Step<'static>>,
    norm: Option<Norm<'static>>,
    after: Vec<(usize, Scalars)>,
}

/// How trying a short step ended: with the norm of all gradients, if it was asked for; or it is none.
type Attempt = Option<Option<f64>>;

/// So many steps that are not like the last one are looked at closely; then one of so many.
const PATIENCE: u32 = 16;

#[pymethods]
impl ArrayPlan {
    /// `rule` is the name of a compiled rule, or the `Tree` of one that a user wrote.
    #[new]
    fn new(rule: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self {
            given: rule.clone().unbind(),
            rule: ClassRule::of(rule)?,
            keys: Keys::default(),
            known: None,
            misfit: true,
            failures: 0,
            step: None,
            norm: None,
            after: Vec::new(),
        })
    }

    /// Takes a step like the last one, if it is one: returns the norm of all gradients, or None if it was not asked
    /// for. Else nothing was changed, and it returns the learning rates that were computed for this step, if any.
    #[pyo3(signature = (optimizer, groups, state, grads, max_grad_norm=None, skip_nonfinite=false))]
    fn again<'py>(
        slf: &Bound<'py, Self>,
        optimizer: &Bound<'py, PyAny>,
        groups: &Bound<'py, PyAny>,
        state: &Bound<'py, PyAny>,
        grads: &Bound<'py, PyAny>,
        max_grad_norm: Option<f64>,
        skip_nonfinite: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let mut plan = borrow(slf)?;
        let plan = &mut *plan;
        let rates = plan.rates(optimizer, groups, state)?;
        if let Some(rates) = &rates {
            let guard = ArrayGuard { max_grad_norm, skip_nonfinite };
            let attempt = plan.attempt((groups, state), rates, guard, |structure, prove| match structure {
                Some(structure) => structure.each(grads.clone(), &mut |grad| prove(grad)),
                None => Ok(false),
            })?;
            if let Some(norm) = attempt {
                return Ok(told(py, norm));
            }
        }
        PyList::new(py, rates.unwrap_or_default()).map(Bound::into_any)
    }

    /// Takes one step in place over arrays, as `step_arrays` does. `given` are the gradients as they came, in whichever
    /// structure; `max_grad_norm` clips all gradients as one vector, `skip_nonfinite` leaves everything as it is if one
    /// is not finite. Returns the norm of all gradients if one of the two is given; why kernels cannot take the step;
    /// else None.
    #[pyo3(signature = (
        groups, lrs, grads, state, new_state, updates=None, given=None, max_grad_norm=None, skip_nonfinite=false
    ))]
    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn step<'py>(
        slf: &Bound<'py, Self>,
        groups: &Bound<'py, PyList>,
        lrs: Vec<Option<f64>>,
        grads: &Bound<'py, PyList>,
        state: &Bound<'py, PyList>,
        new_state: &Bound<'py, PyAny>,
        updates: Option<PyReadwriteArray2<'py, f64>>,
        given: Option<&Bound<'py, PyAny>>,
        max_grad_norm: Option<f64>,
        skip_nonfinite: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let mut plan = borrow(slf)?;
        let plan = &mut *plan;
        let guard = ArrayGuard { max_grad_norm, skip_nonfinite };
        if plan.misfit && plan.known.is_some() && updates.is_none() {
            let rates: Vec<f64> = lrs.iter().map(|lr| lr.unwrap_or(0.0)).collect();
            let both = (groups.as_any(), state.as_any());
            let attempt = plan.attempt(both, &rates, guard, |_, prove| {
                for list in grads.iter() {
                    let Ok(list) = list.cast_into::<PyList>() else { return Ok(false) };
                    for i in 0..list.len() {
                        if !prove(list.get_item(i)?)? {
                            return Ok(false);
                        }
                    }
                }
                Ok(true)
            })?;
            if let Some(norm) = attempt {
                return Ok(told(py, norm));
            }
        }
        let asked = Asked { groups, lrs: &lrs, grads, state, new_state, guard };
        plan.known = None;
        match take(&plan.rule, &mut plan.keys, &asked, updates)? {
            Ok(taken) => {
                let norm = taken.norm;
                plan.learn(&asked, taken, given);
                Ok(told(py, norm))
            }
            Err(reason) => Ok(reason.into_pyobject(py)?.into_any()),
        }
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<(Py<PyAny>, (Py<PyAny>,))> {
        let given = slf.try_borrow()?.given.clone_ref(slf.py());
        Ok((slf.get_type().into_any().unbind(), (given,)))
    }

    // A learning rate that is a function may lead back to its optimizer: Python's collector must see the way.
    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.given)?;
        if let ClassRule::Traced(tree) = &self.rule {
            visit.call(tree)?;
        }
        self.known.as_ref().map_or(Ok(()), |known| known.visit(&visit))
    }

    fn __clear__(&mut self) {
        self.known = None;
    }
}

/// What Python hears of a norm.
fn told(py: Python<'_>, norm: Option<f64>) -> Bound<'_, PyAny> {
    norm.map_or_else(|| py.None().into_bound(py), |norm| PyFloat::new(py, norm).into_any())
}

fn borrow<'p>(slf: &'p Bound<'_, ArrayPlan>) -> PyResult<PyRefMut<'p, ArrayPlan>> {
    slf.try_borrow_mut().map_err(|_| {
        PyRuntimeError::new_err(
            "this optimizer is taking a step already: in another thread, or further up this call stack. Give each \
             thread its own optimizer, or hold a lock around step()",
        )
    })
}

impl ArrayPlan {
    /// The learning rates of this step, where nothing but them may have changed: none if they did not either. May run
    /// Python code.
    fn rates<'py>(
        &mut self,
        optimizer: &Bound<'py, PyAny>,
        groups: &Bound<'py, PyAny>,
        state: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Vec<f64>>> {
        let py = groups.py();
        let Some(known) = &mut self.known else { return Ok(None) };
        let compute = |lr: Bound<'py, PyAny>, g: usize| {
            let rate = optimizer.call_method1(pyo3::intern!(py, "_oxistep_learning_rate"), (lr, g))?;
            rate.extract::<f64>()
        };
        let Some((rates, changed)) = known.rates((groups, state), &mut self.keys, compute)? else { return Ok(None) };
        if changed {
            optimizer.setattr(pyo3::intern!(py, "_oxistep_rates"), PyList::new(py, &rates)?)?;
        }
        Ok(Some(rates))
    }

    /// Takes a step like the last one, if it is one. `each` calls back with each gradient.
    fn attempt<'py>(
        &mut self,
        both: (&Bound<'py, PyAny>, &Bound<'py, PyAny>),
        rates: &[f64],
        guard: ArrayGuard,
        each: impl FnOnce(Option<&Structure>, &mut dyn FnMut(Bound<'py, PyAny>) -> PyResult<bool>) -> PyResult<bool>,
    ) -> PyResult<Attempt> {
        let py = both.0.py();
        let (ClassRule::Compiled(kind), Some(known)) = (&self.rule, &mut self.known) else { return Ok(None) };
        fault::point("short step")?;
        let mut last = true;
        let proved = known.prove(both, (*kind, rates), &mut self.keys, |structure, prove| {
            each(structure, &mut |grad| {
                last = prove(grad)?;
                Ok(last)
            })
        });
        // where no gradient was what stood in the way it may be the structure
        self.misfit = last && matches!(proved, Ok(false));
        let done = match proved {
            Ok(true) => self.write(py, guard),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        if let Some(known) = &mut self.known {
            known.settled.give_back();
        }
        match done {
            Ok(Some(_)) => self.failures = 0,
            Ok(None) => self.failures = self.failures.saturating_add(1),
            Err(_) => self.known = None,
        }
        done
    }

    /// Takes the step that was proved to be like the last one. `None`, and nothing is written, if a counter does not
    /// stand where counting leads.
    fn write(&mut self, py: Python<'_>, guard: ArrayGuard) -> PyResult<Attempt> {
        let Self { known, step, norm, after, .. } = self;
        let Some(known) = known else { return Ok(None) };
        let Known { of_groups, settled, group_of_set, .. } = known;
        // told before slices are lent: the interpreter may be released below
        let _active = (settled.elements() >= driver::SERIAL).then(|| settled.start(py));
        after.clear();
        let mut now: Step<'_> = step.take().unwrap_or_default().recycle();
        let mut gradients: Option<Norm<'_>> = guard.measures().then(|| norm.take().unwrap_or_default().recycle());
        // whose constants were registered last: of a group without counters, or at which counters
        let (mut plain, mut last): (Option<usize>, Option<(usize, Scalars, Scalars)>) = (None, None);
        let (mut fits, mut dtype) = (true, None);
        for (k, counters, Lent { tensors, of_gradient, .. }) in settled.each() {
            let g = group_of_set[k];
            let (rule, factor) = of_groups[g].rule();
            if counters.is_empty() {
                if plain != Some(g) {
                    now.constants(rule.constants(&mut scalars(&[]), false));
                    (plain, last) = (Some(g), None);
                }
            } else {
                let before = scalars(counters);
                let scalars = match last {
                    Some((of, known, scalars)) if of == g && known == before => scalars,
                    _ => {
                        let mut scalars = before;
                        fits &= before.is_counted();
                        now.constants(rule.constants(&mut scalars, false));
                        (plain, last) = (None, Some((g, before, scalars)));
                        scalars
                    }
                };
                after.push((k, scalars));
            }
            if let Some(gradients) = &mut gradients {
                gradients.push(tensors.grad, of_gradient);
                dtype = promoted(dtype, Some(dtype_of(&tensors.grad)));
            }
            fits &= now.push(tensors, *factor).is_ok();
        }
        if !fits {
            *step = Some(now.recycle());
            return Ok(None);
        }
        let verdict = guard.judge(py, gradients.as_mut(), dtype.into_iter())?;
        *norm = gradients.map(Norm::recycle);
        if verdict.skip {
            *step = Some(now.recycle());
            return Ok(Some(verdict.norm));
        }
        if verdict.factor != 1.0 {
            now.scale_gradients(verdict.factor);
        }
        let level = Level::current();
        let done = if now.elements() < driver::SERIAL {
            now.run(&Serial, level) // as it would with any pool, which would have to be asked for
        } else {
            py.detach(|| with_pool(|pool| now.run(pool, level)))
        };
        *step = Some(now.recycle());
        for (k, scalars) in after.iter() {
            let mut values = [0.0; MAX_SCALARS];
            values.iter_mut().enumerate().for_each(|(i, value)| *value = scalars.get(i));
            settled.set_counters(*k, &values);
        }
        match done {
            Ok(()) => Ok(Some(verdict.norm)),
            Err(panic) => Err(panicked_over(&*panic, PyList::new(py, known.params(py).collect::<Vec<_>>())?)),
        }
    }

    /// Remembers what a general step found out.
    fn learn(&mut self, asked: &Asked<'_, '_>, taken: Taken<'_>, given: Option<&Bound<'_, PyAny>>) {
        let worth_it = self.failures < PATIENCE || self.failures.is_multiple_of(PATIENCE);
        self.known = if worth_it { Known::of(asked, taken, given) } else { None };
    }
}

/// The counters of a parameter.
#[inline]
fn scalars(counters: &[Array]) -> Scalars {
    let (mut values, mut precisions) = ([0.0; MAX_SCALARS], [Precision::F64; MAX_SCALARS]);
    for ((value, precision), counter) in values.iter_mut().zip(&mut precisions).zip(counters) {
        *value = counter.number();
        *precision = counter.form.number.float().map_or(Precision::F64, DType::precision);
    }
    Scalars::new(values, precisions)
}

fn dtype_of(slice: &Slice<'_>) -> DType {
    match slice {
        Slice::F64(_) => DType::F64,
        Slice::F16(_) => DType::F16,
        _ => DType::F32,
    }
}
