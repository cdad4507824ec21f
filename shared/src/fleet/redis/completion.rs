//! Which batches became complete, and who says so.
//!
//! The script that settles the last result names its process as the one to say it. The name stays until the announcement is
//! out, and where that process is gone, or nobody was named because the producer's word came last, another one takes over.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use redis::Value;
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep_until},
};

use super::{
    batches::progress_of,
    ledger::{RedisLedger, read},
    word::Word,
};
use crate::{batch::BatchName, batches::Progress, ledger::LedgerError};

/// How often it is looked for batches that nobody says to be complete.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The most batches of one look.
const MOST: usize = 200;
/// In the place of who is to say it: it was said.
const SAID: &str = "1";

/// What was heard of batches that are complete.
pub(super) struct Completion(Mutex<Hearing>);

struct Hearing {
    heard: mpsc::UnboundedReceiver<(BatchName, Value)>,
    /// Complete, and not yet handed out.
    waiting: VecDeque<Progress>,
    /// For this process to say.
    own: HashSet<BatchName>,
    /// Handed out last: it is said when the next one is asked for.
    handed_out: Option<BatchName>,
    look_at: Instant,
}

impl Completion {
    pub(super) fn new(heard: mpsc::UnboundedReceiver<(BatchName, Value)>) -> Self {
        Self(Mutex::new(Hearing {
            heard,
            waiting: VecDeque::new(),
            own: HashSet::new(),
            handed_out: None,
            look_at: Instant::now() + LOOK_EVERY,
        }))
    }
}

impl RedisLedger {
    /// The next batch that is complete and for this process to say.
    pub(super) async fn next_complete(&self) -> Progress {
        let mut hearing = self.completion.0.lock().await;
        if let Some(batch) = hearing.handed_out.take() {
            hearing.own.remove(&batch);
            self.tell(self.say_complete(&batch, &self.token, SAID));
        }
        loop {
            self.hear(&mut hearing);
            if let Some(progress) = hearing.waiting.pop_front() {
                hearing.handed_out = Some(progress.batch.clone());
                return progress;
            }
            let look_at = hearing.look_at;
            tokio::select! {
                Some((batch, known)) = hearing.heard.recv() => self.note(&mut hearing, &batch, known),
                () = sleep_until(look_at) => {
                    hearing.look_at = Instant::now() + LOOK_EVERY;
                    if let Err(error) = self.look(&mut hearing).await {
                        tracing::debug!(%error, "not looked for batches that are complete");
                    }
                }
            }
        }
    }

    fn hear(&self, hearing: &mut Hearing) {
        while let Ok((batch, known)) = hearing.heard.try_recv() {
            self.note(hearing, &batch, known);
        }
    }

    fn note(&self, hearing: &mut Hearing, batch: &BatchName, known: Value) {
        let known = read(known).map(|known| progress_of(batch, &known, self.holds.of(batch)));
        match known {
            Ok(Some(progress)) => {
                if hearing.own.insert(batch.clone()) {
                    hearing.waiting.push_back(progress);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, %batch, "not read: a batch that is complete"),
        }
    }

    fn say_complete(&self, batch: &BatchName, before: &str, now: &str) -> Word {
        Word::script(&self.link.scripts.say_complete, &[self.keys.batch(batch)]).arg(before).arg(now)
    }

    /// Looks for batches that are complete, and that nobody says to be.
    async fn look(&self, hearing: &mut Hearing) -> Result<(), LedgerError> {
        let ask = Word::plain("SRANDMEMBER", &self.keys.closed()).arg(MOST);
        let closed: Vec<String> = read(self.clerk.ask(vec![ask]).await?.remove(0))?;
        let closed: Vec<BatchName> = closed.iter().filter_map(|batch| batch.parse().ok()).collect();
        let ask = |batch| {
            let fields = ["opened_at", "closed", "expected", "total", "said"];
            Word::plain("HMGET", &self.keys.batch(batch)).arg(&fields[..])
        };
        let answers = self.clerk.ask(closed.iter().map(ask).collect()).await?;
        // What this process completed meanwhile was heard before these answers.
        self.hear(hearing);
        let mut unsaid = Vec::new();
        for (batch, answer) in closed.into_iter().zip(answers) {
            type Fields = (Option<u64>, Option<u8>, Option<u64>, Option<u64>, Option<String>);
            let (opened, closed, expected, total, said): Fields = read(answer)?;
            let complete = closed == Some(1) && total.unwrap_or(0) >= expected.unwrap_or(0);
            if opened.is_none() || said.as_deref() == Some(SAID) {
                self.tell(Word::plain("SREM", &self.keys.closed()).arg(batch.as_str()));
            } else if complete && !hearing.own.contains(&batch) {
                unsaid.push((batch, said));
            }
        }
        let others = |said: &Option<String>| said.clone().filter(|said| **said != *self.token);
        let tokens: Vec<String> = unsaid.iter().filter_map(|(_, said)| others(said)).collect();
        let mut gone = self.gone(&tokens).await?.into_iter();
        for (batch, said) in unsaid {
            // It is for nobody to say, for this process, which did not hear of it, or for one that is gone.
            if others(&said).is_none() || gone.next() == Some(true) {
                let word = self.say_complete(&batch, said.as_deref().unwrap_or_default(), &self.token);
                let known = self.clerk.ask(vec![word]).await?.remove(0);
                self.note(hearing, &batch, known);
            }
        }
        Ok(())
    }
}
