//! RAdam: Adam that adapts only once its estimate of the variance can be trusted.
//!
//! ```text
//! theta <- theta (1 - lr lambda)             if decoupled     } lambda: weight_decay
//! g <- g + lambda theta                      if coupled       }
//! m <- beta1 m + (1 - beta1) g               m is `exp_avg`
//! v <- beta2 v + (1 - beta2) g^2             v is `exp_avg_sq`
//! rho_inf = 2 / (1 - beta2) - 1,   rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)     t is `step`
//! r = sqrt((rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t))
//! theta <- theta - lr m / (1 - beta1^t) sqrt(1 - beta2^t) / (sqrt(v) + eps) r        if rho_t > 5
//! theta <- theta - lr m / (1 - beta1^t)                                              else
//! ```
//!
//! Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", 2019.
//! In torch's order of operations (its quotient of a number and a tensor is the number times the tensor's reciprocal):
//! equal to its for-loop bit for bit in f32.

use crate::arithmetic::Real;
use crate::rule::{Formula, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, decays, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct RAdam {
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
    /// Decay the parameter instead of adding to the gradient.
    pub decoupled_weight_decay: bool,
}

/// Constants of a step.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    rule: RAdam,
    bias_correction1: f64,
    bias_correction2_sqrt: f64,
    /// `r`; none while the variance cannot be trusted.
    rectification: Option<f64>,
}

impl Rule for RAdam {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        let (beta1, beta2) = group.pair("betas")?;
        Ok(Self {
            lr: group.number("lr")?,
            beta1,
            beta2,
            eps: group.number("eps")?,
            weight_decay: group.number("weight_decay")?,
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
        &["step"]
    }

    fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
        scalars.is_counted()
            && decays(self.beta1)
            && decays(self.beta2)
            && within(largest, [self.lr, self.weight_decay, self.eps])
    }

    fn constants(&self, scalars: &mut Scalars, _first: bool) -> Constants {
        let t = scalars.count();
        let beta2_t = libm::pow(self.beta2, t);
        let bias_correction2 = 1.0 - beta2_t;
        let rho_inf = 2.0 / (1.0 - self.beta2) - 1.0;
        let rho = rho_inf - 2.0 * t * beta2_t / bias_correction2;
        let r = || ((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)).sqrt();
        Constants {
            rule: *self,
            bias_correction1: 1.0 - libm::pow(self.beta1, t),
            bias_correction2_sqrt: bias_correction2.sqrt(),
            rectification: (rho > 5.0).then(r),
        }
    }
}

#[derive(Clone, Copy)]
struct Variant<const RECTIFIED: bool, const COUPLED: bool>(Constants, f64);

impl<const RECTIFIED: bool, const COUPLED: bool> Formula for Variant<RECTIFIED, COUPLED> {
    const STATES: usize = 2;

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let Constants { rule, bias_correction1, bias_correction2_sqrt, .. } = self.0;
        let one_minus_beta1 = A::of(1.0 - rule.beta1);
        let (beta2, one_minus_beta2) = (A::of(rule.beta2), A::of(1.0 - rule.beta2));
        let (bias_correction1, bias_correction2_sqrt) = (A::of(bias_correction1), A::of(bias_correction2_sqrt));
        let (lr, eps, lambda, r) = (A::of(rule.lr), A::of(rule.eps), A::of(rule.weight_decay), A::of(self.1));
        let keep = A::of(if rule.decoupled_weight_decay { 1.0 - rule.lr * rule.weight_decay } else { 1.0 });

        move |theta, g, [m, v, s2]| {
            let (theta, g) = if COUPLED { (theta, g.add_scaled(theta, lambda)) } else { (theta * keep, g) };
            let m = m.lerp(g, one_minus_beta1);
            let v = (v * beta2).addcmul(g, g, one_minus_beta2);
            let mut update = m / bias_correction1 * lr;
            if RECTIFIED {
                update = update * (A::ONE / (v.sqrt() + eps) * bias_correction2_sqrt) * r;
            }
            (theta - update, [m, v, s2])
        }
    }
}

impl Constants {
    /// Selects the variant once, outside the loop.
    #[inline(always)]
    pub(crate) fn visit(&self, visitor: impl Visitor) {
        let coupled = self.rule.weight_decay != 0.0 && !self.rule.decoupled_weight_decay;
        match (self.rectification, coupled) {
            (None, false) => visitor.visit(Variant::<false, false>(*self, 1.0)),
            (None, true) => visitor.visit(Variant::<false, true>(*self, 1.0)),
            (Some(r), false) => visitor.visit(Variant::<true, false>(*self, r)),
            (Some(r), true) => visitor.visit(Variant::<true, true>(*self, r)),
        }
    }
}
