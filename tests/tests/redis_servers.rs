//! The limiter and the ledger on every kind of Redis that a URL may name: behind sentinels, as a cluster, over TLS.

use std::time::Duration;

use pixfleet_shared::fleet::redis::{Config, Redis};
use pixfleet_tests::{
    certificates::Certificates,
    private_redis::PrivateRedis,
    redis_fleet::{config, everything_works, never_above_20_while, says_why, well_again},
    redis_sets::{Cluster, SENTINEL_PASSWORD, Sentinels, cut_off, master_and_replica},
};
use tokio::time::sleep;

/// Long enough for the state to differ from what it was.
const A_WHILE: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_name_the_master_also_when_one_of_them_is_gone() {
    let (master, _replica) =
        master_and_replica(&["--requirepass", "right-one", "--masterauth", "right-one"]).await;
    let mut sentinels = Sentinels::watch_with(&master, "right-one").await;
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), SENTINEL_PASSWORD).unwrap();
    let url = sentinels.url().replace("://", "://:right-one@");
    let known =
        || Config { sentinel_password_file: Some(password.path().display().to_string()), ..config(&url) };
    everything_works(&known()).await;
    sentinels.kill_one();
    everything_works(&known()).await;
    let why = Redis::start(&config(&url)).unwrap().ready(A_WHILE).await.unwrap_err();
    assert!(why.contains("NOAUTH") && why.contains("mymaster") && !why.contains("right-one"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_missed_the_last_grants_and_is_promoted_by_sentinels_never_frees_a_call() {
    let (mut master, replica) = master_and_replica(&[]).await;
    let sentinels = Sentinels::watch(&master).await;
    never_above_20_while(&config(&sentinels.url()), 90, async |limiter| {
        sleep(A_WHILE).await;
        cut_off(&replica).await;
        sleep(A_WHILE).await;
        master.kill();
        says_why(limiter).await;
        sentinels.agree_on(replica.port()).await;
        well_again(limiter).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_froze_and_wakes_after_another_took_over_never_frees_a_call() {
    let (master, replica) = master_and_replica(&[]).await;
    // As docs/redis.md advises: a master that has lost its replica takes no writes.
    let () = master.ask("CONFIG SET min-replicas-to-write 1 min-replicas-max-lag 1").await;
    let sentinels = Sentinels::watch(&master).await;
    never_above_20_while(&config(&sentinels.url()), 90, async |limiter| {
        sleep(A_WHILE).await;
        master.freeze();
        says_why(limiter).await;
        sentinels.agree_on(replica.port()).await;
        well_again(limiter).await;
        master.thaw();
        sleep(A_WHILE).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_serves_the_fleet_and_a_replica_that_takes_over_never_frees_a_call() {
    let mut cluster = Cluster::start().await;
    cluster.is_whole().await;
    everything_works(&config(&cluster.url())).await;
    never_above_20_while(&config(&cluster.url()), 90, async |limiter| {
        sleep(A_WHILE).await;
        cluster.kill_owner(&limiter.key("test.disturbed")).await;
        says_why(limiter).await;
        well_again(limiter).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_with_certificates_of_ones_own_and_a_stranger_is_refused() {
    let certificates = Certificates::new();
    let mut server = PrivateRedis::away(&[]);
    server.with_tls(&certificates).revive().await;
    let text = |path: std::path::PathBuf| Some(path.display().to_string());
    let (certificate, key) = certificates.of("client");
    let url = server.url().replace("redis://", "rediss://");
    let known = Config {
        ca_file: text(certificates.ca()),
        client_cert_file: text(certificate),
        client_key_file: text(key),
        ..config(&url)
    };
    everything_works(&known).await;
    for stranger in [
        Config { client_cert_file: None, client_key_file: None, ..known.clone() },
        Config { ca_file: text(Certificates::new().ca()), ..known.clone() },
    ] {
        let engine = Redis::start(&stranger).unwrap();
        let why = engine.ready(A_WHILE).await.unwrap_err();
        assert!(why.to_lowercase().contains("certificate"), "{why}");
    }
}
