//! Where stacks stand, in words.

use jiff::Timestamp;
use pixfleet_shared::limiter::{Kind, Numbers, Unit};

use super::shown::{Settings, Shown, ShownLimit, ShownTime};
use crate::words::{at, count, entry, foresight, moment, number, span};

/// The lines about a stack.
pub(super) fn lines(shown: &Shown, terminal: Option<u16>) -> Vec<String> {
    let now = shown.at;
    let calls = shown.calls.map(|calls| format!(", {} calls granted", count(calls))).unwrap_or_default();
    let of = format!("stack {} of {}{calls}", shown.stack, shown.providers.join(", "));
    let mut lines = vec![entry("", &of, terminal)];
    let mut say = |label: &str, text: String| lines.push(entry(&format!("  {label:<10}"), &text, terminal));
    if let Some(by) = &shown.paused {
        say("PAUSED", format!("by {by}: nothing leaves until it is resumed"));
    }
    if let Some(until) = shown.held_until {
        let why = "after \"too much\", a refusal of the account, or an API that was down";
        say("HELD OFF", format!("until {}, {why}", at(until, now)));
    }
    if shown.probing {
        say("PROBING", "after a hold-off one call goes ahead; the others wait for its answer".to_owned());
    }
    if shown.limits.is_empty() {
        say("", "no limits: every call leaves at once".to_owned());
    }
    for limit in &shown.limits {
        say(&limit.limit, limit_text(limit, shown, now));
    }
    if shown.limits.iter().any(|limit| limit.kind == "rate") {
        let measured = match shown.measured_jitter_ms {
            Some(ms) => format!("the workers measured {} ms", number(ms)),
            None => "no worker measured it lately".to_owned(),
        };
        say("jitter", measured);
    }
    if let Some(history) = &shown.history {
        if history.is_empty() {
            say("history", "nothing was ever changed".to_owned());
        }
        for amendment in history {
            let who = format!("{}  {}: {}", moment(amendment.at), amendment.by, amendment.change);
            say("history", who);
        }
    }
    lines
}

fn limit_text(limit: &ShownLimit, shown: &Shown, now: Timestamp) -> String {
    let amount = |units: f64| {
        let noun = if limit.unit == Unit::Money { shown.currency.as_str() } else { limit.unit.noun(units) };
        format!("{} {noun}", number(units))
    };
    let calls = f64::from(limit.calls);
    let mut parts = match limit.in_force.kind() {
        Kind::Rate => vec![
            format!("{} each {}", amount(calls), span(limit.in_force.per_ms as f64 / 1000.0)),
            format!(
                "J = {} ms, so one each {} ms",
                number(limit.jitter_ms),
                number(limit.interval_ms.unwrap_or(0.0))
            ),
            format!("{} % at best", number(limit.best_utilisation * 100.0)),
            match limit.booked_until {
                Some(until) => format!("booked ahead for {}", span(until.duration_since(now).as_secs_f64())),
                None => "nothing is booked ahead".to_owned(),
            },
        ],
        Kind::Quota(_) => vec![
            format!("{} of {} used", number(limit.used.unwrap_or(0.0)), amount(calls)),
            format!("{} left", number(limit.left.unwrap_or(calls))),
            match limit.resets_at {
                Some(resets_at) => format!("resets {}", at(resets_at, now)),
                None => "never resets".to_owned(),
            },
        ],
        Kind::InFlight => vec![format!(
            "{} of {} calls in flight, processes with a share: {}",
            limit.in_flight.unwrap_or(0),
            count(limit.calls.into()),
            limit.processes.unwrap_or(0)
        )],
    };
    parts.extend(limit.settings.map(|settings| changed(limit, settings)));
    parts.join(", ")
}

/// What the settings say of the numbers that were changed.
fn changed(limit: &ShownLimit, settings: Settings) -> String {
    let Numbers { calls, burst, jitter_ms } = limit.changed;
    let calls = calls.map(|_| format!("calls = {}", settings.calls));
    let burst = burst.map(|_| format!("burst = {}", settings.burst));
    let jitter = jitter_ms.map(|_| match settings.jitter_ms {
        Some(ms) => format!("jitter_ms = {ms}"),
        None => "an adaptive jitter".to_owned(),
    });
    let said: Vec<String> = [calls, burst, jitter].into_iter().flatten().collect();
    format!("CHANGED at run time (the settings say {})", said.join(", "))
}

/// When calls would be done.
pub(super) fn time(shown: &ShownTime, now: Timestamp, terminal: Option<u16>) -> String {
    let ShownTime { provider, calls, models_per_call, time } = shown;
    let models = if *models_per_call == 1 { String::new() } else { format!(" of {models_per_call} models") };
    entry("", &format!("{} calls{models} of {provider}: {}", count(*calls), foresight(time, now)), terminal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixfleet_shared::limiter::Limit;

    #[test]
    fn what_was_changed_shows_what_the_settings_say() {
        let in_force = Limit { jitter_ms: Some(8.0), ..Limit::per_second("rate", 2) };
        let limit = ShownLimit {
            limit: "rate".into(),
            kind: "rate",
            unit: Unit::Call,
            calls: 2,
            burst: 1,
            jitter_ms: 8.0,
            settings: None,
            units_per_s: None,
            best_utilisation: 1.0,
            interval_ms: None,
            booked_until: None,
            used: None,
            left: None,
            resets_at: None,
            in_flight: None,
            processes: None,
            changed: Numbers { calls: Some(2), ..Numbers::default() },
            in_force,
        };
        let settings = Settings { calls: 4, burst: 1, jitter_ms: None };
        assert_eq!(changed(&limit, settings), "CHANGED at run time (the settings say calls = 4)");
    }
}
