//! Nothing is lost and nothing is paid twice, whatever dies: every scenario of `pixfleet_tests::faults` with few jobs.
//!
//! `tests/faults` is the same at length.

use pixfleet_tests::faults::{Plan, SCENARIOS, Scenario};

async fn play(name: &str, jobs: usize) {
    let seed = std::env::var("PIXFLEET_TEST_SEED")
        .map_or(1, |seed| seed.parse().expect("PIXFLEET_TEST_SEED is a number"));
    let plan = Plan { seed, jobs, workers: 4 };
    let report = Scenario::named(name).expect("a scenario of this name").play(plan).await;
    println!("{}", report.line());
    if let Err(why) = report.verdict() {
        panic!("{why}\n{}", report.logs);
    }
}

macro_rules! played {
    ($($name:ident $jobs:literal),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            play(stringify!($name), $jobs).await;
        })*

        #[test]
        fn every_scenario_is_played() {
            let played = [$(stringify!($name)),*];
            let left_out: Vec<&str> =
                SCENARIOS.iter().map(|scenario| scenario.name).filter(|name| !played.contains(name)).collect();
            assert!(left_out.is_empty(), "{left_out:?}");
        }
    };
}

played! {
    killed_at_each_step 400,
    all_killed 400,
    producer_killed 2000,
    frozen 400,
    rolling_restarts 400,
    poison 300,
    killed_in_mid_confirm 400,
    stopped 600,
    connections_closed 600,
    restarted 400,
    emptied 400,
    storm 300,
    storm_resent_once 300,
}
