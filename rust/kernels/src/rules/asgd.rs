//! ASGD: gradient descent with a falling rate, and the average of the parameters it passes through.
//!
//! ```text
//! g <- g + lambda theta                      if lambda (weight_decay) != 0
//! theta <- theta (1 - lambd eta) - eta g     eta is `eta`
//! a <- a + mu (theta - a)                    if mu != 1, else theta; a is `ax`, mu is `mu`
//! eta <- lr / (1 + lambd lr t)^alpha         t is `step`
//! mu <- 1 / max(1, t - t0)
//! ```
//!
//! Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
//! In torch's order of operations, with eta and mu of the step before: equal to its for-loop bit for bit in f32.

use crate::arithmetic::Real;
use crate::rule::{Formula, Hyperparameters, Rule, Scalars, States, Visitor, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct Asgd {
    /// Learning rate.
    pub lr: f64,
    /// Decay, of the parameter and of the rate.
    pub lambd: f64,
    /// Power with which the rate falls.
    pub alpha: f64,
    /// When averaging starts.
    pub t0: f64,
    /// `lambda`.
    pub weight_decay: f64,
}

/// Constants of a step.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    rule: Asgd,
    eta: f64,
    mu: f64,
}

impl Rule for Asgd {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        Ok(Self {
            lr: group.number("lr")?,
            lambd: group.number("lambd")?,
            alpha: group.number("alpha")?,
            t0: group.number("t0")?,
            weight_decay: group.number("weight_decay")?,
        })
    }

    fn states(&self) -> &'static [&'static str] {
        &["ax"]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["step", "eta", "mu"]
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        // a root of a negative number, or a power beyond all bounds, are what must not come about
        scalars.is_counted()
            && self.lambd * self.lr >= 0.0
            && self.lambd * self.lr * (scalars.get(0) + 1.0) <= 1e38
            && (0.0..=8.0).contains(&self.alpha)
            && within(largest, [self.lr, self.lambd, self.weight_decay, scalars.get(1), scalars.get(2)])
            && self.t0.is_finite()
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        let constants = Constants { rule: *self, eta: scalars.get(1), mu: scalars.get(2) };
        let t = scalars.count();
        scalars.set_by_way_of_step(1, self.lr / libm::pow(1.0 + self.lambd * self.lr * t, self.alpha));
        scalars.set_by_way_of_step(2, 1.0 / (t - self.t0).max(1.0));
        constants
    }
}

#[derive(Clone, Copy)]
struct Variant<const AVERAGE: bool, const DECAY: bool>(Constants);

impl<const AVERAGE: bool, const DECAY: bool> Formula for Variant<AVERAGE, DECAY> {
    const STATES: usize = 1;
    const STATE_IS_PARAM: bool = !AVERAGE;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let Constants { rule, eta, mu } = self.0;
        let (keep, minus_eta, lambda) = (A::of(1.0 - rule.lambd * eta), A::of(-eta), A::of(rule.weight_decay));
        let mu = A::of(mu);

        move |theta, g, [a, s1, s2]| {
            let g = if DECAY { g.add_scaled(theta, lambda) } else { g };
            let theta = (theta * keep).add_scaled(g, minus_eta);
            let a = if AVERAGE { a + (theta - a) * mu } else { theta };
            (theta, [a, s1, s2])
        }
    }
}

impl Constants {
    /// Selects the variant once, outside the loop.
    #[inline(always)]
    pub(crate) fn visit(&self, visitor: impl Visitor) {
        match (self.mu != 1.0, self.rule.weight_decay != 0.0) {
            (false, false) => visitor.visit(Variant::<false, false>(*self)),
            (false, true) => visitor.visit(Variant::<false, true>(*self)),
            (true, false) => visitor.visit(Variant::<true, false>(*self)),
            (true, true) => visitor.visit(Variant::<true, true>(*self)),
        }
    }
}
