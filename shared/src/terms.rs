//! What was changed at run time: terms that hold for the whole fleet, over the limits of the settings. Pure.
//!
//! Terms are one small JSON document a stack, under a revision. A process that asks for slots says the revision that it
//! knows; under another one nothing is booked, and it is told the new terms instead. So nobody books by old ones.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    jitter,
    judge::{self, Problem},
    limit::{Limit, Stack},
};

/// What holds for a stack beside its limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Moves with every change; 0 while nothing was ever changed.
    pub rev: u64,
    /// Who paused the stack, if somebody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// Other numbers than those of the settings, by the limit's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Numbers>,
    /// The arrival jitter that the fleet allows for, in microseconds; none before it was ever adapted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    /// When the jitter was last adapted, in microseconds since 1970.
    #[serde(skip_serializing_if = "is_zero")]
    pub jitter_at_us: u64,
}

/// Numbers that replace those of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Numbers {
    /// Units in a window, or calls in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<u32>,
    /// The burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// The arrival jitter in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<f64>,
}

/// A change, with who made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Amendment {
    /// When.
    pub at: Timestamp,
    /// Who: `name@host`, or the worker that adapted the jitter.
    pub by: String,
    /// What.
    pub change: Change,
}

/// What can be changed at run time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// Nothing leaves until it is resumed.
    Pause,
    /// A pause, and a hold-off, are over.
    Resume,
    /// Other numbers for one limit; what is not named stays as it is.
    Set {
        /// The limit.
        limit: String,
        /// The numbers.
        numbers: Numbers,
    },
    /// A limit is as its settings say again.
    Reset {
        /// The limit.
        limit: String,
    },
    /// Sets what is used of a quota.
    Spent {
        /// The limit.
        limit: String,
        /// Units used in the present window.
        units: f64,
    },
    /// The fleet's jitter was adapted.
    Jitter {
        /// To so much, in microseconds.
        us: u64,
    },
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Terms {
    /// The terms after `amendment`.
    #[must_use]
    pub fn amended(&self, amendment: &Amendment) -> Self {
        let mut terms = Self { rev: self.rev + 1, ..self.clone() };
        match &amendment.change {
            Change::Pause => terms.paused = Some(amendment.by.clone()),
            Change::Resume => terms.paused = None,
            Change::Set { limit, numbers } => {
                let known = terms.limits.entry(limit.clone()).or_default();
                known.calls = numbers.calls.or(known.calls);
                known.burst = numbers.burst.or(known.burst);
                known.jitter_ms = numbers.jitter_ms.or(known.jitter_ms);
            }
            Change::Reset { limit } => {
                terms.limits.remove(limit);
            }
            Change::Spent { .. } => {}
            Change::Jitter { us } => {
                terms.jitter_us = Some(*us);
                terms.jitter_at_us = u64::try_from(amendment.at.as_microsecond()).unwrap_or(0);
            }
        }
        terms
    }

    /// The stack as it is under these terms.
    pub fn applied(&self, stack: &Stack) -> Stack {
        let limits = stack.limits.iter().map(|limit| self.in_force(limit)).collect();
        Stack { name: stack.name.clone(), limits }
    }

    fn in_force(&self, limit: &Limit) -> Limit {
        let mut limit = limit.clone();
        if let Some(numbers) = self.limits.get(&limit.name) {
            limit.calls = numbers.calls.unwrap_or(limit.calls);
            limit.burst = numbers.burst.unwrap_or(limit.burst);
            limit.jitter_ms = numbers.jitter_ms.or(limit.jitter_ms);
        }
        if limit.is_adaptive() {
            limit.jitter_ms = Some(jitter::of(&limit, self.jitter_us));
        }
        limit
    }

    /// Whether `change` makes sense for `stack` as it is under these terms.
    ///
    /// # Errors
    /// What is wrong with it: no such limit, or numbers that can't be.
    pub fn check(&self, stack: &Stack, amendment: &Amendment) -> Result<(), Problem> {
        let named = match &amendment.change {
            Change::Set { limit, .. } | Change::Spent { limit, .. } => limit,
            // A limit that the settings do not have any more can still be reset.
            Change::Pause | Change::Resume | Change::Jitter { .. } | Change::Reset { .. } => return Ok(()),
        };
        if !stack.limits.iter().any(|limit| limit.name == *named) {
            let known: Vec<&str> = stack.limits.iter().map(|limit| limit.name.as_str()).collect();
            return Err(Problem(format!(
                "stack `{}` has no limit `{named}`: it has {}",
                stack.name,
                known.join(", ")
            )));
        }
        let amended = self.amended(amendment).applied(stack);
        judge::check(&amended)
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pause => f.write_str("paused"),
            Self::Resume => f.write_str("resumed"),
            Self::Reset { limit } => write!(f, "limit `{limit}` as in the settings"),
            Self::Spent { limit, units } => write!(f, "limit `{limit}`: {units} used"),
            Self::Jitter { us } => write!(f, "jitter {:.1} ms", *us as f64 / 1000.0),
            Self::Set { limit, numbers } => {
                let calls = numbers.calls.map(|calls| format!("calls = {calls}"));
                let burst = numbers.burst.map(|burst| format!("burst = {burst}"));
                let jitter = numbers.jitter_ms.map(|ms| format!("jitter_ms = {ms}"));
                let said: Vec<String> = [calls, burst, jitter].into_iter().flatten().collect();
                write!(f, "limit `{limit}`: {}", said.join(", "))
            }
        }
    }
}
