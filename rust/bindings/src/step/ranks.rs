//! The norm of gradients of which each rank holds a part: this rank's, by where they are summed. What reduces them over
//! ranks is `oxistep/optim/_ranks.py`.

use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyList};

use crate::memory::dtype::{DType, promoted};
use crate::services::norm::Gradients;

/// Over which ranks the gradients of a step are summed, and those that are.
#[derive(Default)]
pub(crate) struct Ranks {
    /// The object in Python.
    reducer: Option<Py<PyAny>>,
    /// For each of the step's DTensors the mesh over which it is summed, none if a replica of it is.
    meshes: Vec<Option<usize>>,
    /// By mesh.
    gradients: Vec<Gradients>,
}

impl Ranks {
    /// Lets go of what was known of a step.
    pub(crate) fn forget(&mut self) {
        self.reducer = None;
        self.meshes.clear();
        self.gradients.iter_mut().for_each(Gradients::clear);
    }

    /// Asks `definition` how the gradients of DTensors with these specifications are summed.
    pub(crate) fn ask(&mut self, definition: &Bound<'_, PyAny>, specs: &[Py<PyAny>]) -> PyResult<()> {
        let py = definition.py();
        self.forget();
        let reducer = definition.call_method1(pyo3::intern!(py, "ranks"), (PyList::new(py, specs)?,))?;
        let shares: Vec<isize> = reducer.getattr(pyo3::intern!(py, "shares"))?.extract()?;
        self.meshes.extend(shares.iter().map(|&share| usize::try_from(share).ok()));
        let meshes = reducer.getattr(pyo3::intern!(py, "meshes"))?.len()?;
        self.gradients.resize_with(meshes.max(self.gradients.len()), Gradients::default);
        self.gradients.truncate(meshes);
        self.reducer = Some(reducer.unbind());
        Ok(())
    }

    /// The gradients that are summed where those of DTensor `spec` are; `None` if another rank counts them.
    pub(crate) fn of(&mut self, spec: u32) -> Option<&mut Gradients> {
        let mesh = self.meshes.get(spec as usize).copied().flatten()?;
        self.gradients.get_mut(mesh)
    }

    /// The norm of all ranks' gradients, and the dtype that it is rounded to. `plain`: those of this rank that are no
    /// shards, `replicas`: the dtype of shards that another rank counts, `others`: what torch measures. `measure` gives
    /// the norm of gradients.
    pub(crate) fn norm(
        &mut self,
        optimizer: &Bound<'_, PyAny>,
        definition: &Bound<'_, PyAny>,
        plain: &mut Gradients,
        replicas: Option<DType>,
        others: &Bound<'_, PyList>,
        mut measure: impl FnMut(&mut Gradients) -> PyResult<f64>,
    ) -> PyResult<(f64, DType)> {
        let py = optimizer.py();
        let norms = PyList::empty(py);
        let mut dtype = promoted(plain.dtype(), replicas);
        for gradients in &mut self.gradients {
            norms.append(PyFloat::new(py, measure(gradients)?))?;
            dtype = promoted(dtype, gradients.dtype());
        }
        let own = measure(plain)?;
        let double = dtype == Some(DType::F64);
        let all = (optimizer, &self.reducer, norms, own, double, others);
        let reduced = definition.call_method1(pyo3::intern!(py, "norm_over_ranks"), all)?;
        let (norm, double): (f64, bool) = reduced.extract()?;
        let dtype = if double { DType::F64 } else { dtype.unwrap_or(DType::F32) };
        Ok((norm, dtype))
    }
}
