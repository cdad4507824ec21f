//! The sandbox as a judge: what suits it, and its access log.

use pixfleet_sandbox::{Judging, Latency, Outcome, Rule, Running, Sandbox, Settings};
use tokio::net::TcpListener;

use super::{Call, Setting};
use crate::fleet::KEY;

/// Starts a sandbox that takes about `latency_ms` and judges so.
pub(crate) async fn start(judging: Judging, latency_ms: u32) -> Running {
    let settings = Settings {
        keys: vec![KEY.into()],
        judging,
        latency: Latency::Lognormal { mean_ms: f64::from(latency_ms), sigma: 0.1 },
        access_tail: 1_000_000,
        ..Settings::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Sandbox::start(listener, settings).unwrap()
}

/// A rule of `limit` calls a second.
pub fn judging(rule: Rule, limit: u32) -> Judging {
    Judging { rule, limit, ..Judging::default() }
}

pub(crate) fn setting(judging: &Judging) -> Setting {
    let Judging { rule, limit, window_ms, .. } = *judging;
    let rate = |judge, burst| Setting::rate(limit, window_ms, judge, burst);
    match rule {
        Rule::Sliding => rate("sliding", None),
        Rule::Fixed => rate("fixed", None),
        Rule::Bucket { burst } => rate("bucket", Some(burst)),
        Rule::Leaky { burst } => rate("leaky", Some(burst)),
        Rule::Concurrent => Setting::in_flight(limit),
        Rule::None => panic!("a sandbox without a rule judges nobody"),
    }
}

pub(crate) fn named(judging: &Judging) -> String {
    let limit = judging.limit;
    match judging.rule {
        Rule::None => "none".to_owned(),
        Rule::Sliding => format!("sliding {limit}/s"),
        Rule::Fixed => format!("fixed {limit}/s"),
        Rule::Bucket { burst } => format!("bucket {limit}/s burst {burst}"),
        Rule::Leaky { burst } => format!("leaky {limit}/s burst {burst}"),
        Rule::Concurrent => format!("concurrent {limit}"),
    }
}

/// Every call that reached the judge; one without a good key did not.
pub(crate) async fn calls(sandbox: &Running) -> Vec<Call> {
    let lines = sandbox.access().await;
    let judged = lines.iter().filter(|line| line.outcome != Outcome::Rejected);
    judged
        .map(|line| Call {
            at_us: line.at_us,
            until_us: line.at_us + line.duration_us,
            passed: line.outcome != Outcome::Throttled,
        })
        .collect()
}
