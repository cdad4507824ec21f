//! When a number of calls is done at best, what binds it, and what is used up on the way. Pure.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    judge,
    limit::{Stack, Weight},
    limiter::LimiterError,
    outlook::{Outlook, Passage, Spent},
    quota::NEVER_US,
};

/// When a number of calls is done at best: with enough workers, and nobody else under the same limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Foresight {
    /// Seconds from the first call's leaving to the last one's. Null without a limit that takes time: then the workers
    /// decide.
    pub seconds: Option<f64>,
    /// When the last call leaves; null without such a limit, and where credits do not reach.
    pub done_at: Option<Timestamp>,
    /// The limit that decides that time.
    pub binding: Option<Binding>,
    /// The first quota that is used up on the way, if one is.
    pub used_up: Option<UsedUp>,
    /// Calls for which no credits are left: they can never leave.
    pub beyond_credits: u64,
    /// Calls that do not leave before the end of the calendar that is looked at, in 2096.
    #[serde(skip_serializing_if = "is_zero")]
    pub beyond_century: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The limit that decides how long calls take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Binding {
    /// The limit stack.
    pub stack: String,
    /// The limit's name in it.
    pub limit: String,
    /// Calls a second that it lets through in the long run; of several accounts, all of theirs together.
    pub calls_per_s: f64,
}

/// A quota that is used up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UsedUp {
    /// The limit stack.
    pub stack: String,
    /// The limit's name in it.
    pub limit: String,
    /// When, for the first time.
    pub at: Timestamp,
    /// When it resets then; null for credits, which never do.
    pub resets_at: Option<Timestamp>,
    /// How often a reset is waited for in all.
    pub resets: u64,
}

/// What becomes of `rounds` rounds of calls of these weights, each call by the account that is free first.
///
/// # Errors
/// [`LimiterError::Impossible`] when one of the stacks can never let such a call go.
pub fn foresee(
    mut outlooks: Vec<Outlook<'_>>,
    weights: &[Weight],
    rounds: u64,
) -> Result<Foresight, LimiterError> {
    for outlook in &outlooks {
        weights.iter().try_for_each(|weight| judge::fits(outlook.stack(), *weight))?;
    }
    let passage = together(&mut outlooks, weights, rounds)?;
    let timed = outlooks.iter().all(|outlook| outlook.stack().is_timed());
    let first_and_last = passage.first_us.zip(passage.last_us);
    let seconds = first_and_last.map_or(0.0, |(first_us, last_us)| (last_us - first_us) as f64 / 1e6);
    let left = (rounds - passage.rounds) * weights.len() as u64;
    let over = !outlooks.is_empty() && outlooks.iter().all(Outlook::is_over);
    Ok(Foresight {
        seconds: timed.then_some(seconds),
        done_at: passage.last_us.and_then(moment).filter(|_| timed && left == 0),
        binding: binding(&outlooks, weights).filter(|_| timed),
        used_up: used_up(&outlooks),
        beyond_credits: if over { left } else { 0 },
        beyond_century: if over { 0 } else { left },
    })
}

/// Lets `rounds` rounds of calls leave, each by the stack that is free first, as a worker with several accounts does.
/// The outlooks are moved on.
///
/// # Errors
/// As [`Outlook::next`].
fn together(outlooks: &mut [Outlook<'_>], weights: &[Weight], rounds: u64) -> Result<Passage, LimiterError> {
    if let [only] = outlooks {
        return only.pass(weights, rounds, u64::MAX);
    }
    // The earliest moment by which all of them together have let so many go.
    let by = |until_us: u64| -> Result<u64, LimiterError> {
        let mut passed = outlooks.iter().map(|outlook| outlook.clone().pass(weights, rounds, until_us));
        passed.try_fold(0u64, |sum, passed| Ok(sum.saturating_add(passed?.rounds)))
    };
    let mut before = outlooks.iter().map(Outlook::at_us).min().unwrap_or(0).saturating_sub(1);
    let mut end_us = NEVER_US;
    for outlook in outlooks.iter() {
        let alone = outlook.clone().pass(weights, rounds, NEVER_US)?;
        if let (true, Some(last_us)) = (alone.rounds >= rounds, alone.last_us) {
            end_us = end_us.min(last_us);
        }
    }
    while before + 1 < end_us {
        let middle = before + (end_us - before) / 2;
        if by(middle)? >= rounds { end_us = middle } else { before = middle }
    }
    let mut all = Passage::default();
    for outlook in outlooks {
        let own = outlook.pass(weights, rounds - all.rounds, end_us)?;
        all.rounds += own.rounds;
        all.first_us = all.first_us.into_iter().chain(own.first_us).min();
        all.last_us = all.last_us.max(own.last_us);
    }
    Ok(all)
}

/// What binds the account that binds most.
fn binding(outlooks: &[Outlook<'_>], weights: &[Weight]) -> Option<Binding> {
    let of = |outlook: &Outlook<'_>| {
        let stack = outlook.stack();
        let limit = outlook.binding().or_else(|| slowest(stack, weights))?.to_owned();
        let calls_per_s = calls_per_s(stack, &limit, weights)?;
        Some(Binding { stack: stack.name.clone(), limit, calls_per_s })
    };
    let all: Vec<Binding> = outlooks.iter().filter_map(of).collect();
    let calls_per_s = all.iter().map(|binding| binding.calls_per_s).sum();
    let first = all.into_iter().min_by(|one, other| one.calls_per_s.total_cmp(&other.calls_per_s))?;
    Some(Binding { calls_per_s, ..first })
}

fn used_up(outlooks: &[Outlook<'_>]) -> Option<UsedUp> {
    let spent = outlooks.iter().filter_map(|outlook| Some((outlook.stack(), outlook.spent()?)));
    let (stack, spent) = spent.min_by_key(|(_, spent)| spent.at_us)?;
    let Spent { limit, at_us, resets_at_us, resets } = spent.clone();
    let resets_at = resets_at_us.and_then(moment);
    Some(UsedUp { stack: stack.name.clone(), limit, at: moment(at_us)?, resets_at, resets })
}

fn moment(us: u64) -> Option<Timestamp> {
    i64::try_from(us).ok().and_then(|us| Timestamp::from_microsecond(us).ok())
}

/// The limit that lets the fewest of these calls through in the long run.
pub fn slowest<'a>(stack: &'a Stack, weights: &[Weight]) -> Option<&'a str> {
    let rate = |name: &'a str| Some((name, calls_per_s(stack, name, weights)?));
    let rates = stack.limits.iter().filter_map(|limit| rate(&limit.name));
    rates.min_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(name, _)| name)
}

/// Calls a second of the mix `weights` that the limit lets through in the long run; none for credits, calls in flight,
/// and where these calls take nothing of it.
pub fn calls_per_s(stack: &Stack, name: &str, weights: &[Weight]) -> Option<f64> {
    let limit = stack.limits.iter().find(|limit| limit.name == name)?;
    let micros: u64 = weights.iter().map(|weight| weight.micros(limit.unit)).sum();
    let units = (micros > 0).then_some(micros as f64 / 1e6)?;
    Some(limit.units_per_s()? * judge::best_utilisation(limit) * weights.len() as f64 / units)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::limit::{Judge, Limit, Quota};

    const START_US: u64 = 1_795_651_200_000_000;

    #[test]
    fn what_takes_longer_than_the_calendar_is_not_taken_for_credits_that_end() {
        let day = Limit { quota: Some(Quota::Day), ..Limit::per_second("day", 1) };
        let stack = Stack { name: "s".into(), limits: vec![day] };
        let outlook = Outlook::new(&stack, &BTreeMap::new(), START_US).unwrap();
        let time = foresee(vec![outlook], &[Weight::of_models(1)], 30_000).unwrap();
        assert_eq!((time.done_at, time.beyond_credits), (None, 0));
        assert!(time.beyond_century > 4_000, "{time:?}");
    }

    #[test]
    fn two_accounts_take_half_of_the_time_and_an_unequal_pair_its_share_each() {
        let call = [Weight::of_models(1)];
        let seconds = |rates: [u32; 2]| {
            let rate = |calls| Limit { judge: Judge::Bucket, ..Limit::per_second("rate", calls) };
            let stacks = rates.map(|calls| Stack {
                name: "s".into(),
                limits: vec![Limit { jitter_ms: Some(0.0), ..rate(calls) }],
            });
            let mut outlooks: Vec<Outlook<'_>> =
                stacks.iter().map(|stack| Outlook::new(stack, &BTreeMap::new(), START_US).unwrap()).collect();
            let all = together(&mut outlooks, &call, 1_200).unwrap();
            assert_eq!(all.rounds, 1_200);
            (all.last_us.unwrap() - START_US) as f64 / 1e6
        };
        assert_eq!(seconds([10, 10]), 59.9);
        assert_eq!(seconds([10, 30]).round(), 30.0);
    }
}
