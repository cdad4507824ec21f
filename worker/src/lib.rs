//! A worker: a delivery becomes a slot, a call and a result, and is settled once.
//!
//! [`run()`] is the loop and the drain, `step` one job's straight line with its one settle site. `slots` asks the
//! limiter, `recalled` looks for answers of before, [`breaker`] leaves an API alone that is down, `pace` fits the jobs in hand to rate and latency, `retry` and `classify` are pure policy. A
//! [`provider`] is data; [`image`] fetches and prepares pictures before the slot; [`client`] sends,
//! [`alarm`] is when, and [`arrival`] what is known of the way.

pub mod admin;
pub mod alarm;
pub mod arrival;
pub mod breaker;
mod budget;
pub mod classify;
pub mod client;
mod closing;
mod conclude;
mod config;
mod copies;
mod crew;
mod deadline;
mod departure;
pub mod image;
mod intended;
mod pace;
pub mod provider;
mod recalled;
pub mod retry;
mod returned;
mod room;
mod run;
mod slots;
mod step;
mod usage;
mod waiting;

pub use config::Config;
pub use crew::{Board, Engines, Refusal};
pub use run::{Report, RunError, run};
