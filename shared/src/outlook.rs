//! When calls would leave under a stack's limits: the limiter's own steps, without a horizon. Pure.
//!
//! A steady stream is not walked call by call: once a round of calls moves everything on by the same step, as many such
//! rounds are taken at once as no quota's window ends in.

use std::collections::BTreeMap;

use crate::{
    gcra::{Keeper, Known, Pace, earliest},
    judge::{self, Rule},
    limit::{Kind, MICRO, Stack, Weight},
    limiter::LimiterError,
    quota::{Count, NEVER_US},
    standing::Standing,
};

/// The time line of one stack, from some moment on.
#[derive(Clone, Debug)]
pub struct Outlook<'a> {
    stack: &'a Stack,
    rules: Vec<Rule<'a>>,
    known: Vec<Known>,
    at_us: u64,
    /// How long each rule kept calls, in sum.
    kept_us: Vec<u64>,
    spent: Option<Spent>,
    /// Credits were used up, so nothing leaves any more.
    over: bool,
}

/// A quota that is used up on the way. Moments are in microseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// The limit.
    pub limit: String,
    /// The last call that it let go before it was used up for the first time.
    pub at_us: u64,
    /// When it resets then; never for credits.
    pub resets_at_us: Option<u64>,
    /// How often a reset is waited for in all.
    pub resets: u64,
}

/// What left. Moments are in microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// When the first call left.
    pub first_us: Option<u64>,
    /// When the last one did.
    pub last_us: Option<u64>,
    /// Rounds of which every call left. The others never can, or not in time.
    pub rounds: u64,
}

impl<'a> Outlook<'a> {
    /// From `now_us` on (microseconds since 1970), with rates idle and `used` of the quotas, by their names.
    ///
    /// # Errors
    /// [`LimiterError::Impossible`] when the stack can never let a call go.
    pub fn new(stack: &'a Stack, used: &BTreeMap<String, Count>, now_us: u64) -> Result<Self, LimiterError> {
        let rules = judge::rules(stack, now_us, used)?;
        let known = rules.iter().map(|rule| begin(rule, now_us)).collect();
        let kept_us = vec![0; rules.len()];
        Ok(Self { stack, rules, known, at_us: now_us, kept_us, spent: None, over: false })
    }

    /// From where the stack stands. A pause that somebody ordered is taken as if it ended now.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from(stack: &'a Stack, standing: &Standing) -> Result<Self, LimiterError> {
        let us = |at: jiff::Timestamp| u64::try_from(at.as_microsecond()).unwrap_or(0);
        let now_us = us(standing.at);
        let mut outlook = Self::new(stack, &BTreeMap::new(), now_us)?;
        for (rule, known) in outlook.rules.iter().zip(&mut outlook.known) {
            let Some(used) = standing.used.iter().find(|used| used.limit == rule.name()) else { continue };
            match known {
                Known::Count(count) => count.used = (used.units.unwrap_or(0.0) * MICRO as f64).round() as u64,
                Known::Pace(pace) => pace.tat_us = used.booked_until.map_or(now_us, us),
            }
        }
        outlook.at_us = standing.held_until.map_or(now_us, |until| us(until).max(now_us));
        outlook.turn_if_over()?;
        Ok(outlook)
    }

    /// When the next call, of this weight, leaves: in microseconds since 1970; never, where credits are used up, or not
    /// in this century.
    ///
    /// # Errors
    /// [`LimiterError::Impossible`] when no call of this weight ever can.
    pub fn next(&mut self, weight: Weight) -> Result<Option<u64>, LimiterError> {
        judge::fits(self.stack, weight)?;
        let costs = judge::costs(self.stack, weight);
        loop {
            let (slot, keeper) = earliest(self.at_us, &self.rules, &self.known, &costs);
            if let Keeper::Rule(rule) = keeper {
                self.note_spent(rule, costs[rule], slot);
                if slot >= NEVER_US {
                    self.over |= self.is_of_credits(rule);
                    return Ok(None);
                }
                self.kept_us[rule] += slot.saturating_sub(self.at_us);
            }
            self.at_us = self.at_us.max(slot);
            if self.turn_if_over()? {
                continue;
            }
            for ((rule, known), cost) in self.rules.iter().zip(&mut self.known).zip(&costs) {
                known.take(rule, *cost, slot);
            }
            return Ok(Some(slot));
        }
    }

    /// Lets up to `rounds` rounds of calls of these weights leave, one after the other, none after `until_us`.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn pass(&mut self, weights: &[Weight], rounds: u64, until_us: u64) -> Result<Passage, LimiterError> {
        let mut passage = Passage::default();
        while passage.rounds < rounds && !weights.is_empty() {
            let before = (self.at_us, self.ahead(), self.kept_us.clone());
            for weight in weights {
                match self.next(*weight)? {
                    Some(slot) if slot <= until_us => {
                        passage.first_us.get_or_insert(slot);
                        passage.last_us = Some(slot);
                    }
                    _ => return Ok(passage),
                }
            }
            passage.rounds += 1;
            let (at_us, ahead, kept_us) = before;
            if ahead == self.ahead() && !self.waited_for_a_window(&kept_us) {
                let more = self.alike(weights, self.at_us - at_us, rounds - passage.rounds, until_us);
                self.skip(weights, self.at_us - at_us, &kept_us, more);
                passage.rounds += more;
                passage.last_us = Some(self.at_us);
            }
        }
        Ok(passage)
    }

    /// The limit that kept the calls for the longest time, if any did.
    pub fn binding(&self) -> Option<&str> {
        let longest = (0..self.rules.len()).max_by_key(|rule| self.kept_us[*rule])?;
        (self.kept_us[longest] > 0).then(|| self.rules[longest].name())
    }

    /// The first quota that was used up, if one was.
    pub fn spent(&self) -> Option<&Spent> {
        self.spent.as_ref()
    }

    /// Whether credits were used up, so that nothing leaves any more.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// When the present window of this quota ends, in microseconds since 1970; never for credits, and for a rate.
    pub fn window_ends_us(&self, limit: &str) -> Option<u64> {
        let ends = self.rules.iter().find_map(|rule| match rule {
            Rule::Counted(quota) if quota.name == limit => Some(quota.windows.end_us),
            _ => None,
        });
        ends.filter(|end_us| *end_us < NEVER_US)
    }

    /// The stack.
    pub fn stack(&self) -> &'a Stack {
        self.stack
    }

    fn is_of_credits(&self, rule: usize) -> bool {
        // Their window is all of time.
        matches!(&self.rules[rule], Rule::Counted(quota) if quota.windows.start_us == 0)
    }

    /// The moment that it has come to, in microseconds since 1970.
    pub fn at_us(&self) -> u64 {
        self.at_us
    }

    fn note_spent(&mut self, rule: usize, cost: u64, slot: u64) {
        let (Rule::Counted(quota), Known::Count(count)) = (&self.rules[rule], &self.known[rule]) else {
            return;
        };
        if count.used + cost <= quota.most || slot < quota.windows.end_us {
            return;
        }
        let resets_at_us = Some(quota.windows.end_us).filter(|end_us| *end_us < NEVER_US);
        let limit = quota.name.to_owned();
        let first = Spent { limit, at_us: self.at_us, resets_at_us, resets: 0 };
        let spent = self.spent.get_or_insert(first);
        spent.resets += u64::from(resets_at_us.is_some());
    }

    /// How far each rate is ahead of the present moment.
    fn ahead(&self) -> Vec<i128> {
        let ahead = |known: &Known| match known {
            Known::Pace(pace) => Some(i128::from(pace.tat_us) - i128::from(self.at_us)),
            Known::Count(_) => None,
        };
        self.known.iter().filter_map(ahead).collect()
    }

    fn waited_for_a_window(&self, kept_before_us: &[u64]) -> bool {
        let mut rules = self.rules.iter().zip(self.kept_us.iter().zip(kept_before_us));
        rules.any(|(rule, (kept_us, before_us))| matches!(rule, Rule::Counted(_)) && kept_us > before_us)
    }

    /// How many further rounds go like the last one, which took `step_us`: as many as end before any window does.
    fn alike(&self, weights: &[Weight], step_us: u64, most: u64, until_us: u64) -> u64 {
        let within = |end_us: u64| match step_us {
            0 if self.at_us < end_us => u64::MAX,
            0 => 0,
            step_us => end_us.saturating_sub(self.at_us + 1) / step_us,
        };
        let costs = self.costs(weights);
        let bounds = self.rules.iter().zip(&self.known).zip(costs).filter_map(|((rule, known), cost)| {
            let (Rule::Counted(quota), Known::Count(count)) = (rule, known) else { return None };
            let room = quota.most.saturating_sub(count.used).checked_div(cost).unwrap_or(u64::MAX);
            Some(room.min(within(quota.windows.end_us.saturating_sub(quota.guard_us))))
        });
        bounds.fold(most.min(within(until_us.saturating_add(1))), u64::min)
    }

    fn skip(&mut self, weights: &[Weight], step_us: u64, kept_before_us: &[u64], rounds: u64) {
        let costs = self.costs(weights);
        for (known, cost) in self.known.iter_mut().zip(costs) {
            match known {
                Known::Pace(pace) => pace.tat_us += step_us * rounds,
                Known::Count(count) => count.used += cost * rounds,
            }
        }
        for (kept_us, before_us) in self.kept_us.iter_mut().zip(kept_before_us) {
            *kept_us += (*kept_us - before_us) * rounds;
        }
        self.at_us += step_us * rounds;
    }

    /// What a round takes of each rule.
    fn costs(&self, weights: &[Weight]) -> Vec<u64> {
        let mut sums = vec![0; self.rules.len()];
        for weight in weights {
            for (sum, cost) in sums.iter_mut().zip(judge::costs(self.stack, *weight)) {
                *sum += cost;
            }
        }
        sums
    }

    /// In another window the rules are those of its moment.
    fn turn_if_over(&mut self) -> Result<bool, LimiterError> {
        let now_us = self.at_us;
        let over = |rule: &Rule<'_>| match rule {
            Rule::Counted(quota) => now_us >= quota.windows.end_us,
            Rule::Paced(_) => false,
        };
        if !self.rules.iter().any(over) {
            return Ok(false);
        }
        let rules = judge::rules(self.stack, now_us, &BTreeMap::new())?;
        for (rule, known) in rules.iter().zip(&mut self.known) {
            if let (Rule::Counted(quota), Known::Count(count)) = (rule, &mut *known) {
                *known = Known::Count(Count::of(Some(*count), quota, now_us, false));
            }
        }
        self.rules = rules;
        Ok(true)
    }
}

fn begin(rule: &Rule<'_>, now_us: u64) -> Known {
    match rule {
        // Idle for as long as its burst remembers.
        Rule::Paced(limit) => Known::Pace(Pace { tat_us: now_us, interval_us: limit.interval_us }),
        Rule::Counted(quota) => Known::Count(Count::of(None, quota, now_us, true)),
    }
}

/// Calls that may be under way at once, where a limit says so.
pub fn most_in_flight(stack: &Stack) -> Option<u32> {
    stack.limits.iter().filter(|limit| limit.kind() == Kind::InFlight).map(|limit| limit.calls).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{Judge, Limit, Quota};
    use proptest::prelude::*;

    const START_US: u64 = 1_795_651_200_000_000;
    const DAY_US: u64 = 86_400_000_000;

    fn quota(name: &str, calls: u32, quota: Quota) -> Limit {
        Limit { quota: Some(quota), ..Limit::per_second(name, calls) }
    }

    fn stack(limits: Vec<Limit>) -> Stack {
        Stack { name: "s".into(), limits }
    }

    #[test]
    fn ten_million_calls_over_months_of_spent_days_take_no_time_to_foresee() {
        let stack = stack(vec![Limit::per_second("rate", 10), quota("day", 100_000, Quota::Day)]);
        let mut outlook = Outlook::new(&stack, &BTreeMap::new(), START_US).unwrap();
        let passage = outlook.pass(&[Weight::of_models(1)], 10_000_000, u64::MAX).unwrap();
        assert_eq!(passage.rounds, 10_000_000);
        assert_eq!((passage.last_us.unwrap() - START_US) / DAY_US, 99);
        let spent = outlook.spent().unwrap();
        assert_eq!((spent.limit.as_str(), spent.resets), ("day", 99));
        assert_eq!(outlook.binding(), Some("day"));
    }

    #[test]
    fn credits_that_are_used_up_end_it() {
        let stack = stack(vec![Limit::per_second("rate", 10), quota("credits", 30, Quota::Total)]);
        let mut outlook = Outlook::new(&stack, &BTreeMap::new(), START_US).unwrap();
        let passage = outlook.pass(&[Weight::of_models(1)], 100, u64::MAX).unwrap();
        assert_eq!(passage.rounds, 30);
        assert_eq!(outlook.spent().map(|spent| spent.resets_at_us), Some(None));
        assert!(outlook.is_over());
    }

    proptest! {
        /// The rounds that are skipped are those that would have been walked.
        #[test]
        fn a_stream_that_is_skipped_through_ends_where_a_walked_one_does(
            calls in 1u32..40, burst in 6u32..9, minute in 20u32..400, hour in 100u32..5_000,
            heavy in 1u32..6, rounds in 1u64..3_000, judge in 0usize..3,
        ) {
            let judge = [Judge::Sliding, Judge::Bucket, Judge::Leaky][judge];
            let rate = Limit { judge, burst: burst.min(calls), ..Limit::per_second("rate", calls) };
            let stack = stack(vec![rate, quota("minute", minute, Quota::Minute), quota("hour", hour, Quota::Hour)]);
            let round = [Weight::of_models(1), Weight::of_models(heavy)];
            let mut skipping = Outlook::new(&stack, &BTreeMap::new(), START_US).unwrap();
            let mut walking = skipping.clone();
            let passage = skipping.pass(&round, rounds, u64::MAX).unwrap();
            let mut last_us = None;
            for _ in 0..rounds {
                for weight in round {
                    last_us = walking.next(weight).unwrap();
                }
            }
            prop_assert_eq!((passage.rounds, passage.last_us), (rounds, last_us));
            prop_assert_eq!((skipping.known, skipping.kept_us), (walking.known, walking.kept_us));
            prop_assert_eq!(skipping.spent, walking.spent);
        }
    }
}
