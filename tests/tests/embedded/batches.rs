//! Batches, as the file knows them: who tells of their end.

use jiff::Timestamp;
use pixfleet_shared::{
    batch::{BatchEvent, BatchState},
    batches::Progress,
    embedded::Embedded,
    result::{ImageResult, Outcome},
};
use pixfleet_tests::conformance::queue::job;
use tokio::time::timeout;

use super::{PATIENCE, counts, fleet, killed, lend, next, state};

fn event(state: BatchState) -> BatchEvent {
    let batch = "b".parse().unwrap();
    BatchEvent { v: 1, batch, state, jobs: 1, results: 1, at: Timestamp::now(), tally: None }
}

async fn complete(engine: &Embedded) -> Progress {
    timeout(PATIENCE, engine.batches().complete()).await.expect("a batch that is complete")
}

/// Puts a job in, says that it is the only one, and settles it.
async fn all_of_it(engine: &Embedded) {
    engine.queue().enqueue(vec![job("b", 1)]).await.unwrap();
    engine.queue().announce(event(BatchState::Closed)).await.unwrap();
    let mut intake = lend(engine).await;
    let (job, unsettled) = next(&mut intake).await.split();
    unsettled.complete(vec![ImageResult::of(&job, "m", Outcome::Ok)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_producer_only_announced_it_is_complete_with_its_last_result() {
    let (_folder, path) = state();
    let engine = &fleet(&path, 1).await[0];
    all_of_it(engine).await;
    let progress = complete(engine).await;
    assert!(progress.is_complete());
    assert_eq!((progress.jobs, progress.expected, progress.tally.ok), (1, 1, 1));
    // Saying so does not open it again.
    engine.queue().announce(event(BatchState::Complete)).await.unwrap();
    assert!(counts(engine).await.complete());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_one_that_was_to_tell_of_a_batch_dies_another_one_tells() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    all_of_it(&engines[0]).await;
    let token = engines[0].store().token();
    killed(&engines[0]).await;
    engines[0].close().await;
    let teller = engines[1].store().read(|db| {
        db.query_row("SELECT teller FROM batches WHERE batch = 'b'", [], |row| row.get::<_, i64>(0))
    });
    assert_eq!(teller.await.unwrap(), token, "it was the dead one's to tell");
    assert_eq!(complete(&engines[1]).await.batch.as_str(), "b");
}
