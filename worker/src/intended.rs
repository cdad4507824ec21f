//! The intent of a call: told to the ledger between the booking of its slot and its departure, so that whoever meets the job
//! after a crash knows that it may have left.

use std::time::Duration;

use jiff::Timestamp;
use pixfleet_shared::{
    id::Id,
    job::Job,
    ledger::{Answered, Intent, Known},
};
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::{
    crew::{AccountState, Crew, Serving},
    returned::{LEDGER_PAUSE, met},
    step::Early,
};

/// Beyond its timeout a call needs a little: to leave, and to be told of.
const MARGIN_MS: u64 = 2_000;
/// A call that still waits after this time is said again, so that it does not count as over before it left.
const SAID_FOR: Duration = Duration::from_secs(1);

/// A call on its way out. Dropped before it is [`gone`](Self::gone), it is taken back.
pub(crate) struct Intended<'a> {
    crew: &'a Crew,
    serving: &'a Serving,
    job: &'a Job,
    said: Option<(Intent, Instant)>,
    /// Another line may have the same job in hand: delivered again while the first one's call is under way.
    line: u64,
}

impl<'a> Intended<'a> {
    pub(crate) fn new(crew: &'a Crew, serving: &'a Serving, job: &'a Job) -> Self {
        Self { crew, serving, job, said: None, line: rand::random() }
    }

    /// Tells the ledger that the call is about to leave by `account`; answers whether it may. Where it may not, what is known
    /// of the job's turn ends the line.
    pub(crate) async fn record(&mut self, account: &AccountState) -> Result<bool, Early> {
        let name = &account.stack.name;
        if self.said.as_ref().is_some_and(|(said, at)| said.account == *name && at.elapsed() < SAID_FOR) {
            return Ok(true);
        }
        let intent = self.intent(name);
        if !self.serving.provider.definition().ledger {
            return Ok(true);
        }
        match self.crew.engines.ledger.depart(&intent).await {
            Ok(Known::Clear) => {}
            Ok(known) => {
                self.said = None;
                met(self.crew, self.serving, self.job, known)?;
            }
            Err(error) => {
                debug!(%error, "the ledger could not be told of a call");
                // Whoever gave a safe rate prefers to go on without it.
                if self.serving.provider.definition().safe_rate.is_none() {
                    sleep(LEDGER_PAUSE).await;
                    return Ok(false);
                }
            }
        }
        self.said = Some((intent, Instant::now()));
        Ok(true)
    }

    /// The call leaves now.
    pub(crate) fn gone(mut self, account: &AccountState) -> Intent {
        let said = self.said.take().map(|(intent, _)| intent);
        said.unwrap_or_else(|| self.intent(&account.stack.name))
    }

    fn intent(&self, account: &str) -> Intent {
        let (job, provider) = (self.job, &self.serving.provider);
        let tries = [job.turn().to_be_bytes(), self.line.to_be_bytes()].concat();
        let tariff = provider.tariff();
        Intent {
            call: Id::of(&[b"pixfleet.call.v1", &job.id.to_bytes(), &tries]),
            job: job.id,
            batch: job.batch.clone(),
            image: job.image.id.clone(),
            provider: job.provider.clone(),
            account: account.to_owned(),
            models: job.models.clone(),
            turn: job.turn(),
            ambiguous: job.ambiguous,
            cost_micros: (tariff.of_call(job.models.len()) * 1e6).round() as u64,
            currency: tariff.currency.clone(),
            worker: self.crew.name.clone(),
            leaves_at: Timestamp::now(),
            lasts_ms: provider.definition().http.total_ms + MARGIN_MS,
        }
    }
}

impl Drop for Intended<'_> {
    fn drop(&mut self) {
        if let Some((intent, _)) = self.said.take() {
            self.crew.engines.ledger.answered(&intent, Answered::Unsent);
        }
    }
}
