//! What is computed for each element: one table of instructions, from which come their patterns and their loops.
//!
//! An instruction stands for one operation, or for a few of which the middle values are used nowhere else. Each
//! operation in it rounds once, as it would alone. A pattern is the operation in prefix notation, with the signs of
//! `ops.rs`; a digit (or `:`, `;` after them) is an operand, and `>` stands before a middle value that is kept: it is
//! written, and used nowhere else. An operand is a tile (`T`) or a number (`N`), with its place in the instruction:
//! numbers are read once, before the loop. After `if` stands when there is a quicker way to the same bits, and which.

use std::cell::Cell;
use std::marker::PhantomData;

use super::functions::{Functions, Power as Short};
use super::reduce::{DOT, Lanes, MAX_ABS, SQUARES, SUM, take};
use super::vectors::Vector;
use crate::simd::{Compile, Compiled, Kernel, Simd, compiled};

/// The most operands of an instruction.
pub(super) const OPERANDS: usize = 12;
/// The most values of an instruction that are kept beside its result.
pub(super) const KEPT: usize = 2;

/// An instruction with its operands: tiles are slots, numbers are places among the numbers of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instruction {
    pub(super) code: Code,
    /// The slot of the result.
    pub(super) out: u16,
    /// The slots of middle values that are kept.
    pub(super) kept: [u16; KEPT],
    pub(super) args: [u16; OPERANDS],
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    pub(super) code: Code,
    /// Signs and operands.
    pub(super) text: &'static [u8],
    /// Of each operand, whether it is a tile.
    pub(super) tiles: &'static [bool],
}

impl Pattern {
    /// Whether it is one operation.
    pub(super) fn is_single(&self) -> bool {
        self.text.iter().filter(|&&sign| operand(sign).is_none()).count() == 1
    }
}

/// The place of an operand, if a sign is one.
pub(super) fn operand(sign: u8) -> Option<usize> {
    (b'0'..=b';').contains(&sign).then(|| usize::from(sign - b'0'))
}

/// What instructions work on.
#[derive(Clone, Copy)]
pub(super) struct Tile<'t, A, const W: usize> {
    /// Streams and registers, each of at least `count` vectors.
    pub(super) slots: &'t [&'t [Vector<A, W>]],
    pub(super) numbers: &'t [A],
    /// One for each reduction.
    pub(super) lanes: &'t [Cell<Lanes>],
    pub(super) count: usize,
    /// How many elements stand before it in the streams, and how many of its own are there.
    pub(super) at: usize,
    pub(super) elements: usize,
}

/// An instruction that is to be run.
#[derive(Clone, Copy)]
pub(super) struct Job<'j, A, const W: usize> {
    pub(super) tile: &'j Tile<'j, A, W>,
    pub(super) instruction: &'j Instruction,
}

/// What runs an instruction: a call through a pointer costs less than to choose among all loops in one function, which
/// the compiler also makes worse loops of.
pub(super) type Function<A, const W: usize> = for<'j> fn(Job<'j, A, W>);

/// The functions of all instructions, by their code.
pub(super) struct Table<A, const W: usize>(PhantomData<A>);

/// The operand at a place in an instruction, as it is taken up before the loop.
#[rustfmt::skip]
macro_rules! take_up {
    ($tile:ident, $i:ident, T0) => { &$tile.slots[$i.args[0] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T1) => { &$tile.slots[$i.args[1] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T2) => { &$tile.slots[$i.args[2] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T3) => { &$tile.slots[$i.args[3] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T4) => { &$tile.slots[$i.args[4] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T5) => { &$tile.slots[$i.args[5] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T6) => { &$tile.slots[$i.args[6] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T7) => { &$tile.slots[$i.args[7] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T8) => { &$tile.slots[$i.args[8] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T9) => { &$tile.slots[$i.args[9] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T10) => { &$tile.slots[$i.args[10] as usize][..$tile.count] };
    ($tile:ident, $i:ident, T11) => { &$tile.slots[$i.args[11] as usize][..$tile.count] };
    ($tile:ident, $i:ident, N0) => { $tile.numbers[$i.args[0] as usize] };
    ($tile:ident, $i:ident, N1) => { $tile.numbers[$i.args[1] as usize] };
    ($tile:ident, $i:ident, N2) => { $tile.numbers[$i.args[2] as usize] };
    ($tile:ident, $i:ident, N3) => { $tile.numbers[$i.args[3] as usize] };
    ($tile:ident, $i:ident, N4) => { $tile.numbers[$i.args[4] as usize] };
    ($tile:ident, $i:ident, N5) => { $tile.numbers[$i.args[5] as usize] };
    ($tile:ident, $i:ident, N6) => { $tile.numbers[$i.args[6] as usize] };
    ($tile:ident, $i:ident, N7) => { $tile.numbers[$i.args[7] as usize] };
    ($tile:ident, $i:ident, N8) => { $tile.numbers[$i.args[8] as usize] };
    ($tile:ident, $i:ident, N9) => { $tile.numbers[$i.args[9] as usize] };
    ($tile:ident, $i:ident, N10) => { $tile.numbers[$i.args[10] as usize] };
    ($tile:ident, $i:ident, N11) => { $tile.numbers[$i.args[11] as usize] };
}

/// The operand at vector `v`: an array of elements, or the number still.
#[rustfmt::skip]
macro_rules! vector {
    (T0, $x:ident, $v:ident) => { $x[$v].get() };
    (T1, $x:ident, $v:ident) => { $x[$v].get() };
    (T2, $x:ident, $v:ident) => { $x[$v].get() };
    (T3, $x:ident, $v:ident) => { $x[$v].get() };
    (T4, $x:ident, $v:ident) => { $x[$v].get() };
    (T5, $x:ident, $v:ident) => { $x[$v].get() };
    (T6, $x:ident, $v:ident) => { $x[$v].get() };
    (T7, $x:ident, $v:ident) => { $x[$v].get() };
    (T8, $x:ident, $v:ident) => { $x[$v].get() };
    (T9, $x:ident, $v:ident) => { $x[$v].get() };
    (T10, $x:ident, $v:ident) => { $x[$v].get() };
    (T11, $x:ident, $v:ident) => { $x[$v].get() };
    ($number:ident, $x:ident, $v:ident) => { [$x; W] };
}

/// Whether each operand is a tile.
macro_rules! tiles {
    ([$($x:ident: $kind:ident),*]) => { &[$(stringify!($kind).as_bytes()[0] == b'T'),*] };
}

/// An expression of operands that are numbers.
macro_rules! of_numbers {
    ($tile:ident, $i:ident, [$($x:ident: $kind:ident),*], $value:expr) => {{
        $(let $x = take_up!($tile, $i, $kind);)*
        $(let _ = $x;)*
        $value
    }};
}

/// The loop of an instruction.
macro_rules! each {
    ($tile:ident, $i:ident, [$($x:ident: $kind:ident),*], $value:expr) => {{
        let out = &$tile.slots[$i.out as usize][..$tile.count];
        $(let $x = take_up!($tile, $i, $kind);)*
        for v in 0..out.len() {
            $(let $x = vector!($kind, $x, v);)*
            let mut value = [A::ZERO; W];
            for lane in 0..W {
                $(let $x = $x[lane];)*
                value[lane] = $value;
            }
            out[v].set(value);
        }
    }};
}

/// The loop of an instruction that keeps middle values.
macro_rules! each_kept {
    ($tile:ident, $i:ident, [$($x:ident: $kind:ident),*], $kept:literal, $value:expr) => {{
        let out = &$tile.slots[$i.out as usize][..$tile.count];
        let also: [_; $kept] = std::array::from_fn(|k| &$tile.slots[$i.kept[k] as usize][..$tile.count]);
        $(let $x = take_up!($tile, $i, $kind);)*
        for v in 0..out.len() {
            $(let $x = vector!($kind, $x, v);)*
            let (mut value, mut kept) = ([A::ZERO; W], [[A::ZERO; W]; $kept]);
            for lane in 0..W {
                $(let $x = $x[lane];)*
                let (result, middle): (A, [A; $kept]) = $value;
                value[lane] = result;
                for k in 0..$kept {
                    kept[k][lane] = middle[k];
                }
            }
            out[v].set(value);
            for k in 0..$kept {
                also[k][v].set(kept[k]);
            }
        }
    }};
}

macro_rules! instructions {
    (
        one result: {
            $($Code:ident = $text:literal $args:tt => $value:expr $(, if $fits:expr => $quick:expr)?;)*
        }
        keeping: {$($Kept:ident[$kept:literal] = $kept_text:literal $kept_args:tt
            => $all:expr $(, if $all_fits:expr => $all_quick:expr)?;)*}
    ) => {
        /// What an instruction does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code {
            $($Code,)*
            $($Kept,)*
            /// Elements by any power.
            Pow,
            /// Adds to the lanes of the reduction whose number is `out`.
            Sum,
            Dot,
            MaxAbs,
        }

        impl Code {
            /// Whether it gains by vectors of 64 bytes. Most loops over so many lanes the compiler unrolls, and then
            /// does not vectorise; those that keep middle values it vectorises first.
            pub(super) fn is_wide(self) -> bool {
                matches!(self, $(Self::$Kept)|*)
            }
        }

        /// The table; what stands first is preferred among those of the same length.
        pub(super) const PATTERNS: &[Pattern] = &[
            $(Pattern { code: Code::$Code, text: $text, tiles: tiles!($args) },)*
            $(Pattern { code: Code::$Kept, text: $kept_text, tiles: tiles!($kept_args) },)*
            Pattern { code: Code::Pow, text: b"^01", tiles: &[true, false] },
            Pattern { code: Code::Sum, text: b"S0", tiles: &[true] },
            Pattern { code: Code::Dot, text: b"D01", tiles: &[true, true] },
            Pattern { code: Code::MaxAbs, text: b"M0", tiles: &[true] },
        ];

        /// A type for each instruction, for its loop to be compiled for.
        mod kernels {
            use std::marker::PhantomData;

            $(pub(super) struct $Code<A, const W: usize>(PhantomData<A>);)*
            $(pub(super) struct $Kept<A, const W: usize>(PhantomData<A>);)*
        }

        $(impl<A: Functions, const W: usize> Kernel for kernels::$Code<A, W> {
            type Job<'j> = Job<'j, A, W>;

            #[inline(always)]
            fn run(job: Job<'_, A, W>, _: impl Simd) {
                let Job { tile, instruction } = job;
                $(if of_numbers!(tile, instruction, $args, $fits) {
                    each!(tile, instruction, $args, $quick);
                    return;
                })?
                each!(tile, instruction, $args, $value);
            }
        })*

        $(impl<A: Functions, const W: usize> Kernel for kernels::$Kept<A, W> {
            type Job<'j> = Job<'j, A, W>;

            #[inline(always)]
            fn run(job: Job<'_, A, W>, _: impl Simd) {
                let Job { tile, instruction } = job;
                $(if of_numbers!(tile, instruction, $kept_args, $all_fits) {
                    each_kept!(tile, instruction, $kept_args, $kept, $all_quick);
                    return;
                })?
                each_kept!(tile, instruction, $kept_args, $kept, $all);
            }
        })*

        impl<A: Functions, const W: usize> Table<A, W> {
            /// Whether its vectors have 64 bytes.
            const WIDE: bool = W * size_of::<A>() == 64;

            /// An instruction that gains nothing by wide vectors, and is not compiled for them: see `Pass::is_wide`.
            const fn narrow<K>() -> Compiled<Function<A, W>>
            where
                K: for<'j> Kernel<Job<'j> = Job<'j, A, W>>,
            {
                if Self::WIDE { compiled::<Never<A, W>>(Compile::Wide) } else { compiled::<K>(Compile::All) }
            }

            /// In the order of the codes.
            pub(super) const ALL: &'static [Compiled<Function<A, W>>] = &[
                $(Self::narrow::<kernels::$Code<A, W>>(),)*
                $(compiled::<kernels::$Kept<A, W>>(if Self::WIDE { Compile::Wide } else { Compile::All }),)*
                Self::narrow::<Power<A, W>>(),
                Self::narrow::<Reduction<A, W, SUM>>(),
                Self::narrow::<Reduction<A, W, DOT>>(),
                Self::narrow::<Reduction<A, W, MAX_ABS>>(),
            ];
        }
    };
}

/// Stands in the table of wide vectors for what is not run with them.
struct Never<A, const W: usize>(PhantomData<A>);

impl<A: Functions, const W: usize> Kernel for Never<A, W> {
    type Job<'j> = Job<'j, A, W>;

    fn run(_: Job<'_, A, W>, _: impl Simd) {
        unreachable!("a pass with this instruction is not wide");
    }
}

/// Elements by any power.
struct Power<A, const W: usize>(PhantomData<A>);

impl<A: Functions, const W: usize> Kernel for Power<A, W> {
    type Job<'j> = Job<'j, A, W>;

    #[inline(always)]
    fn run(Job { tile, instruction }: Job<'_, A, W>, _: impl Simd) {
        let out = &tile.slots[instruction.out as usize][..tile.count];
        power(take_up!(tile, instruction, T0), take_up!(tile, instruction, N1), out);
    }
}

/// Adds to the lanes of the reduction whose number is the instruction's `out`.
struct Reduction<A, const W: usize, const KIND: u8>(PhantomData<A>);

impl<A: Functions, const W: usize, const KIND: u8> Kernel for Reduction<A, W, KIND> {
    type Job<'j> = Job<'j, A, W>;

    #[inline(always)]
    fn run(Job { tile, instruction }: Job<'_, A, W>, _: impl Simd) {
        let (x, place) = (take_up!(tile, instruction, T0), (tile.at, tile.elements));
        let lanes = &tile.lanes[instruction.out as usize];
        if KIND != DOT {
            take::<A, W, KIND>(x, x, place, lanes);
        } else if instruction.args[0] == instruction.args[1] {
            take::<A, W, SQUARES>(x, x, place, lanes); // each element is widened once
        } else {
            take::<A, W, DOT>(x, take_up!(tile, instruction, T1), place, lanes);
        }
    }
}

/// Whether a root may be divided by a number with [`Real::over`](crate::arithmetic::Real::over), which spares the
/// divider: a root is never so small that it could fail. That it loses the sign of a negative zero is seen only if
/// another one is added.
#[inline(always)]
fn is_usual<A: Functions>(divisor: A, added: A) -> bool {
    (1e-6..=1e6).contains(&divisor.wide()) && !(added == A::ZERO && added.wide().is_sign_negative())
}

/// The power of a tile: which way it is computed is asked once.
#[inline(always)]
fn power<A: Functions, const W: usize>(x: &[Vector<A, W>], exponent: A, out: &[Vector<A, W>]) {
    macro_rules! each {
        ($x:ident => $value:expr) => {
            for (from, to) in x.iter().zip(out) {
                let mut value = from.get();
                for $x in &mut value {
                    *$x = $value;
                }
                to.set(value);
            }
        };
    }
    match Short::of(exponent) {
        Short::Square => each!(x => Short::Square.apply(*x)),
        Short::Cube => each!(x => Short::Cube.apply(*x)),
        Short::Root => each!(x => Short::Root.apply(*x)),
        Short::OverRoot => each!(x => Short::OverRoot.apply(*x)),
        Short::Inverse => each!(x => Short::Inverse.apply(*x)),
        Short::OverSquare => each!(x => Short::OverSquare.apply(*x)),
        Short::Other => each!(x => x.pow(exponent)),
    }
}

instructions! {
    one result: {
    // ---- several operations at once: the longest that fits is taken ----
    // Adam's parameter, AdamW's, Lion's
    LessRatioRoot = b"-0/*12+/q345" [p: T0, k: N1, m: T2, v: T3, c: N4, eps: N5]
        => p - (k * m) / (v.sqrt() / c + eps),
        if is_usual(c, eps) => p - (k * m) / (v.sqrt().over(c.divisor()) + eps);
    LessRatio = b"-0/*123" [p: T0, k: N1, m: T2, t: T3] => p - (k * m) / t;
    LessTimesRatio = b"-0*1/23" [p: T0, k: N1, m: T2, t: T3] => p - k * (m / t);
    LessTimesRatios = b"-0*1//234" [p: T0, k: N1, m: T2, c: N3, t: T4] => p - k * ((m / c) / t);
    LessRatios = b"-0/*1/234" [p: T0, k: N1, m: T2, c: N3, t: T4] => p - (k * (m / c)) / t;
    KeptLessRatio = b"-*01/*234" [p: T0, w: N1, k: N2, m: T3, t: T4] => p * w - (k * m) / t;
    KeptLessTimesRatio = b"-*01*2/34" [p: T0, w: N1, k: N2, m: T3, t: T4] => p * w - k * (m / t);
    KeptLessTimesRatios = b"-*01*2//345" [p: T0, w: N1, k: N2, m: T3, c: N4, t: T5] => p * w - k * ((m / c) / t);
    KeptLessRatios = b"-*01/*2/345" [p: T0, w: N1, k: N2, m: T3, c: N4, t: T5] => p * w - (k * (m / c)) / t;
    PlusRatio = b"+0/*123" [p: T0, k: N1, m: T2, t: T3] => p + (k * m) / t;
    KeptLessSign = b"-*01*2g+*34*56" [p: T0, w: N1, k: N2, b: N3, m: T4, c: N5, g: T6]
        => p * w - k * (b * m + c * g).sign();
    LessSign = b"-0*1g+*23*45" [p: T0, k: N1, b: N2, m: T3, c: N4, g: T5] => p - k * (b * m + c * g).sign();
    SignBlend = b"g+*01*23" [b: N0, m: T1, c: N2, g: T3] => (b * m + c * g).sign();
    LessTimesSign = b"-0*1g2" [p: T0, k: N1, u: T2] => p - k * u.sign();
    KeptLessTimesSign = b"-*01*2g3" [p: T0, w: N1, k: N2, u: T3] => p * w - k * u.sign();
    // averages of squares and of gradients
    KeepAddcmul = b"m*01223" [v: T0, b: N1, g: T2, c: N3] => (v * b).addcmul(g, g, c);
    PlusTimesSquare = b"+*01*2*33" [b: N0, v: T1, c: N2, g: T3] => b * v + c * (g * g);
    PlusTimesTimes = b"+*01**233" [b: N0, v: T1, c: N2, g: T3] => b * v + (c * g) * g;
    Blend = b"+*01*23" [b: N0, m: T1, c: N2, g: T3] => b * m + c * g;
    BlendLess = b"-*01*23" [b: N0, m: T1, c: N2, g: T3] => b * m - c * g;
    // denominators
    AddcdivRoot = b"d01+/q2345" [p: T0, m: T1, v: T2, c: N3, eps: N4, k: N5]
        => p.addcdiv(m, v.sqrt() / c + eps, k),
        if is_usual(c, eps) => p.addcdiv(m, v.sqrt().over(c.divisor()) + eps, k);
    RootOverPlus = b"+/q012" [v: T0, c: N1, eps: N2]
        => v.sqrt() / c + eps,
        if is_usual(c, eps) => v.sqrt().over(c.divisor()) + eps;
    RootTimesPlus = b"+*q012" [v: T0, c: N1, eps: N2] => v.sqrt() * c + eps;
    RootOfRatioPlus = b"+q/012" [v: T0, c: N1, eps: N2] => (v / c).sqrt() + eps;
    RootOfProductPlus = b"+q*012" [v: T0, c: N1, eps: N2] => (v * c).sqrt() + eps;
    RootPlus = b"+q01" [v: T0, eps: N1] => v.sqrt() + eps;
    RootOver = b"/q01" [v: T0, c: N1] => v.sqrt() / c;
    RootOfRatio = b"q/01" [v: T0, c: N1] => (v / c).sqrt();
    // pairs
    TimesPlusN = b"+*012" [a: T0, b: N1, c: T2] => a * b + c;
    TimesPlusT = b"+*012" [a: T0, b: T1, c: T2] => a * b + c;
    TimesPlusNumber = b"+*012" [a: T0, b: N1, c: N2] => a * b + c;
    TimesLessN = b"-*012" [a: T0, b: N1, c: T2] => a * b - c;
    TimesLessT = b"-*012" [a: T0, b: T1, c: T2] => a * b - c;
    LessTimesN = b"-0*12" [a: T0, b: T1, c: N2] => a - b * c;
    LessTimesT = b"-0*12" [a: T0, b: T1, c: T2] => a - b * c;
    LessOver = b"-0/12" [a: T0, b: T1, c: T2] => a - b / c;
    PlusOver = b"+0/12" [a: T0, b: T1, c: T2] => a + b / c;
    TimesTimesN = b"**012" [a: T0, b: N1, c: T2] => a * b * c;
    TimesTimesT = b"**012" [a: T0, b: T1, c: T2] => a * b * c;
    TimesOver = b"/*012" [a: T0, b: N1, c: T2] => a * b / c;
    TimesRatio = b"*0/12" [a: N0, b: T1, c: T2] => a * (b / c);
    OverPlus = b"/0+12" [a: T0, b: T1, c: N2] => a / (b + c);
    SquareTimes = b"*0*11" [a: N0, b: T1] => a * (b * b);
    DifferenceTimes = b"*0-12" [a: N0, b: T1, c: T2] => a * (b - c);
    // ---- one operation ----
    AddT = b"+01" [a: T0, b: T1] => a + b;
    AddN = b"+01" [a: T0, b: N1] => a + b;
    SubT = b"-01" [a: T0, b: T1] => a - b;
    SubN = b"-01" [a: T0, b: N1] => a - b;
    SubFrom = b"-01" [a: N0, b: T1] => a - b;
    MulT = b"*01" [a: T0, b: T1] => a * b;
    MulN = b"*01" [a: T0, b: N1] => a * b;
    DivT = b"/01" [a: T0, b: T1] => a / b;
    DivN = b"/01" [a: T0, b: N1] => a / b;
    DivOf = b"/01" [a: N0, b: T1] => a / b;
    PowT = b"^01" [a: T0, b: T1] => a.power(b);
    PowOf = b"^01" [a: N0, b: T1] => a.power(b);
    Neg = b"~0" [a: T0] => -a;
    Abs = b"|0" [a: T0] => a.abs();
    Sqrt = b"q0" [a: T0] => a.sqrt();
    Exp = b"e0" [a: T0] => a.exp();
    Log = b"l0" [a: T0] => a.log();
    Cos = b"c0" [a: T0] => a.cos();
    Tanh = b"t0" [a: T0] => a.tanh();
    Cbrt = b"r0" [a: T0] => a.cbrt();
    Sign = b"g0" [a: T0] => a.sign();
    Atan2 = b"@01" [a: T0, b: T1] => a.atan2(b);
    MinimumT = b"v01" [a: T0, b: T1] => a.nan_min(b);
    MinimumN = b"v01" [a: T0, b: N1] => a.nan_min(b);
    MinimumOf = b"v01" [a: N0, b: T1] => a.nan_min(b);
    MaximumT = b"a01" [a: T0, b: T1] => a.nan_max(b);
    MaximumN = b"a01" [a: T0, b: N1] => a.nan_max(b);
    MaximumOf = b"a01" [a: N0, b: T1] => a.nan_max(b);
    FmaT = b"f012" [a: T0, b: T1, c: T2] => a.fma(b, c);
    FmaN = b"f012" [a: T0, b: N1, c: T2] => a.fma(b, c);
    FmaOf = b"f012" [a: N0, b: T1, c: T2] => a.fma(b, c);
    LerpN = b"%012" [a: T0, b: T1, w: N2] => a.lerp(b, w);
    LerpT = b"%012" [a: T0, b: T1, w: T2] => a.lerp(b, w);
    AddcmulN = b"m0123" [a: T0, b: T1, c: T2, k: N3] => a.addcmul(b, c, k);
    AddcmulT = b"m0123" [a: T0, b: T1, c: T2, k: T3] => a.addcmul(b, c, k);
    AddcdivN = b"d0123" [a: T0, b: T1, c: T2, k: N3] => a.addcdiv(b, c, k);
    AddcdivT = b"d0123" [a: T0, b: T1, c: T2, k: T3] => a.addcdiv(b, c, k);
    WhereT = b"?012" [c: T0, a: T1, b: T2] => if c.holds() { a } else { b };
    WhereNT = b"?012" [c: T0, a: N1, b: T2] => if c.holds() { a } else { b };
    WhereTN = b"?012" [c: T0, a: T1, b: N2] => if c.holds() { a } else { b };
    WhereNN = b"?012" [c: T0, a: N1, b: N2] => if c.holds() { a } else { b };
    LtT = b"<01" [a: T0, b: T1] => A::truth(a < b);
    LtN = b"<01" [a: T0, b: N1] => A::truth(a < b);
    LtOf = b"<01" [a: N0, b: T1] => A::truth(a < b);
    LeT = b"(01" [a: T0, b: T1] => A::truth(a <= b);
    LeN = b"(01" [a: T0, b: N1] => A::truth(a <= b);
    LeOf = b"(01" [a: N0, b: T1] => A::truth(a <= b);
    EqT = b"=01" [a: T0, b: T1] => A::truth(a == b);
    EqN = b"=01" [a: T0, b: N1] => A::truth(a == b);
    NeT = b"!01" [a: T0, b: T1] => A::truth(a != b);
    NeN = b"!01" [a: T0, b: N1] => A::truth(a != b);
    AndT = b"&01" [a: T0, b: T1] => A::truth(a.holds() & b.holds());
    OrT = b"o01" [a: T0, b: T1] => A::truth(a.holds() | b.holds());
    Not = b"n0" [a: T0] => A::truth(!a.holds());
    // what no operation stands for
    Copy = b"" [a: T0] => a;
    Fill = b"" [a: N0] => a;
    }
    keeping: {
    // momentum, as textbooks and as torch write it
    PlusMomentum[1] = b"+0>-*12*34" [p: T0, b: N1, v: T2, k: N3, g: T4] => {
        let v = b * v - k * g;
        (p + v, [v])
    };
    PlusVelocity[1] = b"+0>+*12*34" [p: T0, b: N1, v: T2, k: N3, g: T4] => {
        let v = b * v + k * g;
        (p + v, [v])
    };
    LessVelocity[1] = b"-0*1>+*234" [p: T0, k: N1, b: N2, v: T3, g: T4] => {
        let v = b * v + g;
        (p - k * v, [v])
    };
    LessAverage[1] = b"-0*1>+*23*45" [p: T0, k: N1, b: N2, v: T3, c: N4, g: T5] => {
        let v = b * v + c * g;
        (p - k * v, [v])
    };
    // Adam and AdamW as torch's for-loop
    Adam[2] = b"d0>%123+/q>m*45226789"
        [p: T0, m: T1, g: T2, w: N3, v: T4, b: N5, c: N6, root: N7, eps: N8, k: N9] => {
        let (m, v) = (m.lerp(g, w), (v * b).addcmul(g, g, c));
        (p.addcdiv(m, v.sqrt() / root + eps, k), [m, v])
    }, if is_usual(root, eps) => {
        let (m, v) = (m.lerp(g, w), (v * b).addcmul(g, g, c));
        (p.addcdiv(m, v.sqrt().over(root.divisor()) + eps, k), [m, v])
    };
    AdamW[2] = b"d*0:>%123+/q>m*45226789"
        [p: T0, m: T1, g: T2, w: N3, v: T4, b: N5, c: N6, root: N7, eps: N8, k: N9, keep: N10] => {
        let (m, v) = (m.lerp(g, w), (v * b).addcmul(g, g, c));
        ((p * keep).addcdiv(m, v.sqrt() / root + eps, k), [m, v])
    }, if is_usual(root, eps) => {
        let (m, v) = (m.lerp(g, w), (v * b).addcmul(g, g, c));
        ((p * keep).addcdiv(m, v.sqrt().over(root.divisor()) + eps, k), [m, v])
    };
    // the same from what a user writes: a mean by lerp or by two products, the gradient squared first or not
    AdamLerp[2] = b"-0/*1>%234+/q>+*56**73389"
        [p: T0, k: N1, m: T2, g: T3, w: N4, b2: N5, v: T6, w2: N7, root: N8, eps: N9] => {
        let (m, v) = (m.lerp(g, w), b2 * v + (w2 * g) * g);
        (p - (k * m) / (v.sqrt() / root + eps), [m, v])
    }, if is_usual(root, eps) => {
        let (m, v) = (m.lerp(g, w), b2 * v + (w2 * g) * g);
        (p - (k * m) / (v.sqrt().over(root.divisor()) + eps), [m, v])
    };
    AdamRoot[2] = b"-0/*1>+*23*45+/q>+*67**8559:"
        [p: T0, k: N1, b: N2, m: T3, w: N4, g: T5, b2: N6, v: T7, w2: N8, root: N9, eps: N10] => {
        let (m, v) = (b * m + w * g, b2 * v + (w2 * g) * g);
        (p - (k * m) / (v.sqrt() / root + eps), [m, v])
    }, if is_usual(root, eps) => {
        let (m, v) = (b * m + w * g, b2 * v + (w2 * g) * g);
        (p - (k * m) / (v.sqrt().over(root.divisor()) + eps), [m, v])
    };
    AdamRootSquare[2] = b"-0/*1>+*23*45+/q>+*67*8*559:"
        [p: T0, k: N1, b: N2, m: T3, w: N4, g: T5, b2: N6, v: T7, w2: N8, root: N9, eps: N10] => {
        let (m, v) = (b * m + w * g, b2 * v + w2 * (g * g));
        (p - (k * m) / (v.sqrt() / root + eps), [m, v])
    }, if is_usual(root, eps) => {
        let (m, v) = (b * m + w * g, b2 * v + w2 * (g * g));
        (p - (k * m) / (v.sqrt().over(root.divisor()) + eps), [m, v])
    };
    // Adam as textbooks write it: where the brackets are, and whether the gradient is squared first
    AdamHats[2] = b"-0/*1/>+*23*456+q/>+*78**955:;"
        [p: T0, k: N1, b: N2, m: T3, w: N4, g: T5, c: N6, b2: N7, v: T8, w2: N9, c2: N10, eps: N11] => {
        let (m, v) = (b * m + w * g, b2 * v + (w2 * g) * g);
        (p - (k * (m / c)) / ((v / c2).sqrt() + eps), [m, v])
    };
    AdamHatsSquare[2] = b"-0/*1/>+*23*456+q/>+*78*9*55:;"
        [p: T0, k: N1, b: N2, m: T3, w: N4, g: T5, c: N6, b2: N7, v: T8, w2: N9, c2: N10, eps: N11] => {
        let (m, v) = (b * m + w * g, b2 * v + w2 * (g * g));
        (p - (k * (m / c)) / ((v / c2).sqrt() + eps), [m, v])
    };
    AdamTimesHats[2] = b"-0*1//>+*23*456+q/>+*78**955:;"
        [p: T0, k: N1, b: N2, m: T3, w: N4, g: T5, c: N6, b2: N7, v: T8, w2: N9, c2: N10, eps: N11] => {
        let (m, v) = (b * m + w * g, b2 * v + (w2 * g) * g);
        (p - k * ((m / c) / ((v / c2).sqrt() + eps)), [m, v])
    };
    AdamTimesHatsSquare[2] = b"-0*1//>+*23*456+q/>+*78*9*55:;"
        [p: T0, k: N1, b: N2, m: T3, w: N4, g: T5, c: N6, b2: N7, v: T8, w2: N9, c2: N10, eps: N11] => {
        let (m, v) = (b * m + w * g, b2 * v + w2 * (g * g));
        (p - k * ((m / c) / ((v / c2).sqrt() + eps)), [m, v])
    };
    }
}
