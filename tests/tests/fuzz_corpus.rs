//! The fuzzed targets on stable: the kept corpus, and mutations of it from a seed. `fuzz/run` is the same by cargo-fuzz.

#![allow(clippy::unwrap_used, reason = "a corpus that cannot be read fails")]

use std::{
    panic::catch_unwind,
    path::PathBuf,
    time::{Duration, Instant},
};

use pixfleet_fuzz_targets::{Mutations, TARGETS};
use pixfleet_tests::servers::repository;

/// How long each target is fed with mutations.
const FED_FOR: Duration = Duration::from_secs(3);
/// At least so many, however slow the machine is.
const LEAST: usize = 200;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = repository().join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{} has {} files: that is no corpus", folder.display(), files.len());
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn the_kept_corpus_breaks_no_promise() {
    for (name, target) in TARGETS {
        for (path, input) in corpus(name) {
            assert!(catch_unwind(|| target(&input)).is_ok(), "{}", path.display());
        }
    }
}

#[test]
fn mutations_of_it_break_none_either() {
    let seed =
        std::env::var("PIXFLEET_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("PIXFLEET_TEST_SEED={seed}");
    std::thread::scope(|scope| {
        for (name, target) in TARGETS {
            scope.spawn(move || {
                let inputs = Mutations::new(seed, corpus(name).into_iter().map(|(_, input)| input).collect());
                let since = Instant::now();
                let mut fed = 0;
                for input in inputs.take_while(|_| fed_on(since, &mut fed)) {
                    if catch_unwind(|| target(&input)).is_err() {
                        let kept = std::env::temp_dir().join(format!("pixfleet-fuzz-{name}-{seed}"));
                        std::fs::write(&kept, &input).unwrap();
                        panic!(
                            "target {name}: the input is in {}; keep it in fuzz/corpus/{name}",
                            kept.display()
                        );
                    }
                }
            });
        }
    });
}

fn fed_on(since: Instant, fed: &mut usize) -> bool {
    *fed += 1;
    *fed <= LEAST || since.elapsed() < FED_FOR
}
