//! Jobs that are set aside, as the file keeps them.

use pixfleet_shared::{batch::BatchName, embedded::Embedded};
use pixfleet_tests::conformance::queue::job;

use super::{fleet, lend, next, state};

fn batch() -> BatchName {
    "b".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_set_aside_stays_so_across_restarts_until_its_batch_goes_on() {
    let (_folder, path) = state();
    let engine = Embedded::open(&path).await.unwrap();
    engine.queue().prepare_parking(&batch()).await.unwrap();
    engine.queue().enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(&engine).await;
    let (parked, unsettled) = next(&mut intake).await.split();
    unsettled.park(parked).await.unwrap();
    intake.stop().await;
    engine.close().await;

    let engine = Embedded::open(&path).await.unwrap();
    let status = engine.store().status().await.unwrap();
    assert_eq!((status.parked, status.lent, status.waiting), (1, 0, 0));
    engine.queue().enqueue(vec![job("other", 2)]).await.unwrap();
    let mut intake = lend(&engine).await;
    let (other, unsettled) = next(&mut intake).await.split();
    assert_eq!(other.image.id, "i2", "it would come first");
    unsettled.complete(Vec::new()).await.unwrap();
    assert_eq!(engine.queue().unpark(&batch()).await.unwrap(), 1);
    assert_eq!(next(&mut intake).await.job.image.id, "i1");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_heard_that_a_batch_goes_on_sets_none_of_its_jobs_aside() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    engines[0].queue().prepare_parking(&batch()).await.unwrap();
    engines[0].queue().enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(&engines[0]).await;
    let (late, unsettled) = next(&mut intake).await.split();
    assert_eq!(engines[1].queue().unpark(&batch()).await.unwrap(), 0);
    unsettled.park(late).await.unwrap();
    assert_eq!(engines[1].queue().parked(&batch()).await.unwrap(), 0);
    assert_eq!(next(&mut intake).await.job.image.id, "i1", "it comes again by itself");
}
