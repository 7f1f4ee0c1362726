//! NAdam: Adam with Nesterov's look ahead.
//!
//! ```text
//! theta <- theta (1 - lr lambda)             if decoupled     } lambda: weight_decay
//! g <- g + lambda theta                      if coupled       }
//! mu_t = beta1 (1 - 0.96^(t psi) / 2)        psi: momentum_decay; t is `step`
//! P <- P mu_t                                P is `mu_product`
//! m <- beta1 m + (1 - beta1) g               m is `exp_avg`
//! v <- beta2 v + (1 - beta2) g^2             v is `exp_avg_sq`
//! d <- sqrt(v / (1 - beta2^t)) + eps
//! theta <- theta - lr (1 - mu_t) / (1 - P) g / d - lr mu_{t+1} / (1 - P mu_{t+1}) m / d
//! ```
//!
//! Dozat, "Incorporating Nesterov Momentum into Adam", 2016.
//! In torch's order of operations: equal to its for-loop bit for bit in f32.

use crate::arithmetic::Real;
use crate::rule::{Formula, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, decays, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct NAdam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squares.
    pub beta2: f64,
    /// Keeps the quotient finite.
    pub eps: f64,
    /// `lambda`.
    pub weight_decay: f64,
    /// `psi`.
    pub momentum_decay: f64,
    /// Decay the parameter instead of adding to the gradient.
    pub decoupled_weight_decay: bool,
}

/// Constants of a step.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    rule: NAdam,
    bias_correction2: f64,
    /// -lr (1 - mu_t) / (1 - P)
    grad_factor: f64,
    /// -lr mu_{t+1} / (1 - P mu_{t+1})
    mean_factor: f64,
}

impl Rule for NAdam {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        let (beta1, beta2) = group.pair("betas")?;
        Ok(Self {
            lr: group.number("lr")?,
            beta1,
            beta2,
            eps: group.number("eps")?,
            weight_decay: group.number("weight_decay")?,
            momentum_decay: group.number("momentum_decay")?,
            decoupled_weight_decay: group.flag("decoupled_weight_decay")?,
        })
    }

    fn states(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn kinds(&self) -> &'static [StateKind] {
        &[StateKind::Relative { to: 1, root: true }, StateKind::Magnitude]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["step", "mu_product"]
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        // 1 - mu_product divides, and mu_product may be kept in a half type
        scalars.is_counted()
            && decays(self.beta1)
            && self.beta1 <= scalars.largest_factor(1)
            && (0.0..=1.0).contains(&scalars.get(1))
            && decays(self.beta2)
            && self.momentum_decay >= 0.0
            && within(largest, [self.lr, self.momentum_decay, self.weight_decay, self.eps])
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        let t = scalars.count();
        let mu = |t: f64| self.beta1 * (1.0 - 0.5 * libm::pow(0.96, t * self.momentum_decay));
        let (mu_t, mu_next) = (mu(t), mu(t + 1.0));
        let product = scalars.multiply(1, mu_t);
        Constants {
            rule: *self,
            bias_correction2: 1.0 - libm::pow(self.beta2, t),
            grad_factor: -self.lr * (1.0 - mu_t) / (1.0 - product),
            mean_factor: (-self.lr * mu_next) / (1.0 - product * mu_next),
        }
    }
}

#[derive(Clone, Copy)]
struct Variant<const COUPLED: bool>(Constants);

impl<const COUPLED: bool> Formula for Variant<COUPLED> {
    const STATES: usize = 2;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let Constants { rule, bias_correction2, grad_factor, mean_factor } = self.0;
        let one_minus_beta1 = A::of(1.0 - rule.beta1);
        let (beta2, one_minus_beta2) = (A::of(rule.beta2), A::of(1.0 - rule.beta2));
        let (bias_correction2, eps, lambda) = (A::of(bias_correction2), A::of(rule.eps), A::of(rule.weight_decay));
        let (grad_factor, mean_factor) = (A::of(grad_factor), A::of(mean_factor));
        let keep = A::of(if rule.decoupled_weight_decay { 1.0 - rule.lr * rule.weight_decay } else { 1.0 });

        move |theta, g, [m, v, s2]| {
            let (theta, g) = if COUPLED { (theta, g.add_scaled(theta, lambda)) } else { (theta * keep, g) };
            let m = m.lerp(g, one_minus_beta1);
            let v = (v * beta2).addcmul(g, g, one_minus_beta2);
            let d = (v / bias_correction2).sqrt() + eps;
            (theta.addcdiv(g, d, grad_factor).addcdiv(m, d, mean_factor), [m, v, s2])
        }
    }
}

impl Constants {
    /// Selects the variant once, outside the loop.
    #[inline(always)]
    pub(crate) fn visit(&self, visitor: impl Visitor) {
        match self.rule.weight_decay != 0.0 && !self.rule.decoupled_weight_decay {
            false => visitor.visit(Variant::<false>(*self)),
            true => visitor.visit(Variant::<true>(*self)),
        }
    }
}
