//! NumPy arrays: the only place where a pointer of NumPy's becomes a slice.
//!
//! The numpy crate checks dtype and writability, and keeps account of what is borrowed, so that arrays which share
//! elements are refused. Everything is checked, over all groups, before the first write.
#![allow(unsafe_code)]

use numpy::npyffi::{NpyTypes, PY_ARRAY_API, get_type_object};
use numpy::{BorrowError, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use numpy::{PyReadwriteArray2, PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use oxistep_kernels::driver::{Measured, Moved};
use oxistep_kernels::overlap::Written;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{
    AnyRule, Kind, Layout, MAX_SCALARS, MAX_STATES, Precision, STREAMS, Scalars, Slice, SliceMut, Step, Tensors,
    driver, f16,
};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;
use pyo3::types::{PyDict, PyList};

use crate::collector::CollectorRests;
use crate::error::panicked_over;
use crate::fault;
use crate::group::{Group, Keys};
use crate::keys::has_plain_keys;
use crate::threads::with_pool;

/// The names of the state arrays that `rule` keeps with the hyperparameters of `group`.
#[pyfunction]
pub(crate) fn rule_states(rule: &str, group: &Bound<'_, PyDict>) -> PyResult<Vec<&'static str>> {
    let mut keys = Keys::default();
    let (rule, _) =
        Group { values: group, keys: &mut keys, lr: Some(0.0), single_lr: false, foreign: false }.read(kind(rule)?)?;
    Ok(rule.states().to_vec())
}

/// Takes one step in place over arrays.
///
/// `groups` are param groups with arrays under "params"; `lrs` has one learning rate, and `grads` and `state` one list,
/// per group, with one entry per parameter; a gradient of None skips its parameter. `new_state(array, group)` makes the
/// states of a parameter that has none yet. The norms of update, parameter and gradient go into the rows of `updates`, if
/// there is one: a row for each parameter of all groups, NaN for those without a gradient.
#[pyfunction]
#[pyo3(signature = (rule, groups, lrs, grads, state, new_state, updates=None))]
pub(crate) fn step_arrays(
    rule: &str,
    groups: &Bound<'_, PyList>,
    lrs: Vec<f64>,
    grads: &Bound<'_, PyList>,
    state: &Bound<'_, PyList>,
    new_state: &Bound<'_, PyAny>,
    updates: Option<PyReadwriteArray2<'_, f64>>,
) -> PyResult<()> {
    let py = groups.py();
    let kind = kind(rule)?;
    let mut keys = Keys::default();
    let mut items = Vec::new();
    let mut rules = Vec::new();
    let (mut rows, mut first_row) = (Vec::new(), 0);
    same_length("lrs", lrs.len(), "param_groups", groups.len())?;
    same_length("grads", grads.len(), "param_groups", groups.len())?;
    same_length("state", state.len(), "param_groups", groups.len())?;

    for (g, lr) in lrs.into_iter().enumerate() {
        let values = groups.get_item(g)?.cast_into::<PyDict>()?;
        let params = list(values.get_item("params")?, "param_groups[...]['params']")?;
        let (grads, states) = (list(Some(grads.get_item(g)?), "grads")?, list(Some(state.get_item(g)?), "state")?);
        same_length(&format!("grads[{g}]"), grads.len(), "its params", params.len())?;
        same_length(&format!("state[{g}]"), states.len(), "its params", params.len())?;
        let rule =
            Group { values: &values, keys: &mut keys, lr: Some(lr), single_lr: false, foreign: false }.read(kind)?;
        rules.push(rule);
        for (i, ((param, grad), entry)) in params.iter().zip(&grads).zip(&states).enumerate() {
            if grad.is_none() {
                continue;
            }
            fault::point("array")?;
            let name = name_of(&values, groups.len(), g, i)?;
            let entry = entry.cast_into::<PyDict>()?;
            let look = Look { name, rule: &rule.0, values: &values, new_state, keys: &mut keys };
            items.push((g, look.item(&param, &grad, entry)?));
            rows.push(first_row + i);
        }
        first_row += params.len();
    }
    let rests = CollectorRests::new(py);
    check_unchanged(&items)?;
    let mut measuring = updates.map(|out| Measuring::new(out, first_row)).transpose()?;
    let set_apart = overlapping_extents(&items);
    refuse_shared_elements(&items, &set_apart)?;
    // storing new states, below, must not run Python code: these are what they were when they were looked at
    if let Some((_, item)) = items.iter().find(|(_, item)| item.fresh.is_some() && !has_plain_keys(&item.entry)) {
        return Err(strange_keys(&item.name));
    }
    let mut copies: Vec<Copies> = items.iter().map(|_| Copies::default()).collect();
    for ((_, item), copies) in
        items.iter().zip(&mut copies).zip(&set_apart).filter(|(_, apart)| **apart).map(|(x, _)| x)
    {
        copies.fill(item);
    }

    let mut advanced = Vec::with_capacity(items.len());
    let mut step = Step::default();
    for ((g, item), copies) in items.iter().zip(&mut copies) {
        let (rule, factor) = &rules[*g];
        let mut scalars = item.scalar_values;
        step.constants(rule.constants(&mut scalars, item.first));
        advanced.push(scalars);
        let tensors = if copies.in_use() {
            copies.tensors()
        } else {
            // SAFETY: the items hold the numpy crate's borrows of all their arrays until this function returns, which
            // are exclusive for what is written; extents of arrays that lie between each other's elements were set
            // apart, so the slices do not overlap. The arrays are kept alive by the borrows, and `check_unchanged` found
            // their memory where it was after the last Python code of this thread ran: the collector rests, and storing
            // states under keys that are strings runs none. That other threads do not resize arrays of a step under way is
            // left to the caller.
            unsafe { item.tensors() }
        };
        fault::point("push array")?;
        let pushed = step.push(tensors, *factor);
        pushed.map_err(|refused| PyRuntimeError::new_err(format!("oxistep: {refused}; this is a defect")))?;
        if let Some(measuring) = &mut measuring {
            measuring.measured.pushed(&step);
        }
    }
    store_fresh_states(&items)?;
    let small = step.elements() < driver::SERIAL;
    drop(rests);
    let mut measured = measuring.as_mut().map(|measuring| &mut measuring.measured);
    let mut run = || {
        with_pool(|pool| match &mut measured {
            None => step.run(pool, Level::current()),
            Some(measured) => step.run_measured(measured, pool, Level::current()),
        })
    };
    let done = if small { run() } else { py.detach(&mut run) };
    drop(step);
    if let Some(measuring) = &mut measuring {
        measuring.report(&rows);
    }
    for (((_, item), copies), scalars) in items.iter_mut().zip(&copies).zip(&advanced) {
        copies.write_back(item);
        item.scalars.iter_mut().enumerate().for_each(|(k, scalar)| scalar.set(scalars.get(k)));
    }
    let Err(panic) = done else { return Ok(()) };
    Err(panicked_over(&*panic, PyList::new(py, items.iter().map(|(_, item)| &item.watched[0].0))?))
}

/// Puts states made for this step where they are kept: all or, if that fails, none. No array is touched.
fn store_fresh_states(items: &[(usize, Item<'_>)]) -> PyResult<()> {
    let mut stored = Vec::new();
    for (_, item) in items {
        let (Some(fresh), entry) = (&item.fresh, &item.entry) else { continue };
        let store = || {
            let before = entry.copy()?;
            fault::point("store")?;
            entry.update(fresh.as_mapping())?;
            PyResult::Ok((entry, before))
        };
        match store() {
            Ok(done) => stored.push(done),
            Err(error) => {
                for (entry, before) in stored {
                    entry.clear();
                    entry.update(before.as_mapping())?;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Whether all arrays are what they were when they were borrowed: making states runs Python code.
fn check_unchanged(items: &[(usize, Item<'_>)]) -> PyResult<()> {
    for (_, item) in items {
        if item.watched.iter().any(|(array, view)| !is_unchanged(array, view)) {
            return Err(PyRuntimeError::new_err(format!(
                "an array of {} (the parameter, its gradient or a state) was reshaped or resized while this step was under \
                 way; nothing was updated",
                item.name
            )));
        }
    }
    Ok(())
}

/// Whether an array is what it was when this view of it was borrowed.
pub(crate) fn is_unchanged(array: &Bound<'_, PyUntypedArray>, view: &Bound<'_, PyUntypedArray>) -> bool {
    array.shape() == view.shape() && array.strides() == view.strides() && data(array) == data(view)
}

/// The address of an array's first element.
fn data(array: &Bound<'_, PyUntypedArray>) -> usize {
    // SAFETY: the object is an array, which the reference keeps alive.
    unsafe { (*array.as_array_ptr()).data as usize }
}

/// The array's memory under an object that nobody else has: what other code does to the array's shape, in this thread or
/// another, changes neither what was checked nor the numpy crate's account of what is borrowed.
fn private_view<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyAny>> {
    let py = array.py();
    // SAFETY: NumPy's function takes an array, null for its own dtype, and a class; it returns a new reference, or null and
    // an exception.
    unsafe {
        let class = get_type_object(py, NpyTypes::PyArray_Type);
        let view = PY_ARRAY_API.PyArray_View(py, array.as_array_ptr(), std::ptr::null_mut(), class);
        Bound::from_owned_ptr_or_err(py, view)
    }
}

/// Where a step that measures itself puts what it finds.
struct Measuring<'py> {
    out: PyReadwriteArray2<'py, f64>,
    measured: Measured,
}

impl<'py> Measuring<'py> {
    fn new(out: PyReadwriteArray2<'py, f64>, rows: usize) -> PyResult<Self> {
        if out.shape() != [rows, 3] || !out.is_c_contiguous() {
            return Err(PyValueError::new_err(format!("updates must be contiguous and have the shape ({rows}, 3)")));
        }
        Ok(Self { out, measured: Measured::default() })
    }

    fn report(&mut self, rows: &[usize]) {
        let all = self.out.as_slice_mut().unwrap_or_default();
        all.fill(f64::NAN);
        for (&row, Moved { update, param, grad }) in rows.iter().zip(self.measured.moved()) {
            all[3 * row..3 * row + 3].copy_from_slice(&[update.sqrt(), param.sqrt(), grad.sqrt()]);
        }
    }
}

fn kind(rule: &str) -> PyResult<Kind> {
    let known = || PyValueError::new_err(format!("unknown rule {rule:?}; there are {}", Kind::NAMES.join(", ")));
    Kind::from_name(rule).ok_or_else(known)
}

fn list<'py>(object: Option<Bound<'py, PyAny>>, what: &str) -> PyResult<Bound<'py, PyList>> {
    let wrong = || PyTypeError::new_err(format!("{what} must be a list"));
    object.ok_or_else(wrong)?.cast_into::<PyList>().map_err(|_| wrong())
}

fn same_length(what: &str, got: usize, as_what: &str, expected: usize) -> PyResult<()> {
    if got == expected {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("{what} has {got} entries, expected {expected}, one for each of {as_what}")))
}

/// What an error calls a parameter.
fn name_of(values: &Bound<'_, PyDict>, groups: usize, g: usize, i: usize) -> PyResult<String> {
    if let Some(names) = values.get_item("param_names")? {
        return Ok(format!("params[{}]", names.get_item(i)?.repr()?));
    }
    Ok(if groups == 1 { format!("params[{i}]") } else { format!("param_groups[{g}]['params'][{i}]") })
}

/// An array borrowed for reading or writing.
pub(crate) enum Lent<R, W> {
    Read(R),
    Write(W),
}

macro_rules! dtypes {
    ($($Variant:ident($t:ty)),*) => {
        /// An array of one of the dtypes that kernels serve, borrowed for reading or writing.
        pub(crate) enum Array<'py> {
            $($Variant(Lent<PyReadonlyArrayDyn<'py, $t>, PyReadwriteArrayDyn<'py, $t>>),)*
        }

        impl<'py> Array<'py> {
            /// Borrows `array`; `None` if its dtype is not served.
            fn borrow(array: &Bound<'py, PyAny>, write: bool) -> Option<Result<Self, BorrowError>> {
                $(if let Ok(array) = array.cast::<PyArrayDyn<$t>>() {
                    return Some(if write {
                        array.try_readwrite().map(|array| Self::$Variant(Lent::Write(array)))
                    } else {
                        array.try_readonly().map(|array| Self::$Variant(Lent::Read(array)))
                    });
                })*
                None
            }

            pub(crate) fn untyped(&self) -> &Bound<'py, PyUntypedArray> {
                match self { $(
                    Self::$Variant(Lent::Read(array)) => array.as_untyped(),
                    Self::$Variant(Lent::Write(array)) => array.as_untyped(),
                )* }
            }

            fn address(&self) -> usize {
                match self { $(
                    Self::$Variant(Lent::Read(array)) => array.data() as usize,
                    Self::$Variant(Lent::Write(array)) => array.data() as usize,
                )* }
            }

            /// # Safety
            /// The borrow is held for all of `'a`, and no slice that is written overlaps this one.
            pub(crate) unsafe fn slice<'a>(&self, extent: Extent) -> Slice<'a> {
                match self { $(
                    Self::$Variant(_) if extent.len == 0 => Slice::$Variant(&[]),
                    Self::$Variant(_) => {
                        // SAFETY: the extent follows from the array's own shape and strides; alignment was checked
                        // when the array was accepted; lifetime and aliasing by contract.
                        Slice::$Variant(unsafe { std::slice::from_raw_parts(extent.first as *const $t, extent.len) })
                    }
                )* }
            }

            /// # Safety
            /// The borrow is for writing and held for all of `'a`, and no other slice overlaps this one.
            unsafe fn slice_mut<'a>(&self, extent: Extent) -> SliceMut<'a> {
                match self { $(
                    Self::$Variant(_) if extent.len == 0 => SliceMut::$Variant(&mut []),
                    Self::$Variant(_) => {
                        let (first, len) = (extent.first as *mut $t, extent.len);
                        // SAFETY: as in `slice`.
                        SliceMut::$Variant(unsafe { std::slice::from_raw_parts_mut(first, len) })
                    }
                )* }
            }

            /// The address of every element.
            fn addresses(&self) -> Box<dyn Iterator<Item = usize> + '_> {
                match self { $(
                    Self::$Variant(Lent::Read(array)) => {
                        Box::new(array.as_array().into_iter().map(|element| std::ptr::from_ref(element) as usize))
                    }
                    Self::$Variant(Lent::Write(array)) => {
                        Box::new(array.as_array().into_iter().map(|element| std::ptr::from_ref(element) as usize))
                    }
                )* }
            }

            /// A copy of the elements in logical order.
            fn to_buffer(&self) -> Buffer {
                match self { $(
                    Self::$Variant(Lent::Read(array)) => Buffer::$Variant(array.as_array().iter().copied().collect()),
                    Self::$Variant(Lent::Write(array)) => Buffer::$Variant(array.as_array().iter().copied().collect()),
                )* }
            }

            /// Writes the elements of a copy back.
            fn assign(&mut self, buffer: &Buffer) {
                match (self, buffer) {
                    $((Self::$Variant(Lent::Write(array)), Buffer::$Variant(buffer)) => {
                        array.as_array_mut().iter_mut().zip(buffer).for_each(|(to, from)| *to = *from);
                    })*
                    _ => {}
                }
            }
        }

        /// A copy of an array whose elements lie between those of another.
        enum Buffer {
            $($Variant(Vec<$t>),)*
        }

        impl Buffer {
            fn slice(&self) -> Slice<'_> {
                match self { $(Self::$Variant(buffer) => Slice::$Variant(buffer),)* }
            }
            fn slice_mut(&mut self) -> SliceMut<'_> {
                match self { $(Self::$Variant(buffer) => SliceMut::$Variant(buffer),)* }
            }
        }
    };
}
dtypes!(F64(f64), F32(f32), F16(f16));

/// A scalar state.
enum Scalar<'py> {
    Single(PyReadwriteArrayDyn<'py, f32>),
    Double(PyReadwriteArrayDyn<'py, f64>),
}

impl Scalar<'_> {
    fn get(&self) -> Option<f64> {
        match self {
            Self::Single(array) => array.as_array().first().map(|&x| f64::from(x)),
            Self::Double(array) => array.as_array().first().copied(),
        }
    }

    fn set(&mut self, x: f64) {
        match self {
            Self::Single(array) => array.as_array_mut().iter_mut().for_each(|to| *to = x as f32),
            Self::Double(array) => array.as_array_mut().iter_mut().for_each(|to| *to = x),
        }
    }
}

/// Where an array lies: from its lowest to its highest element.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    /// Address of the lowest element.
    first: usize,
    /// Elements from lowest to highest, gaps counted.
    len: usize,
    /// Place of the array's first element among them.
    start: usize,
}

/// One parameter with a gradient, checked and borrowed.
struct Item<'py> {
    name: String,
    first: bool,
    /// Parameter, gradient, states.
    arrays: Vec<Array<'py>>,
    extents: Vec<Extent>,
    layout: Option<Layout>,
    scalars: Vec<Scalar<'py>>,
    scalar_values: Scalars,
    entry: Bound<'py, PyDict>,
    fresh: Option<Bound<'py, PyDict>>,
    /// The arrays as they were given, the parameter first, each with the view that was borrowed instead.
    watched: Vec<(Bound<'py, PyUntypedArray>, Bound<'py, PyUntypedArray>)>,
}

/// What checking a parameter needs to know.
struct Look<'a, 'py> {
    name: String,
    rule: &'a AnyRule,
    values: &'a Bound<'py, PyDict>,
    new_state: &'a Bound<'py, PyAny>,
    keys: &'a mut Keys,
}

impl<'py> Look<'_, 'py> {
    fn item(
        self,
        param: &Bound<'py, PyAny>,
        grad: &Bound<'py, PyAny>,
        entry: Bound<'py, PyDict>,
    ) -> PyResult<Item<'py>> {
        let py = param.py();
        let name = self.name.as_str();
        let (names, scalar_names) = (self.rule.states(), self.rule.scalars());
        let param_array = accept(param, name, true)?;
        let grad_name = format!("the gradient of {name}");
        if !has_plain_keys(&entry) {
            return Err(strange_keys(name));
        }
        // the state is made before the gradient is borrowed, which may be what `new_state` looks at
        plain(grad, &grad_name)?;
        let absent = match (names.first(), scalar_names.is_empty()) {
            (None, _) => false,
            (Some(buffer), true) => entry.get_item(buffer)?.is_none_or(|value| value.is_none()),
            (Some(_), false) => entry.is_empty(),
        };
        let fresh = if absent {
            fault::point("make arrays")?;
            Some(self.new_state.call1((param, self.values))?.cast_into::<PyDict>()?)
        } else {
            None
        };
        let source = fresh.as_ref().unwrap_or(&entry);
        if !has_plain_keys(source) {
            return Err(strange_keys(name));
        }

        let dtype = |object: &Bound<'py, PyAny>| PyResult::Ok(object.cast::<PyUntypedArray>()?.dtype());
        let same_dtype = |what: &str, object: &Bound<'py, PyAny>| {
            let (got, expected) = (dtype(object)?, dtype(param)?);
            if got.is_equiv_to(&expected) {
                return Ok(());
            }
            Err(PyTypeError::new_err(format!(
                "{what} has dtype {got}, expected {expected} like {name}: convert it with .astype({expected})"
            )))
        };
        let same_shape = |what: &str, object: &Bound<'py, PyAny>| {
            let (got, expected) = (object.cast::<PyUntypedArray>()?, param.cast::<PyUntypedArray>()?);
            if got.shape() == expected.shape() {
                return Ok(());
            }
            Err(PyValueError::new_err(format!(
                "{what} has shape {}, expected {} like {name}",
                tuple(got.shape()),
                tuple(expected.shape())
            )))
        };

        same_dtype(&grad_name, grad)?;
        same_shape(&grad_name, grad)?;
        let mut arrays = vec![param_array, accept(grad, &grad_name, false)?];
        let mut given = vec![param.clone(), grad.clone()];
        for state_name in names {
            let what = format!("state {state_name:?} of {name}");
            let state = source.get_item(self.keys.get(py, state_name))?.ok_or_else(|| {
                PyValueError::new_err(format!("{what} is missing: load a state dict that has it, or start afresh"))
            })?;
            plain(&state, &what)?;
            same_dtype(&what, &state)?;
            same_shape(&what, &state)?;
            arrays.push(accept(&state, &what, true)?);
            given.push(state);
        }

        let mut watched = Vec::with_capacity(given.len() + scalar_names.len());
        for (given, array) in given.into_iter().zip(&arrays) {
            watched.push((given.cast_into::<PyUntypedArray>()?, array.untyped().clone()));
        }
        let (mut scalars, mut values) = (Vec::new(), [0.0; MAX_SCALARS]);
        for (k, scalar_name) in scalar_names.iter().enumerate() {
            let what = format!("state {scalar_name:?} of {name}");
            let wrong =
                || PyTypeError::new_err(format!("{what} must be a writeable, aligned array of one float32 or float64"));
            let value = source.get_item(self.keys.get(py, scalar_name))?.ok_or_else(wrong)?;
            // looked at before a reference to its element is made
            let array = value.cast::<PyUntypedArray>().map_err(|_| wrong())?;
            if array.len() != 1 || !array.is_aligned() {
                return Err(wrong());
            }
            let view = private_view(array)?;
            let scalar = if let Ok(array) = view.cast::<PyArrayDyn<f32>>() {
                Scalar::Single(array.try_readwrite().map_err(|_| wrong())?)
            } else {
                let array = view.cast::<PyArrayDyn<f64>>().map_err(|_| wrong())?;
                Scalar::Double(array.try_readwrite().map_err(|_| wrong())?)
            };
            watched.push((array.clone(), view.cast_into::<PyUntypedArray>()?));
            values[k] = scalar.get().ok_or_else(wrong)?;
            scalars.push(scalar);
        }
        let mut precisions = [Precision::F32; MAX_SCALARS];
        for (precision, scalar) in precisions.iter_mut().zip(&scalars) {
            *precision = if matches!(scalar, Scalar::Single(_)) { Precision::F32 } else { Precision::F64 };
        }
        let (extents, layout) = place(&arrays);
        let scalar_values = Scalars::new(values, precisions);
        let name = self.name;
        Ok(Item { name, first: absent, arrays, extents, layout, scalars, scalar_values, entry, fresh, watched })
    }
}

fn strange_keys(name: &str) -> PyErr {
    PyTypeError::new_err(format!("the state of {name} must be a dict whose keys are strings"))
}

/// Refuses what is no plain ndarray.
fn plain(object: &Bound<'_, PyAny>, name: &str) -> PyResult<()> {
    let py = object.py();
    let class = object.get_type();
    if class.is(PyUntypedArray::type_object(py)) {
        return Ok(());
    }
    if object.cast::<PyUntypedArray>().is_err() {
        let hint = if object.is_instance(&py.import("numpy")?.getattr("generic")?)? {
            "a NumPy scalar cannot be changed in place: use np.array(value)"
        } else {
            "convert it with np.asarray"
        };
        return Err(PyTypeError::new_err(format!("{name} must be a numpy.ndarray, got {}: {hint}", class.name()?)));
    }
    if object.is_instance(&py.import("numpy.ma")?.getattr("MaskedArray")?)? {
        return Err(PyTypeError::new_err(format!(
            "{name} is a masked array, whose mask a step would ignore: pass its .data, or .filled(0) for a gradient"
        )));
    }
    Ok(())
}

/// Borrows an array, or says what is wrong with it.
pub(crate) fn accept<'py>(object: &Bound<'py, PyAny>, name: &str, write: bool) -> PyResult<Array<'py>> {
    plain(object, name)?;
    let untyped = object.cast::<PyUntypedArray>()?;
    let dtype = untyped.dtype();
    let Some(borrowed) = Array::borrow(&private_view(untyped)?, write) else {
        if dtype.kind() == b'f' && dtype.byteorder() != b'=' && dtype.byteorder() != b'|' && dtype.itemsize() <= 8 {
            return Err(PyValueError::new_err(format!(
                "{name} is byte-swapped ({dtype}): convert it with .astype({:?})",
                format!("float{}", dtype.itemsize() * 8)
            )));
        }
        return Err(PyTypeError::new_err(format!(
            "{name} has dtype {dtype}, expected float32, float64 or float16: convert it with .astype(np.float32)"
        )));
    };
    let array = borrowed.map_err(|error| match error {
        BorrowError::NotWriteable => {
            PyValueError::new_err(format!("{name} is read-only, but a step changes it in place: pass a copy, .copy()"))
        }
        _ => PyValueError::new_err(format!(
            "{name} shares memory with another array of this step: pass a copy, .copy(), of one of them"
        )),
    })?;
    let itemsize = dtype.itemsize();
    if untyped.len() > 0 {
        let fits = |(n, stride): (&usize, &isize)| *n == 1 || stride.unsigned_abs().is_multiple_of(itemsize);
        if !array.address().is_multiple_of(itemsize) || !untyped.shape().iter().zip(untyped.strides()).all(fits) {
            return Err(PyValueError::new_err(format!(
                "{name} is not aligned to its element size of {itemsize} bytes: pass a copy, .copy()"
            )));
        }
        if write && overlaps_itself(untyped) {
            return Err(PyValueError::new_err(format!(
                "several elements of {name} share memory (a broadcast or window view): pass a copy, .copy()"
            )));
        }
    }
    Ok(array)
}

/// Whether two indices may name the same element.
fn overlaps_itself(array: &Bound<'_, PyUntypedArray>) -> bool {
    let mut dims: Vec<(usize, usize)> = array
        .shape()
        .iter()
        .zip(array.strides())
        .filter(|(n, _)| **n > 1)
        .map(|(&n, s)| (s.unsigned_abs(), n))
        .collect();
    dims.sort_unstable();
    let mut covered = 1;
    dims.iter().any(|&(stride, n)| {
        let overlap = stride < covered;
        covered += stride * (n - 1);
        overlap
    })
}

fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Where the arrays lie, and how their elements correspond; no layout if all lie one after the other in one order.
pub(crate) fn place(arrays: &[Array<'_>]) -> (Vec<Extent>, Option<Layout>) {
    let mut strides = vec![[0isize; STREAMS]; arrays[0].untyped().ndim()];
    let mut extents = Vec::with_capacity(arrays.len());
    for (s, array) in arrays.iter().enumerate() {
        let untyped = array.untyped();
        let itemsize = untyped.dtype().itemsize();
        let (mut low, mut high) = (0, 0);
        for (d, (&n, &stride)) in untyped.shape().iter().zip(untyped.strides()).enumerate() {
            strides[d][s] = stride / itemsize as isize;
            let reach = strides[d][s] * (n as isize - 1);
            if reach < 0 { low += reach } else { high += reach }
        }
        extents.push(if untyped.len() == 0 {
            Extent { first: array.address(), len: 0, start: 0 }
        } else {
            Extent {
                first: array.address().wrapping_add_signed(low * itemsize as isize),
                len: (high - low) as usize + 1,
                start: low.unsigned_abs(),
            }
        });
    }
    let shape = arrays[0].untyped().shape();
    let len = arrays[0].untyped().len();
    let alike = |d: usize| shape[d] == 1 || (0..arrays.len()).all(|s| strides[d][s] == strides[d][0]);
    if len == 0 || (extents.iter().all(|e| e.len == len && e.start == 0) && (0..shape.len()).all(alike)) {
        return (extents, None);
    }
    let mut starts = [0; STREAMS];
    starts.iter_mut().zip(&extents).for_each(|(start, extent)| *start = extent.start);
    let layout = Layout::new(shape, &strides, starts);
    (extents, Some(layout))
}

/// For each item, whether the extent of one of its arrays reaches into that of another array of the step, so that both
/// cannot be slices at once. (Their elements are distinct: borrowing has seen to that.)
fn overlapping_extents(items: &[(usize, Item<'_>)]) -> Vec<bool> {
    let mut apart = vec![false; items.len()];
    let mut written = Written::default();
    written.begin();
    let range = |array: &Array<'_>, extent: &Extent| {
        (extent.first, extent.first + extent.len * array.untyped().dtype().itemsize())
    };
    for (k, (_, item)) in items.iter().enumerate() {
        let arrays = item.arrays.iter().zip(&item.extents).enumerate();
        arrays.filter(|(s, _)| *s != 1).for_each(|(_, (array, extent))| written.add(k, range(array, extent)));
    }
    written.conflicts().iter().for_each(|&k| apart[k] = true);
    for (k, (_, item)) in items.iter().enumerate() {
        let mut met = Vec::new();
        written.meeting(range(&item.arrays[1], &item.extents[1]), &mut 0, |other| met.push(other));
        if !met.is_empty() {
            apart[k] = true;
            met.into_iter().for_each(|other| apart[other] = true);
        }
    }
    apart
}

/// Refuses items whose arrays share elements. The numpy crate has seen to that for arrays with one owner; two arrays
/// over one buffer may have different owners, so those that lie close together are compared element by element.
fn refuse_shared_elements(items: &[(usize, Item<'_>)], set_apart: &[bool]) -> PyResult<()> {
    let mut elements: Vec<(usize, usize, usize)> = Vec::new(); // (address, item, array)
    for (k, (_, item)) in items.iter().enumerate().filter(|(k, _)| set_apart[*k]) {
        for (s, array) in item.arrays.iter().enumerate() {
            array.addresses().for_each(|address| elements.push((address, k, s)));
        }
    }
    elements.sort_unstable();
    let size = |&(_, k, s): &(usize, usize, usize)| items[k].1.arrays[s].untyped().dtype().itemsize();
    // two gradients may share elements: they are only read
    let mut last_written: Option<(usize, usize)> = None; // (end, item)
    let mut last_read: Option<(usize, usize)> = None;
    for element in &elements {
        let &(address, k, s) = element;
        let is_read = s == 1;
        for last in [last_written, if is_read { None } else { last_read }].into_iter().flatten() {
            if address < last.0 {
                return Err(PyValueError::new_err(format!(
                    "{} shares memory with {} or its gradient: pass a copy, .copy(), of one of them",
                    items[k].1.name, items[last.1].1.name
                )));
            }
        }
        let last = if is_read { &mut last_read } else { &mut last_written };
        *last = Some((address + size(element), k)).max(*last);
    }
    Ok(())
}

impl Item<'_> {
    /// # Safety
    /// The borrows are held for all of `'a`, and no slice that is written overlaps any other in use in `'a`.
    unsafe fn tensors<'a>(&'a self) -> Tensors<'a> {
        let mut states: [SliceMut<'a>; MAX_STATES] = Default::default();
        // SAFETY: the caller's contract is that of `slice` and `slice_mut`.
        unsafe {
            for (s, state) in states.iter_mut().enumerate().take(self.arrays.len() - 2) {
                *state = self.arrays[2 + s].slice_mut(self.extents[2 + s]);
            }
            Tensors {
                param: self.arrays[0].slice_mut(self.extents[0]),
                grad: self.arrays[1].slice(self.extents[1]),
                states,
                layout: self.layout.as_ref(),
            }
        }
    }
}

/// Copies of an item's arrays, for the rare item whose elements lie between those of another array of the step.
#[derive(Default)]
struct Copies(Vec<Buffer>);

impl Copies {
    fn in_use(&self) -> bool {
        !self.0.is_empty()
    }

    fn fill(&mut self, item: &Item<'_>) {
        self.0 = item.arrays.iter().map(Array::to_buffer).collect();
    }

    fn tensors(&mut self) -> Tensors<'_> {
        let mut states: [SliceMut<'_>; MAX_STATES] = Default::default();
        let (head, tail) = self.0.split_at_mut(2);
        states.iter_mut().zip(tail).for_each(|(state, buffer)| *state = buffer.slice_mut());
        let (param, grad) = head.split_at_mut(1);
        Tensors { param: param[0].slice_mut(), grad: grad[0].slice(), states, layout: None }
    }

    fn write_back(&self, item: &mut Item<'_>) {
        for (s, (array, buffer)) in item.arrays.iter_mut().zip(&self.0).enumerate() {
            if s != 1 {
                array.assign(buffer);
            }
        }
    }
}
