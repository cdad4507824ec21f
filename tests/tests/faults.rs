//! Nothing is lost and nothing is paid twice, whatever dies: every scenario of `pixfleet_tests::faults` with few jobs.
//!
//! `tests/faults` is the same at length.

#![allow(clippy::print_stdout, reason = "the figures of a test that fails are shown with it")]

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
    failed_over 400,
    memory_alarm 400,
    disk_alarm 400,
    queue_deleted 400,
    ack_timeout 400,
    queues_full 300,
    topology_drift 200,
    one_way_to_the_broker 400,
    one_way_to_redis 400,
    silent_broker_handshakes 400,
    silent_redis_handshakes 400,
    broken_connections 400,
    broken_connections_to_it 400,
    hostile 200,
    taken_over 60,
    paused_and_killed 300,
    storm 300,
    storm_resent_once 300,
}
