//! The clerk's task: which words go with the next round trip, and what becomes of those that were not heard.
//!
//! Each round trip says that the process lives, where that was not said lately.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use redis::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    clerk::{FLUSH, Handed, LIVES_S, Shared},
    pool::{Away, Link},
    round::{Answer, round},
    word::{Heard, Unheard, Word},
};
use crate::batch::BatchName;

/// How often it says that the process lives.
const SAYS_SO_EVERY: Duration = Duration::from_secs(2);
/// From one round trip's begin to the next, by the words of the first, at least and at most. Who waits longer for company
/// costs the server less: under load each round trip takes many words along, and where there is little to say nobody meets
/// this bound.
const PACE_OF_A_WORD: Duration = Duration::from_micros(200);
const PACE: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(10)];
/// The most words of one round trip, and their bytes.
const MOST_WORDS: usize = 256;
const MOST_BYTES: usize = 4 << 20;
/// Pause after a round trip that failed, where nobody asks.
const PAUSE: Duration = Duration::from_millis(200);
/// A word that the server refuses for its own sake is said so often.
const MOST_TRIES: u32 = 3;

/// The task's side.
pub(super) struct Rounds {
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
    /// When the last round trip began, and the next one may.
    began: Instant,
    pace: Duration,
    failed: Option<Instant>,
    shared: Arc<Shared>,
}

impl Rounds {
    /// `life` is the key that says that the process lives.
    pub(super) fn new(
        link: Arc<Link>,
        life: Vec<u8>,
        handed: mpsc::UnboundedReceiver<Handed>,
        completed: mpsc::UnboundedSender<(BatchName, Value)>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            link,
            life,
            lived: None,
            handed,
            queue: VecDeque::new(),
            due: None,
            is_asked: false,
            completed,
            began: Instant::now(),
            pace: Duration::ZERO,
            failed: None,
            shared,
        }
    }

    /// Says what is handed in, until `stop`.
    pub(super) async fn work(mut self, stop: CancellationToken) {
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
                self.due.map_or(lives, |due| due.min(lives)).max(self.began + self.pace)
            }
            Some(_) if self.is_asked => now,
            Some(failed) => failed + PAUSE,
        }
    }

    async fn one_round(&mut self) {
        let (mut words, mut waiting) = (Vec::new(), Vec::new());
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
                // Whoever waits for what was handed in before waits for this round trip, not for one that ends there.
                Some(Handed::Stored(stored)) => waiting.push(stored),
            }
        }
        let kept = self.say(words, lives == 1).await;
        if kept.is_empty() {
            for stored in waiting {
                // Whoever waited may be gone.
                let _ = stored.send(());
            }
        } else {
            let kept = kept.into_iter().map(|word| Handed::Word(Box::new(word)));
            let again = kept.chain(waiting.into_iter().map(Handed::Stored));
            self.queue = again.chain(std::mem::take(&mut self.queue)).collect();
        }
        (self.due, self.is_asked) = (None, false);
        for handed in std::mem::take(&mut self.queue) {
            self.queue_up(handed);
        }
    }

    /// Says words, the first of them that the process lives where it `lives`; returns what has to be said again.
    async fn say(&mut self, words: Vec<Word>, lives: bool) -> Vec<Word> {
        if words.is_empty() {
            return words;
        }
        let began = Instant::now();
        let [least, most] = PACE;
        (self.began, self.pace) = (began, (PACE_OF_A_WORD * words.len() as u32).clamp(least, most));
        let (answers, why, trips) = round(&self.link, &words).await;
        self.shared.trips.fetch_add(trips, Ordering::Relaxed);
        let mut answered = words.into_iter().zip(answers);
        if lives && matches!(answered.next(), Some((_, Answer::Heard(_)))) {
            self.lived = Some(began);
        }
        if why.is_none() {
            // Before anybody hears an answer: after a silence it is not certain who lives.
            self.recovered();
        }
        let kept: Vec<Word> =
            answered.filter_map(|(word, answer)| self.hear(word, answer, why.as_ref(), trips > 0)).collect();
        if let Some(away) = why {
            self.failed(&away);
        }
        kept
    }

    /// Passes on what was answered to a word; returns it where it has to be said again. Nothing `left` where no connection
    /// was to be had.
    fn hear(&self, mut word: Word, answer: Answer, why: Option<&Away>, left: bool) -> Option<Word> {
        let bytes = word.bytes();
        match (answer, word.heard) {
            // Whoever asked may be gone.
            (Answer::Heard(value), Heard::Asked(heard)) => drop(heard.send(Ok(value))),
            (Answer::Heard(value), Heard::Told(heard)) => drop(heard.send(stands(&value))),
            (Answer::Heard(value), Heard::Completed(batch)) => {
                if !matches!(&value, Value::Array(fields) if fields.is_empty()) {
                    let _ = self.completed.send((batch, value));
                }
            }
            (Answer::Heard(_), Heard::No) => {}
            (Answer::Refused(why), Heard::Asked(heard)) => {
                tracing::error!(redis.why = %why, "the ledger refuses a question");
                let _ = heard.send(Err(Unheard { why, left: false }));
            }
            (Answer::Unheard, Heard::Asked(heard)) => {
                let why = why.map_or_else(|| "no answer".to_owned(), |Away(why)| why.clone());
                let _ = heard.send(Err(Unheard { why, left }));
            }
            (Answer::Refused(why), _) if word.tries >= MOST_TRIES => {
                tracing::error!(redis.why = %why, "the ledger refuses a word: it is lost");
            }
            (Answer::Refused(_) | Answer::Unheard, heard) => {
                word.heard = heard;
                word.say_again(left);
                self.shared.kept.fetch_add(word.bytes() - bytes, Ordering::Relaxed);
                return Some(word);
            }
        }
        self.shared.kept.fetch_sub(bytes, Ordering::Relaxed);
        None
    }

    /// A round trip went well.
    fn recovered(&mut self) {
        if self.failed.take().is_some() {
            *self.shared.recovered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        self.shared.is_full.store(false, Ordering::Relaxed);
    }

    /// A round trip failed. Who asked before that waits no longer.
    fn failed(&mut self, away: &Away) {
        self.failed = Some(Instant::now());
        self.take_in();
        for handed in std::mem::take(&mut self.queue) {
            match handed {
                Handed::Word(word) if matches!(word.heard, Heard::Asked(_)) => {
                    self.hear(*word, Answer::Unheard, Some(away), false);
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
                if self.queue.is_empty() {
                    break;
                }
                self.one_round().await;
                if self.failed.is_some() {
                    return;
                }
            }
            round(&self.link, &[Word::plain("DEL", &self.life)]).await;
        };
        if timeout(FLUSH, rest).await.is_err() {
            tracing::warn!("what was said to the ledger last is not stored");
        }
    }
}

/// Whether what was said of a turn stands, as `answered.lua` answers.
fn stands(answer: &Value) -> bool {
    !matches!(answer, Value::Array(words) if matches!(words.first(), Some(Value::BulkString(word)) if word == b"over"))
}
