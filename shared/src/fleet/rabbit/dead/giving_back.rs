//! The end of a look: what was seen and not ended goes back, in its order.

use std::sync::PoisonError;

use lapin::options::BasicNackOptions;
use tokio::time::{Instant, sleep};

use super::{
    super::{
        declare::{bounded, depth},
        topology::DEAD_QUEUE,
    },
    ASK_AGAIN, PATIENCE, RabbitDeadLetters,
};
use crate::queue::QueueError;

/// Letters that are given back at once. RabbitMQ (3.10) puts them back in the order of a hash map, which is the right one up
/// to 32 of them.
const HANDFUL: usize = 32;
/// So many times, before it is waited for: what a queue is told of faster than it works is put together.
const HANDFULS: usize = 16;

impl RabbitDeadLetters {
    /// Gives everything back in its order, and waits (bounded) until it is there: the next look begins by counting.
    pub(super) async fn give_back(&mut self) -> Result<(), QueueError> {
        if let Some(window) = self.window.take() {
            self.end(window).await?;
        }
        let kept = self.kept();
        let before = self.ready().await?;
        for (number, handful) in kept.chunks(HANDFUL).enumerate() {
            let all = BasicNackOptions { multiple: true, requeue: true };
            bounded(self.channel.basic_nack(handful.last().copied().unwrap_or(0), all)).await?;
            if number % HANDFULS == HANDFULS - 1 {
                self.until_ready(before + (number + 1) * HANDFUL).await?;
            }
        }
        bounded(self.channel.close(200, "seen".into())).await?;
        self.until_ready(before + kept.len()).await
    }

    /// Waits (bounded) until so many letters are on the queue.
    async fn until_ready(&self, letters: usize) -> Result<(), QueueError> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && self.ready().await? < letters {
            sleep(ASK_AGAIN).await;
        }
        Ok(())
    }

    async fn ready(&self) -> Result<usize, QueueError> {
        let depth = depth(&self.up.connection, DEAD_QUEUE).await?;
        Ok(depth.map_or(0, |depth| depth.ready as usize))
    }

    /// The tags of the letters that were seen and not ended.
    fn kept(&self) -> Vec<u64> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        (1..=self.last_tag).filter(|tag| !ended.contains(tag)).collect()
    }
}
