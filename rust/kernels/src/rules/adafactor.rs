//! Adafactor: each gradient over the root of a running mean of its squares, of which a matrix keeps only the means of
//! rows and columns.
//!
//! ```text
//! alpha <- max(eps2, RMS(theta)) min(lr, 1 / sqrt(t))        t is `step`; RMS is the root of the mean square
//! theta <- theta (1 - lr lambda)                             lambda: weight_decay
//! R <- R + t^tau (mean of g^2 in each row - R)               } a matrix; tau: beta2_decay,
//! C <- C + t^tau (mean of g^2 in each column - C)            } R is `row_var`, C is `col_var`
//! V_ij <- R_i C_j / max(mean of R, eps1)                     }
//! V <- V + t^tau (g^2 - V)                                   one dimension or none; V is `variance`
//! u <- g / sqrt(max(V, eps1^2))
//! theta <- theta - alpha / max(1, RMS(u) / d) u
//! ```
//!
//! A tensor of more than two dimensions is a batch of matrices: V is theirs one by one, both RMS are of the whole
//! tensor. Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, with torch's place
//! for eps1.
//!
//! No rule for one element: the loops are those of [`crate::factored`]. Sums are in f64 over a fixed tree; torch sums
//! in the type of the tensor, so the last places differ. A step divides by the states as they are stored, like torch.

use crate::arithmetic::Real;
use crate::rule::{Hyperparameters, Rule, Scalars, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct Adafactor {
    /// Learning rate: the largest relative step, and the factor of the decay.
    pub lr: f64,
    /// `tau`: how fast the weight of a new square falls.
    pub beta2_decay: f64,
    /// The smallest root of a mean of squares; `None`: the machine epsilon of a type that the owner knows.
    pub eps1: Option<f64>,
    /// The smallest root mean square of a parameter.
    pub eps2: f64,
    /// The largest root mean square of an update.
    pub d: f64,
    /// `lambda`.
    pub weight_decay: f64,
}

/// Constants of a step.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    rule: Adafactor,
    /// t^tau
    one_minus_beta2: f64,
    /// min(lr, 1 / sqrt(t))
    rho: f64,
}

impl Rule for Adafactor {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        let (eps1, eps2) = group.pair_or_none("eps")?;
        Ok(Self {
            lr: group.number("lr")?,
            beta2_decay: group.number("beta2_decay")?,
            eps1,
            eps2,
            d: group.number("d")?,
            weight_decay: group.number("weight_decay")?,
        })
    }

    fn states(&self) -> &'static [&'static str] {
        &["row_var", "col_var"]
    }

    fn states_of(&self, dims: usize) -> &'static [&'static str] {
        if dims > 1 { self.states() } else { &["variance"] }
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["step"]
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        // eps1 is squared, d divides, and a power of t must not overflow
        scalars.is_counted()
            && self.beta2_decay <= 0.0
            && self.d != 0.0
            && within(largest.sqrt(), [self.eps1.unwrap_or(0.0)])
            && within(largest, [self.lr, self.weight_decay, self.eps2, self.d])
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        let t = scalars.count();
        let falling = 1.0 / t.sqrt();
        Constants {
            rule: *self,
            one_minus_beta2: libm::pow(t, self.beta2_decay),
            rho: if falling < self.lr { falling } else { self.lr },
        }
    }
}

/// A NaN on the right loses, as in Python's `max`.
fn python_max(a: f64, b: f64) -> f64 {
    if b > a { b } else { a }
}

impl Constants {
    /// What to multiply the update by, from the sums of squares of a parameter and of its update, of `n` elements each.
    pub(crate) fn scale(&self, squares: f64, updates: f64, n: usize) -> f64 {
        let root_n = (n as f64).sqrt();
        let alpha = python_max(self.rule.eps2, squares.sqrt() / root_n) * self.rho;
        -alpha / python_max(1.0, updates.sqrt() / (root_n * self.rule.d))
    }

    /// The constants that the loops need, rounded once.
    #[inline(always)]
    pub(crate) fn round<A: Real>(&self, grad_factor: f64) -> Rounded<A> {
        let rule = &self.rule;
        let eps1 = rule.eps1.unwrap_or(0.0);
        Rounded {
            factor: A::of(grad_factor),
            weight: A::of(self.one_minus_beta2),
            eps1,
            smallest: A::of(eps1 * eps1),
            keep: A::of(1.0 - rule.lr * rule.weight_decay),
        }
    }
}

/// The constants of a step in the arithmetic type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounded<A> {
    /// Of the gradient.
    pub(crate) factor: A,
    /// Of a new square in a running mean.
    pub(crate) weight: A,
    eps1: f64,
    /// eps1^2
    smallest: A,
    keep: A,
}

impl<A: Real> Rounded<A> {
    /// R_i / max(mean of R, eps1), which times C_j is V_ij.
    #[inline(always)]
    pub(crate) fn row_factor(&self, row: A, mean: f64) -> A {
        let mean = if mean < self.eps1 { self.eps1 } else { mean };
        A::of(row.into() / mean)
    }

    /// max(V, eps1^2); NaN stays NaN.
    #[inline(always)]
    fn clamped(&self, v: A) -> A {
        if v < self.smallest { self.smallest } else { v }
    }

    /// u^2
    #[inline(always)]
    pub(crate) fn squared_update(&self, g: A, v: A) -> A {
        (g * g) / self.clamped(v)
    }

    /// theta after the step.
    #[inline(always)]
    pub(crate) fn updated(&self, theta: A, g: A, v: A, scale: A) -> A {
        (theta * self.keep).add_scaled(g / self.clamped(v).sqrt(), scale)
    }
}
