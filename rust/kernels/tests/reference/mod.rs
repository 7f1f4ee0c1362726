//! The judge of the kernels: each optimizer as its paper and torch's documentation state it, in f64, one element at a
//! time, as slow as it likes. Nothing here is shared with the kernels but the structs of hyperparameters.
//!
//! Two correct programs differ by rounding, by much where numbers cancel. What is allowed is therefore not guessed but
//! computed with the formula itself: an [`Interval`] holds whatever a program may get that rounds every operation once
//! (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 2.2). A fused multiply-add rounds less and
//! stays inside; a wrong sign, a missing factor or a lower precision does not.

use std::ops::{Add, Div, Index, IndexMut, Mul, Sub};

use oxistep_kernels::AnyRule;
use oxistep_kernels::rules::{adagrad::Adagrad, adam::Adam, rmsprop::RmsProp, sgd::Sgd};

/// One step of `rule`, its `t`-th, for one element; returns the parameter. `first`: the states were made for this step.
pub(crate) fn step(rule: &AnyRule, t: f64, first: bool, theta: Interval, g: Interval, s: &mut States<'_>) -> Interval {
    match rule {
        AnyRule::Sgd(h) => sgd(h, first, theta, g, s),
        AnyRule::Adagrad(h) => adagrad(h, t, theta, g, s),
        AnyRule::RmsProp(h) => rmsprop(h, theta, g, s),
        AnyRule::Adam(h) => adam(h, t, theta, g, s),
    }
}

fn sgd(h: &Sgd, first: bool, theta: Interval, g: Interval, s: &mut States<'_>) -> Interval {
    let g = g + h.weight_decay * theta;
    if h.momentum == 0.0 {
        return theta - h.lr * g;
    }
    let b = if first { g } else { h.momentum * s["momentum_buffer"] + (1.0 - h.dampening) * g };
    s["momentum_buffer"] = b;
    let direction = if h.nesterov { g + h.momentum * b } else { b };
    theta - h.lr * direction
}

fn adagrad(h: &Adagrad, t: f64, theta: Interval, g: Interval, s: &mut States<'_>) -> Interval {
    let g = g + h.weight_decay * theta;
    let lr = h.lr / (1.0 + (t - 1.0) * h.lr_decay);
    s["sum"] = s["sum"] + g.square();
    theta - lr * g / (s["sum"].sqrt() + h.eps)
}

fn rmsprop(h: &RmsProp, theta: Interval, g: Interval, s: &mut States<'_>) -> Interval {
    let g = g + h.weight_decay * theta;
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

fn adam(h: &Adam, t: f64, theta: Interval, g: Interval, s: &mut States<'_>) -> Interval {
    let (theta, g) = if h.decoupled_weight_decay {
        ((1.0 - h.lr * h.weight_decay) * theta, g)
    } else {
        (theta, g + h.weight_decay * theta)
    };
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

/// `beta old + (1 - beta) new`. The kernels interpolate as `torch.lerp` does, which is as accurate as the two products
/// but knows only `1 - beta`, so the rounding of that one is what the old value's coefficient suffers.
fn average(old: Interval, new: Interval, beta: f64) -> Interval {
    let weight = Interval::constant(1.0 - beta, new.arithmetic);
    let keep = Interval { low: 1.0 - weight.high, high: 1.0 - weight.low, arithmetic: new.arithmetic };
    keep * old + weight * new
}

/// `1 - beta^t`, always computed in f64. Near one the power cancels: one unit in its last place is then many of the
/// difference, and two libraries may differ by it.
fn bias_correction(beta: f64, t: f64) -> Interval {
    let power = beta.powf(t);
    let slack = 2.0 * f64::EPSILON * power;
    Interval { low: 1.0 - power - slack, high: 1.0 - power + slack, arithmetic: Arithmetic::Double }
}

/// The states of one element, by torch's names.
pub(crate) struct States<'a> {
    pub(crate) names: &'static [&'static str],
    pub(crate) values: &'a mut [Interval],
}

impl States<'_> {
    fn place(&self, name: &str) -> usize {
        self.names.iter().position(|&known| known == name).expect("the rule keeps this state")
    }
}

impl Index<&str> for States<'_> {
    type Output = Interval;
    fn index(&self, name: &str) -> &Interval {
        &self.values[self.place(name)]
    }
}

impl IndexMut<&str> for States<'_> {
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
            Self { low: f64::NEG_INFINITY, high: f64::INFINITY, arithmetic }
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

    fn square(self) -> Self {
        let (a, b) = (self.low * self.low, self.high * self.high);
        let low = if self.low <= 0.0 && self.high >= 0.0 { 0.0 } else { a.min(b) };
        Self::between(low, a.max(b), self.arithmetic).rounded()
    }

    fn sqrt(self) -> Self {
        Self::between(self.low.sqrt(), self.high.sqrt(), self.arithmetic).rounded()
    }

    fn max(self, other: Self) -> Self {
        Self::between(self.low.max(other.low), self.high.max(other.high), self.arithmetic)
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
