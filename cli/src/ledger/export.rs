//! `pixfleet ledger export`: what a vendor's invoice has to agree with, by day, account and model.
//!
//! A call counts on the day (UTC) on which it left, one that was never answered, too, whenever it was noted.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use jiff::civil::Date;
use pixfleet_shared::ledger::{BillLine, Ledger, LedgerError, Unanswered};
use serde::Serialize;

use super::{moment::day_of, money};

/// All of a call's models: the line counts calls.
const ALL_MODELS: &str = "*";

/// One line of the export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    answered: u64,
    charged: u64,
    cost_micros: u64,
    /// Nobody knows.
    unanswered: u64,
    unanswered_micros: u64,
    /// Never answered, and charged, as somebody found out.
    found_charged: u64,
    found_charged_micros: u64,
    /// Never answered, and not charged.
    found_not_charged: u64,
    currency: String,
}

type Key = (Date, String, String, String);

/// A line as it is written.
#[derive(Serialize)]
struct Written<'a, Money> {
    day: Date,
    provider: &'a str,
    account: &'a str,
    model: &'a str,
    answered: u64,
    charged: u64,
    cost: Money,
    unanswered: u64,
    unanswered_charged: u64,
    unanswered_not_charged: u64,
    currency: &'a str,
    charged_at_least: u64,
    charged_at_most: u64,
    cost_at_least: Money,
    cost_at_most: Money,
}

/// The lines of these days.
#[derive(Debug, Default)]
pub(super) struct Export(BTreeMap<Key, Line>);

impl Export {
    /// Reads what the ledger has of the days from `from` to `to`.
    ///
    /// # Errors
    /// When the ledger is away.
    pub(super) async fn read(ledger: &dyn Ledger, from: Date, to: Date) -> Result<Self, LedgerError> {
        let mut export = Self::default();
        for day in ledger.days().await?.into_iter().filter(|day| *day >= from) {
            if day <= to {
                for line in ledger.bill(day).await? {
                    export.add_answered(line);
                }
            }
            // A worker that died is noticed later: what left on these days may be listed on any day that followed.
            for call in ledger.unanswered(day).await? {
                if (from..=to).contains(&day_of(call.intent.leaves_at)) {
                    export.add_unanswered(&call);
                }
            }
        }
        Ok(export)
    }

    fn line(&mut self, key: Key, currency: &str) -> &mut Line {
        let line = self.0.entry(key).or_default();
        if line.currency.is_empty() {
            currency.clone_into(&mut line.currency);
        }
        line
    }

    fn add_answered(&mut self, bill: BillLine) {
        let BillLine { day, provider, account, model, answered, charged, cost_micros, currency } = bill;
        let line = self.line((day, provider, account, model), &currency);
        line.answered += answered;
        line.charged += charged;
        line.cost_micros += cost_micros;
    }

    fn add_unanswered(&mut self, call: &Unanswered) {
        let intent = &call.intent;
        let parts = intent.models.len();
        let models = intent.models.iter().enumerate();
        let parts = models.map(|(at, model)| (model.as_str(), money::part(intent.cost_micros, at, parts)));
        for (model, micros) in parts.chain([(ALL_MODELS, intent.cost_micros)]) {
            let day = day_of(intent.leaves_at);
            let key = (day, intent.provider.clone(), intent.account.clone(), model.to_owned());
            let line = self.line(key, &intent.currency);
            match call.resolution.as_ref().map(|resolution| resolution.charged) {
                None => {
                    line.unanswered += 1;
                    line.unanswered_micros += micros;
                }
                Some(true) => {
                    line.found_charged += 1;
                    line.found_charged_micros += micros;
                }
                Some(false) => line.found_not_charged += 1,
            }
        }
    }

    /// How many lines.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// As CSV under a header.
    ///
    /// # Errors
    /// When a row can't be made.
    pub(super) fn csv(&self) -> anyhow::Result<Vec<u8>> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        if self.0.is_empty() {
            writer.write_record(HEADER)?;
        }
        for (key, line) in &self.0 {
            writer.serialize(written(key, line, money::text))?;
        }
        writer.into_inner().context("CSV rows in memory")
    }

    /// As JSON lines.
    ///
    /// # Errors
    /// When a line can't be made.
    pub(super) fn jsonl(&self) -> anyhow::Result<Vec<u8>> {
        let mut lines = Vec::new();
        for (key, line) in &self.0 {
            serde_json::to_writer(&mut lines, &written(key, line, money::number))?;
            lines.push(b'\n');
        }
        Ok(lines)
    }
}

/// The header of an export without lines; with some it comes from [`Written`], which a test compares.
const HEADER: [&str; 15] = [
    "day",
    "provider",
    "account",
    "model",
    "answered",
    "charged",
    "cost",
    "unanswered",
    "unanswered_charged",
    "unanswered_not_charged",
    "currency",
    "charged_at_least",
    "charged_at_most",
    "cost_at_least",
    "cost_at_most",
];

fn written<'a, Money>(key: &'a Key, line: &'a Line, money: fn(u64) -> Money) -> Written<'a, Money> {
    let (day, provider, account, model) = key;
    let least = line.charged + line.found_charged;
    let cost_least = line.cost_micros + line.found_charged_micros;
    Written {
        day: *day,
        provider,
        account,
        model,
        answered: line.answered,
        charged: line.charged,
        cost: money(line.cost_micros),
        unanswered: line.unanswered,
        unanswered_charged: line.found_charged,
        unanswered_not_charged: line.found_not_charged,
        currency: &line.currency,
        charged_at_least: least,
        charged_at_most: least + line.unanswered,
        cost_at_least: money(cost_least),
        cost_at_most: money(cost_least + line.unanswered_micros),
    }
}

/// Writes an export to `file`, which may be there: an export of the same days takes its place.
///
/// # Errors
/// What the disk says.
pub(super) fn write(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(file, bytes).with_context(|| {
        format!("can't write {}: give a file in a folder that you may write", file.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::sample::found;
    use pixfleet_shared::ledger::Resolution;

    fn bill(model: &str, charged: u64, cost_micros: u64) -> BillLine {
        BillLine {
            day: "2026-11-26".parse().unwrap(),
            provider: "restb".into(),
            account: "restb".into(),
            model: model.into(),
            answered: 10,
            charged,
            cost_micros,
            currency: "USD".into(),
        }
    }

    fn rows(export: &Export) -> Vec<BTreeMap<String, String>> {
        let bytes = export.csv().unwrap();
        csv::Reader::from_reader(&bytes[..]).deserialize().map(Result::unwrap).collect()
    }

    #[test]
    fn an_invoice_lies_between_what_is_charged_and_what_may_be() {
        let mut export = Export::default();
        export.add_answered(bill("*", 9, 90_000));
        export.add_answered(bill("re_logo", 9, 45_000));
        let mut calls = [found(1), found(2), found(3), found(4)].map(|found| found.call);
        let resolution =
            |charged| Some(Resolution { charged, by: "ann".into(), at: jiff::Timestamp::UNIX_EPOCH });
        calls[2].resolution = resolution(true);
        calls[3].resolution = resolution(false);
        calls.iter().for_each(|call| export.add_unanswered(call));
        let rows = rows(&export);
        let of = |model: &str| rows.iter().find(|row| row["model"] == model).unwrap();
        let columns = |model: &str, names: [&str; 7]| names.map(|name| of(model)[name].clone());
        let names = [
            "charged",
            "unanswered",
            "unanswered_charged",
            "unanswered_not_charged",
            "charged_at_most",
            "cost_at_least",
            "cost_at_most",
        ];
        assert_eq!(columns("*", names), ["9", "2", "1", "1", "12", "0.10", "0.12"]);
        assert_eq!(columns("re_logo", names), ["9", "2", "1", "1", "12", "0.05", "0.06"]);
        // Of a model that was never answered, too.
        assert_eq!(of("re_roomtype_global_v2")["charged_at_least"], "1");
    }

    #[test]
    fn the_header_is_the_same_without_a_line() {
        let mut export = Export::default();
        let header = |export: &Export| {
            let bytes = export.csv().unwrap();
            csv::Reader::from_reader(&bytes[..])
                .headers()
                .unwrap()
                .iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(header(&export), HEADER);
        export.add_answered(bill("*", 1, 1));
        assert_eq!(header(&export), HEADER);
    }
}
