//! What is said of calls and turns, as words, and what is heard of them.

use std::{
    fmt::{Display, Write},
    time::Duration,
};

use jiff::civil::Date;
use redis::Value;
use serde::de::DeserializeOwned;

use super::{
    bill,
    ledger::{RedisLedger, read},
    word::{Common, Heard, LATER, Unheard, Word},
};
use crate::{
    batch::Tally,
    id::Id,
    job::Job,
    ledger::{Answered, End, Intent, Known, LedgerError, Mark, TakenUp},
};

/// A call under way is looked after again after this time.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// What stands against a call, before it is known whether the process that makes it lives.
enum Stands {
    Known(Known),
    /// A call is under way: its intent, and who makes it.
    Held(Vec<u8>, String),
}

/// Taken back when it is dropped: nobody heard that the call may leave.
struct Unsaid<'a> {
    ledger: &'a RedisLedger,
    intent: Option<&'a Intent>,
}

impl Drop for Unsaid<'_> {
    fn drop(&mut self) {
        if let Some(intent) = self.intent {
            self.ledger.tell(self.ledger.became("untold", intent).arg("").arg("").arg(""));
        }
    }
}

impl RedisLedger {
    pub(super) async fn take_up_job(&self, job: &Job) -> Result<TakenUp, LedgerError> {
        let (batch, id) = (&job.batch, job.id);
        let keys = [self.keys.calls(batch), self.keys.shard(batch, id), self.keys.hands(batch, id)];
        let word = Word::script(&self.link.scripts.take_up, &keys)
            .of_job(id)
            .arg(&id.to_bytes()[..])
            .arg(job.turn())
            .arg(&*self.token)
            .arg(self.ttl.as_secs());
        let mut answers = self.clerk.ask(vec![word]).await?;
        let (stands, mut hands): (Value, Vec<String>) = read(answers.remove(0))?;
        let stands = stands_of(stands)?;
        let (most, held) =
            (hands.len(), if let Stands::Held(_, token) = &stands { Some(token.clone()) } else { None });
        hands.extend(held.filter(|token| **token != *self.token));
        let gone = self.gone(&hands).await?;
        let crashed = gone[..most].iter().filter(|gone| **gone).count();
        let known = known(stands, gone.get(most).copied().unwrap_or(false))?;
        Ok(TakenUp { known, crashed: crashed as u32, unsure: (most - crashed) as u32 })
    }

    pub(super) async fn depart_call(&self, intent: &Intent) -> Result<Known, LedgerError> {
        let mut unheard = Unsaid { ledger: self, intent: Some(intent) };
        let (batch, id) = (&intent.batch, intent.job);
        let keys = [self.keys.shard(batch, id)];
        let word = Word::part(&self.link.scripts.depart, self.in_common(None), id, &keys)
            .arg(&id.to_bytes()[..])
            .arg(intent.turn)
            .arg(short(intent.call))
            .arg(self.number())
            .arg(intent.lasts_ms)
            .arg(json(intent)?);
        let answers = self.clerk.ask_and_know(vec![word]).await;
        if !matches!(answers, Err(Unheard { left: true, .. })) {
            unheard.intent = None;
        }
        let mut answers = answers.map_err(|Unheard { why, .. }| LedgerError::Away(why))?;
        match stands_of(answers.remove(0))? {
            Stands::Held(said, token) if *token != *self.token => {
                let gone = self.gone(std::slice::from_ref(&token)).await?;
                known(Stands::Held(said, token), gone[0])
            }
            stands => known(stands, false),
        }
    }

    pub(super) fn tell_answered(&self, intent: &Intent, answered: &Answered) {
        let follows = match answered {
            Answered::Paid(settlement) => json(settlement).map(|text| (Tally::of(&settlement.results), text)),
            Answered::Free | Answered::Unsent => Ok((Tally::default(), String::new())),
        };
        let (tally, text) = match follows {
            Ok(follows) => follows,
            Err(error) => return tracing::error!(%error, "an answer can't be kept"),
        };
        let (what, lines) = match answered {
            Answered::Paid(_) => ("paid", bill::lines(intent)),
            Answered::Free => ("free", bill::lines(intent)),
            Answered::Unsent => ("unsent", Vec::new()),
        };
        if !lines.is_empty() {
            self.index_bill(&intent.batch, bill::day(intent));
        }
        let word =
            self.became(what, intent).arg(counts(&tally)).arg(text).arg(
                lines.iter().map(|(name, cost)| format!("{cost} {name}")).collect::<Vec<_>>().join("\n"),
            );
        if matches!(answered, Answered::Paid(_)) {
            // Somebody waits for it.
            let word = word.heard_by(self.told.expect(intent.job, intent.turn));
            return self.clerk.tell(word.within(Duration::ZERO));
        }
        self.tell(word);
    }

    /// The call of a dead process, or one that nobody waits for any more: whoever meets it need not wait, either.
    pub(super) fn tell_unanswered(&self, intent: &Intent) {
        self.tell(self.became("lost", intent).arg("").arg("").arg(""));
    }

    /// What became of a call.
    fn became(&self, what: &str, intent: &Intent) -> Word {
        let (batch, id) = (&intent.batch, intent.job);
        let keys = [self.keys.shard(batch, id)];
        let common = self.in_common(Some(bill::day(intent)));
        Word::part(&self.link.scripts.answered, common, id, &keys)
            .arg(what)
            .arg(&id.to_bytes()[..])
            .arg(intent.turn)
            .arg(short(intent.call))
            .arg(self.number())
    }

    fn in_common(&self, bill: Option<Date>) -> Common {
        Common { bill, token: self.token.clone(), ttl_s: self.ttl.as_secs() }
    }

    pub(super) fn tell_settled(&self, mark: &Mark) {
        let Mark { job, batch, turn, tally, end } = mark;
        self.told.forget(*job, *turn);
        self.index_batch(batch);
        let keys = [self.keys.shard(batch, *job), self.keys.hands(batch, *job)];
        let end = match end {
            End::Done => "done",
            End::Again => "again",
            End::Dead => "dead",
        };
        let word = Word::part(&self.link.scripts.settled, self.in_common(None), *job, &keys)
            .arg(&job.to_bytes()[..])
            .arg(*turn)
            .arg(end)
            .arg(counts(tally));
        self.clerk.tell(word.heard_by(Heard::Completed(batch.clone())).within(LATER));
    }

    pub(super) async fn reopen_job(&self, job: &Job) -> Result<bool, LedgerError> {
        let (batch, id) = (&job.batch, job.id);
        let keys = [
            self.keys.batch(batch),
            self.keys.dead(batch),
            self.keys.calls(batch),
            self.keys.shard(batch, id),
            self.keys.hands(batch, id),
        ];
        let closed = Word::plain("SADD", &self.keys.closed()).arg(batch.as_str());
        let word = Word::script(&self.link.scripts.reopen, &keys)
            .of_job(id)
            .arg(&id.to_bytes()[..])
            .arg(job.turn())
            .arg(self.ttl.as_secs());
        let mut answers = self.clerk.ask(vec![closed, word]).await?;
        read(answers.remove(1))
    }
}

/// A tally as the scripts read it.
fn counts(tally: &Tally) -> String {
    let [first, rest @ ..] = tally.named().map(|(_, count)| count);
    rest.iter().fold(first.to_string(), |mut counts, count| {
        // A text is never full.
        let _ = write!(counts, ",{count}");
        counts
    })
}

/// Enough of a call's id to tell it from the others of its job.
fn short(call: Id) -> String {
    call.to_string()[..12].to_owned()
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<String, LedgerError> {
    let mut text = Vec::with_capacity(1_000);
    let unwritable = |why: &dyn Display| LedgerError::Away(format!("what can't be written: {why}"));
    serde_json::to_writer(&mut text, value).map_err(|error| unwritable(&error))?;
    String::from_utf8(text).map_err(|error| unwritable(&error))
}

pub(super) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, LedgerError> {
    let unreadable = |error| {
        LedgerError::Away(format!("what is stored can't be read, perhaps of a later release: {error}"))
    };
    serde_json::from_slice(text).map_err(unreadable)
}

fn stands_of(answer: Value) -> Result<Stands, LedgerError> {
    let mut words = read::<Vec<Vec<u8>>>(answer)?.into_iter();
    let (word, said, token) = (words.next().unwrap_or_default(), words.next(), words.next());
    let known = match (&*word, said, token) {
        (b"over", ..) => Known::Over,
        (b"answered", Some(said), _) => Known::Answered(parse(&said)?),
        (b"unanswered", Some(said), _) => Known::Unanswered(parse(&said)?),
        (b"held", Some(said), Some(token)) => {
            return Ok(Stands::Held(said, String::from_utf8_lossy(&token).into_owned()));
        }
        _ => Known::Clear,
    };
    Ok(Stands::Known(known))
}

fn known(stands: Stands, is_gone: bool) -> Result<Known, LedgerError> {
    Ok(match stands {
        Stands::Known(known) => known,
        Stands::Held(said, _) if is_gone => Known::Unanswered(parse(&said)?),
        Stands::Held(..) => Known::UnderWay(UNDER_WAY),
    })
}
