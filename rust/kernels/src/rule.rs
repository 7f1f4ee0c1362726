//! What an optimizer tells the driver: hyperparameters (f64) -> constants of a step -> formula for one element.

use crate::arithmetic::Real;
use crate::formats::{Element, bf16, f16};

/// The most state arrays that a rule keeps for one parameter: formulas of more are not compiled.
pub const MAX_STATES: usize = 3;
/// The most streams of one parameter of a rule: itself, its gradient, its states.
pub const STREAMS: usize = 2 + MAX_STATES;
/// The most scalar states (`step` and the like) that a rule keeps for one parameter.
pub const MAX_SCALARS: usize = 3;

/// The states of one element. A rule that keeps fewer leaves the rest alone; they cost nothing.
pub type States<A> = [A; MAX_STATES];

/// Where hyperparameters come from: a param group, under torch's names.
pub trait Hyperparameters {
    /// What goes wrong when one is missing or is no number.
    type Error;
    /// A number, such as `lr`.
    fn number(&mut self, key: &'static str) -> Result<f64, Self::Error>;
    /// A pair of numbers, such as `betas`.
    fn pair(&mut self, key: &'static str) -> Result<(f64, f64), Self::Error>;
    /// A pair of numbers, of which the first may be left out, such as Adafactor's `eps`.
    fn pair_or_none(&mut self, key: &'static str) -> Result<(Option<f64>, f64), Self::Error> {
        self.pair(key).map(|(first, second)| (Some(first), second))
    }
    /// A flag, such as `amsgrad`.
    fn flag(&mut self, key: &'static str) -> Result<bool, Self::Error>;
}

/// The type in which the owner of a scalar state keeps it. (`load_state_dict` may cast all but `step` to a half type.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Precision {
    F64,
    F32,
    F16,
    Bf16,
}

impl Precision {
    fn round(self, x: f64) -> f64 {
        match self {
            Self::F64 => x,
            Self::F32 => f64::from(x as f32),
            // by way of f32, as torch does
            Self::F16 => f64::from(f16::store(x as f32).load()),
            Self::Bf16 => f64::from(bf16::store(x as f32).load()),
        }
    }
}

/// The scalar states of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalars {
    values: [f64; MAX_SCALARS],
    precisions: [Precision; MAX_SCALARS],
}

impl Scalars {
    /// Scalars read from their owner, with the types in which it keeps them.
    pub fn new(values: [f64; MAX_SCALARS], precisions: [Precision; MAX_SCALARS]) -> Self {
        Self { values, precisions }
    }

    /// The value of scalar `i`.
    pub fn get(&self, i: usize) -> f64 {
        self.values[i]
    }

    /// Sets scalar `i`, rounded as its owner will round it, so that this step computes with what the next one reads.
    pub fn set(&mut self, i: usize, x: f64) {
        self.values[i] = self.precisions[i].round(x);
    }

    /// Sets scalar `i` by way of the precision of `step`: torch makes the number a tensor of its default dtype, which
    /// `step` has too, and copies that.
    pub fn set_by_way_of_step(&mut self, i: usize, x: f64) {
        self.set(i, self.precisions[0].round(x));
    }

    /// Multiplies scalar `i` as its owner would, in its own precision, and returns the product.
    pub fn multiply(&mut self, i: usize, x: f64) -> f64 {
        let product = match self.precisions[i] {
            Precision::F64 => self.values[i] * x,
            _ => f64::from(self.values[i] as f32 * x as f32),
        };
        self.set(i, product);
        self.values[i]
    }

    /// Whether the counter stands where counting from zero leads.
    pub fn is_counted(&self) -> bool {
        (0.0..1e15).contains(&self.values[0])
    }

    /// The largest number below one by which the owner of scalar `i` can tell a product from one, with room to spare.
    pub(crate) fn largest_factor(&self, i: usize) -> f64 {
        match self.precisions[i] {
            Precision::F64 => 1.0 - 1e-14,
            Precision::F32 => 1.0 - 1e-6,
            Precision::F16 => 0.999,
            Precision::Bf16 => 0.99,
        }
    }

    /// Adds one to the counter `step`, by convention the first scalar, and returns the new count.
    pub fn count(&mut self) -> f64 {
        self.set(0, self.values[0] + 1.0);
        self.values[0]
    }
}

/// Whether all numbers are finite and no larger than `largest`.
pub(crate) fn within<const N: usize>(largest: f64, numbers: [f64; N]) -> bool {
    numbers.iter().all(|x| x.abs() <= largest)
}

/// Whether a factor lies in [0, 1): its powers stay there.
pub(crate) fn decays(beta: f64) -> bool {
    (0.0..1.0).contains(&beta)
}

/// Which gradients a rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradients {
    /// An element for every element of the parameter.
    Dense,
    /// Rows of the parameter: the others are as if their gradient were zero, and stay as they are.
    Sparse,
    /// Both.
    Any,
}

/// What a state is, as far as that matters for keeping it in fewer bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKind {
    /// It stays as it is: weights, or what small errors would spoil.
    Exact,
    /// A mean or sum of gradients, or what matters no more where it is far below others.
    Signed,
    /// Never negative: a mean, sum or maximum of squares, or their roots.
    Magnitude,
    /// The same where errors grow: `bf16` holds it, rounded with fair odds, and codes do not.
    Fine,
    /// Signed, and divided by state `to`, which is a magnitude, or by its root.
    Relative {
        /// The place of the divisor among the states.
        to: u8,
        /// Whether its root divides.
        root: bool,
    },
}

/// An optimizer: its hyperparameters, read once per group and step.
pub trait Rule: Copy + Send + Sync + Sized {
    /// Its constants of a step.
    type Constants;

    /// Reads the hyperparameters of a group. (`maximize` is the driver's: it is a factor on the gradient.)
    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error>;

    /// The state arrays it keeps with these hyperparameters, by torch's names, in the order that formulas take them.
    fn states(&self) -> &'static [&'static str];

    /// The state arrays it keeps for a parameter of `dims` dimensions, where that makes a difference.
    fn states_of(&self, dims: usize) -> &'static [&'static str] {
        let _ = dims;
        self.states()
    }

    /// What each of its state arrays is; those that are not named are exact.
    fn kinds(&self) -> &'static [StateKind] {
        &[]
    }

    /// The scalar states it keeps, by torch's names; `step` first.
    fn scalars(&self) -> &'static [&'static str];

    /// The gradients it takes with these hyperparameters.
    fn gradients(&self) -> Gradients {
        Gradients::Dense
    }

    /// Whether hyperparameters and scalars are such that computing the constants is plain arithmetic wherever it is
    /// done: no division by zero, no power that overflows or is complex, no constant beyond `largest`. Elsewhere
    /// torch's Python may raise where IEEE arithmetic goes on to infinity, so there torch is asked.
    fn is_usual(&self, _scalars: &Scalars, _largest: f64) -> bool {
        true
    }

    /// Advances the scalars to this step and returns its constants. `first`: the states were made for this step.
    fn constants(&self, scalars: &mut Scalars, first: bool) -> Self::Constants;
}

/// One variant of a rule with the constants of a step: all that a loop needs.
pub trait Formula: Copy + Send + Sync {
    /// How many state arrays this variant reads and writes.
    const STATES: usize;
    /// Whether the formula leaves the new parameter in its one state, whatever was there: a large step need not read
    /// that.
    const STATE_IS_PARAM: bool = false;

    /// Rounds the constants to the arithmetic type, once, and returns the formula for one element:
    /// (parameter, gradient, states) -> (parameter, states).
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>);
}

/// Something to do with whichever formula a rule's flags select.
pub trait Visitor {
    /// Does it.
    fn visit<F: Formula>(self, formula: F);
}
