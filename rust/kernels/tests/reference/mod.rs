//! The judge of the kernels: each optimizer as its paper and torch's documentation state it, in f64, one element at a
//! time, as slow as it likes. Nothing here is shared with the kernels but the structs of hyperparameters.
//!
//! Two correct programs differ by rounding, by much where numbers cancel. What is allowed is therefore not guessed but
//! computed with the formula itself: an [`Interval`] holds whatever a program may get that rounds every operation once
//! (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 2.2). A fused multiply-add rounds less and
//! stays inside; a wrong sign, a missing factor or a lower precision does not.

use std::ops::{Add, Div, Index, IndexMut, Mul, Sub};

use oxistep_kernels::AnyRule;
use oxistep_kernels::rules::{
    adadelta::Adadelta, adagrad::Adagrad, adam::Adam, adamax::Adamax, asgd::Asgd, nadam::NAdam, radam::RAdam,
    rmsprop::RmsProp, rprop::Rprop, sgd::Sgd, sparse_adam::SparseAdam,
};

/// One element before a step, with the scalar states of its parameter.
pub(crate) struct Element<'a> {
    pub(crate) theta: Interval,
    pub(crate) grad: Interval,
    pub(crate) states: Named<'a>,
    pub(crate) scalars: Named<'a>,
    /// How the owner of the scalars rounds what it keeps.
    pub(crate) keep: &'a dyn Fn(f64) -> f64,
    /// Which step this is, from 1.
    pub(crate) t: f64,
    /// The states were made for this step.
    pub(crate) first: bool,
}

/// Makes one step with one element; returns the parameter and leaves the new states in place.
pub(crate) fn step(rule: &AnyRule, x: Element<'_>) -> Interval {
    match rule {
        AnyRule::Sgd(h) => sgd(h, x),
        AnyRule::Adagrad(h) => adagrad(h, x),
        AnyRule::RmsProp(h) => rmsprop(h, x),
        AnyRule::Adam(h) => adam(h, x),
        AnyRule::Adadelta(h) => adadelta(h, x),
        AnyRule::Adamax(h) => adamax(h, x),
        AnyRule::NAdam(h) => nadam(h, x),
        AnyRule::RAdam(h) => radam(h, x),
        AnyRule::Asgd(h) => asgd(h, x),
        AnyRule::Rprop(h) => rprop(h, x),
        AnyRule::SparseAdam(h) => sparse_adam(h, x),
        AnyRule::Adafactor(_) => unreachable!("it has no formula for one element: see factored.rs"),
    }
}

fn sgd(h: &Sgd, Element { theta, grad, states: mut s, first, .. }: Element<'_>) -> Interval {
    let g = grad + h.weight_decay * theta;
    if h.momentum == 0.0 {
        return theta - h.lr * g;
    }
    let b = if first { g } else { h.momentum * s["momentum_buffer"] + (1.0 - h.dampening) * g };
    s["momentum_buffer"] = b;
    let direction = if h.nesterov { g + h.momentum * b } else { b };
    theta - h.lr * direction
}

fn adagrad(h: &Adagrad, Element { theta, grad, states: mut s, t, .. }: Element<'_>) -> Interval {
    let g = grad + h.weight_decay * theta;
    let lr = h.lr / (1.0 + (t - 1.0) * h.lr_decay);
    s["sum"] = s["sum"] + g.square();
    theta - lr * g / (s["sum"].sqrt() + h.eps)
}

fn rmsprop(h: &RmsProp, Element { theta, grad, states: mut s, .. }: Element<'_>) -> Interval {
    let g = grad + h.weight_decay * theta;
    s["square_avg"] = h.alpha * s["square_avg"] + (1.0 - h.alpha) * g.square();
    let variance = if h.centered {
        s["grad_avg"] = average(s["grad_avg"], g, h.alpha);
        s["square_avg"] - s["grad_avg"].square()
    } else {
        s["square_avg"]
    };
    let deviation = variance.sqrt() + h.eps;
    if h.momentum > 0.0 {
        s["momentum_buffer"] = h.momentum * s["momentum_buffer"] + g / deviation;
        theta - h.lr * s["momentum_buffer"]
    } else {
        theta - h.lr * g / deviation
    }
}

fn adam(h: &Adam, Element { theta, grad, states: mut s, t, .. }: Element<'_>) -> Interval {
    let (theta, g) = decayed(theta, grad, h.lr, h.weight_decay, h.decoupled_weight_decay);
    s["exp_avg"] = average(s["exp_avg"], g, h.beta1);
    s["exp_avg_sq"] = h.beta2 * s["exp_avg_sq"] + (1.0 - h.beta2) * g.square();
    let v = if h.amsgrad {
        s["max_exp_avg_sq"] = s["max_exp_avg_sq"].max(s["exp_avg_sq"]);
        s["max_exp_avg_sq"]
    } else {
        s["exp_avg_sq"]
    };
    let m_hat = s["exp_avg"] / bias_correction(h.beta1, t);
    let v_hat = v / bias_correction(h.beta2, t);
    theta - h.lr * m_hat / (v_hat.sqrt() + h.eps)
}

fn adadelta(h: &Adadelta, Element { theta, grad, states: mut s, .. }: Element<'_>) -> Interval {
    let g = grad + h.weight_decay * theta;
    s["square_avg"] = h.rho * s["square_avg"] + (1.0 - h.rho) * g.square();
    let delta = (s["acc_delta"] + h.eps).sqrt() / (s["square_avg"] + h.eps).sqrt() * g;
    s["acc_delta"] = h.rho * s["acc_delta"] + (1.0 - h.rho) * delta.square();
    theta - h.lr * delta
}

fn adamax(h: &Adamax, Element { theta, grad, states: mut s, t, .. }: Element<'_>) -> Interval {
    let g = grad + h.weight_decay * theta;
    s["exp_avg"] = average(s["exp_avg"], g, h.beta1);
    s["exp_inf"] = (h.beta2 * s["exp_inf"]).max(g.abs() + h.eps);
    theta - h.lr * (s["exp_avg"] / bias_correction(h.beta1, t)) / s["exp_inf"]
}

fn nadam(h: &NAdam, Element { theta, grad, states: mut s, mut scalars, keep, t, .. }: Element<'_>) -> Interval {
    let (theta, g) = decayed(theta, grad, h.lr, h.weight_decay, h.decoupled_weight_decay);
    let mu = |t: f64| h.beta1 * (1.0 - 0.5 * Interval::double(0.96).power(t * h.momentum_decay));
    let product = scalars["mu_product"] * mu(t).rounded_to(scalars["mu_product"].arithmetic);
    let product = product.kept(keep);
    scalars["mu_product"] = product;
    s["exp_avg"] = average(s["exp_avg"], g, h.beta1);
    s["exp_avg_sq"] = h.beta2 * s["exp_avg_sq"] + (1.0 - h.beta2) * g.square();
    let d = (s["exp_avg_sq"] / bias_correction(h.beta2, t)).sqrt() + h.eps;
    let of_grad = h.lr * (1.0 - mu(t)) / (1.0 - product.as_double());
    let of_mean = h.lr * mu(t + 1.0) / (1.0 - product.as_double() * mu(t + 1.0));
    theta - of_grad.rounded_to(g.arithmetic) * g / d - of_mean.rounded_to(g.arithmetic) * s["exp_avg"] / d
}

fn radam(h: &RAdam, Element { theta, grad, states: mut s, t, .. }: Element<'_>) -> Interval {
    let (theta, g) = decayed(theta, grad, h.lr, h.weight_decay, h.decoupled_weight_decay);
    s["exp_avg"] = average(s["exp_avg"], g, h.beta1);
    s["exp_avg_sq"] = h.beta2 * s["exp_avg_sq"] + (1.0 - h.beta2) * g.square();
    let m_hat = s["exp_avg"] / bias_correction(h.beta1, t);

    let correction = bias_correction(h.beta2, t);
    let rho_inf = 2.0 / (1.0 - h.beta2) - 1.0;
    let rho = rho_inf - 2.0 * t * Interval::double(h.beta2).power(t) / correction;
    if rho.high <= 5.0 {
        return theta - h.lr * m_hat;
    }
    if rho.low <= 5.0 {
        return Interval::anything(g.arithmetic);
    }
    let r = ((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)).sqrt();
    let l = correction.sqrt() / (s["exp_avg_sq"].sqrt() + h.eps);
    theta - h.lr * m_hat * (l * r.rounded_to(g.arithmetic))
}

fn asgd(h: &Asgd, Element { theta, grad, states: mut s, mut scalars, keep, t, .. }: Element<'_>) -> Interval {
    let g = grad + h.weight_decay * theta;
    // this step takes eta and mu of the one before
    let (eta, mu) = (scalars["eta"].low, scalars["mu"].low);
    let theta = (1.0 - h.lambd * eta) * theta - eta * g;
    s["ax"] = if mu == 1.0 { theta } else { s["ax"] + mu * (theta - s["ax"]) };
    let new_eta = h.lr / (1.0 + h.lambd * h.lr * Interval::double(t)).power(h.alpha);
    scalars["eta"] = new_eta.kept(keep);
    scalars["mu"] = Interval::double(1.0 / (t - h.t0).max(1.0)).kept(keep);
    theta
}

fn rprop(h: &Rprop, Element { theta, grad, states: mut s, .. }: Element<'_>) -> Interval {
    let agreement = grad * s["prev"];
    let (eta, g) = match (agreement.low, agreement.high) {
        (low, _) if low > 0.0 => (h.eta_plus, grad),
        (_, high) if high < 0.0 => (h.eta_minus, Interval::constant(0.0, grad.arithmetic)),
        (0.0, 0.0) => (1.0, grad),
        // the product may have underflowed: all that follows may be one thing or another
        _ => {
            (s["prev"], s["step_size"]) = (Interval::anything(grad.arithmetic), Interval::anything(grad.arithmetic));
            return Interval::anything(grad.arithmetic);
        }
    };
    let smallest = Interval::constant(h.smallest, grad.arithmetic);
    let largest = Interval::constant(h.largest, grad.arithmetic);
    s["prev"] = g;
    s["step_size"] = (eta * s["step_size"]).max(smallest).min(largest);
    match (g.low, g.high) {
        (low, _) if low > 0.0 => theta - s["step_size"],
        (_, high) if high < 0.0 => theta + s["step_size"],
        (0.0, 0.0) => theta,
        _ => Interval::anything(grad.arithmetic),
    }
}

fn sparse_adam(h: &SparseAdam, Element { theta, grad: g, states: mut s, t, .. }: Element<'_>) -> Interval {
    // torch's form for sparse gradients: for a small beta less accurate than two products
    let averaged = |old: Interval, new: Interval, beta: f64| old + (1.0 - beta) * (new - old);
    s["exp_avg"] = averaged(s["exp_avg"], g, h.beta1);
    // squares have no negative average, whatever its rounding
    s["exp_avg_sq"] = averaged(s["exp_avg_sq"], g.square(), h.beta2).max(Interval::constant(0.0, g.arithmetic));
    let step_size = h.lr * bias_correction(h.beta2, t).sqrt() / bias_correction(h.beta1, t);
    theta - step_size.rounded_to(g.arithmetic) * (s["exp_avg"] / (s["exp_avg_sq"].sqrt() + h.eps))
}

/// Weight decay of the parameter itself (decoupled) or through the gradient.
fn decayed(theta: Interval, g: Interval, lr: f64, weight_decay: f64, decoupled: bool) -> (Interval, Interval) {
    if decoupled { ((1.0 - lr * weight_decay) * theta, g) } else { (theta, g + weight_decay * theta) }
}

/// `beta old + (1 - beta) new`. The kernels interpolate as `torch.lerp` does, which is as accurate as the two products
/// but knows only `1 - beta`, so the rounding of that one is what the old value's coefficient suffers.
fn average(old: Interval, new: Interval, beta: f64) -> Interval {
    let weight = Interval::constant(1.0 - beta, new.arithmetic);
    let keep = Interval { low: 1.0 - weight.high, high: 1.0 - weight.low, arithmetic: new.arithmetic };
    keep * old + weight * new
}

/// `1 - beta^t`, in f64. Near one the power cancels: one unit in its last place is then many of the difference, and two
/// libraries may differ by it.
fn bias_correction(beta: f64, t: f64) -> Interval {
    1.0 - Interval::double(beta).power(t)
}

/// States by torch's names.
pub(crate) struct Named<'a> {
    pub(crate) names: &'static [&'static str],
    pub(crate) values: &'a mut [Interval],
}

impl Named<'_> {
    fn place(&self, name: &str) -> usize {
        self.names.iter().position(|&known| known == name).expect("the rule keeps this state")
    }
}

impl Index<&str> for Named<'_> {
    type Output = Interval;
    fn index(&self, name: &str) -> &Interval {
        &self.values[self.place(name)]
    }
}

impl IndexMut<&str> for Named<'_> {
    fn index_mut(&mut self, name: &str) -> &mut Interval {
        let place = self.place(name);
        &mut self.values[place]
    }
}

/// The precision that a kernel computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Single,
    Double,
}

impl Arithmetic {
    /// Relative error allowed for one operation: twice that of a correctly rounded one, because the bounds themselves
    /// are computed with rounding, in f64.
    fn epsilon(self) -> f64 {
        match self {
            Self::Single => f64::from(f32::EPSILON),
            Self::Double => f64::EPSILON,
        }
    }

    /// Absolute error of an operation that underflows.
    fn tiny(self) -> f64 {
        match self {
            Self::Single => f64::from(f32::from_bits(1)),
            Self::Double => f64::from_bits(1),
        }
    }

    fn max(self) -> f64 {
        match self {
            Self::Single => f64::from(f32::MAX),
            Self::Double => f64::MAX,
        }
    }
}

/// All values that an expression may have after rounding. A plain `f64` in an expression is a constant of the step,
/// rounded once to the arithmetic of the interval it meets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) high: f64,
    arithmetic: Arithmetic,
}

impl Interval {
    /// A value that was read from memory.
    pub(crate) fn exact(x: f64, arithmetic: Arithmetic) -> Self {
        Self::between(x, x, arithmetic)
    }

    /// A number of the f64 arithmetic that constants of a step are computed in.
    fn double(x: f64) -> Self {
        Self::exact(x, Arithmetic::Double)
    }

    /// What nothing is known of.
    fn anything(arithmetic: Arithmetic) -> Self {
        Self { low: f64::NEG_INFINITY, high: f64::INFINITY, arithmetic }
    }

    fn constant(x: f64, arithmetic: Arithmetic) -> Self {
        let representable = arithmetic == Arithmetic::Double || f64::from(x as f32) == x;
        let exact = Self::exact(x, arithmetic);
        if representable { exact } else { exact.rounded() }
    }

    /// Whatever overflows or is no number may be anything from there on: nothing is judged.
    fn between(low: f64, high: f64, arithmetic: Arithmetic) -> Self {
        if low.abs() <= arithmetic.max() && high.abs() <= arithmetic.max() {
            Self { low, high, arithmetic }
        } else {
            Self::anything(arithmetic)
        }
    }

    /// After one rounding, which never changes a sign.
    fn rounded(self) -> Self {
        let slack = |x: f64| x.abs() * self.arithmetic.epsilon() + self.arithmetic.tiny();
        let low = if self.low >= 0.0 { (self.low - slack(self.low)).max(0.0) } else { self.low - slack(self.low) };
        let high =
            if self.high <= 0.0 { (self.high + slack(self.high)).min(0.0) } else { self.high + slack(self.high) };
        Self::between(low, high, self.arithmetic)
    }

    /// Rounded once more where it changes the arithmetic, as the constants of a step are.
    fn rounded_to(self, arithmetic: Arithmetic) -> Self {
        let same = Self { arithmetic, ..self };
        if self.arithmetic == arithmetic { same } else { same.rounded() }
    }

    /// Rounded as storage does. Rounding keeps order, so that of the bounds will do.
    pub(crate) fn kept(self, keep: impl Fn(f64) -> f64) -> Self {
        Self { low: keep(self.low), high: keep(self.high), arithmetic: self.arithmetic }
    }

    /// The same numbers, to be computed with in f64.
    fn as_double(self) -> Self {
        Self { arithmetic: Arithmetic::Double, ..self }
    }

    fn abs(self) -> Self {
        let (a, b) = (self.low.abs(), self.high.abs());
        let low = if self.low <= 0.0 && self.high >= 0.0 { 0.0 } else { a.min(b) };
        Self::between(low, a.max(b), self.arithmetic)
    }

    /// A positive number to some power: mathematics libraries promise no more than a few units in the last place.
    fn power(self, exponent: f64) -> Self {
        let (a, b) = (self.low.powf(exponent), self.high.powf(exponent));
        Self::between(a.min(b), a.max(b), self.arithmetic).rounded()
    }

    fn square(self) -> Self {
        self.abs() * self.abs()
    }

    fn sqrt(self) -> Self {
        Self::between(self.low.sqrt(), self.high.sqrt(), self.arithmetic).rounded()
    }

    fn max(self, other: Self) -> Self {
        Self::between(self.low.max(other.low), self.high.max(other.high), self.arithmetic)
    }

    fn min(self, other: Self) -> Self {
        Self::between(self.low.min(other.low), self.high.min(other.high), self.arithmetic)
    }

    /// The lower precision of two. (f64 constants of the step meet f32 values.)
    fn common(self, other: Self) -> Arithmetic {
        if self.arithmetic == Arithmetic::Single { Arithmetic::Single } else { other.arithmetic }
    }

    pub(crate) fn is_bounded(self) -> bool {
        self.low.is_finite() && self.high.is_finite()
    }
}

impl Add for Interval {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::between(self.low + other.low, self.high + other.high, self.common(other)).rounded()
    }
}

impl Sub for Interval {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self::between(self.low - other.high, self.high - other.low, self.common(other)).rounded()
    }
}

impl Mul for Interval {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        hull([self.low * other.low, self.low * other.high, self.high * other.low, self.high * other.high])
            .within(self.common(other))
    }
}

impl Div for Interval {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        if other.low <= 0.0 && other.high >= 0.0 {
            return Self::exact(f64::NAN, self.common(other));
        }
        hull([self.low / other.low, self.low / other.high, self.high / other.low, self.high / other.high])
            .within(self.common(other))
    }
}

impl Mul<Interval> for f64 {
    type Output = Interval;
    fn mul(self, other: Interval) -> Interval {
        Interval::constant(self, other.arithmetic) * other
    }
}

impl Sub<Interval> for f64 {
    type Output = Interval;
    fn sub(self, other: Interval) -> Interval {
        Interval::constant(self, other.arithmetic) - other
    }
}

impl Div<Interval> for f64 {
    type Output = Interval;
    fn div(self, other: Interval) -> Interval {
        Interval::constant(self, other.arithmetic) / other
    }
}

impl Add<Interval> for f64 {
    type Output = Interval;
    fn add(self, other: Interval) -> Interval {
        Interval::constant(self, other.arithmetic) + other
    }
}

impl Sub<f64> for Interval {
    type Output = Self;
    fn sub(self, other: f64) -> Self {
        self - Self::constant(other, self.arithmetic)
    }
}

impl Mul<f64> for Interval {
    type Output = Self;
    fn mul(self, other: f64) -> Self {
        self * Self::constant(other, self.arithmetic)
    }
}

impl Add<f64> for Interval {
    type Output = Self;
    fn add(self, other: f64) -> Self {
        self + Self::constant(other, self.arithmetic)
    }
}

struct Hull(f64, f64);

/// The smallest and the largest of the corners; no number if one is none.
fn hull(corners: [f64; 4]) -> Hull {
    if corners.iter().any(|x| x.is_nan()) {
        return Hull(f64::NAN, f64::NAN);
    }
    let least = corners.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = corners.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Hull(least, largest)
}

impl Hull {
    fn within(self, arithmetic: Arithmetic) -> Interval {
        Interval::between(self.0, self.1, arithmetic).rounded()
    }
}
