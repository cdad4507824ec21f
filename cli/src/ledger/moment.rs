//! Moments as they are said on the command line: a day, a time, or how long ago. Pure.

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

use crate::spans;

/// A moment, or a day.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum When {
    /// This one.
    Moment(Timestamp),
    /// A day (UTC).
    Day(Date),
    /// So long ago.
    Ago(SignedDuration),
}

impl std::str::FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(moment) = text.parse() {
            return Ok(Self::Moment(moment));
        }
        if let Ok(day) = day(text) {
            return Ok(Self::Day(day));
        }
        match spans::span(text) {
            Some(ago) => Ok(Self::Ago(ago)),
            None => Err("give a day (2026-11-26), a time (2026-11-26T10:00:00Z), or how long ago (12h, 7d)"
                .to_owned()),
        }
    }
}

impl When {
    /// Where a stretch of time begins that begins with it.
    pub(super) fn begin(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Moment(moment) => moment,
            Self::Day(day) => midnight(day),
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }

    /// Where a stretch of time ends that ends with it: a day belongs to it.
    pub(super) fn end(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Day(day) => day.tomorrow().map_or(Timestamp::MAX, midnight),
            Self::Moment(_) | Self::Ago(_) => self.begin(now),
        }
    }
}

/// A day, and nothing else.
pub(super) fn day(text: &str) -> Result<Date, String> {
    let date = Some(text).filter(|text| text.len() == "2026-11-26".len()).and_then(|text| text.parse().ok());
    date.ok_or_else(|| "give a day as 2026-11-26".to_owned())
}

/// The day (UTC) of a moment.
pub(super) fn day_of(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

fn midnight(day: Date) -> Timestamp {
    day.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn when(text: &str) -> When {
        text.parse().unwrap()
    }

    #[test]
    fn a_day_a_time_and_how_long_ago_are_understood_and_nothing_else() {
        let now: Timestamp = "2026-11-26T10:00:00Z".parse().unwrap();
        let begins = |text: &str| when(text).begin(now).to_string();
        assert_eq!(begins("2026-11-20"), "2026-11-20T00:00:00Z");
        assert_eq!(when("2026-11-20").end(now).to_string(), "2026-11-21T00:00:00Z");
        assert_eq!(begins("2026-11-20T08:30:00+01:00"), "2026-11-20T07:30:00Z");
        assert_eq!(begins("7d"), "2026-11-19T10:00:00Z");
        assert_eq!(begins("90m"), "2026-11-26T08:30:00Z");
        for wrong in ["yesterday", "2026-13-01", "-3h", ""] {
            assert!(wrong.parse::<When>().unwrap_err().contains("7d"), "{wrong}");
        }
        assert!(day("7d").is_err() && day("2026-11-26T10:00").is_err());
    }

    #[test]
    fn the_day_of_a_moment_is_that_of_utc() {
        assert_eq!(day_of("2026-11-26T23:30:00-02:00".parse().unwrap()).to_string(), "2026-11-27");
    }
}
