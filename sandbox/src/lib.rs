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
