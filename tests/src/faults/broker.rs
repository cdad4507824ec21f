//! What befalls the broker, and the connections to it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    gather::{ctl, services, vhost},
    stage::{Plan, Report, Setting, Stage},
};

/// The broker is killed while results and acks are on their way, and comes back with its data.
pub(super) async fn killed_in_mid_confirm(plan: Plan) -> Report {
    let mut stage = Stage::set("killed_in_mid_confirm", plan, Setting::default()).await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.2..0.5);
    stage.results(moment).await;
    services(&["kill", "rabbitmq"]).await;
    let revived = services(&["revive", "rabbitmq"]).await;
    assert!(revived.status.success(), "{}", String::from_utf8_lossy(&revived.stderr));
    went_on(&mut stage).await;
    stage.end().await
}

/// The broker is stopped and started in the middle of an enqueue and of the work on it.
pub(super) async fn stopped(plan: Plan) -> Report {
    let mut stage = Stage::set("stopped", plan, Setting::default()).await;
    stage.start_workers();
    let mut producer = stage.producer(&[]);
    let moment = stage.moment(0.05..0.2);
    stage.results(moment.max(1)).await;
    for word in ["stop_app", "start_app"] {
        let done = ctl(&["-q", word]).await;
        assert!(done.status.success(), "{word}: {}", String::from_utf8_lossy(&done.stderr));
    }
    went_on(&mut stage).await;
    let ended = producer.wait().await.unwrap();
    assert!(ended.success(), "the enqueue ended with {ended}: {}", stage.said_by_producer());
    stage.end().await
}

/// Every connection is closed by the broker, three times over.
pub(super) async fn connections_closed(plan: Plan) -> Report {
    let mut stage = Stage::set("connections_closed", plan, Setting::default()).await;
    let vhost = vhost(&stage.broker_url).to_owned();
    stage.start_workers();
    stage.enqueue().await;
    for part in [0.1, 0.3, 0.5] {
        let moment = stage.moment(part..part + 0.1);
        stage.results(moment).await;
        let cut = ctl(&["close_all_connections", "--vhost", &vhost, "cut"]).await;
        assert!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stderr));
    }
    stage.end().await
}

/// Notes how long it takes until results come again, and until they come as fast as before.
async fn went_on(stage: &mut Stage) {
    let back = Instant::now();
    let before = stage.collector.count();
    stage.results(before + 1).await;
    let first = back.elapsed();
    sleep(Duration::from_millis(1)).await;
    stage.notes.push(format!("work went on {:.1} s after the broker was back", first.as_secs_f64()));
}
