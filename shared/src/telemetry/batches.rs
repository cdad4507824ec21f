//! Calls by batch: batches come and go, and each would leave a series for ever, so only the first ones have their own.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use crate::batch::BatchName;

/// Batches of a process that have a series of their own.
const MOST: usize = 100;
/// The series of all others. No batch can have this name.
const OTHERS: &str = "(others)";

/// The batch of a series.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct BatchLabel {
    /// Its name, or `(others)`.
    pub batch: String,
}

/// Calls by batch: `pixfleet_calls_by_batch_total`.
#[derive(Debug, Default)]
pub struct CallsByBatch {
    pub(super) family: Family<BatchLabel, Counter>,
    own: Mutex<HashSet<BatchName>>,
}

impl CallsByBatch {
    /// Counts a call.
    pub fn count(&self, batch: &BatchName) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.len() < MOST && !own.contains(batch) {
            own.insert(batch.clone());
        }
        let name = if own.contains(batch) { batch.as_str() } else { OTHERS };
        self.family.get_or_create(&BatchLabel { batch: name.to_owned() }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn a_hundred_batches_have_their_own_series_and_the_others_share_one() {
        let metrics = Metrics::new();
        for n in 0..1_000 {
            metrics.calls_by_batch.count(&format!("b{n}").parse().unwrap());
        }
        metrics.calls_by_batch.count(&"b7".parse().unwrap());
        let text = metrics.render();
        assert_eq!(text.matches("pixfleet_calls_by_batch_total{").count(), MOST + 1);
        assert!(text.contains("pixfleet_calls_by_batch_total{batch=\"b7\"} 2"), "{text}");
        assert!(text.contains("pixfleet_calls_by_batch_total{batch=\"(others)\"} 900"), "{text}");
    }
}
