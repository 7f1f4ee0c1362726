//! Streams in fewer bytes without tiles: read, updated and written in one loop, for what large models are trained with.
//!
//! The formats are known when the loop is compiled, and there is one loop for each: so these are few. All others are
//! brought into tiles (`compact`), with the same bits.

use std::marker::PhantomData;

use super::body::Body;
use super::sweep::beyond_caches;
use crate::compact::elements::{
    Codes, Fair, Halves, Master, Pair, QUARTER, Residual8, Residual16, Single, Singles, Weight,
};
use crate::compact::{BLOCK, Compact, Kept, Noise, Weights, Words};
use crate::formats::{Element, Slice, SliceMut};
use crate::rule::{Formula, StateKind, States, Visitor};
use crate::simd::{Level, Simd, Vectorized, prefetch_address};

/// Updates the whole blocks that a part of such streams begins with; `first`: the first of its elements in the whole of
/// the parameter. Returns how many elements have been updated; none if no loop is compiled for their formats.
pub(super) fn run(
    body: &Body<'_>,
    level: Level,
    factor: f64,
    (written, grad): (&mut [SliceMut<'_>], Slice<'_>),
    compact: &Compact,
    first: usize,
) -> usize {
    let (Body::Rule(constants), None, true) = (body, compact.average, grad.len() >= BLOCK) else { return 0 };
    let mut done = 0;
    constants.visit_heavy(Run { level, factor, written, grad, compact, first, done: &mut done });
    done
}

struct Run<'r, 'a> {
    level: Level,
    factor: f64,
    written: &'r mut [SliceMut<'a>],
    grad: Slice<'r>,
    compact: &'r Compact,
    first: usize,
    done: &'r mut usize,
}

impl Visitor for Run<'_, '_> {
    #[inline(always)]
    fn visit<F: Formula>(self, formula: F) {
        const RELATIVE: Kept = Kept::Codes(StateKind::Relative { to: 1, root: true });
        const MAGNITUDE: Kept = Kept::Codes(StateKind::Magnitude);
        let Self { level, factor, written, grad, compact, first, done } = self;
        if F::STATES != 2 {
            return;
        }
        let (states, beside) = written.split_at_mut(compact.companion());
        let [param, states @ ..] = states else { return };
        let blocks = grad.len() / BLOCK;
        let noise = (compact.noise, first);
        macro_rules! fused {
            ($Weight:ident, $Pair:ident, $param:ident, $beside:expr, $grad:ident, $states:expr, $headers:expr) => {{
                let (param, grad) = (whole_blocks($param, blocks), &$grad.as_chunks().0[..blocks]);
                let (states, headers, beside) = ($states, $headers, $beside);
                let types = PhantomData::<($Weight, $Pair)>;
                level.run(Fused { formula, factor, param, beside, grad, states, headers, noise, types });
                *done = blocks * BLOCK;
            }};
        }
        // the states; then the weights
        macro_rules! weights {
            ($Pair:ident, $states:expr, $headers:expr) => {
                match (compact.weights, param, beside, grad) {
                    (Weights::Nearest, SliceMut::F32(p), [], Slice::F32(g)) => {
                        fused!(Single, $Pair, p, &mut [][..], g, $states, $headers);
                    }
                    (Weights::Fair, SliceMut::Bf16(p), [], Slice::Bf16(g)) => {
                        fused!(Fair, $Pair, p, &mut [][..], g, $states, $headers);
                    }
                    (Weights::Residual8, SliceMut::Bf16(p), [SliceMut::U8(c)], Slice::Bf16(g)) => {
                        fused!(Residual8, $Pair, p, whole_blocks(c, blocks), g, $states, $headers);
                    }
                    (Weights::Residual16, SliceMut::Bf16(p), [SliceMut::I16(c)], Slice::Bf16(g)) => {
                        fused!(Residual16, $Pair, p, whole_blocks(c, blocks), g, $states, $headers);
                    }
                    (Weights::Master, SliceMut::Bf16(p), [SliceMut::F32(c)], Slice::Bf16(g)) => {
                        fused!(Master, $Pair, p, whole_blocks(c, blocks), g, $states, $headers);
                    }
                    _ => {}
                }
            };
        }
        match (states, &*compact.states) {
            ([SliceMut::F32(m), SliceMut::F32(v)], [Kept::Nearest, Kept::Nearest]) => {
                weights!(Singles, (whole_blocks(m, blocks), whole_blocks(v, blocks)), (&mut [][..], &mut [][..]));
            }
            ([SliceMut::Bf16(m), SliceMut::Bf16(v)], [Kept::Nearest, Kept::Fair]) => {
                weights!(Halves, (whole_blocks(m, blocks), whole_blocks(v, blocks)), (&mut [][..], &mut [][..]));
            }
            ([SliceMut::U8(m), SliceMut::U8(v), SliceMut::F32(of_m), SliceMut::F32(of_v)], [RELATIVE, MAGNITUDE]) => {
                let headers = (&mut of_m[..blocks], &mut of_v[..blocks]);
                weights!(Codes, (whole_blocks(m, blocks), whole_blocks(v, blocks)), headers);
            }
            _ => {}
        }
    }
}

/// Blocks of a stream that is written.
type Blocks<'a, T> = &'a mut [[T; BLOCK]];

/// So many whole blocks.
fn whole_blocks<T>(x: &mut [T], blocks: usize) -> Blocks<'_, T> {
    &mut x.as_chunks_mut().0[..blocks]
}

/// A formula over streams of known formats, cut into blocks.
struct Fused<'a, F, W: Weight, G, S: Pair> {
    formula: F,
    factor: f64,
    param: Blocks<'a, W::Param>,
    /// Empty, if nothing stands there.
    beside: Blocks<'a, W::Beside>,
    grad: &'a [[G; BLOCK]],
    states: (Blocks<'a, S::First>, Blocks<'a, S::Second>),
    /// Empty, where states are not in codes.
    headers: (&'a mut [f32], &'a mut [f32]),
    /// And the number of the first element.
    noise: (Noise, usize),
    types: PhantomData<(W, S)>,
}

/// A block of numbers that are written when all of the block are known.
#[repr(align(64))]
struct Tile([f32; BLOCK]);

impl Tile {
    const ZERO: Self = Self([0.0; BLOCK]);
}

/// A block is updated in so many parts, between which memory is asked for what comes next: for little at a time, since
/// few cache lines can be on their way.
const PARTS: usize = 4;
/// How many blocks ahead that is.
const AHEAD: usize = 2;

impl<F, W, G, S> Vectorized for Fused<'_, F, W, G, S>
where
    F: Formula,
    W: Weight,
    G: Element<Arith = f32>,
    S: Pair,
{
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { formula, factor, param, beside, grad, states: (first, second), headers, noise, .. } = self;
        let update = (&formula.formula::<f32>(), factor as f32);
        let (noise, start) = noise;
        // draws go by the place of a stream: the parameter's is 0, the first state's 1
        let (of_param, of_second) = (noise.stream(0, start), noise.stream(2, start));
        let (mut for_param, mut for_second) = (Words::default(), Words::default());
        let (mut m, mut v, mut theta) = (Tile::ZERO, Tile::ZERO, Tile::ZERO);
        let is_large = beyond_caches(param.len() * BLOCK);
        let mut nothing = [W::Beside::default(); BLOCK];
        for b in 0..param.len() {
            if W::DRAWS {
                of_param.skip(b * BLOCK).words(&mut for_param);
            }
            if S::DRAWS {
                of_second.skip(b * BLOCK).words(&mut for_second);
            }
            let in_block = if S::IN_CODES { (headers.0[b], headers.1[b]) } else { (0.0, 0.0) };
            for part in 0..PARTS {
                if is_large {
                    ask_for(param, b + AHEAD, part);
                    ask_for(beside, b + AHEAD, part);
                    ask_for(grad, b + AHEAD, part);
                    ask_for(first, b + AHEAD, part);
                    ask_for(second, b + AHEAD, part);
                }
                let beside = if size_of::<W::Beside>() == 0 { &mut nothing } else { &mut beside[b] };
                let (param, grad, first, second) = (&mut param[b], &grad[b], &mut first[b], &mut second[b]);
                let (m, v, theta, words) = (&mut m.0, &mut v.0, &mut theta.0, (&for_param, &for_second));
                update_part::<W, G, S>(part, update, param, beside, grad, first, second, in_block, m, v, theta, words);
            }
            if W::IN_HALVES {
                let beside = if size_of::<W::Beside>() == 0 { &mut nothing } else { &mut beside[b] };
                write::<W>(&theta.0, &mut param[b], beside, &for_param);
            }
            if S::IN_CODES {
                let noise = (of_second.skip(b * BLOCK), &mut for_second);
                (headers.0[b], headers.1[b]) = S::encode((&mut m.0, &mut first[b]), (&mut v.0, &mut second[b]), noise);
            }
        }
    }
}

/// Brings a part of a block near. (There may be no such block: nothing is read.)
#[inline(always)]
fn ask_for<T>(blocks: &[[T; BLOCK]], b: usize, part: usize) {
    let bytes = BLOCK / PARTS * size_of::<T>();
    let from = (blocks.as_ptr().wrapping_add(b) as usize).wrapping_add(part * bytes);
    for line in 0..bytes.div_ceil(64) {
        prefetch_address(from.wrapping_add(64 * line));
    }
}

/// Updates a part of a block: some words of its codes. Each stream is an argument of its own, because the compiler then
/// knows that they do not overlap.
#[inline(always)]
fn update_part<W: Weight, G: Element<Arith = f32>, S: Pair>(
    part: usize,
    (update, factor): (&impl Fn(f32, f32, States<f32>) -> (f32, States<f32>), f32),
    param: &mut [W::Param; BLOCK],
    beside: &mut [W::Beside; BLOCK],
    grad: &[G; BLOCK],
    first: &mut [S::First; BLOCK],
    second: &mut [S::Second; BLOCK],
    headers: (f32, f32),
    m: &mut [f32; BLOCK],
    v: &mut [f32; BLOCK],
    theta: &mut [f32; BLOCK],
    (for_param, for_second): (&Words, &Words),
) {
    for w in part * (QUARTER / PARTS)..(part + 1) * (QUARTER / PARTS) {
        let old = S::read(first, second, headers, w);
        for (j, (old_m, old_v)) in old.into_iter().enumerate() {
            let i = w + j * QUARTER;
            let of_old = W::read(param[i], beside[i]);
            let (new, [new_m, new_v, _]) = update(of_old, factor * grad[i].load(), [old_m, old_v, 0.0]);
            if W::IN_HALVES {
                theta[i] = new;
            } else {
                (param[i], beside[i]) = W::write(new, for_param.0[i]);
            }
            if S::IN_CODES {
                (m[i], v[i]) = (new_m, new_v);
            } else {
                (first[i], second[i]) = S::write(new_m, new_v, for_second.0[i]);
            }
        }
    }
}

/// Writes a block of a parameter. In the loop above this would wait for quotients, and a processor holds only so many
/// instructions that wait.
#[inline(always)]
fn write<W: Weight>(
    theta: &[f32; BLOCK],
    param: &mut [W::Param; BLOCK],
    beside: &mut [W::Beside; BLOCK],
    words: &Words,
) {
    for i in 0..BLOCK {
        (param[i], beside[i]) = W::write(theta[i], words.0[i]);
    }
}
