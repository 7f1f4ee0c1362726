//! What a step does not accept, it refuses whole: nothing of it is counted, and nothing of it is updated later.

mod common;

use common::{
    Buffer, COMBINATIONS, Parameter, Random, TYPES, Type, Types, Values, cases, every_combination, every_rule, update,
};
use oxistep_kernels::driver::Refused;
use oxistep_kernels::pool::Serial;
use oxistep_kernels::simd::Level;
use oxistep_kernels::{AnyRule, Layout, STREAMS, Step};
use proptest::prelude::*;

/// The answer to `refused` in a step that holds `accepted` already. If it is a refusal, the step has to be what it was
/// before, counted and run.
fn answer(refused: &Parameter, accepted: &Parameter) -> Result<(), Refused> {
    let (mut refused, mut accepted) = (refused.clone(), accepted.clone());
    let before = refused.bits();
    let mut alone = accepted.clone();
    update(std::slice::from_mut(&mut alone), &Serial, Level::best());

    let constants = refused.rule.constants(&mut refused.scalars, false);
    let mut step = Step::default();
    step.constants(accepted.rule.constants(&mut accepted.scalars, accepted.first));
    step.push(accepted.tensors(), 1.0).unwrap();
    let elements = step.elements();
    step.constants(constants);
    let answer = step.push(refused.tensors(), 1.0);
    if answer.is_err() {
        assert_eq!(step.elements(), elements);
        assert!(step.run(&Serial, Level::best()).is_ok());
        drop(step);
        assert_eq!(accepted.bits(), alone.bits());
        assert_eq!(refused.bits(), before);
    }
    answer
}

/// Something that is surely accepted.
fn accepted() -> Parameter {
    Parameter::new(every_rule()[1], COMBINATIONS[1], 5, Values::Scaled, &mut Random(5))
}

fn parameter(rule: AnyRule, types: Types, len: usize) -> Parameter {
    Parameter::new(rule, types, len, Values::Scaled, &mut Random(1))
}

/// All triples of types with the same arithmetic are served, no others. Without states their type does not matter.
#[test]
fn types_share_their_arithmetic() {
    let is_double = |of| of == Type::F64;
    for rule in every_rule() {
        for param in TYPES {
            for grad in TYPES {
                for state in TYPES {
                    let served = is_double(grad) == is_double(param)
                        && (rule.states().is_empty() || is_double(state) == is_double(param));
                    let expected = if served { Ok(()) } else { Err(Refused::Types) };
                    let parameter = parameter(rule, Types(param, grad, state), 4);
                    assert_eq!(answer(&parameter, &accepted()), expected, "{rule:?} {param:?} {grad:?} {state:?}");
                }
            }
        }
    }
}

/// States of a parameter may be of several types with the same arithmetic.
#[test]
fn states_mix_types_within_an_arithmetic() {
    for rule in every_rule() {
        for types in every_combination() {
            for odd in 0..rule.states().len() {
                for other in TYPES.into_iter().filter(|&other| other != types.2) {
                    let mut parameter = parameter(rule, types, 4);
                    parameter.states[odd] = Buffer::zeros(other, 4);
                    let served = (other == Type::F64) == (types.0 == Type::F64);
                    let expected = if served { Ok(()) } else { Err(Refused::Types) };
                    assert_eq!(answer(&parameter, &accepted()), expected, "{rule:?} {types:?} {odd} {other:?}");
                }
            }
        }
    }
}

/// A state too few, a state too many.
#[test]
fn states_are_as_many_as_the_rule_keeps() {
    for rule in every_rule() {
        for types in every_combination() {
            let kept = rule.states().len();
            for given in (0..=3).filter(|&given| given != kept) {
                let mut parameter = parameter(rule, types, 4);
                parameter.states = (0..given).map(|_| Buffer::zeros(types.2, 4)).collect();
                assert_eq!(answer(&parameter, &accepted()), Err(Refused::States), "{rule:?} {types:?} {given}");
            }
        }
    }
}

/// A step that has no constants yet knows no rule.
#[test]
fn tensors_before_constants_are_refused() {
    let mut parameter = accepted();
    let before = parameter.bits();
    let mut step = Step::default();
    assert_eq!(step.push(parameter.tensors(), 1.0), Err(Refused::States));
    assert_eq!(step.elements(), 0);
    assert!(step.run(&Serial, Level::best()).is_ok());
    drop(step);
    assert_eq!(parameter.bits(), before);
}

#[test]
fn a_refusal_says_why() {
    let texts = [Refused::Types, Refused::Lengths, Refused::States].map(|refused| refused.to_string());
    assert_eq!(texts, ["no kernel for these storage types", "tensors of different lengths", "wrong number of states"]);
}

proptest! {
    #![proptest_config(cases(256))]

    /// Without a layout all streams are of one length.
    #[test]
    fn lengths_are_equal(
        rule in prop::sample::select(every_rule()),
        types in prop::sample::select(every_combination()),
        len in 0..200usize,
        stream in 0..STREAMS,
        other in prop_oneof![0..200usize, Just(100_000)],
    ) {
        let mut parameter = parameter(rule, types, len);
        let stream = stream % (2 + rule.states().len());
        replace(&mut parameter, stream, other);
        let expected = if other == len { Ok(()) } else { Err(Refused::Lengths) };
        prop_assert_eq!(answer(&parameter, &accepted()), expected);
    }

    /// With a layout each slice reaches as far as its stream does; longer ones are welcome.
    #[test]
    fn layouts_stay_in_their_slices(
        rule in prop::sample::select(every_rule()),
        types in prop::sample::select(every_combination()),
        sizes in prop::collection::vec(1..5usize, 0..5),
        stream in 0..STREAMS,
        start in 0..10usize,
        gap in 1..4usize,
        spare in -2..3isize,
    ) {
        // dense but for one gap everywhere; the last stream differs, to tell the streams apart
        let mut strides = Vec::new();
        let mut span = gap;
        for &size in sizes.iter().rev() {
            strides.push([span as isize; STREAMS]);
            span *= size;
        }
        strides.reverse();
        let count: usize = sizes.iter().product();
        let needed = start + (count - 1) * gap + 1;

        let streams = 2 + rule.states().len();
        let stream = stream % streams;
        let mut parameter = parameter(rule, types, needed);
        let len = needed.saturating_add_signed(spare);
        replace(&mut parameter, stream, len);
        // what is said of streams that the rule does not keep is of no account
        let mut starts = [start; STREAMS];
        starts[streams..].fill(usize::MAX / 4);
        parameter.layout = Some(Layout::new(&sizes, strides.as_flattened(), &starts));
        let expected = if len >= needed { Ok(()) } else { Err(Refused::Lengths) };
        prop_assert_eq!(answer(&parameter, &accepted()), expected);

        // one stream would begin before its slice
        let mut backwards = strides.clone();
        backwards.iter_mut().for_each(|each| each[stream] = -each[stream]);
        let last = (count - 1) * gap;
        for (start, expected) in [(last, Ok(())), (last.wrapping_sub(1), Err(Refused::Lengths))] {
            if count > 1 && len >= needed {
                starts[stream] = start;
                parameter.layout = Some(Layout::new(&sizes, backwards.as_flattened(), &starts));
                prop_assert_eq!(answer(&parameter, &accepted()), expected);
            }
        }
    }
}

/// Gives one stream another length: 0 is the parameter, 1 the gradient, 2 and on the states.
fn replace(parameter: &mut Parameter, stream: usize, len: usize) {
    let buffer = match stream {
        0 => &mut parameter.param,
        1 => &mut parameter.grad,
        _ => &mut parameter.states[stream - 2],
    };
    *buffer = Buffer::zeros(buffer.ty(), len);
}

/// Places so far out that computing them would overflow are refused, not wrapped around.
#[test]
fn absurd_strides_are_refused() {
    let types = Types(Type::F32, Type::F32, Type::F32);
    for (sizes, stride, start) in [
        (&[3][..], isize::MAX, 0),
        (&[3], isize::MIN, 0),
        (&[2], isize::MAX, 1),
        (&[2, 2], isize::MAX / 2, isize::MAX as usize),
        (&[1], 1, usize::MAX),
    ] {
        let mut parameter = parameter(every_rule()[0], types, 4);
        let strides = vec![stride; STREAMS * sizes.len()];
        parameter.layout = Some(Layout::new(sizes, &strides, &[start; STREAMS]));
        assert_eq!(answer(&parameter, &accepted()), Err(Refused::Lengths), "{sizes:?} {stride} {start}");
    }
}
