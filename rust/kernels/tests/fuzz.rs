//! The programs that fuzzing found interesting (rust/kernels/tests/fuzzed/corpus, see `make fuzz`), and some random
//! ones.

mod common;
mod described;
mod fuzzed;
mod judged;
mod kept;
mod traced;

use std::path::Path;

use common::Random;

#[test]
fn the_corpus_is_judged_well() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzzed/corpus");
    let mut files: Vec<_> = corpus.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 20, "where is the corpus?");
    for file in files {
        println!("{}", file.display());
        fuzzed::run(&std::fs::read(file).unwrap());
    }
}

#[test]
fn random_programs_are_judged_well() {
    let seeds = match (common::under_valgrind(), common::brief()) {
        (true, _) => 3,
        (false, true) => 40,
        (false, false) => 150,
    };
    for seed in 0..seeds {
        let mut rng = Random(seed);
        let len = rng.below(2000);
        let data: Vec<u8> = (0..len).map(|_| rng.bits() as u8).collect();
        println!("seed {seed}");
        fuzzed::run(&data);
    }
}

#[test]
fn random_descriptions_are_judged_well() {
    let seeds = match (common::under_valgrind(), common::brief()) {
        (true, _) => 400,
        (false, true) => 2_000,
        (false, false) => 20_000,
    };
    let mut programs = 0;
    for seed in 0..seeds {
        let mut rng = Random(seed);
        let len = 60 + rng.below(150);
        // small numbers more often than not: many of them are operations and their operands
        let data: Vec<u8> = (0..len).map(|_| (rng.bits() >> rng.below(3)) as u8 >> rng.below(4)).collect();
        programs += u64::from(described::run(&data));
    }
    assert!(programs > seeds / 100, "{programs} of {seeds}");
}
