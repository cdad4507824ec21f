//! Redis as a set of servers: a master with a replica, sentinels that watch them, a cluster.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::private_redis::{PrivateRedis, free_port};

/// The password of sentinels that have one.
pub const SENTINEL_PASSWORD: &str = "of-the-sentinels";
/// The name that the sentinels know the master by.
pub const MASTER: &str = "mymaster";

/// A master and its replica, which has all of it.
pub async fn master_and_replica(settings: &[&str]) -> (PrivateRedis, PrivateRedis) {
    // Without a delay for further replicas: there are none.
    let quick = [settings, &["--repl-diskless-sync-delay", "0"]].concat();
    let master = PrivateRedis::start(&quick).await;
    let port = master.port().to_string();
    let replica = PrivateRedis::start(&[&quick[..], &["--replicaof", "127.0.0.1", &port]].concat()).await;
    in_step(&master, &replica).await;
    (master, replica)
}

/// Waits until what the master writes is on the replica at once.
pub async fn in_step(master: &PrivateRedis, replica: &PrivateRedis) {
    replica.says("INFO replication", "master_link_status:up").await;
    // The link is up before its master sends on it: a first write says when it does.
    let () = master.ask("SET in-step 1").await;
    replica.says("EXISTS in-step", "1").await;
}

/// From now on the replica misses what its master writes.
pub async fn cut_off(replica: &PrivateRedis) {
    let () = replica.ask("REPLICAOF 127.0.0.1 1").await;
}

/// Makes a master of the replica.
pub async fn promote(replica: &PrivateRedis) {
    let () = replica.ask("REPLICAOF NO ONE").await;
}

/// Three sentinels that watch a master, and two of which decide.
pub struct Sentinels(Vec<PrivateRedis>);

impl Sentinels {
    /// Starts them, and waits until all of them know each other and the master's replica.
    pub async fn watch(master: &PrivateRedis) -> Self {
        Self::configured(master, "", &["--sentinel"]).await
    }

    /// [`watch`](Self::watch), of servers that ask for a password, by sentinels that ask for [another](SENTINEL_PASSWORD).
    pub async fn watch_with(master: &PrivateRedis, password: &str) -> Self {
        let more =
            format!("sentinel auth-pass {MASTER} {password}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n");
        Self::configured(master, &more, &["--sentinel", "--requirepass", SENTINEL_PASSWORD]).await
    }

    async fn configured(master: &PrivateRedis, more: &str, flags: &[&str]) -> Self {
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let mut sentinel = PrivateRedis::away(&[]);
            let settings = format!(
                "port {}\nbind 127.0.0.1\nsentinel monitor {MASTER} 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds {MASTER} 500\nsentinel failover-timeout {MASTER} 3000\n{more}",
                sentinel.port(),
                master.port()
            );
            std::fs::write(sentinel.file("sentinel.conf"), settings).expect("a settings file");
            sentinel.set_file("sentinel.conf", flags);
            sentinel.revive().await;
            sentinels.push(sentinel);
        }
        for sentinel in &sentinels {
            sentinel.says("INFO sentinel", "slaves=1,sentinels=3").await;
        }
        Self(sentinels)
    }

    /// The URL of the master behind them.
    pub fn url(&self) -> String {
        let hosts: Vec<String> =
            self.0.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        format!("redis+sentinel://{}/{MASTER}/0", hosts.join(","))
    }

    /// Waits until they agree that the master is on this port.
    pub async fn agree_on(&self, port: u16) {
        for sentinel in &self.0 {
            sentinel.says("INFO sentinel", &format!("address=127.0.0.1:{port},")).await;
        }
    }

    /// Ends one of them.
    pub fn kill_one(&mut self) {
        self.0[0].kill();
    }
}

/// A cluster of three masters with a replica each.
pub struct Cluster(Vec<PrivateRedis>);

impl Cluster {
    /// Starts it, and waits until every slot is served.
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..6 {
            let bus = free_port().to_string();
            let settings = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                "1000",
                "--repl-diskless-sync-delay",
                "0",
            ];
            nodes.push(PrivateRedis::start(&settings).await);
        }
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let made = std::process::Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .expect("redis-cli runs (tests/services install)");
        assert!(made.status.success(), "no cluster: {}", String::from_utf8_lossy(&made.stdout));
        for node in &nodes {
            node.says("CLUSTER INFO", "cluster_state:ok").await;
        }
        Self(nodes)
    }

    /// The URL, with half of its nodes.
    pub fn url(&self) -> String {
        let hosts: Vec<String> =
            self.0[..3].iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Asks each node.
    pub async fn each(&self, command: &str) {
        for node in &self.0 {
            let () = node.ask(command).await;
        }
    }

    /// Ends the node that has `key`.
    pub async fn kill_owner(&mut self, key: &str) -> u16 {
        let slot: u16 = self.0[0].ask(&format!("CLUSTER KEYSLOT {key}")).await;
        let nodes: String = self.0[0].ask("CLUSTER NODES").await;
        let owner = nodes.lines().find(|line| {
            let ranges = line.split(' ').skip(8).filter_map(|range| {
                let (first, last) = range.split_once('-')?;
                Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
            });
            ranges.into_iter().any(|range| range.contains(&slot))
        });
        let owner = owner.unwrap_or_else(|| panic!("nobody has slot {slot}: {nodes}"));
        let node = self.0.iter_mut().find(|node| owner.contains(&format!("127.0.0.1:{}@", node.port())));
        let node = node.expect("a node of this cluster");
        node.kill();
        node.port()
    }

    /// Waits until what is left of it knows a replica of every master.
    pub async fn is_whole(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let nodes: String = self.0[0].ask("CLUSTER NODES").await;
            if nodes.lines().filter(|line| line.contains("slave")).count() == 3 {
                return;
            }
            assert!(Instant::now() < deadline, "{nodes}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}
