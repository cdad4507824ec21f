//! Where announcements come from: a durable subscriber's queue, or the replay log.

use pixfleet_shared::{
    queue::{Queue, QueueError, Subscriber, Subscription},
    result::Announcement,
};
use tokio::sync::mpsc;

/// Announcements of the log that were read and are not yet counted.
const AHEAD: usize = 256;

/// A subscription, as the reader of results uses it.
pub(crate) enum Source {
    /// Keeps what is not committed.
    Durable(Box<dyn Subscriber>),
    /// Keeps everything, so nothing is committed: a task reads ahead while rows are made and written, and is never
    /// interrupted half-way through an announcement.
    Log(mpsc::Receiver<Result<Announcement, QueueError>>),
}

impl Source {
    /// Subscribes.
    ///
    /// # Errors
    /// As [`Queue::subscribe`].
    pub(crate) async fn open(queue: &dyn Queue, subscription: Subscription) -> Result<Self, QueueError> {
        let durable = subscription.name.is_some();
        let subscriber = queue.subscribe(subscription).await?;
        Ok(if durable { Self::Durable(subscriber) } else { Self::Log(read_ahead(subscriber)) })
    }

    /// The next announcement; waits for one. Cancel-safe.
    ///
    /// # Errors
    /// When the subscription can't go on.
    pub(crate) async fn next(&mut self) -> Result<Announcement, QueueError> {
        match self {
            Self::Durable(subscriber) => subscriber.next().await,
            Self::Log(ahead) => {
                let ended = || QueueError::Away("the reader of the log has ended".to_owned());
                ahead.recv().await.unwrap_or_else(|| Err(ended()))
            }
        }
    }

    /// Everything that came is written: it need not come again.
    ///
    /// # Errors
    /// When the queue was not told; it comes again then.
    pub(crate) async fn commit(&mut self) -> Result<(), QueueError> {
        match self {
            Self::Durable(subscriber) => subscriber.commit().await,
            Self::Log(_) => Ok(()),
        }
    }

    /// Whether what is committed is gone: it must be on the disk before.
    pub(crate) fn forgets(&self) -> bool {
        matches!(self, Self::Durable(_))
    }
}

/// Ends with the receiver, or with the subscription's first error.
fn read_ahead(mut subscriber: Box<dyn Subscriber>) -> mpsc::Receiver<Result<Announcement, QueueError>> {
    let (ahead, announcements) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = subscriber.next() => next,
                () = ahead.closed() => return,
            };
            let failed = next.is_err();
            if ahead.send(next).await.is_err() || failed {
                return;
            }
        }
    });
    announcements
}
