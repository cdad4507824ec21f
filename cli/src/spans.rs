//! Spans of time as people write them: `90s`, `30m`, `2h`, `1d 12h`. A day is 24 hours.

use jiff::{SignedDuration, Span, SpanRelativeTo};

/// A span that is not negative.
pub(crate) fn span(text: &str) -> Option<SignedDuration> {
    let span = text.parse::<Span>().ok()?;
    let span = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    (!span.is_negative()).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_24_hours_and_nothing_is_negative() {
        let hours = SignedDuration::from_hours;
        assert_eq!(["1d", "1d 12h", "2h"].map(span), [24, 36, 2].map(|h| Some(hours(h))));
        assert_eq!(["", "2", "-2h", "soon"].map(span), [None; 4]);
    }
}
