//! Subscribers and their connections.

use std::{collections::BTreeSet, time::Duration};

use pixfleet_shared::{
    batch::{BatchEvent, BatchState},
    fleet::rabbit::{Config, RabbitQueue},
    queue::{Filter, From, Queue, Subscription},
};
use pixfleet_tests::fault_proxy::{Fault, FaultProxy};
use tokio::time::{Instant, timeout};

use super::{PATIENCE, engine};

/// How long each answer of the broker takes, each way.
const DELAY: Duration = Duration::from_millis(20);
/// How long the caller waits before it looks after something else: less than a session takes to be opened.
const GLANCE: Duration = Duration::from_millis(5);

async fn announce(queue: &RabbitQueue, batches: std::ops::Range<u64>) {
    for n in batches {
        let event = BatchEvent {
            v: 1,
            batch: format!("b{n}").parse().unwrap(),
            state: BatchState::Opened,
            jobs: n,
            results: n,
            at: jiff::Timestamp::now(),
            tally: None,
        };
        queue.announce(event).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_whose_waits_are_given_up_again_and_again_gets_everything_after_lost_connections() {
    let (queue, url) = engine().await;
    let (before, vhost) = url.rsplit_once('/').unwrap();
    let (host, port) = before.rsplit_once(':').unwrap();
    let proxy = FaultProxy::start(port.parse().unwrap()).await;
    let far = Config { url: format!("{host}:{}/{vhost}", proxy.port()), ..Config::default() };
    let far = RabbitQueue::connect(far).await.unwrap();
    proxy.set(Fault::Delay(DELAY));
    let subscription = Subscription { name: Some("s".into()), from: From::Now, filter: Filter::default() };
    let mut subscriber = far.subscribe(subscription).await.unwrap();
    let mut seen = BTreeSet::new();
    for round in 1..=3 {
        let deadline = Instant::now() + PATIENCE;
        announce(&queue, (round - 1) * 50..round * 50).await;
        while seen.len() < round as usize * 50 {
            assert!(Instant::now() < deadline, "{} of {} have come", seen.len(), round * 50);
            if let Ok(heard) = timeout(GLANCE, subscriber.next()).await {
                seen.insert(heard.unwrap().id());
            }
        }
        proxy.reset();
    }
}
