//! The tally: every row in exactly one place. Pure.

use std::time::Duration;

use pixfleet_shared::{batch::BatchName, job::Job};
use serde::Serialize;

use super::Order;
use crate::record::{Claim, Totals};

/// What became of the rows so far: `rows = images + duplicates + bad_rows`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Rows done with.
    pub rows: u64,
    /// Rows whose jobs are confirmed, by this run or an earlier one.
    pub images: u64,
    /// Rows that repeat an earlier row of this run.
    pub duplicates: u64,
    /// Rows left out.
    pub bad_rows: u64,
    /// Jobs that the queue confirmed to this run.
    pub enqueued: u64,
    /// Jobs that an earlier run had confirmed.
    pub already: u64,
    /// Results that the jobs of this run will have.
    pub results: u64,
}

/// What an enqueue did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The batch.
    pub batch: BatchName,
    /// The queue of its priority that it keeps to.
    pub lane: u8,
    /// What became of the rows; `results` count what this run added.
    #[serde(flatten)]
    pub tally: Tally,
    /// Distinct jobs of these rows: enqueued and already there.
    pub jobs: u64,
    /// Calls that this run added, when none has to be repeated.
    pub calls: u64,
    /// What those calls cost, in the provider's units.
    pub cost: f64,
    /// Jobs of the batch, over every run.
    pub batch_jobs: u64,
    /// Results of the batch to expect, over every run.
    pub batch_results: u64,
    /// How long it took.
    pub seconds: f64,
    /// Jobs a second that this run had confirmed.
    pub rate: f64,
}

impl Tally {
    pub(super) fn add(&mut self, more: Self) {
        self.rows += more.rows;
        self.images += more.images;
        self.duplicates += more.duplicates;
        self.bad_rows += more.bad_rows;
        self.enqueued += more.enqueued;
        self.already += more.already;
        self.results += more.results;
    }

    pub(super) fn of_bad_rows(bad_rows: u64) -> Self {
        Self { rows: bad_rows, bad_rows, ..Self::default() }
    }
}

impl Summary {
    pub(super) fn of(order: &Order, lane: u8, tally: Tally, totals: Totals, took: Duration) -> Self {
        let seconds = took.as_secs_f64();
        Self {
            batch: order.batch.clone(),
            lane,
            jobs: tally.enqueued + tally.already,
            calls: tally.enqueued,
            cost: order.plan.cost(tally.enqueued, tally.results),
            batch_jobs: totals.jobs,
            batch_results: totals.results,
            seconds,
            rate: if seconds > 0.0 { tally.enqueued as f64 / seconds } else { 0.0 },
            tally,
        }
    }
}

/// Counts a chunk whose images stand for `calls_per_image` jobs each, and keeps the jobs that are fresh.
///
/// An image of which a kill left half the jobs unconfirmed has some that are already there and some that are fresh.
pub(super) fn sort_out(jobs: Vec<Job>, claims: &[Claim], calls_per_image: usize) -> (Tally, Vec<Job>) {
    let count = |wanted: Claim| claims.iter().filter(|claim| **claim == wanted).count() as u64;
    let images = claims.chunks(calls_per_image.max(1));
    let (rows, duplicates) = images.fold((0, 0), |(rows, duplicates), claims| {
        let repeated = claims.iter().all(|claim| *claim == Claim::Duplicate);
        (rows + 1, duplicates + u64::from(repeated))
    });
    let already = count(Claim::Already);
    let fresh: Vec<Job> = jobs
        .into_iter()
        .zip(claims)
        .filter_map(|(job, claim)| (*claim == Claim::Fresh).then_some(job))
        .collect();
    let tally = Tally {
        rows,
        images: rows - duplicates,
        duplicates,
        bad_rows: 0,
        enqueued: fresh.len() as u64,
        already,
        results: fresh.iter().map(|job| job.models.len() as u64).sum(),
    };
    (tally, fresh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Claim::{Already, Duplicate, Fresh};
    use pixfleet_shared::job::{Image, Source};

    fn jobs(count: usize) -> Vec<Job> {
        let job = |n: usize| {
            let image = Image { id: n.to_string(), source: Source::Url("https://e.com/".into()) };
            Job::new("b".parse().unwrap(), image, "p".into(), vec!["a".into(), "b".into()])
        };
        (0..count).map(job).collect()
    }

    #[test]
    fn an_image_that_a_kill_left_half_done_counts_once_and_only_its_rest_is_enqueued() {
        let (tally, fresh) = sort_out(jobs(6), &[Already, Fresh, Duplicate, Duplicate, Fresh, Fresh], 2);
        let expected =
            Tally { rows: 3, images: 2, duplicates: 1, bad_rows: 0, enqueued: 3, already: 1, results: 6 };
        assert_eq!(tally, expected);
        assert_eq!(fresh.iter().map(|job| job.image.id.as_str()).collect::<Vec<_>>(), ["1", "4", "5"]);
    }
}
