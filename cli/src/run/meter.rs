//! What the worker of a run has done so far: read off its metrics.

use pixfleet_shared::telemetry::{CallLabels, ProviderLabel};
use pixfleet_worker::{Board, provider::Provider};

/// The classes of a call that reached the API, or may have.
const CLASSES: [&str; 6] = ["ok", "throttled", "transient", "rejected", "unauthorized", "ambiguous"];

/// Which provider is looked at.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    provider: String,
    currency: String,
    price: f64,
    limit_per_s: Option<f64>,
}

/// The worker's figures since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reading {
    /// Calls that ended.
    pub(super) calls: u64,
    /// Answers of "over the limit".
    pub(super) throttled: u64,
    /// Calls under way.
    pub(super) in_flight: i64,
    /// What the calls cost, in the provider's units.
    pub(super) cost: f64,
}

impl Meter {
    /// A meter of `provider`, whose calls ask `models` models each.
    pub(super) fn new(provider: &Provider, models: u32) -> Self {
        let tariff = provider.tariff();
        Self {
            provider: provider.name().to_owned(),
            currency: tariff.currency.clone(),
            price: tariff.price,
            limit_per_s: provider.rate_per_s(provider.weight(models as usize, 0)),
        }
    }

    /// The figures now.
    pub(super) fn read(&self, board: &Board) -> Reading {
        let metrics = &board.metrics;
        let calls =
            |class| metrics.calls.get_or_create(&CallLabels { provider: self.provider.clone(), class }).get();
        Reading {
            calls: CLASSES.into_iter().map(calls).sum(),
            throttled: calls("throttled"),
            in_flight: metrics.in_flight.get(),
            cost: metrics.cost.get_or_create(&ProviderLabel { provider: self.provider.clone() }).get(),
        }
    }

    pub(super) fn limit_per_s(&self) -> Option<f64> {
        self.limit_per_s
    }

    pub(super) fn has_a_price(&self) -> bool {
        self.price > 0.0
    }

    pub(super) fn currency(&self) -> &str {
        &self.currency
    }
}
