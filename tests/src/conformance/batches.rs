//! The promises of what is known of batches. A fleet is three processes that share it.

use futures_util::future::select_all;
use jiff::Timestamp;
use pixfleet_shared::{
    batch::{BatchName, Tally},
    batches::{Expected, Held, Hold, Progress},
    job::Job,
    ledger::End,
};
use tokio::time::timeout;

use super::{
    ledger::{job, mark, mark_of, replayed},
    process::{PATIENCE, Process, until},
};

const OK: Tally = Tally { ok: 1, cached: 0, rejected: 0, dead: 0, cancelled: 0, ambiguous: 0 };

fn name(test: &str, part: &str) -> BatchName {
    format!("{test}-{part}").parse().unwrap()
}

/// A job of its own batch.
fn job_of(batch: &BatchName, n: u8) -> Job {
    Job { batch: batch.clone(), ..job(batch.as_str(), n) }
}

async fn expects(process: &Process, batch: &BatchName, jobs: u64, results: u64, closed: bool) {
    let expected = Expected { batch: batch.clone(), jobs, results, closed };
    process.batches.expect(&expected).await.unwrap();
}

async fn progress(process: &Process, batch: &BatchName) -> Progress {
    process.batches.progress(batch).await.unwrap().expect("a batch that is known")
}

async fn settles(process: &Process, job: &Job) {
    process.ledger.settled(mark(job, End::Done));
    process.ledger.flush().await;
}

async fn complete(process: &Process) -> Progress {
    timeout(PATIENCE, process.batches.complete()).await.expect("a batch that is complete")
}

fn held(hold: Hold, by: &str) -> Held {
    Held { hold, by: by.into(), at: "2026-11-26T08:00:00Z".parse().unwrap() }
}

/// What a producer says is known to everybody, and its counts never shrink. What is closed stays so.
pub async fn what_a_producer_says_is_kept_and_never_shrinks(test: &str, fleet: Vec<Process>) {
    let batch = name(test, "b");
    for process in &fleet {
        assert_eq!(process.batches.progress(&batch).await.unwrap(), None);
    }
    let before = Timestamp::now();
    expects(&fleet[0], &batch, 10, 20, false).await;
    expects(&fleet[1], &batch, 5, 30, true).await;
    expects(&fleet[2], &batch, 7, 7, false).await;
    for process in &fleet {
        let Progress { jobs, expected, closed, tally, held, opened_at, .. } = progress(process, &batch).await;
        assert_eq!((jobs, expected, closed, tally, held), (10, 30, true, Tally::default(), None));
        let off = opened_at.duration_since(before).abs();
        assert!(off < jiff::SignedDuration::from_mins(1), "opened at {opened_at}, said at {before}");
    }
    fleet[2].batches.hold(&batch, Some(held(Hold::Paused, "ana"))).await.unwrap();
    assert!(progress(&fleet[0], &batch).await.closed, "who holds a batch says nothing of what it expects");
}

/// Every kind of result is counted as such, whichever process settles it.
pub async fn results_are_counted_by_what_they_are(test: &str, fleet: Vec<Process>) {
    let batch = name(test, "b");
    let kinds = Tally { ok: 1, cached: 2, rejected: 3, dead: 4, cancelled: 5, ambiguous: 6 };
    for (n, process) in fleet.iter().enumerate() {
        process.ledger.settled(mark_of(&job_of(&batch, n as u8), End::Done, kinds));
        process.ledger.flush().await;
    }
    let expected = Tally { ok: 3, cached: 6, rejected: 9, dead: 12, cancelled: 15, ambiguous: 18 };
    assert_eq!(progress(&fleet[0], &batch).await.tally, expected);
}

/// The process that settles the last result hears that the batch is complete, once.
pub async fn a_batch_is_complete_with_its_last_result(test: &str, fleet: Vec<Process>) {
    let (one, other) = (name(test, "one"), name(test, "other"));
    for batch in [&one, &other] {
        expects(&fleet[1], batch, 2, 2, true).await;
        settles(&fleet[2], &job_of(batch, 1)).await;
    }
    assert!(!progress(&fleet[0], &one).await.is_complete());
    settles(&fleet[0], &job_of(&one, 2)).await;
    let said = complete(&fleet[0]).await;
    assert!(said.is_complete() && said.batch == one && said.tally == Tally { ok: 2, ..OK }, "{said:?}");
    assert_eq!(said, progress(&fleet[1], &one).await);
    // Saying it all again completes nothing: what is heard next is the other batch.
    settles(&fleet[0], &job_of(&one, 1)).await;
    settles(&fleet[0], &job_of(&one, 2)).await;
    expects(&fleet[0], &one, 2, 2, true).await;
    settles(&fleet[0], &job_of(&other, 2)).await;
    assert_eq!(complete(&fleet[0]).await.batch, other);
}

/// Where all results are there before the producer says that this is all, the batch is complete with its word.
pub async fn a_batch_whose_results_are_faster_than_its_producer_is_complete_with_its_word(
    test: &str,
    fleet: Vec<Process>,
) {
    let batch = name(test, "b");
    expects(&fleet[0], &batch, 0, 0, false).await;
    settles(&fleet[1], &job_of(&batch, 1)).await;
    assert!(!progress(&fleet[0], &batch).await.is_complete());
    let anybody = select_all(fleet.iter().map(|process| process.batches.complete()));
    let says = async {
        expects(&fleet[0], &batch, 1, 1, true).await;
    };
    let (heard, ()) = tokio::join!(timeout(PATIENCE, anybody), says);
    let (said, ..) = heard.expect("somebody hears of it");
    assert!(said.is_complete() && said.batch == batch, "{said:?}");
}

/// A dead letter that is opened makes its batch incomplete, until its results are there.
pub async fn a_dead_letter_that_is_opened_makes_its_batch_incomplete(test: &str, fleet: Vec<Process>) {
    let batch = name(test, "b");
    let (done, dead) = (job_of(&batch, 1), job_of(&batch, 2));
    expects(&fleet[0], &batch, 2, 2, true).await;
    settles(&fleet[0], &done).await;
    fleet[0].ledger.settled(mark_of(&dead, End::Dead, Tally { dead: 1, ..Tally::default() }));
    fleet[0].ledger.flush().await;
    assert_eq!(complete(&fleet[0]).await.tally, Tally { dead: 1, ..OK });
    assert!(fleet[1].ledger.reopen(&replayed(&dead)).await.unwrap());
    let opened = progress(&fleet[0], &batch).await;
    assert!(!opened.is_complete() && opened.tally == OK, "{opened:?}");
    settles(&fleet[0], &replayed(&dead)).await;
    assert_eq!(complete(&fleet[0]).await.tally, Tally { ok: 2, ..OK });
}

/// What keeps a batch reaches every process without its asking, and lets go of it likewise.
pub async fn a_hold_reaches_every_process(test: &str, fleet: Vec<Process>) {
    let (batch, other) = (name(test, "b"), name(test, "other"));
    let mut changes: Vec<_> = fleet.iter().map(|process| process.batches.changes()).collect();
    for (hold, by) in [(Some(Hold::Paused), 0), (None, 1), (Some(Hold::Cancelled), 2)] {
        changes.iter_mut().for_each(|changes| changes.mark_unchanged());
        let wanted = hold.map(|hold| held(hold, "ana"));
        let holds = fleet[by].batches.hold(&batch, wanted.clone()).await.unwrap();
        assert_eq!(holds, wanted);
        for (process, changes) in fleet.iter().zip(&mut changes) {
            while process.batches.held(&batch) != hold {
                timeout(PATIENCE, changes.changed()).await.expect("the word arrives").unwrap();
            }
            assert_eq!(process.batches.held(&other), None);
            let progress = process.batches.progress(&batch).await.unwrap();
            assert_eq!(progress.and_then(|progress| progress.held), wanted);
        }
    }
}

/// What is cancelled stays so, whatever is said of it later.
pub async fn what_is_cancelled_stays_so(test: &str, fleet: Vec<Process>) {
    let batch = name(test, "b");
    expects(&fleet[0], &batch, 1, 1, true).await;
    let cancelled = held(Hold::Cancelled, "ana");
    assert_eq!(
        fleet[0].batches.hold(&batch, Some(cancelled.clone())).await.unwrap(),
        Some(cancelled.clone())
    );
    for later in [None, Some(held(Hold::Paused, "bob")), Some(held(Hold::Cancelled, "bob"))] {
        assert_eq!(fleet[1].batches.hold(&batch, later).await.unwrap(), Some(cancelled.clone()));
    }
    until("the word arrives", async || fleet[2].batches.held(&batch).filter(|hold| *hold == Hold::Cancelled))
        .await;
    assert_eq!(progress(&fleet[2], &batch).await.held, Some(cancelled));
}

/// Every batch that somebody spoke of is listed, the youngest first.
pub async fn batches_are_listed_the_youngest_first(test: &str, fleet: Vec<Process>) {
    let batches: Vec<BatchName> = ["c", "a", "b"].iter().map(|part| name(test, part)).collect();
    expects(&fleet[0], &batches[0], 1, 2, false).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    settles(&fleet[1], &job_of(&batches[1], 1)).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    fleet[2].batches.hold(&batches[2], Some(held(Hold::Paused, "ana"))).await.unwrap();
    expects(&fleet[2], &batches[2], 3, 4, true).await;
    for process in &fleet {
        let listed = process.batches.list().await.unwrap();
        let names: Vec<_> = listed.iter().map(|progress| progress.batch.clone()).collect();
        assert_eq!(names, batches.iter().rev().cloned().collect::<Vec<_>>());
        for (of, batch) in listed.iter().zip(batches.iter().rev()) {
            assert_eq!(*of, progress(process, batch).await);
        }
        assert_eq!(listed[0].held, Some(held(Hold::Paused, "ana")));
        assert_eq!(listed[1].tally, OK);
    }
}
