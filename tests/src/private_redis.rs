//! A Redis server of a test's own, to be killed, frozen, emptied and brought back. It ends with the test.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rand::RngExt;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// A running (or killed) server on a port of 127.0.0.1 that stays its own.
pub struct PrivateRedis {
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Option<Child>,
}

impl PrivateRedis {
    /// A server without persistence that answers. `settings` are `redis-server` flags.
    pub async fn start(settings: &[&str]) -> Self {
        let mut server = Self::away(settings);
        server.revive().await;
        server
    }

    /// A server that does not run yet.
    pub fn away(settings: &[&str]) -> Self {
        let port = free_port();
        Self {
            folder: TempDir::new().expect("a folder for the server's data"),
            port,
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
            process: None,
        }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it on the same port and data, and waits until it answers.
    pub async fn revive(&mut self) {
        let name = std::env::var("PIXFLEET_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let process = Command::new(name)
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server runs (tests/services install)");
        self.process = Some(process);
        let deadline = Instant::now() + Duration::from_secs(10);
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            assert!(Instant::now() < deadline, "redis-server on port {} does not listen", self.port);
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself; either way it is gone after the wait.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Stops it in the middle of whatever it does: connections stay, answers do not come.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// A connection of the test's own.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        connection(&self.url()).await
    }

    fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("a running server");
        let sent = Command::new("kill").args([signal, &process.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill {signal}");
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port below those that outgoing connections get: one of them could sit on it while the server is away, or
/// even, dialling it, meet itself.
pub(crate) fn free_port() -> u16 {
    std::iter::repeat_with(|| rand::rng().random_range(12_000..20_000))
        .take(1_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// A connection to the server at `url`.
pub async fn connection(url: &str) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(url).expect("a Redis URL");
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
    client.get_multiplexed_async_connection_with_config(&patient).await.expect("a connection to Redis")
}
