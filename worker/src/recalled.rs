//! Answers of before: what is kept of a picture is not asked again, and what another job asks at this moment is waited for.
//!
//! Whoever finds nothing has the claim, in the whole fleet, and makes the call; the others wait for it. Keys are claimed in
//! their order, so that no two jobs wait for each other. A claim ends with an answer, or when the line is left without one,
//! whatever the reason.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use pixfleet_shared::{
    answers::{Kept, Recalled},
    id::Id,
    job::Job,
    ledger::Intent,
    result::{ImageResult, Outcome},
    telemetry::ProviderLabel,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::debug;

use crate::{
    classify::Verdict,
    conclude::Ending,
    crew::{Crew, Serving},
    deadline,
    departure::kept,
    flights::{Flight, Flights},
    image::{Picture, Prepared},
    provider::{ByUrl, Cache, Likeness},
    returned::{LEDGER_PATIENCE, LEDGER_PAUSE, rest},
    step::{Early, held},
};

/// Beyond its call's time, a claim lasts as long as a call may wait for its slot.
const CLAIM_MARGIN: Duration = Duration::from_secs(600);
/// A job that has waited so long for another's call goes back to the queue, and makes room for others.
const PATIENCE: Duration = Duration::from_secs(60);
/// It comes again after this time.
const COMES_BACK: Duration = Duration::from_secs(5);

/// What is known of a job's models before its call.
pub(crate) struct Known<'a> {
    crew: &'a Crew,
    whole: &'a Job,
    /// The job, with the models that are to be asked.
    pub(crate) job: Cow<'a, Job>,
    found: Vec<ImageResult>,
    /// By model. A claim that is left when this is dropped is given up.
    claims: BTreeMap<String, Claim<'a>>,
    ttl: Duration,
}

/// The right to bring the answer that others wait for.
struct Claim<'a> {
    key: Id,
    /// None where nobody waits, because no answer was looked for.
    turn: Option<Flight<'a>>,
}

/// A model whose answer is looked for.
struct Wanted<'a> {
    key: Id,
    model: String,
    turn: Option<Flight<'a>>,
}

/// Looks for answers of before, where the provider's are kept, and waits for those that others are about to bring.
pub(crate) async fn recall<'a>(
    crew: &'a Crew,
    serving: &Serving,
    job: &'a Job,
    picture: &Prepared,
) -> Result<Known<'a>, Early> {
    let mut known = Known::nothing(crew, job);
    let Some(cache) = serving.provider.cache() else { return Ok(known) };
    let Some(keys) = keys(crew, serving, cache, job, picture).await else { return Ok(known) };
    known.ttl = Duration::from_secs(cache.ttl_s);
    let models = keys.into_iter().zip(job.models.iter().cloned());
    if job.refresh {
        known.claims = models.map(|(key, model)| (model, Claim { key, turn: None })).collect();
        return Ok(known);
    }
    let mut wanted: Vec<_> = models.map(|(key, model)| Wanted { key, model, turn: None }).collect();
    wanted.sort_by_key(|wanted| wanted.key);
    let (since, lasts) = (Instant::now(), Duration::from_millis(serving.provider.transport().total_ms));
    while !wanted.is_empty() {
        held(crew, job)?;
        deadline::check(serving, job)?;
        if since.elapsed() > PATIENCE {
            return Err(Box::new(Ending::release(job, COMES_BACK)));
        }
        let busy = take_turns(&crew.flights, &mut wanted);
        let own = wanted.iter().take_while(|wanted| wanted.turn.is_some()).count();
        if own == 0 {
            await_other(crew, serving, job, busy, since + PATIENCE).await?;
            continue;
        }
        let keys: Vec<Id> = wanted[..own].iter().map(|wanted| wanted.key).collect();
        match crew.engines.answers.recall(&keys, lasts + CLAIM_MARGIN).await {
            Ok(seen) => {
                if let Some(pause) = known.sort(&mut wanted, own, seen) {
                    debug!("another worker asks the same");
                    rest(crew, job, pause).await?;
                }
            }
            Err(error) => {
                debug!(%error, "waiting for the answers of before");
                // Whoever gave a safe rate prefers to go on without them.
                let safe = serving.provider.definition().safe_rate.is_some();
                if safe && since.elapsed() > LEDGER_PATIENCE {
                    break;
                }
                rest(crew, job, LEDGER_PAUSE).await?;
            }
        }
    }
    if !known.found.is_empty() {
        known.job.to_mut().models.retain(|model| !known.found.iter().any(|found| found.model == *model));
    }
    if known.job.models.is_empty() {
        debug!("answered before: nothing is asked");
        return Err(Box::new(Ending::Complete(known.with_found(Vec::new()))));
    }
    Ok(known)
}

/// Takes this process's turn at each key, in their order, up to the first that another job has; what it has to wait for then.
fn take_turns<'a>(flights: &'a Flights, wanted: &mut [Wanted<'a>]) -> Option<watch::Receiver<()>> {
    for wanted in wanted.iter_mut().filter(|wanted| wanted.turn.is_none()) {
        match flights.take(wanted.key) {
            Ok(turn) => wanted.turn = Some(turn),
            Err(other) => return Some(other),
        }
    }
    None
}

async fn await_other(
    crew: &Crew,
    serving: &Serving,
    job: &Job,
    other: Option<watch::Receiver<()>>,
    until: Instant,
) -> Result<(), Early> {
    let Some(mut other) = other else { return Ok(()) };
    tokio::select! {
        // It never changes, it ends.
        _ = timeout_at(until, other.changed()) => Ok(()),
        early = kept(crew, job) => Err(early),
        () = deadline::passed(deadline::of(serving, job)) => Err(deadline::missed(serving, job)),
        () = crew.stopping.cancelled() => Err(Box::new(Ending::release(job, Duration::ZERO))),
    }
}

/// The keys of the job's models; none where the picture can't be known again.
async fn keys(
    crew: &Crew,
    serving: &Serving,
    cache: &Cache,
    job: &Job,
    picture: &Prepared,
) -> Option<Vec<Id>> {
    let provider = &serving.provider;
    match (picture, cache.url) {
        (Prepared::Bytes(picture), _) => {
            let (provider, cache, models) = (provider.clone(), cache.clone(), job.models.clone());
            let picture: Picture = picture.clone();
            // Of a large picture it takes longer than a task may.
            let hashed = tokio::task::spawn_blocking(move || {
                provider.keys(&cache, Likeness::Content(&picture), &models)
            });
            hashed.await.ok()
        }
        (Prepared::Url(_), ByUrl::Off) => None,
        (Prepared::Url(url), ByUrl::Trust) => Some(provider.keys(cache, Likeness::Url(url, ""), &job.models)),
        (Prepared::Url(url), ByUrl::Validator) => {
            let validator = crew.images.validator(url).await?;
            Some(provider.keys(cache, Likeness::Url(url, &validator), &job.models))
        }
    }
}

impl<'a> Known<'a> {
    fn nothing(crew: &'a Crew, whole: &'a Job) -> Self {
        let job = Cow::Borrowed(whole);
        Self { crew, whole, job, found: Vec::new(), claims: BTreeMap::new(), ttl: Duration::ZERO }
    }

    /// Takes what was seen under the first `own` keys; answers how long to wait where another process has the claim on one.
    fn sort(&mut self, wanted: &mut Vec<Wanted<'a>>, own: usize, seen: Vec<Recalled>) -> Option<Duration> {
        let mut pause = None;
        let (mut seen, mut left) = (seen.into_iter(), Vec::new());
        for one in wanted.drain(..own) {
            match seen.next() {
                Some(Recalled::Found(kept)) => self.found.push(self.result(&one.model, *kept)),
                Some(Recalled::Claimed) => {
                    self.claims.insert(one.model, Claim { key: one.key, turn: one.turn });
                }
                Some(Recalled::Awaited(after)) => {
                    pause.get_or_insert(after);
                    left.push(one);
                }
                None => {
                    pause.get_or_insert(LEDGER_PAUSE);
                    left.push(one);
                }
            }
        }
        left.append(wanted);
        *wanted = left;
        pause
    }

    fn result(&self, model: &str, kept: Kept) -> ImageResult {
        ImageResult {
            cached: true,
            answer: Some(kept.answer),
            ..ImageResult::of(&self.job, model, Outcome::Ok)
        }
    }

    /// Keeps what a call was answered, and lets others try what it was not.
    pub(crate) fn learn(&mut self, verdict: &Verdict, intent: &Intent) {
        let answers = &self.crew.engines.answers;
        for (model, seen) in &verdict.models {
            let Some(Claim { key, turn }) = self.claims.remove(model) else { continue };
            match seen {
                Ok(answer) => {
                    let kept = Kept { answer: answer.clone(), call: intent.call, at: Timestamp::now() };
                    answers.keep(key, kept, self.ttl);
                }
                Err(_) if turn.is_some() => answers.give_up(key),
                Err(_) => {}
            }
        }
    }

    /// The ending of the call that asked what was missing, with what was known before. An ending that publishes nothing gives
    /// back the job with all its models.
    pub(crate) fn joined(&mut self, ending: Ending) -> Ending {
        match ending {
            ending if self.found.is_empty() => ending,
            Ending::Complete(results) => Ending::Complete(self.with_found(results)),
            Ending::Retry { job, results, after } => {
                Ending::Retry { job, results: self.with_found(results), after }
            }
            Ending::Dead { job, results, reason } => {
                Ending::Dead { job, results: self.with_found(results), reason }
            }
            Ending::Release { job, after } => Ending::Release { job: self.whole(job), after },
            Ending::Park(job) => Ending::Park(self.whole(job)),
            // What was stored before was decided with what was found then.
            ending @ (Ending::Over | Ending::Stored(_)) => ending,
        }
    }

    fn with_found(&mut self, mut results: Vec<ImageResult>) -> Vec<ImageResult> {
        let label = ProviderLabel { provider: self.job.provider.clone() };
        self.crew.board.metrics.cache_hits.get_or_create(&label).inc_by(self.found.len() as u64);
        results.append(&mut self.found);
        results
    }

    fn whole(&self, mut job: Box<Job>) -> Box<Job> {
        job.models.clone_from(&self.whole.models);
        job
    }
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        for claim in self.claims.values().filter(|claim| claim.turn.is_some()) {
            self.crew.engines.answers.give_up(claim.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_in_order_up_to_the_first_that_another_job_has() {
        let flights = Flights::default();
        let key = |n: u8| Id::of(&[&[n]]);
        let _other = flights.take(key(1));
        let mut wanted: Vec<_> =
            (0..3).map(|n| Wanted { key: key(n), model: n.to_string(), turn: None }).collect();
        assert!(take_turns(&flights, &mut wanted).is_some());
        let taken: Vec<bool> = wanted.iter().map(|wanted| wanted.turn.is_some()).collect();
        assert_eq!(taken, [true, false, false]);
    }
}
