//! The parts of a run, from their start to their end: a producer, a worker, and a collector for each output.
//!
//! They end in the order in which an image passes them. The producer and the worker are told to stop together; once
//! both have, nothing more is published, and the collectors are told that the next end of the log is the last one.

use std::{sync::Arc, time::Duration};

use anyhow::anyhow;
use pixfleet_producer::{
    Destination, Order, Stopped, Summary, Tally, Why, manifest::Manifest, record::Record,
};
use pixfleet_shared::{batch::BatchName, embedded::Store};
use pixfleet_worker::{Board, Engines, Refusal, RunError, provider::Provider};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::collect::Collector;
use crate::config::Config;

/// How often the counts are looked at, to know the end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the parts work with.
pub(super) struct Job<'a> {
    pub(super) provider: Arc<Provider>,
    pub(super) config: &'a Config,
    pub(super) manifests: &'a [String],
    pub(super) batch: &'a BatchName,
    pub(super) engines: Engines,
    pub(super) store: Arc<Store>,
    pub(super) board: Arc<Board>,
}

/// How the parts ended.
pub(super) struct Ended {
    /// What became of the manifest's rows.
    pub(super) tally: Tally,
    /// What went wrong first; none for a run that is complete, or was asked to stop.
    pub(super) why: Option<anyhow::Error>,
}

/// How one part ended.
enum Part {
    Enqueued(Result<Summary, Box<Stopped>>),
    Worked(Result<(), RunError>),
    Collected(anyhow::Result<()>),
}

/// The parts that are under way.
struct Parts {
    tasks: JoinSet<Part>,
    /// Stops the producer and the worker.
    halt: CancellationToken,
    /// Nothing more is published.
    last: CancellationToken,
    enqueued: Option<Tally>,
    working: Working,
    why: Option<anyhow::Error>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Working {
    /// Not before the manifest has shown to be the batch's: nothing is spent on another one's jobs.
    NotYet,
    Now,
    Over,
}

impl Job<'_> {
    /// Starts the parts and sees them to their end: every result is there, `halt`, or something went wrong.
    pub(super) async fn run(
        &self,
        manifest: Manifest,
        record: Record,
        order: Order,
        collectors: Vec<Collector>,
        halt: CancellationToken,
    ) -> Ended {
        let (progress, mut chunks) = watch::channel(Tally::default());
        let mut parts = Parts {
            tasks: JoinSet::new(),
            halt,
            last: CancellationToken::new(),
            enqueued: None,
            working: Working::NotYet,
            why: None,
        };
        self.start_enqueuing(&mut parts, manifest, record, order, progress);
        for collector in collectors {
            let last = parts.last.clone();
            parts.tasks.spawn(async move { Part::Collected(collector.run(last).await) });
        }
        let mut refusals = self.board.refusals();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                Some(ended) = parts.tasks.join_next() => self.note(&mut parts, ended),
                Ok(()) = chunks.changed(), if parts.working == Working::NotYet && !parts.halted() => {
                    self.start_working(&mut parts);
                }
                Ok(()) = refusals.changed(), if !parts.halted() => {
                    let refusal = refusals.borrow_and_update().clone();
                    parts.fail(refusal.map_or_else(|| anyhow!("the provider refuses"), |refusal| self.refused(&refusal)));
                }
                failure = self.store.failed(), if !parts.halted() => parts.fail(failure.into()),
                _ = tick.tick(), if parts.enqueued.is_some() && !parts.halted() => {
                    if self.is_complete().await {
                        parts.halt.cancel();
                    }
                }
            }
            if parts.enqueued.is_some() && parts.working == Working::NotYet && !parts.halted() {
                // All of it was there already: what is left of it is worked on.
                self.start_working(&mut parts);
            }
            if parts.nothing_more_is_published() {
                parts.last.cancel();
            }
            if parts.tasks.is_empty() {
                break;
            }
        }
        Ended { tally: parts.enqueued.unwrap_or_default(), why: parts.why }
    }

    fn start_enqueuing(
        &self,
        parts: &mut Parts,
        manifest: Manifest,
        record: Record,
        order: Order,
        progress: watch::Sender<Tally>,
    ) {
        let to =
            Destination { queue: self.engines.queue.clone(), batches: Some(self.engines.batches.clone()) };
        let (config, halt) = (self.config.enqueue.clone(), parts.halt.clone());
        parts.tasks.spawn(async move {
            let enqueuing = pixfleet_producer::enqueue(to, manifest, record, order, &config, halt, &progress);
            Part::Enqueued(enqueuing.await)
        });
    }

    fn start_working(&self, parts: &mut Parts) {
        parts.working = Working::Now;
        let working = pixfleet_worker::run(
            self.config.worker.clone(),
            vec![self.provider.clone()],
            self.engines.clone(),
            self.board.clone(),
            None,
            parts.halt.clone(),
        );
        parts.tasks.spawn(async move { Part::Worked(working.await.map(drop)) });
    }

    /// What an ended part means for the others.
    fn note(&self, parts: &mut Parts, ended: Result<Part, JoinError>) {
        match ended {
            Ok(Part::Enqueued(Ok(summary))) => {
                parts.enqueued = Some(summary.tally);
                if summary.batch_jobs == 0 {
                    parts.fail(self.holds_nothing(summary.tally));
                }
            }
            Ok(Part::Enqueued(Err(stopped))) => {
                let Stopped { why, summary } = *stopped;
                parts.enqueued = Some(summary.tally);
                match why {
                    Why::Interrupted => parts.halt.cancel(),
                    why => parts.fail(why.into()),
                }
            }
            Ok(Part::Worked(worked)) => {
                parts.working = Working::Over;
                if let Err(error) = worked {
                    parts.fail(error.into());
                }
            }
            Ok(Part::Collected(Ok(()))) => {}
            Ok(Part::Collected(Err(error))) => parts.fail(anyhow!(
                "{error:#}; then run the same command again: every answer is kept in {}",
                self.store.path().display()
            )),
            Err(panic) => {
                parts.enqueued.get_or_insert_default();
                parts.working = Working::Over;
                parts.fail(
                    anyhow::Error::from(panic).context("a part of the run ended badly; see the log above"),
                );
            }
        }
    }

    fn holds_nothing(&self, tally: Tally) -> anyhow::Error {
        let from =
            self.manifests.iter().map(|name| if name == "-" { "stdin" } else { name }).collect::<Vec<_>>();
        let from = from.join(", ");
        match tally.bad_rows {
            0 => anyhow!(
                "there is no image in {from}: give a file with at least one row, or a folder with pictures"
            ),
            bad => anyhow!(
                "no row of {from} can be used, {bad} were left out: mend them; --bad-rows FILE keeps each with its reason"
            ),
        }
    }

    fn refused(&self, refusal: &Refusal) -> anyhow::Error {
        let Refusal { provider, message, .. } = refusal;
        let auth = &self.provider.definition().auth;
        let key = match (&auth.key_env, &auth.key_file) {
            (Some(variable), Some(file)) => format!(" in {variable} or {file}"),
            (Some(place), None) | (None, Some(place)) => format!(" in {place}"),
            (None, None) => String::new(),
        };
        anyhow!(
            "`{provider}` refuses the account: {message}. Check the key{key} and what the account may still spend, then \
             run the same command again; nothing is lost"
        )
    }

    async fn is_complete(&self) -> bool {
        matches!(self.store.batch(self.batch).await, Ok(Some(counts)) if counts.complete())
    }
}

impl Parts {
    /// What went wrong first counts; what follows from it does not.
    fn fail(&mut self, why: anyhow::Error) {
        self.why.get_or_insert(why);
        self.halt.cancel();
    }

    fn halted(&self) -> bool {
        self.halt.is_cancelled()
    }

    fn nothing_more_is_published(&self) -> bool {
        self.halted() && self.enqueued.is_some() && self.working != Working::Now
    }
}
