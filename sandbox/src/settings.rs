//! What the sandbox is told to be: every field has a default, and its unit is in its name or its first sentence.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// The models that Restb's own client library names.
const RESTB_MODELS: [&str; 6] = [
    "re_roomtype_global_v2",
    "re_exterior_styles",
    "re_features_v4",
    "re_logo",
    "re_compliance_v2",
    "re_condition_r1r6_global",
];

/// Everything that a sandbox can be told; the default is an obliging API: no limit, no delay, no fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The keys that are let in. Default: empty, which lets any non-empty key in.
    pub keys: Vec<String>,
    /// The models that the Restb contract knows; `["*"]` knows every name. Default: the six of the vendor's client
    /// library. (The other contracts know every model whose name does not begin with `unknown`.)
    pub restb_models: Vec<String>,
    /// How long an accepted call takes. Default: no time.
    pub latency: Latency,
    /// Who decides that a key is over its rate. Default: nobody.
    pub judging: Judging,
    /// What a throttled call is told about when to come back. Default: nothing.
    pub retry_after: RetryAfter,
    /// The HTTP status of a throttled call, 200 to 599. Default: 429. (Restb's `error_id "005"` is in the body whatever the status.)
    pub throttle_status: u16,
    /// What one call counts for, at the judge and on the bill. Default: one a call.
    pub cost: Cost,
    /// How often, and how, an accepted call goes wrong. Default: never.
    pub faults: Faults,
    /// Where the access log is written, one JSON object a line, appended. Default: nowhere.
    pub access_log: Option<PathBuf>,
    /// How many of the newest access lines stay in memory. Default: 10,000.
    pub access_tail: usize,
    /// The biggest request body that is read, in bytes; a bigger one is refused. Default: 32 MiB.
    pub max_body_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            restb_models: RESTB_MODELS.map(String::from).to_vec(),
            latency: Latency::default(),
            judging: Judging::default(),
            retry_after: RetryAfter::None,
            throttle_status: 429,
            cost: Cost::PerCall,
            faults: Faults::default(),
            access_log: None,
            access_tail: 10_000,
            max_body_bytes: 32 << 20,
        }
    }
}

/// How long an accepted call takes before its answer leaves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Latency {
    /// Always the same.
    Constant {
        /// Milliseconds.
        ms: u64,
    },
    /// Log-normal: most calls are near the mean, a few take much longer.
    Lognormal {
        /// The mean, in milliseconds.
        mean_ms: f64,
        /// The standard deviation of the logarithm; 0.3 is a calm API, 1 a wild one.
        sigma: f64,
    },
}

impl Default for Latency {
    fn default() -> Self {
        Self::Constant { ms: 0 }
    }
}

/// The judge and what it allows; each key is judged on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Judging {
    /// The way of judging. Default: `none`.
    pub rule: Rule,
    /// How much may pass in a window, or be in flight under `concurrent`, 1 to 1,000,000. Default: 1.
    pub limit: u32,
    /// The window, in milliseconds, up to a day. Default: 1,000.
    pub window_ms: u64,
    /// Whether a refused call counts, too, so that a retry storm never recovers (`sliding` and `bucket`; it changes
    /// nothing at the others). Default: no.
    pub count_refused: bool,
}

impl Default for Judging {
    fn default() -> Self {
        Self { rule: Rule::None, limit: 1, window_ms: 1_000, count_refused: false }
    }
}

/// The ways of judging that image APIs and their gateways use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// Everything passes.
    None,
    /// At most `limit` in each window of the wall clock.
    Fixed,
    /// At most `limit` in any window, wherever it begins.
    Sliding,
    /// A token bucket that holds `burst` tokens and gains `limit` a window.
    Bucket {
        /// Tokens of a full bucket, at least 1.
        burst: u32,
    },
    /// nginx `limit_req rate=<limit a window> burst=<burst> nodelay`, to its millisecond clock.
    Leaky {
        /// Calls that may come early; 0 is nginx without `burst`.
        burst: u32,
    },
    /// At most `limit` calls in flight.
    Concurrent,
}

/// What a throttled answer says about when to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// No `Retry-After`.
    None,
    /// `Retry-After: <whole seconds>`, rounded up.
    Seconds,
    /// `Retry-After: <HTTP date>`, rounded up to the next second.
    HttpDate,
}

/// What one call counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cost {
    /// One, however many models it asks.
    PerCall,
    /// One for each model that it asks.
    PerModel,
}

impl Cost {
    pub(crate) fn of(self, models: usize) -> u32 {
        match self {
            Self::PerCall => 1,
            Self::PerModel => u32::try_from(models.max(1)).unwrap_or(u32::MAX),
        }
    }
}

/// How often an accepted call goes wrong, as probabilities that add up to at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Answered with status 500, and not charged. Default: 0.
    pub error_500: f64,
    /// Never answered: the connection stays open for `hang_ms`. Default: 0.
    pub hang: f64,
    /// Answered with half a body, then the connection is closed. Default: 0.
    pub cut: f64,
    /// Served and charged, then the connection is closed without an answer. Default: 0.
    pub drop: f64,
    /// Answered with status 200 and a body that is not JSON. Default: 0.
    pub malformed: f64,
    /// Answered with status 200 and a chunked body of `huge_bytes`. Default: 0.
    pub huge: f64,
    /// The n-th accepted call's fate and latency follow from this number alone. Default: 0.
    pub seed: u64,
    /// How long a `hang` keeps the connection open, in milliseconds. Default: 600,000.
    pub hang_ms: u64,
    /// The size of a `huge` body, in bytes. Default: 64 MiB.
    pub huge_bytes: u64,
}

impl Default for Faults {
    fn default() -> Self {
        let (error_500, hang, cut, drop, malformed, huge) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
        Self { error_500, hang, cut, drop, malformed, huge, seed: 0, hang_ms: 600_000, huge_bytes: 64 << 20 }
    }
}

impl Faults {
    pub(crate) fn odds(&self) -> [(Fault, f64); 6] {
        [
            (Fault::Error500, self.error_500),
            (Fault::Hang, self.hang),
            (Fault::Cut, self.cut),
            (Fault::Drop, self.drop),
            (Fault::Malformed, self.malformed),
            (Fault::Huge, self.huge),
        ]
    }
}

impl Settings {
    /// Everything that is wrong with the settings, one sentence each; empty when they can be served.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut demand = |holds: bool, problem: String| {
            if !holds {
                found.push(problem);
            }
        };
        let Judging { rule, limit, window_ms, .. } = self.judging;
        demand((1..=1_000_000).contains(&limit), format!("judging.limit is {limit}; give 1 to 1000000"));
        demand(
            (1..=86_400_000).contains(&window_ms),
            format!("judging.window_ms is {window_ms}; give 1 to 86400000"),
        );
        demand(
            rule != Rule::Bucket { burst: 0 },
            "judging.rule.burst is 0; a bucket needs at least 1".into(),
        );
        let status = self.throttle_status;
        demand((200..=599).contains(&status), format!("throttle_status is {status}; give 200 to 599"));
        for (fault, odds) in self.faults.odds() {
            demand((0.0..=1.0).contains(&odds), format!("the odds of fault {fault} are {odds}; give 0 to 1"));
        }
        let sum: f64 = self.faults.odds().iter().map(|(_, odds)| odds).sum();
        demand(sum <= 1.0 + 1e-9, format!("the odds of all faults add up to {sum}; they may reach 1"));
        if let Latency::Lognormal { mean_ms, sigma } = self.latency {
            demand(
                mean_ms.is_finite() && mean_ms > 0.0,
                format!("latency.mean_ms is {mean_ms}; give more than 0"),
            );
            demand((0.0..=5.0).contains(&sigma), format!("latency.sigma is {sigma}; give 0 to 5"));
        }
        demand(!self.keys.iter().any(String::is_empty), "keys holds an empty key; remove it".into());
        demand(
            !self.restb_models.is_empty(),
            "restb_models is empty; name models, or [\"*\"] for all".into(),
        );
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_settings_have_no_problem() {
        assert_eq!(Settings::default().problems(), Vec::<String>::new());
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let settings = Settings {
            throttle_status: 42,
            judging: Judging { rule: Rule::Bucket { burst: 0 }, limit: 0, ..Judging::default() },
            faults: Faults { cut: 0.7, drop: 0.7, hang: f64::NAN, ..Faults::default() },
            ..Settings::default()
        };
        let problems = settings.problems().join("\n");
        for word in ["limit is 0", "burst is 0", "throttle_status is 42", "fault_hang are NaN"] {
            assert!(problems.contains(word), "{word} is missing in:\n{problems}");
        }
    }

    #[test]
    fn settings_survive_json_and_an_unknown_field_is_refused() {
        let settings = Settings {
            judging: Judging { rule: Rule::Bucket { burst: 20 }, limit: 200, ..Judging::default() },
            latency: Latency::Lognormal { mean_ms: 50.0, sigma: 0.3 },
            ..Settings::default()
        };
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
        let error = serde_json::from_str::<Settings>(r#"{"latncy": {}}"#).unwrap_err().to_string();
        assert!(error.contains("latncy"), "{error}");
    }
}
