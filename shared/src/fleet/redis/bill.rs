//! What was answered and paid for by day, and the calls that were never answered.
//!
//! The bill stands beside the batch, so that the script that stores an answer also counts it: none is counted twice, and none
//! is stored and not counted. The day's whole bill is read from its batches.

use std::collections::{BTreeMap, HashMap};

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};

use super::{
    calls::{json, parse},
    ledger::{RedisLedger, read},
    word::Word,
};
use crate::{
    batch::BatchName,
    id::Id,
    ledger::{BillLine, Intent, LedgerError, Lost, Resolution, Unanswered},
};

/// Bills and lists are kept for so many days; so are batches, by state.lua.
const KEPT_DAYS: i64 = 400;
/// The line that counts calls, whatever their models.
const ALL_MODELS: &str = "*";
/// Questions that are asked at once.
const AT_ONCE: usize = 200;

/// The UTC day of a call.
pub(super) fn day(intent: &Intent) -> Date {
    intent.leaves_at.to_zoned(TimeZone::UTC).date()
}

/// The lines that a call stands on, each with its part of the cost: one for each model, and one for the call.
pub(super) fn lines(intent: &Intent) -> Vec<(String, u64)> {
    let Intent { provider, account, currency, cost_micros, models, .. } = intent;
    // Four texts are always JSON.
    let name = |model: &str| serde_json::to_string(&[provider, account, model, currency]).unwrap_or_default();
    let count = models.len().max(1) as u64;
    // What can't be shared evenly goes to the first.
    let part = |at: usize| cost_micros / count + u64::from((at as u64) < cost_micros % count);
    let all = (name(ALL_MODELS), *cost_micros);
    std::iter::once(all).chain(models.iter().enumerate().map(|(at, model)| (name(model), part(at)))).collect()
}

impl RedisLedger {
    /// Says, where it was not said lately, that a batch adds to the bill of a day.
    pub(super) fn index_bill(&self, batch: &BatchName, day: Date) {
        let billed = self.keys.billed(day);
        if self.is_news(&[&billed, batch.as_str().as_bytes()].concat()) {
            self.tell(Word::plain("SADD", &billed).arg(batch.as_str()));
            self.tell(Word::plain("EXPIRE", &billed).arg(KEPT_DAYS * 86_400));
            self.index_day(day);
        }
    }

    fn index_day(&self, day: Date) {
        self.tell(Word::plain("ZADD", &self.keys.days()).arg(0).arg(day.to_string()));
    }

    pub(super) fn tell_lost(&self, intent: &Intent, then: Lost) {
        let unanswered =
            Unanswered { intent: intent.clone(), then, noted_at: Timestamp::now(), resolution: None };
        let text = match json(&unanswered) {
            Ok(text) => text,
            Err(error) => return tracing::error!(%error, "a call that was never answered can't be listed"),
        };
        let day = day(intent);
        let lost = self.keys.lost(day);
        self.tell_unanswered(intent);
        self.tell(Word::plain("HSETNX", &lost).arg(intent.call.to_string()).arg(text));
        self.tell(Word::plain("EXPIRE", &lost).arg(KEPT_DAYS * 86_400));
        self.index_day(day);
    }

    pub(super) async fn days_kept(&self) -> Result<Vec<Date>, LedgerError> {
        let ask = Word::plain("ZRANGE", &self.keys.days()).arg(0).arg(-1);
        let days: Vec<String> = read(self.clerk.ask(vec![ask]).await?.remove(0))?;
        let oldest = Timestamp::now().to_zoned(TimeZone::UTC).date().saturating_sub(KEPT_DAYS.days());
        Ok(days.iter().filter_map(|day| day.parse().ok()).filter(|day| *day >= oldest).collect())
    }

    pub(super) async fn unanswered_on(&self, day: Date) -> Result<Vec<Unanswered>, LedgerError> {
        let ask = Word::plain("HVALS", &self.keys.lost(day));
        let texts: Vec<Vec<u8>> = read(self.clerk.ask(vec![ask]).await?.remove(0))?;
        let mut listed = texts.iter().map(|text| parse(text)).collect::<Result<Vec<Unanswered>, _>>()?;
        listed.sort_by_key(|unanswered| unanswered.intent.leaves_at);
        Ok(listed)
    }

    pub(super) async fn resolve_call(
        &self,
        day: Date,
        call: Id,
        resolution: &Resolution,
    ) -> Result<bool, LedgerError> {
        let (lost, call) = (self.keys.lost(day), call.to_string());
        let ask = Word::plain("HGET", &lost).arg(&call);
        let Some(text) = read::<Option<Vec<u8>>>(self.clerk.ask(vec![ask]).await?.remove(0))? else {
            return Ok(false);
        };
        let resolved = Unanswered { resolution: Some(resolution.clone()), ..parse(&text)? };
        let tell = Word::plain("HSET", &lost).arg(&call).arg(json(&resolved)?);
        self.clerk.ask(vec![tell]).await?;
        Ok(true)
    }

    pub(super) async fn bill_of(&self, day: Date) -> Result<Vec<BillLine>, LedgerError> {
        let ask = Word::plain("SMEMBERS", &self.keys.billed(day));
        let batches: Vec<String> = read(self.clerk.ask(vec![ask]).await?.remove(0))?;
        let batches: Vec<BatchName> = batches.iter().filter_map(|batch| batch.parse().ok()).collect();
        let mut bill = BTreeMap::new();
        for some in batches.chunks(AT_ONCE) {
            let ask = |batch| Word::plain("HGETALL", &self.keys.bill(batch, day));
            for part in self.clerk.ask(some.iter().map(ask).collect()).await? {
                add(&mut bill, day, &read(part)?);
            }
        }
        Ok(bill.into_values().collect())
    }
}

/// Adds a batch's part: fields of one letter, what is counted, and the line's name.
fn add(bill: &mut BTreeMap<[String; 4], BillLine>, day: Date, part: &HashMap<String, u64>) {
    for (field, count) in part {
        let Some((kind, name)) = field.split_at_checked(1) else { continue };
        let Ok(name) = serde_json::from_str::<[String; 4]>(name) else { continue };
        let line = bill.entry(name).or_insert_with_key(|[provider, account, model, currency]| BillLine {
            day,
            provider: provider.clone(),
            account: account.clone(),
            model: model.clone(),
            answered: 0,
            charged: 0,
            cost_micros: 0,
            currency: currency.clone(),
        });
        match kind {
            "f" => line.answered += count,
            "c" => {
                line.answered += count;
                line.charged += count;
            }
            "m" => line.cost_micros += count,
            // Of a later release.
            _ => {}
        }
    }
}
