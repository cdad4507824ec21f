//! Where a stack stands: what people and scripts are shown of it.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    limit::{Limit, MICRO, Quota},
    quota::{Count, NEVER_US, Windows, zone},
};

/// What is used of a stack, and what holds it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// The stack.
    pub stack: String,
    /// The limiter's clock when it was looked at.
    pub at: Timestamp,
    /// Who paused it, if somebody did.
    pub paused: Option<String>,
    /// The end of the hold-off, where there is one.
    pub held_until: Option<Timestamp>,
    /// Whether the call after a hold-off is still awaited.
    pub probing: bool,
    /// Calls granted since the limiter knows the stack, where it counts them.
    pub calls: Option<u64>,
    /// The arrival jitter that is allowed for, in milliseconds, where one was adapted.
    pub jitter_ms: Option<f64>,
    /// The largest jitter that a worker measured in the last minute, in milliseconds.
    pub measured_jitter_ms: Option<f64>,
    /// Rates and quotas, in the stack's order. One that was never used is missing.
    pub used: Vec<Used>,
    /// Limits on calls in flight.
    pub in_flight: Vec<InFlight>,
}

/// What is used of one rate or quota.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Used {
    /// The limit.
    pub limit: String,
    /// Units used in the present window of a quota.
    pub units: Option<f64>,
    /// When a rate is back on pace, where that is later than now: so far ahead slots are booked.
    pub booked_until: Option<Timestamp>,
    /// When a quota's window ends.
    pub resets_at: Option<Timestamp>,
}

/// The calls in flight under one limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InFlight {
    /// The limit.
    pub limit: String,
    /// Calls that the processes may have under way, in sum.
    pub calls: u32,
    /// Processes that have a share.
    pub processes: u32,
}

impl Used {
    pub(crate) fn of_rate(limit: &str, tat_us: u64, now_us: u64) -> Self {
        let booked_until = if tat_us > now_us { moment(tat_us) } else { None };
        Self { limit: limit.to_owned(), units: None, booked_until, resets_at: None }
    }

    pub(crate) fn of_quota(limit: &Limit, quota: Quota, count: Count, now_us: u64) -> Self {
        // A count of a window that is over says what was used ahead of the present one, or nothing.
        let zone = zone(limit.zone.as_deref()).unwrap_or(jiff::tz::TimeZone::UTC);
        let windows = Windows::around(quota, &zone, now_us);
        let used = match count {
            Count { start_us, used, .. } if start_us == windows.start_us => used,
            Count { end_us, next, .. } if end_us == windows.start_us => next,
            _ => 0,
        };
        let resets_at = if windows.end_us == NEVER_US { None } else { moment(windows.end_us) };
        Self {
            limit: limit.name.clone(),
            units: Some(used as f64 / MICRO as f64),
            booked_until: None,
            resets_at,
        }
    }
}

fn moment(us: u64) -> Option<Timestamp> {
    i64::try_from(us).ok().and_then(|us| Timestamp::from_microsecond(us).ok())
}
