//! 2,000 jobs at 200 a second, 50 ms latency, four worker processes, under two judges.

use pixfleet_sandbox::{Judging, Latency, Rule, Settings};
use pixfleet_tests::fleet::{Fleet, KEY, busiest};
use serde_json::json;

use crate::Figure;

const JOBS: usize = 2_000;
const LIMIT: u32 = 200;
const WORKERS: usize = 4;

pub(crate) async fn measure() -> Vec<Figure> {
    let bucket = run(
        "bucket, burst 20",
        Rule::Bucket { burst: 20 },
        "limits = [{ name = \"rate\", calls = 200, judge = \"bucket\", burst = 20 }]",
        "utilisation >= 0.98, no 429",
    );
    let bucket = bucket.await;
    let sliding = run(
        "sliding",
        Rule::Sliding,
        "limits = [{ name = \"rate\", calls = 200 }]",
        "utilisation >= 0.98, never above 200 in any second",
    );
    vec![bucket, sliding.await]
}

async fn run(name: &str, rule: Rule, provider: &str, demand: &'static str) -> Figure {
    let settings = Settings {
        keys: vec![KEY.into()],
        latency: Latency::Lognormal { mean_ms: 50.0, sigma: 0.1 },
        judging: Judging { rule, limit: LIMIT, ..Judging::default() },
        ..Settings::default()
    };
    let mut fleet = Fleet::start(settings, provider, "").await;
    let mut subscriber = fleet.subscribe("bench").await;
    for _ in 0..WORKERS {
        let worker = fleet.start_worker();
        fleet.ready(worker).await;
    }
    fleet.enqueue("bench", JOBS).await;
    let (results, repeated) = fleet.collect(&mut *subscriber, JOBS).await;
    let bill = fleet.sandbox.bill().total;
    let mut arrivals: Vec<u64> = fleet.sandbox.access().await.iter().map(|line| line.at_us).collect();
    arrivals.sort_unstable();
    let seconds = (arrivals[arrivals.len() - 1] - arrivals[0]) as f64 / 1e6;
    let utilisation = (JOBS - 1) as f64 / seconds / f64::from(LIMIT);
    let most = busiest(&arrivals, 1_000_000);
    let measured = format!(
        "{} results in {seconds:.2} s, utilisation {utilisation:.3}, {} 429s, {most} in the busiest second, \
         {repeated} repeated",
        results.len(),
        bill.throttled,
    );
    let within = matches!(rule, Rule::Bucket { .. }) || most <= LIMIT as usize;
    let met = utilisation >= 0.98 && bill.throttled == 0 && within;
    let data = json!({
        "utilisation": utilisation, "throttled_429": bill.throttled, "busiest_second": most, "seconds": seconds,
    });
    Figure::new(format!("2,000 jobs, 200/s, 4 workers, judge {name}"), measured, demand, met, data)
}
