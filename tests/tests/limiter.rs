//! The rate limiter on a real Redis.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::join_all};
use pixfleet_shared::{
    fleet::redis::{Config, Redis},
    ledger::LedgerError,
    limiter::{HoldOff, LimiterError, Order, RateLimiter, Reservation},
};
use pixfleet_tests::{
    conformance::ledger::job,
    conformance::limiter::{held, per_second, slots},
    private_redis::PrivateRedis,
    redis_fleet::{PATIENCE, config, fleet},
    servers::{fresh_name, redis_url},
};
use tokio::time::{Instant, timeout};

/// Waits until `engine` answers again.
async fn well_again(engine: &Redis) {
    engine.ready(PATIENCE).await.unwrap();
}

async fn four_limiters() -> (Vec<Arc<dyn RateLimiter>>, Vec<Redis>) {
    let engines = fleet(&config(&redis_url()), 4).await;
    (engines.iter().map(|engine| engine.limiter() as Arc<dyn RateLimiter>).collect(), engines)
}

pixfleet_tests::limiter_conforms!(four_limiters);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_away_nothing_is_granted_and_work_goes_on_when_it_is_back() {
    let mut server = PrivateRedis::start(&[]).await;
    let engines = fleet(&config(&server.url()), 1).await;
    let (limiter, ledger) = (engines[0].limiter(), engines[0].ledger());
    let stack = per_second("test.away", 20);
    slots(&*limiter, &stack, &[1]).await;

    server.kill();
    for _ in 0..5 {
        let answer = limiter.reserve(&stack, &Order::of_models(&[1])).await;
        assert!(matches!(&answer, Err(LimiterError::Away(_))), "{answer:?}");
    }
    assert!(matches!(ledger.take_up(&job("away", 1)).await, Err(LedgerError::Away(_))));
    let why = limiter.health().unwrap_err();
    assert!(why.contains(&server.port().to_string()), "{why}");

    server.revive().await;
    slots(&*limiter, &stack, &[1]).await;
    assert_eq!(limiter.health(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_starts_without_a_server_and_waits_for_it() {
    let mut server = PrivateRedis::away(&[]);
    let engine = Redis::start(&config(&server.url())).unwrap();
    let why = engine.ready(Duration::from_millis(100)).await.unwrap_err();
    assert!(why.contains(&server.port().to_string()), "{why}");
    server.revive().await;
    well_again(&engine).await;
    slots(&*engine.limiter(), &per_second("test.late", 20), &[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_grants_nothing_and_its_connections_are_replaced() {
    let server = PrivateRedis::start(&[]).await;
    let engine = Redis::start(&Config { response_timeout_ms: 100, ..config(&server.url()) }).unwrap();
    well_again(&engine).await;
    let limiter = engine.limiter();
    let stack = per_second("test.frozen", 20);
    slots(&*limiter, &stack, &[1]).await;

    server.freeze();
    // Many at once, more than there are connections: each has its answer, and it is no.
    let order = Order::of_models(&[1]);
    let asked = join_all((0..50).map(|_| limiter.reserve(&stack, &order)));
    let answers = timeout(PATIENCE, asked).await.unwrap();
    assert!(answers.iter().all(|answer| matches!(answer, Err(LimiterError::Away(_)))), "{answers:?}");
    assert!(limiter.health().is_err());

    server.thaw();
    slots(&*limiter, &stack, &[1]).await;
    assert_eq!(limiter.health(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_demoted_grants_nothing_until_it_may_write() {
    let server = PrivateRedis::start(&[]).await;
    let engines = fleet(&config(&server.url()), 1).await;
    let limiter = engines[0].limiter();
    let stack = per_second("test.demoted", 20);
    slots(&*limiter, &stack, &[1]).await;
    let mut connection = server.connection().await;
    let mut replica_of = redis::cmd("REPLICAOF");
    replica_of.arg("127.0.0.1").arg(1).exec_async(&mut connection).await.unwrap();
    let why = limiter.reserve(&stack, &Order::of_models(&[1])).await.unwrap_err().to_string();
    assert!(why.contains("READONLY") || why.to_lowercase().contains("read only"), "{why}");

    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut connection).await.unwrap();
    assert!(
        limiter.book(&stack, &Order::of_models(&[1])).await.unwrap().lost,
        "a promoted server may have missed the last grants"
    );
    slots(&*limiter, &stack, &[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_off_outlives_the_servers_memory() {
    let server = PrivateRedis::start(&[]).await;
    let config = config(&server.url());
    let engines = fleet(&config, 1).await;
    let limiter = engines[0].limiter();
    let stack = per_second("test.remembered", 20);
    limiter.hold_off(&stack, HoldOff::of(Duration::from_secs(60))).await.unwrap();
    redis::cmd("FLUSHALL").exec_async(&mut server.connection().await).await.unwrap();

    // Whoever remembers it says it again with the next reservation, and not for longer than it was.
    limiter.reserve(&stack, &Order::of_models(&[1])).await.unwrap();
    let newcomer = &fleet(&config, 1).await[0];
    let answer = newcomer.limiter().reserve(&stack, &Order::of_models(&[1])).await.unwrap();
    let Reservation::ComeBack(wait) = answer else { panic!("{answer:?}") };
    let left = wait.free_at - Instant::now();
    assert!(left > Duration::from_secs(30) && left < Duration::from_secs(60), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_off_called_while_the_server_was_away_is_told_when_it_is_back() {
    let mut server = PrivateRedis::start(&[]).await;
    let engines = fleet(&config(&server.url()), 2).await;
    let (one, other) = (engines[0].limiter(), engines[1].limiter());
    let stack = per_second("test.told", 20);
    slots(&*other, &stack, &[1]).await;
    server.kill();
    assert!(one.hold_off(&stack, HoldOff::of(Duration::from_secs(60))).await.is_err());
    assert!(one.held_until(&stack).is_some(), "the process that was told to stop stops at once");

    server.revive().await;
    well_again(&engines[0]).await;
    one.reserve(&stack, &Order::of_models(&[1])).await.unwrap();
    held(&*other, &stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_was_cut_off_catches_up() {
    let server = PrivateRedis::start(&[]).await;
    let engines = fleet(&config(&server.url()), 2).await;
    let (one, other) = (engines[0].limiter(), engines[1].limiter());
    let stack = per_second("test.cut", 20);
    slots(&*other, &stack, &[1]).await;
    let mut connection = server.connection().await;
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").exec_async(&mut connection).await.unwrap();
    one.hold_off(&stack, HoldOff::of(Duration::from_secs(60))).await.unwrap();
    held(&*other, &stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_is_one_round_trip() {
    let server = PrivateRedis::start(&[]).await;
    let engine = &fleet(&config(&server.url()), 1).await[0];
    let stack = per_second("test.trips", 1000);
    let limiter = engine.limiter();
    // A new connection loads the scripts first: that is not what is counted here.
    for _ in 0..4 {
        slots(&*limiter, &stack, &[1]).await;
    }
    let client = redis::Client::open(server.url()).unwrap();
    let monitor = client.get_async_monitor().await.unwrap();
    let mut seen = monitor.into_on_message::<String>();
    for _ in 0..10 {
        limiter.reserve(&stack, &Order::of_models(&[1, 1, 1])).await.unwrap();
    }
    let end = fresh_name("end");
    redis::cmd("ECHO").arg(&end).exec_async(&mut server.connection().await).await.unwrap();
    let mut commands = Vec::new();
    while let Some(line) = timeout(PATIENCE, seen.next()).await.unwrap() {
        if line.contains(&end) {
            break;
        }
        // What a script does shows as from "lua"; that the process lives, what it looks at from time to time, and this test's
        // own are not of it.
        let others = [" lua]", ":probe", ":p:", ":held", "\"CLIENT\""];
        if !others.iter().any(|other| line.contains(other)) {
            commands.push(line);
        }
    }
    assert_eq!(commands.len(), 10, "{commands:#?}");
    assert!(commands.iter().all(|line| line.contains("\"EVALSHA\"")), "{commands:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_without_the_password() {
    let server = PrivateRedis::start(&["--requirepass", "right-one"]).await;
    let url = server.url().replace("redis://", "redis://:hunter2@");
    let engine = Redis::start(&config(&url)).unwrap();
    let why = engine.ready(Duration::from_millis(300)).await.unwrap_err();
    let refused =
        engine.limiter().reserve(&per_second("test.password", 1), &Order::of_models(&[1])).await.unwrap_err();
    for text in [why, refused.to_string()] {
        assert!(text.to_lowercase().contains("auth") || text.contains("WRONGPASS"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
