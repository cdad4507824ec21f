//! What befalls the broker, and the connections to it.

use super::{
    gather::{ctl, services, vhost},
    stage::{Plan, Report, Setting, Stage},
};

/// The broker is killed while results and acks are on their way, and comes back with its data.
pub(super) async fn killed_in_mid_confirm(plan: Plan) -> Report {
    let mut stage = Stage::set("killed_in_mid_confirm", plan, Setting::lasting(plan, 8)).await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.2..0.5);
    stage.results(moment).await;
    stage.strike();
    services(&["kill", "rabbitmq"]).await;
    let revived = services(&["revive", "rabbitmq"]).await;
    assert!(revived.status.success(), "{}", String::from_utf8_lossy(&revived.stderr));
    stage.relent();
    stage.end().await
}

/// The broker is stopped and started in the middle of an enqueue and of the work on it.
pub(super) async fn stopped(plan: Plan) -> Report {
    let mut stage = Stage::set("stopped", plan, Setting::lasting(plan, 8)).await;
    stage.start_workers();
    let mut producer = stage.producer(&[]);
    let moment = stage.moment(0.05..0.2);
    stage.results(moment.max(1)).await;
    stage.strike();
    for word in ["stop_app", "start_app"] {
        let done = ctl(&["-q", word]).await;
        assert!(done.status.success(), "{word}: {}", String::from_utf8_lossy(&done.stderr));
    }
    stage.relent();
    let ended = producer.wait().await.unwrap();
    assert!(ended.success(), "the enqueue ended with {ended}: {}", stage.said_by_producer());
    stage.end().await
}

/// Every connection is closed by the broker, three times over.
pub(super) async fn connections_closed(plan: Plan) -> Report {
    let mut stage = Stage::set("connections_closed", plan, Setting::lasting(plan, 8)).await;
    let vhost = vhost(&stage.broker_url).to_owned();
    stage.start_workers();
    stage.enqueue().await;
    for part in [0.1, 0.3, 0.5] {
        let moment = stage.moment(part..part + 0.1);
        stage.results(moment).await;
        stage.strike();
        let cut = ctl(&["close_all_connections", "--vhost", &vhost, "cut"]).await;
        assert!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stderr));
    }
    stage.end().await
}
