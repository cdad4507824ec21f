//! The judges: pure state machines that are told the time.
//!
//! Each answers one question, may this call pass now, and keeps what it needs to answer the next. Time never runs
//! backwards for a judge: an earlier `now_us` is taken as the latest one seen. The ways of judging, and what a client
//! must do to please each, are in `docs/sandbox.md`.

use std::collections::VecDeque;

use crate::settings::{Judging, Rule};

/// What a judge says of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Accepted,
    /// It may not.
    Refused {
        /// The first moment, in microseconds, at which the same call could pass if nothing else came before it.
        retry_at_us: u64,
    },
}

/// One key's judge.
#[derive(Debug, Clone)]
pub struct Judge {
    judging: Judging,
    now_us: u64,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Free,
    Fixed { window: u64, count: u64 },
    Sliding { passed: VecDeque<u64> },
    Bucket { level: i128, at_us: u64 },
    Leaky { seen: Option<Drip> },
    Concurrent { in_flight: u64 },
}

/// nginx's two numbers: thousandths of a call above the rate, and the millisecond of the last accepted call.
#[derive(Debug, Clone, Copy)]
struct Drip {
    excess: i64,
    last_ms: u64,
}

impl Judge {
    /// A judge that has seen nothing yet.
    pub fn new(judging: Judging) -> Self {
        let state = match judging.rule {
            Rule::None => State::Free,
            Rule::Fixed => State::Fixed { window: 0, count: 0 },
            Rule::Sliding => State::Sliding { passed: VecDeque::new() },
            Rule::Bucket { burst } => {
                State::Bucket { level: i128::from(burst) * i128::from(judging.window_ms * 1_000), at_us: 0 }
            }
            Rule::Leaky { .. } => State::Leaky { seen: None },
            Rule::Concurrent => State::Concurrent { in_flight: 0 },
        };
        Self { judging, now_us: 0, state }
    }

    /// Judges one call that arrives at `now_us` (microseconds since any fixed moment) and counts for `cost`.
    ///
    /// A call that counts for more than the judge ever lets pass at once is always refused.
    pub fn arrive(&mut self, now_us: u64, cost: u32) -> Verdict {
        self.now_us = self.now_us.max(now_us);
        let (now, cost) = (self.now_us, u64::from(cost));
        let limit = u64::from(self.judging.limit);
        let window = self.judging.window_ms * 1_000;
        match &mut self.state {
            State::Free => Verdict::Accepted,
            State::Fixed { window: index, count } => fixed(index, count, now, cost, limit, window),
            State::Sliding { passed } => {
                sliding(passed, now, cost, limit, window, self.judging.count_refused)
            }
            State::Bucket { level, at_us } => {
                let Rule::Bucket { burst } = self.judging.rule else {
                    return Verdict::Accepted;
                };
                let full = i128::from(burst) * i128::from(window);
                let gained = i128::from(now - *at_us) * i128::from(limit);
                (*level, *at_us) = ((*level + gained).min(full), now);
                bucket(level, full, now, cost, limit, window, self.judging.count_refused)
            }
            State::Leaky { seen } => {
                let Rule::Leaky { burst } = self.judging.rule else {
                    return Verdict::Accepted;
                };
                leaky(seen, now, cost, limit * 1_000_000 / self.judging.window_ms, burst)
            }
            State::Concurrent { in_flight } => concurrent(in_flight, now, limit),
        }
    }

    /// Tells the judge that an accepted call has ended; only `concurrent` cares.
    pub fn finish(&mut self) {
        if let State::Concurrent { in_flight } = &mut self.state {
            *in_flight = in_flight.saturating_sub(1);
        }
    }
}

fn fixed(index: &mut u64, count: &mut u64, now: u64, cost: u64, limit: u64, window: u64) -> Verdict {
    if now / window != *index {
        (*index, *count) = (now / window, 0);
    }
    if *count + cost > limit {
        return Verdict::Refused { retry_at_us: (*index + 1) * window };
    }
    *count += cost;
    Verdict::Accepted
}

fn sliding(
    passed: &mut VecDeque<u64>,
    now: u64,
    cost: u64,
    limit: u64,
    window: u64,
    count_refused: bool,
) -> Verdict {
    while passed.front().is_some_and(|&at| now - at >= window) {
        passed.pop_front();
    }
    let accepted = passed.len() as u64 + cost <= limit;
    if accepted || count_refused {
        // Only the newest `limit` can ever decide, so that a retry storm costs no memory.
        for _ in 0..cost.min(limit) {
            if passed.len() as u64 == limit {
                passed.pop_front();
            }
            passed.push_back(now);
        }
    }
    if accepted {
        return Verdict::Accepted;
    }
    let must_leave = usize::try_from(passed.len() as u64 + cost - limit).unwrap_or(usize::MAX);
    let last_to_leave = passed.get(must_leave - 1).copied().unwrap_or(now);
    Verdict::Refused { retry_at_us: last_to_leave + window }
}

/// Levels are tokens times the window, so that refilling is exact in integers.
fn bucket(
    level: &mut i128,
    full: i128,
    now: u64,
    cost: u64,
    limit: u64,
    window: u64,
    count_refused: bool,
) -> Verdict {
    let price = i128::from(cost) * i128::from(window);
    let missing = price - *level;
    if missing <= 0 {
        *level -= price;
        return Verdict::Accepted;
    }
    if count_refused {
        *level = (*level - price).max(-full);
    }
    let wait = (price - *level).div_euclid(i128::from(limit)) + 1;
    Verdict::Refused { retry_at_us: now.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)) }
}

/// `ngx_http_limit_req_lookup` of nginx 1.22: whole milliseconds, no credit, and a refusal leaves no trace.
fn leaky(seen: &mut Option<Drip>, now: u64, cost: u64, rate: u64, burst: u32) -> Verdict {
    let now_ms = now / 1_000;
    let price = i64::try_from(cost * 1_000).unwrap_or(i64::MAX / 4);
    let (rate, allowed) = (i64::try_from(rate.max(1)).unwrap_or(i64::MAX / 4), i64::from(burst) * 1_000);
    let excess = match *seen {
        None => price - 1_000,
        Some(drip) => {
            let ms = i64::try_from(now_ms - drip.last_ms).unwrap_or(i64::MAX);
            (drip.excess - rate.saturating_mul(ms) / 1_000 + price).max(0)
        }
    };
    if excess > allowed {
        let wait_ms = u64::try_from((excess - allowed) * 1_000 / rate + 1).unwrap_or(0);
        return Verdict::Refused { retry_at_us: (now_ms + wait_ms) * 1_000 };
    }
    *seen = Some(Drip { excess, last_ms: now_ms });
    Verdict::Accepted
}

fn concurrent(in_flight: &mut u64, now: u64, limit: u64) -> Verdict {
    if *in_flight >= limit {
        // Nobody knows when a call in flight ends; a second is what gateways say.
        return Verdict::Refused { retry_at_us: now + 1_000_000 };
    }
    *in_flight += 1;
    Verdict::Accepted
}

#[cfg(test)]
mod tests;
