//! What the ledger and kept answers cost a fleet that nothing else holds back: the same jobs with and without, by turns.

use std::time::Instant;

use pixfleet_sandbox::Settings;
use pixfleet_tests::fleet::{Fleet, KEY};
use serde_json::json;

use crate::Figure;

const JOBS: usize = 30_000;
const WORKERS: usize = 2;
/// Without the ledger, with it, and with kept answers, too.
const PROVIDERS: [&str; 3] = ["ledger = false", "", "cache = { ttl_s = 3600, url = \"trust\" }"];

/// So many calls in flight, a worker, and how often all are measured.
struct Load {
    calls: usize,
    turns: usize,
}

/// Enough that processors are never without work: what is measured is what a call costs. With fewer it is how long a call
/// takes, because each waits for four round trips to Redis, and whoever has so few is not bounded by processors.
const ENOUGH: Load = Load { calls: 384, turns: 7 };
const FEW: Load = Load { calls: 128, turns: 3 };

pub(crate) async fn measure() -> Vec<Figure> {
    let mut figures = of(&ENOUGH, ">= 0.90", |ratio| ratio >= 0.90).await;
    figures.extend(of(&FEW, "none", |_| true).await);
    figures
}

async fn of(load: &Load, demand: &'static str, met: fn(f64) -> bool) -> Vec<Figure> {
    let Load { calls, turns: times } = load;
    let mut turns = Vec::new();
    for turn in 0..*times {
        let mut rates = [0.0; 3];
        // Whatever follows whatever: each is first, second and last in turn.
        for place in 0..3 {
            let which = (turn + place) % 3;
            rates[which] = rate(PROVIDERS[which], *calls).await;
        }
        turns.push(rates);
    }
    let figure = |what: &str, which: usize| {
        let of = |measure: &dyn Fn(&[f64; 3]) -> f64| median(turns.iter().map(measure).collect());
        let (with, without) = (of(&|rates| rates[which]), of(&|rates| rates[0]));
        // Of what was measured one after the other, because a shared machine is faster and slower by the minute.
        let ratio = of(&|rates| rates[which] / rates[0]);
        let all: Vec<f64> = turns.iter().map(|rates| rates[which] / rates[0]).collect();
        let (least, most) =
            all.iter().fold((f64::MAX, 0.0f64), |(least, most), ratio| (least.min(*ratio), most.max(*ratio)));
        let measured =
            format!("{with:.0} to {without:.0} jobs/s, ratio {ratio:.3} ({least:.3} to {most:.3})");
        let data = json!({ "calls": calls, "with": with, "without": without, "ratio": ratio, "ratios": all });
        let what = format!(
            "fleet, no limit, {JOBS} jobs, {WORKERS} workers of {calls} calls, {times} turns: {what}, to without"
        );
        Figure::new(what, measured, demand, met(ratio), data)
    };
    vec![figure("with the ledger", 1), figure("with the ledger and kept answers", 2)]
}

/// Jobs a second, from the first result to the last.
async fn rate(provider: &str, calls: usize) -> f64 {
    let settings = Settings { keys: vec![KEY.into()], ..Settings::default() };
    let worker = format!("[worker]\nconcurrency = {calls}");
    let mut fleet = Fleet::start(settings, provider, &worker).await;
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
