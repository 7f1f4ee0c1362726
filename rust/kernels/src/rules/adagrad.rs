//! Adagrad: a learning rate per element that falls with the squares of all gradients so far.
//!
//! ```text
//! g <- g + lambda theta                      if lambda (weight_decay) != 0
//! h <- h + g^2                               h is `sum`
//! theta <- theta - lr' g / (sqrt(h) + eps)   lr' = lr / (1 + (t - 1) lr_decay), t is `step`
//! ```
//!
//! Duchi, Hazan, Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", 2011.
//! `h` is one fused multiply-add, the quotient is `addcdiv`: equal to torch's for-loop bit for bit.

use crate::arithmetic::Real;
use crate::rule::{Formula, Gradients, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct Adagrad {
    /// Learning rate.
    pub lr: f64,
    /// How fast the learning rate falls with the steps.
    pub lr_decay: f64,
    /// `lambda`.
    pub weight_decay: f64,
    /// Keeps the quotient finite.
    pub eps: f64,
}

/// Constants of a step.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    rule: Adagrad,
    decayed_lr: f64,
}

impl Rule for Adagrad {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        Ok(Self {
            lr: group.number("lr")?,
            lr_decay: group.number("lr_decay")?,
            weight_decay: group.number("weight_decay")?,
            eps: group.number("eps")?,
        })
    }

    fn states(&self) -> &'static [&'static str] {
        &["sum"]
    }

    fn kinds(&self) -> &'static [StateKind] {
        &[StateKind::Magnitude]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["step"]
    }

    fn gradients(&self) -> Gradients {
        // decay moves every row
        if self.weight_decay == 0.0 { Gradients::Any } else { Gradients::Dense }
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        scalars.is_counted()
            && self.lr_decay >= 0.0
            && within(largest, [self.lr, self.lr_decay, self.weight_decay, self.eps])
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        let t = scalars.count();
        Constants { rule: *self, decayed_lr: self.lr / (1.0 + (t - 1.0) * self.lr_decay) }
    }
}

#[derive(Clone, Copy)]
struct Variant<const DECAY: bool>(Constants);

impl<const DECAY: bool> Formula for Variant<DECAY> {
    const STATES: usize = 1;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let Constants { rule, decayed_lr } = self.0;
        let (minus_lr, lambda, eps) = (A::of(-decayed_lr), A::of(rule.weight_decay), A::of(rule.eps));

        move |theta, g, [h, s1, s2]| {
            let g = if DECAY { g.add_scaled(theta, lambda) } else { g };
            let h = h.addcmul(g, g, A::ONE);
            (theta.addcdiv(g, h.sqrt() + eps, minus_lr), [h, s1, s2])
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
