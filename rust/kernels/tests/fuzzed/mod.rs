//! Programs made of arbitrary bytes, run on the crate's public API and judged by slow, obvious code.
//!
//! Tensors lie in the middle of longer buffers, whose other elements must keep their bits. What is accepted must come
//! out as if each element had been a tensor of its own, on one thread at the baseline; what is refused must leave no
//! trace.

mod compact;

use arbitrary::{Result, Unstructured};
use oxistep_kernels::change::{Change, Changes};
use oxistep_kernels::norm::{Norm, Order};
use oxistep_kernels::overlap::Written;
use oxistep_kernels::pool::{Rayon, Serial};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{Layout, STREAMS, Slice, SliceMut, SparseRows, Step, Tensors};

use crate::common::{Buffer, COMBINATIONS, Parameter, Random, TYPES, Type, Types, Values, every_rule, levels, update};
use crate::judged::lie;

/// Elements on either side of a tensor that are none of its own.
const GUARD: usize = 70;

/// Runs the program that some bytes stand for; anything wrong is a panic.
pub(crate) fn run(data: &[u8]) {
    // bytes that end early stand for a program that does
    let _ = program(&mut Unstructured::new(data));
}

fn program(u: &mut Unstructured<'_>) -> Result<()> {
    while !u.is_empty() {
        match u.int_in_range(0..=6)? {
            0 => overlap(u)?,
            1 => extent(u)?,
            2 => rows(u)?,
            3 => norm_and_change(u)?,
            4 => compact::step(u)?,
            _ => steps(u)?,
        }
    }
    Ok(())
}

// ---- overlap ----

/// Ranges of several steps, most of them the same again, beside a comparison of all with all.
fn overlap(u: &mut Unstructured<'_>) -> Result<()> {
    let mut written = Written::default();
    let mut ranges: Vec<((usize, usize), usize)> = Vec::new();
    for _ in 0..u.int_in_range(1..=4)? {
        if ranges.is_empty() || u.ratio(1, 2)? {
            let count = u.int_in_range(0..=12)?;
            ranges = (0..count).map(|item| Ok((range(u)?, item / 2))).collect::<Result<_>>()?;
        } else if u.ratio(1, 2)? {
            let at = u.choose_index(ranges.len())?;
            ranges[at].0 = range(u)?;
        }
        let meet = |a: (usize, usize), b: (usize, usize)| a.0 < a.1 && b.0 < b.1 && a.0 < b.1 && b.0 < a.1;
        let conflicting = |k: usize| (0..ranges.len()).any(|other| other != k && meet(ranges[k].0, ranges[other].0));
        let mut expected: Vec<usize> = (0..ranges.len()).filter(|&k| conflicting(k)).map(|k| ranges[k].1).collect();
        expected.dedup();

        written.begin();
        let known = u.arbitrary()? && ranges.iter().all(|&(range, item)| written.add_known(item, range));
        if known && written.is_complete() {
            assert!(expected.is_empty(), "taken for known: {ranges:?}");
        } else {
            written.begin();
            ranges.iter().for_each(|&(range, item)| written.add(item, range));
            let found = written.conflicts();
            // what only lies between two that meet may be named as well, never too few
            assert!(expected.iter().all(|item| found.contains(item)), "{ranges:?}: {found:?}, not {expected:?}");
            assert_eq!(found.is_empty(), expected.is_empty(), "{ranges:?}: {found:?}");
        }
        let mut hint = u.arbitrary()?;
        for _ in 0..u.int_in_range(0..=3)? {
            let read = range(u)?;
            let mut met = Vec::new();
            written.meeting(read, &mut hint, |item| met.push(item));
            let mut expected: Vec<_> = ranges.iter().filter(|(range, _)| meet(*range, read)).map(|r| r.1).collect();
            met.sort_unstable();
            expected.sort_unstable();
            assert_eq!(met, expected, "{read:?} in {ranges:?}");
        }
    }
    Ok(())
}

fn range(u: &mut Unstructured<'_>) -> Result<(usize, usize)> {
    let start = if u.ratio(1, 20)? { usize::MAX - u.int_in_range(0..=40)? } else { u.int_in_range(0..=60)? };
    Ok((start, start.saturating_add(u.int_in_range(0..=20)?)))
}

// ---- layouts ----

/// Any sizes, strides and starts, beside arithmetic that cannot overflow.
fn extent(u: &mut Unstructured<'_>) -> Result<()> {
    let dims = u.int_in_range(0..=5)?;
    let (mut sizes, mut strides) = (Vec::new(), Vec::new());
    for _ in 0..dims {
        sizes.push(if u.ratio(1, 12)? { 0 } else { u.int_in_range(1..=5)? });
        let mut stride = [0; STREAMS];
        for stride in &mut stride {
            *stride = if u.ratio(1, 10)? { u.arbitrary()? } else { u.int_in_range(-9..=9)? };
        }
        strides.push(stride);
    }
    let mut starts = [0; STREAMS];
    for start in &mut starts {
        *start = if u.ratio(1, 10)? { u.arbitrary()? } else { u.int_in_range(0..=30)? };
    }
    let Some(fits) = merges(&sizes, &strides) else { return Ok(()) };
    let layout = Layout::new(&sizes, strides.as_flattened(), &starts);
    assert_eq!(layout.len(), sizes.iter().product::<usize>());
    for s in 0..STREAMS {
        let reach = |&(size, stride): &(usize, isize)| (size as i128 - 1) * stride as i128;
        let dims: Vec<_> = sizes.iter().zip(&strides).map(|(&size, stride)| (size, stride[s])).collect();
        let low: i128 = starts[s] as i128 + dims.iter().map(reach).filter(|&reach| reach < 0).sum::<i128>();
        let high: i128 = starts[s] as i128 + dims.iter().map(reach).filter(|&reach| reach > 0).sum::<i128>();
        let expected = if layout.is_empty() { Some(0) } else { usize::try_from(high + 1).ok().filter(|_| low >= 0) };
        match layout.extent(s) {
            None => assert!(expected.is_none() || !fits || high > i64::MAX as i128 / 2 || low < i64::MIN as i128 / 2),
            found => assert_eq!(found, expected, "{sizes:?} {strides:?} {starts:?} stream {s}"),
        }
    }
    Ok(())
}

/// Whether all distances are far from overflow; `None` if not even the size times the stride of one dimension can be
/// told.
fn merges(sizes: &[usize], strides: &[[isize; STREAMS]]) -> Option<bool> {
    let far =
        |stride: isize, size: usize| stride.checked_mul(size as isize).map(|reach| reach.unsigned_abs() < 1 << 60);
    let mut all = true;
    for (&size, stride) in sizes.iter().zip(strides) {
        for &stride in stride {
            all &= far(stride, size)?;
        }
    }
    Some(all)
}

// ---- steps ----

/// One stream: where its elements lie in a buffer that begins and ends with guards.
#[derive(Clone, Debug)]
struct Stream {
    buffer: Buffer,
    /// Length of the slice between the guards.
    len: usize,
    strides: Vec<isize>,
    start: usize,
}

impl Stream {
    fn positions(&self, sizes: &[usize]) -> Vec<usize> {
        let count = sizes.iter().product();
        let position = |mut i: usize| {
            let mut at = self.start as isize;
            for (&size, &stride) in sizes.iter().zip(&self.strides).rev() {
                at += (i % size) as isize * stride;
                i /= size;
            }
            GUARD + usize::try_from(at).expect("inside its slice")
        };
        (0..count).map(position).collect()
    }

    fn slice(&self) -> Slice<'_> {
        macro_rules! inner {
            ($($V:ident),*) => { match &self.buffer { $(Buffer::$V(x) => Slice::$V(&x[GUARD..GUARD + self.len]),)* } };
        }
        inner!(F64, F32, F16, Bf16)
    }

    fn slice_mut(&mut self) -> SliceMut<'_> {
        let len = self.len;
        macro_rules! inner {
            ($($V:ident),*) => {
                match &mut self.buffer { $(Buffer::$V(x) => SliceMut::$V(&mut x[GUARD..GUARD + len]),)* }
            };
        }
        inner!(F64, F32, F16, Bf16)
    }
}

fn filled(ty: Type, len: usize, rng: &mut Random) -> Buffer {
    Values::Scaled.buffer(ty, len + 2 * GUARD, rng)
}

/// A placement of `sizes`: dense, or with dimensions in any order, gaps, backwards.
fn placed(u: &mut Unstructured<'_>, ty: Type, sizes: &[usize], read_only: bool, rng: &mut Random) -> Result<Stream> {
    let (strides, start, len) = lie(u, sizes, read_only)?;
    Ok(Stream { buffer: filled(ty, len, rng), len, strides, start })
}

/// A parameter of a step.
struct Member {
    parameter: Parameter,
    streams: Vec<Stream>,
    sizes: Vec<usize>,
    layout: Option<Layout>,
    /// The kernels must say no.
    refused: bool,
}

fn member(u: &mut Unstructured<'_>) -> Result<Member> {
    let rules = every_rule();
    let rule = *u.choose(&rules)?;
    let types = if u.ratio(1, 10)? {
        Types(*u.choose(&TYPES)?, *u.choose(&TYPES)?, *u.choose(&TYPES)?)
    } else {
        *u.choose(&COMBINATIONS)?
    };
    let mut rng = Random(u.arbitrary()?);
    let states = rule.states().len();
    let types_of = [types.0, types.1, types.2, types.2, types.2];
    let (sizes, strided): (Vec<usize>, bool) = if u.ratio(1, 2)? {
        let dims = u.int_in_range(0..=4)?;
        ((0..dims).map(|_| if u.ratio(1, 15)? { Ok(0) } else { u.int_in_range(1..=9) }).collect::<Result<_>>()?, true)
    } else {
        // about the ends of blocks, tiles and chunks
        let around: usize = *u.choose(&[0, 16, 64, 256, 300, 65_536, 98_304, 131_072])?;
        (vec![(around + u.int_in_range(0..=3_usize)?).saturating_sub(u.int_in_range(0..=3_usize)?)], false)
    };
    let mut streams = Vec::new();
    for (s, &of) in types_of.iter().enumerate().take(2 + states) {
        streams.push(if strided {
            placed(u, of, &sizes, s == 1, &mut rng)?
        } else {
            Stream { buffer: filled(of, sizes[0], &mut rng), len: sizes[0], strides: vec![1], start: 0 }
        });
    }
    let layout = strided.then(|| {
        let strides: Vec<_> = (0..sizes.len()).flat_map(|d| streams.iter().map(move |x| x.strides[d])).collect();
        let starts: Vec<_> = streams.iter().map(|x| x.start).collect();
        Layout::new(&sizes, &strides, &starts)
    });
    let is_double = |of| of == Type::F64;
    let mut refused =
        is_double(types.0) != is_double(types.1) || (states > 0 && is_double(types.0) != is_double(types.2));
    if u.ratio(1, 8)? {
        // one stream ends an element before it should
        let s = u.choose_index(streams.len())?;
        let needed = layout.as_ref().map_or_else(|| sizes[0], |layout| layout.extent(s).expect("placed inside"));
        if needed > 0 {
            streams[s].len = needed - 1;
            refused = true;
        }
    }
    let mut parameter = Parameter::new(rule, types, 0, Values::Scaled, &mut rng);
    if u.arbitrary()? {
        parameter = parameter.aged(10, Values::Scaled, &mut rng);
    }
    for (stream, name) in streams[2..].iter_mut().zip(rule.states()) {
        if !matches!(*name, "momentum_buffer" | "exp_avg" | "ax" | "prev" | "grad_avg") {
            stream.buffer =
                Buffer::new(stream.buffer.ty(), stream.buffer.values().map(f64::abs).collect::<Vec<_>>().into_iter());
        }
    }
    parameter.grad_factor = *u.choose(&[1.0, -1.0, 0.37])?;
    Ok(Member { parameter, streams, sizes, layout, refused })
}

/// The bits that every stream must have afterwards: its elements updated as tensors of their own, the rest as it was.
fn expected(member: &Member) -> Vec<Vec<u64>> {
    let mut bits: Vec<_> = member.streams.iter().map(|stream| stream.buffer.bits()).collect();
    if member.refused || member.sizes.contains(&0) {
        return bits;
    }
    let positions: Vec<_> = member.streams.iter().map(|stream| stream.positions(&member.sizes)).collect();
    let gather = |s: usize, range: std::ops::Range<usize>| {
        let buffer = &member.streams[s].buffer;
        Buffer::new(buffer.ty(), positions[s][range].iter().map(|&at| buffer.get(at)))
    };
    let count = positions[0].len();
    // of long ones every element would take too long: pieces that no loop's blocks divide
    let each = if count <= 600 { 1 } else { 61 };
    for first in (0..count).step_by(each) {
        let range = first..count.min(first + each);
        let mut alone = Parameter {
            param: gather(0, range.clone()),
            grad: gather(1, range.clone()),
            states: (2..positions.len()).map(|s| gather(s, range.clone())).collect(),
            ..member.parameter.clone()
        };
        update(std::slice::from_mut(&mut alone), &Serial, Level::Baseline);
        for (s, updated) in alone.bits().into_iter().enumerate() {
            let stream = if s == 0 { 0 } else { s + 1 };
            range.clone().zip(updated).for_each(|(i, new)| bits[stream][positions[stream][i]] = new);
        }
    }
    bits
}

fn steps(u: &mut Unstructured<'_>) -> Result<()> {
    let mut members = (0..u.int_in_range(1..=4)?).map(|_| member(u)).collect::<Result<Vec<_>>>()?;
    let expected: Vec<_> = members.iter().map(expected).collect();
    let levels: Vec<_> = levels().collect();
    let (level, threads) = (*u.choose(&levels)?, u.int_in_range(1..=3)?);
    let mut step = Step::default();
    let mut elements = 0;
    for member in &mut members {
        let Member { parameter, streams, sizes, layout, refused } = member;
        step.constants(parameter.rule.constants(&mut parameter.scalars, parameter.first));
        let (head, states) = streams.split_at_mut(2);
        let (param, grad) = head.split_at_mut(1);
        let (param, grad) = (param[0].slice_mut(), grad[0].slice());
        let states = states.iter_mut().map(Stream::slice_mut);
        let answer = step.push(Tensors { param, grad, states, layout: layout.as_ref() }, parameter.grad_factor);
        assert_eq!(answer.is_err(), *refused, "{answer:?} {:?} {sizes:?}", parameter.rule);
        elements += if *refused { 0 } else { sizes.iter().product() };
    }
    assert_eq!(step.elements(), elements);
    let ran = if threads == 1 { step.run(&Serial, level) } else { step.run(&Rayon { threads }, level) };
    assert!(ran.is_ok(), "a kernel panicked");
    drop(step);
    for (member, expected) in members.iter().zip(expected) {
        for (s, (stream, expected)) in member.streams.iter().zip(expected).enumerate() {
            let bits = stream.buffer.bits();
            let differs = bits.iter().zip(&expected).position(|(a, b)| a != b);
            assert!(differs.is_none(), "stream {s} at {differs:?}: {:?} {:?}", member.parameter.rule, member.layout);
        }
    }
    Ok(())
}

// ---- rows ----

fn rows(u: &mut Unstructured<'_>) -> Result<()> {
    let rules = every_rule();
    let rule = *u.choose(&rules)?;
    let types = *u.choose(&COMBINATIONS)?;
    let mut rng = Random(u.arbitrary()?);
    let (count, width) = (u.int_in_range(0..=30_usize)?, u.int_in_range(0..=70_usize)?);
    let mut named: Vec<i64> = Vec::new();
    for _ in 0..u.int_in_range(0..=12)? {
        named.push(if u.ratio(1, 20)? { u.arbitrary()? } else { u.int_in_range(0..=count as i64)? });
    }
    if !u.ratio(1, 5)? {
        named.sort_unstable();
        named.dedup();
    }
    let in_grad = if u.ratio(1, 5)? { u.int_in_range(0..=14)? } else { named.len() };
    let in_sums = u.int_in_range(0..=2)?;
    let mut sources = Vec::new();
    for i in 0..named.len() {
        sources.push(if u.ratio(1, 20)? { u.arbitrary()? } else { (i + u.int_in_range(0..=2)?) as u32 % 15 });
    }
    let sources = u.arbitrary::<bool>()?.then_some(sources);

    let mut parameter = Parameter::new(rule, types, count * width, Values::Scaled, &mut rng);
    parameter.grad = Values::Scaled.buffer(types.1, in_grad * width, &mut rng);
    let sums = Values::Scaled.buffer(types.1, in_sums * width, &mut rng);
    let ascending = named.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = named.iter().all(|&row| row >= 0 && (width == 0 || (row as u64) < count as u64));
    let fits = match &sources {
        _ if width == 0 => true,
        None => named.len() == in_grad,
        Some(sources) => sources.iter().all(|&source| (source as usize) < in_grad + in_sums),
    };
    let mut expected = parameter.clone();
    let accepted = ascending && inside && fits;
    if accepted && width > 0 {
        for (i, &row) in named.iter().enumerate() {
            let source = sources.as_ref().map_or(i, |sources| sources[i] as usize);
            for column in 0..width {
                let at = row as usize * width + column;
                let one = |buffer: &Buffer, at: usize| Buffer::new(buffer.ty(), std::iter::once(buffer.get(at)));
                let mut alone = Parameter {
                    param: one(&expected.param, at),
                    grad: match source.checked_sub(in_grad) {
                        None => one(&parameter.grad, source * width + column),
                        Some(beyond) => one(&sums, beyond * width + column),
                    },
                    states: expected.states.iter().map(|state| one(state, at)).collect(),
                    ..parameter.clone()
                };
                update(std::slice::from_mut(&mut alone), &Serial, Level::Baseline);
                expected.param.set(at, alone.param.get(0));
                for (state, new) in expected.states.iter_mut().zip(&alone.states) {
                    state.set(at, new.get(0));
                }
            }
        }
    }
    let mut step = Step::default();
    step.constants(rule.constants(&mut parameter.scalars, true));
    let all = SparseRows { rows: &named, width, sources: sources.as_deref(), sums: sums.slice() };
    let answer = step.push_rows(parameter.tensors(), all, 1.0);
    if width > 0 {
        assert_eq!(answer.is_ok(), accepted, "{answer:?} {named:?} of {count}, {in_grad} {in_sums} {sources:?}");
    }
    assert!(step.run(&Rayon { threads: 2 }, Level::best()).is_ok());
    drop(step);
    assert_eq!(parameter.bits(), expected.bits(), "{rule:?} {named:?} {sources:?}");
    Ok(())
}

// ---- norms, changes ----

fn norm_and_change(u: &mut Unstructured<'_>) -> Result<()> {
    let mut rng = Random(u.arbitrary()?);
    let mut streams = Vec::new();
    for _ in 0..u.int_in_range(1..=4)? {
        let dims = u.int_in_range(0..=3)?;
        let sizes = (0..dims).map(|_| u.int_in_range(0..=20)).collect::<Result<Vec<usize>>>()?;
        let ty = *u.choose(&TYPES)?;
        let stream = placed(u, ty, &sizes, false, &mut rng)?;
        let layout = Layout::new(&sizes, &stream.strides, &[stream.start]);
        streams.push((stream, sizes, layout));
    }
    let levels: Vec<_> = levels().collect();
    let level = *u.choose(&levels)?;
    for order in [Order::One, Order::Two, Order::Max] {
        let mut norm = Norm::default();
        streams.iter().for_each(|(stream, _, layout)| norm.push(stream.slice(), Some(layout)));
        let found = norm.compute(order, &Rayon { threads: 2 }, level).unwrap_or_else(|_| panic!("a kernel panicked"));
        let all = streams
            .iter()
            .flat_map(|(stream, sizes, _)| stream.positions(sizes).into_iter().map(|at| stream.buffer.get(at).abs()));
        let expected = match order {
            Order::One => all.sum::<f64>(),
            Order::Two => all.map(|x| x * x).sum::<f64>().sqrt(),
            Order::Max => all.fold(0.0, f64::max),
        };
        assert!((found - expected).abs() <= 1e-12 * expected, "{order:?} {found} {expected}");
    }
    let change = if u.arbitrary()? { Change::Scale(-0.5) } else { Change::Clamp(-0.25, 2.0) };
    let expected: Vec<_> = streams
        .iter()
        .map(|(stream, sizes, _)| {
            let mut buffer = stream.buffer.clone();
            for at in stream.positions(sizes) {
                let x = buffer.get(at);
                buffer.set(at, if let Change::Scale(factor) = change { x * factor } else { x.clamp(-0.25, 2.0) });
            }
            buffer.bits()
        })
        .collect();
    let mut changes = Changes::default();
    streams.iter_mut().for_each(|(stream, _, layout)| changes.push(stream.slice_mut(), Some(layout)));
    assert!(changes.run(change, &Serial, level).is_ok());
    for ((stream, ..), expected) in streams.iter().zip(expected) {
        assert_eq!(stream.buffer.bits(), expected, "{change:?}");
    }
    Ok(())
}
