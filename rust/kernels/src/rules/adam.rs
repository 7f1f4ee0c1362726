//! Adam and AdamW.
//!
//! ```text
//! theta <- theta (1 - lr lambda)             if decoupled (AdamW)      } lambda: weight_decay
//! g <- g + lambda theta                      if coupled, lambda != 0   }
//! m <- beta1 m + (1 - beta1) g               m is `exp_avg`
//! v <- beta2 v + (1 - beta2) g^2             v is `exp_avg_sq`
//! u <- max(u, v)                             if amsgrad, else u = v; u is `max_exp_avg_sq`
//! theta <- theta - lr / (1 - beta1^t) m / (sqrt(u) / sqrt(1 - beta2^t) + eps)      t is `step`
//! ```
//!
//! Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2014; Loshchilov, Hutter, "Decoupled Weight Decay
//! Regularization", 2017; AMSGrad: Reddi, Kale, Kumar, "On the Convergence of Adam and Beyond", 2018.
//! `m` moves by `lerp`, `v` by `addcmul`, theta by `addcdiv`: equal to torch's for-loop bit for bit in f32. In f64 the
//! bias corrections may differ in the last place, since `pow` is the libm crate's on every platform.

use crate::arithmetic::Real;
use crate::rule::{Formula, Hyperparameters, Rule, Scalars, StateKind, States, Visitor, decays, within};

/// Hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
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
    /// Divide by the largest mean of squares so far.
    pub amsgrad: bool,
    /// Decay the parameter (AdamW) instead of adding to the gradient.
    pub decoupled_weight_decay: bool,
}

/// Constants of a step.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    rule: Adam,
    /// lr / (1 - beta1^t)
    step_size: f64,
    /// sqrt(1 - beta2^t)
    bias_correction2_sqrt: f64,
}

impl Rule for Adam {
    type Constants = Constants;

    fn read<H: Hyperparameters>(group: &mut H) -> Result<Self, H::Error> {
        let (beta1, beta2) = group.pair("betas")?;
        Ok(Self {
            lr: group.number("lr")?,
            beta1,
            beta2,
            eps: group.number("eps")?,
            weight_decay: group.number("weight_decay")?,
            amsgrad: group.flag("amsgrad")?,
            decoupled_weight_decay: group.flag("decoupled_weight_decay")?,
        })
    }

    fn states(&self) -> &'static [&'static str] {
        if self.amsgrad { &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"] } else { &["exp_avg", "exp_avg_sq"] }
    }

    fn kinds(&self) -> &'static [StateKind] {
        const KINDS: [StateKind; 3] =
            [StateKind::Relative { to: 1, root: true }, StateKind::Magnitude, StateKind::Magnitude];
        &KINDS[..if self.amsgrad { 3 } else { 2 }]
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
        Constants {
            rule: *self,
            step_size: self.lr / (1.0 - libm::pow(self.beta1, t)),
            bias_correction2_sqrt: (1.0 - libm::pow(self.beta2, t)).sqrt(),
        }
    }
}

/// `NEAR`: 1 - beta1 is known to be below one half, as `lerp` asks.
#[derive(Clone, Copy)]
struct Variant<const AMSGRAD: bool, const COUPLED: bool, const NEAR: bool>(Constants);

impl<const AMSGRAD: bool, const COUPLED: bool, const NEAR: bool> Formula for Variant<AMSGRAD, COUPLED, NEAR> {
    const STATES: usize = if AMSGRAD { 3 } else { 2 };

    #[inline(always)]
    fn formula<A: Real>(&self) -> impl Fn(A, A, States<A>) -> (A, States<A>) {
        let Constants { rule, step_size, bias_correction2_sqrt } = self.0;
        let one_minus_beta1 = A::of(1.0 - rule.beta1);
        let (beta2, one_minus_beta2) = (A::of(rule.beta2), A::of(1.0 - rule.beta2));
        let (minus_step_size, bias_correction2_sqrt) = (A::of(-step_size), A::of(bias_correction2_sqrt).divisor());
        let (eps, lambda) = (A::of(rule.eps), A::of(rule.weight_decay));
        // Multiplying by one changes nothing, so AdamW without decay needs no variant of its own.
        let keep = A::of(if rule.decoupled_weight_decay { 1.0 - rule.lr * rule.weight_decay } else { 1.0 });

        move |theta, g, [m, v, u]| {
            let (theta, g) = if COUPLED { (theta, g.add_scaled(theta, lambda)) } else { (theta * keep, g) };
            let m = if NEAR { m.lerp_near(g, one_minus_beta1) } else { m.lerp(g, one_minus_beta1) };
            let v = (v * beta2).addcmul(g, g, one_minus_beta2);
            let u = if AMSGRAD { u.nan_max(v) } else { v };
            let denom = u.sqrt().over(bias_correction2_sqrt) + eps;
            (theta.addcdiv(m, denom, minus_step_size), [m, v, u])
        }
    }
}

impl Constants {
    fn is_coupled(&self) -> bool {
        self.rule.weight_decay != 0.0 && !self.rule.decoupled_weight_decay
    }

    /// Selects the variant once, outside the loop.
    #[inline(always)]
    pub(crate) fn visit(&self, visitor: impl Visitor) {
        match (self.rule.amsgrad, self.is_coupled()) {
            (false, false) => visitor.visit(Variant::<false, false, false>(*self)),
            (false, true) => visitor.visit(Variant::<false, true, false>(*self)),
            (true, false) => visitor.visit(Variant::<true, false, false>(*self)),
            (true, true) => visitor.visit(Variant::<true, true, false>(*self)),
        }
    }

    /// The same of the usual ones alone. A choice less in them lets the compiler keep long loops in one piece.
    #[inline(always)]
    pub(crate) fn visit_usual(&self, visitor: impl Visitor) {
        let is_near = f32::of(1.0 - self.rule.beta1).abs() < 0.5;
        match (self.rule.amsgrad || !is_near, self.is_coupled()) {
            (false, false) => visitor.visit(Variant::<false, false, true>(*self)),
            (false, true) => visitor.visit(Variant::<false, true, true>(*self)),
            _ => {}
        }
    }
}
