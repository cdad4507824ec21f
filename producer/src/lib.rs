//! A manifest of images becomes jobs, confirmed.
//!
//! [`manifest`] streams rows out of files, folders and stdin; [`plan`] says which calls an image becomes, and what
//! they cost; [`record`] keeps what the queue has confirmed, so that an enqueue can be run again; [`enqueue()`] moves
//! the rows through all of them to the queue. [`forecast()`] tells beforehand when that will be done.

mod enqueue;
mod forecast;
pub mod manifest;
pub mod plan;
pub mod record;
mod settings;

pub use enqueue::{BadRows, Destination, Order, Stopped, Summary, Tally, Why, enqueue, rehearse};
pub use forecast::{Forecast, forecast};
pub use settings::Config;
