//! Fairness: batches share a limit by weight, a small one is not kept by a big one, and no class starves. The order of the
//! calls as the API saw them tells, not a clock.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use pixfleet_sandbox::{Judging, Latency, Rule, Settings};
use pixfleet_shared::job::{Job, Priority};
use pixfleet_tests::fleet::{Fleet, KEY, image_url, job};

const WORKERS: usize = 2;
/// Jobs that a worker has in hand, and picked for the next turn, at this rate: `worker/src/pace.rs` says how many.
const IN_HAND: usize = 30;
const RATE: u32 = 50;
/// The first image of each batch's: the access log knows calls by their images.
const FIRST: [usize; 3] = [0, 100_000, 200_000];

fn sandbox(rate: u32) -> Settings {
    Settings {
        keys: vec![KEY.into()],
        judging: Judging { rule: Rule::Sliding, limit: rate, ..Judging::default() },
        latency: Latency::Constant { ms: 20 },
        ..Settings::default()
    }
}

fn of(batch: &str, priority: Priority, weight: u8) -> Job {
    Job { priority, weight, ..job(batch, 0) }
}

/// Whose each call was, by the number of its batch, in the order of their arrival.
async fn calls(fleet: &Fleet) -> Vec<usize> {
    let mut whose = BTreeMap::new();
    for (batch, first) in FIRST.into_iter().enumerate() {
        whose.extend((first..first + 3_000).map(|n| (image_url(n), batch)));
    }
    let mut lines = fleet.sandbox.access().await;
    lines.sort_by_key(|line| line.at_us);
    lines.iter().map(|line| whose[line.image.as_ref().unwrap()]).collect()
}

async fn workers(fleet: &mut Fleet) {
    for _ in 0..WORKERS {
        let worker = fleet.start_worker();
        fleet.ready(worker).await;
    }
}

/// How many of the first `n` calls each batch had.
async fn shares(fleet: &Fleet, n: usize) -> [usize; 3] {
    let mut shares = [0; 3];
    calls(fleet).await.into_iter().take(n).for_each(|batch| shares[batch] += 1);
    shares
}

async fn a_small_batch_is_not_kept_by_a_big_one(mut fleet: Fleet) {
    let (mut big, mut small) = (fleet.subscribe("big").await, fleet.subscribe("small").await);
    let bulk = fleet.enqueue_like(&of("big", Priority::Normal, 1), FIRST[0], 3_000).await;
    workers(&mut fleet).await;
    fleet.collect(&mut *big, 100).await;
    let before = fleet.sandbox.access().await.len();
    let few = fleet.enqueue_like(&of("small", Priority::Normal, 1), FIRST[1], 10).await;
    assert_ne!(few[0].lane, bulk[0].lane, "the emptiest lane is another one");
    fleet.collect(&mut *small, 10).await;
    let calls = calls(&fleet).await;
    let (first, last) = (
        calls.iter().position(|batch| *batch == 1).unwrap(),
        calls.iter().rposition(|batch| *batch == 1).unwrap(),
    );
    // What was in hand leaves first. Then each worker takes turns: at most all ten are one worker's, and the other one
    // has two slots meanwhile for each of them.
    let (waited, beside) = (first - before, last - first - 9);
    assert!(waited <= WORKERS * IN_HAND, "{waited} calls before the first");
    assert!(beside <= 3 * 10 + IN_HAND, "{beside} calls beside it");
}

async fn weights_are_the_shares(mut fleet: Fleet) {
    fleet.enqueue_like(&of("heavy", Priority::Normal, 3), FIRST[0], 400).await;
    fleet.enqueue_like(&of("light", Priority::Normal, 1), FIRST[1], 400).await;
    let mut all = fleet.subscribe_to_all().await;
    workers(&mut fleet).await;
    fleet.collect(&mut *all, 220).await;
    let [heavy, light, _] = shares(&fleet, 200).await;
    assert!((138..=162).contains(&heavy), "{heavy} : {light} of weights 3 : 1");
}

async fn no_class_starves(mut fleet: Fleet) {
    for (batch, priority, first) in [
        ("high", Priority::High, FIRST[0]),
        ("normal", Priority::Normal, FIRST[1]),
        ("bulk", Priority::Bulk, FIRST[2]),
    ] {
        fleet.enqueue_like(&of(batch, priority, 1), first, 300).await;
    }
    let mut all = fleet.subscribe_to_all().await;
    workers(&mut fleet).await;
    fleet.collect(&mut *all, 280).await;
    let [high, normal, bulk] = shares(&fleet, 260).await;
    assert!((140..=180).contains(&high), "{high} : {normal} : {bulk} of classes 8 : 4 : 1");
    assert!((64..=96).contains(&normal), "{high} : {normal} : {bulk} of classes 8 : 4 : 1");
    assert!((14..=30).contains(&bulk), "{high} : {normal} : {bulk} of classes 8 : 4 : 1");
}

fn limit(rate: u32) -> String {
    format!("limits = [{{ name = \"rate\", calls = {rate} }}]")
}

async fn servers() -> Fleet {
    Fleet::start(sandbox(RATE), &limit(RATE), "").await
}

async fn one_machine() -> Fleet {
    Fleet::on_one_machine(sandbox(RATE), &limit(RATE), "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_images_beside_thousands_wait_for_what_is_in_hand_and_then_have_their_share() {
    a_small_batch_is_not_kept_by_a_big_one(servers().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_images_beside_thousands_on_a_state_file_wait_for_what_is_in_hand_and_then_have_their_share() {
    a_small_batch_is_not_kept_by_a_big_one(one_machine().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_weights_three_and_one_have_three_calls_and_one() {
    weights_are_the_shares(servers().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_weights_three_and_one_on_a_state_file_have_three_calls_and_one() {
    weights_are_the_shares(one_machine().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_goes_on_beside_a_stream_of_more_urgent_jobs() {
    no_class_starves(servers().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_goes_on_beside_a_stream_of_more_urgent_jobs_on_a_state_file() {
    no_class_starves(one_machine().await).await;
}

/// At two a second a worker has eight jobs in hand: more than four seconds, if they left in the order in which they came.
#[tokio::test(flavor = "multi_thread")]
async fn at_a_low_rate_a_small_batch_does_not_wait_for_what_is_in_hand() {
    let mut fleet = Fleet::start(sandbox(2), &limit(2), "").await;
    let (mut big, mut small) = (fleet.subscribe("big").await, fleet.subscribe("small").await);
    fleet.enqueue_like(&of("big", Priority::Normal, 1), FIRST[0], 40).await;
    let worker = fleet.start_worker();
    fleet.ready(worker).await;
    fleet.collect(&mut *big, 3).await;
    let before = fleet.sandbox.access().await.len();
    fleet.enqueue_like(&of("small", Priority::Normal, 1), FIRST[1], 1).await;
    fleet.collect(&mut *small, 1).await;
    let first = calls(&fleet).await.iter().position(|batch| *batch == 1).unwrap();
    // Two are booked, one makes room in hand, and one has its turn before.
    assert!(first - before <= 5, "{} calls before it", first - before);
}
