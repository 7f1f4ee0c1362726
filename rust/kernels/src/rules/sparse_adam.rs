//! SparseAdam: Adam on the rows that a sparse gradient names; the moments of other rows stand still.
//!
//! ```text
//! m <- m + (1 - beta1) (g - m)               m is `exp_avg`
//! v <- v + (1 - beta2) (g^2 - v)             v is `exp_avg_sq`
//! theta <- theta - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)      t is `step`
//! ```
//!
//! Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2014, with the bias corrections of the end of section 2
//! and eps outside the corrected root, as in torch.

use crate::arithmetic::Real;
use crate::rule::{Formula, Gradients, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, decays, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct SparseAdam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squares.
    pub beta2: f64,
    /// Keeps the quotient finite.
    pub eps: f64,
}

/// Constants of a step.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    rule: SparseAdam,
    /// lr sqrt(1 - beta2^t) / (1 - beta1^t)
    step_size: f64,
}

impl Rule for SparseAdam {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        let (beta1, beta2) = group.pair("betas")?;
        Ok(Self { lr: group.number("lr")?, beta1, beta2, eps: group.number("eps")? })
    }

    fn states(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn kinds(&self) -> &'static [StateKind] {
        &[StateKind::Relative { to: 1, root: true }, StateKind::Magnitude]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["step"]
    }

    fn gradients(&self) -> Gradients {
        Gradients::Sparse
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        scalars.is_counted() && decays(self.beta1) && decays(self.beta2) && within(largest, [self.lr, self.eps])
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        let t = scalars.count();
        let bias_correction1 = 1.0 - libm::pow(self.beta1, t);
        let bias_correction2 = 1.0 - libm::pow(self.beta2, t);
        Constants { rule: *self, step_size: self.lr * bias_correction2.sqrt() / bias_correction1 }
    }
}

impl Formula for Constants {
    const STATES: usize = 2;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let Constants { rule, step_size } = *self;
        let (one_minus_beta1, one_minus_beta2) = (A::of(1.0 - rule.beta1), A::of(1.0 - rule.beta2));
        let (eps, minus_step_size) = (A::of(rule.eps), A::of(-step_size));

        move |theta, g, [m, v, s2]| {
            let m = m + (g - m) * one_minus_beta1;
            let v = v + (g * g - v) * one_minus_beta2;
            (theta + minus_step_size * (m / (v.sqrt() + eps)), [m, v, s2])
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
