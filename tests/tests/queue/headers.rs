//! Headers that a stranger sends.

use pixfleet_sandbox::Settings;
use pixfleet_shared::fleet::rabbit::JOBS_EXCHANGE;
use pixfleet_tests::{
    conformance::queue::job,
    fleet::{Fleet, KEY},
    raw_amqp::{self, FRAME_MAX, nested},
};

/// A level takes five bytes; the frame also holds some of other things. The tests' build, which is not optimized, takes a quarter
/// of what a release takes.
const LEVELS: usize = (FRAME_MAX as usize - 100) / 5 / if cfg!(debug_assertions) { 4 } else { 1 };

#[tokio::test(flavor = "multi_thread")]
async fn messages_whose_headers_are_nested_thousandfold_stop_no_worker_and_are_listed() {
    let settings = Settings { keys: vec![KEY.into()], ..Settings::default() };
    let mut fleet = Fleet::start(settings, "", "").await;
    let mut subscriber = fleet.subscribe("b").await;
    for levels in [2_000, LEVELS] {
        let url = fleet.rabbitmq_url.clone();
        raw_amqp::publish(&url, JOBS_EXCHANGE, "normal.0", &nested(levels), b"no job").await;
    }
    let worker = fleet.start_worker();
    fleet.queue.enqueue((0..20).map(|n| job("b", n)).collect()).await.unwrap();
    fleet.collect(&mut *subscriber, 20).await;
    assert!(!fleet.has_died(worker), "{}", fleet.logs());
    assert!(!fleet.logs().contains("disconnected"), "{}", fleet.logs());
    let listed = fleet.command(&["dead", "list", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&listed.stdout);
    assert_eq!(said.lines().count(), 2, "{said}{}", String::from_utf8_lossy(&listed.stderr));
}
