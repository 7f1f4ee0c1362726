//! Parameters in fewer bytes: any streams, codes and headers of any bits, beside a step on one thread at the baseline.

use arbitrary::{Result, Unstructured};
use oxistep_kernels::compact::{BLOCK, Compact, Kept, Noise, Weights};
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{Precision, Scalars, StateKind, Step, Tensors, bf16, f16};

use crate::common::{Random, every_rule, levels};
use crate::kept::Stream;

/// Of any bits, or of numbers that are not far from one.
fn stream(u: &mut Unstructured<'_>, format: u8, len: usize) -> Result<Stream> {
    let mut rng = Random(u.arbitrary()?);
    let wild: bool = u.ratio(1, 4)?;
    let mut number = move || if wild { f32::from_bits(rng.bits() as u32) } else { rng.between(-2.0, 2.0) as f32 };
    Ok(match format {
        0 => Stream::F32((0..len).map(|_| number()).collect()),
        1 => Stream::F16((0..len).map(|_| f16::from_f32(number())).collect()),
        2 => Stream::Bf16((0..len).map(|_| bf16::from_f32(number())).collect()),
        3 => Stream::U8((0..len).map(|_| number().to_bits() as u8).collect()),
        _ => Stream::I16((0..len).map(|_| number().to_bits() as i16).collect()),
    })
}

fn kind(u: &mut Unstructured<'_>) -> Result<StateKind> {
    Ok(match u.int_in_range(0..=8)? {
        0 => StateKind::Exact,
        8 => StateKind::Fine,
        1 | 2 => StateKind::Signed,
        3..=5 => StateKind::Magnitude,
        _ => StateKind::Relative { to: u.int_in_range(0..=3)?, root: u.arbitrary()? },
    })
}

/// A step of one parameter; what is refused must leave no trace.
pub(crate) fn step(u: &mut Unstructured<'_>) -> Result<()> {
    let rules: Vec<_> = every_rule();
    let rule = *u.choose(&rules)?;
    let n = u.int_in_range(0..=3 * BLOCK)? * if u.ratio(1, 8)? { 40 } else { 1 };
    let weights = *u.choose(&[
        Weights::Nearest,
        Weights::Fair,
        Weights::Kahan,
        Weights::Residual8,
        Weights::Residual16,
        Weights::Master,
    ])?;
    let odd: bool = u.ratio(1, 6)?; // something is of another format or length than it should be
    let own = rule.kinds();
    let mut kept = Vec::new();
    for &of_rule in own {
        kept.push(match u.int_in_range(0..=4)? {
            0 => Kept::Nearest,
            1 => Kept::Fair,
            2 => Kept::Codes(kind(u)?),
            _ => Kept::Codes(of_rule),
        });
    }
    let half = matches!(weights, Weights::Kahan | Weights::Master) && u.arbitrary()?;
    let of_param = if weights == Weights::Nearest { u.int_in_range(0..=2)? } else { if half { 1 } else { 2 } };
    let param = stream(u, of_param, n)?;
    let of_grad = u.int_in_range(0..=2)?;
    let grad = stream(u, of_grad, n)?;
    let mut written = Vec::new();
    for state in &kept {
        let format = match state {
            Kept::Nearest => u.int_in_range(0..=2)?,
            Kept::Fair => 2,
            Kept::Codes(_) => 3,
        };
        written.push((format, n));
    }
    written.extend(kept.iter().filter(|kept| matches!(kept, Kept::Codes(_))).map(|_| (0, n.div_ceil(BLOCK))));
    match weights {
        Weights::Nearest | Weights::Fair => {}
        Weights::Kahan => written.push((of_param, n)),
        Weights::Residual8 => written.push((3, n)),
        Weights::Residual16 => written.push((4, n)),
        Weights::Master => written.push((0, n)),
    }
    let average = u.arbitrary::<bool>()?.then(|| u.arbitrary()).transpose()?;
    written.extend(average.map(|_: f64| (0, n)));
    if odd && !written.is_empty() {
        let at = u.choose_index(written.len())?;
        written[at] = (u.int_in_range(0..=4)?, u.int_in_range(0..=n + 1)?);
    }
    let written = written.into_iter().map(|(format, len)| stream(u, format, len)).collect::<Result<Vec<_>>>()?;
    let noise = Noise::new(u.arbitrary()?, [1, 2], u.arbitrary()?);
    let compact = Compact { weights, states: kept, noise, average };
    let constants = rule.constants(&mut Scalars::new([3.0, 0.5, 0.5], [Precision::F32; 3]), u.arbitrary()?);

    let run = |pool: &dyn Pool, level: Level| {
        let (mut param, mut written) = (param.clone(), written.clone());
        let mut step = Step::default();
        step.constants(constants);
        let states = written.iter_mut().map(Stream::slice_mut);
        let tensors = Tensors { param: param.slice_mut(), grad: grad.slice(), states, layout: None };
        let pushed = step.push_compact(tensors, &compact, -0.5);
        assert_eq!(step.elements(), if pushed.is_ok() { n } else { 0 });
        step.run(pool, level).unwrap();
        drop(step);
        let bytes: Vec<_> = std::iter::once(&param).chain(&written).map(Stream::bytes).collect();
        (pushed, bytes)
    };
    let (pushed, expected) = run(&Serial, Level::Baseline);
    if pushed.is_err() {
        let before: Vec<_> = std::iter::once(&param).chain(&written).map(Stream::bytes).collect();
        assert_eq!(expected, before);
    }
    for level in levels() {
        assert!(run(&Rayon { threads: 2 }, level) == (pushed, expected.clone()), "{level:?} {compact:?} {rule:?}");
    }
    Ok(())
}
