//! An image API that judges.
//!
//! The sandbox stands in for a paid, rate-limited image API: it speaks the vendors' contracts ([`Settings`] says
//! which keys and models it knows), takes the vendors' time to answer, judges the rate as their gateways do
//! ([`judge`]), misbehaves on request ([`Faults`]), and keeps an access log and a [`Bill`], so that a test, a demo
//! or a newcomer sees exactly what a fleet did and what it would have cost.
//!
//! A call's way: `connection` -> `call` (arrival, verdict, fate, answer: one straight line) with
//! `contract` (what the vendor reads and writes), `account` (judge and bill of one key) and `access` (the log).
//! Every answer is a pure function of the image and the model ([`answer`]), so every result can be checked.
//!
//! ```
//! # use pixfleet_sandbox::{Judging, Latency, Rule, Sandbox, Settings};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let settings = Settings {
//!     judging: Judging { rule: Rule::Sliding, limit: 200, window_ms: 1_000, count_refused: false },
//!     latency: Latency::Constant { ms: 50 },
//!     ..Settings::default()
//! };
//! let sandbox = Sandbox::start(listener, settings)?;
//! // ... send calls to sandbox.url() ...
//! let lines = sandbox.access().await; // the newest 10,000, unless access_tail says otherwise
//! let bill = sandbox.shutdown().await?;
//! assert_eq!(bill.total.throttled, 0);
//! # Ok(())
//! # }
//! ```

mod access;
mod account;
pub mod answer;
mod bill;
mod call;
mod connection;
mod contract;
mod fault;
mod gallery;
mod image;
pub mod judge;
mod reply;
mod serve;
mod settings;

pub use access::{Line, Outcome};
pub use bill::{Bill, Counts, KeyBill};
pub use fault::Fault;
pub use serve::{Error, Running, Sandbox};
pub use settings::{Cost, Faults, Judging, Latency, RetryAfter, Rule, Settings};
