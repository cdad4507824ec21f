//! What an enqueue did, or would do, for people and for machines.

use jiff::Timestamp;
use pixfleet_producer::{Forecast, Summary, plan::Plan};
use pixfleet_shared::batches::Held;
use pixfleet_worker::provider::Provider;
use serde::Serialize;

use crate::{budget::Coverage, output, words};

/// The one JSON line, and the source of the text.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    #[serde(flatten)]
    pub(super) summary: Summary,
    /// The currency of the cost.
    pub(super) currency: &'a str,
    /// Of a dry run alone: what the rest would take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) forecast: Option<Forecast>,
    /// Of a dry run alone: how far the budget goes, where there is one.
    #[serde(rename = "budget", skip_serializing_if = "Option::is_none")]
    pub(super) coverage: Option<Coverage>,
    /// Why it ended early; null when it did not.
    pub(super) stopped: Option<String>,
    /// Who paused the batch, and when: its jobs wait until it is resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paused: Option<Held>,
}

/// What the calls that are still to be enqueued would take.
pub(super) fn forecast(plan: &Plan, provider: &Provider, summary: &Summary) -> anyhow::Result<Forecast> {
    let calls = plan.calls().len() as u64;
    // A kill may have left an image half enqueued: the rest of it counts as a whole one.
    let images = summary.tally.enqueued.div_ceil(calls);
    Ok(pixfleet_producer::forecast(plan, &super::accounts(provider), images, Timestamp::now())?)
}

impl Report<'_> {
    /// Prints itself on stdout.
    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            output::json(self)?;
        } else {
            output::text(self.text())?;
        }
        Ok(())
    }

    fn text(&self) -> String {
        let (summary, tally) = (&self.summary, &self.summary.tally);
        let mut text = format!(
            "batch {}: {} rows = {} images + {} duplicates + {} bad rows\n",
            summary.batch, tally.rows, tally.images, tally.duplicates, tally.bad_rows
        );
        let cost = format!(
            "{} calls, {} results, {:.2} {}",
            summary.calls, tally.results, summary.cost, self.currency
        );
        match &self.forecast {
            Some(forecast) => {
                let now = Timestamp::now();
                text += &format!(
                    "a dry run: {} jobs to enqueue ({} are there already): {cost}\n",
                    tally.enqueued, tally.already
                );
                text += &format!("{}\n", words::foresight(&forecast.time, now));
                text.extend(self.coverage.iter().map(|coverage| coverage.text() + "\n"));
            }
            None => {
                text += &format!(
                    "{} jobs enqueued in {:.1} s, {:.0}/s ({} were there already): {cost}\n",
                    tally.enqueued, summary.seconds, summary.rate, tally.already
                );
                text += &format!(
                    "the batch has {} jobs, and expects {} results\n",
                    summary.batch_jobs, summary.batch_results
                );
                text.extend(self.paused.iter().map(|held| super::held::waits(&summary.batch, held) + "\n"));
            }
        }
        text
    }
}
