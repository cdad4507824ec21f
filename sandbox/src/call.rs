//! One call's straight line: arrival, verdict, body, fate, latency, answer. It is settled in one place, when it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::time::{sleep, timeout};

use crate::access::{Entry, Line, Outcome, Place};
use crate::account::{Account, unix_us};
use crate::contract::{Asked, Contract, Refusal};
use crate::fault::{Fate, Fault, fate};
use crate::judge::Verdict;
use crate::reply::{self, Close, Reply};
use crate::serve::Shared;
use crate::settings::RetryAfter;

/// The longest that a client may take over its body.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Serves one call; `Close` closes the connection without an answer.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    connection: u64,
    contract: Contract,
    request: Request<Incoming>,
) -> Result<Reply, Close> {
    // Booked first: from here on nothing can keep the line out of the log, not even a client that leaves.
    let place = shared.log.place().await.ok_or(Close)?;
    let (head, body) = request.into_parts();
    let mut call = Call::open(shared, connection, &head, place);

    // The judge sees a call as early as it can: at its head, if that has the key and tells the cost.
    let cost = shared.accounts.cost();
    let early = contract.head_key(&head).zip(contract.head_cost(&head, cost));
    let mut verdict = early.map(|(key, cost)| call.arrive(&key, cost));

    let body = match read(body, shared.settings.max_body_bytes).await? {
        Ok(body) => body,
        Err(refusal) => return Ok(call.refuse(contract, &refusal)),
    };
    let mut asked = contract.read(&head, &body, &shared.settings);
    drop((head, body));
    call.line.models.clone_from(&asked.models);
    call.line.image.clone_from(&asked.image);
    if verdict.is_none() {
        let key = asked.key.take().unwrap_or_default();
        verdict = Some(call.arrive(&key, cost.of(asked.models.len())));
    }
    match (verdict, asked.refusal.take()) {
        (Some(Err(refusal)), _) | (_, Some(refusal)) => Ok(call.refuse(contract, &refusal)),
        (_, None) => call.answer(contract, &asked).await,
    }
}

/// The whole body; `Err(Close)` when the client stalls or leaves.
async fn read(body: Incoming, most: usize) -> Result<Result<Bytes, Refusal>, Close> {
    match timeout(BODY_TIME, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(Ok(body.to_bytes())),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Ok(Err(Refusal::TooBig(most))),
        Ok(Err(_)) | Err(_) => Err(Close),
    }
}

/// A call under way. Dropping it, for whatever reason, puts it on the bill and into the log.
struct Call<'a> {
    shared: &'a Shared,
    started: Instant,
    account: Option<Arc<Account>>,
    /// Whether the judge still counts it as in flight.
    in_flight: bool,
    retry_at_us: u64,
    line: Line,
    place: Option<Place>,
}

impl<'a> Call<'a> {
    fn open(shared: &'a Shared, connection: u64, head: &Parts, place: Place) -> Self {
        let line = Line {
            at_us: unix_us(),
            duration_us: 0,
            connection,
            key: shared.no_key.clone(),
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            models: Vec::new(),
            image: None,
            status: None,
            // Until it is understood; a client that leaves before that has bought nothing.
            outcome: Outcome::Rejected,
        };
        let started = Instant::now();
        Self { shared, started, account: None, in_flight: false, retry_at_us: 0, line, place: Some(place) }
    }

    /// Looks at the key, then asks the judge; a bad key never reaches the judge.
    fn arrive(&mut self, key: &str, cost: u32) -> Result<(), Refusal> {
        let account = self.shared.accounts.of((!key.is_empty()).then_some(key));
        self.line.key = account.fingerprint.clone();
        let account = self.account.insert(account);
        if !self.shared.lets_in(key) {
            return Err(Refusal::BadKey);
        }
        let (at_us, verdict) = account.arrive(cost);
        self.line.at_us = at_us;
        match verdict {
            Verdict::Accepted => {
                self.in_flight = true;
                self.shared.accounts.in_flight.fetch_add(1, Relaxed);
                Ok(())
            }
            Verdict::Refused { retry_at_us } => {
                self.retry_at_us = retry_at_us;
                Err(Refusal::Throttled)
            }
        }
    }

    fn refuse(mut self, contract: Contract, refusal: &Refusal) -> Reply {
        let throttled = *refusal == Refusal::Throttled;
        self.line.outcome = if throttled { Outcome::Throttled } else { Outcome::Rejected };
        let mark = u128::from(self.line.at_us) << 64 | u128::from(self.line.connection);
        let (status, body) = contract.refuse(refusal, &self.shared.settings, mark);
        let mut reply = reply::json(status, &body);
        if let Some(value) = throttled.then(|| self.retry_after()).flatten() {
            reply.headers_mut().insert(RETRY_AFTER, value);
        }
        self.line.status = Some(status.as_u16());
        reply
    }

    fn retry_after(&self) -> Option<HeaderValue> {
        match self.shared.settings.retry_after {
            RetryAfter::None => None,
            RetryAfter::Seconds => {
                let wait_us = self.retry_at_us.saturating_sub(self.line.at_us);
                Some(wait_us.div_ceil(1_000_000).max(1).into())
            }
            RetryAfter::HttpDate => {
                let second = i64::try_from(self.retry_at_us.div_ceil(1_000_000)).ok()?;
                let at = Timestamp::from_second(second).ok()?;
                let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&at).ok()?;
                HeaderValue::from_str(&date).ok()
            }
        }
    }

    async fn answer(mut self, contract: Contract, asked: &Asked) -> Result<Reply, Close> {
        let settings = &self.shared.settings;
        let Fate { latency, fault, mark } = fate(settings, self.shared.accounts.next_accepted());
        self.line.outcome = fault.map_or(Outcome::Accepted, Outcome::Faulted);
        if !latency.is_zero() {
            sleep(latency).await;
        }
        let reply = match fault {
            None => reply::json(StatusCode::OK, &contract.answer(asked, mark)),
            Some(Fault::Error500) => {
                let (status, body) = contract.refuse(&Refusal::Broken, settings, mark);
                reply::json(status, &body)
            }
            Some(Fault::Hang) => {
                sleep(Duration::from_millis(settings.faults.hang_ms)).await;
                return Err(Close);
            }
            Some(Fault::Drop) => return Err(Close),
            Some(Fault::Cut) => reply::cut(&contract.answer(asked, mark)),
            Some(Fault::Malformed) => reply::malformed(&contract.answer(asked, mark)),
            Some(Fault::Huge) => reply::huge(settings.faults.huge_bytes),
        };
        self.line.status = Some(reply.status().as_u16());
        Ok(reply)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let account = self.account.take().unwrap_or_else(|| self.shared.accounts.of(None));
        if self.in_flight {
            account.finish();
        }
        account.settle(&self.line.models, self.line.outcome, self.shared.accounts.cost());
        if self.in_flight {
            self.shared.accounts.in_flight.fetch_sub(1, Relaxed);
        }
        self.line.duration_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Some(place) = self.place.take() {
            let line = &mut self.line;
            let line = Line {
                key: line.key.clone(),
                method: std::mem::take(&mut line.method),
                path: std::mem::take(&mut line.path),
                models: std::mem::take(&mut line.models),
                image: line.image.take(),
                ..*line
            };
            place.send(Entry::Call(Box::new(line)));
        }
    }
}
