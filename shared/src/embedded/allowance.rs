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
    gcra::{Decision, LEAD_US, Moment, State, decide_at},
    judge::{self, Spacing},
    limiter::Stack,
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
        spacings: &[Spacing<'_>],
        calls: &[u32],
        now_us: u64,
    ) -> Option<Decision> {
        if self.given.at_us > now_us {
            // The clock was set back: the bound has to follow, too.
            return None;
        }
        let moment = Moment { now_us, lead_us: LEAD_US, lost: false };
        (1..=calls.len()).rev().find_map(|first| {
            let mut given = self.given.clone();
            let decision = decide_at(moment, &mut given, spacings, &calls[..first]);
            let held = matches!(decision, Decision::Slots(_)) && within(&given, &self.bound);
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

/// Books slots on the state file, and an allowance behind them where that is worth it. `own` is what is left of this
/// process's last one.
pub(super) fn book(
    db: &Connection,
    stack: &Stack,
    calls: &[u32],
    own: Option<Allowance>,
    moment: Moment,
) -> rusqlite::Result<(Decision, Allowance)> {
    let spacings: Vec<Spacing<'_>> = stack.limits.iter().map(judge::spacing).collect();
    let row = limits::granted(db, &stack.name)?;
    let version = row.as_ref().map_or(0, |row| row.version);
    // What one takes ahead and does not need is missing to the others: no more than was asked for lately.
    let most = own.as_ref().map_or(0, |own| own.expected(moment.now_us));
    let before = beginning(row, own, &spacings);
    let mut given = before.clone();
    let decision = decide_at(moment, &mut given, &spacings, calls);
    if given == before {
        // Nothing was booked: nobody has to take note.
        return Ok((
            decision,
            Allowance { version, bound: given.clone(), given, since_us: moment.now_us, calls: 0 },
        ));
    }
    let (bound, booked) = match &decision {
        Decision::Slots(slots) => {
            let until_us = slots.last().map_or(0, |last| last + ALLOWANCE_US);
            (ahead(&given, stack, &spacings, calls, moment.now_us, until_us, most), slots.len())
        }
        Decision::ComeBack(_) => (given.clone(), 0),
    };
    let version = limits::grant(db, &stack.name, version, &bound)?;
    Ok((decision, Allowance { version, given, bound, since_us: moment.now_us, calls: booked }))
}

/// From where to go on: behind what this process gave out, where nobody else was granted anything since; else behind
/// the bound.
///
/// A file that does not know the stack never granted anything: a grant is on the disk before its first call leaves.
fn beginning(row: Option<Granted>, own: Option<Allowance>, spacings: &[Spacing<'_>]) -> State {
    match (row, own) {
        (Some(row), Some(own)) if own.version == row.version => {
            State { held_until_us: row.state.held_until_us.max(own.given.held_until_us), ..own.given }
        }
        // Known by a hold-off alone.
        (Some(row), _) if row.version == 0 => {
            State { held_until_us: row.state.held_until_us, ..State::idle(spacings) }
        }
        (Some(row), _) => row.state,
        (None, _) => State::idle(spacings),
    }
}

/// The state once up to `most` calls more were given out, as many as may leave by `until_us` and within the horizon.
fn ahead(
    given: &State,
    stack: &Stack,
    spacings: &[Spacing<'_>],
    calls: &[u32],
    now_us: u64,
    until_us: u64,
    most: usize,
) -> State {
    if most < FEWEST || stack.limits.iter().any(|limit| limit.per_ms > LONGEST_WINDOW_MS) {
        return given.clone();
    }
    let mut bound = given.clone();
    let models = [calls.iter().copied().max().unwrap_or(1)];
    let moment = Moment { now_us, lead_us: LEAD_US, lost: false };
    for taken in 0..most {
        let mut next = bound.clone();
        match decide_at(moment, &mut next, spacings, &models) {
            Decision::Slots(slots) if slots.iter().all(|slot| *slot <= until_us) => bound = next,
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

/// Whether nothing was given out beyond the bound.
fn within(given: &State, bound: &State) -> bool {
    given.pace.len() == bound.pace.len()
        && given.pace.iter().all(|(name, pace)| {
            bound
                .pace
                .get(name)
                .is_some_and(|bound| bound.interval_us == pace.interval_us && pace.tat_us <= bound.tat_us)
        })
}

#[cfg(test)]
mod tests;
