//! When calls would leave under a stack's limits: the limiter's own steps, without a horizon. Pure.

use std::collections::BTreeMap;

use crate::{
    gcra::{Keeper, Known, Pace, earliest},
    judge::{self, Rule},
    limit::{Kind, Stack, Weight},
    limiter::LimiterError,
    quota::Count,
};

/// The time line of one stack, from some moment on.
pub struct Outlook<'a> {
    stack: &'a Stack,
    rules: Vec<Rule<'a>>,
    known: Vec<Known>,
    at_us: u64,
    /// How long each rule kept calls, in sum.
    kept_us: Vec<u64>,
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
        Ok(Self { stack, rules, known, at_us: now_us, kept_us })
    }

    /// When the next call, of this weight, leaves: in microseconds since 1970.
    ///
    /// # Errors
    /// [`LimiterError::Impossible`] when no call of this weight ever can.
    pub fn next(&mut self, weight: Weight) -> Result<u64, LimiterError> {
        judge::fits(self.stack, weight)?;
        let costs = judge::costs(self.stack, weight);
        loop {
            let (slot, keeper) = earliest(self.at_us, &self.rules, &self.known, &costs);
            if let Keeper::Rule(rule) = keeper {
                self.kept_us[rule] += slot.saturating_sub(self.at_us);
            }
            self.at_us = self.at_us.max(slot);
            let over = |rule: &Rule<'_>| match rule {
                Rule::Counted(quota) => self.at_us >= quota.windows.end_us,
                Rule::Paced(_) => false,
            };
            if self.rules.iter().any(over) {
                // Another window: the rules are those of its moment.
                self.turn()?;
                continue;
            }
            for ((rule, known), cost) in self.rules.iter().zip(&mut self.known).zip(&costs) {
                known.take(rule, *cost, slot);
            }
            return Ok(slot);
        }
    }

    /// The limit that kept the calls for the longest time, if any did.
    pub fn binding(&self) -> Option<&str> {
        let longest = (0..self.rules.len()).max_by_key(|rule| self.kept_us[*rule])?;
        (self.kept_us[longest] > 0).then(|| self.rules[longest].name())
    }

    fn turn(&mut self) -> Result<(), LimiterError> {
        let now_us = self.at_us;
        let rules = judge::rules(self.stack, now_us, &BTreeMap::new())?;
        for (rule, known) in rules.iter().zip(&mut self.known) {
            if let (Rule::Counted(quota), Known::Count(count)) = (rule, &mut *known) {
                *known = Known::Count(Count::of(Some(*count), quota, now_us, false));
            }
        }
        self.rules = rules;
        Ok(())
    }
}

fn begin(rule: &Rule<'_>, now_us: u64) -> Known {
    match rule {
        // Idle for as long as its burst remembers.
        Rule::Paced(limit) => Known::Pace(Pace { tat_us: now_us, interval_us: limit.interval_us }),
        Rule::Counted(quota) => Known::Count(Count::of(None, quota, now_us, true)),
    }
}

/// Calls of this weight that may be under way at once, where a limit says so.
pub fn most_in_flight(stack: &Stack) -> Option<u32> {
    stack.limits.iter().filter(|limit| limit.kind() == Kind::InFlight).map(|limit| limit.calls).min()
}
