//! Parameters in fewer bytes, made of arbitrary bytes: any formats, gradients that lie anywhere, numbers of any size.

use arbitrary::{Result, Unstructured};
use oxistep_kernels::compact::{BLOCK, Compact, Kept, Noise, Weights, pack};
use oxistep_kernels::{Layout, StateKind};

use super::numbers::{len, rounded};
use super::{Lot, divisor, is_relative};
use crate::common::Random;
use crate::kept::Stream;

/// What numbers look like.
#[derive(Clone, Copy)]
enum Look {
    /// Between -2 and 2.
    Usual,
    /// Any bits.
    Wild,
    /// Of one size, which may be that of denormals, or so large that squares are infinite.
    Scaled(f64),
    /// One in so many is at an end of what there is; the others are usual.
    Some(usize),
}

/// Infinities, what is no number, and numbers at the ends of what there is.
const ENDS: [f32; 14] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MAX,
    f32::MIN,
    0.0,
    -0.0,
    1e-45,
    -1e-40,
    f32::MIN_POSITIVE,
    3e38,
    -1e30,
    6e4,
    -1e-20,
];

impl Look {
    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        Ok(match u.int_in_range(0..=7)? {
            0 => Self::Wild,
            1 => Self::Scaled(10_f64.powi(u.int_in_range(-44..=38)?)),
            2..=4 => Self::Some(*u.choose(&[2, 5, 100, 300])?),
            _ => Self::Usual,
        })
    }

    fn draw(self, rng: &mut Random) -> f32 {
        let usual = rng.between(-2.0, 2.0);
        match self {
            Self::Usual => usual as f32,
            Self::Wild => f32::from_bits(rng.bits() as u32),
            Self::Scaled(scale) => (usual * scale) as f32,
            Self::Some(every) if rng.below(every) == 0 => ENDS[rng.below(ENDS.len())],
            Self::Some(_) => usual as f32,
        }
    }
}

/// The numbers of the formats of streams: `f32`, `f16`, `bf16`, codes, residuals.
fn stream(u: &mut Unstructured<'_>, format: u8, len: usize) -> Result<Stream> {
    let mut rng = Random(u.arbitrary()?);
    let look = Look::any(u)?;
    let numbers: Vec<f32> = (0..len).map(|_| look.draw(&mut rng)).collect();
    Ok(match format {
        0 => Stream::F32(numbers),
        1 => rounded(&numbers, &Stream::F16(vec![])),
        2 => rounded(&numbers, &Stream::Bf16(vec![])),
        3 => Stream::U8((0..len).map(|_| rng.bits() as u8).collect()),
        _ => Stream::I16((0..len).map(|_| rng.bits() as i16).collect()),
    })
}

fn kind(u: &mut Unstructured<'_>) -> Result<StateKind> {
    Ok(match u.int_in_range(0..=31)? {
        0 => StateKind::Exact,
        1 => StateKind::Fine,
        2..=9 => StateKind::Signed,
        10..=20 => StateKind::Magnitude,
        _ => StateKind::Relative { to: u.int_in_range(0..=3)?, root: u.arbitrary()? },
    })
}

/// A placement of `sizes`: dimensions in any order, with gaps, backwards; `read_only`: or one element for all indices
/// of a dimension, as after `expand`. Strides, where the first element lies, and how long all of it is.
pub(crate) fn lie(u: &mut Unstructured<'_>, sizes: &[usize], read_only: bool) -> Result<(Vec<isize>, usize, usize)> {
    let mut strides = vec![0; sizes.len()];
    let mut left: Vec<usize> = (0..sizes.len()).collect();
    let (mut start, mut span) = (u.int_in_range(0..=3)?, 1);
    while !left.is_empty() {
        let d = left.remove(u.choose_index(left.len())?);
        if read_only && u.ratio(1, 6)? {
            continue;
        }
        let stride = span + if u.ratio(1, 4)? { u.int_in_range(0..=5)? } else { 0 };
        let reach = stride * sizes[d].saturating_sub(1);
        let backwards = u.ratio(1, 5)?;
        strides[d] = if backwards { -(stride as isize) } else { stride as isize };
        start += if backwards { reach } else { 0 };
        span += reach;
    }
    Ok((strides, start, start + span + u.int_in_range(0..=2)?))
}

/// Where elements are: how many, and the layout of parameter and gradient.
struct Place {
    elements: usize,
    /// With the places of the gradient's elements, and how long that is.
    layout: Option<(Layout, Vec<usize>, usize)>,
    among_many: bool,
}

impl Place {
    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        let among_many = u.ratio(1, 40)?;
        if u.ratio(1, 3)? {
            let long = u.ratio(1, 8)?;
            let dims = u.int_in_range(0..=if long { 2 } else { 3 })?;
            let size = |u: &mut Unstructured<'_>| match (long, u.ratio(1, 30)?) {
                (_, true) => Ok(0),
                (true, _) => u.int_in_range(100..=180),
                (false, _) => u.int_in_range(1..=16),
            };
            let sizes = (0..dims).map(|_| size(u)).collect::<Result<Vec<usize>>>()?;
            return Self::apart(u, &sizes, among_many);
        }
        // about the ends of blocks, tiles, and chunks of small steps and large ones
        let ends: &[usize] = if among_many {
            &[65_536, 98_304, 98_304 + 512]
        } else {
            &[0, 64, 256, 512, 768, 1024, 256, 512, 768, 1024, 8192, 12_288, 16_384, 20_480]
        };
        let around: usize = *u.choose(ends)?;
        let elements = (around + u.int_in_range(0..=3_usize)?).saturating_sub(u.int_in_range(0..=3_usize)?);
        let elements = if u.ratio(1, 3)? { u.int_in_range(0..=3 * BLOCK)? } else { elements };
        Ok(Self { elements, layout: None, among_many })
    }

    /// A parameter whose dimensions lie in any order, without gaps, and a gradient of which each may lie anywhere.
    fn apart(u: &mut Unstructured<'_>, sizes: &[usize], among_many: bool) -> Result<Self> {
        let elements = sizes.iter().product();
        let mut own = vec![0; sizes.len()];
        let mut left: Vec<usize> = (0..sizes.len()).collect();
        let mut span = 1;
        while !left.is_empty() {
            let d = left.remove(if u.arbitrary()? { left.len() - 1 } else { u.choose_index(left.len())? });
            own[d] = span as isize;
            span *= sizes[d];
        }
        let (strides, start, len) = lie(u, sizes, true)?;
        let both: Vec<isize> = own.iter().zip(&strides).flat_map(|(&p, &g)| [p, g]).collect();
        let mut places = vec![0; elements];
        for mut i in 0..elements {
            let (mut p, mut g) = (0, start as isize);
            for (d, &size) in sizes.iter().enumerate().rev() {
                let index = (i % size) as isize;
                (p, g, i) = (p + index * own[d], g + index * strides[d], i / size);
            }
            places[p as usize] = g as usize;
        }
        Ok(Self { elements, layout: Some((Layout::new(sizes, &both, &[0, start]), places, len)), among_many })
    }
}

impl Lot {
    /// A parameter whose states are of these kinds.
    pub(crate) fn any(u: &mut Unstructured<'_>, kinds: &[StateKind]) -> Result<Self> {
        let Place { elements: n, layout, among_many } = Place::any(u)?;
        let modes =
            [Weights::Nearest, Weights::Fair, Weights::Kahan, Weights::Residual8, Weights::Residual16, Weights::Master];
        let weights = *u.choose(&modes)?;
        // what the fused loops serve, or anything
        let usual = u.ratio(1, 3)?;
        let states = states(u, kinds, usual)?;
        let of_param = match weights {
            Weights::Nearest if usual => 0,
            Weights::Nearest => u.int_in_range(0..=2)?,
            Weights::Kahan | Weights::Master if u.ratio(1, 3)? => 1,
            _ => 2,
        };
        let of_grad = match (usual, weights) {
            (false, _) => u.int_in_range(0..=2)?,
            (true, Weights::Nearest) => 0,
            (true, _) => 2,
        };
        let grad = stream(u, of_grad, layout.as_ref().map_or(n, |(.., len)| *len))?;
        let mut formats = Vec::new();
        for kept in &states {
            formats.push(match kept {
                Kept::Nearest if usual => {
                    if states.contains(&Kept::Fair) {
                        2
                    } else {
                        0
                    }
                }
                Kept::Nearest => u.int_in_range(0..=2)?,
                Kept::Fair => 2,
                Kept::Codes(_) => 3,
            });
        }
        let headers = states.iter().filter(|kept| matches!(kept, Kept::Codes(_))).count();
        let mut formats: Vec<(u8, usize)> = formats.into_iter().map(|format| (format, n)).collect();
        formats.extend(std::iter::repeat_n((0, n.div_ceil(BLOCK)), headers));
        formats.extend(match weights {
            Weights::Nearest | Weights::Fair => None,
            Weights::Kahan => Some((of_param, n)),
            Weights::Residual8 => Some((3, n)),
            Weights::Residual16 => Some((4, n)),
            Weights::Master => Some((0, n)),
        });
        let average = (!usual && u.ratio(1, 3)?).then(|| average(u)).transpose()?;
        formats.extend(average.map(|_| (0, n)));
        let is_odd = u.ratio(1, 12)? && !formats.is_empty();
        if is_odd {
            let at = u.choose_index(formats.len())?;
            formats[at] = (u.int_in_range(0..=4)?, u.int_in_range(0..=n + 1)?);
        }
        let param = stream(u, of_param, n)?;
        let written = formats.into_iter().map(|(format, len)| stream(u, format, len)).collect::<Result<_>>()?;
        let noise = Noise::new(u.arbitrary()?, [1, 2], u.arbitrary()?);
        let first = if u.ratio(1, 3)? { u.int_in_range(0..=u64::from(u32::MAX) * 512)? } else { 0 };
        let compact = Compact { weights, states, noise: noise.starting_at(first), average };
        let factor = *u.choose(&[1.0, -0.5, 0.37])?;
        let layout = layout.map(|(layout, places, _)| (layout, places));
        let mut lot = Self { compact, param, written, grad, layout, factor, elements: n, among_many };
        if !is_odd && u.ratio(2, 3)? {
            lot.as_written(&mut Random(u.arbitrary()?));
        }
        Ok(lot)
    }

    /// Lets codes and what is beside the parameter be as an earlier step left them.
    fn as_written(&mut self, rng: &mut Random) {
        for relative in [false, true] {
            for k in 0..self.compact.states.len() {
                let Kept::Codes(kind) = self.compact.states[k] else { continue };
                let numbers = self.states(&self.written);
                let of = divisor(kind, &numbers);
                let lacks = matches!(kind, StateKind::Relative { .. }) && of.is_none();
                if is_relative(self.compact.states[k]) != relative || lacks {
                    continue;
                }
                let scale = 10_f64.powi(rng.below(20) as i32 - 14);
                let x: Vec<f32> = (0..self.elements).map(|_| (rng.between(-1.0, 1.0) * scale) as f32).collect();
                let x = if kind == StateKind::Magnitude { x.iter().map(|x| x * x).collect() } else { x };
                let (mut codes, mut headers) = (vec![0; self.elements], vec![0.0; self.elements.div_ceil(BLOCK)]);
                pack(kind, &x, of, (&mut codes, &mut headers), self.compact.noise, 1 + k);
                let header = self.header(k);
                (self.written[k], self.written[header]) = (Stream::U8(codes), Stream::F32(headers));
            }
        }
        let at = self.header(self.compact.states.len());
        let exact: Vec<f32> = (0..len(&self.param)).map(|_| rng.between(-2.0, 2.0) as f32).collect();
        let near = rounded(&exact, &self.param);
        let lost = exact.iter().enumerate().map(|(i, x)| x - near.number(i));
        match self.compact.weights {
            Weights::Kahan => self.written[at] = rounded(&lost.collect::<Vec<_>>(), &self.param),
            Weights::Master => self.written[at] = Stream::F32(exact.clone()),
            _ => return,
        }
        self.param = near;
    }
}

/// How states are kept.
fn states(u: &mut Unstructured<'_>, kinds: &[StateKind], usual: bool) -> Result<Vec<Kept>> {
    let all = u.int_in_range(0..=2)?;
    let of_kind = |kind: StateKind| match (all, kind) {
        (0, _) | (_, StateKind::Exact) | (1, StateKind::Relative { .. } | StateKind::Signed) => Kept::Nearest,
        (1, _) | (_, StateKind::Fine) => Kept::Fair,
        (_, kind) => Kept::Codes(kind),
    };
    kinds
        .iter()
        .map(|&own| match if usual { 3 } else { u.int_in_range(0..=3)? } {
            0 => Ok(Kept::Nearest),
            1 => Ok(Kept::Fair),
            2 => Ok(Kept::Codes(kind(u)?)),
            _ => Ok(of_kind(own)),
        })
        .collect()
}

/// How far an average moves: not at all, all the way, by little, or by anything.
fn average(u: &mut Unstructured<'_>) -> Result<f64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => f64::from_bits(u.arbitrary()?),
        k => [0.0, 1.0, 0.01][k - 1],
    })
}

/// Kinds of the states of a program: as it could have them, or any.
pub(crate) fn kinds(u: &mut Unstructured<'_>, states: usize) -> Result<Vec<StateKind>> {
    if states == 2 && u.arbitrary()? {
        return Ok(vec![StateKind::Relative { to: 1, root: true }, StateKind::Magnitude]);
    }
    (0..states).map(|_| kind(u)).collect()
}
