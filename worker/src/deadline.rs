//! A job's deadline: after it no call is made for the job, and none is waited for.

use jiff::Timestamp;
use pixfleet_shared::{job::Job, queue::Reason};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::{conclude::conclude_given_up, crew::Serving, step::Early};

/// When the job's time is over, on this process's clock; none where it has all the time.
pub(crate) fn of(serving: &Serving, job: &Job) -> Option<Instant> {
    let left = serving.retry.deadline(job)?.duration_since(Timestamp::now());
    let now = Instant::now();
    // One that has passed is now: nothing is before it.
    left.try_into().ok().map_or(Some(now), |left| now.checked_add(left))
}

/// Whether there is still time for a call; else the job ends here.
pub(crate) fn check(serving: &Serving, job: &Job) -> Result<(), Early> {
    match serving.retry.deadline(job) {
        Some(deadline) if deadline <= Timestamp::now() => Err(missed(serving, job)),
        _ => Ok(()),
    }
}

/// The job ends without a call: it would come too late.
pub(crate) fn missed(serving: &Serving, job: &Job) -> Early {
    let deadline = serving.retry.deadline(job).map(|deadline| format!(" of {deadline:.0}"));
    let why = format!("no call could leave before the deadline{}", deadline.unwrap_or_default());
    info!(why, "no call was made");
    Box::new(conclude_given_up(job.clone(), Reason::DeadlinePassed, &why))
}

/// Ends at the deadline; never where there is none.
pub(crate) async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
