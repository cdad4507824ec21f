//! What is said of a rate: its spacing, the reason for it, its margin, and what it reaches.

use pixfleet_shared::limiter::{Judge, Unit};

use super::super::explain::ExplainedLimit;
use crate::words::{count, number};

/// The entries that only a rate has.
pub(super) fn entries(limit: &ExplainedLimit) -> Vec<(&'static str, String)> {
    let set = &limit.limit;
    let (window, n, burst) = (set.per_ms as f64, f64::from(set.calls), f64::from(set.burst));
    let (interval, ahead) = (limit.interval_ms.unwrap_or(0.0), limit.ahead_ms.unwrap_or(0.0));
    let j = limit.margin_ms;
    let each = format!("one {} each {} ms", singular(set.unit), number(interval));
    let fair = format!("W / n = {} ms / {}", number(window), number(n));
    let forgiven = window / n * if set.judge == Judge::Bucket { (burst - 1.0).max(0.0) } else { burst };
    let (spacing, why) = match set.judge {
        Judge::Sliding | Judge::Fixed | Judge::Concurrent => (windowed(limit, &each), of_window(set.judge)),
        Judge::Leaky if set.burst == 0 => {
            let formula = format!(
                "{each}: T = W / n + max(J, 1 ms) = {} + {} ms",
                number(window / n),
                number(j.max(1.0))
            );
            (formula, of_nginx(limit))
        }
        Judge::Bucket | Judge::Leaky => {
            let s = if set.judge == Judge::Bucket { "(B - 1) W / n" } else { "B W / n" };
            let formula = if forgiven < j {
                format!(
                    "{each}: T = W / n + J - S = {} + {} - {} ms",
                    number(window / n),
                    number(j),
                    number(forgiven)
                )
            } else {
                format!("{each}: T = {fair}")
            };
            let use_of_it = if ahead > 0.0 {
                format!(
                    "; the burst forgives S = {s} = {} ms: {} ms of it may be run ahead of the pace after a pause, \
                     the rest is left for the jitter",
                    number(forgiven),
                    number(ahead)
                )
            } else {
                format!("; the burst forgives S = {s} = {} ms, all left for the jitter", number(forgiven))
            };
            (formula + &use_of_it, of_bucket(set.judge))
        }
    };
    let reaches = format!(
        "{} % of the limit at best: W / (n T) = {} / ({} x {})",
        number(limit.best_utilisation * 100.0),
        number(window),
        number(n),
        number(interval)
    ) + &costs_of_burst(limit);
    vec![("free of 429", spacing), ("because", why), ("margin", margin(limit)), ("reaches", reaches)]
}

/// What a burst costs, where it costs something.
fn costs_of_burst(limit: &ExplainedLimit) -> String {
    match limit.with_burst_1 {
        Some(with) if limit.limit.burst > 1 => {
            format!("; the burst costs: with burst = 1 it would be {} %", number(with * 100.0))
        }
        _ => String::new(),
    }
}

/// The spacing of a judge that looks at windows.
fn windowed(limit: &ExplainedLimit, each: &str) -> String {
    let set = &limit.limit;
    let sum = format!("({} + {}) ms", number(set.per_ms as f64), number(limit.margin_ms));
    if set.burst <= 1 {
        return format!("{each}: T = (W + J) / n = {sum} / {}", count(set.calls.into()));
    }
    format!(
        "{each}: T = (W + J) / (n - B + 1) = {sum} / ({} - {} + 1); after a pause {} at once",
        count(set.calls.into()),
        set.burst,
        set.burst
    )
}

fn of_window(judge: Judge) -> String {
    let text = match judge {
        Judge::Fixed => {
            "at most n in each window W; where those begin nobody outside knows, so it is kept in any W"
        }
        _ => "at most n in any window W, also when one call arrives J late and the n-th after it on time",
    };
    text.to_owned()
}

fn of_bucket(judge: Judge) -> String {
    let text = match judge {
        Judge::Leaky => {
            "nginx `limit_req ... burst=B nodelay` refuses a call that is more than B ahead of its pace, in whole \
             milliseconds"
        }
        _ => "the bucket gets a token each W / n and keeps B of them: at that pace there always is one",
    };
    text.to_owned()
}

fn of_nginx(limit: &ExplainedLimit) -> String {
    let with = limit.with_burst_1.unwrap_or(1.0) * 100.0;
    format!(
        "nginx counts in whole milliseconds, and without a burst it refuses a call that comes one early; a late call can't \
         be made up for. With `burst=1` in its limit_req, and burst = 1 here, {} % of the limit would be reached instead \
         of {} %",
        number(with),
        number(limit.best_utilisation * 100.0)
    )
}

fn margin(limit: &ExplainedLimit) -> String {
    let j = format!("J = {} ms", number(limit.margin_ms));
    if limit.margin_from == "settings" {
        return format!("{j}, by `jitter_ms`: it is not adapted");
    }
    let how = match limit.limit.judge {
        Judge::Leaky if limit.limit.burst == 0 => {
            "it follows the jitter that the workers measure, and a 429 widens it"
        }
        Judge::Bucket | Judge::Leaky => "only a 429 widens it, and clean time narrows it again",
        Judge::Sliding | Judge::Fixed | Judge::Concurrent => {
            "a 429 widens it, and clean minutes narrow it to the jitter that the workers measure"
        }
    };
    format!("{j} to begin with: {how}")
}

fn singular(unit: Unit) -> &'static str {
    match unit {
        Unit::Call => "call",
        Unit::Model => "model",
        Unit::Megabyte => "MB",
        Unit::Money => "unit of money",
    }
}
