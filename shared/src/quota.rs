//! Quotas: counted in windows of the calendar. Pure, but for the time zones.
//!
//! A judge that counts a day's calls starts anew at its midnight, by its own clock. So a call that is booked near the end
//! of a window may be counted in either of the two: it is counted in both here; and nothing is booked just behind a
//! window's beginning. What is near is the limit's jitter, by default a second.

use jiff::{Timestamp, ToSpan, Zoned, tz::TimeZone};

use crate::limit::Quota;

/// The end of a window that never ends, in microseconds: a whole number in a double, too.
pub const NEVER_US: u64 = 4_000_000_000_000_000;

/// The window that a moment is in, and the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The beginning, in microseconds since 1970.
    pub start_us: u64,
    /// Its end, and the next one's beginning.
    pub end_us: u64,
    /// The next one's end.
    pub next_end_us: u64,
}

/// What is counted of a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The beginning of the window that `used` is of, in microseconds since 1970.
    pub start_us: u64,
    /// Its end.
    pub end_us: u64,
    /// Millionths of a unit used in it.
    pub used: u64,
    /// Millionths of a unit used of the next one already.
    pub next: u64,
}

/// The time zone of this name.
///
/// # Errors
/// In words, that there is none of this name.
pub fn zone(name: Option<&str>) -> Result<TimeZone, String> {
    let Some(name) = name else { return Ok(TimeZone::UTC) };
    TimeZone::get(name)
        .map_err(|_| format!("there is no time zone `{name}`: give one like UTC or America/Los_Angeles"))
}

impl Windows {
    /// The windows of `quota` around `at_us`, in microseconds since 1970.
    pub fn around(quota: Quota, zone: &TimeZone, at_us: u64) -> Self {
        let at =
            Timestamp::from_microsecond(i64::try_from(at_us).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX);
        let now = at.to_zoned(zone.clone());
        let found = || -> Result<Self, jiff::Error> {
            let start = beginning(quota, &now)?;
            let end = beginning(quota, &start.checked_add(length(quota))?)?;
            let next_end = beginning(quota, &end.checked_add(length(quota))?)?;
            Ok(Self { start_us: us(&start), end_us: us(&end), next_end_us: us(&next_end) })
        };
        if quota == Quota::Total {
            return Self { start_us: 0, end_us: NEVER_US, next_end_us: NEVER_US };
        }
        // Only dates beyond the calendar's end fail.
        found().unwrap_or(Self { start_us: 0, end_us: NEVER_US, next_end_us: NEVER_US })
    }
}

/// The beginning of the window that `at` is in.
fn beginning(quota: Quota, at: &Zoned) -> Result<Zoned, jiff::Error> {
    let minute = || at.with().second(0).subsec_nanosecond(0);
    match quota {
        Quota::Minute => minute().build(),
        Quota::Hour => minute().minute(0).build(),
        Quota::Day => at.start_of_day(),
        Quota::Month => at.first_of_month()?.start_of_day(),
        Quota::Total => Ok(at.clone()),
    }
}

fn length(quota: Quota) -> jiff::Span {
    match quota {
        Quota::Minute => 1.minute(),
        Quota::Hour => 1.hour(),
        Quota::Day => 1.day(),
        Quota::Month | Quota::Total => 1.month(),
    }
}

fn us(at: &Zoned) -> u64 {
    u64::try_from(at.timestamp().as_microsecond()).unwrap_or(0)
}

/// A quota as the decision sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted<'a> {
    /// The limit's name.
    pub name: &'a str,
    /// Millionths of a unit that a window holds.
    pub most: u64,
    /// How far the judge's clock and the calls' arrival may stray, in microseconds.
    pub guard_us: u64,
    /// The window of now, and the next.
    pub windows: Windows,
    /// What the asking process remembers of it, for the case that it was lost.
    pub hint: Option<Count>,
}

impl Count {
    /// What is known of `rule` after all, at `now_us`; `lost` says that `known` may miss what was granted last.
    pub(crate) fn of(known: Option<Self>, rule: &Counted<'_>, now_us: u64, lost: bool) -> Self {
        let Windows { start_us, end_us, .. } = rule.windows;
        let mut count = Self { start_us, end_us, used: 0, next: 0 };
        if let Some(known) = known {
            if known.start_us == start_us && known.end_us == end_us {
                (count.used, count.next) = (known.used, known.next);
            } else if known.end_us == start_us {
                count.used = known.next;
            } else if known.end_us > now_us {
                // Its windows were changed: what was used is not forgotten.
                (count.used, count.next) = (known.used, known.next);
            }
        }
        if let Some(hint) = rule.hint.filter(|_| lost || known.is_none()) {
            if hint.start_us == start_us {
                count.used = count.used.max(hint.used);
                count.next = count.next.max(hint.next);
            } else if hint.end_us == start_us {
                count.used = count.used.max(hint.next);
            }
        }
        count
    }

    /// The first moment, from `slot` on, at which a call of `cost` may be counted.
    pub(crate) fn earliest(&self, rule: &Counted<'_>, cost: u64, slot: u64) -> u64 {
        let Windows { start_us, end_us, next_end_us } = rule.windows;
        let guard = rule.guard_us;
        let room = self.used + cost <= rule.most;
        let room_next = self.next + cost <= rule.most;
        let slot = slot.max(start_us + guard);
        if slot < end_us - guard && room || slot < end_us && room && room_next {
            return slot;
        }
        let slot = slot.max(end_us + guard);
        if slot < next_end_us - guard && room_next { slot } else { slot.max(next_end_us + guard) }
    }

    /// Counts a call of `cost` that leaves at `slot`.
    pub(crate) fn take(&mut self, rule: &Counted<'_>, cost: u64, slot: u64) {
        let end_us = rule.windows.end_us;
        if slot < end_us {
            self.used += cost;
        }
        if slot >= end_us - rule.guard_us {
            self.next += cost;
        }
    }

    /// Gives back what a call of `cost` took. Where it was counted twice, once stays: nobody knows which one.
    pub(crate) fn refund(&mut self, cost: u64) {
        if self.used >= cost {
            self.used -= cost;
        } else {
            self.next = self.next.saturating_sub(cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_microsecond()).unwrap()
    }

    fn windows(quota: Quota, name: &str, moment: &str) -> (String, String) {
        let zone = zone(Some(name)).unwrap();
        let Windows { start_us, end_us, .. } = Windows::around(quota, &zone, at(moment));
        let shown = |us: u64| Timestamp::from_microsecond(us as i64).unwrap().to_string();
        (shown(start_us), shown(end_us))
    }

    #[test]
    fn a_day_begins_at_midnight_of_its_zone_also_when_the_clocks_change() {
        let los_angeles = |moment| windows(Quota::Day, "America/Los_Angeles", moment);
        assert_eq!(
            los_angeles("2026-11-26T04:00:00Z"),
            ("2026-11-25T08:00:00Z".into(), "2026-11-26T08:00:00Z".into())
        );
        // 25 hours, because summer time ends.
        assert_eq!(
            los_angeles("2026-11-01T12:00:00Z"),
            ("2026-11-01T07:00:00Z".into(), "2026-11-02T08:00:00Z".into())
        );
    }

    #[test]
    fn a_month_begins_on_its_first_and_an_hour_at_its_own() {
        assert_eq!(
            windows(Quota::Month, "Europe/Berlin", "2026-02-28T23:30:00Z"),
            ("2026-02-28T23:00:00Z".into(), "2026-03-31T22:00:00Z".into())
        );
        assert_eq!(
            windows(Quota::Hour, "Asia/Kolkata", "2026-02-28T23:45:00Z"),
            ("2026-02-28T23:30:00Z".into(), "2026-03-01T00:30:00Z".into())
        );
    }

    #[test]
    fn an_unknown_zone_is_named() {
        assert!(zone(Some("Mars/Olympus")).unwrap_err().contains("Mars/Olympus"));
    }

    #[test]
    fn credits_never_come_back() {
        let windows = Windows::around(Quota::Total, &TimeZone::UTC, at("2026-11-26T04:00:00Z"));
        let rule = Counted { name: "credits", most: 5_000_000, guard_us: 1_000_000, windows, hint: None };
        let spent = Count { used: 5_000_000, end_us: NEVER_US, ..Count::default() };
        assert!(spent.earliest(&rule, 1_000_000, at("2026-11-26T04:00:00Z")) >= NEVER_US);
    }

    proptest! {
        /// A judge whose clock is off by up to the guard counts at most what it allows in each of its windows, and the
        /// quota is spent to the full.
        #[test]
        fn a_judge_whose_clock_is_a_little_off_never_counts_too_many(
            steps in proptest::collection::vec((0u64..4_000_000, 1u64..4), 1..300), off in -1_000i64..1_000, most in 4u64..40,
        ) {
            const MINUTE: u64 = 60_000_000;
            const GUARD: u64 = 1_000_000;
            let (mut now, mut known) = (MINUTE * 1_000 + GUARD, None);
            let mut judged = std::collections::BTreeMap::<u64, u64>::new();
            for (step, cost) in steps {
                now += step;
                let windows = Windows::around(Quota::Minute, &TimeZone::UTC, now);
                let rule = Counted { name: "m", most, guard_us: GUARD, windows, hint: None };
                let mut count = Count::of(known, &rule, now, false);
                let slot = count.earliest(&rule, cost, now);
                if slot > now + 800_000 {
                    known = Some(count);
                    let full = count.used + cost > most || count.next + cost > most;
                    let edge = now % MINUTE > MINUTE - GUARD - 800_000 || now % MINUTE < GUARD;
                    prop_assert!(full || edge, "idle at {now} with {count:?}");
                    continue;
                }
                count.take(&rule, cost, slot);
                known = Some(count);
                let seen = slot.saturating_add_signed(off * 999);
                *judged.entry(seen / MINUTE).or_default() += cost;
            }
            prop_assert!(judged.values().all(|units| *units <= most), "{judged:?} of {most}");
        }
    }
}
