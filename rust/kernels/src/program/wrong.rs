//! What may be wrong with the description of a program.

use std::fmt;

/// Why a description is no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It has more nodes than are allowed.
    Nodes {
        /// The most that are allowed.
        most: usize,
    },
    /// It ends in the middle of a node.
    Ends,
    /// There is no operation of this number.
    Operation(u32),
    /// An operand is no earlier node.
    Operand {
        /// The node.
        node: usize,
        /// What came for the operand.
        operand: u32,
    },
    /// An operation has operands of the wrong kind.
    Kind {
        /// The node.
        node: usize,
        /// The operation.
        operation: &'static str,
        /// What it takes.
        takes: &'static str,
    },
    /// A node asks for a state, an input or a constant that is not there.
    Missing {
        /// The node.
        node: usize,
        /// What it asks for.
        what: &'static str,
        /// The number that came.
        number: u32,
        /// How many there are.
        of: usize,
    },
    /// There are more states, inputs or reductions than are allowed.
    Many {
        /// What there are too many of.
        what: &'static str,
        /// How many came.
        came: usize,
        /// The most that are allowed.
        most: usize,
    },
    /// What is to be written where is no list of pairs of a stream and a node with elements, each stream once.
    Write(usize),
    /// What is wanted is no node that is a number.
    Wanted(u32),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Nodes { most } => write!(f, "expected at most {most} operations, but more came"),
            Self::Ends => f.write_str("expected the operands of the last operation, but the description ends"),
            Self::Operation(number) => write!(f, "expected the number of an operation, but {number} came"),
            Self::Operand { node, operand } => {
                write!(f, "expected an earlier node as an operand of node {node}, but {operand} came")
            }
            Self::Kind { node, operation, takes } => {
                write!(f, "node {node}: {operation} takes {takes}, but its operands are others")
            }
            Self::Missing { node, what, number, of } => {
                write!(f, "node {node}: expected the number of {what}, of which there are {of}, but {number} came")
            }
            Self::Many { what, came, most } => write!(f, "expected at most {most} {what}, but {came} came"),
            Self::Write(place) => write!(
                f,
                "expected pairs of a stream and a node with elements, each stream once, but entry {place} is none"
            ),
            Self::Wanted(node) => write!(f, "expected a node that is a number among what is wanted, but {node} came"),
        }
    }
}

impl std::error::Error for Wrong {}
