//! The state file: the conformance suites of all seams, and what only a file can meet with.
//!
//! A fleet is several opened stores of one file, as several processes have them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "embedded/batches.rs"]
mod of_batches;
#[path = "embedded/calls.rs"]
mod of_calls;
#[path = "embedded/letters.rs"]
mod of_letters;
#[path = "embedded/parking.rs"]
mod of_parking;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pixfleet_shared::{
    embedded::{BatchCounts, Embedded},
    limiter::{HoldOff, Limit, Order, Quota, RateLimiter, Reservation},
    queue::{Delivery, Filter, From, Intake, Queue, Subscription},
    result::Announcement,
};
use pixfleet_tests::conformance::{
    limiter::{self as limiters, assert_never_above, greedy, per_second, slots},
    process::Process,
    queue::job,
};
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn state() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("batch.pixfleet");
    (folder, path)
}

async fn fleet(path: &Path, size: usize) -> Vec<Embedded> {
    let mut fleet = Vec::new();
    for _ in 0..size {
        fleet.push(Embedded::open(path).await.unwrap());
    }
    fleet
}

async fn queue() -> (Arc<dyn Queue>, (TempDir, Embedded)) {
    let (folder, path) = state();
    let engine = Embedded::open(&path).await.unwrap();
    (engine.queue(), (folder, engine))
}

async fn four_limiters() -> (Vec<Arc<dyn RateLimiter>>, (TempDir, Vec<Embedded>)) {
    let (folder, path) = state();
    let engines = fleet(&path, 4).await;
    (engines.iter().map(Embedded::limiter).collect(), (folder, engines))
}

async fn three_processes() -> Vec<Process> {
    let (folder, path) = state();
    let folder = Arc::new(folder);
    let process = |engine: Embedded| {
        let folder = folder.clone();
        Process::new(engine.ledger(), engine.answers(), engine.batches(), move || async move {
            killed(&engine).await;
            engine.close().await;
            drop(folder);
        })
    };
    fleet(&path, 3).await.into_iter().map(process).collect()
}

/// Deliveries of everything that the engine's file has.
async fn lend(engine: &Embedded) -> Box<dyn Intake> {
    let (prefetch, asked) = watch::channel(20);
    // The sender lives as long as the test.
    std::mem::forget(prefetch);
    engine.queue().receive(asked).await.unwrap()
}

async fn next(intake: &mut Box<dyn Intake>) -> Delivery {
    timeout(PATIENCE, intake.next()).await.expect("a delivery in time").expect("an intake that goes on")
}

async fn counts(engine: &Embedded) -> BatchCounts {
    engine.store().batch(&"b".parse().unwrap()).await.unwrap().expect("the batch is known")
}

/// What a process leaves behind that is killed: all that it holds in the file is a dead one's.
async fn killed(engine: &Embedded) {
    let token = engine.store().token();
    let left = engine.store().write(move |db| {
        let dead = token - 1;
        // The same process with another start: its number was given to somebody else.
        db.execute(
            "INSERT INTO processes (token, identity, until_us)
             SELECT ?2, identity || '0', until_us FROM processes WHERE token = ?1",
            [token, dead],
        )?;
        for table in ["turns", "taken", "claims", "shares", "jobs"] {
            db.execute(&format!("UPDATE {table} SET holder = ?2 WHERE holder = ?1"), [token, dead])?;
        }
        Ok(())
    });
    left.await.unwrap();
}

pixfleet_tests::queue_conforms!(queue);
pixfleet_tests::limiter_conforms!(four_limiters);

mod ledger {
    pixfleet_tests::ledger_conforms!(super::three_processes);
}

mod answers {
    pixfleet_tests::answers_conform!(super::three_processes);
}

mod batches {
    pixfleet_tests::batches_conform!(super::three_processes);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_lent_to_one_process_at_a_time_and_those_of_one_that_closed_go_to_the_others() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    engines[0].queue().enqueue((0..40).map(|n| job("b", n)).collect()).await.unwrap();
    let (_keep, prefetch) = watch::channel(20);
    let mut first = engines[0].queue().receive(prefetch.clone()).await.unwrap();
    let mut second = engines[1].queue().receive(prefetch).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let mut held = [Vec::new(), Vec::new()];
    for (intake, held) in [&mut first, &mut second].into_iter().zip(&mut held) {
        for _ in 0..2 {
            let delivery = timeout(PATIENCE, intake.next()).await.unwrap().unwrap();
            assert!(seen.insert(delivery.job.id), "one job is lent twice");
            held.push(delivery);
        }
    }
    // The first process ends with two deliveries in its hands, and some ahead.
    let [theirs, ours] = held;
    drop(first);
    drop(theirs);
    engines[0].close().await;
    for delivery in ours {
        delivery.split().1.complete(Vec::new()).await.unwrap();
    }
    let mut ended = 2;
    while ended < 40 {
        let delivery = timeout(PATIENCE, second.next()).await.expect("what the other held comes").unwrap();
        delivery.split().1.complete(Vec::new()).await.unwrap();
        ended += 1;
    }
    let status = engines[1].store().status().await.unwrap();
    assert_eq!((status.batches[0].ended, status.lent, status.processes), (40, 0, 1), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_one_provider_leaves_the_others_jobs_where_they_are() {
    let (_folder, path) = state();
    let engine = Embedded::open(&path).await.unwrap();
    let mut other = job("b", 1);
    other.provider = "other".into();
    engine.queue().enqueue(vec![other.clone(), job("b", 2)]).await.unwrap();
    let (_keep, prefetch) = watch::channel(10);
    let mut ours = engine.queue_of(vec!["sandbox".into()]).receive(prefetch.clone()).await.unwrap();
    let mut theirs = engine.queue_of(vec!["other".into()]).receive(prefetch).await.unwrap();
    for (intake, expected) in [(&mut ours, job("b", 2).id), (&mut theirs, other.id)] {
        let delivery = timeout(PATIENCE, intake.next()).await.unwrap().unwrap();
        assert_eq!(delivery.job.id, expected);
        delivery.split().1.complete(Vec::new()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_every_worker_drops_ends_as_a_dead_letter_with_a_result() {
    let (_folder, path) = state();
    let engine = Embedded::open(&path).await.unwrap();
    let queue = engine.queue();
    let subscription = Subscription { from: From::Beginning, ..Subscription::default() };
    let mut log = queue.subscribe(subscription).await.unwrap();
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let (_keep, prefetch) = watch::channel(1);
    let mut intake = queue.receive(prefetch).await.unwrap();
    let dropping = async {
        while let Some(delivery) = intake.next().await {
            drop(delivery);
        }
    };
    let result = tokio::select! {
        () = dropping => panic!("the intake has ended"),
        heard = timeout(PATIENCE, log.next()) => heard.expect("it is given up in time").unwrap(),
    };
    let Announcement::Result(result, _) = result else { panic!("a result") };
    assert_eq!(result.failure.as_ref().unwrap().class, "delivery-limit");
    assert_eq!(engine.store().batch(&"b".parse().unwrap()).await.unwrap().unwrap().dead_letters, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_processes_subscriber_and_intake_hear_what_this_one_writes() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    let (_keep, prefetch) = watch::channel(1);
    let mut intake = engines[1].queue().receive(prefetch).await.unwrap();
    let subscription = Subscription { filter: Filter::default(), ..Subscription::default() };
    let mut log = engines[0].queue().subscribe(subscription).await.unwrap();
    engines[0].queue().enqueue(vec![job("b", 1)]).await.unwrap();
    let (job, unsettled) = timeout(PATIENCE, intake.next()).await.expect("the job is seen").unwrap().split();
    let results =
        vec![pixfleet_shared::result::ImageResult::of(&job, "m", pixfleet_shared::result::Outcome::Ok)];
    unsettled.complete(results).await.unwrap();
    let heard = timeout(PATIENCE, log.next()).await.expect("the result is heard").unwrap();
    assert_eq!(heard.id(), job.result_id("m"));
}

/// Restarts, each with a new handle on the file, as after a crash: nothing of the old one is said to the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_window_holds_more_than_its_calls_across_restarts() {
    let (_folder, path) = state();
    let stack = per_second("test.restart", 50);
    let mut moments = Vec::new();
    for _ in 0..8 {
        let engine = Embedded::open(&path).await.unwrap();
        let limiter = engine.limiter();
        moments.extend(greedy(&[&*limiter], &stack, 1, 20).await);
        // No close: what is unused of the allowance is lost, and never given out twice.
        std::mem::forget(engine);
    }
    moments.sort_unstable();
    assert_never_above(50, &moments);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_was_spent_before_a_restart_is_spent_after_it() {
    let (_folder, path) = state();
    let credits = Limit { quota: Some(Quota::Total), ..Limit::per_second("credits", 10) };
    let stack = limiters::stack("test.credits", vec![credits]);
    for spent in [4, 6] {
        let engine = Embedded::open(&path).await.unwrap();
        for _ in 0..spent {
            slots(&*engine.limiter(), &stack, &[1]).await;
        }
        std::mem::forget(engine);
    }
    let answer = Embedded::open(&path)
        .await
        .unwrap()
        .limiter()
        .reserve(&stack, &Order::of_models(&[1]))
        .await
        .unwrap();
    let Reservation::ComeBack(wait) = answer else { panic!("an eleventh call of ten: {answer:?}") };
    assert!(wait.free_at > Instant::now() + Duration::from_secs(3600), "{wait:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_off_outlives_a_restart() {
    let (_folder, path) = state();
    let stack = per_second("test.held", 50);
    let engine = Embedded::open(&path).await.unwrap();
    engine.limiter().hold_off(&stack, HoldOff::of(Duration::from_secs(60))).await.unwrap();
    engine.close().await;
    let again = Embedded::open(&path).await.unwrap().limiter();
    assert!(again.held_until(&stack).is_some());
    let answer = again.reserve(&stack, &Order::of_models(&[1])).await.unwrap();
    assert!(
        matches!(answer, Reservation::ComeBack(wait) if wait.free_at > Instant::now() + Duration::from_secs(30))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_of_a_new_file_need_not_wait() {
    let (_folder, path) = state();
    let engine = Embedded::open(&path).await.unwrap();
    let slots =
        engine.limiter().reserve(&per_second("test.first", 4), &Order::of_models(&[1])).await.unwrap();
    let Reservation::Slots(slots) = slots else { panic!("{slots:?}") };
    // A file that was never written to has granted nothing: there is no past to be careful of.
    assert!(slots[0].at < Instant::now() + Duration::from_millis(110), "{slots:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_file_is_one_file_and_refuses_politely() {
    let (folder, path) = state();
    let engine = Embedded::open(&path).await.unwrap();
    engine.queue().enqueue((0..100).map(|n| job("b", n)).collect()).await.unwrap();
    engine.close().await;
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["batch.pixfleet"]);
    let refused = engine.queue().enqueue(vec![job("b", 1)]).await.unwrap_err().to_string();
    assert!(refused.contains("closed"), "{refused}");
}
