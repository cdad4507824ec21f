//! What befalls processes: kills at each step, freezes, restarts, and a job that kills whoever takes it.

use std::{collections::VecDeque, time::Duration};

use pixfleet_sandbox::{Latency, Settings};
use pixfleet_shared::{
    failpoint::{OF_A_JOB, OF_AN_ENQUEUE},
    result::Outcome,
};
use rand::{RngExt, seq::SliceRandom};
use tokio::time::{Instant, sleep};

use super::{
    history::Policy,
    stage::{BATCH, Plan, Report, Setting, Stage},
};
use crate::fleet::job;

/// The heartbeat is 5 s: twice that, and the broker has given a silent worker up.
const PAST_THE_HEARTBEAT: Duration = Duration::from_secs(16);

/// Workers die at each of the places in turn, as by `kill -9`; others take over.
pub(super) async fn killed_at_each_step(plan: Plan) -> Report {
    // What a dying worker has in hand is parked: with much of that, the jobs would be over before the last place is met.
    let setting = Setting { concurrency: 4, ..Setting::lasting(plan, 15) };
    let mut stage = Stage::set("killed_at_each_step", plan, setting).await;
    stage.enqueue().await;
    let mut places: Vec<&str> = OF_A_JOB.to_vec();
    places.shuffle(&mut stage.chance);
    let mut places: VecDeque<&str> = places.into();
    // Early enough for each of them to meet its place before the jobs are over.
    let most = (plan.jobs / (8 * OF_A_JOB.len())).max(2);
    let mut armed = Vec::new();
    for _ in 0..plan.workers {
        armed.extend(arm(&mut stage, &mut places, most));
    }
    while !armed.is_empty() {
        let dead = stage.death(&armed).await;
        armed.retain(|number| *number != dead);
        match arm(&mut stage, &mut places, most) {
            Some(next) => armed.push(next),
            None => _ = stage.fleet.start_worker(),
        }
    }
    stage.end().await
}

/// Starts a worker that dies at the next place, when some of its jobs have passed it.
fn arm(stage: &mut Stage, places: &mut VecDeque<&str>, most: usize) -> Option<usize> {
    let place = places.pop_front()?;
    let passed = stage.chance.random_range(1..=most);
    let failpoint = format!("{place}={passed}*off->return");
    Some(stage.fleet.start_worker_with(&[("FAILPOINTS", &failpoint)]))
}

/// Every worker is killed at the same moment, with calls in flight; others start.
pub(super) async fn all_killed(plan: Plan) -> Report {
    let mut stage = Stage::set("all_killed", plan, Setting::lasting(plan, 5)).await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.2..0.6);
    stage.results(moment).await;
    stage.strike();
    for number in stage.fleet.workers() {
        stage.fleet.kill(number);
    }
    stage.start_workers();
    stage.end().await
}

/// The producer dies at each of its places in turn, in mid-enqueue, and is run again until it is done.
pub(super) async fn producer_killed(plan: Plan) -> Report {
    let mut stage = Stage::set("producer_killed", plan, Setting::default()).await;
    stage.start_workers();
    let chunks = plan.jobs / 500;
    for place in OF_AN_ENQUEUE {
        let passed = stage.chance.random_range(0..=chunks / 4);
        die(&mut stage, &format!("{place}={passed}*off->return")).await;
    }
    // In the middle of a chunk: some of its jobs are on the queue, and none on record.
    let passed = stage.chance.random_range(1..=(plan.jobs / 8).max(2));
    die(&mut stage, &format!("before_confirm={passed}*off->return")).await;
    stage.enqueue().await;
    stage.end().await
}

async fn die(stage: &mut Stage, failpoint: &str) {
    let mut producer = stage.producer(&[("FAILPOINTS", failpoint)]);
    let ended = producer.wait().await.unwrap();
    assert!(
        ended.code().is_none(),
        "{failpoint}: the producer ended with {ended}: {}",
        stage.said_by_producer()
    );
}

/// A worker is stopped in the middle of its calls until broker and fleet have given it up, and then goes on.
pub(super) async fn frozen(plan: Plan) -> Report {
    let mut stage = Stage::set("frozen", plan, slow(20)).await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.1..0.4);
    stage.results(moment).await;
    let workers = stage.fleet.workers();
    let frozen = workers[stage.chance.random_range(0..workers.len())];
    stage.strike();
    stage.fleet.freeze(frozen);
    sleep(PAST_THE_HEARTBEAT).await;
    stage.fleet.thaw(frozen);
    stage.relent();
    stage.end().await
}

/// An API that takes so many milliseconds a call.
fn slow(ms: u64) -> Setting {
    let setting = Setting::default();
    let sandbox = Settings { latency: Latency::Constant { ms }, ..setting.sandbox };
    Setting { sandbox, ..setting }
}

/// Each worker is told to end, and replaced, 25 times over: no job may come near the delivery limit.
pub(super) async fn rolling_restarts(plan: Plan) -> Report {
    const RESTARTS: usize = 25;
    // Long calls, so that each restart meets jobs in hand and jobs that wait.
    let rate = (plan.jobs / 20).max(20) as u32;
    let mut stage = Stage::set("rolling_restarts", plan, Setting { rate, ..slow(50) }).await;
    stage.start_workers();
    stage.enqueue().await;
    stage.results(1).await;
    for _ in 0..RESTARTS {
        let oldest = stage.fleet.workers()[0];
        let (code, report) = stage.fleet.terminate(oldest);
        if code != 0 || report["left"] != 0 || report["lost"] != 0 {
            stage.problems.push(format!("worker {oldest} drained with {code}: {report}"));
        }
        let new = stage.fleet.start_worker();
        stage.fleet.ready(new).await;
    }
    stage.end().await
}

/// A picture that kills whoever takes it up, among innocents: it is parked after three deaths, and they are answered.
pub(super) async fn poison(plan: Plan) -> Report {
    let mut stage = Stage::set("poison", plan, Setting::default()).await;
    let mut bad = job(BATCH, plan.jobs);
    bad.image.id = "poison-1".into();
    let poison = pixfleet_shared::job::Job::new(bad.batch, bad.image, bad.provider, bad.models);
    stage.want_job(&poison);
    stage.fleet.queue.enqueue(vec![poison.clone()]).await.unwrap();
    stage.enqueue().await;
    stage.uncounted();
    stage.mortal = true;
    let mut deaths = 0;
    let failpoint = [("FAILPOINTS", "poison=return")];
    for _ in 0..plan.workers {
        stage.fleet.start_worker_with(&failpoint);
    }
    let result = poison.result_id("m");
    while !stage.collector.arrived().iter().any(|one| one.seen.id == result) {
        for number in stage.fleet.workers() {
            if stage.fleet.has_died(number) {
                deaths += 1;
                stage.fleet.start_worker_with(&failpoint);
            }
        }
        assert!(deaths < 20, "{}: {deaths} workers died of one job\n{}", stage.again(), stage.fleet.logs());
        stage.collector.more(Duration::from_millis(100)).await;
    }
    let outcomes = stage.collector.arrived();
    for one in outcomes.iter().filter(|one| (one.seen.outcome == Outcome::Dead) != (one.seen.id == result)) {
        stage.problems.push(format!("{:?}", one.seen));
    }
    stage.notes.push(format!("{deaths} workers died of it"));
    stage.end().await
}

/// One worker has every job in hand and is killed; another one that waits has them at once.
pub(super) async fn taken_over(plan: Plan) -> Report {
    let jobs = plan.jobs.min(60);
    // What was in hand is made again: under `park` it would be a dead letter.
    let setting = Setting { concurrency: 64, policy: Policy::ResendOnce, ..slow(1_500) };
    let mut stage = Stage::set("taken_over", Plan { jobs, ..plan }, setting).await;
    let first = stage.fleet.start_worker();
    stage.enqueue().await;
    while stage.fleet.sandbox.bill().in_flight < jobs.min(20) as u64 {
        sleep(Duration::from_millis(10)).await;
    }
    let second = stage.fleet.start_worker();
    stage.fleet.ready(second).await;
    stage.strike();
    stage.fleet.kill(first);
    let killed = Instant::now();
    let ours = format!("w{second}");
    while !stage.collector.arrived().iter().any(|one| one.worker.as_deref() == Some(&*ours)) {
        assert!(
            killed.elapsed() < Duration::from_secs(30),
            "{}: nobody took over\n{}",
            stage.again(),
            stage.fleet.logs()
        );
        stage.collector.more(Duration::from_millis(100)).await;
    }
    stage.notes.push(format!(
        "the other one's first result came {:.1} s after the kill",
        killed.elapsed().as_secs_f64()
    ));
    stage.end().await
}

/// A batch is paused, a worker dies with some of it in hand, and the batch goes on.
pub(super) async fn paused_and_killed(plan: Plan) -> Report {
    let mut stage = Stage::set("paused_and_killed", plan, Setting::lasting(plan, 6)).await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.1..0.3);
    stage.results(moment).await;
    stage.strike();
    told(&stage, &["batch", "pause", BATCH]).await;
    stage.fleet.kill(0);
    sleep(Duration::from_secs(2)).await;
    let calls = stage.fleet.sandbox.bill().total.calls;
    stage.fleet.start_worker();
    sleep(Duration::from_secs(2)).await;
    if stage.fleet.sandbox.bill().total.calls != calls {
        stage.problems.push("calls of a paused batch left".to_owned());
    }
    let batch = BATCH.parse().unwrap();
    let aside = stage.fleet.queue.parked(&batch).await.unwrap();
    stage.notes.push(format!("{aside} jobs were set aside"));
    if aside == 0 {
        stage.problems.push("nothing was set aside".to_owned());
    }
    told(&stage, &["batch", "resume", BATCH]).await;
    stage.relent();
    stage.end().await
}

/// What a `pixfleet` command of the fleet does, or the end of the scenario.
async fn told(stage: &Stage, arguments: &[&str]) {
    let done = tokio::process::Command::from(stage.fleet.command(arguments)).output().await.unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}
