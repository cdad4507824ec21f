//! What an enqueue did, or would do, for people and for machines.

use jiff::{SignedDuration, Timestamp, Unit};
use pixfleet_producer::{Forecast, Summary, plan::Plan};
use pixfleet_worker::provider::Provider;
use serde::Serialize;

use crate::{budget::Coverage, output};

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
}

/// What the calls that are still to be enqueued would take.
pub(super) fn forecast(plan: &Plan, provider: &Provider, summary: &Summary) -> anyhow::Result<Forecast> {
    let calls = plan.calls().len() as u64;
    // A kill may have left an image half enqueued: the rest of it counts as a whole one.
    let images = summary.tally.enqueued.div_ceil(calls);
    Ok(pixfleet_producer::forecast(plan, &provider.limits(), images, Timestamp::now())?)
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
                text += &format!("{}\n", when(forecast, now));
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
            }
        }
        text
    }
}

/// When the calls are done, in words.
fn when(forecast: &Forecast, now: Timestamp) -> String {
    let (Some(seconds), Some(binding)) = (forecast.seconds, &forecast.binding) else {
        return "no limit is set: the workers decide when they are done".to_owned();
    };
    let took = SignedDuration::try_from_secs_f64(seconds.ceil()).unwrap_or(SignedDuration::MAX);
    let until = now.checked_add(took).and_then(|at| at.round(Unit::Second));
    let until = until.map_or_else(|_| "in a distant future".to_owned(), |at| format!("by {at}"));
    format!(
        "done in {took:#} at best ({until}), at {:.2} calls/s: limit `{}` of `{}` binds",
        binding.calls_per_s, binding.limit, binding.stack
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixfleet_producer::Binding;

    #[test]
    fn a_forecast_says_how_long_until_when_and_why() {
        let forecast = Forecast {
            images: 6,
            jobs: 36,
            calls: 36,
            results: 36,
            cost: 0.0,
            seconds: Some(8.82),
            binding: Some(Binding { stack: "restb".into(), limit: "rate".into(), calls_per_s: 3.97 }),
        };
        assert_eq!(
            when(&forecast, "2026-11-22T10:00:00Z".parse().unwrap()),
            "done in 9s at best (by 2026-11-22T10:00:09Z), at 3.97 calls/s: limit `rate` of `restb` binds"
        );
        let distant = Forecast { seconds: Some(1e300), ..forecast };
        assert!(when(&distant, Timestamp::now()).contains("distant future"));
    }
}
