//! Says to the server what this process has to say, in order, and many words in one round trip.
//!
//! One task ([`Rounds`]) sends what has gathered when the first of it may wait no longer, or when somebody asks; while one
//! round trip is under way, the next one gathers. While the server is away words are kept, within bounds, and said again in
//! their order: every script bears being said twice.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    keys::Keys,
    pool::Link,
    rounds::Rounds,
    word::{Heard, Unheard, Word},
};
use crate::{batch::BatchName, ledger::LedgerError};

/// A process counts as gone when it said nothing for so many seconds.
pub(super) const LIVES_S: u64 = 6;
/// Words that are kept while the server is away, in bytes.
const MOST_KEPT: usize = 64 << 20;
/// How long [`Clerk::flush`] waits, and the process' end.
pub(super) const FLUSH: Duration = Duration::from_secs(5);

/// Where words are handed in.
pub(super) struct Clerk {
    desk: mpsc::UnboundedSender<Handed>,
    shared: Arc<Shared>,
}

/// What the desk and the task both know.
#[derive(Default)]
pub(super) struct Shared {
    /// Bytes of words that wait.
    pub(super) kept: AtomicUsize,
    /// Whether words were not kept, because there were too many.
    pub(super) is_full: AtomicBool,
    pub(super) trips: AtomicU64,
    /// Since when the server answers again, after it did not.
    pub(super) recovered: Mutex<Option<Instant>>,
}

/// What is handed to the task.
pub(super) enum Handed {
    Word(Box<Word>),
    /// All that was handed in before is stored.
    Stored(oneshot::Sender<()>),
}

impl Clerk {
    /// Starts the task. `token` names the process; what completes a batch is passed on to `completed`.
    pub(super) fn start(
        link: Arc<Link>,
        keys: &Keys,
        token: &str,
        completed: mpsc::UnboundedSender<(BatchName, Value)>,
        stop: CancellationToken,
    ) -> Self {
        let (desk, handed) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let rounds = Rounds::new(link, keys.process(token), handed, completed, shared.clone());
        tokio::spawn(rounds.work(stop));
        Self { desk, shared }
    }

    /// Hands in a word that nobody waits for.
    pub(super) fn tell(&self, word: Word) {
        let bytes = word.bytes();
        if self.shared.kept.load(Ordering::Relaxed) + bytes > MOST_KEPT {
            if !self.shared.is_full.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    bytes = MOST_KEPT,
                    "the ledger is away for too long: what is said from now on is not kept for it"
                );
            }
            return;
        }
        self.hand_in(word, bytes);
    }

    /// Hands in words, and waits for their answers: one round trip, if the server is well.
    pub(super) async fn ask(&self, words: Vec<Word>) -> Result<Vec<Value>, LedgerError> {
        let answers = self.ask_and_know(words).await;
        answers.map_err(|Unheard { why, .. }| LedgerError::Away(why))
    }

    /// As [`ask`](Self::ask); whoever hears no answer hears whether the words left.
    pub(super) async fn ask_and_know(&self, words: Vec<Word>) -> Result<Vec<Value>, Unheard> {
        let hand_in = |word: Word| {
            let (heard, answer) = oneshot::channel();
            let word = word.within(Duration::ZERO).heard_by(Heard::Asked(heard));
            let bytes = word.bytes();
            self.hand_in(word, bytes);
            answer
        };
        let answers: Vec<_> = words.into_iter().map(hand_in).collect();
        let many = answers.len() > 1;
        let mut values = Vec::with_capacity(answers.len());
        for answer in answers {
            let ended = |_| Unheard { why: "this process ends".to_owned(), left: true };
            // Of many words others may have left.
            let all = |Unheard { why, left }| Unheard { why, left: left || many };
            values.push(answer.await.map_err(ended).and_then(|answer| answer).map_err(all)?);
        }
        Ok(values)
    }

    fn hand_in(&self, word: Word, bytes: usize) {
        self.shared.kept.fetch_add(bytes, Ordering::Relaxed);
        // Without the task, at the process' end, there is nobody to say it.
        let _ = self.desk.send(Handed::Word(Box::new(word)));
    }

    /// Waits until all that was handed in is stored, within a bound.
    pub(super) async fn flush(&self) {
        let (stored, wait) = oneshot::channel();
        if self.desk.send(Handed::Stored(stored)).is_ok() && timeout(FLUSH, wait).await.is_err() {
            tracing::warn!("what was said to the ledger is not stored yet");
        }
    }

    /// Round trips so far.
    pub(super) fn trips(&self) -> u64 {
        self.shared.trips.load(Ordering::Relaxed)
    }

    /// Whether every process had the time to say that it lives since the server was away.
    pub(super) fn is_certain(&self) -> bool {
        let recovered = self.shared.recovered.lock().unwrap_or_else(PoisonError::into_inner);
        recovered.is_none_or(|at| at.elapsed() > Duration::from_secs(LIVES_S))
    }
}
