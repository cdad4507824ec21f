//! How many jobs are ready in the lanes: what the broker says of its queues.

use lapin::{options::QueueDeclareOptions, types::FieldTable};
use serde::Serialize;
use tokio::time::timeout;

use super::{
    super::topology::{self, job_queue},
    REQUEST_TIMEOUT, RabbitQueue,
};
use crate::{job::Priority, queue::QueueError};

/// A lane, and what waits in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LaneDepth {
    /// The lanes' priority.
    pub priority: Priority,
    /// Which of them.
    pub lane: u8,
    /// Jobs that no worker has in hand.
    pub ready: u32,
}

impl RabbitQueue {
    /// How many jobs are ready in every lane.
    ///
    /// # Errors
    /// When the broker is away, or does not answer in time.
    pub async fn depths(&self) -> Result<Vec<LaneDepth>, QueueError> {
        let mut depths = Vec::new();
        for priority in Priority::ALL {
            depths.extend(self.depths_of(priority).await?);
        }
        Ok(depths)
    }

    /// How many jobs are ready in the lanes of one priority.
    pub(super) async fn depths_of(&self, priority: Priority) -> Result<Vec<LaneDepth>, QueueError> {
        let up = self.publishing.clone().up().await;
        let asked = async {
            let channel = up.connection.create_channel().await?;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            let mut depths = Vec::with_capacity(self.config.lanes.into());
            for lane in 0..self.config.lanes {
                let name = job_queue(priority, lane);
                let queue =
                    channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await?;
                depths.push(LaneDepth { priority, lane, ready: queue.message_count() });
            }
            channel.close(200, "asked".into()).await?;
            Ok(depths)
        };
        match timeout(REQUEST_TIMEOUT, asked).await {
            Ok(answer) => answer.map_err(topology::away),
            Err(_) => Err(QueueError::Away("the lanes' depths did not come in time".to_owned())),
        }
    }
}
