//! The jobs of paused batches, each batch's in a queue of its own.

use std::time::Duration;

use lapin::message::Delivery;
use tracing::info;

use super::{
    declare::{self, depth, unbind},
    link::Up,
    moving::Move,
    publisher::Publisher,
    settle::{job_message, unreadable_message},
    topology::{JOBS_EXCHANGE, PAUSED_EXCHANGE, of_paused, paused_queue},
    unconfirmed::Message,
};
use crate::{batch::BatchName, job::Job, queue::QueueError};

/// Nothing is set aside any more when nothing came for so long: workers have heard by then that the batch goes on.
const QUIET: Duration = Duration::from_secs(2);

/// Declares the queue of a batch that is about to be paused.
pub(super) async fn prepare(up: &Up, batch: &BatchName) -> Result<(), QueueError> {
    declare::declare_one(&up.connection, &of_paused(batch)).await
}

/// How many jobs of the batch are set aside.
pub(super) async fn parked(up: &Up, batch: &BatchName) -> Result<u64, QueueError> {
    let depth = depth(&up.connection, &paused_queue(batch)).await?;
    Ok(depth.map_or(0, |depth| depth.ready.into()))
}

/// Puts the jobs of a batch back into their lanes, and takes its queue away.
pub(super) async fn unpark(up: &Up, publisher: &Publisher, batch: &BatchName) -> Result<u64, QueueError> {
    let queue = paused_queue(batch);
    // First of all: a worker that has not heard yet sets jobs aside that come back to it, and they must not go in circles.
    // What it sets aside now has no route, and goes to the shortest retry tier.
    unbind(&up.connection, &queue, PAUSED_EXCHANGE, batch.as_str()).await?;
    let jobs = Move { up, publisher, queue: &queue, quiet: QUIET, sent_as: to_its_lane };
    let moved = jobs.all().await?;
    info!(%batch, jobs = moved, "put back into its lane");
    Ok(moved)
}

fn to_its_lane(delivery: Delivery) -> Result<Message, QueueError> {
    match Job::from_message(&delivery.data) {
        Ok(job) => job_message(&job, JOBS_EXCHANGE.to_owned()),
        Err(why) => Ok(unreadable_message(delivery.data, &why)),
    }
}
