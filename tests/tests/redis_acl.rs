//! The rights that docs/redis.md prints are enough, and they are few.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]

use pixfleet_shared::fleet::redis::Config;
use pixfleet_tests::{
    conformance,
    private_redis::PrivateRedis,
    redis_fleet::{clients, config, everything_works, fleet, limiters, processes},
    redis_sets::{Cluster, Sentinels, master_and_replica},
    servers::repository,
};

const PASSWORD: &str = "of-the-fleet";

/// The line of the page, as `ACL SETUSER` takes it, for a namespace and a password.
fn rights(namespace: &str) -> String {
    let page = std::fs::read_to_string(repository().join("docs/redis.md")).unwrap();
    let line =
        page.lines().find_map(|line| line.strip_prefix("user pixfleet ")).expect("the line of the page");
    let line = line.replace("PASSWORD", PASSWORD).replace("pixfleet:", &format!("{namespace}:"));
    format!("ACL SETUSER pixfleet {line}")
}

/// Settings for that user.
fn as_user(url: &str) -> Config {
    config(&url.replace("://", &format!("://pixfleet:{PASSWORD}@")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_of_the_page_are_enough_for_the_limiter_and_the_ledger() {
    let server = PrivateRedis::start(&[]).await;
    let config = as_user(&server.url().replace("/0", "/1"));
    let () = server.ask(&rights(&config.namespace)).await;
    everything_works(&config).await;
    let engines = fleet(&config, 2).await;
    let limiters = limiters(&engines);
    let clients = clients(&limiters);
    conformance::limiter::no_window_holds_more_than_its_calls("test", &clients).await;
    conformance::limiter::what_is_booked_after_a_late_call_makes_room("test", &clients).await;
    conformance::limiter::a_shorter_hold_off_never_ends_a_longer_one("test", &clients).await;
    let () = server.ask("SCRIPT FLUSH").await;
    conformance::limiter::stacks_are_independent("test", clients[0]).await;
    let three = async || {
        let config = as_user(&server.url());
        let () = server.ask(&rights(&config.namespace)).await;
        processes(fleet(&config, 3).await)
    };
    pixfleet_tests::ledger_conforms!(in turn three());
    pixfleet_tests::answers_conform!(in turn three());
    pixfleet_tests::batches_conform!(in turn three());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_of_the_page_are_enough_behind_sentinels_and_on_a_cluster() {
    let (master, replica) = master_and_replica(&[]).await;
    let sentinels = Sentinels::watch(&master).await;
    let config = as_user(&sentinels.url());
    for server in [&master, &replica] {
        let () = server.ask(&rights(&config.namespace)).await;
    }
    everything_works(&config).await;

    let cluster = Cluster::start().await;
    let config = as_user(&cluster.url());
    cluster.each(&rights(&config.namespace)).await;
    everything_works(&config).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_of_the_page_reach_nothing_of_others() {
    let server = PrivateRedis::start(&[]).await;
    let () = server.ask(&rights("pixfleet")).await;
    let mut connection = pixfleet_tests::private_redis::connection(&as_user(&server.url()).url).await;
    let ask = async |connection: &mut redis::aio::MultiplexedConnection, command: &str| {
        let mut words = command.split(' ');
        let mut ask = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            ask.arg(word);
        });
        ask.query_async::<redis::Value>(connection).await
    };
    ask(&mut connection, "SET pixfleet:probe 1").await.unwrap();
    for command in [
        "GET other:key",
        "SET other:key 1",
        "HSET {other:limit:x} a 1",
        "DEL pixfleet",
        "PUBLISH other:channel x",
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "SCAN 0",
        "CONFIG GET maxmemory",
        "ACL LIST",
        "SCRIPT FLUSH",
        "EVAL return(1) 0",
        "CLIENT LIST",
        "REPLICAOF NO ONE",
        "CLUSTER NODES",
        "SHUTDOWN NOSAVE",
    ] {
        let error = ask(&mut connection, command).await.unwrap_err();
        assert_eq!(error.code(), Some("NOPERM"), "{command}: {error}");
    }
}
