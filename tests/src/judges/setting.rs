//! The limit that a user of pixfleet writes for a judge, and the best that it allows.

use pixfleet_shared::{judge::best_utilisation, limiter::Limit};
use serde_json::Value;

/// A limit as it stands in the settings: what is not said is left to pixfleet's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// Calls in a window, or in flight.
    pub calls: u32,
    /// The window in milliseconds, where it is not a second.
    pub per_ms: Option<u64>,
    /// How the judge decides: the word of the settings.
    pub judge: &'static str,
    /// The judge's burst, where it has one.
    pub burst: Option<u32>,
}

impl Setting {
    /// A rate of `calls` in `per_ms` milliseconds.
    pub fn rate(calls: u32, per_ms: u64, judge: &'static str, burst: Option<u32>) -> Self {
        let per_ms = (per_ms != 1_000).then_some(per_ms);
        Self { name: "rate", calls, per_ms, judge, burst }
    }

    /// At most `calls` in flight.
    pub(crate) fn in_flight(calls: u32) -> Self {
        Self { name: "in-flight", calls, per_ms: None, judge: "concurrent", burst: None }
    }

    /// Whether it bounds the calls in flight, and not their rate.
    pub fn is_in_flight(&self) -> bool {
        self.judge == "concurrent"
    }

    /// The window, in microseconds. (An in-flight limit has none.)
    pub fn window_us(&self) -> u64 {
        self.per_ms.unwrap_or(1_000) * 1_000
    }

    /// Calls per second in the long run.
    pub fn rate_per_s(&self) -> f64 {
        f64::from(self.calls) * 1e6 / self.window_us() as f64
    }

    /// The line of `[providers.NAME]`.
    pub fn toml(&self) -> String {
        let fields: Vec<String> =
            self.fields().iter().map(|(key, value)| format!("{key} = {value}")).collect();
        format!("limits = [{{ {} }}]", fields.join(", "))
    }

    /// The share of the quota, 0 to 1, that pixfleet's spacing reaches at best: of nginx without burst for the jitter that
    /// the fleet had found out in the end, where it was adapted, else for the one that it begins with.
    pub fn best(&self, adapted_ms: Option<f64>) -> f64 {
        let burstless = self.judge == "leaky" && self.burst == Some(0);
        let jitter_ms = adapted_ms.filter(|_| burstless);
        best_utilisation(&Limit { jitter_ms, ..self.limit() })
    }

    /// The limit itself.
    pub(crate) fn limit(&self) -> Limit {
        let fields = self.fields().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        serde_json::from_value(Value::Object(fields)).unwrap()
    }

    /// A number or a plain text is written alike in JSON and TOML.
    fn fields(&self) -> Vec<(&'static str, Value)> {
        let said = [
            ("name", Some(self.name.into())),
            ("calls", Some(self.calls.into())),
            ("per_ms", self.per_ms.map(Value::from)),
            ("judge", Some(self.judge.into())),
            ("burst", self.burst.map(Value::from)),
        ];
        said.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_user_would_say_is_written() {
        assert_eq!(
            Setting::rate(10, 2_000, "sliding", None).toml(),
            r#"limits = [{ name = "rate", calls = 10, per_ms = 2000, judge = "sliding" }]"#
        );
        assert_eq!(
            Setting::in_flight(40).toml(),
            r#"limits = [{ name = "in-flight", calls = 40, judge = "concurrent" }]"#
        );
    }

    #[test]
    fn a_leaky_judge_without_burst_has_the_lowest_best() {
        assert!(Setting::rate(100, 1_000, "leaky", Some(0)).best(None) < 0.95);
        assert_eq!(Setting::rate(100, 1_000, "leaky", Some(10)).best(None), 1.0);
    }
}
