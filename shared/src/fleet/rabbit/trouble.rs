//! That the broker is there and refuses messages: said once, and shown as long as it lasts.

use tokio::sync::watch;
use tracing::{info, warn};

use super::unconfirmed::Message;

/// What is shown of it.
pub(super) struct Trouble(watch::Sender<Option<String>>);

impl Trouble {
    /// None yet, and where it is looked at.
    pub(super) fn new() -> (Self, watch::Receiver<Option<String>>) {
        let (told, shown) = watch::channel(None);
        (Self(told), shown)
    }

    /// So many messages were refused and are not stored yet, this one first.
    pub(super) fn show(&self, refused: Option<(usize, &Message)>) {
        let was = self.0.borrow().is_some();
        if refused.is_none() && !was {
            return;
        }
        let trouble = refused.map(|(waiting, message)| {
            let Message { exchange, routing_key, .. } = message;
            format!(
                "RabbitMQ refuses messages of exchange `{exchange}` for `{routing_key}`: a queue there is full (its \
                 max-length), or can't store them. {waiting} wait, and are tried again"
            )
        });
        match &trouble {
            Some(trouble) if !was => warn!("{trouble}"),
            None => info!("RabbitMQ takes all messages again"),
            Some(_) => {}
        }
        self.0.send_if_modified(|shown| {
            let news = *shown != trouble;
            *shown = trouble;
            news
        });
    }
}
