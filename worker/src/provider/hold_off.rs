//! How long a throttled answer asks the fleet to pause. Pure.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::{
    definition::RetryAfter,
    jq::{self, Jq},
};
use crate::classify::Pause;

/// The pause that the answer asks for, within what is believed; the default where it says nothing readable.
///
/// Zero, negative and unreadable values say nothing.
pub(super) fn pause(
    settings: &RetryAfter,
    in_body: Option<&Jq>,
    headers: &HeaderMap,
    body: Option<&Value>,
    now: Timestamp,
) -> Pause {
    let said = seconds_in_body(in_body, body).or_else(|| {
        settings.headers.iter().find_map(|name| pause_in(name, headers.get(name)?.to_str().ok()?, now))
    });
    let said = said.filter(|pause| !pause.is_zero());
    let length = said.unwrap_or(Duration::from_millis(settings.default_ms));
    Pause { length: length.min(Duration::from_millis(settings.max_ms)), said: said.is_some() }
}

/// Whether a header says when to come back: a 503 that does is a limit, not a breakdown.
pub(super) fn is_said(headers: &HeaderMap, now: Timestamp) -> bool {
    headers.get("retry-after").and_then(|value| pause_in("retry-after", value.to_str().ok()?, now)).is_some()
}

fn seconds_in_body(jq: Option<&Jq>, body: Option<&Value>) -> Option<Duration> {
    let said = jq?.first(&jq::input(body?), "").ok()??;
    from_seconds(said.as_f64().or_else(|| said.as_str()?.trim().parse().ok())?)
}

fn pause_in(name: &str, value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if value.len() > 200 {
        return None;
    }
    if name.eq_ignore_ascii_case("ratelimit") {
        return reset_of_rate_limit(value);
    }
    if let Ok(number) = value.parse::<f64>() {
        let now_s = now.as_millisecond() as f64 / 1000.0;
        return match number {
            n if name.ends_with("-ms") => from_seconds(n / 1000.0),
            // Too large for a pause: the moment itself, in milliseconds or seconds since 1970.
            n if n >= 1e12 => from_seconds(n / 1000.0 - now_s),
            n if n >= 1e9 => from_seconds(n - now_s),
            n => from_seconds(n),
        };
    }
    from_date(value, now).or_else(|| from_units(value))
}

/// `"policy";r=0;t=30, ...` (draft-ietf-httpapi-ratelimit-headers), or `limit=9, remaining=0, reset=30` of its older
/// versions: the longest of those that have nothing left, or of all.
fn reset_of_rate_limit(value: &str) -> Option<Duration> {
    let read = |item: &str, keys: [&str; 2]| {
        item.split([';', ',']).find_map(|part| {
            let (key, value) = part.trim().split_once('=')?;
            keys.contains(&key.trim()).then(|| value.trim().parse::<f64>().ok())?
        })
    };
    let items: Vec<&str> = if value.contains("reset=") { vec![value] } else { value.split(',').collect() };
    let spent = |item: &&&str| read(item, ["r", "remaining"]).is_none_or(|left| left <= 0.0);
    let longest = |items: &mut dyn Iterator<Item = &&str>| {
        items.filter_map(|item| read(item, ["t", "reset"])).max_by(f64::total_cmp)
    };
    from_seconds(longest(&mut items.iter().filter(spent)).or_else(|| longest(&mut items.iter()))?)
}

fn from_date(value: &str, now: Timestamp) -> Option<Duration> {
    let at = httpdate::parse_http_date(value).ok()?;
    let at = Timestamp::try_from(at).ok()?;
    from_seconds((at.as_millisecond() - now.as_millisecond()) as f64 / 1000.0)
}

/// `1h2m3s`, `6m0s`, `20ms`, as some gateways write.
fn from_units(value: &str) -> Option<Duration> {
    let mut rest = value;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        seconds += number
            * match &unit[..end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &unit[end..];
    }
    from_seconds(seconds)
}

fn from_seconds(seconds: f64) -> Option<Duration> {
    (seconds >= 0.0).then(|| Duration::try_from_secs_f64(seconds.min(1e9)).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};

    const NOW: &str = "2026-11-22T10:00:00Z";

    fn asked(name: &str, value: &str) -> Duration {
        let mut headers = HeaderMap::new();
        headers
            .insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        pause(&RetryAfter::default(), None, &headers, None, NOW.parse().unwrap()).length
    }

    #[test]
    fn every_way_of_saying_thirty_seconds_is_understood() {
        let epoch = NOW.parse::<Timestamp>().unwrap().as_second() + 30;
        for (name, value) in [
            ("retry-after", "30"),
            ("retry-after", "30.0"),
            ("retry-after", "Sun, 22 Nov 2026 10:00:30 GMT"),
            ("retry-after-ms", "30000"),
            ("ratelimit", "\"burst\";r=3;t=1, \"day\";r=0;t=30"),
            ("ratelimit", "limit=10, remaining=0, reset=30"),
            ("ratelimit-reset", "30"),
            ("x-ratelimit-reset", "30s"),
            ("x-ratelimit-reset", &epoch.to_string()),
            ("x-ratelimit-reset", &(epoch * 1000).to_string()),
        ] {
            assert_eq!(asked(name, value), Duration::from_secs(30), "{name}: {value}");
        }
        assert_eq!(asked("x-ratelimit-reset", "6m0s"), Duration::from_secs(360));
    }

    #[test]
    fn what_can_not_be_meant_is_the_default() {
        for value in ["", "0", "-5", "soon", "NaN", "inf inf", "Sun, 22 Nov 2020 10:00:30 GMT", "1x", "s"] {
            assert_eq!(asked("retry-after", value), Duration::from_secs(1), "{value}");
        }
    }

    #[test]
    fn an_absurd_pause_is_an_hour() {
        for value in ["99999999", "1e300", "inf", "Sun, 22 Nov 2099 10:00:30 GMT"] {
            assert_eq!(asked("retry-after", value), Duration::from_secs(3600), "{value}");
        }
    }

    #[test]
    fn the_body_comes_before_the_headers() {
        let jq = Jq::compile(".wait").unwrap();
        let body = serde_json::json!({"wait": "7"});
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_static("30"));
        let now = NOW.parse().unwrap();
        assert_eq!(
            pause(&RetryAfter::default(), Some(&jq), &headers, Some(&body), now),
            Pause { length: Duration::from_secs(7), said: true }
        );
    }

    proptest! {
        #[test]
        fn no_header_makes_a_pause_beyond_the_bounds(value in "[ -~]{0,60}", which in 0usize..5) {
            let name = &RetryAfter::default().headers[which];
            let pause = asked(name, &value);
            prop_assert!(!pause.is_zero() && pause <= Duration::from_secs(3600));
        }
    }
}
