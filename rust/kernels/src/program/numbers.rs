//! The numbers of a program: computed in `f64`, in order, from what is handed over and what walks over memory found.

use super::functions::Functions;
use super::graph::Graph;
use super::ops::Op;
use crate::arithmetic::Real;

/// One number: how it is computed from earlier ones of the same row.
#[derive(Clone, Copy, Debug)]
struct Number {
    op: Op,
    /// Places in the row.
    args: [u32; 4],
    what: u32,
}

/// A total that a program asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Total {
    /// Where it goes in the row.
    pub(crate) place: usize,
    /// Where in the row is what this tensor adds to it.
    pub(crate) of: usize,
    /// The level of that: it is known when so many walks have ended.
    pub(crate) level: usize,
    /// Which call of the rule it is.
    pub(crate) key: u32,
}

/// How a row of numbers is computed.
#[derive(Debug)]
pub(super) struct Numbers {
    /// In the order of levels.
    list: Vec<Number>,
    /// For each level, one past its last number.
    ends: Vec<usize>,
    /// Of each node its place in the row.
    places: Vec<Option<u32>>,
    constants: Vec<f64>,
    pub(super) totals: Vec<Total>,
    /// Whether some number says how many elements there are.
    pub(super) asks_numel: bool,
}

impl Numbers {
    /// Those of the nodes that are needed.
    pub(super) fn new(graph: &Graph, needed: &[bool]) -> Self {
        let mut order: Vec<usize> =
            (0..graph.nodes.len()).filter(|&node| needed[node] && !graph.nodes[node].elements).collect();
        order.sort_by_key(|&node| graph.nodes[node].level); // stable: operands stay before what is made of them
        let mut numbers = Self {
            list: Vec::new(),
            ends: Vec::new(),
            places: vec![None; graph.nodes.len()],
            constants: graph.constants.clone(),
            totals: Vec::new(),
            asks_numel: false,
        };
        for &node in &order {
            let own = &graph.nodes[node];
            let place = numbers.list.len();
            numbers.places[node] = Some(place as u32);
            let mut args = [0; 4];
            args.iter_mut().zip(own.args()).for_each(|(to, &arg)| *to = numbers.places[arg as usize].unwrap_or(0));
            if own.op == Op::Total {
                let level = graph.nodes[own.args()[0] as usize].level as usize;
                numbers.totals.push(Total { place, of: args[0] as usize, level, key: own.what });
            }
            numbers.asks_numel |= own.op == Op::Numel;
            let level = own.level as usize;
            numbers.ends.resize((level + 1).max(numbers.ends.len()), place);
            numbers.list.push(Number { op: own.op, args, what: own.what });
            numbers.ends[level] = place + 1;
        }
        numbers
    }

    /// How many numbers a row has.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// How many numbers the first level has.
    pub(super) fn at_once(&self) -> usize {
        self.ends.first().copied().unwrap_or(0)
    }

    /// How many levels there are.
    pub(super) fn levels(&self) -> usize {
        self.ends.len()
    }

    /// The place of a node in the row.
    pub(super) fn place(&self, node: usize) -> Option<usize> {
        self.places.get(node).copied().flatten().map(|place| place as usize)
    }

    /// The level of a place in the row.
    pub(super) fn level_of(&self, place: usize) -> usize {
        self.ends.iter().position(|&end| place < end).unwrap_or(self.ends.len())
    }

    /// Computes the numbers of one level. What reductions and totals are stands in the row already.
    #[inline]
    pub(super) fn compute(&self, level: usize, row: &mut [f64], inputs: &[f64], numel: f64) {
        let first = level.checked_sub(1).map_or(0, |below| self.ends[below]);
        let end = self.ends.get(level).copied().unwrap_or(first);
        for place in first..end {
            let Number { op, args, what } = self.list[place];
            row[place] = match op {
                Op::Input => inputs[what as usize],
                Op::Constant => self.constants[what as usize],
                Op::Numel => numel,
                op if op.waits() => continue,
                op => apply(op, args.map(|arg| row[arg as usize])),
            };
        }
    }
}

/// An operation on numbers.
fn apply(op: Op, [a, b, c, d]: [f64; 4]) -> f64 {
    let truth = f64::truth;
    match op {
        Op::Add => a + b,
        Op::Sub => a - b,
        Op::Mul => a * b,
        Op::Div => a / b,
        Op::Pow => a.power(b),
        Op::Neg => -a,
        Op::Abs => a.abs(),
        Op::Sqrt => a.sqrt(),
        Op::Exp => Functions::exp(a),
        Op::Log => Functions::log(a),
        Op::Cos => Functions::cos(a),
        Op::Tanh => Functions::tanh(a),
        Op::Cbrt => Functions::cbrt(a),
        Op::Sign => a.sign(),
        Op::Atan2 => Functions::atan2(a, b),
        Op::Minimum => a.nan_min(b),
        Op::Maximum => a.nan_max(b),
        Op::Fma => a * b + c,
        Op::Lerp if a_is_near(c) => a + c * (b - a),
        Op::Lerp => b - (b - a) * (1.0 - c),
        Op::Addcmul => a + d * b * c,
        Op::Addcdiv => a + d * b / c,
        Op::Where => {
            if a.holds() {
                b
            } else {
                c
            }
        }
        Op::Lt => truth(a < b),
        Op::Le => truth(a <= b),
        Op::Eq => truth(a == b),
        Op::Ne => truth(a != b),
        Op::And => truth(a.holds() && b.holds()),
        Op::Or => truth(a.holds() || b.holds()),
        Op::Not => truth(!a.holds()),
        Op::Floor => libm::floor(a),
        Op::Mod => modulo(a, b),
        // given, or found by walks over memory
        _ => 0.0,
    }
}

/// Whether `torch.lerp` starts from the first of its ends.
fn a_is_near(weight: f64) -> bool {
    weight.abs() < 0.5
}

/// The remainder with the sign of the divisor, as in Python.
fn modulo(a: f64, b: f64) -> f64 {
    let remainder = libm::fmod(a, b);
    if remainder == 0.0 {
        0.0_f64.copysign(b)
    } else if (remainder < 0.0) != (b < 0.0) {
        remainder + b
    } else {
        remainder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_are_pythons() {
        for (a, b, expected) in [(7.0, 3.0, 1.0), (-7.0, 3.0, 2.0), (7.0, -3.0, -2.0), (6.0, 3.0, 0.0)] {
            assert_eq!(modulo(a, b), expected);
        }
        assert!(modulo(1.0, 0.0).is_nan());
        assert_eq!(modulo(-5.0, f64::INFINITY), f64::INFINITY);
    }
}
