//! When a failed job is tried again. Pure: the randomness comes in as a number.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How often, and how patiently, a failed call is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Calls that a job may spend before it becomes a dead letter, 1 to 100. A 429 or a pause is not one. Default: 5.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// The longest first pause, in milliseconds; each further one may be twice as long. Default: 1000.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub base_ms: u64,
    /// The longest pause of all, in milliseconds. Default: 600000.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub cap_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { attempts: 5, base_ms: 1_000, cap_ms: 600_000 }
    }
}

impl Policy {
    /// The pause after the failed attempt number `attempt` (from 1), or `None` when it was the last.
    ///
    /// Full jitter: `random` (0..1) picks from nothing up to the exponential ceiling, so that jobs that failed
    /// together do not come back together.
    pub fn after(&self, attempt: u32, random: f64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let doubled = self.base_ms.saturating_mul(1 << attempt.saturating_sub(1).min(32));
        let ceiling = Duration::from_millis(doubled.min(self.cap_ms));
        Some(ceiling.mul_f64(random.clamp(0.0, 1.0)).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_attempt_has_no_further_pause() {
        let policy = Policy { attempts: 3, ..Policy::default() };
        assert!(policy.after(1, 0.5).is_some() && policy.after(2, 0.5).is_some());
        assert_eq!(policy.after(3, 0.5), None);
    }

    #[test]
    fn the_ceiling_doubles_until_the_cap() {
        let policy = Policy { attempts: 100, base_ms: 1_000, cap_ms: 5_000 };
        let ceilings: Vec<u128> =
            (1..6).filter_map(|n| policy.after(n, 1.0)).map(|d| d.as_millis()).collect();
        assert_eq!(ceilings, [1_000, 2_000, 4_000, 5_000, 5_000]);
    }

    proptest! {
        #[test]
        fn a_pause_is_never_nothing_and_never_above_the_cap(attempt in 1u32..99, random in 0.0f64..1.0) {
            let policy = Policy { attempts: 100, ..Policy::default() };
            let pause = policy.after(attempt, random).unwrap();
            prop_assert!(pause >= Duration::from_millis(1) && pause <= Duration::from_millis(policy.cap_ms));
        }
    }
}
