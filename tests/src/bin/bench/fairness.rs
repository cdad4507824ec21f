//! How long ten images take beside a batch of thousands, and how long they would at their share of the limit alone.

use std::time::Instant;

use pixfleet_sandbox::{Judging, Latency, Rule, Settings};
use pixfleet_tests::fleet::{Fleet, KEY, job};
use serde_json::json;

use crate::Figure;

const RATE: u32 = 50;
const WORKERS: usize = 2;
const BIG: usize = 3_000;
const SMALL: usize = 10;
/// Small batches one after the other: the median counts.
const TIMES: usize = 5;

pub(crate) async fn measure() -> Vec<Figure> {
    let alone = median(small_batches(fleet(RATE / 2).await).await);
    let fleet = fleet(RATE).await;
    let mut big = fleet.subscribe("big").await;
    fleet.enqueue_like(&job("big", 0), 0, BIG).await;
    fleet.collect(&mut *big, 100).await;
    let beside = median(small_batches(fleet).await);
    let ratio = beside / alone;
    let measured = format!("{ratio:.2} ({beside:.2} s beside, {alone:.2} s alone)");
    let what = format!("{SMALL} images beside {BIG} at {RATE}/s, to {SMALL} alone at {}/s", RATE / 2);
    let data = json!({ "ratio": ratio, "beside_s": beside, "alone_s": alone });
    vec![Figure::new(what, measured, "<= 1.5", ratio <= 1.5, data)]
}

async fn fleet(rate: u32) -> Fleet {
    let settings = Settings {
        keys: vec![KEY.into()],
        latency: Latency::Constant { ms: 20 },
        judging: Judging { rule: Rule::Sliding, limit: rate, ..Judging::default() },
        ..Settings::default()
    };
    let limits = format!("limits = [{{ name = \"rate\", calls = {rate} }}]");
    let mut fleet = Fleet::start(settings, &limits, "").await;
    for _ in 0..WORKERS {
        let worker = fleet.start_worker();
        fleet.ready(worker).await;
    }
    fleet
}

/// Seconds from the putting in of each small batch to its last result.
async fn small_batches(fleet: Fleet) -> Vec<f64> {
    let mut seconds = Vec::new();
    for n in 0..TIMES {
        let batch = format!("small-{n}");
        let mut subscriber = fleet.subscribe(&batch).await;
        let put = Instant::now();
        fleet.enqueue_like(&job(&batch, 0), 100_000 + n * SMALL, SMALL).await;
        fleet.collect(&mut *subscriber, SMALL).await;
        seconds.push(put.elapsed().as_secs_f64());
    }
    seconds
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
