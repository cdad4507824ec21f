//! `kill -9` of two of four workers in mid-run.

use pixfleet_sandbox::{Latency, Settings};
use pixfleet_tests::fleet::{Fleet, KEY};
use serde_json::json;

use crate::Figure;

const JOBS: usize = 2_000;

pub(crate) async fn measure() -> Vec<Figure> {
    let latency = Latency::Lognormal { mean_ms: 50.0, sigma: 0.1 };
    let settings = Settings { keys: vec![KEY.into()], latency, ..Settings::default() };
    let mut fleet = Fleet::start(settings, "limits = [{ name = \"rate\", calls = 200 }]", "").await;
    let mut subscriber = fleet.subscribe("bench").await;
    for _ in 0..4 {
        fleet.start_worker();
    }
    let jobs = fleet.enqueue("bench", JOBS).await;
    let (mut results, mut repeated) = fleet.collect(&mut *subscriber, JOBS / 4).await;
    fleet.kill(0);
    fleet.kill(1);
    while results.len() < JOBS {
        let (more, again) = fleet.collect(&mut *subscriber, 1).await;
        repeated += again;
        for (id, result) in more {
            repeated += usize::from(results.insert(id, result).is_some());
        }
    }
    let lost = jobs.iter().filter(|job| !results.contains_key(&job.result_id("m"))).count();
    let calls = fleet.sandbox.bill().total.charged;
    let measured = format!(
        "{} of {JOBS} results, {lost} lost, {repeated} repeated by the broker and dropped by id, {calls} calls",
        results.len()
    );
    let data = json!({"results": results.len(), "lost": lost, "repeated": repeated, "calls": calls});
    vec![Figure::new(
        "kill -9 of 2 of 4 workers in mid-run",
        measured,
        "every result, each id once",
        lost == 0,
        data,
    )]
}
