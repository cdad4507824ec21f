//! Judges in front of an API, and cells: a fleet under one of them, measured by the judge's own log.
//!
//! Two judges are other people's software, so that nobody judges himself: nginx (`limit_req`, `limit_conn`) and
//! Flask-Limiter. The third is the sandbox. Each keeps a log of every call, from which a cell is judged afterwards.

mod cell;
pub mod flask;
pub mod in_flight;
mod measure;
pub mod nginx;
mod report;
pub mod sandbox;
mod setting;

use std::{
    fmt,
    net::Ipv4Addr,
    process::Child,
    time::{Duration, Instant},
};

use pixfleet_sandbox::Judging;
use tokio::{net::TcpStream, time::sleep};

pub use self::{
    cell::{Cell, Fault},
    report::Report,
    setting::Setting,
};

/// The longest that a judge may take to listen: Python reads its libraries from the disk first.
const START: Duration = Duration::from_secs(60);

/// Who judges, and what it lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// The sandbox's own.
    Sandbox(Judging),
    /// nginx before the sandbox.
    Nginx(nginx::Gate),
    /// Flask-Limiter in an API of its own.
    Flask(flask::Gate),
}

impl Judge {
    /// The limit that a user of pixfleet would write for it.
    pub fn setting(&self) -> Setting {
        match self {
            Self::Sandbox(judging) => sandbox::setting(judging),
            Self::Nginx(gate) => gate.setting(),
            Self::Flask(gate) => gate.setting(),
        }
    }
}

impl fmt::Display for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(judging) => write!(f, "sandbox {}", sandbox::named(judging)),
            Self::Nginx(gate) => write!(f, "nginx {gate}"),
            Self::Flask(gate) => write!(f, "flask {gate}"),
        }
    }
}

/// One call, as its judge's log tells it. Microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// When it arrived at the judge.
    pub(crate) at_us: u64,
    /// When it ended.
    pub(crate) until_us: u64,
    /// Whether the judge let it pass, whatever became of it then.
    pub(crate) passed: bool,
}

/// Waits until a judge's process listens on its port of 127.0.0.1.
///
/// # Panics
/// With what it `said`, when it ends before, or takes too long.
async fn listens(process: &mut Child, port: u16, said: impl Fn() -> String) {
    let deadline = Instant::now() + START;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
        let ended = process.try_wait().unwrap();
        assert!(ended.is_none(), "the judge ended with {ended:?}:\n{}", said());
        assert!(Instant::now() < deadline, "the judge does not listen on port {port}:\n{}", said());
        sleep(Duration::from_millis(20)).await;
    }
}
