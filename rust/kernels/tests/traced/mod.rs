//! Programs as descriptions, and their judge: slow, obvious code, one element after the other.
#![allow(dead_code)] // each test file uses its own part

use oxistep_kernels::program::{Description, ops};

/// The nodes of a program while they are written down.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    pub(crate) words: Vec<u32>,
    pub(crate) constants: Vec<f64>,
    pub(crate) states: u32,
    pub(crate) inputs: u32,
    pub(crate) writes: Vec<u32>,
    pub(crate) wanted: Vec<u32>,
    /// Each node as it was written: its name, its operands, its further word.
    pub(crate) nodes: Vec<(&'static str, Vec<u32>, u32)>,
}

/// The number of an operation.
pub(crate) fn number(name: &str) -> (&'static str, u32) {
    *ops::NAMES.iter().find(|(known, _)| *known == name).unwrap()
}

impl Draft {
    /// An operation on earlier nodes.
    pub(crate) fn op(&mut self, name: &str, args: &[u32]) -> u32 {
        self.node(name, args, None)
    }

    /// A node that says which state, input or total it is.
    pub(crate) fn given(&mut self, name: &str, args: &[u32], what: u32) -> u32 {
        self.node(name, args, Some(what))
    }

    fn node(&mut self, name: &str, args: &[u32], what: Option<u32>) -> u32 {
        let (name, number) = number(name);
        self.words.push(number);
        self.words.extend_from_slice(args);
        self.words.extend(what);
        self.nodes.push((name, args.to_vec(), what.unwrap_or(0)));
        self.nodes.len() as u32 - 1
    }

    pub(crate) fn constant(&mut self, value: f64) -> u32 {
        self.constants.push(value);
        self.given("constant", &[], self.constants.len() as u32 - 1)
    }

    pub(crate) fn input(&mut self, k: u32) -> u32 {
        self.inputs = self.inputs.max(k + 1);
        self.given("input", &[], k)
    }

    pub(crate) fn state(&mut self, k: u32) -> u32 {
        self.states = self.states.max(k + 1);
        self.given("state", &[], k)
    }

    /// One less a power: what Adam divides a mean by.
    pub(crate) fn correction(&mut self, one: u32, beta: u32, step: u32) -> u32 {
        let power = self.op("pow", &[beta, step]);
        self.op("sub", &[one, power])
    }

    /// Writes a node to a stream: the parameter is 0, state k is 1 + k.
    pub(crate) fn write(&mut self, stream: u32, node: u32) {
        self.writes.extend([stream, node]);
    }

    pub(crate) fn description(&self) -> Description<'_> {
        Description {
            nodes: &self.words,
            constants: &self.constants,
            states: self.states,
            inputs: self.inputs,
            writes: &self.writes,
            wanted: &self.wanted,
        }
    }

    /// Whether each node has elements.
    pub(crate) fn elements(&self) -> Vec<bool> {
        let mut elements: Vec<bool> = Vec::new();
        for (name, args, _) in &self.nodes {
            elements.push(match *name {
                "param" | "grad" | "state" | "fill" => true,
                "sum" | "dot" | "max_abs" | "input" | "constant" | "total" | "numel" => false,
                _ => args.iter().any(|&arg| elements[arg as usize]),
            });
        }
        elements
    }
}

/// Adam as torch's for-loop does it; the inputs are lr, beta1, beta2, eps, the step.
pub(crate) fn adam() -> Draft {
    let mut d = Draft::default();
    let (p, g, m, v) = (d.op("param", &[]), d.op("grad", &[]), d.state(0), d.state(1));
    let [lr, beta1, beta2, eps, step] = [0, 1, 2, 3, 4].map(|k| d.input(k));
    let one = d.constant(1.0);
    let half = d.constant(0.5);
    let [w1, w2] = [beta1, beta2].map(|beta| d.op("sub", &[one, beta]));
    let m = d.op("lerp", &[m, g, w1]);
    let kept = d.op("mul", &[v, beta2]);
    let v = d.op("addcmul", &[kept, g, g, w2]);
    let corrections = [beta1, beta2].map(|beta| d.correction(one, beta, step));
    let (size, root) = (d.op("div", &[lr, corrections[0]]), d.op("pow", &[corrections[1], half]));
    let size = d.op("neg", &[size]);
    let denominator = d.op("sqrt", &[v]);
    let denominator = d.op("div", &[denominator, root]);
    let denominator = d.op("add", &[denominator, eps]);
    let p = d.op("addcdiv", &[p, m, denominator, size]);
    d.write(0, p);
    d.write(1, m);
    d.write(2, v);
    d
}

/// Adam as textbooks write it, with the same inputs.
pub(crate) fn textbook_adam() -> Draft {
    let mut d = Draft::default();
    let (p, g, m, v) = (d.op("param", &[]), d.op("grad", &[]), d.state(0), d.state(1));
    let [lr, beta1, beta2, eps, step] = [0, 1, 2, 3, 4].map(|k| d.input(k));
    let one = d.constant(1.0);
    let [w1, w2] = [beta1, beta2].map(|beta| d.op("sub", &[one, beta]));
    let (a, b) = (d.op("mul", &[beta1, m]), d.op("mul", &[w1, g]));
    let m = d.op("add", &[a, b]);
    let (a, b) = (d.op("mul", &[beta2, v]), d.op("mul", &[w2, g]));
    let b = d.op("mul", &[b, g]);
    let v = d.op("add", &[a, b]);
    let corrections = [beta1, beta2].map(|beta| d.correction(one, beta, step));
    let (m_hat, v_hat) = (d.op("div", &[m, corrections[0]]), d.op("div", &[v, corrections[1]]));
    let root = d.op("sqrt", &[v_hat]);
    let denominator = d.op("add", &[root, eps]);
    let ratio = d.op("mul", &[lr, m_hat]);
    let ratio = d.op("div", &[ratio, denominator]);
    let p = d.op("sub", &[p, ratio]);
    d.write(0, p);
    d.write(1, m);
    d.write(2, v);
    d
}

/// Adam over the corrected root, with the same inputs: the mean by `lerp` or by two products, the gradient squared
/// first or not.
pub(crate) fn adam_over_root(lerp: bool, squared: bool) -> Draft {
    let mut d = Draft::default();
    let (p, g, m, v) = (d.op("param", &[]), d.op("grad", &[]), d.state(0), d.state(1));
    let [lr, beta1, beta2, eps, step] = [0, 1, 2, 3, 4].map(|k| d.input(k));
    let one = d.constant(1.0);
    let [w1, w2] = [beta1, beta2].map(|beta| d.op("sub", &[one, beta]));
    let m = if lerp {
        d.op("lerp", &[m, g, w1])
    } else {
        let (a, b) = (d.op("mul", &[beta1, m]), d.op("mul", &[w1, g]));
        d.op("add", &[a, b])
    };
    let a = d.op("mul", &[beta2, v]);
    let first = d.op("mul", &[if squared { g } else { w2 }, g]);
    let b = d.op("mul", &if squared { [w2, first] } else { [first, g] });
    let v = d.op("add", &[a, b]);
    let corrections = [beta1, beta2].map(|beta| d.correction(one, beta, step));
    let (root, of_correction) = (d.op("sqrt", &[v]), d.op("sqrt", &[corrections[1]]));
    let root = d.op("div", &[root, of_correction]);
    let denominator = d.op("add", &[root, eps]);
    let size = d.op("div", &[lr, corrections[0]]);
    let ratio = d.op("mul", &[size, m]);
    let ratio = d.op("div", &[ratio, denominator]);
    let p = d.op("sub", &[p, ratio]);
    d.write(0, p);
    d.write(1, m);
    d.write(2, v);
    d
}

/// Momentum: v = beta v - lr g, p + v; the inputs are lr, beta.
pub(crate) fn momentum() -> Draft {
    let mut d = Draft::default();
    let (p, g, v) = (d.op("param", &[]), d.op("grad", &[]), d.state(0));
    let (lr, beta) = (d.input(0), d.input(1));
    let (a, b) = (d.op("mul", &[beta, v]), d.op("mul", &[lr, g]));
    let v = d.op("sub", &[a, b]);
    let p = d.op("add", &[p, v]);
    d.write(0, p);
    d.write(1, v);
    d
}

/// Lion; the inputs are lr, beta1, beta2, weight_decay.
pub(crate) fn lion() -> Draft {
    let mut d = Draft::default();
    let (p, g, m) = (d.op("param", &[]), d.op("grad", &[]), d.state(0));
    let [lr, beta1, beta2, decay] = [0, 1, 2, 3].map(|k| d.input(k));
    let one = d.constant(1.0);
    let blend = |d: &mut Draft, beta| {
        let rest = d.op("sub", &[one, beta]);
        let (a, b) = (d.op("mul", &[beta, m]), d.op("mul", &[rest, g]));
        d.op("add", &[a, b])
    };
    let (u, m) = (blend(&mut d, beta1), blend(&mut d, beta2));
    let u = d.op("sign", &[u]);
    let (lost, u) = (d.op("mul", &[lr, decay]), d.op("mul", &[lr, u]));
    let kept = d.op("sub", &[one, lost]);
    let p = d.op("mul", &[p, kept]);
    let p = d.op("sub", &[p, u]);
    d.write(0, p);
    d.write(1, m);
    d
}

/// As LAMB: Adam's step scaled by the ratio of two norms; the inputs are lr, beta1, beta2, eps.
pub(crate) fn lamb() -> Draft {
    let mut d = Draft::default();
    let (p, g, m, v) = (d.op("param", &[]), d.op("grad", &[]), d.state(0), d.state(1));
    let [lr, beta1, beta2, eps] = [0, 1, 2, 3].map(|k| d.input(k));
    let (zero, one) = (d.constant(0.0), d.constant(1.0));
    let [w1, w2] = [beta1, beta2].map(|beta| d.op("sub", &[one, beta]));
    let m = d.op("lerp", &[m, g, w1]);
    let (a, b) = (d.op("mul", &[beta2, v]), d.op("mul", &[w2, g]));
    let b = d.op("mul", &[b, g]);
    let v = d.op("add", &[a, b]);
    let root = d.op("sqrt", &[v]);
    let root = d.op("add", &[root, eps]);
    let u = d.op("div", &[m, root]);
    let norms = [p, u].map(|x| {
        let square = d.op("dot", &[x, x]);
        d.op("sqrt", &[square])
    });
    let some = norms.map(|norm| d.op("lt", &[zero, norm]));
    let both = d.op("and", &some);
    let ratio = d.op("div", &norms);
    let trust = d.op("where", &[both, ratio, one]);
    let size = d.op("mul", &[lr, trust]);
    let change = d.op("mul", &[size, u]);
    let p = d.op("sub", &[p, change]);
    d.write(0, p);
    d.write(1, m);
    d.write(2, v);
    d.wanted.push(trust);
    d
}

/// A number that programs compute with.
pub(crate) trait Computes: Copy + PartialEq + PartialOrd + Into<f64> {
    fn of(x: f64) -> Self;
    fn each(op: &str, args: &[Self]) -> Self;
}

macro_rules! computes {
    ($t:ty) => {
        impl Computes for $t {
            fn of(x: f64) -> Self {
                x as Self
            }

            fn each(op: &str, args: &[Self]) -> Self {
                let [a, b, c, d] = std::array::from_fn(|k| args.get(k).copied().unwrap_or(0.0));
                let wide = |f: fn(f64) -> f64| f(f64::from(a)) as Self;
                let truth = |holds: bool| if holds { 1.0 } else { 0.0 };
                match op {
                    "add" => a + b,
                    "sub" => a - b,
                    "mul" => a * b,
                    "div" => a / b,
                    "pow" => match f64::from(b) {
                        2.0 => a * a,
                        3.0 => a * a * a,
                        0.5 => a.sqrt(),
                        -0.5 => 1.0 / a.sqrt(),
                        -1.0 => 1.0 / a,
                        -2.0 => 1.0 / (a * a),
                        _ => libm::pow(f64::from(a), f64::from(b)) as Self,
                    },
                    "neg" => -a,
                    "abs" => a.abs(),
                    "sqrt" => a.sqrt(),
                    "exp" => wide(libm::exp),
                    "log" => wide(libm::log),
                    "cos" => wide(libm::cos),
                    "tanh" => wide(libm::tanh),
                    "cbrt" => wide(libm::cbrt),
                    "sign" => truth(a > 0.0) - truth(a < 0.0),
                    "atan2" => libm::atan2(f64::from(a), f64::from(b)) as Self,
                    "minimum" => {
                        if a.is_nan() || a < b {
                            a
                        } else {
                            b
                        }
                    }
                    "maximum" => {
                        if a.is_nan() || a > b {
                            a
                        } else {
                            b
                        }
                    }
                    "fma" => a.mul_add(b, c),
                    "lerp" if c.abs() < 0.5 => c.mul_add(b - a, a),
                    "lerp" => (c - 1.0).mul_add(b - a, b),
                    "addcmul" => (d * b).mul_add(c, a),
                    "addcdiv" => a + d * b / c,
                    "where" => {
                        if a != 0.0 {
                            b
                        } else {
                            c
                        }
                    }
                    "lt" => truth(a < b),
                    "le" => truth(a <= b),
                    "eq" => truth(a == b),
                    "ne" => truth(a != b),
                    "and" => truth(a != 0.0 && b != 0.0),
                    "or" => truth(a != 0.0 || b != 0.0),
                    "not" => truth(a == 0.0),
                    _ => unreachable!("{op}"),
                }
            }
        }
    };
}
computes!(f32);
computes!(f64);

/// An operation on numbers.
pub(crate) fn of_numbers(op: &str, args: &[f64]) -> f64 {
    match (op, args) {
        ("fma", &[a, b, c]) => a * b + c,
        ("lerp", &[a, b, w]) if w.abs() < 0.5 => a + w * (b - a),
        ("lerp", &[a, b, w]) => b - (b - a) * (1.0 - w),
        ("addcmul", &[a, b, c, v]) => a + v * b * c,
        ("addcdiv", &[a, b, c, v]) => a + v * b / c,
        ("floor", &[a]) => a.floor(),
        ("mod", &[a, b]) => {
            let rest = a % b;
            if rest == 0.0 {
                0.0f64.copysign(b)
            } else if (rest < 0.0) != (b < 0.0) {
                rest + b
            } else {
                rest
            }
        }
        _ => f64::each(op, args),
    }
}

/// The values of one tensor: for each node one number, or one for each element.
pub(crate) fn judged<A: Computes>(
    draft: &Draft,
    streams: &[Vec<f64>],
    inputs: &[f64],
    mut found: impl FnMut(u32, &str, f64) -> f64,
) -> Vec<Vec<f64>> {
    let elements = draft.elements();
    let numel = streams[0].len();
    let mut values: Vec<Vec<f64>> = Vec::new();
    for (node, (name, args, what)) in draft.nodes.iter().enumerate() {
        let value = |arg: u32, i: usize| values[arg as usize][if elements[arg as usize] { i } else { 0 }];
        let rounded = |arg: u32, i: usize| A::of(value(arg, i));
        let own: Vec<f64> = match *name {
            "param" => streams[0].clone(),
            "grad" => streams[1].clone(),
            "state" => streams[2 + *what as usize].clone(),
            "input" => vec![inputs[*what as usize]],
            "constant" => vec![draft.constants[*what as usize]],
            "numel" => vec![numel as f64],
            "fill" => vec![rounded(args[0], 0).into(); numel],
            "total" => vec![found(node as u32, name, value(args[0], 0))],
            "sum" | "dot" | "max_abs" => {
                let each = (0..numel).map(|i| {
                    let wide: Vec<f64> = args.iter().map(|&arg| rounded(arg, i).into()).collect();
                    wide
                });
                let sum = match *name {
                    "sum" => each.map(|x| x[0]).sum(),
                    "dot" => each.map(|x| x[0] * x[1]).sum(),
                    _ => each.map(|x| x[0].abs()).fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a }),
                };
                vec![found(node as u32, name, sum)]
            }
            _ if elements[node] => (0..numel)
                .map(|i| {
                    let own: Vec<A> = args.iter().map(|&arg| rounded(arg, i)).collect();
                    A::each(name, &own).into()
                })
                .collect(),
            _ => vec![of_numbers(name, &args.iter().map(|&arg| value(arg, 0)).collect::<Vec<_>>())],
        };
        values.push(own);
    }
    values
}
