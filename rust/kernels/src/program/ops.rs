//! The operations that programs are made of: their numbers, names and operands.

/// Which operands an operation takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// Elements, numbers, or some of each; its result has elements if an operand has.
    Any,
    /// Numbers alone; the result is a number.
    Numbers,
    /// Elements, one operand at least; the result is a number.
    Elements,
    /// None: elements that are given.
    Stream,
    /// None: a number that is given.
    Given,
    /// A number, of which elements are made.
    Fill,
}

macro_rules! operations {
    ($(
        $Op:ident = $number:literal, $name:literal, $sign:literal, $arity:literal, $further:literal, $takes:ident;
    )*) => {
        /// An operation, or something that is given.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(super) enum Op { $($Op,)* }

        /// The name and the number of each operation.
        pub const NAMES: &[(&str, u32)] = &[$(($name, $number),)*];

        impl Op {
            /// The operation of this number.
            pub(super) fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$Op),)*
                    _ => None,
                }
            }

            /// The operation of this sign in patterns.
            pub(super) fn from_sign(sign: u8) -> Option<Self> {
                match sign {
                    b' ' => None,
                    $($sign => Some(Self::$Op),)*
                    _ => None,
                }
            }

            /// What it is called.
            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$Op => $name,)* }
            }

            /// How many earlier nodes it takes.
            pub(super) fn arity(self) -> usize {
                match self { $(Self::$Op => $arity,)* }
            }

            /// How many further words describe it.
            pub(super) fn further(self) -> usize {
                match self { $(Self::$Op => $further,)* }
            }

            /// Which operands it takes.
            pub(super) fn takes(self) -> Takes {
                match self { $(Self::$Op => Takes::$takes,)* }
            }
        }
    };
}

operations! {
    Add = 0, "add", b'+', 2, 0, Any;
    Sub = 1, "sub", b'-', 2, 0, Any;
    Mul = 2, "mul", b'*', 2, 0, Any;
    Div = 3, "div", b'/', 2, 0, Any;
    Pow = 4, "pow", b'^', 2, 0, Any;
    Neg = 5, "neg", b'~', 1, 0, Any;
    Abs = 6, "abs", b'|', 1, 0, Any;
    Sqrt = 7, "sqrt", b'q', 1, 0, Any;
    Exp = 8, "exp", b'e', 1, 0, Any;
    Log = 9, "log", b'l', 1, 0, Any;
    Cos = 10, "cos", b'c', 1, 0, Any;
    Tanh = 11, "tanh", b't', 1, 0, Any;
    Cbrt = 12, "cbrt", b'r', 1, 0, Any;
    Sign = 13, "sign", b'g', 1, 0, Any;
    Atan2 = 14, "atan2", b'@', 2, 0, Any;
    Minimum = 15, "minimum", b'v', 2, 0, Any;
    Maximum = 16, "maximum", b'a', 2, 0, Any;
    Fma = 17, "fma", b'f', 3, 0, Any;
    Lerp = 18, "lerp", b'%', 3, 0, Any;
    Addcmul = 19, "addcmul", b'm', 4, 0, Any;
    Addcdiv = 20, "addcdiv", b'd', 4, 0, Any;
    Where = 21, "where", b'?', 3, 0, Any;
    Lt = 22, "lt", b'<', 2, 0, Any;
    Le = 23, "le", b'(', 2, 0, Any;
    Eq = 24, "eq", b'=', 2, 0, Any;
    Ne = 25, "ne", b'!', 2, 0, Any;
    And = 26, "and", b'&', 2, 0, Any;
    Or = 27, "or", b'o', 2, 0, Any;
    Not = 28, "not", b'n', 1, 0, Any;
    Floor = 29, "floor", b'[', 1, 0, Numbers;
    Mod = 30, "mod", b']', 2, 0, Numbers;
    Sum = 31, "sum", b'S', 1, 0, Elements;
    Dot = 32, "dot", b'D', 2, 0, Elements;
    MaxAbs = 33, "max_abs", b'M', 1, 0, Elements;
    Param = 34, "param", b'P', 0, 0, Stream;
    Grad = 35, "grad", b'G', 0, 0, Stream;
    State = 36, "state", b's', 0, 1, Stream;
    Input = 37, "input", b'I', 0, 1, Given;
    Constant = 38, "constant", b'K', 0, 1, Given;
    Fill = 39, "fill", b'F', 1, 0, Fill;
    Total = 40, "total", b'T', 1, 1, Numbers;
    Numel = 41, "numel", b'N', 0, 0, Given;
}

impl Op {
    /// Whether its operands may change places: the result is the same to the bit.
    pub(super) fn commutes(self) -> bool {
        matches!(self, Self::Add | Self::Mul | Self::Eq | Self::Ne | Self::And | Self::Or)
    }

    /// Whether it makes one number of all elements.
    pub(super) fn reduces(self) -> bool {
        self.takes() == Takes::Elements
    }

    /// Whether its value is known only when a walk over memory has ended.
    pub(super) fn waits(self) -> bool {
        self.reduces() || self == Self::Total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_signs_are_told_apart() {
        for (i, &(name, number)) in NAMES.iter().enumerate() {
            assert_eq!(number as usize, i);
            assert_eq!(Op::from_number(number).map(Op::name), Some(name));
        }
        assert_eq!(Op::from_number(NAMES.len() as u32), None);
        let known = (1..=255).filter(|&sign| Op::from_sign(sign).is_some()).count();
        assert_eq!(known, NAMES.len());
    }
}
