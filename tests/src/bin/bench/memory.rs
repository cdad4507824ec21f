//! A worker's resident memory with 200 calls in flight.

use std::time::Duration;

use pixfleet_sandbox::{Latency, Settings};
use pixfleet_tests::fleet::{Fleet, KEY};
use serde_json::json;

use crate::Figure;

const IN_FLIGHT: usize = 200;
const JOBS: usize = 2_000;

pub(crate) async fn measure() -> Vec<Figure> {
    let settings =
        Settings { keys: vec![KEY.into()], latency: Latency::Constant { ms: 1_000 }, ..Settings::default() };
    let mut fleet = Fleet::start(settings, "", &format!("[worker]\nconcurrency = {IN_FLIGHT}")).await;
    let mut subscriber = fleet.subscribe("bench").await;
    let worker = fleet.start_worker();
    fleet.ready(worker).await;
    fleet.enqueue("bench", JOBS).await;
    let mut most = 0;
    let watched = async {
        loop {
            most = most.max(fleet.sandbox.bill().in_flight);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = fleet.collect(&mut *subscriber, JOBS) => {}
        () = watched => {}
    }
    let mebibytes = fleet.peak_memory(worker) as f64 / 1_048_576.0;
    let measured = format!("{mebibytes:.1} MiB at most, with {most} calls in flight");
    let met = mebibytes < 40.0 && most >= IN_FLIGHT as u64;
    let data = json!({"peak_mib": mebibytes, "in_flight": most});
    vec![Figure::new("worker, 200 calls in flight", measured, "< 40 MiB resident", met, data)]
}
