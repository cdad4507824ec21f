//! The dead letters of an earlier release, in the queue that it kept them in.

use std::time::Duration;

use lapin::message::Delivery;
use tracing::info;

use super::{
    deaths,
    link::Up,
    moving::Move,
    publisher::Publisher,
    settle::{dead_letter, unreadable_letter},
    topology::{DEAD_QUEUE, DEAD_QUEUE_BEFORE},
    unconfirmed::Message,
};
use crate::{job::Job, queue::QueueError};

/// Nothing leads there any more: it is empty when it looks so.
const QUIET: Duration = Duration::from_millis(500);

/// Letters of an earlier release's queue are moved to where they are looked at.
pub(super) async fn bring_over(up: &Up, publisher: &Publisher) -> Result<(), QueueError> {
    let queue = DEAD_QUEUE_BEFORE;
    let letters = Move { up, publisher, queue, quiet: QUIET, sent_as: as_it_was };
    let moved = letters.all().await?;
    if moved > 0 {
        info!(letters = moved, from = queue, to = DEAD_QUEUE, "dead letters of an earlier release");
    }
    Ok(())
}

fn as_it_was(message: Delivery) -> Result<Message, QueueError> {
    let death = deaths::read(&message);
    Ok(match Job::from_message(&message.data) {
        Ok(job) => dead_letter(&job, &death, message.data),
        Err(_) => unreadable_letter(&death, message.data),
    })
}
