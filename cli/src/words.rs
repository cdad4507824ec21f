//! Numbers, spans and moments in words, for people.

use jiff::{Timestamp, tz::TimeZone};
use pixfleet_shared::foresight::{Foresight, UsedUp};

/// Columns of a text that explains something, where the terminal is not narrower.
const WIDTH: usize = 96;

/// A whole number with its thousands apart: `1,000,000`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with four digits that count, or all of its whole ones: `252`, `3.968`, `0.01157`, `857,143`.
pub(crate) fn number(value: f64) -> String {
    if value >= 1000.0 {
        return count(value.round() as u64);
    }
    let whole = if value > 0.0 { value.log10().floor() as i32 } else { 0 };
    let places = usize::try_from(3 - whole).unwrap_or(0).min(9);
    let text = format!("{value:.places$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A length of time in its two largest units: `14 h 3 min`, `9 s`, `0.25 s`.
pub(crate) fn span(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{} s", number((seconds * 100.0).round() / 100.0));
    }
    let seconds = seconds.round() as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let two = |large: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{} {unit}", count(large)),
        small => format!("{} {unit} {small} {part}", count(large)),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => two(minutes, "min", seconds % 60, "s"),
        3_600..86_400 => two(hours, "h", minutes, "min"),
        86_400..172_800 => two(days, "day", hours, "h"),
        _ => two(days, "days", hours, "h"),
    }
}

/// A moment on this machine's clock and zone: `2026-11-27 09:00:00 CET`.
pub(crate) fn moment(at: Timestamp) -> String {
    moment_in(at, TimeZone::system())
}

fn moment_in(at: Timestamp, zone: TimeZone) -> String {
    at.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}

/// How far a moment is from `now`: `in 14 h 3 min`, `9 s ago`.
pub(crate) fn from_now(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.duration_since(now).as_secs_f64();
    if seconds < 0.0 { format!("{} ago", span(-seconds)) } else { format!("in {}", span(seconds)) }
}

/// A moment, and how far it is.
pub(crate) fn at(at: Timestamp, now: Timestamp) -> String {
    format!("{} ({})", moment(at), from_now(at, now))
}

/// When calls are done at best, what binds them, and what is used up on the way.
pub(crate) fn foresight(time: &Foresight, now: Timestamp) -> String {
    let Some(binding) = &time.binding else {
        return match time.beyond_credits {
            0 => "no limit says how long they take: the workers decide".to_owned(),
            calls => beyond(calls),
        };
    };
    let done = match (time.done_at, time.beyond_credits, time.beyond_century) {
        (Some(done_at), ..) => format!("done at best {}", at(done_at, now)),
        (None, 0, 0) => "nothing to do".to_owned(),
        (None, 0, _) => "not done in this century".to_owned(),
        (None, calls, _) => beyond(calls),
    };
    let mut text = format!(
        "{done}; limit `{}` of `{}` binds, at {} calls/s",
        binding.limit,
        binding.stack,
        number(binding.calls_per_s)
    );
    if let Some(UsedUp { limit, at: when, resets_at, resets, .. }) = &time.used_up {
        text += &match resets_at {
            None => format!("; `{limit}` is used up {}", at(*when, now)),
            Some(resets_at) if *resets < 2 => {
                format!("; `{limit}` is used up {}, and resets {}", at(*when, now), at(*resets_at, now))
            }
            Some(resets_at) => format!(
                "; `{limit}` is used up {}, resets {}, and {resets} resets are waited for in all",
                at(*when, now),
                at(*resets_at, now)
            ),
        };
    }
    text
}

fn beyond(calls: u64) -> String {
    let noun = if calls == 1 { "call" } else { "calls" };
    format!("never done: the credits end before {} {noun}", count(calls))
}

/// A text of a stranger for a terminal: without line breaks, and without orders to it.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `text` in lines of at most the terminal's width, the first behind `label`, the others below its end.
pub(crate) fn entry(label: &str, text: &str, terminal: Option<u16>) -> String {
    let width = terminal.map_or(WIDTH, |width| usize::from(width).min(WIDTH)).max(40);
    let indent = label.chars().count();
    let mut lines = label.to_owned();
    let mut column = indent;
    for word in text.split(' ') {
        let long = word.chars().count();
        if column > indent && column + 1 + long > width {
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += long;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixfleet_shared::foresight::Binding;

    #[test]
    fn numbers_are_as_long_as_they_have_to_be() {
        let shown = [252.0, 3.9683, 0.011_574, 857_142.9, 1.0, 0.0, 99.206_3].map(number);
        assert_eq!(shown, ["252", "3.968", "0.01157", "857,143", "1", "0", "99.21"]);
        assert_eq!([0, 999, 1_000, 12_345_678].map(count), ["0", "999", "1,000", "12,345,678"]);
    }

    #[test]
    fn spans_have_two_units() {
        let shown = [0.25, 9.0, 59.6, 3_600.0, 50_590.0, 100_000.0, 864_000.0].map(span);
        assert_eq!(shown, ["0.25 s", "9 s", "1 min", "1 h", "14 h 3 min", "1 day 3 h", "10 days"]);
    }

    #[test]
    fn a_moment_is_told_in_its_zone_and_by_its_distance() {
        let at: Timestamp = "2026-11-27T08:00:00Z".parse().unwrap();
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        assert_eq!(moment_in(at, zone), "2026-11-27 09:00:00 CET");
        assert_eq!(from_now(at, "2026-11-27T07:59:00Z".parse().unwrap()), "in 1 min");
        assert_eq!(from_now(at, "2026-11-27T08:00:09Z".parse().unwrap()), "9 s ago");
    }

    #[test]
    fn a_foresight_says_when_why_and_what_is_used_up() {
        let now: Timestamp = "2026-11-26T10:00:00Z".parse().unwrap();
        let later = |text: &str| text.parse::<Timestamp>().unwrap();
        let binding = Binding { stack: "restb".into(), limit: "day".into(), calls_per_s: 0.5787 };
        let used_up = UsedUp {
            stack: "restb".into(),
            limit: "day".into(),
            at: later("2026-11-26T11:23:20Z"),
            resets_at: Some(later("2026-11-27T00:00:00Z")),
            resets: 2,
        };
        let done_at = Some(later("2026-11-28T00:30:00Z"));
        let time = Foresight {
            seconds: Some(1.0),
            done_at,
            binding: Some(binding),
            used_up: Some(used_up),
            beyond_credits: 0,
            beyond_century: 0,
        };
        let said = foresight(&time, now);
        for part in
            ["(in 1 day 14 h)", "`day` of `restb` binds", "used up 2026-11-26", "(in 1 h 23 min)", "2 resets"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        let late = Foresight { done_at: None, beyond_century: 5, ..time.clone() };
        assert!(foresight(&late, now).starts_with("not done in this century; limit `day`"));
        let never = Foresight { done_at: None, beyond_credits: 150, ..time };
        assert!(foresight(&never, now).starts_with("never done: the credits end before 150 calls"));
        assert!(foresight(&Foresight::default(), now).contains("the workers decide"));
    }

    #[test]
    fn a_strangers_text_gives_no_orders_to_a_terminal() {
        assert_eq!(one_line("a\nb\u{1b}[2Jc\u{9b}d"), "a b [2Jc d");
    }

    #[test]
    fn an_entry_is_indented_below_its_label() {
        let text = "one two three four five six seven eight nine ten";
        assert_eq!(
            entry("  label  ", text, Some(40)),
            "  label  one two three four five six\n         seven eight nine ten"
        );
    }
}
