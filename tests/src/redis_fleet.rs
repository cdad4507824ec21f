//! Processes of one fleet on a Redis to which something happens.

use std::{sync::Arc, time::Duration};

use pixfleet_shared::{
    fleet::redis::{Config, Redis, RedisLimiter},
    ledger::{End, Known},
    limiter::RateLimiter,
};
use tokio::time::{Instant, sleep};

use crate::{
    conformance::ledger::{intent, job, mark},
    conformance::limiter::{a_hold_off_reaches_every_client, assert_never_above, greedy, per_second, slots},
    conformance::process::Process,
    servers::fresh_name,
};

/// The longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Calls of a whole second, by the limit of [`never_above_20_while`].
pub const LIMIT: usize = 20;

/// Settings with a namespace of their own.
pub fn config(url: &str) -> Config {
    Config { url: url.to_owned(), namespace: fresh_name("limiter"), ..Config::default() }
}

/// `size` processes of one fleet, whose server has answered.
pub async fn fleet(config: &Config, size: usize) -> Vec<Redis> {
    let fleet: Vec<Redis> = (0..size).map(|_| Redis::start(config).unwrap()).collect();
    for engine in &fleet {
        engine.ready(PATIENCE).await.unwrap();
    }
    fleet
}

/// The processes as the suites of ledger, answers and batches have them.
pub fn processes(fleet: Vec<Redis>) -> Vec<Process> {
    let process = |engine: Redis| {
        Process::new(engine.ledger(), engine.answers(), engine.batches(), || async move { drop(engine) })
    };
    fleet.into_iter().map(process).collect()
}

/// Their limiters.
pub fn limiters(fleet: &[Redis]) -> Vec<Arc<RedisLimiter>> {
    fleet.iter().map(Redis::limiter).collect()
}

/// The limiters as the seam has them.
pub fn clients(limiters: &[Arc<RedisLimiter>]) -> Vec<&dyn RateLimiter> {
    limiters.iter().map(|limiter| &**limiter as &dyn RateLimiter).collect()
}

/// Two processes book `calls` calls of a limit of 20 a second as fast as they may, while `disturbance` happens to
/// their server. Fails when any second got more, or when work does not go on. Returns every slot, and what the
/// disturbance leaves.
pub async fn never_above_20_while<T>(
    config: &Config,
    calls: usize,
    disturbance: impl AsyncFnOnce(&RedisLimiter) -> T,
) -> (Vec<Instant>, T) {
    let engines = fleet(config, 2).await;
    let limiters = limiters(&engines);
    let clients = clients(&limiters);
    let stack = per_second("test.disturbed", LIMIT as u32);
    let (moments, left) = tokio::join!(greedy(&clients, &stack, 1, calls), disturbance(&limiters[0]));
    assert_never_above(LIMIT, &moments);
    for limiter in &limiters {
        well_again(&**limiter).await;
    }
    (moments, left)
}

/// Waits until `limiter` says why nothing leaves, and returns it.
pub async fn says_why(limiter: &dyn RateLimiter) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match limiter.health() {
            Err(why) => return why,
            Ok(()) => assert!(Instant::now() < deadline, "nothing wrong after {PATIENCE:?}"),
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until `limiter` is well.
pub async fn well_again(limiter: &dyn RateLimiter) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = limiter.health() {
        assert!(Instant::now() < deadline, "not well after {PATIENCE:?}: {why}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Two processes limit together, hear of each other's hold-offs, and know what the other one settled.
pub async fn everything_works(config: &Config) {
    let engines = fleet(config, 2).await;
    let limiters = limiters(&engines);
    for stack in 0..5 {
        let stack = per_second(&format!("test.many-{stack}"), 50);
        slots(&*limiters[stack.name.len() % 2], &stack, &[1, 1]).await;
    }
    a_hold_off_reaches_every_client("test", &clients(&limiters)).await;
    for n in 0..5_u8 {
        let job = job("many", n);
        assert_eq!(engines[0].ledger().take_up(&job).await.unwrap().known, Known::Clear);
        engines[0].ledger().settled(mark(&job, End::Done));
        engines[0].ledger().flush().await;
        assert_eq!(engines[1].ledger().depart(&intent(&job)).await.unwrap(), Known::Over);
    }
}
