//! A private nginx before the sandbox: `limit_req` or `limit_conn` by the client's key, as gateways use them.

use std::{
    fmt,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{Call, Setting, listens};
use crate::private_redis::free_port;

/// What it lets pass, by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `limit_req rate=<rate>r/s burst=<burst> nodelay`; no `burst` at all where it is 0.
    Requests {
        /// Calls per second.
        rate: u32,
        /// Calls that may come early.
        burst: u32,
    },
    /// `limit_conn <calls>`: so many calls in flight.
    Connections {
        /// Calls in flight.
        calls: u32,
    },
}

impl Gate {
    pub(crate) fn setting(self) -> Setting {
        match self {
            Self::Requests { rate, burst } => Setting::rate(rate, 1_000, "leaky", Some(burst)),
            Self::Connections { calls } => Setting::in_flight(calls),
        }
    }

    /// The directives of the zone and of the location.
    fn directives(self) -> (String, String) {
        let key = "$http_authorization zone=judge:1m";
        match self {
            Self::Requests { rate, burst } => {
                let burst = if burst == 0 { String::new() } else { format!(" burst={burst} nodelay") };
                (
                    format!("limit_req_zone {key} rate={rate}r/s;"),
                    format!("limit_req zone=judge{burst}; limit_req_status 429;"),
                )
            }
            Self::Connections { calls } => (
                format!("limit_conn_zone {key};"),
                format!("limit_conn judge {calls}; limit_conn_status 429;"),
            ),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests { rate, burst } => write!(f, "limit_req {rate} r/s burst {burst}"),
            Self::Connections { calls } => write!(f, "limit_conn {calls}"),
        }
    }
}

/// The running server: one process, which ends with this value.
pub(crate) struct Nginx {
    process: Child,
    folder: TempDir,
    port: u16,
}

impl Nginx {
    /// Starts it before `api`, an address without a path, and waits until it listens.
    pub(crate) async fn start(gate: Gate, api: &str) -> Self {
        let (folder, port) = (TempDir::new().unwrap(), free_port());
        fs::write(folder.path().join("nginx.conf"), configuration(gate, port, api)).unwrap();
        let said = File::create(folder.path().join("said")).unwrap();
        let process = Command::new(binary())
            .arg("-p")
            .arg(folder.path())
            .args(["-c", "nginx.conf"])
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap_or_else(|error| panic!("no nginx ({error}): tests/services install"));
        let mut nginx = Self { process, folder, port };
        let read = |name: &str| fs::read_to_string(nginx.folder.path().join(name)).unwrap_or_default();
        listens(&mut nginx.process, port, || read("said") + &read("error.log")).await;
        nginx
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it once every call is answered, and reads its log: a line is written after the answer has left.
    pub(crate) fn calls(mut self) -> Vec<Call> {
        let told = Command::new("kill").args(["-QUIT", &self.process.id().to_string()]).status().unwrap();
        assert!(told.success(), "nginx ended before its log was read");
        self.process.wait().unwrap();
        let log = fs::read_to_string(self.folder.path().join("access.log")).unwrap();
        log.lines().map(call).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after the wait.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What is not said here is nginx's default. `proxy_pass` and not `return`, which answers before `limit_req` is asked.
fn configuration(gate: Gate, port: u16, api: &str) -> String {
    let (zone, limit) = gate.directives();
    let api = api.trim_start_matches("http://");
    format!(
        "daemon off;
master_process off; # one process, which is ended by its id
pid nginx.pid;
error_log error.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  log_format judged '$msec $request_time $status $connection';
  access_log access.log judged;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  {zone}
  upstream api {{ server {api}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      {limit}
      proxy_pass http://api;
      proxy_http_version 1.1;
      proxy_set_header Connection '';
    }}
  }}
}}
"
    )
}

/// A line of the log: when the call ended and how long it took, both in seconds to the millisecond, and its status.
fn call(line: &str) -> Call {
    let words: Vec<&str> = line.split(' ').collect();
    let us = |word: &str| (word.parse::<f64>().unwrap() * 1e6).round() as u64;
    let until_us = us(words[0]);
    Call { at_us: until_us - us(words[1]), until_us, passed: words[2] != "429" }
}

/// The server: Debian keeps it where a user's PATH may not lead.
fn binary() -> PathBuf {
    let debian = PathBuf::from("/usr/sbin/nginx");
    let found = if debian.is_file() { debian } else { PathBuf::from("nginx") };
    std::env::var_os("PIXFLEET_NGINX").map_or(found, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_arrived_its_time_before_it_was_logged_and_only_a_429_was_kept_out() {
        let passed = call("1790000000.250 0.051 200 7");
        assert_eq!(
            passed,
            Call { at_us: 1_790_000_000_199_000, until_us: 1_790_000_000_250_000, passed: true }
        );
        assert!(!call("1790000000.250 0.000 429 7").passed);
        assert!(call("1790000000.250 0.050 499 7").passed, "its client left, after it was let in");
    }
}
