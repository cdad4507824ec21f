//! Publishes one message: persistent, mandatory, under its own id.

use std::sync::Arc;

use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};

use super::{headers, link::Up, unconfirmed::Message};
use crate::failpoint;

/// A channel that confirms.
pub(super) async fn open(up: &Up) -> Result<Channel, lapin::Error> {
    let channel = up.connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Publishes one message, and waits for its confirm.
pub(super) async fn say(
    channel: Channel,
    number: u64,
    message: Arc<Message>,
) -> (u64, Arc<Message>, Result<Confirmation, lapin::Error>) {
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (exchange, key) = (message.exchange.as_str().into(), message.routing_key.as_str().into());
    let confirm =
        match channel.basic_publish(exchange, key, mandatory, &message.body, properties(&message)).await {
            Ok(confirm) => {
                failpoint::reached("before_confirm");
                confirm.await
            }
            Err(error) => Err(error),
        };
    (number, message, confirm)
}

fn properties(message: &Message) -> BasicProperties {
    const PERSISTENT: u8 = 2;
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type(message.content_type.into())
        .with_message_id(message.id.as_str().into())
        .with_headers(headers::table(&message.headers))
}
