//! A Redis server of a test's own, to be killed, frozen, emptied and brought back. It ends with the test.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rand::RngExt;
use redis::FromRedisValue;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::certificates::Certificates;

/// The file with the offset of a server's own clock.
const CLOCK: &str = "clock";

/// A running (or killed) server on a port of 127.0.0.1 that stays its own.
pub struct PrivateRedis {
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    settings_file: Option<String>,
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
            environment: Vec::new(),
            settings_file: None,
            process: None,
        }
    }

    /// Further `redis-server` flags, from its next start on.
    pub fn set(&mut self, settings: &[&str]) -> &mut Self {
        self.settings.extend(settings.iter().map(|setting| (*setting).to_owned()));
        self
    }

    /// A variable of its environment, from its next start on.
    pub fn set_variable(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A clock of its own, from its next start on; [`set_clock`](Self::set_clock) sets it.
    pub fn with_own_clock(&mut self) -> &mut Self {
        let library = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let library =
            library.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
        let library = library.expect("libfaketime is installed (tests/services install)");
        self.set_clock("+0");
        let file = self.file(CLOCK).display().to_string();
        // libc's allocator, because Redis' own asks for the time while it begins, before the library is there.
        self.set_variable("LD_PRELOAD", &format!("{}:libc.so.6", library.display()))
            .set_variable("FAKETIME_TIMESTAMP_FILE", &file)
            .set_variable("FAKETIME_NO_CACHE", "1")
            .set_variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Sets its own clock, to so many seconds from the right one: `+3600`, `-0.5`.
    pub fn set_clock(&self, offset: &str) {
        // Renamed into its place: it is read at any moment, and must be whole.
        let new = self.file("clock.new");
        std::fs::write(&new, offset).expect("a file for the clock");
        std::fs::rename(new, self.file(CLOCK)).expect("a file for the clock");
    }

    /// Answers to TLS only, from its next start on, and to nobody without a certificate of the same authority.
    pub fn with_tls(&mut self, certificates: &Certificates) -> &mut Self {
        let (certificate, key) = certificates.of("server");
        let [ca, certificate, key] =
            [certificates.ca(), certificate, key].map(|path| path.display().to_string());
        let port = self.port.to_string();
        self.set(&["--port", "0", "--tls-port", &port, "--tls-auth-clients", "yes"]).set(&[
            "--tls-ca-cert-file",
            &ca,
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
        ])
    }

    /// From its next start on: a settings file in its folder and these flags, and nothing else.
    pub fn set_file(&mut self, name: &str, flags: &[&str]) -> &mut Self {
        self.settings_file = Some(name.to_owned());
        self.settings = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self
    }

    /// A file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
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
        let port = self.port.to_string();
        let plain =
            ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "."];
        let begin = match &self.settings_file {
            Some(file) => vec![file.as_str()],
            None => plain.to_vec(),
        };
        let process = Command::new(name)
            .args(begin)
            .args(&self.settings)
            .current_dir(self.folder.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
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

    /// What it answers to a command.
    pub async fn ask<T: FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut ask = redis::cmd(words.next().unwrap_or_default());
        words.for_each(|word| {
            ask.arg(word);
        });
        let mut connection = self.connection().await;
        if let Some(at) = self.settings.iter().position(|setting| setting == "--requirepass") {
            let login = redis::cmd("AUTH").arg(&self.settings[at + 1]).exec_async(&mut connection).await;
            login.expect("its own password");
        }
        let answer = ask.query_async(&mut connection).await;
        answer.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Waits until what it answers to a command holds `text`.
    pub async fn says(&self, command: &str, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer: String = self.ask(command).await;
            if answer.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "{command} never said {text}: {answer}");
            sleep(Duration::from_millis(10)).await;
        }
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
