//! What every queue engine promises, as tests over the seam.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use pixfleet_shared::{
    batch::{BatchEvent, BatchName, BatchState},
    job::{Image, Job, Priority, Source},
    queue::{
        DeadLetter, DeadLetters, Death, Delivery, Filter, From, Intake, Queue, Reason, Subscriber,
        Subscription,
    },
    result::{Announcement, Failure, ImageResult, Outcome},
};
use tokio::{sync::watch, time::timeout};

/// The longest that any promise may take to show; a passing test takes far less.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lanes of a priority, by default.
const LANES: u8 = 4;

/// A job of `batch` for image number `n`.
pub fn job(batch: &str, n: usize) -> Job {
    let image = Image { id: format!("i{n}"), source: Source::Url(format!("http://images.example/{n}.jpg")) };
    Job::new(batch.parse().unwrap(), image, "sandbox".into(), vec!["m".into()])
}

fn results(job: &Job) -> Vec<ImageResult> {
    job.models.iter().map(|model| ImageResult::of(job, model, Outcome::Ok)).collect()
}

async fn lend(queue: &Arc<dyn Queue>) -> Box<dyn Intake> {
    lend_ahead(queue, 10).await
}

async fn lend_ahead(queue: &Arc<dyn Queue>, prefetch: u16) -> Box<dyn Intake> {
    let (prefetch, asked) = watch::channel(prefetch);
    // The sender lives as long as the test: a worker that changes its mind is another test.
    std::mem::forget(prefetch);
    queue.receive(asked).await.unwrap()
}

async fn next(intake: &mut Box<dyn Intake>) -> Delivery {
    timeout(PATIENCE, intake.next()).await.expect("a delivery in time").expect("an intake that goes on")
}

async fn heard(subscriber: &mut Box<dyn Subscriber>) -> Announcement {
    timeout(PATIENCE, subscriber.next()).await.expect("an announcement in time").unwrap()
}

async fn durable(queue: &Arc<dyn Queue>, name: &str, filter: Filter) -> Box<dyn Subscriber> {
    let subscription = Subscription { name: Some(name.to_owned()), from: From::Now, filter };
    queue.subscribe(subscription).await.unwrap()
}

/// A completed job's results are published, and the job does not come back.
pub async fn a_completed_job_leaves_its_results_and_does_not_come_back(queue: Arc<dyn Queue>) {
    let mut subscriber = durable(&queue, "s", Filter::default()).await;
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(&queue).await;
    let (got, unsettled) = next(&mut intake).await.split();
    assert_eq!(got.id, job("b", 1).id);
    let expected = results(&got);
    unsettled.complete(expected.clone()).await.unwrap();
    let Announcement::Result(result, _) = heard(&mut subscriber).await else { panic!("a result") };
    assert_eq!(*result, expected[0]);
    intake.stop().await;
    queue.enqueue(vec![job("b", 2)]).await.unwrap();
    let mut again = lend(&queue).await;
    assert_eq!(next(&mut again).await.job.image.id, "i2", "only the new job is there");
}

/// A retried job comes back with one attempt more and what is missing; a released one as it was.
pub async fn a_retry_spends_an_attempt_and_a_release_does_not(queue: Arc<dyn Queue>) {
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(&queue).await;
    let (mut job, unsettled) = next(&mut intake).await.split();
    job.models = vec!["missing".into()];
    unsettled.retry(job, Vec::new(), Duration::from_millis(10)).await.unwrap();
    let (job, unsettled) = next(&mut intake).await.split();
    assert_eq!((job.attempt, job.models.as_slice()), (1, &["missing".to_owned()][..]));
    unsettled.release(job, Duration::ZERO).await.unwrap();
    let (job, unsettled) = next(&mut intake).await.split();
    assert_eq!(job.attempt, 1);
    unsettled.complete(Vec::new()).await.unwrap();
}

/// A retry's published part arrives although the job goes on.
pub async fn a_retry_publishes_what_is_answered(queue: Arc<dyn Queue>) {
    let mut subscriber = durable(&queue, "s", Filter::default()).await;
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(&queue).await;
    let (job, unsettled) = next(&mut intake).await.split();
    let results = results(&job);
    unsettled.retry(job, results.clone(), Duration::from_millis(10)).await.unwrap();
    assert_eq!(heard(&mut subscriber).await.id(), results[0].id);
}

/// A dead letter publishes its failure, so that a batch's count comes out.
pub async fn a_dead_letter_is_a_result_too(queue: Arc<dyn Queue>) {
    let filter = Filter { outcome: Some(Outcome::Dead), ..Filter::default() };
    let mut subscriber = durable(&queue, "s", filter).await;
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(&queue).await;
    let (job, unsettled) = next(&mut intake).await.split();
    let dead = ImageResult::of(&job, "m", Outcome::Dead);
    unsettled.dead_letter(job, vec![dead.clone()], Reason::AttemptsExhausted).await.unwrap();
    assert_eq!(heard(&mut subscriber).await.id(), dead.id);
}

/// A delivery that is dropped unsettled comes back.
pub async fn a_dropped_delivery_comes_back(queue: Arc<dyn Queue>) {
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(&queue).await;
    drop(next(&mut intake).await);
    let (again, unsettled) = next(&mut intake).await.split();
    assert_eq!(again.id, job("b", 1).id);
    unsettled.complete(Vec::new()).await.unwrap();
}

/// Stopping the intake gives back what was not lent; what was lent can still be settled.
pub async fn a_stopped_intake_gives_back_what_it_had_not_lent(queue: Arc<dyn Queue>) {
    queue.enqueue((0..8).map(|n| job("b", n)).collect()).await.unwrap();
    let mut intake = lend(&queue).await;
    let (lent, unsettled) = next(&mut intake).await.split();
    intake.stop().await;
    assert!(intake.next().await.is_none());
    unsettled.complete(Vec::new()).await.unwrap();
    let mut other = lend(&queue).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 7 {
        let (job, unsettled) = next(&mut other).await.split();
        assert_ne!(job.id, lent.id, "a settled job came back");
        seen.insert(job.id);
        unsettled.complete(Vec::new()).await.unwrap();
    }
}

/// With every class waiting, none starves, and the urgent one goes first.
pub async fn no_priority_starves_another(queue: Arc<dyn Queue>) {
    let mut jobs = Vec::new();
    for priority in Priority::ALL {
        jobs.extend((0..40).map(|n| {
            let mut job = job(priority.as_str(), n);
            job.priority = priority;
            job
        }));
    }
    queue.enqueue(jobs).await.unwrap();
    // All of them at once: nothing is chosen by what a slow server sends first.
    let mut intake = lend_ahead(&queue, 40).await;
    let mut taken = Vec::new();
    for _ in 0..39 {
        let (job, unsettled) = next(&mut intake).await.split();
        taken.push(job.priority);
        unsettled.complete(Vec::new()).await.unwrap();
    }
    let count = |priority| taken.iter().filter(|taken| **taken == priority).count();
    assert!(count(Priority::Bulk) >= 1, "bulk starves: {taken:?}");
    assert!(count(Priority::High) > count(Priority::Bulk), "high is not preferred: {taken:?}");
}

/// A new batch gets the lane with the fewest waiting jobs.
pub async fn a_new_batch_gets_the_emptiest_lane(queue: Arc<dyn Queue>) {
    let free = LANES - 1;
    let jobs = (0..free).map(|lane| {
        let mut job = job("big", lane.into());
        job.lane = lane;
        job
    });
    queue.enqueue(jobs.collect()).await.unwrap();
    let lane = timeout(PATIENCE, async {
        loop {
            let lane = queue.open_lane(Priority::Normal).await.unwrap();
            if lane == free {
                return lane;
            }
        }
    });
    assert_eq!(lane.await.expect("the empty lane is found"), free);
}

/// A durable subscriber that was away gets what it missed, and nothing that it committed.
pub async fn a_durable_subscriber_goes_on_where_it_committed(queue: Arc<dyn Queue>) {
    let mut subscriber = durable(&queue, "s", Filter::default()).await;
    queue.enqueue((0..3).map(|n| job("b", n)).collect()).await.unwrap();
    let mut intake = lend(&queue).await;
    for _ in 0..3 {
        let (job, unsettled) = next(&mut intake).await.split();
        let results = results(&job);
        unsettled.complete(results).await.unwrap();
    }
    let first = heard(&mut subscriber).await.id();
    subscriber.commit().await.unwrap();
    let second = heard(&mut subscriber).await.id();
    drop(subscriber);
    let mut again = durable(&queue, "s", Filter::default()).await;
    let rest = BTreeSet::from([heard(&mut again).await.id(), heard(&mut again).await.id()]);
    assert!(rest.contains(&second) && !rest.contains(&first));
}

/// The log replays what was published before anyone listened, and a filter takes only what it names.
pub async fn the_log_replays_and_filters(queue: Arc<dyn Queue>) {
    queue.enqueue(vec![job("wanted", 1), job("other", 2)]).await.unwrap();
    let mut intake = lend(&queue).await;
    for _ in 0..2 {
        let (job, unsettled) = next(&mut intake).await.split();
        let results = results(&job);
        unsettled.complete(results).await.unwrap();
    }
    let batch: BatchName = "wanted".parse().unwrap();
    let closed = BatchEvent {
        v: 1,
        batch: batch.clone(),
        state: BatchState::Closed,
        jobs: 1,
        results: 1,
        at: jiff::Timestamp::now(),
        tally: None,
    };
    queue.announce(closed.clone()).await.unwrap();
    for from in [From::Beginning, From::Ago(Duration::from_secs(3600))] {
        let filter = Filter { batch: Some(batch.clone()), ..Filter::default() };
        let mut log = queue.subscribe(Subscription { name: None, from, filter }).await.unwrap();
        assert_eq!(heard(&mut log).await.id(), job("wanted", 1).result_id("m"));
        assert_eq!(heard(&mut log).await, Announcement::Batch(closed.clone()));
    }
}

fn failure(job: &Job, message: &str) -> ImageResult {
    let failure = Failure { class: "transient".to_owned(), message: message.to_owned() };
    ImageResult { failure: Some(failure), ..ImageResult::of(job, "m", Outcome::Dead) }
}

/// Puts one job on the queue and gives it up at once.
async fn bury(queue: &Arc<dyn Queue>, intake: &mut Box<dyn Intake>, job: Job) {
    queue.enqueue(vec![job]).await.unwrap();
    let (job, unsettled) = next(intake).await.split();
    let results = vec![failure(&job, &format!("{} failed", job.image.id))];
    unsettled.dead_letter(job, results, Reason::AttemptsExhausted).await.unwrap();
}

async fn look(queue: &Arc<dyn Queue>) -> Box<dyn DeadLetters> {
    timeout(PATIENCE, queue.dead_letters()).await.expect("a look in time").unwrap()
}

async fn seen(letters: &mut Box<dyn DeadLetters>) -> Option<DeadLetter> {
    timeout(PATIENCE, letters.next()).await.expect("a letter, or the last one, in time").unwrap()
}

/// The images of all dead letters, in their order.
async fn buried(queue: &Arc<dyn Queue>) -> Vec<String> {
    let mut letters = look(queue).await;
    let mut images = Vec::new();
    while let Some(letter) = seen(&mut letters).await {
        images.push(letter.job.expect("a job").image.id);
    }
    letters.close().await;
    images
}

/// A dead letter says why, what was said last, and when; and keeps the job.
pub async fn a_dead_letter_keeps_the_job_and_says_why(queue: Arc<dyn Queue>) {
    let began = jiff::Timestamp::now();
    let mut intake = lend(&queue).await;
    bury(&queue, &mut intake, job("b", 1)).await;
    let mut letters = look(&queue).await;
    let letter = seen(&mut letters).await.expect("a letter");
    let Death { reason, class, message, at, .. } = letter.death.clone();
    assert_eq!((reason, class.as_deref()), (Reason::AttemptsExhausted, Some("transient")));
    assert_eq!(message, "i1 failed");
    // Servers may keep whole seconds.
    assert!(at.expect("a time").as_second() >= began.as_second());
    assert_eq!(letter.job.expect("a job").id, job("b", 1).id);
    assert!(seen(&mut letters).await.is_none());
    letters.close().await;
}

/// Looking takes nothing away, however far it goes, and the oldest comes first each time.
pub async fn looking_through_the_dead_letters_leaves_them_in_their_order(queue: Arc<dyn Queue>) {
    assert!(buried(&queue).await.is_empty());
    let mut intake = lend(&queue).await;
    for n in 0..40 {
        bury(&queue, &mut intake, job("b", n)).await;
    }
    let all: Vec<String> = (0..40).map(|n| format!("i{n}")).collect();
    assert_eq!(buried(&queue).await, all);
    let mut half = look(&queue).await;
    for _ in 0..20 {
        assert!(seen(&mut half).await.is_some());
    }
    half.close().await;
    assert_eq!(buried(&queue).await, all);
    assert_eq!(buried(&queue).await, all);
}

/// A replayed letter is a job again, as the caller wants it, and no letter any more.
pub async fn a_replayed_dead_letter_is_a_job_again(queue: Arc<dyn Queue>) {
    let mut intake = lend(&queue).await;
    for n in 0..3 {
        bury(&queue, &mut intake, job("b", n)).await;
    }
    let mut letters = look(&queue).await;
    while let Some(letter) = seen(&mut letters).await {
        let mut job = letter.job.as_ref().unwrap().clone();
        if job.image.id == "i1" {
            (job.replays, job.attempt) = (1, 0);
            letter.replay(job).await.unwrap();
        }
    }
    letters.close().await;
    let (job, unsettled) = next(&mut intake).await.split();
    assert_eq!((job.image.id.as_str(), job.replays), ("i1", 1));
    unsettled.complete(results(&job)).await.unwrap();
    assert_eq!(buried(&queue).await, ["i0", "i2"]);
}

/// A purged letter is gone, and the others stay.
pub async fn a_purged_dead_letter_is_gone_and_the_others_stay(queue: Arc<dyn Queue>) {
    let mut intake = lend(&queue).await;
    for n in 0..4 {
        bury(&queue, &mut intake, job("b", n)).await;
    }
    let mut letters = look(&queue).await;
    // The first, and the last: everything before is acknowledged, and nothing behind is left.
    for n in 0..4 {
        let letter = seen(&mut letters).await.expect("a letter");
        if n == 0 || n == 3 {
            letter.purge().await.unwrap();
        }
    }
    letters.close().await;
    assert_eq!(buried(&queue).await, ["i1", "i2"]);
}

/// One look sees every letter, whatever becomes of those before it.
pub async fn a_look_sees_every_letter_while_others_are_ended(queue: Arc<dyn Queue>) {
    let mut intake = lend(&queue).await;
    for n in 0..80 {
        bury(&queue, &mut intake, job("b", n)).await;
    }
    let mut letters = look(&queue).await;
    let mut number = 0;
    while let Some(letter) = seen(&mut letters).await {
        assert_eq!(letter.job.as_ref().unwrap().image.id, format!("i{number}"));
        if number % 4 != 0 {
            letter.purge().await.unwrap();
            // The server has heard of it, and had its time to send more.
            queue.parked(&"b".parse().unwrap()).await.unwrap();
        }
        number += 1;
    }
    letters.close().await;
    assert_eq!(number, 80);
    let left: Vec<String> = (0..80).step_by(4).map(|n| format!("i{n}")).collect();
    assert_eq!(buried(&queue).await, left);
}

/// A look shows what there was when it began: what dies meanwhile is for the next one.
pub async fn a_look_ends_with_the_letters_that_it_began_with(queue: Arc<dyn Queue>) {
    let mut intake = lend(&queue).await;
    bury(&queue, &mut intake, job("b", 1)).await;
    let mut letters = look(&queue).await;
    bury(&queue, &mut intake, job("b", 2)).await;
    assert_eq!(seen(&mut letters).await.expect("a letter").job.unwrap().image.id, "i1");
    assert!(seen(&mut letters).await.is_none());
    letters.close().await;
    assert_eq!(buried(&queue).await, ["i1", "i2"]);
}

/// Jobs of a paused batch are set aside until it is resumed, come back as they were, and others pass by.
pub async fn jobs_that_are_set_aside_come_back_when_their_batch_goes_on(queue: Arc<dyn Queue>) {
    let (paused, other): (BatchName, BatchName) = ("paused".parse().unwrap(), "other".parse().unwrap());
    assert_eq!(queue.parked(&paused).await.unwrap(), 0);
    queue.prepare_parking(&paused).await.unwrap();
    queue.prepare_parking(&paused).await.unwrap();
    let mut jobs: Vec<Job> = (0..30).map(|n| job("paused", n)).collect();
    jobs[7].attempt = 2;
    queue.enqueue(jobs.clone()).await.unwrap();
    let mut intake = lend(&queue).await;
    for _ in 0..30 {
        let (job, unsettled) = next(&mut intake).await.split();
        unsettled.park(job).await.unwrap();
    }
    assert_eq!(queue.parked(&paused).await.unwrap(), 30);
    assert_eq!(queue.parked(&other).await.unwrap(), 0);
    queue.enqueue(vec![job("other", 1)]).await.unwrap();
    let (passing, unsettled) = next(&mut intake).await.split();
    assert_eq!(passing.batch, other);
    unsettled.complete(results(&passing)).await.unwrap();

    let moved = timeout(PATIENCE, queue.unpark(&paused)).await.expect("an end in time").unwrap();
    assert_eq!((moved, queue.parked(&paused).await.unwrap()), (30, 0));
    let mut back = BTreeMap::new();
    while back.len() < 30 {
        let (job, unsettled) = next(&mut intake).await.split();
        unsettled.complete(results(&job)).await.unwrap();
        assert!(back.insert(job.id, job).is_none(), "a job came back twice");
    }
    // The lane's queue is the truth of where a job waits; everything else is as it was.
    for mut job in jobs {
        let back = &back[&job.id];
        (job.lane, job.traceparent) = (back.lane, back.traceparent);
        assert_eq!(*back, job);
    }
    // Nothing is left to put back, and a second time is no error.
    assert_eq!(timeout(PATIENCE, queue.unpark(&paused)).await.unwrap().unwrap(), 0);
}

/// A batch may be paused again after it went on.
pub async fn a_batch_can_be_paused_again(queue: Arc<dyn Queue>) {
    let paused: BatchName = "paused".parse().unwrap();
    let mut intake = lend(&queue).await;
    queue.enqueue(vec![job("paused", 1)]).await.unwrap();
    for _ in 0..2 {
        queue.prepare_parking(&paused).await.unwrap();
        let (job, unsettled) = next(&mut intake).await.split();
        unsettled.park(job).await.unwrap();
        assert_eq!(queue.parked(&paused).await.unwrap(), 1);
        assert_eq!(timeout(PATIENCE, queue.unpark(&paused)).await.expect("an end in time").unwrap(), 1);
    }
    let (job, unsettled) = next(&mut intake).await.split();
    unsettled.complete(results(&job)).await.unwrap();
}
