//! What the ledger and kept answers cost a fleet that nothing else holds back: the same jobs with and without, by turns.

use std::time::Instant;

use pixfleet_sandbox::Settings;
use pixfleet_tests::fleet::{Fleet, KEY};
use serde_json::json;

use crate::Figure;

const JOBS: usize = 20_000;
const WORKERS: usize = 2;
const TURNS: usize = 3;

pub(crate) async fn measure() -> Vec<Figure> {
    let mut rates = [const { Vec::new() }; 3];
    let providers = ["ledger = false", "", "cache = { ttl_s = 3600, url = \"trust\" }"];
    for _ in 0..TURNS {
        for (rates, provider) in rates.iter_mut().zip(providers) {
            rates.push(rate(provider).await);
        }
    }
    let [without, noted, kept] = rates.map(median);
    let figure = |what: &str, with: f64| {
        let ratio = with / without;
        let measured = format!("{with:.0} to {without:.0} jobs/s, ratio {ratio:.3}");
        let data = json!({ "with": with, "without": without, "ratio": ratio });
        let what = format!("fleet, no limit, {JOBS} jobs, {WORKERS} workers: {what}, to without");
        Figure::new(what, measured, ">= 0.90", ratio >= 0.90, data)
    };
    vec![figure("with the ledger", noted), figure("with the ledger and kept answers", kept)]
}

/// Jobs a second, from the first result to the last.
async fn rate(provider: &str) -> f64 {
    let settings = Settings { keys: vec![KEY.into()], ..Settings::default() };
    let mut fleet = Fleet::start(settings, provider, "[worker]\nconcurrency = 128").await;
    let mut subscriber = fleet.subscribe("bench").await;
    fleet.enqueue("bench", JOBS).await;
    for _ in 0..WORKERS {
        fleet.start_worker();
    }
    // The start of the processes is none of it.
    let (first, _) = fleet.collect(&mut *subscriber, JOBS / 10).await;
    let began = Instant::now();
    let rest = JOBS - first.len();
    fleet.collect(&mut *subscriber, rest).await;
    rest as f64 / began.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
