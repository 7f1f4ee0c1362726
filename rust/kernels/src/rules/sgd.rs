//! Stochastic gradient descent, with momentum (Polyak) or Nesterov's.
//!
//! ```text
//! g <- g + lambda theta                      if lambda (weight_decay) != 0
//! b <- g                                     at the first step      } if mu (momentum) != 0;
//! b <- mu b + (1 - tau) g                    later, tau: dampening  } b is `momentum_buffer`
//! g <- g + mu b    if nesterov,   else b
//! theta <- theta - lr g
//! ```
//!
//! Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
//! Each line is one fused multiply-add, as torch's `add(alpha)` is: equal to torch's for-loop bit for bit.

use crate::arithmetic::Real;
use crate::rule::{Formula, Gradients, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// `mu`.
    pub momentum: f64,
    /// `tau`.
    pub dampening: f64,
    /// `lambda`.
    pub weight_decay: f64,
    /// Look ahead along the buffer.
    pub nesterov: bool,
}

/// Constants of a step.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    rule: Sgd,
    first: bool,
}

impl Rule for Sgd {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        Ok(Self {
            lr: group.number("lr")?,
            momentum: group.number("momentum")?,
            dampening: group.number("dampening")?,
            weight_decay: group.number("weight_decay")?,
            nesterov: group.flag("nesterov")?,
        })
    }

    fn states(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["momentum_buffer"] }
    }

    fn kinds(&self) -> &'static [StateKind] {
        if self.momentum == 0.0 { &[] } else { &[StateKind::Signed] }
    }

    fn scalars(&self) -> &'static [&'static str] {
        &[]
    }

    fn gradients(&self) -> Gradients {
        // a buffer, or decay, moves every row
        if self.momentum == 0.0 && self.weight_decay == 0.0 { Gradients::Any } else { Gradients::Dense }
    }

    fn is_usual(&self, _: &Scalars, largest: f64) -> bool {
        within(largest, [self.lr, self.momentum, self.dampening, self.weight_decay])
    }

    fn constants(&self, _: &mut Scalars, first: bool) -> Constants {
        Constants { rule: *self, first }
    }
}

/// No buffer; a buffer used at later steps; a buffer made at this step.
const PLAIN: u8 = 0;
const LATER: u8 = 1;
const FIRST: u8 = 2;

#[derive(Clone, Copy)]
struct Variant<const MOMENTUM: u8, const NESTEROV: bool, const DECAY: bool>(Sgd);

impl<const MOMENTUM: u8, const NESTEROV: bool, const DECAY: bool> Formula for Variant<MOMENTUM, NESTEROV, DECAY> {
    const STATES: usize = if MOMENTUM == PLAIN { 0 } else { 1 };

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let Sgd { lr, momentum, dampening, weight_decay, .. } = self.0;
        let (minus_lr, mu, lambda) = (A::of(-lr), A::of(momentum), A::of(weight_decay));
        let one_minus_tau = A::of(1.0 - dampening);

        move |theta, g, [mut b, s1, s2]| {
            let mut g = if DECAY { g.add_scaled(theta, lambda) } else { g };
            if MOMENTUM != PLAIN {
                b = if MOMENTUM == FIRST { g } else { (mu * b).add_scaled(g, one_minus_tau) };
                g = if NESTEROV { g.add_scaled(b, mu) } else { b };
            }
            (theta.add_scaled(g, minus_lr), [b, s1, s2])
        }
    }
}

impl Constants {
    /// Selects the variant once, outside the loop.
    #[inline(always)]
    pub(crate) fn visit(&self, visitor: impl Visitor) {
        let rule = self.rule;
        let momentum = match (rule.momentum == 0.0, self.first) {
            (true, _) => PLAIN,
            (false, true) => FIRST,
            (false, false) => LATER,
        };
        match (momentum, rule.nesterov, rule.weight_decay != 0.0) {
            (PLAIN, _, false) => visitor.visit(Variant::<PLAIN, false, false>(rule)),
            (PLAIN, _, true) => visitor.visit(Variant::<PLAIN, false, true>(rule)),
            (FIRST, false, false) => visitor.visit(Variant::<FIRST, false, false>(rule)),
            (FIRST, false, true) => visitor.visit(Variant::<FIRST, false, true>(rule)),
            (FIRST, true, false) => visitor.visit(Variant::<FIRST, true, false>(rule)),
            (FIRST, true, true) => visitor.visit(Variant::<FIRST, true, true>(rule)),
            (_, false, false) => visitor.visit(Variant::<LATER, false, false>(rule)),
            (_, false, true) => visitor.visit(Variant::<LATER, false, true>(rule)),
            (_, true, false) => visitor.visit(Variant::<LATER, true, false>(rule)),
            (_, true, true) => visitor.visit(Variant::<LATER, true, true>(rule)),
        }
    }
}
