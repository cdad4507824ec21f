//! Says to the server what this process has to say, in order, and many words in one round trip.
//!
//! One task sends what has gathered when the first of it may wait no longer, or when somebody asks; while one round trip is
//! under way, the next one gathers. While the server is away words are kept, within bounds, and said again in their order:
//! every script bears being said twice. Each exchange says that the process lives, where that was not said lately.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    keys::Keys,
    pool::{Away, Link},
    round::{Answer, round},
    word::{Heard, Word},
};
use crate::{batch::BatchName, ledger::LedgerError};

/// A process counts as gone when it said nothing for so many seconds.
pub(super) const LIVES_S: u64 = 6;
/// How often it says that it lives.
const SAYS_SO_EVERY: Duration = Duration::from_secs(2);
/// The most words of one round trip, and their bytes.
const MOST_WORDS: usize = 256;
const MOST_BYTES: usize = 4 << 20;
/// Words that are kept while the server is away, in bytes.
const MOST_KEPT: usize = 64 << 20;
/// Pause after a round trip that failed, where nobody asks.
const PAUSE: Duration = Duration::from_millis(200);
/// A word that the server refuses for its own sake is said so often.
const MOST_TRIES: u32 = 3;
/// How long [`Clerk::flush`] waits, and the process' end.
const FLUSH: Duration = Duration::from_secs(5);

/// Where words are handed in.
pub(super) struct Clerk {
    desk: mpsc::UnboundedSender<Handed>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Bytes of words that wait.
    kept: AtomicUsize,
    is_full: AtomicBool,
    trips: AtomicU64,
    /// Since when the server answers again, after it did not.
    recovered: Mutex<Option<Instant>>,
}

enum Handed {
    Word(Box<Word>),
    /// All that was handed in before is stored.
    Stored(oneshot::Sender<()>),
}

impl Clerk {
    /// Starts the task. `token` names the process; what completes a batch is passed on to `completed`.
    pub(super) fn start(
        link: Arc<Link>,
        keys: Keys,
        token: Arc<str>,
        completed: mpsc::UnboundedSender<(BatchName, Value)>,
        stop: CancellationToken,
    ) -> Self {
        let (desk, handed) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            kept: AtomicUsize::new(0),
            is_full: AtomicBool::new(false),
            trips: AtomicU64::new(0),
            recovered: Mutex::new(None),
        });
        let round = Rounds {
            link,
            life: keys.process(&token),
            lived: None,
            handed,
            queue: VecDeque::new(),
            due: None,
            is_asked: false,
            completed,
            failed: None,
            shared: shared.clone(),
        };
        tokio::spawn(round.work(stop));
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
        let hand_in = |word: Word| {
            let (heard, answer) = oneshot::channel();
            let word = word.within(Duration::ZERO).heard_by(Heard::Asked(heard));
            let bytes = word.bytes();
            self.hand_in(word, bytes);
            answer
        };
        let answers: Vec<_> = words.into_iter().map(hand_in).collect();
        let mut values = Vec::with_capacity(answers.len());
        for answer in answers {
            let ended = |_| LedgerError::Away("this process ends".to_owned());
            values.push(answer.await.map_err(ended)??);
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

/// The task's side.
struct Rounds {
    link: Arc<Link>,
    /// The key that says that the process lives, and when it was said.
    life: Vec<u8>,
    lived: Option<Instant>,
    handed: mpsc::UnboundedReceiver<Handed>,
    queue: VecDeque<Handed>,
    /// When the first of the queue may wait no longer, and whether somebody waits for an answer.
    due: Option<Instant>,
    is_asked: bool,
    completed: mpsc::UnboundedSender<(BatchName, Value)>,
    failed: Option<Instant>,
    shared: Arc<Shared>,
}

impl Rounds {
    async fn work(mut self, stop: CancellationToken) {
        // Whoever stops may be stopped in the middle: only what is under way is finished.
        while stop.run_until_cancelled(self.gather()).await == Some(true) {
            self.one_round().await;
        }
        self.end().await;
    }

    /// Waits until it is time for a round trip. `false` when nobody is left who could say anything.
    async fn gather(&mut self) -> bool {
        loop {
            self.take_in();
            let next = self.next();
            if next <= Instant::now() {
                return true;
            }
            tokio::select! {
                handed = self.handed.recv() => match handed {
                    Some(handed) => self.queue_up(handed),
                    None => return false,
                },
                () = sleep_until(next) => return true,
            }
        }
    }

    fn take_in(&mut self) {
        while let Ok(handed) = self.handed.try_recv() {
            self.queue_up(handed);
        }
    }

    fn queue_up(&mut self, handed: Handed) {
        self.look_at(&handed);
        self.queue.push_back(handed);
    }

    fn look_at(&mut self, handed: &Handed) {
        let due = match handed {
            Handed::Stored(_) => Instant::now(),
            Handed::Word(word) => {
                self.is_asked |= matches!(word.heard, Heard::Asked(_));
                word.due
            }
        };
        self.due = Some(self.due.map_or(due, |first| first.min(due)));
    }

    /// When the next round trip begins, unless something is handed in before.
    fn next(&self) -> Instant {
        let now = Instant::now();
        match self.failed {
            None if self.queue.len() >= MOST_WORDS => now,
            None => {
                let lives = self.lived.map_or(now, |at| at + SAYS_SO_EVERY);
                self.due.map_or(lives, |due| due.min(lives))
            }
            Some(_) if self.is_asked => now,
            Some(failed) => failed + PAUSE,
        }
    }

    async fn one_round(&mut self) {
        let mut words = Vec::new();
        let mut bytes = 0;
        if self.lived.is_none_or(|at| at.elapsed() >= SAYS_SO_EVERY / 2) {
            words.push(Word::plain("SET", &self.life).arg(1).arg("EX").arg(LIVES_S));
        }
        let lives = words.len();
        while words.len() < MOST_WORDS && bytes < MOST_BYTES {
            match self.queue.pop_front() {
                None => break,
                Some(Handed::Word(word)) => {
                    bytes += word.bytes();
                    words.push(*word);
                }
                Some(stored @ Handed::Stored(_)) if words.len() > lives => {
                    self.queue.push_front(stored);
                    break;
                }
                Some(Handed::Stored(stored)) => {
                    // Whoever waited may be gone.
                    let _ = stored.send(());
                }
            }
        }
        let began = Instant::now();
        let (answers, why, trips) = round(&self.link, &words).await;
        self.shared.trips.fetch_add(trips, Ordering::Relaxed);
        let mut answered = words.into_iter().zip(answers);
        if lives == 1 && matches!(answered.next(), Some((_, Answer::Heard(_)))) {
            self.lived = Some(began);
        }
        let kept: Vec<Word> =
            answered.filter_map(|(word, answer)| self.hear(word, answer, why.as_ref())).collect();
        self.note(why);
        for word in kept.into_iter().rev() {
            self.queue.push_front(Handed::Word(Box::new(word)));
        }
        (self.due, self.is_asked) = (None, false);
        for handed in std::mem::take(&mut self.queue) {
            self.queue_up(handed);
        }
    }

    /// Passes on what was answered to a word; returns it where it has to be said again.
    fn hear(&self, mut word: Word, answer: Answer, why: Option<&Away>) -> Option<Word> {
        let bytes = word.bytes();
        match answer {
            Answer::Heard(value) => match word.heard {
                Heard::No => {}
                Heard::Asked(heard) => drop(heard.send(Ok(value))),
                Heard::Completed(batch) => {
                    if !matches!(&value, Value::Array(fields) if fields.is_empty()) {
                        let _ = self.completed.send((batch, value));
                    }
                }
            },
            Answer::Refused(error) if word.tries >= MOST_TRIES || matches!(word.heard, Heard::Asked(_)) => {
                tracing::error!(%error, "the ledger can't be told: a word is lost");
                if let Heard::Asked(heard) = word.heard {
                    let _ = heard.send(Err(LedgerError::Away(error)));
                }
            }
            Answer::Refused(_) | Answer::Unheard => match word.heard {
                Heard::Asked(heard) => {
                    let why = why.map_or_else(|| "no answer".to_owned(), |Away(why)| why.clone());
                    let _ = heard.send(Err(LedgerError::Away(why)));
                }
                _ => {
                    word.say_again();
                    self.shared.kept.fetch_add(word.bytes() - bytes, Ordering::Relaxed);
                    return Some(word);
                }
            },
        }
        self.shared.kept.fetch_sub(bytes, Ordering::Relaxed);
        None
    }

    /// Draws the conclusions from how a round trip went. Who asked before it failed waits no longer.
    fn note(&mut self, why: Option<Away>) {
        let Some(away) = why else {
            if self.failed.take().is_some() {
                *self.shared.recovered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
            self.shared.is_full.store(false, Ordering::Relaxed);
            return;
        };
        self.failed = Some(Instant::now());
        self.take_in();
        for handed in std::mem::take(&mut self.queue) {
            match handed {
                Handed::Word(word) if matches!(word.heard, Heard::Asked(_)) => {
                    self.hear(*word, Answer::Unheard, Some(&away));
                }
                handed => self.queue.push_back(handed),
            }
        }
    }

    /// Says what is left, within a bound, and that the process is gone.
    async fn end(mut self) {
        let rest = async {
            loop {
                self.take_in();
                if self.queue.is_empty() || self.failed.is_some() {
                    break;
                }
                self.one_round().await;
            }
            round(&self.link, &[Word::plain("DEL", &self.life)]).await;
        };
        if timeout(FLUSH, rest).await.is_err() {
            tracing::warn!("what was said to the ledger last is not stored");
        }
    }
}
