//! `kill -9` of two of four workers in mid-run.

use std::collections::BTreeSet;

use pixfleet_sandbox::{Latency, Settings};
use pixfleet_shared::{
    batch::{BatchEvent, BatchState},
    id::Id,
    result::ImageResult,
};
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
    let closed = BatchEvent {
        v: 1,
        batch: "bench".parse().unwrap(),
        state: BatchState::Closed,
        jobs: JOBS as u64,
        results: JOBS as u64,
        at: jiff::Timestamp::now(),
        tally: None,
    };
    fleet.queue.announce(closed).await.unwrap();
    // What a subscriber is shown, by the command that users run: it drops repetitions, or it does not.
    let shown = fleet.command(&["results", "--batch", "bench", "--timeout", "60s"]).output().unwrap();
    let ids: Vec<Id> = String::from_utf8_lossy(&shown.stdout)
        .lines()
        .map(|line| serde_json::from_str::<ImageResult>(line).expect("a result a line").id)
        .collect();
    let distinct: BTreeSet<&Id> = ids.iter().collect();
    let lost = jobs.iter().filter(|job| !distinct.contains(&job.result_id("m"))).count();
    let twice = ids.len() - distinct.len();
    let calls = fleet.sandbox.bill().total.charged;
    let measured = format!(
        "{} of {JOBS} results shown, {lost} lost, {twice} shown twice ({repeated} sent again by the broker), {calls} calls",
        distinct.len()
    );
    let met = shown.status.success() && lost == 0 && twice == 0;
    let data = json!({"results": distinct.len(), "lost": lost, "twice": twice, "repeated": repeated, "calls": calls});
    vec![Figure::new(
        "kill -9 of 2 of 4 workers in mid-run",
        measured,
        "every result, each id once",
        met,
        data,
    )]
}
