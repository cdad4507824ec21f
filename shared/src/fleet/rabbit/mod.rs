//! The queue on RabbitMQ 3.10 and later: quorum queues for jobs, a stream for replay.
//!
//! Two supervised connections a process (`link`): the broker blocks a connection that publishes when it runs
//! out of memory or disk, and acks must go on then. One task owns the publishing channel (`publisher`): only
//! one order of publishes then exists, and a confirm can't be blamed on the wrong message.

mod config;
mod dead;
#[doc(hidden)] // What reads others' headers is public for those who fuzz it.
pub mod deaths;
mod declare;
mod earlier;
#[doc(hidden)]
pub mod headers;
mod intake;
mod link;
mod moving;
mod parking;
mod publisher;
mod queue;
mod say;
mod session;
mod settle;
mod subscriber;
mod topology;
mod trouble;
mod unconfirmed;
mod verify;

pub use config::Config;
pub use queue::{LaneDepth, RabbitQueue};
pub use topology::{
    DEAD_EXCHANGE, DEAD_QUEUE, DEAD_QUEUE_BEFORE, JOBS_EXCHANGE, PAUSED_EXCHANGE, RESULTS_EXCHANGE,
    RESULTS_LOG, RETRY_TIERS, job_queue, paused_queue, subscriber_queue,
};
pub use verify::{Bound, Needed, needed, verify};
