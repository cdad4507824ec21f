//! What it costs to send dead letters again, by provider. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pixfleet_shared::job::Job;
use pixfleet_worker::provider::Catalog;
use serde::Serialize;

use super::look::{Reasons, in_words};
use crate::words::{count, number};

/// What is meant, and what it costs.
#[derive(Debug, Default, Serialize)]
pub(super) struct Estimate {
    /// Jobs that would be sent again.
    pub(super) jobs: u64,
    /// Messages that are no jobs, and stay where they are.
    pub(super) unreadable: u64,
    /// Jobs whose deadline has passed: no call would be made for them.
    pub(super) too_late: u64,
    /// How many of each reason.
    pub(super) reasons: Reasons,
    /// What the jobs ask of each provider.
    pub(super) providers: BTreeMap<String, Share>,
}

/// What the jobs ask of one provider.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Share {
    /// A call each, where none has to be repeated.
    pub(super) calls: u64,
    /// Results.
    pub(super) models: u64,
    /// What the calls cost; none where the settings do not name the provider.
    pub(super) price: Option<f64>,
    /// In what.
    pub(super) currency: Option<String>,
}

impl Estimate {
    /// Counts one job, as it would be sent.
    pub(super) fn count(&mut self, job: &Job, catalog: &Catalog, now: Timestamp) {
        self.jobs += 1;
        self.too_late += u64::from(job.deadline.is_some_and(|deadline| deadline <= now));
        let share = self.providers.entry(job.provider.clone()).or_default();
        share.calls += 1;
        share.models += job.models.len() as u64;
        if let Ok(provider) = catalog.get(&job.provider) {
            let tariff = provider.tariff();
            *share.price.get_or_insert(0.0) += tariff.of_call(job.models.len());
            share.currency.get_or_insert_with(|| tariff.currency.clone());
        }
    }

    /// In words.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n", in_words(&self.reasons));
        for (name, share) in &self.providers {
            let Share { calls, models, price, currency } = share;
            let price = match (price, currency) {
                (Some(price), Some(currency)) => format!("{} {currency}", number(*price)),
                _ => "at a price that the settings do not say: they name no such provider".to_owned(),
            };
            text += &format!("{name}: {} calls, {} results, {price}\n", count(*calls), count(*models));
        }
        for (n, what) in [
            (self.unreadable, "no job, and stay where they are"),
            (self.too_late, "too late: their deadline has passed (--no-deadline)"),
        ] {
            if n > 0 {
                text += &format!("{} of them are {what}\n", count(n));
            }
        }
        text
    }
}
