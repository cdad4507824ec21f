//! A batch's budget: each call's cost is reserved before the call asks for its slot, and given back where it was not
//! charged.
//!
//! What is reserved is spent to everybody else, so no call leaves that the budget could not pay for, however many are
//! under way. A worker that dies keeps its part: nobody can know whether its calls were charged.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use pixfleet_shared::{
    budget::Budget,
    job::Job,
    limiter::{LimiterError, Order, Reservation, Stack, Weight, Why},
};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::{
    conclude::{Ending, conclude_spent},
    crew::{Crew, Serving},
    departure::said,
    step::Early,
};

/// Bound of one reservation; the limiter's own timeouts are shorter.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two questions to a limiter that is away.
const PAUSE: Duration = Duration::from_millis(200);
/// A budget is spent when it was found so for this long: what was reserved last may be given back.
const GRACE: Duration = Duration::from_secs(5);
/// Where somebody paused the batch, its jobs come and ask again at the latest after this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// More spent budgets than this at a time are not told apart by when that was found: their jobs are given up at once.
const MOST_NOTED: usize = 1_000;

/// What a call took from its batch's budget.
#[derive(Debug)]
pub(crate) struct Reserved {
    stack: Stack,
    weight: Weight,
}

/// The budgets that this worker found spent, for calls of which price, and since when.
#[derive(Debug, Default)]
pub(crate) struct Spent(Mutex<BTreeMap<(String, u64), Instant>>);

impl Spent {
    /// For how long a job is to wait before its budget counts as spent.
    fn found(&self, stack: &str, weight: Weight, now: Instant) -> Duration {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (stack.to_owned(), weight.price_micros);
        if noted.len() >= MOST_NOTED && !noted.contains_key(&key) {
            noted.retain(|_, since| now - *since < GRACE);
            if noted.len() >= MOST_NOTED {
                return Duration::ZERO;
            }
        }
        let since = *noted.entry(key).or_insert(now);
        GRACE.saturating_sub(now - since)
    }

    /// It was not, after all.
    fn forget(&self, stack: &str, weight: Weight) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.remove(&(stack.to_owned(), weight.price_micros));
    }
}

/// Reserves what the job's call costs; none where its batch has no budget. A job that finds the budget spent is not called.
pub(crate) async fn reserve(crew: &Crew, serving: &Serving, job: &Job) -> Result<Option<Reserved>, Early> {
    let Some(budget) = job.budget else { return Ok(None) };
    let tariff = serving.provider.tariff();
    let stack = budget.stack(&job.batch);
    let weight = budget.weight(tariff.of_call(job.models.len()));
    if matches!(budget, Budget::Thousandths(_)) && weight.price_micros == 0 {
        return Ok(None);
    }
    let order = Order { calls: vec![weight], ..Order::default() };
    loop {
        match timeout(REQUEST_TIMEOUT, crew.engines.limiter.reserve(&stack, &order)).await {
            Ok(Ok(Reservation::Slots(_))) => {
                crew.spent.forget(&stack.name, weight);
                return Ok(Some(Reserved { stack, weight }));
            }
            Ok(Ok(Reservation::ComeBack(wait))) => {
                if !matches!(wait.why, Why::Limit(_)) {
                    debug!(stack = stack.name, why = %wait.why, "the batch waits");
                    let after = wait.free_at.saturating_duration_since(Instant::now()).min(LONGEST_PAUSE);
                    return Err(Box::new(Ending::release(job, after)));
                }
                let after = crew.spent.found(&stack.name, weight, Instant::now());
                if after > Duration::ZERO {
                    return Err(Box::new(Ending::release(job, after)));
                }
                return Err(spent(job, budget, &tariff.currency));
            }
            // One call costs more than all of it.
            Ok(Err(LimiterError::Impossible { .. })) => return Err(spent(job, budget, &tariff.currency)),
            Ok(Err(LimiterError::Away(why))) => debug!(why, "waiting for the limiter"),
            Err(_) => debug!("waiting for the limiter"),
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = crew.stopping.cancelled() => return Err(Box::new(Ending::release(job, Duration::ZERO))),
        }
    }
}

fn spent(job: &Job, budget: Budget, currency: &str) -> Early {
    let why = format!("the batch's budget of {} is spent", budget.shown(currency));
    info!(why, "no call was made");
    Box::new(conclude_spent(job.clone(), &why))
}

/// Gives back what was reserved: the call did not leave, or was not charged. Where that can't be said it stays spent.
pub(crate) async fn give_back(crew: &Crew, reserved: Option<Reserved>) {
    if let Some(Reserved { stack, weight }) = reserved {
        said(crew.engines.limiter.refund(&stack, weight)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(price_micros: u64) -> Weight {
        Weight { models: 1, bytes: 0, price_micros }
    }

    #[test]
    fn a_budget_counts_as_spent_once_it_was_found_so_for_the_grace() {
        let (spent, now) = (Spent::default(), Instant::now());
        assert_eq!(spent.found("batch.b", price(1), now), GRACE);
        assert_eq!(spent.found("batch.b", price(1), now + GRACE / 2), GRACE / 2);
        assert_eq!(spent.found("batch.b", price(2), now + GRACE), GRACE, "a dearer call has its own grace");
        assert_eq!(spent.found("batch.b", price(1), now + GRACE), Duration::ZERO);
        spent.forget("batch.b", price(1));
        assert_eq!(spent.found("batch.b", price(1), now + GRACE * 2), GRACE, "something was given back");
    }

    #[test]
    fn however_many_budgets_are_spent_few_are_remembered() {
        let (spent, now) = (Spent::default(), Instant::now());
        for n in 0..MOST_NOTED {
            assert_eq!(spent.found(&n.to_string(), price(1), now), GRACE);
        }
        assert_eq!(spent.found("one more", price(1), now), Duration::ZERO);
        assert_eq!(spent.found("one more", price(1), now + GRACE), GRACE, "the old ones made room");
    }
}
