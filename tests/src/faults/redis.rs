//! What befalls Redis, and the way to it.

use std::time::Duration;

use tokio::time::sleep;

use super::stage::{Plan, Report, Setting, Stage};
use crate::{
    fault_proxy::Fault,
    private_redis::PrivateRedis,
    redis_sets::{master_and_replica, promote},
};

/// A stage with a Redis of its own, that keeps its data as the documentation says.
async fn with_own_redis(name: &'static str, plan: Plan) -> (Stage, PrivateRedis) {
    let server = PrivateRedis::start(&["--appendonly", "yes", "--appendfsync", "everysec"]).await;
    let mut stage = Stage::set(name, plan, Setting::lasting(plan, 8)).await;
    stage.fleet.redis_url = server.url();
    stage.ledger_url = server.url();
    (stage, server)
}

/// Redis is killed, is away for a while, and comes back with its data.
pub(super) async fn restarted(plan: Plan) -> Report {
    let (mut stage, mut server) = with_own_redis("restarted", plan).await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.2..0.5);
    stage.results(moment).await;
    stage.strike();
    server.kill();
    sleep(Duration::from_secs(2)).await;
    server.revive().await;
    stage.relent();
    let report = stage.end().await;
    drop(server);
    report
}

/// Redis is emptied in the middle of everything: what it counted is gone, and nothing is lost or paid twice for that.
pub(super) async fn emptied(plan: Plan) -> Report {
    let (mut stage, server) = with_own_redis("emptied", plan).await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.2..0.5);
    stage.results(moment).await;
    stage.strike();
    let () = server.ask("FLUSHALL").await;
    stage.uncounted();
    let report = stage.end().await;
    drop(server);
    report
}

/// The master dies, and its replica takes its place behind the same address.
pub(super) async fn failed_over(plan: Plan) -> Report {
    let (mut master, replica) = master_and_replica(&[]).await;
    let mut stage = Stage::set("failed_over", plan, Setting::lasting(plan, 8)).await;
    stage.ledger_url = master.url();
    let proxy = stage.redis_by_proxy().await;
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.2..0.5);
    stage.results(moment).await;
    stage.strike();
    // Whatever the master has answered has reached its replica by then: what is lost otherwise is asked of other scenarios.
    proxy.set(Fault::Blackhole);
    sleep(Duration::from_millis(500)).await;
    master.kill();
    promote(&replica).await;
    proxy.lead_to(replica.port());
    proxy.set(Fault::None);
    proxy.reset();
    stage.relent();
    stage.ledger_url = replica.url();
    let report = stage.end().await;
    drop((proxy, replica));
    report
}
