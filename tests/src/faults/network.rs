//! What befalls the way between the workers and one of the servers, while everything else goes on.

use std::time::Duration;

use rand::RngExt;
use tokio::time::sleep;

use super::stage::{Plan, Report, Setting, Stage};
use crate::fault_proxy::{Fault, FaultProxy};

/// The heartbeat is 5 s: after this both ends have given each other up.
const PAST_THE_HEARTBEAT: Duration = Duration::from_secs(13);
/// Longer than any connect timeout of these workers.
const PAST_THE_TIMEOUT: Duration = Duration::from_millis(2_500);

/// What the workers say does not reach the broker, and its answers do; then the other way round.
pub(super) async fn one_way_to_the_broker(plan: Plan) -> Report {
    let mut stage = Stage::set("one_way_to_the_broker", plan, Setting::lasting(plan, 10)).await;
    let proxy = stage.broker_by_proxy().await;
    at_work(&mut stage).await;
    let faults = if stage.chance.random() { [Fault::Deaf, Fault::Mute] } else { [Fault::Mute, Fault::Deaf] };
    for fault in faults {
        proxy.set(fault);
        sleep(PAST_THE_HEARTBEAT).await;
        proxy.set(Fault::None);
        stage.relent();
        let more = (stage.collector.count() + plan.jobs / 10).min(plan.jobs);
        stage.results(more).await;
    }
    ended(stage, proxy).await
}

/// The same of Redis, for longer than any of its timeouts.
pub(super) async fn one_way_to_redis(plan: Plan) -> Report {
    let mut stage = Stage::set("one_way_to_redis", plan, Setting::lasting(plan, 10)).await;
    let proxy = stage.redis_by_proxy().await;
    at_work(&mut stage).await;
    for fault in [Fault::Mute, Fault::Deaf, Fault::Blackhole] {
        proxy.set(fault);
        sleep(Duration::from_secs(4)).await;
        proxy.set(Fault::None);
        stage.relent();
        let more = (stage.collector.count() + plan.jobs / 10).min(plan.jobs);
        stage.results(more).await;
    }
    ended(stage, proxy).await
}

/// New connections to the broker fall silent in each phase of the handshake: at once, and in the middle of each answer.
pub(super) async fn silent_broker_handshakes(plan: Plan) -> Report {
    let mut stage = Stage::set("silent_broker_handshakes", plan, Setting::lasting(plan, 8)).await;
    let proxy = stage.broker_by_proxy().await;
    at_work(&mut stage).await;
    // Connection.Start has about 500 bytes, Tune 20, OpenOk 13, and each of the declarations' answers a few dozen.
    let in_the_declarations = stage.chance.random_range(560..1_500);
    silent(&mut stage, &proxy, &[0, 7, 300, 520, 545, in_the_declarations]).await;
    ended(stage, proxy).await
}

/// The same of Redis.
pub(super) async fn silent_redis_handshakes(plan: Plan) -> Report {
    let mut stage = Stage::set("silent_redis_handshakes", plan, Setting::lasting(plan, 8)).await;
    let proxy = stage.redis_by_proxy().await;
    at_work(&mut stage).await;
    let later = stage.chance.random_range(10..400);
    silent(&mut stage, &proxy, &[0, 3, 5, later]).await;
    ended(stage, proxy).await
}

async fn silent(stage: &mut Stage, proxy: &FaultProxy, phases: &[u64]) {
    for phase in phases {
        proxy.set(Fault::SilentAfter(*phase));
        proxy.reset();
        sleep(PAST_THE_TIMEOUT).await;
    }
    proxy.set(Fault::None);
    stage.relent();
}

/// Connections are reset after so many bytes, closed on one side, and slowed down to a trickle.
pub(super) async fn broken_connections(plan: Plan) -> Report {
    let mut stage = Stage::set("broken_connections", plan, Setting::lasting(plan, 10)).await;
    let (broker, redis) = (stage.broker_by_proxy().await, stage.redis_by_proxy().await);
    at_work(&mut stage).await;
    for proxy in [&broker, &redis] {
        proxy.half_close();
        sleep(Duration::from_millis(700)).await;
        let bytes = stage.chance.random_range(2_000..20_000);
        proxy.set(Fault::CutAfter(bytes));
        sleep(Duration::from_secs(2)).await;
        proxy.set(Fault::Drip(Duration::from_micros(200)));
        sleep(Duration::from_secs(2)).await;
        proxy.set(Fault::None);
        proxy.reset();
    }
    stage.relent();
    ended(stage, (broker, redis)).await
}

/// The plan's workers and jobs, some of them done; now the fault begins.
async fn at_work(stage: &mut Stage) {
    stage.start_workers();
    stage.enqueue().await;
    let moment = stage.moment(0.1..0.3);
    stage.results(moment).await;
    stage.strike();
}

/// The proxy lives until the workers have ended.
async fn ended<T>(stage: Stage, proxies: T) -> Report {
    let report = stage.end().await;
    drop(proxies);
    report
}
