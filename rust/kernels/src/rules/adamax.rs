//! Adamax: Adam with the largest recent gradient in place of the root mean square.
//!
//! ```text
//! g <- g + lambda theta                      if lambda (weight_decay) != 0
//! m <- beta1 m + (1 - beta1) g               m is `exp_avg`
//! u <- max(beta2 u, |g| + eps)               u is `exp_inf`
//! theta <- theta - lr / (1 - beta1^t) m / u  t is `step`
//! ```
//!
//! Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2014, section 7.1.
//! In torch's order of operations: equal to its for-loop bit for bit in f32.

use crate::arithmetic::Real;
use crate::rule::{Formula, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, decays, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct Adamax {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the largest gradient.
    pub beta2: f64,
    /// Keeps the quotient finite.
    pub eps: f64,
    /// `lambda`.
    pub weight_decay: f64,
}

/// Constants of a step.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    rule: Adamax,
    /// lr / (1 - beta1^t)
    step_size: f64,
}

impl Rule for Adamax {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        let (beta1, beta2) = group.pair("betas")?;
        Ok(Self {
            lr: group.number("lr")?,
            beta1,
            beta2,
            eps: group.number("eps")?,
            weight_decay: group.number("weight_decay")?,
        })
    }

    fn states(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_inf"]
    }

    fn kinds(&self) -> &'static [StateKind] {
        &[StateKind::Relative { to: 1, root: false }, StateKind::Magnitude]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["step"]
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        scalars.is_counted()
            && decays(self.beta1)
            && within(largest, [self.lr, self.beta2, self.weight_decay, self.eps])
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        let t = scalars.count();
        Constants { rule: *self, step_size: self.lr / (1.0 - libm::pow(self.beta1, t)) }
    }
}

#[derive(Clone, Copy)]
struct Variant<const DECAY: bool>(Constants);

impl<const DECAY: bool> Formula for Variant<DECAY> {
    const STATES: usize = 2;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let Constants { rule, step_size } = self.0;
        let (one_minus_beta1, beta2) = (A::of(1.0 - rule.beta1), A::of(rule.beta2));
        let (eps, lambda, minus_step_size) = (A::of(rule.eps), A::of(rule.weight_decay), A::of(-step_size));

        move |theta, g, [m, u, s2]| {
            let g = if DECAY { g.add_scaled(theta, lambda) } else { g };
            let m = m.lerp(g, one_minus_beta1);
            let u = (u * beta2).nan_max(g.abs() + eps);
            (theta.addcdiv(m, u, minus_step_size), [m, u, s2])
        }
    }
}

impl Constants {
    /// Selects the variant once, outside the loop.
    #[inline(always)]
    pub(crate) fn visit(&self, visitor: impl Visitor) {
        match self.rule.weight_decay != 0.0 {
            false => visitor.visit(Variant::<false>(*self)),
            true => visitor.visit(Variant::<true>(*self)),
        }
    }
}
