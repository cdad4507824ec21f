//! What befalls the broker, and the connections to it.

use std::time::Duration;

use lapin::{
    Connection, ConnectionProperties,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use pixfleet_sandbox::{Faults, Settings};
use pixfleet_shared::{
    fleet::rabbit::job_queue,
    job::{Job, Priority},
};
use rand::RngExt;
use tokio::time::sleep;

use super::{
    gather::{self, ctl, services, vhost},
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

/// What rabbitmqctl does, or the end of the scenario.
async fn told(arguments: &[&str]) {
    let done = ctl(&[&["-q"], arguments].concat()).await;
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The broker runs short of memory: it takes no publishes for a while, and acks go on.
pub(super) async fn memory_alarm(plan: Plan) -> Report {
    alarm("memory_alarm", plan, ["set_vm_memory_high_watermark", "0.00001", "0.4"]).await
}

/// The broker runs short of disk.
pub(super) async fn disk_alarm(plan: Plan) -> Report {
    alarm("disk_alarm", plan, ["set_disk_free_limit", "100000GB", "100MB"]).await
}

async fn alarm(name: &'static str, plan: Plan, [verb, alarming, usual]: [&str; 3]) -> Report {
    let mut stage = Stage::set(name, plan, Setting::lasting(plan, 8)).await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.1..0.4);
    stage.results(moment).await;
    stage.strike();
    told(&[verb, alarming]).await;
    sleep(Duration::from_secs(5)).await;
    told(&[verb, usual]).await;
    stage.relent();
    stage.end().await
}

/// A lane's queue is deleted under its consumers, which the broker then cancels; jobs that come to that lane later are served.
pub(super) async fn queue_deleted(plan: Plan) -> Report {
    let mut stage = Stage::set("queue_deleted", plan, Setting::lasting(plan, 6)).await;
    let vhost = vhost(&stage.broker_url).to_owned();
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.1..0.3);
    stage.results(moment).await;
    let free = gather::empty_lanes(&stage.broker_url).await;
    assert!(free.len() == 3, "the batch keeps to one lane, and most of it waits there: {free:?} are empty");
    let lane = free[stage.chance.random_range(0..free.len())];
    stage.strike();
    told(&["-p", &vhost, "delete_queue", &lane_queue(lane)]).await;
    stage.put(plan.jobs..plan.jobs + 50, |job| Job { lane, ..job }).await;
    stage.relent();
    stage.end().await
}

fn lane_queue(lane: u8) -> String {
    job_queue(Priority::Normal, lane)
}

/// A worker that does not ack within the broker's time loses its channel, lives on, and consumes again.
pub(super) async fn ack_timeout(plan: Plan) -> Report {
    const USUAL: &str = "application:set_env(rabbit, consumer_timeout, 1800000), \
                         application:set_env(rabbit, channel_tick_interval, 60000).";
    const SHORT: &str = "application:set_env(rabbit, consumer_timeout, 3000), \
                         application:set_env(rabbit, channel_tick_interval, 1000).";
    // Heartbeats that give nobody up in this time: only the missing acks do.
    let setting = Setting { heartbeat_s: 60, ..Setting::lasting(plan, 8) };
    let mut stage = Stage::set("ack_timeout", plan, setting).await;
    told(&["eval", SHORT]).await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.1..0.3);
    stage.results(moment).await;
    let workers = stage.fleet.workers();
    let frozen = workers[stage.chance.random_range(0..workers.len())];
    stage.strike();
    stage.fleet.freeze(frozen);
    sleep(Duration::from_secs(8)).await;
    stage.fleet.thaw(frozen);
    stage.relent();
    told(&["eval", USUAL]).await;
    let report = stage.end().await;
    let noticed = report.logs.contains("PRECONDITION_FAILED") || report.logs.contains("timeout");
    with(report, noticed, "the broker never lost patience")
}

/// A report, with a problem where something does not hold.
fn with(mut report: Report, holds: bool, otherwise: &str) -> Report {
    if !holds {
        report.problems.push(otherwise.to_owned());
    }
    report
}

/// The queues of retries and of dead letters are full for a while: what is refused is said again, and nothing is acked early.
pub(super) async fn queues_full(plan: Plan) -> Report {
    const FULL: &str = r#"{"max-length": 3, "overflow": "reject-publish"}"#;
    // Not without a bound: RabbitMQ 3.10 goes on to refuse what is said on a channel that it has refused, when the bound is gone.
    const ROOM: &str = r#"{"max-length": 1000000, "overflow": "reject-publish"}"#;
    let setting = Setting::lasting(plan, 8);
    let faults = Faults { error_500: 0.2, malformed: 0.05, seed: plan.seed, ..Faults::default() };
    let sandbox = Settings { faults, ..setting.sandbox };
    let more = "attempts = 10\n".to_owned();
    let mut stage = Stage::set("queues_full", plan, Setting { sandbox, more, ..setting }).await;
    let vhost = vhost(&stage.broker_url).to_owned();
    stage.strike();
    told(&["-p", &vhost, "set_policy", "full", "^pixfleet\\.(retry|dead)", FULL]).await;
    stage.start_workers();
    stage.enqueue().await;
    // A fourth of the jobs waits for room, each in a worker's hand: more results than this would never come.
    let moment = stage.moment(0.1..0.3).min(200);
    stage.results(moment).await;
    sleep(Duration::from_secs(3)).await;
    told(&["-p", &vhost, "set_policy", "full", "^pixfleet\\.(retry|dead)", ROOM]).await;
    stage.relent();
    stage.end().await
}

/// A queue is there with other arguments than pixfleet's: workers say which, and make no call; once it is mended they work.
pub(super) async fn topology_drift(plan: Plan) -> Report {
    const QUEUE: &str = "pixfleet.retry.v1.5s";
    let mut stage = Stage::set("topology_drift", plan, Setting::default()).await;
    stage.enqueue().await;
    let connection = Connection::connect(&stage.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await.unwrap();
    channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    stage.strike();
    let worker = stage.fleet.start_worker();
    let ended = stage.said(worker, QUEUE).await;
    let log = stage.fleet.log(worker);
    let calls = stage.fleet.sandbox.bill().total.calls;
    if calls > 0 || log.contains("panicked") {
        stage.problems.push(format!("{calls} calls on a broker that is not as it should be:\n{log}"));
    }
    stage.notes.push(if ended { "refused and ended".to_owned() } else { "refused and waiting".to_owned() });
    channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await.unwrap();
    stage.relent();
    stage.start_workers();
    stage.end().await
}
