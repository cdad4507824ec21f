//! Reads the log of the state file: from a place in it, or on under a name.

use std::{collections::VecDeque, sync::Arc};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{log, store::Store};
use crate::{
    queue::{Filter, QueueError, Subscriber, Subscription},
    result::Announcement,
};

/// Entries read at once.
const PAGE: usize = 256;

pub(super) struct EmbeddedSubscriber {
    store: Arc<Store>,
    news: watch::Receiver<u64>,
    /// The name under which it is kept how far it is.
    name: Option<String>,
    filter: Filter,
    ahead: VecDeque<(i64, Announcement)>,
    /// Where the page in `ahead` ends: with nothing ahead, all before it is passed over or handed on.
    read_to: i64,
    /// The last entry that was handed on or passed over.
    done_to: i64,
}

/// Subscribes. A new name begins with what is published from now on.
pub(super) async fn open(
    store: Arc<Store>,
    subscription: Subscription,
) -> Result<EmbeddedSubscriber, QueueError> {
    let Subscription { name, from, filter } = subscription;
    let news = store.news().log.subscribe();
    let start = match name.clone() {
        Some(name) => store.write(move |db| log::reader(db, &name)).await?,
        None => store.read(move |db| log::position(db, from)).await?,
    };
    Ok(EmbeddedSubscriber {
        store,
        news,
        name,
        filter,
        ahead: VecDeque::new(),
        read_to: start,
        done_to: start,
    })
}

#[async_trait]
impl Subscriber for EmbeddedSubscriber {
    async fn next(&mut self) -> Result<Announcement, QueueError> {
        loop {
            if let Some((seq, announcement)) = self.ahead.pop_front() {
                self.done_to = seq;
                return Ok(announcement);
            }
            self.done_to = self.read_to;
            self.news.borrow_and_update();
            let (after, filter) = (self.read_to, self.filter.clone());
            let (found, end) = self.store.read(move |db| log::page(db, after, PAGE, &filter)).await?;
            let nothing = end == self.read_to;
            // No await between the page and its keeping: dropped here or there, nothing is skipped.
            (self.ahead, self.read_to) = (found.into(), end);
            if nothing && self.news.changed().await.is_err() {
                return Err(QueueError::Away("the state file is closed".to_owned()));
            }
        }
    }

    async fn commit(&mut self) -> Result<(), QueueError> {
        let Some(name) = self.name.clone() else {
            return Ok(());
        };
        let position = self.done_to;
        Ok(self.store.write(move |db| log::commit(db, &name, position, None)).await?)
    }
}
