//! Descriptions made of arbitrary bytes: those that are programs run, and give the same bits in every way.
//!
//! Streams lie in the middle of longer buffers, whose other elements must keep their bits, and so must gradients.

use arbitrary::{Result, Unstructured};
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::program::{Description, Program};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{Layout, Slice, SliceMut, Step, Tensors};

use crate::common::{Buffer, Random, Type, Values, levels};
use crate::judged::{Body, Lot, kinds};

/// Elements on either side of a stream that are none of its own.
const GUARD: usize = 70;

/// Reads a description from some bytes and runs it, if it is a program, and returns whether it was; anything wrong is a
/// panic.
pub(crate) fn run(data: &[u8]) -> bool {
    // bytes that end early stand for a description that does
    described(&mut Unstructured::new(data)).unwrap_or(false)
}

fn described(u: &mut Unstructured<'_>) -> Result<bool> {
    let (states, inputs) = (u.int_in_range(0..=15)?, u.int_in_range(0..=6)?);
    let constants: Vec<f64> = (0..u.int_in_range(0..=5)?).map(|_| constant(u)).collect::<Result<_>>()?;
    let seed: u64 = u.arbitrary()?;
    let (n, apart) = (u.int_in_range(0..=600)?, u.ratio(1, 4)?);
    let double = u.ratio(1, 4)?;
    let types = (0..2 + states)
        .map(|_| {
            let mixed = [Type::F32, Type::F32, Type::F16, Type::Bf16][u.int_in_range(0..=3)?];
            Ok(if double { Type::F64 } else { mixed })
        })
        .collect::<Result<Vec<_>>>()?;
    let writes: Vec<u32> = (0..2 * u.int_in_range(0..=3)?)
        .map(|k| u.int_in_range(0..=if k % 2 == 0 { 3 } else { 20 }))
        .collect::<Result<_>>()?;
    let wanted: Vec<u32> = (0..u.int_in_range(0..=1)?).map(|_| u.int_in_range(0..=60)).collect::<Result<_>>()?;
    let nodes = nodes(u)?;
    let description =
        Description { nodes: &nodes, constants: &constants, states, inputs, writes: &writes, wanted: &wanted };
    let program = match Program::new(&description) {
        Ok(program) => program,
        Err(wrong) => {
            assert!(wrong.to_string().len() > 20);
            return Ok(false);
        }
    };
    let mut programs = vec![program];
    programs.extend(Program::plain(&description)); // it may need too many values at a time
    let before = Streams::new(&types, n, apart, seed);
    let mut first: Option<Vec<Vec<u64>>> = None;
    for program in &programs {
        for level in levels() {
            for pool in [&Serial as &dyn Pool, &Rayon { threads: 2 }] {
                let mut streams = before.clone();
                streams.step(program, pool, level);
                let bits = streams.bits();
                assert_eq!(bits[1], before.bits()[1], "the gradient");
                before.check_guards(&streams, program);
                assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{level:?} {description:?}");
            }
        }
        in_fewer_bytes(program, seed);
    }
    Ok(true)
}

/// Judges a step of streams in fewer bytes, which a seed stands for: most bytes are those of the program.
fn in_fewer_bytes(program: &Program, seed: u64) {
    let mut rng = Random(!seed);
    let bytes: Vec<u8> = (0..1000).map(|_| rng.bits() as u8).collect();
    let mut u = Unstructured::new(&bytes);
    let lot = kinds(&mut u, program.states()).and_then(|kinds| Lot::any(&mut u, &kinds)).expect("there are enough");
    lot.judge(Body::Program(program, &inputs(program)));
}

/// The numbers that are handed over.
fn inputs(program: &Program) -> Vec<f64> {
    (0..program.inputs()).map(|k| 0.9 - k as f64).collect()
}

/// How many words follow the number of each operation.
const WORDS: [usize; 42] = [
    2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 2, 1, 2, 1, 0, 0, 1, 1,
    1, 1, 2, 0,
];

/// Nodes whose operands are mostly earlier ones; now and then anything.
fn nodes(u: &mut Unstructured<'_>) -> Result<Vec<u32>> {
    // the streams, so that there are elements
    let mut nodes = vec![34, 35];
    let mut count = 2;
    while !u.is_empty() && count < 80 {
        let op = usize::from(u.arbitrary::<u8>()?);
        let op = if op < 250 { op % WORDS.len() } else { op };
        nodes.push(op as u32);
        for _ in 0..WORDS.get(op).copied().unwrap_or(0) {
            let word = u32::from(u.arbitrary::<u8>()?);
            let given = (36..=38).contains(&op);
            nodes.push(if word > 250 {
                word
            } else if given {
                word % 3
            } else {
                count - 1 - word % count
            });
        }
        count += 1;
    }
    Ok(nodes)
}

fn constant(u: &mut Unstructured<'_>) -> Result<f64> {
    Ok(match u.int_in_range(0..=7)? {
        0 => f64::from_bits(u.arbitrary()?),
        k => [0.0, 1.0, 2.0, 0.5, -1.0, 0.9, 1e-8][k - 1],
    })
}

/// The streams of one tensor in longer buffers: parameter, gradient, states.
#[derive(Clone)]
struct Streams {
    all: Vec<Buffer>,
    n: usize,
    layout: Option<Layout>,
}

impl Streams {
    fn new(types: &[Type], n: usize, apart: bool, seed: u64) -> Self {
        let mut rng = Random(seed);
        let values = [Values::Scaled, Values::Wide, Values::Any][rng.below(3)];
        let len = if apart { 3 * n } else { n };
        let all = types.iter().map(|&ty| values.buffer(ty, len + 2 * GUARD, &mut rng)).collect();
        let strides = vec![3; types.len()];
        let layout = apart.then(|| Layout::new(&[n], &strides, &vec![1; types.len()]));
        Self { all, n: len, layout }
    }

    fn bits(&self) -> Vec<Vec<u64>> {
        self.all.iter().map(Buffer::bits).collect()
    }

    /// Elements that are none of the program's are as they were.
    fn check_guards(&self, after: &Self, program: &Program) {
        for (s, (before, after)) in self.bits().into_iter().zip(after.bits()).enumerate() {
            let stream = if s < 2 { 0 } else { s - 1 };
            let written = s != 1 && program.writes(stream);
            for (i, (before, after)) in before.iter().zip(&after).enumerate() {
                let inside = i >= GUARD && i < GUARD + self.n;
                let own = inside && (self.layout.is_none() || (i - GUARD) % 3 == 1);
                assert!(own && written || before == after, "stream {s}, element {i}");
            }
        }
    }

    fn step(&mut self, program: &Program, pool: &dyn Pool, level: Level) {
        let Self { all, n, layout } = self;
        let [param, grad, states @ ..] = &mut all[..] else { panic!("two at least") };
        let mut step = Step::default();
        step.program(program, &inputs(program)).unwrap();
        let states = states.iter_mut().map(|state| inner_mut(state.slice_mut(), *n));
        let (param, grad) = (inner_mut(param.slice_mut(), *n), inner(grad.slice(), *n));
        step.push(Tensors { param, grad, states, layout: layout.as_ref() }, 1.0).unwrap();
        if step.reduce(pool, level).is_ok() {
            step.run(pool, level).unwrap();
        }
    }
}

fn inner_mut(slice: SliceMut<'_>, n: usize) -> SliceMut<'_> {
    match slice {
        SliceMut::F64(x) => SliceMut::F64(&mut x[GUARD..][..n]),
        SliceMut::F32(x) => SliceMut::F32(&mut x[GUARD..][..n]),
        SliceMut::F16(x) => SliceMut::F16(&mut x[GUARD..][..n]),
        SliceMut::Bf16(x) => SliceMut::Bf16(&mut x[GUARD..][..n]),
        SliceMut::U8(_) | SliceMut::I16(_) => unreachable!("buffers hold numbers"),
    }
}

fn inner(slice: Slice<'_>, n: usize) -> Slice<'_> {
    match slice {
        Slice::F64(x) => Slice::F64(&x[GUARD..][..n]),
        Slice::F32(x) => Slice::F32(&x[GUARD..][..n]),
        Slice::F16(x) => Slice::F16(&x[GUARD..][..n]),
        Slice::Bf16(x) => Slice::Bf16(&x[GUARD..][..n]),
        Slice::U8(_) | Slice::I16(_) => unreachable!("buffers hold numbers"),
    }
}
