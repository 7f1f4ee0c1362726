//! How numbers are kept that are not in codes: what is read of them, and what may be written.

use oxistep_kernels::compact::{Compact, Weights};
use oxistep_kernels::{bf16, f16};

use crate::kept::Stream;

/// The bits of infinity.
const INFINITY: u32 = 0x7f80_0000;

/// The numbers that a parameter stands for, with what is beside it.
pub(super) fn weights(compact: &Compact, param: &Stream, companion: Option<&Stream>) -> Vec<f32> {
    let n = len(param);
    (0..n).map(|i| weight(compact.weights, param, companion, i)).collect()
}

fn weight(weights: Weights, param: &Stream, companion: Option<&Stream>, i: usize) -> f32 {
    let p = param.number(i);
    let joined = |rest: i32| {
        let x = f32::from_bits(p.to_bits().wrapping_add(rest as u32));
        if x.is_nan() { p } else { x }
    };
    match (weights, companion) {
        (Weights::Residual16, Some(Stream::I16(rest))) => joined(rest[i].into()),
        (Weights::Residual8, Some(Stream::U8(rest))) => joined(i32::from(rest[i] as i8) * 256),
        (Weights::Kahan, Some(rest)) => {
            let rest = rest.number(i);
            if rest.abs() <= p.abs() / 256.0 { p + rest } else { p }
        }
        (Weights::Master, Some(Stream::F32(master))) => {
            let is_copy = match param {
                Stream::F16(_) => f16::from_f32(master[i]).to_f32().to_bits() == p.to_bits(),
                // one step of rounding either way, as a parameter beside a residual has been rounded
                _ => (i64::from(master[i].to_bits()) - i64::from(p.to_bits())).abs() <= 0x8000,
            };
            if is_copy { master[i] } else { p }
        }
        _ => p,
    }
}

/// Judges what was written of a parameter and beside it.
pub(super) fn check_weights(compact: &Compact, new: &[f32], param: &Stream, companion: Option<&Stream>) {
    match (compact.weights, param, companion) {
        (Weights::Fair, Stream::Bf16(param), _) => check_fair(new, param),
        (Weights::Residual16, _, Some(Stream::I16(_))) => {
            for (i, (x, joined)) in new.iter().zip(weights(compact, param, companion)).enumerate() {
                assert!(x.to_bits() == joined.to_bits() || x.is_nan() && joined.is_nan(), "{i}: {x} {joined}");
                check_near(*x, param.number(i), 0x8000);
            }
        }
        (Weights::Residual8, Stream::Bf16(param_bits), Some(Stream::U8(rest))) => {
            for (i, &x) in new.iter().enumerate() {
                let p = param.number(i);
                let bits =
                    (u32::from(param_bits[i].to_bits()) << 16).wrapping_add((i32::from(rest[i] as i8) << 8) as u32);
                let is_one_of_two =
                    bits & 0xff == 0 && (bits == x.to_bits() & !0xff || bits == (x.to_bits() & !0xff) + 0x100);
                let is_right = if x.is_nan() { p.is_nan() } else { is_one_of_two };
                assert!(is_right, "{i}: {x} is {p} and {}", rest[i]);
                check_near(x, p, 0x80ff);
            }
        }
        (mode, ..) => {
            let p = rounded(new, param);
            assert!(p.bytes() == param.bytes(), "{mode:?}: the parameter");
            let beside = match (mode, companion) {
                (Weights::Kahan, Some(companion)) => {
                    let lost = new.iter().enumerate().map(|(i, x)| x - p.number(i));
                    let lost: Vec<f32> = lost.map(|x| if x.is_finite() { x } else { 0.0 }).collect();
                    Some((rounded(&lost, companion), companion))
                }
                (Weights::Master, Some(companion)) => Some((Stream::F32(new.to_vec()), companion)),
                _ => None,
            };
            assert!(beside.is_none_or(|(right, found)| right.bytes() == found.bytes()), "{mode:?}: what is beside it");
        }
    }
}

/// A parameter beside a residual is its master to the digits that it has: so many units of the last place away.
fn check_near(x: f32, p: f32, units: i64) {
    let distance = i64::from(x.to_bits() & 0x7fff_ffff) - i64::from(p.to_bits() & 0x7fff_ffff);
    assert!(distance.abs() <= units || x.is_nan() && p.is_nan(), "{x} {p}");
}

/// Judges numbers that were rounded up or down: each is one of two, or what it was, if that is exact or not finite.
pub(super) fn check_fair(new: &[f32], found: &[bf16]) {
    for (i, (x, found)) in new.iter().zip(found).enumerate() {
        let (bits, found) = (x.to_bits(), u32::from(found.to_bits()) << 16);
        let (below, is_exact) = (bits & 0xffff_0000, bits & 0xffff == 0);
        let is_right = if x.is_nan() {
            f32::from_bits(found).is_nan()
        } else {
            found == below || !is_exact && bits & 0x7fff_ffff < INFINITY && found == below + 0x1_0000
        };
        assert!(is_right, "{i}: {x} became {}", f32::from_bits(found));
    }
}

/// Numbers in the format of a stream, rounded to nearest.
pub(super) fn rounded(new: &[f32], like: &Stream) -> Stream {
    match like {
        Stream::F32(_) => Stream::F32(new.to_vec()),
        Stream::F16(_) => Stream::F16(new.iter().map(|&x| f16::from_f32(x)).collect()),
        Stream::Bf16(_) => Stream::Bf16(new.iter().map(|&x| bf16::from_f32(x)).collect()),
        Stream::U8(_) | Stream::I16(_) => panic!("codes are no numbers"),
    }
}

/// torch's.
pub(super) fn lerp(a: f32, b: f32, weight: f32) -> f32 {
    if weight.abs() < 0.5 { weight.mul_add(b - a, a) } else { (weight - 1.0).mul_add(b - a, b) }
}

pub(super) fn len(stream: &Stream) -> usize {
    match stream {
        Stream::F32(x) => x.len(),
        Stream::F16(x) => x.len(),
        Stream::Bf16(x) => x.len(),
        Stream::U8(x) => x.len(),
        Stream::I16(x) => x.len(),
    }
}
