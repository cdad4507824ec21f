//! The words that pixfleet's roles say to each other.
//!
//! * [`job`], [`result`] and [`batch`] are the wire: what travels through the broker, versioned, with
//!   deterministic [`id`]s and public JSON Schemas ([`schema`]).
//! * [`queue`], [`limiter`] and [`ledger`] (with [`answers`] and [`batches`]) are the seams: one short trait each, with the
//!   promises that every engine keeps and the conformance suite that holds it to them.
//! * [`fleet`] is the engine for many machines: RabbitMQ and Redis. [`embedded`] is the one for one machine: a SQLite
//!   file.
//! * [`gcra`] and [`judge`] are the limiter's decisions, pure.
//! * [`settings`] reads a TOML document and reports everything that is wrong with it at once.
//! * [`telemetry`] sets up the log and names every metric.

pub mod answers;
pub mod batch;
pub mod batches;
pub mod budget;
mod clock;
pub mod embedded;
pub mod failpoint;
pub mod fleet;
pub mod foresight;
pub mod gcra;
pub mod id;
pub mod jitter;
pub mod job;
pub mod judge;
mod knowledge;
pub mod lanes;
pub mod ledger;
pub mod limit;
pub mod limiter;
pub mod outlook;
pub mod queue;
pub mod quota;
pub mod result;
pub mod schema;
pub mod settings;
pub mod sharing;
pub mod standing;
pub mod telemetry;
pub mod terms;
pub mod trace;
