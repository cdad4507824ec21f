//! What a process may give out without asking the disk.
//!
//! The file holds, of each stack, an upper bound of what is granted. A process that needs slots books them and, where
//! the rate is high, an allowance of as many more as it asked for lately; the bound behind all of them is on the disk
//! before the first call leaves. Slots within the allowance need no further write. Whoever reads the bound next, another
//! process or the next run after a crash, begins behind it: at worst an allowance is unused, and never is a call too
//! many.
//!
//! Why that is safe: each call takes a stretch of a limit's time line (its TAT, and the interval before the next), and
//! leaves within the tolerance before that. The bounds keep the stretches of all processes apart, whatever the order
//! in which they are used, and a window of W holds at most the calls whose stretches begin in `W + tau`: as many as when
//! one process books them all. An allowance ends within the horizon, like every slot, so what `gcra` says of late
//! calls holds, too.

use rusqlite::Connection;

use super::limits::{self, Granted};
use crate::{
    gcra::{Decision, Known, LEAD_US, Moment, Probe, State, decide_at},
    judge::{self, Rule},
    limiter::{Kind, LimiterError, Stack, Terms, Weight},
};

/// An allowance holds what may leave within this time behind what was asked for.
const ALLOWANCE_US: u64 = 200_000;
/// The most calls of an allowance.
const ALLOWANCE_CALLS: usize = 64;
/// Fewer calls than this are not taken ahead: at so low a rate the disk has time.
const FEWEST: usize = 8;
/// Of a limit with a longer window nothing is taken ahead: it is a quota or a budget, and a crash would spend it.
const LONGEST_WINDOW_MS: u64 = 60_000;

/// What this process may still give out of a stack.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    /// The version of the row that granted it.
    version: i64,
    /// What is given out.
    pub(super) given: State,
    /// What the file says is given out.
    bound: State,
    /// When it was granted.
    since_us: u64,
    /// Calls that it was given out to, those that it was asked for among them.
    calls: usize,
}

impl Allowance {
    /// Slots out of the allowance: for all of the calls, or for the first of them that it has left.
    pub(super) fn give_out(
        &mut self,
        rules: &[Rule<'_>],
        calls: &[Vec<u64>],
        now_us: u64,
    ) -> Option<Decision> {
        // After a clock that was set back the bound has to follow, too; and a probe is for all processes to agree on.
        if self.given.at_us > now_us || self.given.probe != Probe::None {
            return None;
        }
        // Without a rule there is no bound to tell that another process' hold-off made this void.
        if rules.is_empty() {
            return None;
        }
        let moment = Moment { now_us, lead_us: LEAD_US, lost: false };
        (1..=calls.len()).rev().find_map(|first| {
            let mut given = self.given.clone();
            let decision = decide_at(moment, &mut given, rules, &calls[..first]);
            let held = matches!(decision, Decision::Slots { .. }) && within(&given, &self.bound);
            held.then(|| {
                self.given = given;
                self.calls += first;
                decision
            })
        })
    }

    /// Calls to expect within the time of an allowance, as they came since it was granted.
    fn expected(&self, now_us: u64) -> usize {
        let elapsed_us = now_us.saturating_sub(self.since_us).max(ALLOWANCE_US / 4);
        let expected = self.calls as u64 * ALLOWANCE_US / elapsed_us;
        usize::try_from(expected).unwrap_or(usize::MAX).min(ALLOWANCE_CALLS)
    }

    /// Gives back what is unused, unless somebody was granted something behind it.
    pub(super) fn give_back(&self, db: &Connection, stack: &str) -> rusqlite::Result<()> {
        let Some(row) = limits::granted(db, stack)?.filter(|row| row.version == self.version) else {
            return Ok(());
        };
        let held_until_us = row.state.held_until_us.max(self.given.held_until_us);
        let given = State { held_until_us, ..self.given.clone() };
        limits::grant(db, stack, row.version, &given).map(drop)
    }
}

/// What a booking came to.
pub(super) struct Booked {
    pub(super) decision: Decision,
    pub(super) allowance: Allowance,
    /// The terms that it was made under.
    pub(super) terms: Terms,
    /// The largest jitter that a process told last, in microseconds.
    pub(super) measured_us: u64,
}

/// Books slots on the state file, and an allowance behind them where that is worth it. `own` is what is left of this
/// process's last one. The terms are those of the file, whatever the process knows.
pub(super) fn book(
    db: &Connection,
    stack: &Stack,
    calls: &[Weight],
    own: Option<Allowance>,
    moment: Moment,
) -> rusqlite::Result<Result<Booked, LimiterError>> {
    let row = limits::granted(db, &stack.name)?;
    let (terms, measured_us) =
        row.as_ref().map(|row| (row.terms.clone(), row.measured_us)).unwrap_or_default();
    let in_force = terms.applied(stack);
    let ready = judge::rules(&in_force, moment.now_us, &std::collections::BTreeMap::new())
        .and_then(|rules| calls.iter().try_for_each(|call| judge::fits(&in_force, *call)).map(|()| rules));
    let rules = match ready {
        Ok(rules) => rules,
        Err(impossible) => return Ok(Err(impossible)),
    };
    let calls: &[Weight] = if terms.paused.is_some() { &[] } else { calls };
    let costs: Vec<Vec<u64>> = calls.iter().map(|call| judge::costs(&in_force, *call)).collect();
    let version = row.as_ref().map_or(0, |row| row.version);
    // What one takes ahead and does not need is missing to the others: no more than was asked for lately.
    let most = own.as_ref().map_or(0, |own| own.expected(moment.now_us));
    let before = beginning(row, own, &rules);
    let mut given = before.clone();
    let decision = decide_at(moment, &mut given, &rules, &costs);
    let unbooked =
        |given: State| Allowance { version, bound: given.clone(), given, since_us: moment.now_us, calls: 0 };
    let allowance = if given == before {
        // Nobody has to take note.
        unbooked(given)
    } else {
        let (bound, booked) = match &decision {
            Decision::Slots { at, probe: false } => {
                let until_us = at.last().map_or(0, |last| last + ALLOWANCE_US);
                (ahead(&given, &in_force, &rules, &costs, moment.now_us, until_us, most), at.len())
            }
            Decision::Slots { .. } | Decision::ComeBack { .. } => (given.clone(), 0),
        };
        let version = limits::grant(db, &stack.name, version, &bound)?;
        Allowance { version, given, bound, since_us: moment.now_us, calls: booked }
    };
    Ok(Ok(Booked { decision, allowance, terms, measured_us }))
}

/// From where to go on: behind what this process gave out, where nobody else was granted anything since; else behind
/// the bound.
///
/// A file that does not know the stack never granted anything: a grant is on the disk before its first call leaves.
fn beginning(row: Option<Granted>, own: Option<Allowance>, rules: &[Rule<'_>]) -> State {
    match (row, own) {
        (Some(row), Some(own)) if own.version == row.version => {
            State { held_until_us: row.state.held_until_us.max(own.given.held_until_us), ..own.given }
        }
        // Known by a hold-off or its terms alone.
        (Some(row), _) if row.version == 0 => {
            State { held_until_us: row.state.held_until_us, probe: row.state.probe, ..State::idle(rules) }
        }
        (Some(row), _) => row.state,
        (None, _) => State::idle(rules),
    }
}

/// The state once up to `most` calls more were given out, as many as may leave by `until_us` and within the horizon.
fn ahead(
    given: &State,
    stack: &Stack,
    rules: &[Rule<'_>],
    calls: &[Vec<u64>],
    now_us: u64,
    until_us: u64,
    most: usize,
) -> State {
    let is_quota = |limit: &crate::limiter::Limit| {
        matches!(limit.kind(), Kind::Quota(_))
            || limit.kind() == Kind::Rate && limit.per_ms > LONGEST_WINDOW_MS
    };
    if most < FEWEST || stack.limits.iter().any(is_quota) {
        return given.clone();
    }
    let mut bound = given.clone();
    // As heavy as the heaviest of those that were asked for.
    let heaviest: Vec<u64> =
        (0..rules.len()).map(|rule| calls.iter().map(|costs| costs[rule]).max().unwrap_or(0)).collect();
    let next_call = [heaviest];
    let moment = Moment { now_us, lead_us: LEAD_US, lost: false };
    for taken in 0..most {
        let mut next = bound.clone();
        match decide_at(moment, &mut next, rules, &next_call) {
            Decision::Slots { at, .. } if at.iter().all(|slot| *slot <= until_us) => bound = next,
            _ if taken < FEWEST => return given.clone(),
            _ => break,
        }
    }
    bound
}

/// Moves every later slot back. What other processes were granted is booked: it lies within the horizon.
pub(super) fn move_back(
    db: &Connection,
    stack: &str,
    own: Option<Allowance>,
    by_us: u64,
) -> rusqlite::Result<Option<Allowance>> {
    let Some(row) = limits::granted(db, stack)? else {
        return Ok(None);
    };
    let mut allowance = own.filter(|own| own.version == row.version);
    let mut bound = row.state;
    bound.late(by_us);
    let version = limits::grant(db, stack, row.version, &bound)?;
    if let Some(allowance) = &mut allowance {
        allowance.given.late(by_us);
        (allowance.bound, allowance.version) = (bound, version);
    }
    Ok(allowance)
}

/// Gives back what a call took from the quotas: `costs` by the limits' names.
pub(super) fn refund(db: &Connection, stack: &str, costs: &[(String, u64)]) -> rusqlite::Result<()> {
    let Some(mut row) = limits::granted(db, stack)? else { return Ok(()) };
    row.state.refund(costs.iter().map(|(name, cost)| (name.as_str(), *cost)));
    limits::grant(db, stack, row.version, &row.state).map(drop)
}

/// Whether nothing was given out beyond the bound.
fn within(given: &State, bound: &State) -> bool {
    let inside = |given: &Known, bound: &Known| match (given, bound) {
        (Known::Pace(given), Known::Pace(bound)) => {
            bound.interval_us == given.interval_us && given.tat_us <= bound.tat_us
        }
        // Of a stack with a quota nothing is taken ahead.
        _ => false,
    };
    given.known.len() == bound.known.len()
        && given
            .known
            .iter()
            .all(|(name, given)| bound.known.get(name).is_some_and(|bound| inside(given, bound)))
}

#[cfg(test)]
mod tests;
