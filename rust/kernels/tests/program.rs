//! Programs do what their operations say, bit for bit, whatever the level, the threads, the formats and the layout.

mod common;
mod traced;

use common::{Buffer, Random, Type, Values, levels};
use oxistep_kernels::driver::{Measured, Refused, Stopped};
use oxistep_kernels::pool::{Pool, Rayon, Serial};
use oxistep_kernels::program::{Description, Program, Wrong};
use oxistep_kernels::rules::adam::Adam;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Layout, Precision, Scalars, Slice, SliceMut, SparseRows, Step, Tensors};
use traced::{Draft, judged};

/// One tensor with its streams.
#[derive(Clone)]
struct Tensor {
    param: Buffer,
    grad: Buffer,
    states: Vec<Buffer>,
    layout: Option<Layout>,
    inputs: Vec<f64>,
    factor: f64,
}

impl Tensor {
    fn new(types: &[Type], n: usize, inputs: &[f64], rng: &mut Random) -> Self {
        let mut buffer = |ty: Type| Values::Scaled.buffer(ty, n, rng);
        let (param, grad) = (buffer(types[0]), buffer(types[1]));
        let states = types[2..].iter().map(|&ty| buffer(ty)).collect();
        Self { param, grad, states, layout: None, inputs: inputs.to_vec(), factor: 1.0 }
    }

    fn bits(&self) -> Vec<Vec<u64>> {
        std::iter::once(&self.param).chain(&self.states).map(Buffer::bits).collect()
    }
}

/// One step; returns what is wanted of each tensor.
fn stepped(program: &Program, wanted: &[u32], tensors: &mut [Tensor], pool: &dyn Pool, level: Level) -> Vec<Vec<f64>> {
    let count = tensors.len();
    let mut step = Step::default();
    for Tensor { param, grad, states, layout, inputs, factor } in tensors.iter_mut() {
        step.program(program, inputs).unwrap();
        let states = states.iter_mut().map(Buffer::slice_mut);
        let tensors = Tensors { param: param.slice_mut(), grad: grad.slice(), states, layout: layout.as_ref() };
        step.push(tensors, *factor).unwrap();
    }
    step.reduce(pool, level).unwrap();
    let found = (0..count).map(|t| wanted.iter().map(|&node| step.value(t, node as usize).unwrap()).collect());
    let found = found.collect();
    step.run(pool, level).unwrap();
    found
}

/// The numbers that walks find: the judge takes them as they are.
fn found_by_walks(draft: &Draft) -> Vec<u32> {
    let walks = ["sum", "dot", "max_abs", "total"];
    (0..draft.nodes.len() as u32).filter(|&node| walks.contains(&draft.nodes[node as usize].0)).collect()
}

fn close(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits() || (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-3) || a.is_nan() && b.is_nan()
}

/// Judges a step of one tensor whose elements lie one after the other.
fn judge(draft: &Draft, before: &Tensor, after: &Tensor, found: &[f64]) {
    let walks = found_by_walks(draft);
    let factor = before.factor;
    let ty = before.param.ty();
    let grad: Vec<f64> = before
        .grad
        .values()
        .map(|g| if ty == Type::F64 { g * factor } else { f64::from(g as f32 * factor as f32) })
        .collect();
    let mut streams = vec![before.param.values().collect::<Vec<_>>(), grad];
    streams.extend(before.states.iter().map(|state| state.values().collect::<Vec<_>>()));
    let known = |node: u32, name: &str, own: f64| {
        let Some(place) = walks.iter().position(|&walk| walk == node) else { panic!("{node}") };
        if name != "total" && own.is_finite() {
            assert!(close(found[place], own), "{name}: {} instead of {own}", found[place]);
        }
        found[place]
    };
    let values = match ty {
        Type::F64 => judged::<f64>(draft, &streams, &before.inputs, known),
        _ => judged::<f32>(draft, &streams, &before.inputs, known),
    };
    let elements = draft.elements();
    let mut expected = before.clone();
    for pair in draft.writes.chunks(2) {
        let (stream, node) = (pair[0] as usize, pair[1] as usize);
        assert!(elements[node]);
        let to = if stream == 0 { &mut expected.param } else { &mut expected.states[stream - 1] };
        *to = Buffer::new(to.ty(), values[node].iter().copied());
    }
    assert!(after.bits() == expected.bits(), "{draft:?}");
}

/// Runs a draft in every way, and judges each.
fn check(draft: &Draft, types: &[Type], n: usize, inputs: &[f64], rng: &mut Random) {
    let mut draft = draft.clone();
    draft.wanted = found_by_walks(&draft);
    let mut before = Tensor::new(types, n, inputs, rng);
    before.factor = [1.0, -1.0, 0.37][rng.below(3)];
    let programs = [Program::new(&draft.description()).unwrap(), Program::plain(&draft.description()).unwrap()];
    let mut first: Option<Tensor> = None;
    for program in &programs {
        for level in levels() {
            for pool in [&Serial as &dyn Pool, &Rayon { threads: 3 }] {
                let mut tensors = [before.clone()];
                let found = stepped(program, &draft.wanted, &mut tensors, pool, level);
                match &first {
                    None => {
                        judge(&draft, &before, &tensors[0], &found[0]);
                        first = Some(tensors[0].clone());
                    }
                    Some(first) => assert!(first.bits() == tensors[0].bits(), "{level:?} {draft:?}"),
                }
            }
        }
    }
    let mut strided = before.clone();
    spread(&mut strided, n);
    for level in levels() {
        let mut tensors = [strided.clone()];
        let found = stepped(&programs[0], &draft.wanted, &mut tensors, &Serial, level);
        let mut gathered = tensors[0].clone();
        collect(&mut gathered, &before);
        judge(&draft, &before, &gathered, &found[0]);
    }
}

/// Gives a tensor of n elements gaps: every other element of longer streams.
fn spread(tensor: &mut Tensor, n: usize) {
    let streams = 2 + tensor.states.len();
    let apart = |x: &Buffer| Buffer::new(x.ty(), x.values().flat_map(|x| [x, 7.0]));
    tensor.param = apart(&tensor.param);
    tensor.grad = apart(&tensor.grad);
    tensor.states = tensor.states.iter().map(apart).collect();
    tensor.layout = Some(Layout::new(&[n], &vec![2; streams], &vec![0; streams]));
}

/// Takes the gaps out again, which must be as they were.
fn collect(tensor: &mut Tensor, like: &Tensor) {
    let together = |x: &Buffer| {
        assert!(x.values().skip(1).step_by(2).all(|x| x == 7.0));
        Buffer::new(x.ty(), x.values().step_by(2))
    };
    tensor.param = together(&tensor.param);
    tensor.grad = together(&tensor.grad);
    tensor.states = tensor.states.iter().map(together).collect();
    tensor.layout.clone_from(&like.layout);
}

const F32: Type = Type::F32;
const ADAM: [f64; 5] = [1e-3, 0.9, 0.999, 1e-8, 3.0];

#[test]
fn known_rules_are_judged_well() {
    let mut rng = Random(1);
    for n in [0, 1, 7, 8, 64, 100, 128, 129, 1000, 20_011] {
        for types in [[F32; 4], [Type::F64; 4], [Type::Bf16, F32, Type::F16, F32], [Type::Bf16; 4]] {
            check(&traced::adam(), &types, n, &ADAM, &mut rng);
            check(&traced::textbook_adam(), &types, n, &ADAM, &mut rng);
            for (lerp, squared) in [(true, false), (false, false), (false, true)] {
                check(&traced::adam_over_root(lerp, squared), &types, n, &ADAM, &mut rng);
            }
            check(&traced::lamb(), &types, n, &ADAM[..4], &mut rng);
            check(&traced::momentum(), &types[..3], n, &[0.01, 0.9], &mut rng);
            check(&traced::lion(), &types[..3], n, &[1e-3, 0.9, 0.99, 0.1], &mut rng);
        }
    }
}

#[test]
fn adam_as_a_program_has_the_bits_of_the_rule() {
    let mut rng = Random(2);
    let before = Tensor::new(&[F32; 4], 5000, &ADAM, &mut rng);
    let mut before = before;
    before.states[1] = Buffer::new(F32, before.states[1].values().map(f64::abs));
    let draft = traced::adam();
    let program = Program::new(&draft.description()).unwrap();
    assert!(program.instructions() == 1, "{}", program.instructions());
    let mut traced = [before.clone()];
    stepped(&program, &[], &mut traced, &Serial, Level::best());
    let [lr, beta1, beta2, eps, step] = ADAM;
    let rule = Adam { lr, beta1, beta2, eps, weight_decay: 0.0, amsgrad: false, decoupled_weight_decay: false };
    let mut scalars = Scalars::new([step - 1.0, 0.0, 0.0], [Precision::F32; 3]);
    let mut compiled = before;
    {
        let mut step = Step::default();
        step.constants(AnyRule::Adam(rule).constants(&mut scalars, false));
        let states = compiled.states.iter_mut().map(Buffer::slice_mut);
        let tensors = Tensors { param: compiled.param.slice_mut(), grad: compiled.grad.slice(), states, layout: None };
        step.push(tensors, 1.0).unwrap();
        step.run(&Serial, Level::best()).unwrap();
    }
    assert!(compiled.bits() == traced[0].bits());
}

#[test]
fn instructions_that_stand_for_several_operations_have_their_bits() {
    let mut rng = Random(4);
    // and how many instructions there are where several operations are one
    let drafts = [
        (traced::adam(), 1),
        (traced::textbook_adam(), 1),
        (traced::adam_over_root(true, false), 1),
        (traced::adam_over_root(false, false), 1),
        (traced::adam_over_root(false, true), 1),
        (traced::lamb(), 10),
        (traced::momentum(), 1),
        (traced::lion(), 2),
    ];
    for ((draft, instructions), ty) in drafts.iter().flat_map(|draft| [(draft, F32), (draft, Type::F64)]) {
        let description = draft.description();
        let programs = [Program::new(&description).unwrap(), Program::plain(&description).unwrap()];
        assert_eq!(programs[0].instructions(), *instructions, "{draft:?}");
        assert!(programs[0].instructions() < programs[1].instructions());
        for values in [Values::Scaled, Values::Wide, Values::Any] {
            for eps in [1e-8, 0.0, -0.0] {
                let inputs = [1e-3, 0.9, 0.999, eps, 3.0];
                let types = vec![ty; 2 + draft.states as usize];
                let mut before = Tensor::new(&types, 20_011, &inputs[..draft.inputs as usize], &mut rng);
                before.param = values.buffer(ty, 20_011, &mut rng);
                before.grad = values.buffer(ty, 20_011, &mut rng);
                before.states.iter_mut().for_each(|state| *state = values.buffer(ty, 20_011, &mut rng));
                if let Some(squares) = before.states.get_mut(1) {
                    *squares = Buffer::new(ty, squares.values().map(f64::abs));
                }
                for level in levels() {
                    let after = programs.each_ref().map(|program| {
                        let mut after = [before.clone()];
                        stepped(program, &[], &mut after, &Serial, level);
                        after[0].bits()
                    });
                    assert!(after[0] == after[1], "{ty:?} {values:?} {eps} {level:?} {draft:?}");
                }
            }
        }
    }
}

/// A random program: most are of operations that stay within reason.
fn random(rng: &mut Random) -> Draft {
    let mut d = Draft { states: rng.below(5) as u32, inputs: 3, ..Draft::default() };
    d.op("param", &[]);
    d.op("grad", &[]);
    (0..d.states).for_each(|k| _ = d.state(k));
    (0..3).for_each(|k| _ = d.input(k));
    [2.0, -1.0, 0.5, 3.0, 0.0].into_iter().for_each(|x| _ = d.constant(x));
    d.op("numel", &[]);
    let usual = ["add", "sub", "mul", "div", "sqrt", "lerp", "addcmul", "addcdiv", "mul", "add", "sign"];
    let mut reductions = 0;
    for _ in 0..rng.below(40) {
        let elements = d.elements();
        let any = |rng: &mut Random| rng.below(elements.len()) as u32;
        let number = |rng: &mut Random| loop {
            let node = rng.below(elements.len());
            if !elements[node] {
                break node as u32;
            }
        };
        let tile = |rng: &mut Random| loop {
            let node = rng.below(elements.len());
            if elements[node] {
                break node as u32;
            }
        };
        let name = if rng.below(3) == 0 {
            oxistep_kernels::program::ops::NAMES[rng.below(42)].0
        } else {
            usual[rng.below(11)]
        };
        match name {
            "param" | "grad" | "state" | "input" | "constant" | "numel" => {}
            "total" => _ = d.given("total", &[number(rng)], elements.len() as u32),
            "fill" | "floor" => _ = d.op(name, &[number(rng)]),
            "mod" => _ = d.op(name, &[number(rng), number(rng)]),
            "sum" | "max_abs" if reductions < 6 => _ = d.op(name, &[tile(rng)]),
            "dot" if reductions < 6 => _ = d.op(name, &[tile(rng), any(rng)]),
            "sum" | "max_abs" | "dot" => {}
            "addcmul" | "addcdiv" => _ = d.op(name, &[any(rng), any(rng), any(rng), any(rng)]),
            "fma" | "lerp" | "where" => _ = d.op(name, &[any(rng), any(rng), any(rng)]),
            "neg" | "abs" | "sqrt" | "exp" | "log" | "cos" | "tanh" | "cbrt" | "sign" | "not" => {
                d.op(name, &[any(rng)]);
            }
            _ => _ = d.op(name, &[any(rng), any(rng)]),
        }
        reductions += usize::from(matches!(name, "sum" | "dot" | "max_abs"));
    }
    let elements = d.elements();
    for stream in 0..=d.states {
        let node = rng.below(elements.len());
        if elements[node] {
            d.write(stream, node as u32);
        }
    }
    d
}

#[test]
fn random_programs_are_judged_well() {
    let mut rng = Random(3);
    for case in 0..if common::brief() { 300 } else { 2000 } {
        let draft = random(&mut rng);
        let double = rng.below(4) == 0;
        let pick = |rng: &mut Random| [F32, F32, Type::F16, Type::Bf16][rng.below(4)];
        let types: Vec<Type> = (0..2 + draft.states).map(|_| if double { Type::F64 } else { pick(&mut rng) }).collect();
        let types = if rng.below(2) == 0 && !double { vec![F32; types.len()] } else { types };
        let n = [0, 1, 5, 16, 63, 130, 300, 700][rng.below(8)];
        println!("case {case}");
        check(&draft, &types, n, &[0.9, 1e-3, -2.5], &mut rng);
    }
}

/// LAMB's program, and the node of its trust ratio.
fn lamb() -> (Program, usize) {
    let draft = traced::lamb();
    (Program::new(&draft.description()).unwrap(), draft.wanted[0] as usize)
}

#[test]
fn each_tensor_has_numbers_of_its_own() {
    // enough elements for several threads
    let mut rng = Random(5);
    let (program, trust) = lamb();
    assert_eq!((program.passes(), program.answers_at_once()), (2, false));
    let before: Vec<Tensor> =
        [3, 64, 5000, 200_000, 1, 0, 64].iter().map(|&n| Tensor::new(&[F32; 4], n, &ADAM[..4], &mut rng)).collect();
    let alone: Vec<(Tensor, f64)> = before
        .iter()
        .map(|tensor| {
            let mut own = [tensor.clone()];
            let found = stepped(&program, &[trust as u32], &mut own, &Serial, Level::best());
            let [own] = own;
            (own, found[0][0])
        })
        .collect();
    for level in levels() {
        for pool in [&Serial as &dyn Pool, &Rayon { threads: 3 }] {
            let mut together = before.clone();
            let found = stepped(&program, &[trust as u32], &mut together, pool, level);
            for (t, (own, ratio)) in alone.iter().enumerate() {
                assert_eq!(found[t][0].to_bits(), ratio.to_bits(), "tensor {t}");
                assert!(own.bits() == together[t].bits(), "tensor {t}");
            }
        }
    }
}

/// Scales the gradient by the norm of all gradients: p - lr g / sqrt(total(dot(g, g))).
fn normalised(key: u32) -> Draft {
    let mut d = Draft::default();
    let (p, g, lr) = (d.op("param", &[]), d.op("grad", &[]), d.input(0));
    let own = d.op("dot", &[g, g]);
    let total = d.given("total", &[own], key);
    let norm = d.op("sqrt", &[total]);
    let size = d.op("div", &[lr, norm]);
    let change = d.op("mul", &[size, g]);
    let p = d.op("sub", &[p, change]);
    d.write(0, p);
    d.wanted.push(total);
    d
}

#[test]
fn totals_are_over_all_tensors_of_all_programs() {
    let mut rng = Random(6);
    let drafts = [normalised(7), normalised(7), normalised(8)];
    let programs = drafts.each_ref().map(|draft| Program::new(&draft.description()).unwrap());
    let mut tensors: Vec<Tensor> = (0..6).map(|k| Tensor::new(&[F32; 2], 100 + k, &[0.1], &mut rng)).collect();
    let squares: Vec<f64> = tensors.iter().map(|t| t.grad.values().map(|g| g * g).sum()).collect();
    let mut step = Step::default();
    for (k, Tensor { param, grad, inputs, .. }) in tensors.iter_mut().enumerate() {
        step.program(&programs[k % 3], inputs).unwrap();
        let states: [SliceMut<'_>; 0] = [];
        step.push(Tensors { param: param.slice_mut(), grad: grad.slice(), states, layout: None }, 1.0).unwrap();
    }
    let total = drafts[0].wanted[0] as usize;
    assert_eq!(step.value(0, total), None, "not before it was found");
    step.reduce(&Serial, Level::best()).unwrap();
    step.reduce(&Serial, Level::best()).unwrap();
    let expected = [squares[0] + squares[1] + squares[3] + squares[4], squares[2] + squares[5]];
    for k in 0..6 {
        let found = step.value(k, total).unwrap();
        assert!(close(found, expected[usize::from(k % 3 == 2)]), "{found}, not {expected:?}");
    }
    assert_eq!(step.value(6, total), None);
    assert_eq!(step.value(0, 10_000), None);
    step.run(&Serial, Level::best()).unwrap();
}

/// The gradient by the norm of all gradients, a mean of that, and the root mean square of the mean: walks that tensors
/// take together, then walks of their own, and a number of elements. The inputs are lr and the weight.
fn clipped() -> Draft {
    let mut d = Draft::default();
    let (p, g, m) = (d.op("param", &[]), d.op("grad", &[]), d.state(0));
    let [lr, weight] = [0, 1].map(|k| d.input(k));
    let own = d.op("dot", &[g, g]);
    let total = d.given("total", &[own], 3);
    let norm = d.op("sqrt", &[total]);
    let unit = d.op("div", &[g, norm]);
    let m = d.op("lerp", &[m, unit, weight]);
    let square = d.op("dot", &[m, m]);
    let numel = d.op("numel", &[]);
    let mean = d.op("div", &[square, numel]);
    let root = d.op("sqrt", &[mean]);
    let size = d.op("div", &[lr, root]);
    let change = d.op("mul", &[size, m]);
    let p = d.op("sub", &[p, change]);
    d.write(0, p);
    d.write(1, m);
    d.wanted.push(root);
    d
}

/// When the numbers of a step are found.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    All,
    Together,
    OnTheWay,
}

#[test]
fn small_tensors_get_the_same_whenever_their_numbers_are_found() {
    let drafts = [traced::lamb(), clipped()];
    let [lamb, clipped] = drafts.each_ref().map(|draft| Program::new(&draft.description()).unwrap());
    let f64s = [Type::F64; 4];
    let halves = [Type::Bf16, Type::Bf16, F32, F32];
    let mixed = [F32, F32, Type::Bf16, F32]; // no loop is compiled for these
    // elements (13,000 are two chunks), types, the first input, the factor, whether there are gaps; many in a row alike
    let items = [
        (64, [F32; 4], 0.1, 1.0, false),
        (64, [F32; 4], 0.1, 1.0, false),
        (63, [F32; 4], 0.1, 1.0, false),
        (64, [F32; 4], 0.2, 1.0, false),
        (300, [F32; 4], 0.2, 1.0, false),
        (13_000, [F32; 4], 0.2, 1.0, false),
        (1, [F32; 4], 0.2, 1.0, false),
        (0, [F32; 4], 0.2, 1.0, false),
        (64, [F32; 4], 0.2, -1.0, false),
        (70, [F32; 4], 0.2, 1.0, true),
        (70, [F32; 4], 0.2, 1.0, false),
        (64, halves, 0.2, 1.0, false),
        (65, halves, 0.2, 1.0, false),
        (64, mixed, 0.2, 1.0, false),
        (64, f64s, 0.2, 1.0, false),
        (90, f64s, 0.2, 1.0, false),
    ];
    for (program, draft, states) in [(&lamb, &drafts[0], 2), (&clipped, &drafts[1], 1)] {
        let mut rng = Random(11);
        let node = draft.wanted[0] as usize;
        let has_total = states == 1;
        let before: Vec<Tensor> = items
            .iter()
            .map(|&(n, types, first, factor, gaps)| {
                let inputs = if has_total { vec![first, 0.3] } else { vec![first, 0.9, 0.99, 1e-8] };
                let mut tensor = Tensor::new(&types[..2 + states], n, &inputs, &mut rng);
                tensor.factor = factor;
                if gaps {
                    spread(&mut tensor, n);
                }
                tensor
            })
            .collect();
        let updated = |when: When, level: Level| {
            let mut tensors = before.clone();
            let mut step = Step::default();
            for Tensor { param, grad, states, layout, inputs, factor } in &mut tensors {
                step.program(program, inputs).unwrap();
                let states = states.iter_mut().map(Buffer::slice_mut);
                let tensors = Tensors { param: param.slice_mut(), grad: grad.slice(), states, layout: layout.as_ref() };
                step.push(tensors, *factor).unwrap();
            }
            match when {
                When::All => step.reduce(&Serial, level).unwrap(),
                When::Together => step.reduce_together(&Serial, level).unwrap(),
                When::OnTheWay => {}
            }
            // a tensor of one chunk is left until it is updated, one of two chunks is not
            assert_eq!(step.value(0, node).is_some(), when == When::All, "{when:?}");
            assert_eq!(step.value(5, node).is_some(), when != When::OnTheWay, "{when:?}");
            step.run(&Serial, level).unwrap();
            let found: Vec<u64> = (0..items.len()).map(|t| step.value(t, node).unwrap().to_bits()).collect();
            drop(step);
            (tensors.iter().map(Tensor::bits).collect::<Vec<_>>(), found)
        };
        let expected = updated(When::All, Level::best());
        assert!(
            expected
                .0
                .iter()
                .zip(&before)
                .all(|(after, before)| before.param.bits().is_empty() || *after != before.bits())
        );
        for level in levels() {
            for when in [When::All, When::Together, When::OnTheWay] {
                assert!(updated(when, level) == expected, "{level:?} {when:?}");
            }
        }
        // who looks at no other tensor gets what it would get alone
        for (t, tensor) in before.iter().enumerate().filter(|_| !has_total) {
            let mut own = [tensor.clone()];
            let found = stepped(program, &draft.wanted, &mut own, &Serial, Level::best());
            assert!(own[0].bits() == expected.0[t] && found[0][0].to_bits() == expected.1[t], "tensor {t}");
        }
    }
}

#[test]
fn totals_that_wait_for_each_other_stop_before_anything_is_written() {
    // the one adds to 1 what it makes of 2, the other to 2 what it makes of 1
    let crossed = |first: u32, second: u32| {
        let mut d = Draft::default();
        let (p, g) = (d.op("param", &[]), d.op("grad", &[]));
        let own = d.op("sum", &[g]);
        let a = d.given("total", &[own], first);
        let b = d.given("total", &[a], second);
        let p = d.op("mul", &[p, b]);
        d.write(0, p);
        d
    };
    let programs = [crossed(1, 2), crossed(2, 1)].map(|draft| Program::new(&draft.description()).unwrap());
    let mut rng = Random(7);
    let mut tensors = [0, 1].map(|_| Tensor::new(&[F32; 2], 50, &[], &mut rng));
    let before = tensors.clone();
    let mut step = Step::default();
    for (program, Tensor { param, grad, .. }) in programs.iter().zip(&mut tensors) {
        step.program(program, &[]).unwrap();
        let states: [SliceMut<'_>; 0] = [];
        step.push(Tensors { param: param.slice_mut(), grad: grad.slice(), states, layout: None }, 1.0).unwrap();
    }
    assert!(matches!(step.reduce(&Serial, Level::best()), Err(Stopped::Totals)));
    assert!(step.run(&Serial, Level::best()).is_err());
    drop(step);
    assert!(tensors.iter().zip(&before).all(|(after, before)| after.bits() == before.bits()));
}

#[test]
fn a_program_may_only_answer_a_question() {
    let mut d = Draft::default();
    let (g, limit) = (d.op("grad", &[]), d.input(0));
    let largest = d.op("max_abs", &[g]);
    let question = d.op("lt", &[limit, largest]);
    d.wanted.push(question);
    let program = Program::new(&d.description()).unwrap();
    let mut rng = Random(8);
    let mut tensor = Tensor::new(&[F32; 2], 3000, &[0.5], &mut rng);
    tensor.grad.set(2999, f64::NAN);
    let before = tensor.bits();
    let found = stepped(&program, &[largest, question], std::slice::from_mut(&mut tensor), &Serial, Level::best());
    assert!(found[0][0].is_nan());
    assert_eq!((found[0][1], tensor.bits() == before), (0.0, true));
    // one without any walk
    let mut d = Draft::default();
    let (step, one) = (d.input(0), d.constant(1.0));
    let first = d.op("eq", &[step, one]);
    d.wanted.push(first);
    let program = Program::new(&d.description()).unwrap();
    assert_eq!(program.numbers(&[1.0], 0.0), Some(vec![1.0]));
    assert_eq!(program.numbers(&[], 0.0), None);
    assert_eq!(program.passes(), 0);
}

#[test]
fn rows_of_sparse_gradients_are_updated_by_programs() {
    let (rows, width) = (40, 24);
    let mut rng = Random(9);
    let before = Tensor::new(&[F32; 4], rows * width, &ADAM, &mut rng);
    let program = Program::new(&traced::adam().description()).unwrap();
    let mut dense = [before.clone()];
    stepped(&program, &[], &mut dense, &Serial, Level::best());
    let named: Vec<i64> = (0..rows as i64).filter(|row| row % 3 == 0).collect();
    let grads = named.iter().flat_map(|&row| (0..width).map(move |c| row as usize * width + c));
    let grad = Buffer::new(F32, grads.map(|i| before.grad.get(i)));
    let mut sparse = before.clone();
    let mut step = Step::default();
    step.program(&program, &ADAM).unwrap();
    let states = sparse.states.iter_mut().map(Buffer::slice_mut);
    let tensors = Tensors { param: sparse.param.slice_mut(), grad: grad.slice(), states, layout: None };
    let some = SparseRows { rows: &named, width, sources: None, sums: Slice::F32(&[]) };
    step.push_rows(tensors, some, 1.0).unwrap();
    step.run(&Serial, Level::best()).unwrap();
    drop(step);
    for i in 0..rows * width {
        let whole = if (i / width).is_multiple_of(3) { &dense[0] } else { &before };
        assert_eq!(sparse.param.bits()[i], whole.param.bits()[i], "element {i}");
    }
}

#[test]
fn a_measured_step_writes_the_same() {
    let mut rng = Random(10);
    for types in [[F32; 4], [Type::Bf16, F32, F32, Type::F16]] {
        let before = Tensor::new(&types, 9000, &ADAM[..4], &mut rng);
        let (program, _) = lamb();
        let (mut plain, mut watched) = ([before.clone()], before.clone());
        stepped(&program, &[], &mut plain, &Serial, Level::best());
        let mut measured = Measured::default();
        let mut step = Step::default();
        step.program(&program, &ADAM[..4]).unwrap();
        let states = watched.states.iter_mut().map(Buffer::slice_mut);
        let tensors = Tensors { param: watched.param.slice_mut(), grad: watched.grad.slice(), states, layout: None };
        step.push(tensors, 1.0).unwrap();
        measured.pushed(&step);
        step.run_measured(&mut measured, &Serial, Level::best()).unwrap();
        drop(step);
        assert!(plain[0].bits() == watched.bits());
        let moved = measured.moved().next().unwrap();
        let update: f64 = before.param.values().zip(watched.param.values()).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!(close(moved.update, update) && close(moved.grad, before.grad.values().map(|g| g * g).sum()));
    }
}

#[test]
fn what_is_no_program_is_refused_with_a_sentence() {
    let number = |name| traced::number(name).1;
    let refused = |nodes: &[u32], writes: &[u32], wanted: &[u32]| {
        let description = Description { nodes, constants: &[1.0], states: 1, inputs: 1, writes, wanted };
        let wrong = Program::new(&description).expect_err("no program");
        assert!(wrong.to_string().contains("expected") || wrong.to_string().contains("takes"), "{wrong}");
        wrong
    };
    let [param, add, state, input, constant, fill, sum] =
        ["param", "add", "state", "input", "constant", "fill", "sum"].map(number);
    assert_eq!(refused(&[99], &[], &[]), Wrong::Operation(99));
    assert_eq!(refused(&[param, add, 0], &[], &[]), Wrong::Ends);
    assert_eq!(refused(&[param, add, 0, 1], &[], &[]), Wrong::Operand { node: 1, operand: 1 });
    assert!(matches!(refused(&[state, 1], &[], &[]), Wrong::Missing { what: "a state", .. }));
    assert!(matches!(refused(&[input, 7], &[], &[]), Wrong::Missing { what: "an input", .. }));
    assert!(matches!(refused(&[constant, 1], &[], &[]), Wrong::Missing { what: "a constant", .. }));
    assert!(matches!(refused(&[param, fill, 0], &[], &[]), Wrong::Kind { node: 1, .. }));
    assert!(matches!(refused(&[input, 0, sum, 0], &[], &[]), Wrong::Kind { node: 1, .. }));
    assert_eq!(refused(&[param], &[2, 0], &[]), Wrong::Write(0));
    assert_eq!(refused(&[param], &[1, 0, 1, 0], &[]), Wrong::Write(1));
    assert_eq!(refused(&[param], &[1], &[]), Wrong::Write(0));
    assert_eq!(refused(&[param], &[], &[0]), Wrong::Wanted(0));
    assert_eq!(refused(&[param; 2001], &[], &[]), Wrong::Nodes { most: 2000 });
    let description = Description { nodes: &[], constants: &[], states: 15, inputs: 0, writes: &[], wanted: &[] };
    assert!(matches!(Program::new(&description), Err(Wrong::Many { what: "states", .. })));
}

#[test]
fn a_program_with_too_many_values_at_a_time_is_refused() {
    let mut d = Draft::default();
    let mut last = d.op("param", &[]);
    let values: Vec<u32> = (0..200)
        .map(|_| {
            last = d.op("exp", &[last]);
            last
        })
        .collect();
    let sum = values.iter().rev().copied().reduce(|a, b| d.op("minimum", &[a, b])).unwrap();
    let sum = values.iter().copied().fold(sum, |a, b| d.op("maximum", &[a, b]));
    d.write(0, sum);
    assert!(matches!(Program::new(&d.description()), Err(Wrong::Many { .. })));
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let program = Program::new(&traced::adam().description()).unwrap();
    let (mut p, mut m, g) = ([0.0_f32; 4], [0.0_f32; 4], [0.0_f32; 4]);
    let mut step = Step::default();
    assert_eq!(step.program(&program, &[1.0]), Err(Refused::Inputs));
    step.program(&program, &ADAM).unwrap();
    let states = [SliceMut::F32(&mut m)];
    let tensors = Tensors { param: SliceMut::F32(&mut p), grad: Slice::F32(&g), states, layout: None };
    assert_eq!(step.push(tensors, 1.0), Err(Refused::States));
    assert_eq!(step.value(0, 0), None);
    step.run(&Serial, Level::best()).unwrap();
}
