//! How long ten images take beside a batch of thousands, and how long they would at their share of the limit alone.

use std::time::Instant;

use pixfleet_sandbox::{Judging, Latency, Rule, Settings};
use pixfleet_tests::fleet::{Fleet, KEY, job};
use serde_json::json;

use crate::Figure;

const RATE: u32 = 50;
const WORKERS: usize = 2;
const BIG: usize = 3_000;
/// Small batches one after the other, of so many images: the median counts.
const TIMES: usize = 3;
const TEN: usize = 10;
const HUNDRED: usize = 100;
/// What a small batch waits for, beside its share: the calls that are booked and in hand, in seconds.
const WAIT_S: f64 = 0.6;

pub(crate) async fn measure() -> Vec<Figure> {
    let alone = fleet(RATE / 2).await;
    let (ten, hundred) = (small_batches(&alone, TEN).await, small_batches(&alone, HUNDRED).await);
    drop(alone);
    let busy = fleet(RATE).await;
    let mut big = busy.subscribe("big").await;
    busy.enqueue_like(&job("big", 0), 0, BIG).await;
    busy.collect(&mut *big, 100).await;
    let (ten_beside, hundred_beside) = (small_batches(&busy, TEN).await, small_batches(&busy, HUNDRED).await);
    vec![
        figure(TEN, ten_beside, ten, "<= 0.6 s more", ten_beside - ten <= WAIT_S),
        figure(HUNDRED, hundred_beside, hundred, "ratio <= 1.3", hundred_beside / hundred <= 1.3),
    ]
}

fn figure(images: usize, beside: f64, alone: f64, demand: &'static str, met: bool) -> Figure {
    let ratio = beside / alone;
    let measured = format!("{beside:.2} s to {alone:.2} s, ratio {ratio:.2}");
    let what = format!("{images} images beside {BIG} at {RATE}/s, to alone at {}/s", RATE / 2);
    let data = json!({ "ratio": ratio, "beside_s": beside, "alone_s": alone });
    Figure::new(what, measured, demand, met, data)
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

/// Seconds from the putting in of a batch of `images` to its last result.
async fn small_batches(fleet: &Fleet, images: usize) -> f64 {
    let mut seconds = Vec::new();
    for n in 0..TIMES {
        let batch = format!("{images}-{n}");
        let mut subscriber = fleet.subscribe(&batch).await;
        let put = Instant::now();
        fleet.enqueue_like(&job(&batch, 0), 100_000 + n * images, images).await;
        fleet.collect(&mut *subscriber, images).await;
        seconds.push(put.elapsed().as_secs_f64());
    }
    median(seconds)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
