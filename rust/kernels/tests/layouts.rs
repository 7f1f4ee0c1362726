//! Strided tensors: the very bits of the same elements laid out one after the other, and nothing else touched.

mod common;

use common::{
    Buffer, COMBINATIONS, Parameter, Random, Types, Values, brief, cases, every_combination, every_rule, levels, update,
};
use oxistep_kernels::driver::SERIAL;
use oxistep_kernels::pool::{Rayon, Serial};
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Layout};
use proptest::prelude::*;

/// Where the elements of one stream lie: permuted, with gaps, backwards, not from the start of its slice.
#[derive(Clone, Debug)]
struct Placement {
    strides: Vec<isize>,
    start: usize,
    /// Length of the slice.
    len: usize,
}

impl Placement {
    /// Any placement at which no two elements coincide; of what is only read they may, as after `expand`.
    fn random(sizes: &[usize], read_only: bool, rng: &mut Random) -> Self {
        let mut strides = vec![0; sizes.len()];
        let mut start = rng.below(4);
        // elements that the dimensions placed so far span; the next one steps over them, and perhaps over a gap
        let mut span = 1;
        let mut dimensions: Vec<usize> = (0..sizes.len()).collect();
        while !dimensions.is_empty() {
            // mostly the last one first, as in a dense tensor
            let last = dimensions.len() - 1;
            let d = dimensions.remove(if rng.below(2) == 0 { last } else { rng.below(last + 1) });
            let stride = if sizes[d] == 1 { rng.below(1000) } else { span + rng.below(3) / 2 * rng.below(5) };
            let reach = stride * sizes[d].saturating_sub(1);
            if sizes[d] == 1 || (read_only && rng.below(4) == 0) {
                strides[d] = if sizes[d] == 1 { stride as isize } else { 0 };
                continue;
            }
            let backwards = rng.below(3) == 0;
            strides[d] = if backwards { -(stride as isize) } else { stride as isize };
            start += if backwards { reach } else { 0 };
            span += reach;
        }
        let before = if start > 0 { rng.below(start + 1).min(3) } else { 0 };
        Self { len: start + span + before + rng.below(4), strides, start }
    }

    /// The place of each element, in the order of the dimensions: for each place so far one for each step along the
    /// next dimension. (Places reckoned one by one, with divisions, took much of the time of these tests.)
    fn positions(&self, sizes: &[usize]) -> Vec<usize> {
        let mut places = vec![self.start as isize];
        for (&size, &stride) in sizes.iter().zip(&self.strides) {
            places = places.iter().flat_map(|at| (0..size as isize).map(move |i| at + i * stride)).collect();
        }
        places.into_iter().map(|at| usize::try_from(at).unwrap()).collect()
    }
}

fn layout(sizes: &[usize], placements: &[Placement]) -> Layout {
    let strides = (0..sizes.len()).flat_map(|d| placements.iter().map(move |placement| placement.strides[d]));
    let starts: Vec<_> = placements.iter().map(|placement| placement.start).collect();
    Layout::new(sizes, &strides.collect::<Vec<_>>(), &starts)
}

/// A strided parameter with random elements, in the gaps too, and where they lie: parameter, gradient, states.
fn strided(rule: AnyRule, types: Types, sizes: &[usize], rng: &mut Random) -> (Parameter, Vec<Placement>) {
    let streams = 2 + rule.states().len();
    let placements: Vec<Placement> = if rng.below(4) == 0 {
        vec![Placement::random(sizes, false, rng); streams]
    } else {
        (0..streams).map(|s| Placement::random(sizes, s == 1, rng)).collect()
    };
    let mut parameter = Parameter::new(rule, types, 0, Values::Scaled, rng).aged(10, Values::Scaled, rng);
    parameter.param = Values::Scaled.buffer(types.0, placements[0].len, rng);
    parameter.grad = Values::Scaled.buffer(types.1, placements[1].len, rng);
    for (state, placement) in parameter.states.iter_mut().zip(&placements[2..]) {
        *state = Values::Scaled.buffer(types.2, placement.len, rng);
    }
    parameter.layout = Some(layout(sizes, &placements));
    (parameter, placements)
}

/// The same elements one after the other.
fn gathered(parameter: &Parameter, placements: &[Placement], sizes: &[usize]) -> Parameter {
    let gather = |buffer: &Buffer, s: usize| {
        let positions = placements[s].positions(sizes);
        Buffer::new(buffer.ty(), positions.into_iter().map(|at| buffer.get(at)))
    };
    Parameter {
        param: gather(&parameter.param, 0),
        grad: gather(&parameter.grad, 1),
        states: parameter.states.iter().enumerate().map(|(k, state)| gather(state, 2 + k)).collect(),
        layout: None,
        ..parameter.clone()
    }
}

/// What the bits must be afterwards: those from before, and at the elements' places those of the dense update.
fn expected(before: &Parameter, dense: &Parameter, placements: &[Placement], sizes: &[usize]) -> Vec<Vec<u64>> {
    let mut bits = before.bits();
    for (stream, (bits, updated)) in bits.iter_mut().zip(dense.bits()).enumerate() {
        let placement = &placements[if stream == 0 { 0 } else { stream + 1 }];
        for (at, new) in placement.positions(sizes).into_iter().zip(updated) {
            bits[at] = new;
        }
    }
    bits
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        4 => prop::collection::vec(1..7usize, 0..5),
        1 => prop::collection::vec(0..4usize, 0..5),
        // more than a tile, whose rows a tile does not divide
        2 => prop::collection::vec(1..40usize, 2..4),
        1 => prop::collection::vec(200..600usize, 1),
    ]
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn strided_is_as_good_as_dense(
        rule in prop::sample::select(every_rule()),
        types in prop::sample::select(every_combination()),
        sizes in sizes(),
        level in prop::sample::select(levels().collect::<Vec<_>>()),
        seed: u64,
    ) {
        let (mut parameter, placements) = strided(rule, types, &sizes, &mut Random(seed));
        let before = parameter.clone();
        let mut dense = gathered(&parameter, &placements, &sizes);
        update(std::slice::from_mut(&mut dense), &Serial, Level::best());
        update(std::slice::from_mut(&mut parameter), &Serial, level);
        prop_assert_eq!(parameter.bits(), expected(&before, &dense, &placements, &sizes));
    }

    /// The extent of a stream is one more than the last place that it touches.
    #[test]
    fn an_extent_is_where_the_last_element_ends(sizes in sizes(), seed: u64) {
        let placement = Placement::random(&sizes, true, &mut Random(seed));
        let positions = placement.positions(&sizes);
        let layout = layout(&sizes, std::slice::from_ref(&placement));
        prop_assert_eq!(layout.len(), positions.len());
        prop_assert_eq!(layout.is_empty(), positions.is_empty());
        prop_assert_eq!(layout.extent(0), Some(positions.iter().max().map_or(0, |last| last + 1)));
        // moved so far forward that some element would lie before the slice
        let first = positions.iter().copied().min().unwrap_or(0);
        if let Some(start) = placement.start.checked_sub(first + 1) {
            let outside = Layout::new(&sizes, &placement.strides, &[start]).extent(0);
            prop_assert_eq!(outside, if positions.is_empty() { Some(0) } else { None });
        }
    }
}

/// Every rule, in a short run every fifth, with its place in the list of all. (The places of every fifth still go
/// through all combinations of types, and through all pairs of size and way.)
fn rules_of_long_tensors() -> impl Iterator<Item = (usize, AnyRule)> {
    every_rule().into_iter().enumerate().step_by(if brief() { 5 } else { 1 })
}

/// Strided and dense tensors of one step, long enough for threads.
#[test]
fn long_strided_tensors_share_a_step_with_dense_ones() {
    let mut rng = Random(11);
    for (i, rule) in rules_of_long_tensors() {
        let types = COMBINATIONS[i % COMBINATIONS.len()];
        let shapes: [&[usize]; 4] = [&[70, 3, 90], &[99_000], &[7], &[33, 1025]];
        let mut parameters = vec![Parameter::new(rule, types, SERIAL + 1, Values::Scaled, &mut rng)];
        let mut denses = parameters.clone();
        let mut places = Vec::new();
        for sizes in shapes {
            let (parameter, placements) = strided(rule, types, sizes, &mut rng);
            denses.push(gathered(&parameter, &placements, sizes));
            parameters.push(parameter);
            places.push(placements);
        }
        let before = parameters.clone();
        update(&mut denses, &Serial, Level::best());
        update(&mut parameters, &Rayon { threads: 3 }, Level::best());
        assert!(parameters[0].bits() == denses[0].bits(), "{rule:?} {types:?}");
        for (k, sizes) in shapes.into_iter().enumerate() {
            let expected = expected(&before[k + 1], &denses[k + 1], &places[k], sizes);
            assert!(parameters[k + 1].bits() == expected, "{rule:?} {types:?} {sizes:?}");
        }
    }
}

/// One after the other from `order`'s last dimension to its first, with gaps of `gap` elements in between.
fn forwards(sizes: &[usize], order: &[usize], gap: usize, rng: &mut Random) -> Placement {
    let (mut strides, mut step) = (vec![0; sizes.len()], 1 + gap.min(1));
    for &d in order.iter().rev() {
        strides[d] = step as isize;
        step = step * sizes[d] + gap;
    }
    let start = rng.below(3);
    Placement { strides, start, len: start + step + rng.below(3) }
}

/// Tensors long enough to be cut, where what is written is laid out alike (cut anywhere), alike but for the innermost
/// dimensions (cut between rows), and differently (not cut): the same bits for any number of threads.
#[test]
fn long_strided_tensors_are_cut_without_a_trace() {
    let mut rng = Random(5);
    let alike: [&[usize]; 2] = [&[0, 1, 2], &[0, 1, 2]];
    let rows: [&[usize]; 2] = [&[0, 1, 2], &[0, 2, 1]];
    let apart: [&[usize]; 2] = [&[0, 1, 2], &[2, 1, 0]];
    for (i, rule) in rules_of_long_tensors() {
        let types = COMBINATIONS[i % COMBINATIONS.len()];
        let sizes: &[usize] = [&[5, 170, 301][..], &[2, 9, 15_013], &[130, 50, 33]][i % 3];
        for (way, [of_param, of_states]) in [alike, rows, apart].into_iter().enumerate() {
            if brief() && way != i / 3 % 3 {
                continue; // one way for each rule
            }
            let gap = rng.below(3);
            let mut placements =
                vec![forwards(sizes, of_param, gap, &mut rng), Placement::random(sizes, true, &mut rng)];
            placements.extend(rule.states().iter().map(|_| forwards(sizes, of_states, gap, &mut rng)));
            let mut parameter =
                Parameter::new(rule, types, 0, Values::Scaled, &mut rng).aged(10, Values::Scaled, &mut rng);
            parameter.param = Values::Scaled.buffer(types.0, placements[0].len, &mut rng);
            parameter.grad = Values::Scaled.buffer(types.1, placements[1].len, &mut rng);
            for (state, placement) in parameter.states.iter_mut().zip(&placements[2..]) {
                *state = Values::Scaled.buffer(types.2, placement.len, &mut rng);
            }
            parameter.layout = Some(layout(sizes, &placements));
            let mut dense = gathered(&parameter, &placements, sizes);
            update(std::slice::from_mut(&mut dense), &Serial, Level::best());
            let expected = expected(&parameter, &dense, &placements, sizes);
            for threads in [1, 2, 5] {
                let mut updated = parameter.clone();
                update(std::slice::from_mut(&mut updated), &Rayon { threads }, Level::best());
                assert!(updated.bits() == expected, "{rule:?} {types:?} {sizes:?} {threads} threads");
            }
        }
    }
}

/// Strides of parameter, gradient and states.
type Strides = [Vec<isize>; 3];

/// The ways in which tensors of `rows` times `columns` lie in practice, and mixtures of them.
fn usual_layouts(rows: usize, columns: usize) -> Vec<(Vec<usize>, Strides)> {
    let (r, c) = (rows as isize, columns as isize);
    let dense = || vec![c, 1];
    let (flat, stacked, between) = (vec![rows, columns], vec![3, rows, columns], vec![rows, 3, columns]);
    vec![
        (flat.clone(), [vec![c + 7, 1], dense(), dense()]), // some columns of a matrix
        (flat.clone(), [vec![2 * c, 1], dense(), dense()]), // every second row
        (flat.clone(), [vec![2 * c, 2], dense(), dense()]), // every second column
        (flat.clone(), [dense(), vec![1, r], dense()]),     // a transposed gradient
        (flat.clone(), [dense(), vec![1, r], vec![1, r]]),  // and SGD's buffer with it
        (flat.clone(), [vec![2 * c, 2], vec![1, r + 3], dense()]), // a transposed gradient of every second column
        (flat.clone(), [dense(), vec![0, 1], dense()]),     // an expanded gradient
        (flat, [dense(), vec![1, 0], dense()]),
        (stacked, [vec![r * c, c, 1], vec![r * c, 1, r], vec![r * c, c, 1]]), // channels last against contiguous
        (between, [vec![3 * c, c, 1], vec![1, r * c + 1, r], vec![3 * c, c, 1]]),
    ]
}

/// The layouts of practice, of every rule, combination of types and awkward size, are updated as the same elements
/// one after the other are.
#[test]
fn usual_layouts_are_as_good_as_dense() {
    let mut rng = Random(9);
    let small = [(1, 1), (2, 31), (33, 32), (9, 70), (70, 9), (65, 64), (64, 65), (130, 97)];
    let turns = every_rule().into_iter().enumerate().flat_map(|(i, rule)| COMBINATIONS.map(|types| (i, rule, types)));
    for (turn, (i, rule, types)) in turns.enumerate() {
        if brief() && (turn + 3 * i) % 4 != 0 {
            continue; // two combinations for each rule, that of the long tensors among them
        }
        // large enough for threads once for each rule; in a short run that in every tenth layout
        let large = turn % COMBINATIONS.len() == i % COMBINATIONS.len();
        let small = small[(turn + i) % small.len()];
        let layouts = |(rows, columns)| usual_layouts(rows, columns).into_iter();
        let of_both = layouts(small).zip(layouts((310, 500))).enumerate();
        for (k, (of_small, of_large)) in of_both {
            let (sizes, strides) = if large && !(brief() && (k + i) % 10 != 0) { of_large } else { of_small };
            let placement = |strides: &Vec<isize>| {
                let reach =
                    sizes.iter().zip(strides).map(|(&size, &stride)| (size - 1) * stride as usize).sum::<usize>();
                Placement { strides: strides.clone(), start: 0, len: reach + 1 }
            };
            let mut placements = vec![placement(&strides[0]), placement(&strides[1])];
            placements.extend(rule.states().iter().map(|_| placement(&strides[2])));
            let mut parameter =
                Parameter::new(rule, types, 0, Values::Scaled, &mut rng).aged(10, Values::Scaled, &mut rng);
            parameter.param = Values::Scaled.buffer(types.0, placements[0].len, &mut rng);
            parameter.grad = Values::Scaled.buffer(types.1, placements[1].len, &mut rng);
            for (state, placement) in parameter.states.iter_mut().zip(&placements[2..]) {
                *state = Values::Scaled.buffer(types.2, placement.len, &mut rng);
            }
            parameter.layout = Some(layout(&sizes, &placements));
            let before = parameter.clone();
            let mut dense = gathered(&parameter, &placements, &sizes);
            update(std::slice::from_mut(&mut dense), &Serial, Level::best());
            update(std::slice::from_mut(&mut parameter), &Rayon { threads: 3 }, Level::best());
            let expected = expected(&before, &dense, &placements, &sizes);
            assert!(parameter.bits() == expected, "{rule:?} {types:?} {sizes:?} {strides:?}");
        }
    }
}

/// A tensor without dimensions is one element; a tensor with an empty dimension is none, and needs no memory.
#[test]
fn one_element_and_none() {
    let mut rng = Random(3);
    for rule in every_rule() {
        let streams = 2 + rule.states().len();
        let types = COMBINATIONS[0];
        for sizes in [&[][..], &[1, 1, 1], &[0], &[3, 0, 2]] {
            let empty = sizes.contains(&0);
            let placement = Placement { strides: vec![1; sizes.len()], start: 2, len: if empty { 0 } else { 3 } };
            let placements = vec![placement; streams];
            let len = placements[0].len;
            let mut parameter = Parameter::new(rule, types, len, Values::Scaled, &mut rng);
            parameter.layout = Some(layout(sizes, &placements));
            let before = parameter.clone();
            let mut dense = gathered(&parameter, &placements, sizes);
            update(std::slice::from_mut(&mut dense), &Serial, Level::best());
            update(std::slice::from_mut(&mut parameter), &Serial, Level::best());
            assert_eq!(dense.param.len(), usize::from(!empty));
            assert_eq!(parameter.bits(), expected(&before, &dense, &placements, sizes), "{rule:?} {sizes:?}");
        }
    }
}
