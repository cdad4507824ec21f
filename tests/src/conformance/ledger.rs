//! The promises of a ledger. `fleet` is two or more clients of one ledger, as processes of one fleet are.

use jiff::Timestamp;
use pixfleet_shared::{
    batch::Tally,
    id::Id,
    job::{Image, Job, Source},
    ledger::{End, Intent, Known, Ledger, Mark},
};

/// A job that no other test of the server knows.
pub fn job(test: &str, n: u8) -> Job {
    let image = Image { id: format!("{test}-{n}"), source: Source::Url("http://images.example/".into()) };
    Job::new(test.replace("::", "-").parse().unwrap(), image, "p".into(), vec!["m".into()])
}

/// A call of the job's turn.
pub fn intent(job: &Job) -> Intent {
    Intent {
        call: Id::of(&[&job.id.to_bytes(), &job.turn().to_be_bytes()]),
        job: job.id,
        batch: job.batch.clone(),
        image: job.image.id.clone(),
        provider: job.provider.clone(),
        account: "p".into(),
        models: job.models.clone(),
        turn: job.turn(),
        ambiguous: job.ambiguous,
        cost_micros: 2_500,
        currency: "USD".into(),
        worker: "w".into(),
        leaves_at: Timestamp::now(),
        lasts_ms: 60_000,
    }
}

/// The end of the job's turn.
pub fn mark(job: &Job, end: End) -> Mark {
    let tally = Tally { ok: 1, ..Tally::default() };
    Mark { job: job.id, batch: job.batch.clone(), turn: job.turn(), tally, end }
}

/// What one client says to be settled, every client knows; of other jobs nothing is known.
pub async fn a_settled_job_is_known_to_every_client(test: &str, fleet: &[&dyn Ledger]) {
    let (settled, other) = (job(test, 1), job(test, 2));
    for client in fleet {
        assert_eq!(client.take_up(&settled).await.unwrap().known, Known::Clear);
        client.let_go(&settled);
    }
    fleet[0].settled(mark(&settled, End::Done));
    fleet[0].flush().await;
    for client in fleet {
        assert_eq!(client.depart(&intent(&settled)).await.unwrap(), Known::Over);
        assert_eq!(client.take_up(&other).await.unwrap().known, Known::Clear);
    }
}

/// Saying it twice, from whichever client, is no error and changes nothing.
pub async fn a_job_may_be_settled_twice(test: &str, fleet: &[&dyn Ledger]) {
    let settled = job(test, 3);
    for client in fleet {
        client.settled(mark(&settled, End::Done));
        client.flush().await;
    }
    assert_eq!(fleet[0].take_up(&settled).await.unwrap().known, Known::Over);
}

/// A question changes nothing: a job that was only looked at is clear for the next one who asks.
pub async fn a_question_settles_nothing(test: &str, fleet: &[&dyn Ledger]) {
    for client in fleet {
        assert_eq!(client.take_up(&job(test, 4)).await.unwrap().known, Known::Clear);
    }
}
