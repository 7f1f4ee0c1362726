//! The programs that fuzzing found interesting (rust/kernels/tests/fuzzed/corpus, see `make fuzz`), and some random
//! ones.

mod common;
mod fuzzed;

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
