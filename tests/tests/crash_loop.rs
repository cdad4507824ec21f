//! `pixfleet run`, killed without a warning a dozen times: nothing lost, nothing twice, nothing needlessly paid again.
//!
//! `tests/bench crash` is the same at length.

use pixfleet_tests::crash_loop::{Plan, crash_loop};

/// The seed of the moments: `PIXFLEET_TEST_SEED`, or one that no run had before.
fn seed() -> u64 {
    match std::env::var("PIXFLEET_TEST_SEED") {
        Ok(seed) => seed.parse().expect("PIXFLEET_TEST_SEED is a number"),
        Err(_) => rand::random_range(0..1_000_000),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_again_and_again_ends_with_each_result_once() {
    let seed = seed();
    // Shown with whatever fails.
    println!("PIXFLEET_TEST_SEED={seed}");
    let plan = Plan {
        seed,
        kills: 12,
        jobs: 1_500,
        concurrency: 8,
        outputs: vec!["o.jsonl", "o.csv", "o.parquet", "o.sqlite"],
    };
    let report = crash_loop(plan).await;
    let problems = report.problems();
    assert!(problems.is_empty(), "{}\n{report:#?}", problems.join("\n"));
    // Otherwise the kills met nothing that they could have broken.
    assert!(report.in_flight > 0, "no call was in flight at a kill: {report:#?}");
}
