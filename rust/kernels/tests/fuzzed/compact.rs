//! Parameters in fewer bytes, of compiled rules and of programs that people write.

use arbitrary::{Result, Unstructured};
use oxistep_kernels::program::Program;
use oxistep_kernels::{Precision, Scalars};

use crate::common::every_rule;
use crate::judged::{Body, Lot, kinds};
use crate::traced::{self, Draft};

/// A step of one parameter; what is refused must leave no trace.
pub(crate) fn step(u: &mut Unstructured<'_>) -> Result<()> {
    if u.ratio(1, 3)? {
        return of_program(u);
    }
    let rules = every_rule();
    let rule = *u.choose(&rules)?;
    let constants = rule.constants(&mut Scalars::new([3.0, 0.5, 0.5], [Precision::F32; 3]), u.arbitrary()?);
    Lot::any(u, rule.kinds())?.judge(Body::Rule(constants));
    Ok(())
}

/// A program as it is traced, and its inputs.
type Known = (fn() -> Draft, &'static [f64]);

const PROGRAMS: [Known; 7] = [
    (traced::adam, &[1e-3, 0.9, 0.999, 1e-8, 3.0]),
    (traced::textbook_adam, &[0.1, 0.9, 0.99, 1e-8, 1.0]),
    (|| traced::adam_over_root(true, false), &[0.1, 0.9, 0.99, 1e-8, 2.0]),
    (|| traced::adam_over_root(false, true), &[0.1, 0.9, 0.99, 1e-8, 2.0]),
    (traced::lamb, &[0.1, 0.9, 0.99, 1e-6]),
    (traced::momentum, &[0.01, 0.9]),
    (traced::lion, &[1e-3, 0.9, 0.99, 0.1]),
];

fn of_program(u: &mut Unstructured<'_>) -> Result<()> {
    let (draft, inputs) = *u.choose(&PROGRAMS)?;
    let draft = draft();
    let description = draft.description();
    let program = if u.ratio(3, 4)? { Program::new(&description) } else { Program::plain(&description) };
    let program = program.expect("it is one");
    let kinds = kinds(u, program.states())?;
    Lot::any(u, &kinds)?.judge(Body::Program(&program, inputs));
    Ok(())
}
