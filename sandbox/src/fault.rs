//! What goes wrong with an accepted call, and how long it takes: drawn from the seed and the call's number alone.

use std::fmt;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rand_distr::LogNormal;
use serde::{Deserialize, Serialize};

use crate::settings::{Latency, Settings};

/// A way in which an accepted call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fault {
    /// Answered with status 500.
    #[serde(rename = "fault_500")]
    Error500,
    /// Never answered.
    #[serde(rename = "fault_hang")]
    Hang,
    /// Half a body, then the connection is closed.
    #[serde(rename = "fault_cut")]
    Cut,
    /// Served, then the connection is closed without an answer.
    #[serde(rename = "fault_drop")]
    Drop,
    /// Status 200 and a body that is not JSON.
    #[serde(rename = "fault_malformed")]
    Malformed,
    /// Status 200 and a body without end in sight.
    #[serde(rename = "fault_huge")]
    Huge,
}

impl Fault {
    /// Whether the call is charged all the same: the API did its work, only the answer went wrong.
    pub fn is_charged(self) -> bool {
        self != Self::Error500
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error500 => "fault_500",
            Self::Hang => "fault_hang",
            Self::Cut => "fault_cut",
            Self::Drop => "fault_drop",
            Self::Malformed => "fault_malformed",
            Self::Huge => "fault_huge",
        })
    }
}

/// What is in store for one accepted call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fate {
    pub(crate) latency: Duration,
    pub(crate) fault: Option<Fault>,
    /// A number of the call's own, for the identifiers in its answer.
    pub(crate) mark: u128,
}

/// The fate of the `number`-th accepted call.
pub(crate) fn fate(settings: &Settings, number: u64) -> Fate {
    // The odd constant spreads neighbouring numbers over all seeds.
    let mut rng =
        Xoshiro256PlusPlus::seed_from_u64(settings.faults.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut left: f64 = rng.random();
    let fault = settings.faults.odds().into_iter().find_map(|(fault, odds)| {
        left -= odds;
        (left < 0.0).then_some(fault)
    });
    let latency = match settings.latency {
        Latency::Constant { ms } => Duration::from_millis(ms),
        Latency::Lognormal { mean_ms, sigma } => lognormal(&mut rng, mean_ms, sigma),
    };
    Fate { latency, fault, mark: rng.random() }
}

fn lognormal(rng: &mut Xoshiro256PlusPlus, mean_ms: f64, sigma: f64) -> Duration {
    // The mean of a log-normal is exp(mu + sigma^2 / 2).
    let mu = mean_ms.ln() - sigma * sigma / 2.0;
    let ms = LogNormal::new(mu, sigma).map_or(mean_ms, |spread| rng.sample(spread));
    Duration::try_from_secs_f64(ms / 1_000.0)
        .unwrap_or(Duration::from_secs(3_600))
        .min(Duration::from_secs(3_600))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Faults;

    #[test]
    fn a_seed_gives_the_same_faults_again_and_another_seed_others() {
        let faults = |seed| {
            let settings = Settings {
                faults: Faults { cut: 0.3, drop: 0.3, seed, ..Faults::default() },
                ..Settings::default()
            };
            (0..200).map(|n| fate(&settings, n).fault).collect::<Vec<_>>()
        };
        assert_eq!(faults(7), faults(7));
        assert_ne!(faults(7), faults(8));
    }

    #[test]
    fn each_fault_comes_as_often_as_it_was_ordered() {
        let faults = Faults {
            error_500: 0.1,
            hang: 0.05,
            cut: 0.2,
            drop: 0.15,
            malformed: 0.1,
            huge: 0.1,
            ..Faults::default()
        };
        let settings = Settings { faults, ..Settings::default() };
        let drawn: Vec<_> = (0..20_000).map(|n| fate(&settings, n).fault).collect();
        for (fault, odds) in settings.faults.odds() {
            let share = drawn.iter().filter(|&&f| f == Some(fault)).count() as f64 / 20_000.0;
            assert!((share - odds).abs() < 0.015, "{fault}: {share} for {odds}");
        }
    }

    #[test]
    fn the_lognormal_latency_has_the_mean_that_was_ordered() {
        let settings =
            Settings { latency: Latency::Lognormal { mean_ms: 50.0, sigma: 0.5 }, ..Settings::default() };
        let total: f64 = (0..20_000).map(|n| fate(&settings, n).latency.as_secs_f64()).sum();
        let mean_ms = total / 20.0;
        assert!((48.0..52.0).contains(&mean_ms), "{mean_ms}");
    }
}
