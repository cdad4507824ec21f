//! Calls, as the file knows them: left behind by the killed, answered, and over.

use std::{collections::BTreeMap, time::Duration};

use pixfleet_sandbox::{Latency, Sandbox, Settings};
use pixfleet_shared::{
    embedded::Embedded,
    job::Job,
    ledger::{Answered, End, Known, Ledger},
    queue::{Intake, Settlement, Then, Unsettled},
    result::{ImageResult, Outcome},
};
use pixfleet_tests::{
    conformance::{
        ledger::{intent, mark, next as next_turn, settlement},
        process::until,
        queue::job,
    },
    fleet::KEY,
    one_machine::OneMachine,
};
use tokio::{net::TcpListener, process::Command};

use super::{counts, fleet, lend, next, state};

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_run_that_was_killed_are_unanswered_and_its_other_jobs_are_clear() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Longer than the test: every call is in flight until the end.
    let latency = Latency::Constant { ms: 600_000 };
    let settings = Settings { keys: vec![KEY.into()], latency, ..Settings::default() };
    let sandbox = Sandbox::start(listener, settings).unwrap();
    let machine = OneMachine::new(5, &sandbox.url());
    let mut run = Command::from(machine.run(&["o.jsonl"], 2)).kill_on_drop(true).spawn().unwrap();
    until("two calls are in flight", async || (sandbox.bill().in_flight == 2).then_some(())).await;
    run.kill().await.unwrap();

    let engine = Embedded::open(&machine.state()).await.unwrap();
    let (mut intake, ledger) = (lend(&engine).await, engine.ledger());
    let mut unanswered = 0;
    let mut held = Vec::new();
    for _ in 0..5 {
        let delivery = next(&mut intake).await;
        let taken = ledger.take_up(&delivery.job).await.unwrap();
        match taken.known {
            Known::Unanswered(intent) => {
                assert!(delivery.again, "it was in the killed one's hands");
                assert_eq!((intent.job, intent.models.as_slice()), (delivery.job.id, &["m".to_owned()][..]));
                unanswered += 1;
            }
            known => assert_eq!(known, Known::Clear, "no call of it left"),
        }
        held.push(delivery);
    }
    assert_eq!(unanswered, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_settles_is_kept_by_itself() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    let job = job("b", 1);
    assert_eq!(engines[0].ledger().depart(&intent(&job)).await.unwrap(), Known::Clear);
    engines[0].ledger().answered(&intent(&job), Answered::Paid(settlement(&job)));
    until("the other process knows the answer", async || {
        let known = engines[1].ledger().depart(&intent(&job)).await.unwrap();
        matches!(known, Known::Answered(_)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_kept_by_a_process_that_closes_at_once() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    let job = job("b", 1);
    engines[0].ledger().depart(&intent(&job)).await.unwrap();
    let settlement = settlement(&job);
    engines[0].ledger().answered(&intent(&job), Answered::Paid(settlement.clone()));
    engines[0].close().await;
    let known = engines[1].ledger().depart(&intent(&job)).await.unwrap();
    assert_eq!(known, Known::Answered(Box::new(settlement)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_call_is_over_counted_and_billed_at_once_and_saying_so_again_counts_nothing() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    engines[0].queue().enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(&engines[0]).await;
    let ledger = engines[0].ledger();
    let (first, unsettled) = next(&mut intake).await.split();

    // An attempt that failed, answered and free.
    ledger.depart(&intent(&first)).await.unwrap();
    ledger.answered(&intent(&first), Answered::Free);
    let again = Then::Again(Box::new(next_turn(&first)), Duration::ZERO);
    unsettled.settle(Settlement { results: Vec::new(), then: again }).await.unwrap();
    let (second, unsettled) = next(&mut intake).await.split();
    assert_eq!(second.attempt, 1);

    ledger.depart(&intent(&second)).await.unwrap();
    let settlement = settlement(&second);
    ledger.answered(&intent(&second), Answered::Paid(settlement.clone()));
    unsettled.settle(settlement).await.unwrap();

    let theirs = engines[1].ledger();
    for turn in [&first, &second] {
        assert_eq!(theirs.depart(&intent(turn)).await.unwrap(), Known::Over);
    }
    ledger.settled(mark(&first, End::Again));
    ledger.settled(mark(&second, End::Done));
    ledger.flush().await;
    let counted = counts(&engines[1]).await;
    assert_eq!((counted.ended, counted.of(Outcome::Ok)), (1, 1));
    let bill = bill(&*theirs).await;
    assert_eq!(bill, [("*".to_owned(), 2, 1), ("m".to_owned(), 2, 1)]);
}

/// Model, answered, charged: of all days.
async fn bill(ledger: &dyn Ledger) -> Vec<(String, u64, u64)> {
    let mut bill = BTreeMap::new();
    for day in ledger.days().await.unwrap() {
        for line in ledger.bill(day).await.unwrap() {
            let (answered, charged): &mut (u64, u64) = bill.entry(line.model).or_default();
            *answered += line.answered;
            *charged += line.charged;
        }
    }
    bill.into_iter().map(|(model, (answered, charged))| (model, answered, charged)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gets_a_job_that_nobody_settled_is_told_so() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    engines[0].queue().enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(&engines[0]).await;
    let first = next(&mut intake).await;
    assert!(!first.again);
    drop(first);
    // Given back as it was, it is as doubtful as before; in its next turn it is not.
    let (job, unsettled) = again(&mut intake, true).await;
    unsettled.release(job, Duration::ZERO).await.unwrap();
    let (job, unsettled) = again(&mut intake, true).await;
    unsettled.retry(job, Vec::new(), Duration::ZERO).await.unwrap();
    let held = next(&mut intake).await;
    assert!(!held.again);
    // It ends with the job in its hands.
    intake.stop().await;
    super::killed(&engines[0]).await;
    let mut theirs = lend(&engines[1]).await;
    again(&mut theirs, true).await;
    std::mem::forget(held);
}

async fn again(intake: &mut Box<dyn Intake>, expected: bool) -> (Job, Unsettled) {
    let delivery = next(intake).await;
    assert_eq!(delivery.again, expected);
    delivery.split()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_closes_did_not_die_of_what_it_had_in_hand() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    let job = job("b", 1);
    engines[0].ledger().take_up(&job).await.unwrap();
    assert_eq!(engines[1].ledger().take_up(&job).await.unwrap().unsure, 1);
    engines[0].close().await;
    let taken = engines[1].ledger().take_up(&job).await.unwrap();
    assert_eq!((taken.crashed, taken.unsure), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_batch_counts_tells_answers_of_before_and_what_was_cancelled() {
    let (_folder, path) = state();
    let engine = &fleet(&path, 1).await[0];
    engine.queue().enqueue((0..4).map(|n| job("b", n)).collect()).await.unwrap();
    let mut intake = lend(engine).await;
    for (outcome, cached) in
        [(Outcome::Ok, false), (Outcome::Ok, true), (Outcome::Cancelled, false), (Outcome::Ambiguous, false)]
    {
        let (job, unsettled) = next(&mut intake).await.split();
        let result = ImageResult { cached, ..ImageResult::of(&job, "m", outcome) };
        unsettled.complete(vec![result]).await.unwrap();
    }
    let counts = counts(engine).await;
    let of = Outcome::ALL.map(|outcome| counts.of(outcome));
    assert_eq!((of, counts.cached, counts.ended), ([2, 0, 0, 1, 1], 1, 4));
}
