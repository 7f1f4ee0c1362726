//! Rules that users write: which program follows from what is known of a parameter.
//!
//! Python traces the function and remembers all its runs as a tree. What of it has been met is kept here, so that steps
//! find programs without asking Python. Where the tree has not grown yet, Python is asked, and may run the function.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use oxistep_kernels::program::{Description, Program};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyString, PyTuple};
use smallvec::SmallVec;

use crate::memory::unfit::Reason;
use crate::optimizer::group::{Group, is_number};

/// More answers to one question than this are forgotten: a rule that asks for a number that is another one each time.
const LARGEST: usize = 256;

/// A number that a program is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Input {
    /// A hyperparameter, by its place.
    Hyper(usize),
    /// How many steps the parameter has taken, with this one.
    Step,
    /// A state of one number, and what it starts as.
    Number(&'static str, f64),
    /// A number of the group, and what it starts as.
    Group(&'static str, f64),
}

/// A number that the parameters of a group share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared {
    pub(crate) name: &'static str,
    /// The node of what it becomes.
    pub(crate) node: usize,
    /// Whether the rule assigns it.
    pub(crate) assigned: bool,
}

/// What a step of a parameter is, under some answers.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) program: Arc<Program>,
    pub(crate) inputs: Vec<Input>,
    /// The names of its states of elements, in the order of the program's streams.
    pub(crate) states: Vec<&'static str>,
    /// `step`, then the names of its states of one number.
    pub(crate) counters: Vec<&'static str>,
    /// What its states begin as: for Python, which makes them.
    pub(crate) begins: Py<PyAny>,
    /// Something depends on all elements of a tensor, on its shape, or on how many elements there are.
    pub(crate) is_whole: bool,
    /// What the numbers become: the node of each counter after `step`.
    pub(crate) becomes: Vec<usize>,
    pub(crate) shared: Vec<Shared>,
    /// What the program takes for granted: nodes that hang on elements, with the bits of what they come to.
    pub(crate) asked: Vec<(usize, u64)>,
    /// It adds to sums over all parameters.
    pub(crate) has_totals: bool,
    /// What the rule is called in messages.
    pub(crate) rule: String,
    /// It is no program but a question, the only number that is wanted of it.
    pub(crate) question: Option<usize>,
}

impl Leaf {
    /// It cannot be taken apart from the programs of other parameters.
    pub(crate) fn is_together(&self) -> bool {
        self.has_totals || !self.shared.is_empty()
    }

    /// What some of its numbers come to is looked at before anything is written.
    pub(crate) fn has_answers(&self) -> bool {
        !self.shared.is_empty() || !self.asked.is_empty()
    }

    /// Numbers are to be found, and perhaps looked at, before anything is written.
    pub(crate) fn is_looked_at(&self) -> bool {
        self.is_together() || !self.asked.is_empty()
    }
}

/// A place in the tree.
#[derive(Debug)]
pub(crate) enum Place {
    Leaf(Arc<Leaf>),
    /// The rule asks for a number.
    Branch {
        question: Box<Program>,
        inputs: Vec<Input>,
        after: Followed,
    },
    /// The rule asks for a number that hangs on the parameter's elements.
    Measured {
        question: Arc<Leaf>,
        after: Followed,
    },
    /// The rule asks how many dimensions the parameter has, or for its shape.
    Fact {
        is_shape: bool,
        after: Followed,
    },
    /// Kernels cannot do what comes next.
    Left(Reason),
}

/// What followed from each answer.
#[derive(Debug, Default)]
pub(crate) struct Followed(Mutex<Vec<(Key, Arc<Place>)>>);

/// An answer: a number by its bits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Key {
    Number(u64),
    Dims(usize),
    Shape(Vec<i64>),
}

impl Followed {
    fn find(&self, key: &Key) -> Option<Arc<Place>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(other, _)| other == key).map(|(_, place)| place.clone())
    }

    fn put(&self, key: Key, place: Arc<Place>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().any(|(other, _)| *other == key) {
            return; // another thread was first
        }
        let forgotten = if known.len() >= LARGEST { std::mem::take(&mut *known) } else { Vec::new() };
        known.push((key, place));
        drop(known);
        drop(forgotten); // what that runs may want the lock
    }
}

/// The numbers of a group, and where in the tree its words lead to.
#[derive(Debug)]
pub(crate) struct Numbers {
    root: Arc<Root>,
    /// Of all hyperparameters that are numbers, or tuples of such, one after the other.
    hyper: Vec<f64>,
}

/// What is known of a parameter when its program is looked for.
pub(crate) trait Known {
    /// How many steps it has taken, with this one.
    fn step(&self) -> f64;
    /// A state of one number; `None` if it has not begun.
    fn number(&self, name: &'static str) -> Option<f64>;
    /// A number of its group; `None` if it has not begun.
    fn of_group(&self, name: &'static str) -> Option<f64>;
    /// The sizes of its dimensions.
    fn sizes(&self) -> &[i64];
    /// How many real numbers it has.
    fn numel(&self) -> f64;
    /// What its questions about elements came to, as far as they were asked, by their bits.
    fn answer(&self, question: usize) -> Option<u64>;
}

impl Numbers {
    /// The numbers that a program is given.
    pub(crate) fn inputs<I: FromIterator<f64>>(&self, inputs: &[Input], known: &impl Known) -> I {
        let number = |input: &Input| match *input {
            Input::Hyper(k) => self.hyper.get(k).copied().unwrap_or(f64::NAN),
            Input::Step => known.step(),
            Input::Number(name, initial) => known.number(name).unwrap_or(initial),
            Input::Group(name, initial) => known.of_group(name).unwrap_or(initial),
        };
        inputs.iter().map(number).collect()
    }

    /// Follows the tree as far as it has grown, by what is known of a parameter.
    fn follow(
        &self,
        first: &Arc<Place>,
        known: &impl Known,
        path: &mut Vec<Key>,
    ) -> Result<Arc<Place>, (Arc<Place>, Key)> {
        let mut place = first.clone();
        let mut measured = 0;
        loop {
            let (after, key) = match &*place {
                Place::Leaf(_) | Place::Left(_) => return Ok(place),
                Place::Measured { after, .. } => {
                    let Some(answer) = known.answer(measured) else { return Ok(place) };
                    measured += 1;
                    (after, Key::Number(answer))
                }
                Place::Branch { question, inputs: given, after } => {
                    let inputs: SmallVec<[f64; 12]> = self.inputs(given, known);
                    // (who is not asked for it need not look it up for each shape)
                    let numel = if question.asks_numel() { known.numel() } else { 0.0 };
                    let answer = question.numbers(&inputs, numel).and_then(|numbers| numbers.first().copied());
                    (after, Key::Number(answer.unwrap_or(f64::NAN).to_bits()))
                }
                Place::Fact { is_shape: false, after } => (after, Key::Dims(known.sizes().len())),
                Place::Fact { is_shape: true, after } => (after, Key::Shape(known.sizes().to_vec())),
            };
            let Some(next) = after.find(&key) else { return Err((place, key)) };
            path.push(key);
            place = next;
        }
    }

    /// The program of a parameter, if it is one that was met before.
    pub(crate) fn known_leaf(&self, known: &impl Known) -> Option<Arc<Leaf>> {
        let first = self.root.first.get()?;
        if let Place::Leaf(leaf) = &**first {
            return Some(leaf.clone());
        }
        match &*self.follow(first, known, &mut Vec::new()).ok()? {
            Place::Leaf(leaf) => Some(leaf.clone()),
            _ => None,
        }
    }

    /// The program of a parameter, or the question that is to be answered first, or why kernels have none. May run the
    /// rule's function.
    pub(crate) fn leaf(&self, tree: &Tree, py: Python<'_>, known: &impl Known) -> PyResult<Result<Arc<Leaf>, Reason>> {
        let mut path = Vec::new();
        let first = match self.root.first.get() {
            Some(first) => first,
            None => {
                let place = tree.ask(py, &self.root.kinds, known.sizes(), &[])?;
                self.root.first.get_or_init(|| place)
            }
        };
        loop {
            path.clear();
            match self.follow(first, known, &mut path) {
                Ok(place) => {
                    return Ok(match &*place {
                        Place::Leaf(leaf) => Ok(leaf.clone()),
                        Place::Measured { question, .. } => Ok(question.clone()),
                        Place::Left(reason) => Err(reason.clone()),
                        Place::Branch { .. } | Place::Fact { .. } => Err("its rule has no end".into()),
                    });
                }
                Err((place, key)) => {
                    path.push(key.clone());
                    let next = tree.ask(py, &self.root.kinds, known.sizes(), &path)?;
                    if let Place::Branch { after, .. } | Place::Fact { after, .. } | Place::Measured { after, .. } =
                        &*place
                    {
                        after.put(key, next);
                    }
                }
            }
        }
    }
}

/// What the hyperparameters are, and where that leads to.
#[derive(Debug)]
struct Root {
    kinds: Vec<Kind>,
    first: OnceLock<Arc<Place>>,
}

/// What a hyperparameter is to a rule.
#[derive(Debug)]
enum Kind {
    Number,
    /// A tuple of so many numbers.
    Numbers(usize),
    /// What is no number reaches the rule's function as itself.
    Word(Py<PyAny>),
}

/// Whether both are the same text: to compare Python's own strings runs no code.
fn same_text(this: &Py<PyAny>, that: &Py<PyAny>) -> bool {
    Python::attach(|py| {
        let texts = (this.bind(py).cast_exact::<PyString>(), that.bind(py).cast_exact::<PyString>());
        matches!(texts, (Ok(this), Ok(that)) if this.as_any().eq(that.as_any()).unwrap_or(false))
    })
}

impl Kind {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number, Self::Number) => true,
            (Self::Numbers(this), Self::Numbers(that)) => this == that,
            (Self::Word(this), Self::Word(that)) => this.is(that) || same_text(this, that),
            _ => false,
        }
    }
}

/// The programs of a rule that a user wrote, as far as steps have met them.
#[pyclass(module = "oxistep._core", frozen)]
#[derive(Debug)]
pub(crate) struct Tree {
    /// Traces the rule: see `Tree::ask`.
    tracer: Py<PyAny>,
    /// The hyperparameters, in order.
    names: Vec<&'static str>,
    roots: Mutex<Vec<Arc<Root>>>,
    /// How often Python was asked.
    asked: AtomicUsize,
}

#[pymethods]
impl Tree {
    /// `names`: the hyperparameters. `tracer.check(group, index)` raises for those of a wrong kind.
    /// `tracer.at(hyperparameters, shape, answers)` returns the place in the tree of runs after these answers,
    /// for a parameter of that shape. Of the hyperparameters it gets, by name, the places of those that are numbers,
    /// tuples of such places, and the others in a list of one.
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn new(tracer: Py<PyAny>, names: Vec<String>) -> Self {
        Self {
            tracer,
            names: names.iter().map(|name| lasting(name)).collect(),
            roots: Mutex::default(),
            asked: AtomicUsize::new(0),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "the signature is PyO3's")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // (a root holds no more than texts, flags and what was refused)
        visit.call(&self.tracer)
    }
}

impl Tree {
    /// How often Python was asked: whether it was meanwhile, two answers tell.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Has Python check the hyperparameters of a group.
    fn check(&self, group: &Group<'_, '_>) -> PyResult<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let tracer = self.tracer.bind(group.values.py());
        tracer.call_method1("check", (group.values, group.index)).map(drop)
    }

    /// The factor on the gradient that `maximize` asks for, unless the rule has a hyperparameter of that name.
    pub(crate) fn factor(&self, group: &mut Group<'_, '_>) -> PyResult<f64> {
        let ascends = !self.names.contains(&"maximize") && group.is_set("maximize")?;
        Ok(if ascends { -1.0 } else { 1.0 })
    }

    /// Reads the hyperparameters of a group. Runs Python code if they are of other kinds than before.
    pub(crate) fn read(&self, group: &mut Group<'_, '_>) -> PyResult<Numbers> {
        let (kinds, hyper) = match self.sort(group) {
            Ok(sorted) => sorted,
            Err(error) => {
                self.check(group)?; // which says more
                return Err(error);
            }
        };
        let root = match self.known(&kinds) {
            Some(root) => root,
            None => {
                if group.lr.is_none() {
                    self.check(group)?;
                }
                let root = Arc::new(Root { kinds, first: OnceLock::new() });
                let mut roots = self.lock();
                let forgotten = if roots.len() >= LARGEST { std::mem::take(&mut *roots) } else { Vec::new() };
                roots.push(root.clone());
                drop(roots);
                drop(forgotten); // what that runs may want the lock
                root
            }
        };
        Ok(Numbers { root, hyper })
    }

    /// As [`Tree::read`], if hyperparameters like these were met before.
    pub(crate) fn read_known(&self, group: &mut Group<'_, '_>) -> PyResult<Option<Numbers>> {
        let Ok((kinds, hyper)) = self.sort(group) else { return Ok(None) }; // who reads it again says more
        Ok(self.known(&kinds).map(|root| Numbers { root, hyper }))
    }

    /// What the hyperparameters of a group are, and the numbers among them.
    fn sort(&self, group: &mut Group<'_, '_>) -> PyResult<(Vec<Kind>, Vec<f64>)> {
        let (mut kinds, mut hyper) = (Vec::with_capacity(self.names.len()), Vec::with_capacity(self.names.len() + 2));
        for name in &self.names {
            if let (Some(lr), "lr") = (group.lr, *name) {
                hyper.push(lr);
                kinds.push(Kind::Number);
                continue;
            }
            let value = group.value(name)?;
            if let Some(several) = several(&value) {
                kinds.push(Kind::Numbers(several.len()));
                for item in &several {
                    hyper.push(group.number_of(name, item)?);
                }
            } else if is_word(&value) {
                kinds.push(Kind::Word(value.unbind()));
            } else {
                let plain = group.torch.filter(|_| *name == "lr").and_then(|torch| torch.read_number(&value));
                if !is_number(&value) && plain.is_none() {
                    group.foreign = true; // what is asked next may run code
                    if is_flag_of_numpys(&value)? || !value.hasattr("__float__")? {
                        kinds.push(Kind::Word(value.unbind()));
                        continue;
                    }
                }
                hyper.push(group.number_of(name, &value)?);
                kinds.push(Kind::Number);
            }
        }
        Ok((kinds, hyper))
    }

    fn known(&self, kinds: &[Kind]) -> Option<Arc<Root>> {
        let is_it = |root: &&Arc<Root>| {
            root.kinds.len() == kinds.len() && root.kinds.iter().zip(kinds).all(|(this, that)| this.is_same(that))
        };
        self.lock().iter().find(is_it).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Root>>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks Python for a place. May run the rule's function.
    fn ask(&self, py: Python<'_>, kinds: &[Kind], sizes: &[i64], path: &[Key]) -> PyResult<Arc<Place>> {
        let hyperparameters = PyDict::new(py);
        let mut first = 0;
        for (name, kind) in self.names.iter().zip(kinds) {
            match kind {
                Kind::Number => hyperparameters.set_item(*name, first)?,
                Kind::Numbers(len) => {
                    hyperparameters.set_item(*name, PyTuple::new(py, first..first + len)?)?;
                }
                Kind::Word(word) => hyperparameters.set_item(*name, PyList::new(py, [word])?)?,
            }
            first += match kind {
                Kind::Number => 1,
                Kind::Numbers(len) => *len,
                Kind::Word(_) => 0,
            };
        }
        let answers = PyList::empty(py);
        for key in path {
            match key {
                Key::Number(bits) => answers.append(f64::from_bits(*bits)),
                Key::Dims(dims) => answers.append(dims),
                Key::Shape(sizes) => answers.append(PyTuple::new(py, sizes)?),
            }?;
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let told = self.tracer.bind(py).call_method1("at", (hyperparameters, PyTuple::new(py, sizes)?, answers))?;
        Ok(Arc::new(place(&told)?))
    }
}

/// Several numbers, if it is a tuple or a list of such.
fn several<'py>(value: &Bound<'py, PyAny>) -> Option<SmallVec<[Bound<'py, PyAny>; 2]>> {
    let items: SmallVec<[_; 2]> = match (value.cast_exact::<PyTuple>(), value.cast_exact::<PyList>()) {
        (Ok(tuple), _) => tuple.iter().collect(),
        (_, Ok(list)) => list.iter().collect(),
        _ => return None,
    };
    items.iter().all(is_number).then_some(items)
}

/// Whether a hyperparameter reaches the rule's function as itself: `None`, flags and texts. (What is no number does so,
/// too, but to find that out may run code.)
fn is_word(value: &Bound<'_, PyAny>) -> bool {
    value.is_none() || value.is_exact_instance_of::<PyBool>() || value.is_exact_instance_of::<PyString>()
}

/// NumPy's True and False have a value as a number.
fn is_flag_of_numpys(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let class = value.get_type();
    Ok(class.module()?.to_cow()? == "numpy" && class.name()?.to_cow()?.starts_with("bool"))
}

/// What Python tells of a place in its tree.
#[derive(FromPyObject)]
struct Told {
    kind: String,
    nodes: Vec<u32>,
    constants: Vec<f64>,
    writes: Vec<u32>,
    wanted: Vec<u32>,
    /// What each input is: ("hyper", its place, ""), ("step", 0, ""), or ("number" or "group", what it starts as, its
    /// name).
    inputs: Vec<(String, f64, String)>,
    states: Vec<String>,
    /// The names of the states of one number, with the node of what they become.
    numbers: Vec<(String, usize)>,
    /// The names of the numbers of the group, with the node of what they become, and whether they are assigned.
    shared: Vec<(String, usize, bool)>,
    /// What is taken for granted: nodes and what they come to.
    asked: Vec<(usize, f64)>,
    totals: bool,
    begins: Py<PyAny>,
    /// Whether something depends on all elements of a tensor, on its shape, or on how many elements there are.
    whole: bool,
    /// What the rule is called in messages.
    rule: String,
    reason: String,
}

fn place(told: &Bound<'_, PyAny>) -> PyResult<Place> {
    let told: Told = told.extract()?;
    match told.kind.as_str() {
        "ndim" => return Ok(Place::Fact { is_shape: false, after: Followed::default() }),
        "shape" => return Ok(Place::Fact { is_shape: true, after: Followed::default() }),
        "left" => return Ok(Place::Left(told.reason.into())),
        _ => {}
    }
    let description = Description {
        nodes: &told.nodes,
        constants: &told.constants,
        states: told.states.len() as u32,
        inputs: told.inputs.len() as u32,
        writes: &told.writes,
        wanted: &told.wanted,
    };
    let program = match Program::new(&description) {
        Ok(program) => program,
        Err(wrong) => return Ok(Place::Left(format!("kernels cannot run its rule ({wrong})").into())),
    };
    let inputs = told.inputs.iter().map(|(what, number, name)| match what.as_str() {
        "step" => Input::Step,
        "number" => Input::Number(lasting(name), *number),
        "group" => Input::Group(lasting(name), *number),
        _ => Input::Hyper(*number as usize),
    });
    let inputs = inputs.collect();
    if told.kind == "branch" {
        return Ok(Place::Branch { question: Box::new(program), inputs, after: Followed::default() });
    }
    let counters = std::iter::once("step").chain(told.numbers.iter().map(|(name, _)| lasting(name))).collect();
    let shared = told.shared.iter().map(|(name, node, assigned)| {
        let (name, node, assigned) = (lasting(name), *node, *assigned);
        Shared { name, node, assigned }
    });
    let is_question = told.kind == "measured";
    let leaf = Arc::new(Leaf {
        program: Arc::new(program),
        inputs,
        states: told.states.iter().map(|name| lasting(name)).collect(),
        counters,
        begins: told.begins,
        is_whole: told.whole,
        becomes: told.numbers.iter().map(|(_, node)| *node).collect(),
        shared: shared.collect(),
        asked: told.asked.iter().map(|(node, answer)| (*node, answer.to_bits())).collect(),
        has_totals: told.totals && !is_question,
        rule: told.rule,
        question: is_question.then(|| told.wanted.first().map_or(0, |&node| node as usize)),
    });
    Ok(if is_question { Place::Measured { question: leaf, after: Followed::default() } } else { Place::Leaf(leaf) })
}

/// A name that lives as long as the process: there are as many as programs have names for states.
fn lasting(name: &str) -> &'static str {
    static NAMES: LazyLock<Mutex<Vec<&'static str>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.iter().find(|known| **known == name) {
        return known;
    }
    let lasting: &'static str = Box::leak(name.into());
    names.push(lasting);
    lasting
}
