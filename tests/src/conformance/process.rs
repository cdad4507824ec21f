//! A process of a fleet, as the suites of the ledger, the answers and the batches have it: what it knows, and its end.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use pixfleet_shared::{answers::Answers, batches::Batches, ledger::Ledger};
use tokio::time::{Instant, sleep};

/// No step of a suite may take longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A process of a fleet.
pub struct Process {
    /// Its ledger.
    pub ledger: Arc<dyn Ledger>,
    /// Its answers.
    pub answers: Arc<dyn Answers>,
    /// Its batches.
    pub batches: Arc<dyn Batches>,
    end: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>,
}

impl Process {
    /// One that `end` ends: afterwards it is dead to the others, sooner or later, and lets go of nothing.
    pub fn new<F: Future<Output = ()> + Send + 'static>(
        ledger: Arc<dyn Ledger>,
        answers: Arc<dyn Answers>,
        batches: Arc<dyn Batches>,
        end: impl FnOnce() -> F + Send + 'static,
    ) -> Self {
        Self { ledger, answers, batches, end: Box::new(move || Box::pin(end())) }
    }

    /// Its end, with whatever it has in hand.
    pub async fn die(self) {
        let Self { ledger, answers, batches, end } = self;
        drop((ledger, answers, batches));
        end().await;
    }
}

/// Asks until there is an answer.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
