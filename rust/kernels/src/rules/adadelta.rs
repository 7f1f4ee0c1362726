//! Adadelta: the ratio of two running root mean squares, of updates and of gradients, in place of a learning rate.
//!
//! ```text
//! g <- g + lambda theta                      if lambda (weight_decay) != 0
//! v <- rho v + (1 - rho) g^2                 v is `square_avg`
//! d <- sqrt(u + eps) / sqrt(v + eps) g       u is `acc_delta`
//! u <- rho u + (1 - rho) d^2
//! theta <- theta - lr d
//! ```
//!
//! Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012.
//! In torch's order of operations: equal to its for-loop bit for bit.

use crate::arithmetic::Real;
use crate::rule::{Formula, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct Adadelta {
    /// Factor on the update; 1 in the paper.
    pub lr: f64,
    /// Decay of both running averages.
    pub rho: f64,
    /// Inside the roots; starts the first update off.
    pub eps: f64,
    /// `lambda`.
    pub weight_decay: f64,
}

/// Constants of a step: none but the hyperparameters.
pub type Constants = Adadelta;

impl Rule for Adadelta {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        Ok(Self {
            lr: group.number("lr")?,
            rho: group.number("rho")?,
            eps: group.number("eps")?,
            weight_decay: group.number("weight_decay")?,
        })
    }

    fn states(&self) -> &'static [&'static str] {
        &["square_avg", "acc_delta"]
    }

    fn kinds(&self) -> &'static [StateKind] {
        // An update is in proportion to the root of `acc_delta`, a mean of such updates: what errors add to it stays.
        // Those of `square_avg` add in the mean, since what is divided by too little grows by more than it shrinks
        // else; where a block's squares reach over a hundred octaves, codes have such errors. `acc_delta` itself is in
        // codes that are never coarse near the block's largest: far below, epsilon is added to it.
        &[StateKind::Fine, StateKind::Signed]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["step"]
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        scalars.is_counted() && within(largest, [self.lr, self.rho, self.eps, self.weight_decay])
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        scalars.count();
        *self
    }
}

#[derive(Clone, Copy)]
struct Variant<const DECAY: bool>(Adadelta);

impl<const DECAY: bool> Formula for Variant<DECAY> {
    const STATES: usize = 2;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let Adadelta { lr, rho, eps, weight_decay } = self.0;
        let (minus_lr, lambda, eps) = (A::of(-lr), A::of(weight_decay), A::of(eps));
        let (rho, one_minus_rho) = (A::of(rho), A::of(1.0 - rho));

        move |theta, g, [v, u, s2]| {
            let g = if DECAY { g.add_scaled(theta, lambda) } else { g };
            let v = (v * rho).addcmul(g, g, one_minus_rho);
            let d = (u + eps).sqrt() / (v + eps).sqrt() * g;
            let u = (u * rho).addcmul(d, d, one_minus_rho);
            (theta.add_scaled(d, minus_lr), [v, u, s2])
        }
    }
}

impl Constants {
    /// Selects the variant once, outside the loop.
    #[inline(always)]
    pub(crate) fn visit(&self, visitor: impl Visitor) {
        match self.weight_decay != 0.0 {
            false => visitor.visit(Variant::<false>(*self)),
            true => visitor.visit(Variant::<true>(*self)),
        }
    }
}
