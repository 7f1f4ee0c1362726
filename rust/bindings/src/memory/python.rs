//! What Python lends: entries of its dicts, attributes of its objects, their classes, and a collector that rests.
//!
//! All of it is lent while no Python code runs: who borrows sees to that.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString, PyType};

/// How many rest at once: several threads may be in the middle of a step.
static RESTING: AtomicUsize = AtomicUsize::new(0);
static WAS_ENABLED: AtomicBool = AtomicBool::new(false);

/// Keeps Python's garbage collector from running while pointers into tensors are in hand. Before Python 3.12 making any
/// object may start it, and finalizers, which are Python code, can do anything to a tensor that was described a moment
/// ago.
///
/// While one of these lives the collector does not start by itself. It is not held while kernels write without the
/// interpreter. (It is while the norm of a large step is taken: what another thread tells the collector just then is
/// lost.)
pub(crate) struct CollectorRests<'py>(PhantomData<Python<'py>>);

impl<'py> CollectorRests<'py> {
    pub(crate) fn new(_py: Python<'py>) -> Self {
        if RESTING.fetch_add(1, Ordering::Relaxed) == 0 {
            // SAFETY: the interpreter is held, as `_py` proves.
            WAS_ENABLED.store(unsafe { pyo3::ffi::PyGC_Disable() } != 0, Ordering::Relaxed);
        }
        Self(PhantomData)
    }
}

/// In a forked child only one thread exists; if others were in the middle of a step, the collector would rest for good.
pub(crate) fn forked(_py: Python<'_>) {
    if RESTING.swap(0, Ordering::Relaxed) > 0 && WAS_ENABLED.load(Ordering::Relaxed) {
        // SAFETY: the interpreter is held, as `_py` proves.
        unsafe { pyo3::ffi::PyGC_Enable() };
    }
}

impl Drop for CollectorRests<'_> {
    fn drop(&mut self) {
        // none is left to count down in a child forked by a thread that was in the middle of a step
        let before = RESTING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if before == Ok(1) && WAS_ENABLED.load(Ordering::Relaxed) {
            // SAFETY: the interpreter is held: the lifetime is that of `Python`.
            unsafe { pyo3::ffi::PyGC_Enable() };
        }
    }
}

/// Whether all keys are Python's own strings. Other objects may have a hash that leads a lookup to them, and comparing
/// with them is theirs to do.
#[inline]
pub(crate) fn has_plain_keys(dict: &Bound<'_, PyDict>) -> bool {
    let (mut key, mut next) = (null_mut(), 0);
    // SAFETY: a dict, and two locals to be written (the value is not asked for). The key is borrowed from the dict,
    // which is not changed here, and only its class is looked at.
    unsafe {
        while ffi::PyDict_Next(dict.as_ptr(), &raw mut next, &raw mut key, null_mut()) != 0 {
            if ffi::PyUnicode_CheckExact(key) == 0 {
                return false;
            }
        }
    }
    true
}

/// Whether looking something up is what it is for Python's own dicts, and for those that make a dict of what they lack.
pub(crate) fn looks_up_plainly(dict: &Bound<'_, PyDict>, defaultdict: &Py<PyAny>) -> PyResult<bool> {
    if dict.is_exact_instance_of::<PyDict>() {
        return Ok(true);
    }
    let py = dict.py();
    let (class, plain) = (dict.get_type(), py.get_type::<PyDict>());
    if class.is(defaultdict) {
        return Ok(dict.getattr(pyo3::intern!(py, "default_factory"))?.is(&plain));
    }
    let is_plain = |name| PyResult::Ok(class.getattr(name)?.is(&plain.getattr(name)?));
    Ok(is_plain(pyo3::intern!(py, "__getitem__"))?
        && is_plain(pyo3::intern!(py, "get"))?
        && is_plain(pyo3::intern!(py, "__contains__"))?
        && !class.hasattr(pyo3::intern!(py, "__missing__"))?)
}

/// Where in a dict an entry was found: what `PyDict_Next` is to begin with to come upon it again. Another place, or one
/// beyond the dict's end, leads to another key, or to none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place(ffi::Py_ssize_t);

/// Calls `f` with the address of each key, its value, and its place, in order. It changes nothing in the dict, and runs
/// no Python code.
pub(crate) fn each_entry<'py>(dict: &Bound<'py, PyDict>, mut f: impl FnMut(usize, Bound<'py, PyAny>, Place)) {
    let (mut key, mut value, mut next) = (null_mut(), null_mut(), 0);
    loop {
        let place = Place(next);
        // SAFETY: a dict, and three locals to be written. The entry is borrowed from the dict, which is not changed
        // before a reference to it is made.
        let value = unsafe {
            if ffi::PyDict_Next(dict.as_ptr(), &raw mut next, &raw mut key, &raw mut value) == 0 {
                return;
            }
            Bound::from_borrowed_ptr(dict.py(), value)
        };
        f(key as usize, value, place);
    }
}

/// What CPython's lists begin with: the header of an object, how many items there are, where they stand, and for how
/// many there is room.
#[repr(C)]
struct ListHead {
    object: [usize; 2],
    count: ffi::Py_ssize_t,
    items: *const *mut ffi::PyObject,
    room: ffi::Py_ssize_t,
}

impl ListHead {
    /// That of a list, if lists are what CPython's are.
    #[inline]
    fn of(list: &Bound<'_, PyList>) -> Self {
        // SAFETY: an object of so many bytes at least, as `prepare_lists` has asked; any bits are numbers and
        // addresses.
        unsafe { list.as_ptr().cast::<Self>().read() }
    }
}

/// Whether lists are what CPython's are. The stable interface does not promise it.
static LISTS_AS_EXPECTED: PyOnceLock<bool> = PyOnceLock::new();

/// Tries, once, whether lists are what CPython's are, on some whose items are known. Until then items are asked for.
pub(crate) fn prepare_lists(py: Python<'_>) {
    LISTS_AS_EXPECTED.get_or_init(py, || {
        [3, 5].into_iter().all(|n: isize| {
            let Ok(list) = PyList::new(py, 0..n) else { return false };
            let size = list.call_method0("__sizeof__").and_then(|size| size.extract::<usize>());
            if !size.is_ok_and(|size| size >= size_of::<ListHead>()) {
                return false;
            }
            let head = ListHead::of(&list);
            let looks_right = head.count == n && (n..4 * n).contains(&head.room) && head.items.is_aligned();
            // SAFETY: count and room are those of this list: between them stands where its items are.
            let is_item = |i| unsafe { *head.items.offset(i) == ffi::PyList_GetItem(list.as_ptr(), i) };
            looks_right && !head.items.is_null() && (0..n).all(is_item)
        })
    });
}

/// The items of a list where they stand: asking for each of them costs as much as updating a number. `None`: they are
/// to be asked for.
///
/// # Safety
/// The list is not changed while the items are used.
#[inline]
unsafe fn items_of<'l>(list: &'l Bound<'_, PyList>) -> Option<&'l [*mut ffi::PyObject]> {
    if !LISTS_AS_EXPECTED.get(list.py()).is_some_and(|usual| *usual) {
        return None;
    }
    let head = ListHead::of(list);
    if head.count == 0 {
        return Some(&[]);
    }
    // SAFETY: so many items stand there for as long as the list is not changed, as the contract says.
    Some(unsafe { std::slice::from_raw_parts(head.items, head.count as usize) })
}

/// Whether a list holds these very objects, in this order. It runs no Python code.
#[inline]
pub(crate) fn are_in(list: &Bound<'_, PyList>, objects: &[Py<PyAny>]) -> bool {
    if list.len() != objects.len() {
        return false;
    }
    // SAFETY: what the list lends is only compared by address.
    match unsafe { items_of(list) } {
        Some(items) => items.iter().zip(objects).all(|(item, object)| *item == object.as_ptr()),
        None => objects.iter().enumerate().all(|(i, object)| is_at(list, i, object)),
    }
}

/// Whether two lists hold the same objects, in the same order. It runs no Python code.
pub(crate) fn are_alike(one: &Bound<'_, PyList>, other: &Bound<'_, PyList>) -> bool {
    // SAFETY: what the lists lend is only compared by address.
    match unsafe { (items_of(one), items_of(other)) } {
        (Some(one), Some(other)) => one == other,
        _ => one.len() == other.len() && other.iter().enumerate().all(|(i, object)| is_at(one, i, object.as_unbound())),
    }
}

/// Calls `f` with each item of a list, until it says no. Whoever calls sees to it that nothing in `f` changes the list:
/// no Python code runs.
#[inline]
pub(crate) fn each_item<'py, E>(
    list: &Bound<'py, PyList>,
    mut f: impl FnMut(&Bound<'py, PyAny>) -> Result<bool, E>,
) -> Result<bool, E> {
    // SAFETY: nothing changes the list meanwhile: the rule of this function.
    match unsafe { items_of(list) } {
        Some(items) => {
            for &item in items {
                // SAFETY: an object that the list holds.
                let item = unsafe { Borrowed::from_ptr(list.py(), item) };
                if !f(&item)? {
                    return Ok(false);
                }
            }
        }
        None => {
            for item in list {
                if !f(&item)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// Whether the values of a dict are those of a list, in this order. It runs no Python code.
pub(crate) fn are_values(list: &Bound<'_, PyList>, dict: &Bound<'_, PyDict>) -> bool {
    let (mut value, mut next, mut i) = (null_mut(), 0, 0);
    // SAFETY: a dict, and two locals to be written (the key is not asked for). What it lends is only compared by
    // address.
    unsafe {
        while ffi::PyDict_Next(dict.as_ptr(), &raw mut next, null_mut(), &raw mut value) != 0 {
            if i >= list.len() || ffi::PyList_GetItem(list.as_ptr(), i as ffi::Py_ssize_t) != value {
                return false;
            }
            i += 1;
        }
    }
    i == list.len()
}

/// Whether an object is the one in this place of a list.
#[inline]
pub(crate) fn is_at(list: &Bound<'_, PyList>, place: usize, object: &Py<PyAny>) -> bool {
    // SAFETY: a list, which says so where it has no such place. What it lends is only compared by address.
    unsafe {
        let item = ffi::PyList_GetItem(list.as_ptr(), place as ffi::Py_ssize_t);
        if item.is_null() {
            ffi::PyErr_Clear();
        }
        item == object.as_ptr()
    }
}

/// The keys and values of a dict, as they were, in order.
#[derive(Debug, Default)]
pub(crate) struct Entries(Vec<(Py<PyAny>, Py<PyAny>)>);

impl Entries {
    pub(crate) fn of(dict: &Bound<'_, PyDict>) -> Self {
        Self(dict.iter().map(|(key, value)| (key.unbind(), value.unbind())).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Py<PyAny>, Py<PyAny>)> {
        self.0.iter()
    }

    /// Takes up what a dict has now, in the room of what it had.
    pub(crate) fn renew(&mut self, dict: &Bound<'_, PyDict>) {
        self.0.truncate(dict.len());
        for (i, (key, value)) in dict.iter().enumerate() {
            match self.0.get_mut(i) {
                Some(known) if known.0.is(&key) && known.1.is(&value) => {}
                Some(known) => *known = (key.unbind(), value.unbind()),
                None => self.0.push((key.unbind(), value.unbind())),
            }
        }
    }

    /// Whether a dict has these very objects in this order, but for the values at one place. It runs no Python code.
    #[inline]
    pub(crate) fn are_in(&self, dict: &Bound<'_, PyDict>, but_for: usize) -> bool {
        if self.0.is_empty() {
            return dict.is_empty();
        }
        let (mut key, mut value, mut next, mut i) = (null_mut(), null_mut(), 0, 0);
        // SAFETY: a dict, and three locals to be written. What it lends is only compared by address.
        unsafe {
            while ffi::PyDict_Next(dict.as_ptr(), &raw mut next, &raw mut key, &raw mut value) != 0 {
                let Some((own_key, own_value)) = self.0.get(i) else { return false };
                if own_key.as_ptr() != key || (own_value.as_ptr() != value && i != but_for) {
                    return false;
                }
                i += 1;
            }
        }
        i == self.0.len()
    }
}

/// The entry at a place, if it is a dict and that of `param`.
///
/// # Safety
/// `state` is not changed while the entry is used.
#[inline]
pub(crate) unsafe fn entry_at<'py>(
    state: &Bound<'py, PyDict>,
    Place(mut next): Place,
    param: &Bound<'py, PyAny>,
) -> Option<Borrowed<'py, 'py, PyDict>> {
    let (mut key, mut value) = (null_mut(), null_mut());
    // SAFETY: a dict, a number that `PyDict_Next` compares with the dict's length, and two locals to be written. The
    // entry is borrowed from the dict, as the contract allows.
    unsafe {
        let found = ffi::PyDict_Next(state.as_ptr(), &raw mut next, &raw mut key, &raw mut value) != 0;
        let is_that = found && std::ptr::eq(key, param.as_ptr());
        if is_that { Borrowed::from_ptr(state.py(), value).cast::<PyDict>().ok() } else { None }
    }
}

/// The values under `keys` in a dict of which they are most of the keys, null for those it lacks. Runs no Python code.
///
/// # Safety
/// `keys` are strings, and live. The dict is not changed while the values are used.
#[inline]
pub(crate) unsafe fn values_under<const N: usize>(
    entry: Borrowed<'_, '_, PyDict>,
    keys: &[*mut ffi::PyObject],
) -> [*mut ffi::PyObject; N] {
    let mut values = [null_mut(); N];
    let (mut key, mut value, mut next, mut found) = (null_mut(), null_mut(), 0, 0);
    // SAFETY: a dict, and three locals to be written; what is looked up is borrowed, as the contract allows. Looking a
    // string up raises nothing.
    unsafe {
        // names are mostly the very objects that are asked for: walking compares addresses, and needs no hashes
        while found < keys.len() && ffi::PyDict_Next(entry.as_ptr(), &raw mut next, &raw mut key, &raw mut value) != 0 {
            if let Some(k) = keys.iter().position(|known| std::ptr::eq(*known, key)) {
                values[k] = value;
                found += 1;
            }
        }
        // other keys than strings may run code when they are compared with: of such a dict nothing is told
        if found < keys.len() && has_plain_keys(&entry) {
            for (value, key) in values.iter_mut().zip(keys).filter(|(value, _)| value.is_null()) {
                *value = ffi::PyDict_GetItemWithError(entry.as_ptr(), *key);
            }
        }
    }
    values
}

/// Where a dict keeps its table, another object. In CPython its address is the fifth word of the dict.
pub(crate) fn table_of(dict: &Bound<'_, PyDict>) -> usize {
    // SAFETY: a dict has more than five words; any bits are a number.
    unsafe { dict.as_ptr().cast::<usize>().add(4).read() }
}

/// The modules that have been imported.
pub(crate) fn loaded_modules(py: Python<'_>) -> Option<Bound<'_, PyDict>> {
    // SAFETY: the interpreter is held, and lends its dict of modules, which lives as long as it does.
    unsafe { Bound::from_borrowed_ptr(py, ffi::PyImport_GetModuleDict()) }.cast_into().ok()
}

/// The descriptor of an attribute of torch's tensors, such as `.grad` or a slot, and the function it is made of.
pub(crate) struct Attribute {
    name: Py<PyString>,
    descriptor: Py<PyAny>,
    get: ffi::descrgetfunc,
}

impl Attribute {
    /// Looks it up; `None` if it is anything but a descriptor of C functions.
    pub(crate) fn new(class: &Bound<'_, PyType>, name: &str) -> Option<Self> {
        let name = PyString::intern(class.py(), name);
        let descriptor = class.getattr(&name).ok()?;
        let types = class.py().import("types").ok()?;
        let is_kind = |kind| types.getattr(kind).is_ok_and(|kind| descriptor.get_type().is(&kind));
        if !(is_kind("GetSetDescriptorType") || is_kind("MemberDescriptorType")) {
            return None;
        }
        // SAFETY: the class is one of Python's own, and a function found in this slot has this signature.
        let get = unsafe {
            let get = ffi::PyType_GetSlot(descriptor.get_type_ptr(), ffi::Py_tp_descr_get);
            std::mem::transmute::<*mut std::ffi::c_void, Option<ffi::descrgetfunc>>(get)?
        };
        Some(Self { name: name.unbind(), descriptor: descriptor.unbind(), get })
    }

    /// Whether the class still has this descriptor: somebody may have put another in its place.
    pub(crate) fn holds(&self, class: &Bound<'_, PyType>) -> bool {
        let now = class.getattr(self.name.bind(class.py()));
        now.is_ok_and(|now| now.is(&self.descriptor))
    }

    /// What it is for an object of the class, or of one that inherits it.
    #[inline]
    pub(crate) fn of<'py>(&self, tensor: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: the function is the descriptor's own, and compares the object's class with its own before it reads
        // it; a reference or an exception comes back.
        unsafe {
            let class = tensor.get_type_ptr().cast();
            let value = (self.get)(self.descriptor.as_ptr(), tensor.as_ptr(), class);
            Bound::from_owned_ptr_or_err(tensor.py(), value)
        }
    }
}

/// The class of an object, which lives and keeps its class for all of `'t`; or none.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct ClassRef<'t>(*mut ffi::PyTypeObject, PhantomData<&'t ()>);

impl<'t> ClassRef<'t> {
    #[inline(always)]
    pub(crate) fn of(object: &'t Bound<'_, PyAny>) -> Self {
        Self(object.get_type_ptr(), PhantomData)
    }

    /// # Safety
    /// The address of a class that lives for all of `'t`, or null.
    #[inline(always)]
    pub(super) unsafe fn at(class: *mut ffi::PyTypeObject) -> Self {
        Self(class, PhantomData)
    }

    #[inline(always)]
    pub(crate) fn is_none(self) -> bool {
        self.0.is_null()
    }

    #[inline(always)]
    pub(crate) fn is(self, class: &Py<PyType>) -> bool {
        self.0 == class.as_ptr().cast()
    }

    pub(crate) fn bind(self, py: Python<'_>) -> Option<Bound<'_, PyType>> {
        // SAFETY: null, or the address of a class that lives.
        unsafe { Bound::from_borrowed_ptr_or_opt(py, self.0.cast()) }?.cast_into().ok()
    }
}
