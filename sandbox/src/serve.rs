//! The server: how it starts, what its connections share, and the way down.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::access::{Line, Log};
use crate::account::Accounts;
use crate::bill::Bill;
use crate::connection::accept;
use crate::settings::Settings;

/// How long calls under way may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// Why a sandbox does not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings cannot be served: mend them, and start again.
    #[error("the sandbox's settings cannot be served: {}", .0.join("; "))]
    Settings(Vec<String>),
    /// The access log cannot be opened or was not written whole: name another file, or make room.
    #[error("the access log {path} cannot be written: {source}; name another file or make room")]
    AccessLog {
        /// The file of the settings.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The listener has no address: bind it anew.
    #[error("the listener has no address: {0}; bind it anew")]
    Listener(io::Error),
}

/// The sandbox; [`Sandbox::start`] is all there is to it.
#[derive(Debug)]
pub struct Sandbox;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) accounts: Accounts,
    pub(crate) log: Log,
    pub(crate) no_key: Arc<str>,
    keys: HashSet<String>,
}

impl Shared {
    pub(crate) fn lets_in(&self, key: &str) -> bool {
        !key.is_empty() && (self.keys.is_empty() || self.keys.contains(key))
    }
}

/// A sandbox that serves. Dropping it closes everything at once; [`Running::shutdown`] lets calls end.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
    kill: DropGuard,
    writer: JoinHandle<io::Result<()>>,
}

impl Sandbox {
    /// Serves on `listener` from now on. To be called inside a tokio runtime.
    ///
    /// Errors: settings with [problems](Settings::problems), an access log that cannot be opened.
    pub fn start(listener: TcpListener, settings: Settings) -> Result<Running, Error> {
        let problems = settings.problems();
        if !problems.is_empty() {
            return Err(Error::Settings(problems));
        }
        let addr = listener.local_addr().map_err(Error::Listener)?;
        let (log, writer) = Log::start(settings.access_log.as_deref(), settings.access_tail)
            .map_err(|source| access_log_error(&settings, source))?;
        let shared = Arc::new(Shared {
            accounts: Accounts::new(settings.judging, settings.cost),
            log,
            no_key: "(none)".into(),
            keys: settings.keys.iter().cloned().collect(),
            settings,
        });
        let (kill, tasks) = (CancellationToken::new(), TaskTracker::new());
        let stop = kill.child_token();
        tasks.spawn(accept(listener, shared.clone(), tasks.clone(), stop.clone(), kill.clone()));
        Ok(Running { addr, shared, tasks, stop, kill: kill.drop_guard(), writer })
    }
}

impl Running {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://<address>`, to which a contract's path is added.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The bill as it stands now: every call whose answer a client has is on it.
    pub fn bill(&self) -> Bill {
        self.shared.accounts.bill()
    }

    /// The newest access lines, oldest first, as far as `access_tail` reaches; the file is flushed, too.
    pub async fn access(&self) -> Vec<Line> {
        self.shared.log.newest().await
    }

    /// Forgets the bill and the judges' memory, and begins the faults anew; the access log stays.
    pub fn reset(&self) {
        self.shared.accounts.reset();
    }

    /// Takes no more calls, lets those under way end for up to 5 s, writes the log to its end, returns the last bill.
    pub async fn shutdown(self) -> Result<Bill, Error> {
        self.shutdown_within(DRAIN).await
    }

    /// [`Running::shutdown`] with a deadline of the caller's; calls still under way at it are cut off (and logged).
    pub async fn shutdown_within(self, deadline: Duration) -> Result<Bill, Error> {
        self.stop.cancel();
        self.tasks.close();
        if timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                connections = self.tasks.len(),
                "calls are still under way at the deadline; cutting them off"
            );
        }
        drop(self.kill);
        self.tasks.wait().await;
        let (bill, settings) = (self.shared.accounts.bill(), self.shared.settings.clone());
        drop(self.shared); // The last sender: the writer ends when it has written what there is.
        match self.writer.await.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(()) => Ok(bill),
            Err(source) => Err(access_log_error(&settings, source)),
        }
    }
}

fn access_log_error(settings: &Settings, source: io::Error) -> Error {
    Error::AccessLog { path: settings.access_log.clone().unwrap_or_default(), source }
}
