//! States and weights in fewer bytes: how each is kept, and what stands beside it.

mod codes;
pub(crate) mod elements;
mod noise;
pub(crate) mod streams;
mod weights;

pub use noise::{BLOCK, Noise};

use codes::{
    filled_up, in_order, read_magnitudes, read_relative, read_signed, write_magnitudes, write_relative, write_signed,
};
pub(crate) use noise::Words;

use crate::rule::StateKind;

/// How a parameter is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// Rounded to nearest.
    #[default]
    Nearest,
    /// `bf16`, rounded up or down with fair odds.
    Fair,
    /// What rounding loses stands beside it, in its own type.
    Kahan,
    /// `bf16`, and a byte of what rounding loses (a [`SliceMut::U8`](crate::SliceMut::U8)).
    Residual8,
    /// `bf16`, and all that rounding loses (a [`SliceMut::I16`](crate::SliceMut::I16)).
    Residual16,
    /// It is a copy of an `f32`.
    Master,
}

impl Weights {
    /// Whether something stands beside it.
    pub fn has_companion(self) -> bool {
        !matches!(self, Self::Nearest | Self::Fair)
    }
}

/// How a state is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// As numbers, rounded to nearest.
    Nearest,
    /// As `bf16`, rounded up or down with fair odds.
    Fair,
    /// In 8 bits, with a header for each block: of this kind.
    Codes(StateKind),
}

/// How a parameter and its states are kept.
///
/// The streams that a step writes are the parameter, its states in the order of the rule (numbers or codes), the
/// headers of those in codes, in the same order, what stands beside the parameter, and its average.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compact {
    /// The parameter.
    pub weights: Weights,
    /// Its states.
    pub states: Vec<Kept>,
    /// Of what is rounded with fair odds.
    pub noise: Noise,
    /// How far the average of the parameter, an `f32`, moves towards it when it has been updated; `None`: it has none.
    pub average: Option<f64>,
}

impl Compact {
    /// How many streams a step writes.
    pub fn streams(&self) -> usize {
        self.place_of_average() + usize::from(self.average.is_some())
    }

    /// Where in the list of streams the average stands.
    pub(crate) fn place_of_average(&self) -> usize {
        self.companion() + usize::from(self.weights.has_companion())
    }

    /// How many states are in codes.
    pub(crate) fn headers(&self) -> usize {
        self.states.iter().filter(|state| matches!(state, Kept::Codes(_))).count()
    }

    /// Where in the list of streams the header of a state in codes stands.
    pub(crate) fn header_of(&self, state: usize) -> usize {
        let before = self.states[..state].iter().filter(|state| matches!(state, Kept::Codes(_))).count();
        1 + self.states.len() + before
    }

    /// Where in the list of streams what is beside the parameter stands.
    pub(crate) fn companion(&self) -> usize {
        1 + self.states.len() + self.headers()
    }

    /// How many elements of stream `k` belong to `elements` of the parameter, a multiple of [`BLOCK`] or all of them.
    pub(crate) fn len_of(&self, k: usize, elements: usize) -> usize {
        let first = 1 + self.states.len();
        if (first..first + self.headers()).contains(&k) { elements.div_ceil(BLOCK) } else { elements }
    }
}

/// Reads a state in codes. `of`: the numbers that relative codes are relative to.
///
/// # Panics
/// If the lengths do not belong together.
pub fn unpack(kind: StateKind, codes: &[u8], headers: &[f32], of: Option<&[f32]>, out: &mut [f32]) {
    for (b, ((codes, out), &header)) in codes.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).zip(headers).enumerate() {
        let mut tile = [0.0; BLOCK];
        let padded = if let Ok(full) = codes.try_into() { full } else { filled_up(codes) };
        match (kind, of) {
            (StateKind::Magnitude, _) => read_magnitudes(&padded, header, &mut tile),
            (StateKind::Relative { root, .. }, Some(of)) => {
                read_relative(&padded, header, (&block_of(of, b), root), &mut tile);
            }
            _ => read_signed(&padded, header, &mut tile),
        }
        out.copy_from_slice(&tile[..codes.len()]);
    }
}

/// Writes a state in codes, as a step does that finds it in stream `stream`.
///
/// # Panics
/// If the lengths do not belong together.
pub fn pack(
    kind: StateKind,
    numbers: &[f32],
    of: Option<&[f32]>,
    (codes, headers): (&mut [u8], &mut [f32]),
    noise: Noise,
    stream: usize,
) {
    let mut words = Words::default();
    for (b, ((codes, numbers), header)) in codes.chunks_mut(BLOCK).zip(numbers.chunks(BLOCK)).zip(headers).enumerate() {
        let n = codes.len();
        let (mut padded, mut tile) = ([0; BLOCK], [0.0; BLOCK]);
        tile[..n].copy_from_slice(numbers);
        let bits = (noise.stream(stream, b * BLOCK), &mut words);
        *header = match (kind, of) {
            (StateKind::Magnitude, _) => write_magnitudes(&mut tile, &mut padded, bits),
            (StateKind::Relative { root, .. }, Some(of)) => {
                write_relative(&mut tile, (&block_of(of, b), root), &mut padded)
            }
            _ => write_signed(&mut tile, &mut padded, bits),
        };
        if n == BLOCK { codes.copy_from_slice(&padded) } else { in_order(&padded, codes) }
    }
}

/// A block of numbers, the last one filled up with zeros.
fn block_of(numbers: &[f32], b: usize) -> [f32; BLOCK] {
    let block = &numbers[b * BLOCK..numbers.len().min((b + 1) * BLOCK)];
    let mut filled = [0.0; BLOCK];
    filled[..block.len()].copy_from_slice(block);
    filled
}
