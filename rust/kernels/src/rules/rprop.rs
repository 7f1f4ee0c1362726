//! Rprop: each element steps by a size of its own, which grows while its gradient keeps its sign and shrinks when it
//! turns.
//!
//! ```text
//! e = eta_plus if g h > 0,  eta_minus if g h < 0,  else 1        h is `prev`; (eta_minus, eta_plus) = etas
//! s <- min(max(e s, s_min), s_max)                               s is `step_size`; (s_min, s_max) = step_sizes
//! g <- 0                                                         where e = eta_minus
//! theta <- theta - s sign(g)
//! h <- g
//! ```
//!
//! Riedmiller, Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", 1993.
//! Equal to torch's for-loop bit for bit. The learning rate is only what `step_size` starts with.

use crate::arithmetic::Real;
use crate::rule::{Formula, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct Rprop {
    /// Shrinks a step size.
    pub eta_minus: f64,
    /// Lets it grow.
    pub eta_plus: f64,
    /// The smallest step size.
    pub smallest: f64,
    /// The largest.
    pub largest: f64,
}

/// Constants of a step: none but the hyperparameters.
pub type Constants = Rprop;

impl Rule for Rprop {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        let (eta_minus, eta_plus) = group.pair("etas")?;
        let (smallest, largest) = group.pair("step_sizes")?;
        Ok(Self { eta_minus, eta_plus, smallest, largest })
    }

    fn states(&self) -> &'static [&'static str] {
        &["prev", "step_size"]
    }

    fn kinds(&self) -> &'static [StateKind] {
        &[StateKind::Signed, StateKind::Magnitude]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["step"]
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        // torch recognises a turn by its factor, which must therefore differ from zero, one and the other in any dtype
        scalars.is_counted()
            && (1e-3..=0.99).contains(&self.eta_minus)
            && self.eta_plus >= 1.01
            && within(largest, [self.eta_plus, self.smallest, self.largest])
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        scalars.count();
        *self
    }
}

impl Formula for Rprop {
    const STATES: usize = 2;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let (eta_minus, eta_plus) = (A::of(self.eta_minus), A::of(self.eta_plus));
        let (smallest, largest) = (A::of(self.smallest), A::of(self.largest));

        move |theta, g, [h, s, s2]| {
            let agreement = g * h;
            let turned = agreement < A::ZERO;
            let e = if agreement > A::ZERO { eta_plus } else { A::ONE };
            let e = if turned { eta_minus } else { e };
            let s = s * e;
            let s = if s < smallest { smallest } else { s };
            let s = if s > largest { largest } else { s };
            let g = if turned { A::ZERO } else { g };
            let sign = if g > A::ZERO { A::ONE } else { A::ZERO };
            let sign = if g < A::ZERO { -A::ONE } else { sign };
            (theta.addcmul(sign, s, -A::ONE), [g, s, s2])
        }
    }
}

impl Constants {
    /// There is one variant.
    #[inline(always)]
    pub(crate) fn visit(&self, visitor: impl Visitor) {
        visitor.visit(*self);
    }
}
