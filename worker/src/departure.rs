//! Leaving: from a call that is ready to the moment at which it may go, and what its answer tells the fleet.

use std::{sync::atomic::Ordering, time::Duration};

use pixfleet_shared::{
    job::Job,
    judge::{Lateness, lateness},
    ledger::Intent,
    limiter::{HoldOff, Kind, Slot, Stack, Weight},
    telemetry::ProviderLabel,
};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use crate::{
    alarm,
    breaker::Sign,
    classify::{Class, Verdict},
    client::{CallOutcome, Way},
    conclude::{Ending, fleet_pause},
    crew::{AccountState, Crew, Serving},
    deadline,
    intended::Intended,
    provider::PreparedRequest,
    slots::{Granted, Leave},
    step::{Early, held, uncalled},
    usage,
};

/// Time for something to be said to the fleet.
const SAID_WITHIN: Duration = Duration::from_secs(5);
/// What the limiter's answer may take when a late slot is mended.
const MENDING_MARGIN_US: u64 = 10_000;
/// How late the runtime's timer may be, twice.
const TIMER: Duration = Duration::from_millis(3);
/// Where other providers go on, a job of a parked one comes back at the latest after this time.
const LONGEST_PARKED: Duration = Duration::from_secs(600);
/// Between two calls where no rate is given.
const NO_RATE_INTERVAL: Duration = Duration::from_millis(100);

/// A call whose moment has come.
pub(crate) struct Departure {
    /// The right to leave.
    pub(crate) leave: Leave,
    /// The way to leave on.
    pub(crate) way: Way,
    /// The moment that was aimed at.
    pub(crate) at: Instant,
    /// As the ledger knows it.
    pub(crate) intent: Intent,
}

/// Waits for the right to leave, and for its moment. A slot that is reached too late, or in a hold-off, is forfeited.
pub(crate) async fn wait(
    crew: &Crew,
    serving: &Serving,
    job: &Job,
    requests: &[PreparedRequest],
) -> Result<Departure, Early> {
    // A slot is not spent on opening the first connection.
    for (account, request) in serving.accounts.iter().zip(requests) {
        account.client.ready(&request.url).await;
    }
    let label = ProviderLabel { provider: job.provider.clone() };
    let weight = serving.provider.weight(job.models.len(), requests[0].body.len());
    let since = Instant::now();
    let (mut intended, due) = (Intended::new(crew, serving, job), deadline::of(serving, job));
    loop {
        let granted = tokio::select! {
            granted = serving.desk.leave(job, weight) => granted,
            () = crew.stopping.cancelled() => Ok(None),
            () = deadline::passed(due) => return Err(deadline::missed(serving, job)),
            early = kept(crew, job) => return Err(early),
        };
        // Heavier than the limits ever give at once: waiting would not help it.
        let granted =
            granted.map_err(|error| uncalled(crew, serving, job, Class::Rejected, &error.to_string()))?;
        let leave = match granted {
            None => return Err(Box::new(Ending::release(job, Duration::ZERO))),
            Some(Granted::Parked { until, why }) => {
                crew.park(&job.provider, until, &why);
                if due.is_some_and(|due| due <= until) {
                    return Err(deadline::missed(serving, job));
                }
                // With all providers parked no job is taken from the queue any more, and this one waits at its end.
                let after = match crew.parked_until() {
                    Some(_) => Duration::ZERO,
                    None => until.saturating_duration_since(Instant::now()).min(LONGEST_PARKED),
                };
                return Err(Box::new(Ending::release(job, after)));
            }
            Some(Granted::Leave(leave)) => leave,
        };
        crew.unpark(&job.provider);
        let account = &serving.accounts[leave.account];
        let AccountState { stack, client, .. } = account;
        if due.is_some_and(|due| due <= leave.slot.at) {
            crew.board.metrics.slots_forfeited.get_or_create(&label).inc();
            give_back(crew, stack, leave.slot, weight).await;
            return Err(deadline::missed(serving, job));
        }
        match intended.record(account).await {
            Ok(true) => {}
            unsaid => {
                crew.board.metrics.slots_forfeited.get_or_create(&label).inc();
                give_back(crew, stack, leave.slot, weight).await;
                unsaid?;
                continue;
            }
        }
        // At its slot a call is to arrive, so it leaves before: all workers aim at the same moments of the API.
        let at = leave.slot.at.checked_sub(client.arrival().one_way()).unwrap_or(leave.slot.at);
        // The runtime's timer may end a wait late by more than a near API takes to connect to.
        sleep_until(at.checked_sub(client.lead() + TIMER).unwrap_or(at)).await;
        let way = client.warm(&requests[leave.account].url);
        alarm::sleep_until(at).await;
        let kept = held(crew, job);
        let held = crew.engines.limiter.held_until(stack).is_some_and(|until| until > Instant::now());
        if kept.is_ok() && !held && in_time(crew, account, at, &label).await {
            crew.board.metrics.slot_wait.get_or_create(&label).observe(since.elapsed().as_secs_f64());
            usage::took(crew, stack, weight);
            return Ok(Departure { leave, way, at, intent: intended.gone(account) });
        }
        debug!(late_us = late_us(at), held, "slot forfeited");
        crew.board.metrics.slots_forfeited.get_or_create(&label).inc();
        give_back(crew, stack, leave.slot, weight).await;
        kept?;
    }
}

/// Waits until something keeps the job's batch: then a job of it gives up its place among those that wait for a slot.
async fn kept(crew: &Crew, job: &Job) -> Early {
    let mut changes = crew.engines.batches.changes();
    loop {
        if let Err(early) = held(crew, job) {
            return early;
        }
        if changes.changed().await.is_err() {
            // Nobody is left who could say it.
            return std::future::pending().await;
        }
    }
}

/// What a forfeited slot took from the quotas goes back; and where it was the probe, another call has to be.
async fn give_back(crew: &Crew, stack: &Stack, slot: Slot, weight: Weight) {
    let limiter = &crew.engines.limiter;
    if stack.limits.iter().any(|limit| matches!(limit.kind(), Kind::Quota(_))) {
        said(limiter.refund(stack, weight)).await;
    }
    if slot.probe {
        said(limiter.hold_off(stack, HoldOff { pause: Duration::ZERO, probe: true, crowded: false })).await;
    }
}

/// Whether a call that was to leave `at` may still leave; where it is late, what is booked after it makes room first.
async fn in_time(crew: &Crew, account: &AccountState, at: Instant, label: &ProviderLabel) -> bool {
    let AccountState { stack, client, .. } = account;
    let way_us = client.arrival().way_jitter().map(|jitter| jitter.as_micros() as u64);
    let in_force = crew.engines.limiter.in_force(stack);
    let Lateness { free_us, mended_us, forfeit_us } = lateness(&in_force, way_us);
    let late = late_us(at);
    if late <= free_us {
        return true;
    }
    let told_by = late + MENDING_MARGIN_US;
    if told_by > mended_us || told_by - free_us >= forfeit_us {
        return false;
    }
    let by = Duration::from_micros(told_by - free_us);
    let told = timeout(by, crew.engines.limiter.late(stack, by)).await;
    let in_time = matches!(told, Ok(Ok(()))) && late_us(at) <= told_by;
    if in_time {
        crew.board.metrics.slots_mended.get_or_create(label).inc();
    }
    in_time
}

fn late_us(at: Instant) -> u64 {
    Instant::now().saturating_duration_since(at).as_micros() as u64
}

/// Tells the fleet what a call's answer says of the limits and of the API: a pause, or that a probe went well.
pub(crate) async fn tell(
    crew: &Crew,
    serving: &Serving,
    account: &AccountState,
    (outcome, verdict): (&CallOutcome, &Verdict),
    probe: bool,
) {
    let AccountState { stack, throttled, breaker, .. } = account;
    let in_a_row = match verdict.class {
        Class::Throttled => {
            crew.board.metrics.throttled.get_or_create(&account.label()).inc();
            throttled.fetch_add(1, Ordering::Relaxed) + 1
        }
        // Nobody knows what it would have said.
        Class::Ambiguous => throttled.load(Ordering::Relaxed),
        Class::Ok | Class::Transient | Class::Rejected | Class::Unauthorized => {
            throttled.store(0, Ordering::Relaxed);
            0
        }
    };
    let rate = crew.engines.limiter.in_force(stack).rate_per_s(Weight::of_models(1));
    let interval = rate.map_or(NO_RATE_INTERVAL, |rate| Duration::from_secs_f64(1.0 / rate));
    let refused = Duration::from_millis(crew.config.refused_ms);
    let held = crew.engines.limiter.held_until(stack).is_some();
    let settings = &serving.provider.definition().breaker;
    let broken = breaker.note(settings, Sign::of(outcome, verdict), probe, held);
    broken.log(&stack.name, &verdict.message);
    if broken.hold_off().is_some() {
        crew.board.metrics.breaker_opened.get_or_create(&account.label()).inc();
    }
    if let Some(hold_off) = fleet_pause(verdict, refused, in_a_row, interval).or(broken.hold_off()) {
        crew.board.metrics.hold_offs.get_or_create(&account.label()).inc();
        said(crew.engines.limiter.hold_off(stack, hold_off)).await;
    } else if probe {
        said(crew.engines.limiter.answered(stack)).await;
    }
}

/// Says something to the fleet, within a bound. What fails holds for this worker only.
pub(crate) async fn said<E: std::fmt::Display>(saying: impl Future<Output = Result<(), E>>) {
    match timeout(SAID_WITHIN, saying).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the fleet could not be told"),
        Err(_) => warn!("the fleet could not be told in time"),
    }
}
