//! When a batch will be done at best: what is left of it, under the limits in force and what is used of them.

use jiff::Timestamp;
use pixfleet_producer::record::provider_of;
use pixfleet_shared::{
    batches::Hold,
    embedded::{BatchCounts, Embedded},
    foresight::Foresight,
    limiter::LimiterError,
};
use pixfleet_worker::provider::Catalog;
use serde::Serialize;

use crate::{limits::shown::foresight, words};

/// When a batch will be done.
#[derive(Debug, Serialize)]
pub(super) struct Ending {
    pub(super) batch: String,
    pub(super) provider: String,
    /// Jobs that are left: calls, where none has to be repeated.
    pub(super) jobs: u64,
    /// Who paused it: then it is as if it were resumed now.
    pub(super) paused: Option<String>,
    #[serde(flatten)]
    pub(super) time: Foresight,
}

/// The endings of the batches that are under way, and whose provider is in the settings.
///
/// # Errors
/// When the state file can't be read.
pub(super) async fn foreseen(
    embedded: &Embedded,
    batches: &[BatchCounts],
    catalog: &Catalog,
) -> anyhow::Result<Vec<Ending>> {
    let limiter = embedded.limiter();
    let mut endings = Vec::new();
    for counts in batches {
        let jobs = counts.jobs.saturating_sub(counts.ended + counts.dead_letters);
        let recorded = provider_of(embedded.store(), &counts.batch).await?;
        let of_calls = counts.calls.first().map(|calls| calls.provider.clone());
        let provider = recorded.or(of_calls).and_then(|name| catalog.get(&name).ok());
        // The rest of a cancelled one is settled without a call.
        let calls = counts.held.as_ref().is_none_or(|held| held.hold != Hold::Cancelled);
        let (Some(provider), true) = (provider, jobs > 0 && calls) else { continue };
        // As its jobs are in the mean: those of one batch ask the same.
        let models = usize::try_from(counts.expected.div_ceil(counts.jobs.max(1))).unwrap_or(1).max(1);
        let weight = provider.weight(models, 0);
        let (time, _, paused) = match foresight(limiter.as_ref(), provider, weight, jobs).await {
            Ok(seen) => seen,
            // The settings have changed since: no such call could ever leave, and there is no end to tell.
            Err(LimiterError::Impossible { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let (provider, held) = (provider.name().to_owned(), counts.held.as_ref());
        let paused = held.map(|held| held.by.clone()).or(paused);
        endings.push(Ending { batch: counts.batch.clone(), provider, jobs, paused, time });
    }
    Ok(endings)
}

impl Ending {
    /// In words.
    pub(super) fn line(&self, now: Timestamp) -> String {
        let pause = match &self.paused {
            Some(by) => format!("paused by {by}; if it were resumed now, "),
            None => String::new(),
        };
        let noun = if self.jobs == 1 { "job is" } else { "jobs are" };
        format!("  {} {noun} left: {pause}{}", words::count(self.jobs), words::foresight(&self.time, now))
    }
}
