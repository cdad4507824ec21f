//! What befalls a Redis server and the way to it: no second ever holds more calls than its limit, health says why
//! nothing leaves, and work goes on.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]

use std::time::Duration;

use pixfleet_shared::limiter::{LimiterError, Order, RateLimiter, Reservation};
use pixfleet_tests::{
    conformance::limiter::{per_second, slots},
    fault_proxy::{Fault, FaultProxy},
    private_redis::PrivateRedis,
    redis_fleet::{PATIENCE, config, fleet, never_above_20_while, says_why, well_again},
    redis_sets::{cut_off, in_step, master_and_replica, promote},
};
use tokio::time::{Instant, sleep, timeout};

/// Long enough for the state to differ from what it was.
const A_WHILE: Duration = Duration::from_millis(700);

fn url(proxy: &FaultProxy) -> String {
    format!("redis://127.0.0.1:{}/0", proxy.port())
}

async fn proxied(server: &PrivateRedis) -> FaultProxy {
    FaultProxy::start(server.port()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptying_the_server_never_frees_a_call() {
    let server = PrivateRedis::start(&[]).await;
    never_above_20_while(&config(&server.url()), 90, async |_| {
        for _ in 0..3 {
            sleep(A_WHILE).await;
            let () = server.ask("FLUSHALL").await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_script_is_loaded_again() {
    let server = PrivateRedis::start(&[]).await;
    never_above_20_while(&config(&server.url()), 90, async |_| {
        for _ in 0..3 {
            sleep(A_WHILE).await;
            let () = server.ask("SCRIPT FLUSH").await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_and_comes_back_empty_never_frees_a_call() {
    let mut server = PrivateRedis::start(&[]).await;
    never_above_20_while(&config(&server.url()), 90, async |_| {
        for _ in 0..2 {
            sleep(A_WHILE).await;
            server.kill();
            server.revive().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_and_comes_back_with_yesterdays_state_never_frees_a_call() {
    let mut server = PrivateRedis::start(&["--save", "3600 1"]).await;
    never_above_20_while(&config(&server.url()), 90, async |_| {
        sleep(A_WHILE).await;
        let () = server.ask("SAVE").await;
        sleep(A_WHILE).await;
        server.kill();
        server.revive().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_that_evicts_the_limits_never_frees_a_call() {
    let server = PrivateRedis::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    never_above_20_while(&config(&server.url()), 90, async |limiter| {
        let key = limiter.key("test.disturbed");
        for _ in 0..2 {
            sleep(A_WHILE).await;
            assert!(server.ask::<bool>(&format!("EXISTS {key}")).await);
            // So little that every key must go, and nothing can be written.
            let () = server.ask("CONFIG SET maxmemory 1").await;
            let why = says_why(limiter).await;
            assert!(why.contains("OOM") && why.contains(&server.port().to_string()), "{why}");
            assert!(!server.ask::<bool>(&format!("EXISTS {key}")).await, "evicted");
            let () = server.ask("CONFIG SET maxmemory 0").await;
            well_again(limiter).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_without_its_replica_grants_nothing_and_says_so() {
    let server = PrivateRedis::start(&[]).await;
    never_above_20_while(&config(&server.url()), 60, async |limiter| {
        sleep(A_WHILE).await;
        let () = server.ask("CONFIG SET min-replicas-to-write 1").await;
        let why = says_why(limiter).await;
        assert!(why.contains("NOREPLICAS"), "{why}");
        let () = server.ask("CONFIG SET min-replicas-to-write 0").await;
        well_again(limiter).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_clock_is_another_and_takes_over_never_frees_a_call() {
    for offset in ["-5", "+5"] {
        let mut master = PrivateRedis::start(&[]).await;
        let port = master.port().to_string();
        let mut replica = PrivateRedis::away(&["--replicaof", "127.0.0.1", &port]);
        replica.with_own_clock().set_clock(offset);
        replica.revive().await;
        in_step(&master, &replica).await;
        take_over(&mut master, &replica).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_missed_the_last_grants_and_takes_over_the_address_never_frees_a_call() {
    let (mut master, replica) = master_and_replica(&[]).await;
    take_over(&mut master, &replica).await;
}

async fn take_over(master: &mut PrivateRedis, replica: &PrivateRedis) {
    let proxy = proxied(master).await;
    never_above_20_while(&config(&url(&proxy)), 90, async |limiter| {
        sleep(A_WHILE).await;
        cut_off(replica).await;
        sleep(A_WHILE).await;
        let at = format!("HGET {} at", limiter.key("test.disturbed"));
        let (known, missed): (u64, u64) = (replica.ask(&at).await, master.ask(&at).await);
        assert!(known < missed, "the replica has a state, and an older one");
        // In this order there is hardly a pause: what was granted before is still ahead.
        promote(replica).await;
        proxy.lead_to(replica.port());
        master.kill();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_a_master_that_was_demoted_is_left_for_the_new_one() {
    let (master, replica) = master_and_replica(&[]).await;
    let proxy = proxied(&master).await;
    never_above_20_while(&config(&url(&proxy)), 60, async |limiter| {
        sleep(A_WHILE).await;
        // The old connections stay, and lead to a server that now only reads.
        let () = master.ask("REPLICAOF 127.0.0.1 1").await;
        let why = says_why(limiter).await;
        assert!(why.contains("READONLY") || why.to_lowercase().contains("read only"), "{why}");
        promote(&replica).await;
        proxy.lead_to(replica.port());
        well_again(limiter).await;
        let clients: String = replica.ask("INFO clients").await;
        assert!(!clients.contains("connected_clients:1\r"), "the fleet is on the new master: {clients}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_were_cut_are_replaced() {
    let server = PrivateRedis::start(&[]).await;
    let proxy = proxied(&server).await;
    never_above_20_while(&config(&url(&proxy)), 60, async |_| {
        for _ in 0..3 {
            sleep(A_WHILE).await;
            proxy.reset();
            sleep(A_WHILE).await;
            let _: i64 = server.ask("CLIENT KILL TYPE normal").await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_silence_nothing_is_granted_and_what_arrives_after_it_frees_no_call() {
    for fault in [Fault::Blackhole, Fault::Mute] {
        let server = PrivateRedis::start(&[]).await;
        let proxy = proxied(&server).await;
        never_above_20_while(&config(&url(&proxy)), 90, async |limiter| {
            for _ in 0..2 {
                sleep(A_WHILE).await;
                proxy.set(fault);
                let why = says_why(limiter).await;
                assert!(why.contains(&proxy.port().to_string()), "{why}");
                let answer = limiter.reserve(&per_second("test.silent", 20), &Order::of_models(&[1])).await;
                assert!(matches!(&answer, Err(LimiterError::Away(_))), "{answer:?}");
                // Connections that the fleet has given up are still there, with questions on their way.
                proxy.set(Fault::None);
                well_again(limiter).await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_second_of_latency_slows_the_fleet_and_frees_no_call() {
    let server = PrivateRedis::start(&[]).await;
    let proxy = proxied(&server).await;
    never_above_20_while(&config(&url(&proxy)), 90, async |_| {
        sleep(A_WHILE).await;
        proxy.set(Fault::Delay(Duration::from_millis(250)));
        sleep(4 * A_WHILE).await;
        proxy.set(Fault::None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_half_a_second_of_latency_slots_still_come_before_they_are_due() {
    let server = PrivateRedis::start(&[]).await;
    let proxy = proxied(&server).await;
    let engine = &fleet(&config(&url(&proxy)), 1).await[0];
    let (limiter, stack) = (engine.limiter(), per_second("test.slow", 20));
    slots(&*limiter, &stack, &[1]).await;
    proxy.set(Fault::Delay(Duration::from_millis(250)));
    let in_time = async {
        loop {
            // One call at a time: nothing is booked ahead, and each slot is as near as it may be.
            if let Ok(Reservation::Slots(slots)) = limiter.reserve(&stack, &Order::of_models(&[1])).await
                && slots[0].at > Instant::now()
            {
                return;
            }
        }
    };
    timeout(PATIENCE, in_time).await.expect("a slot that can still be used");
    assert_eq!(limiter.health(), Ok(()));
}

/// The server's clock is set again and again, each time to so many seconds from the right one.
async fn never_above_20_while_the_clock_goes(offsets: &[&str]) {
    let mut server = PrivateRedis::away(&[]);
    server.with_own_clock().revive().await;
    let seconds = async || server.ask::<Vec<f64>>("TIME").await[0];
    never_above_20_while(&config(&server.url()), 120, async |_| {
        for offset in offsets {
            sleep(A_WHILE).await;
            let before = seconds().await;
            server.set_clock(offset);
            let step: f64 = offset.parse().unwrap();
            assert!(
                step.abs() < 10.0 || (seconds().await - before).abs() > step.abs() / 2.0,
                "the clock is set"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_clock_that_is_set_ahead_never_frees_a_call() {
    never_above_20_while_the_clock_goes(&["+0.1", "+0.6", "+2.5", "+3600"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_clock_that_is_set_back_neither_frees_nor_holds_a_call() {
    never_above_20_while_the_clock_goes(&["-0.1", "-0.6", "-2.5", "-3600"]).await;
}
