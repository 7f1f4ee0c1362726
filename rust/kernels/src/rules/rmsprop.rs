//! RMSprop: the gradient divided by a running root mean square of itself.
//!
//! ```text
//! g <- g + lambda theta                      if lambda (weight_decay) != 0
//! v <- alpha v + (1 - alpha) g^2             v is `square_avg`
//! a <- alpha a + (1 - alpha) g               if centered; a is `grad_avg`
//! d <- sqrt(v - a^2) + eps                   (a^2 only if centered)
//! b <- mu b + g / d                          if mu (momentum) > 0; b is `momentum_buffer`
//! theta <- theta - lr b                      if mu > 0, else theta - lr g / d
//! ```
//!
//! Hinton, lecture 6 of "Neural Networks for Machine Learning", 2012; centered: Graves, "Generating Sequences With
//! Recurrent Neural Networks", 2013. `a` moves by `lerp`, squares are added by `addcmul`, quotients by `addcdiv`:
//! equal to torch's for-loop bit for bit.

use crate::arithmetic::Real;
use crate::rule::{Formula, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct RmsProp {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the running averages.
    pub alpha: f64,
    /// Keeps the quotient finite.
    pub eps: f64,
    /// `lambda`.
    pub weight_decay: f64,
    /// `mu`.
    pub momentum: f64,
    /// Divide by the standard deviation instead of the root mean square.
    pub centered: bool,
}

/// Constants of a step: none but the hyperparameters.
pub type Constants = RmsProp;

impl Rule for RmsProp {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        Ok(Self {
            lr: group.number("lr")?,
            alpha: group.number("alpha")?,
            eps: group.number("eps")?,
            weight_decay: group.number("weight_decay")?,
            momentum: group.number("momentum")?,
            centered: group.flag("centered")?,
        })
    }

    fn states(&self) -> &'static [&'static str] {
        match (self.momentum > 0.0, self.centered) {
            (false, false) => &["square_avg"],
            (true, false) => &["square_avg", "momentum_buffer"],
            (false, true) => &["square_avg", "grad_avg"],
            (true, true) => &["square_avg", "momentum_buffer", "grad_avg"],
        }
    }

    fn kinds(&self) -> &'static [StateKind] {
        use StateKind::{Exact, Magnitude, Signed};
        // a variance is the difference of two states, which codes would make negative
        match (self.momentum > 0.0, self.centered) {
            (false, false) => &[Magnitude],
            (true, false) => &[Magnitude, Signed],
            (false, true) => &[Exact, Exact],
            (true, true) => &[Exact, Signed, Exact],
        }
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["step"]
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        scalars.is_counted() && within(largest, [self.lr, self.alpha, self.eps, self.weight_decay, self.momentum])
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        scalars.count();
        *self
    }
}

#[derive(Clone, Copy)]
struct Variant<const MOMENTUM: bool, const CENTERED: bool, const DECAY: bool>(RmsProp);

impl<const MOMENTUM: bool, const CENTERED: bool, const DECAY: bool> Formula for Variant<MOMENTUM, CENTERED, DECAY> {
    const STATES: usize = 1 + MOMENTUM as usize + CENTERED as usize;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let RmsProp { lr, alpha, eps, weight_decay, momentum, .. } = self.0;
        let (minus_lr, mu, lambda, eps) = (A::of(-lr), A::of(momentum), A::of(weight_decay), A::of(eps));
        let (alpha, one_minus_alpha) = (A::of(alpha), A::of(1.0 - alpha));

        move |theta, g, states| {
            let (v, mut b, mut a) = match (MOMENTUM, CENTERED) {
                (false, true) => (states[0], A::ZERO, states[1]),
                _ => (states[0], states[1], states[2]),
            };
            let g = if DECAY { g.add_scaled(theta, lambda) } else { g };
            let v = (v * alpha).addcmul(g, g, one_minus_alpha);
            let mut mean_square = v;
            if CENTERED {
                a = a.lerp(g, one_minus_alpha);
                mean_square = v.addcmul(a, a, -A::ONE);
            }
            let d = mean_square.sqrt() + eps;
            let theta = if MOMENTUM {
                b = (b * mu).addcdiv(g, d, A::ONE);
                theta.add_scaled(b, minus_lr)
            } else {
                theta.addcdiv(g, d, minus_lr)
            };
            match (MOMENTUM, CENTERED) {
                (false, true) => (theta, [v, a, states[2]]),
                _ => (theta, [v, b, a]),
            }
        }
    }
}

impl Constants {
    /// Selects the variant once, outside the loop.
    #[inline(always)]
    pub(crate) fn visit(&self, visitor: impl Visitor) {
        match (self.momentum > 0.0, self.centered, self.weight_decay != 0.0) {
            (false, false, false) => visitor.visit(Variant::<false, false, false>(*self)),
            (false, false, true) => visitor.visit(Variant::<false, false, true>(*self)),
            (false, true, false) => visitor.visit(Variant::<false, true, false>(*self)),
            (false, true, true) => visitor.visit(Variant::<false, true, true>(*self)),
            (true, false, false) => visitor.visit(Variant::<true, false, false>(*self)),
            (true, false, true) => visitor.visit(Variant::<true, false, true>(*self)),
            (true, true, false) => visitor.visit(Variant::<true, true, false>(*self)),
            (true, true, true) => visitor.visit(Variant::<true, true, true>(*self)),
        }
    }
}
