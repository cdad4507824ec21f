//! An explanation in words.

mod rates;

use jiff::Timestamp;
use pixfleet_shared::limiter::{Judge, Kind, Quota, Unit};

use super::explain::{Explained, ExplainedLimit, ExplainedStack};
use crate::words::{self, count, entry, number, span};

/// What stands before the entries of a limit.
const LABEL: usize = 18;

/// The whole text, with its line ends.
pub(super) fn text(explained: &Explained, now: Timestamp, terminal: Option<u16>) -> String {
    let Explained { provider, about, models_per_call, .. } = explained;
    let models =
        if *models_per_call == 1 { "1 model".to_owned() } else { format!("{models_per_call} models") };
    let about = if about.is_empty() { String::new() } else { format!(": {about}") };
    let mut lines = vec![entry("", &format!("provider {provider}{about}"), terminal)];
    lines.push(entry("", &format!("figures are for calls of {models}, the most that one may ask"), terminal));
    for stack in &explained.stacks {
        lines.push(String::new());
        lines.extend(stack_lines(explained, stack, now, terminal));
    }
    lines.join("\n") + "\n"
}

fn stack_lines(
    explained: &Explained,
    stack: &ExplainedStack,
    now: Timestamp,
    terminal: Option<u16>,
) -> Vec<String> {
    let shared = match stack.shared_with.as_slice() {
        [] => "shared by every worker of the fleet".to_owned(),
        others => format!("shared by every worker of the fleet, and with {}", others.join(", ")),
    };
    let mut lines = vec![entry("", &format!("stack {}, {shared}", stack.stack), terminal)];
    if stack.limits.is_empty() {
        lines.push(entry("  ", "no limits: every call leaves at once", terminal));
    }
    for limit in &stack.limits {
        lines.push(String::new());
        lines.push(entry("  ", &title(explained, limit), terminal));
        let entries = entries(explained, stack, limit, now);
        lines.extend(entries.iter().map(|(label, text)| {
            let label = format!("    {label:<width$}", width = LABEL - 4);
            entry(&label, text, terminal)
        }));
    }
    if let (Some(binds), Some(rate), Some(day)) = (&stack.binds, stack.calls_per_s, stack.calls_per_day) {
        lines.push(String::new());
        let text = format!(
            "a steady stream: limit `{binds}`, {} calls/s, {} calls a day",
            number(rate),
            number(day)
        );
        lines.push(entry("  binds           ", &text, terminal));
    }
    lines
}

/// `rate: 4 calls each second (judge sliding, burst 1)`.
fn title(explained: &Explained, limit: &ExplainedLimit) -> String {
    let set = &limit.limit;
    let amount = amount(explained, set.unit, f64::from(set.calls));
    match set.kind() {
        Kind::Rate => {
            let judge = judge_name(set.judge);
            let per = if set.per_ms == 1000 { "second".to_owned() } else { span(set.per_ms as f64 / 1000.0) };
            format!("{}: {amount} each {per} (judge `{judge}`, burst {})", set.name, set.burst)
        }
        Kind::Quota(Quota::Total) => format!("{}: {amount} in all", set.name),
        Kind::Quota(quota) => {
            let zone = set.zone.as_deref().unwrap_or("UTC");
            let window = match quota {
                Quota::Minute => "minute of the clock",
                Quota::Hour => "hour of the clock",
                Quota::Day => "day, from midnight to midnight",
                Quota::Month | Quota::Total => "month of the calendar",
            };
            format!("{}: {amount} each {window} in {zone}", set.name)
        }
        Kind::InFlight => format!("{}: {} calls under way at once", set.name, count(set.calls.into())),
    }
}

fn entries(
    explained: &Explained,
    stack: &ExplainedStack,
    limit: &ExplainedLimit,
    now: Timestamp,
) -> Vec<(&'static str, String)> {
    let mut entries = match limit.limit.kind() {
        Kind::Rate => rates::entries(limit),
        Kind::Quota(quota) => of_quota(limit, stack, quota, now),
        Kind::InFlight => in_flight(limit),
    };
    if limit.limit.kind() != Kind::InFlight {
        entries.push(("a call takes", takes(explained, limit)));
    }
    if let (Some(rate), Some(day)) = (limit.calls_per_s, limit.calls_per_day) {
        entries.push(("lets through", format!("{} calls/s, {} calls a day", number(rate), number(day))));
    }
    entries
}

fn of_quota(
    limit: &ExplainedLimit,
    stack: &ExplainedStack,
    quota: Quota,
    now: Timestamp,
) -> Vec<(&'static str, String)> {
    let resets = match limit.resets_at {
        Some(at) => format!("{}, {}", words::moment(at), words::from_now(at, now)),
        None => "never: what is used is used".to_owned(),
    };
    let rates = stack.limits.iter().any(|other| other.limit.kind() == Kind::Rate);
    let spent = match (limit.used_up_in_s, rates) {
        (Some(seconds), _) => format!(
            "as fast as the others let it: used up in {}; then the jobs wait in the queue{}",
            span(seconds),
            if quota == Quota::Total { "" } else { " until it resets" }
        ),
        (None, true) => "as fast as the others let it, which is not enough to use it up".to_owned(),
        (None, false) => "as fast as calls come: no rate of this stack spreads it".to_owned(),
    };
    let mut entries = vec![("resets", resets), ("is spent", spent)];
    if quota != Quota::Total {
        let margin = number(limit.margin_ms / 1000.0);
        entries.push((
            "margin",
            format!(
                "J = {margin} s, what the API's clock may be off: a call within J of a window's end counts in both, and \
                 none leaves within J after its beginning"
            ),
        ));
    }
    entries.push(("reaches", "100 % of each window".to_owned()));
    if quota == Quota::Total {
        entries.pop();
        entries.push(("reaches", "all of them".to_owned()));
    }
    entries
}

fn in_flight(limit: &ExplainedLimit) -> Vec<(&'static str, String)> {
    let n = f64::from(limit.limit.calls);
    let place = match limit.margin_ms {
        0.0 => "a place is the next call's as soon as the last one is answered".to_owned(),
        rest => format!("a place rests for J = {} ms after its call", number(rest)),
    };
    vec![
        (
            "counts",
            "calls under way in the whole fleet; each process has a share, which goes where calls wait"
                .to_owned(),
        ),
        ("margin", place),
        (
            "lets through",
            format!(
                "n / (seconds that a call takes): {} calls/s at 250 ms, {} at 1 s, {} at 5 s",
                number(n * 4.0),
                number(n),
                number(n / 5.0)
            ),
        ),
    ]
}

fn takes(explained: &Explained, limit: &ExplainedLimit) -> String {
    let amount = |units| amount(explained, limit.limit.unit, units);
    match (limit.limit.unit, limit.call_takes) {
        (Unit::Call, Some(units)) => amount(units),
        (Unit::Model, Some(units)) if units == 1.0 => amount(units),
        (Unit::Model, Some(units)) => format!("its models: {}", amount(units)),
        (Unit::Money, Some(units)) => format!("its price: {}", amount(units)),
        (Unit::Megabyte, _) | (_, None) => {
            "its body: 1 MB is a million bytes, so one of 200,000 bytes takes 0.2 MB".to_owned()
        }
    }
}

/// `1,000 calls`, `0.018 USD`.
fn amount(explained: &Explained, unit: Unit, units: f64) -> String {
    let noun = if unit == Unit::Money { explained.currency.as_str() } else { unit.noun(units) };
    format!("{} {noun}", number(units))
}

/// The judge's word in the settings.
fn judge_name(judge: Judge) -> &'static str {
    match judge {
        Judge::Sliding => "sliding",
        Judge::Fixed => "fixed",
        Judge::Bucket => "bucket",
        Judge::Leaky => "leaky",
        Judge::Concurrent => "concurrent",
    }
}
