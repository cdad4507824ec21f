//! One cell of each family of judges, short enough for every push: docs/judges.md has the whole matrix.
//!
//! Nothing here is held to a speed. A judge that forgives jitter refuses no call, however slow the machine is.

use pixfleet_sandbox::Rule;
use pixfleet_tests::{
    fleet::pixfleet,
    judges::{Cell, Fault, Judge, Report, Setting, flask, in_flight, nginx, sandbox::judging},
};
use tokio::sync::Mutex;

const WORKERS: usize = 4;

/// One cell at a time: a machine that runs two at once would judge itself.
static TURN: Mutex<()> = Mutex::const_new(());

/// Runs a cell to its last result, each with an answer.
async fn run(cell: Cell) -> Report {
    let _turn = TURN.lock().await;
    let report = cell.run().await;
    // Shown with --nocapture, and where a test fails.
    eprintln!("{cell}: {report}");
    assert_eq!((report.results, report.failed), (cell.jobs, 0), "{report}");
    report
}

async fn none_refused(cell: Cell) -> Report {
    let report = run(cell).await;
    assert_eq!(report.throttled, 0, "{cell}: {report}");
    assert!(report.utilisation > 0.05, "the fleet all but stood still: {report}");
    report
}

fn sandbox(rule: Rule, jobs: usize) -> Cell {
    Cell::new(Judge::Sandbox(judging(rule, 100)), WORKERS, jobs)
}

fn nginx(burst: u32, jobs: usize) -> Cell {
    Cell::new(Judge::Nginx(nginx::Gate::Requests { rate: 100, burst }), WORKERS, jobs)
}

fn flask(strategy: flask::Strategy, calls: u32, seconds: u32, jobs: usize) -> Cell {
    Cell::new(Judge::Flask(flask::Gate { strategy, calls, seconds }), WORKERS, jobs)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sliding_second_is_never_overfull_though_redis_is_flushed() {
    let report = none_refused(sandbox(Rule::Sliding, 300).with(Fault::Flush)).await;
    assert!(report.busiest <= 100, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_seconds_refuse_no_call() {
    none_refused(sandbox(Rule::Fixed, 250)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_refuses_no_call_though_a_worker_is_killed() {
    none_refused(sandbox(Rule::Bucket { burst: 20 }, 300).with(Fault::Kill)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaky_judge_with_a_burst_refuses_no_call_though_redis_starts_anew() {
    none_refused(sandbox(Rule::Leaky { burst: 10 }, 300).with(Fault::Restart)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_with_a_burst_refuses_no_call() {
    none_refused(nginx(10, 300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_without_a_burst_refuses_few_calls() {
    // It forgives nothing: one call that a busy machine holds up is the next one's 429.
    let report = run(nginx(0, 200)).await;
    assert!(report.refused() < 0.05, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fixed_window_of_flask_limiter_refuses_no_call() {
    none_refused(flask(flask::Strategy::FixedWindow, 20, 1, 60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_moving_window_of_flask_limiter_refuses_no_call() {
    none_refused(flask(flask::Strategy::MovingWindow, 10, 2, 30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_judge_of_others_refuses_a_fleet_that_is_told_too_much_and_still_all_is_answered() {
    // Few jobs: after each 429 the whole fleet pauses.
    let too_fast = Setting::rate(40, 1_000, "sliding", None);
    let cells = [
        Cell::new(Judge::Nginx(nginx::Gate::Requests { rate: 20, burst: 0 }), 2, 6),
        Cell::new(Judge::Nginx(nginx::Gate::Connections { calls: 1 }), 2, 6).taking(100),
        Cell { workers: 2, ..flask(flask::Strategy::FixedWindow, 5, 1, 10) },
        Cell { workers: 2, ..flask(flask::Strategy::MovingWindow, 5, 1, 10) },
    ];
    for cell in cells {
        let report = run(cell.told(too_fast)).await;
        assert!(report.throttled > 0, "{cell}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_judge_of_calls_in_flight_refuses_none() {
    if in_flight::BUILT {
        none_refused(in_flight::concurrent(WORKERS, 400)).await;
        none_refused(in_flight::limit_conn(WORKERS, 400)).await;
        return;
    }
    // So that nobody forgets the switch: as soon as pixfleet takes the limit, this fails.
    let settings = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let limits = in_flight::concurrent(WORKERS, 1).judge.setting().toml();
    std::fs::write(settings.path(), format!("[providers.sandbox]\npreset = \"generic\"\n{limits}\n"))
        .unwrap();
    let check = ["config", "check", "--without-keys", "--config"];
    let mut command = std::process::Command::new(pixfleet());
    let taken = command.args(check).arg(settings.path()).output().unwrap();
    assert!(
        !taken.status.success(),
        "set BUILT in tests/src/judges/in_flight.rs: pixfleet has in-flight limits"
    );
}
