//! Dead letters that only a broker can make: its own, unreadable ones, those of an earlier release, and very many.

use std::{collections::BTreeSet, time::Duration};

use lapin::{
    BasicProperties, ExchangeKind,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use pixfleet_shared::{
    fleet::rabbit::{Config, DEAD_EXCHANGE, DEAD_QUEUE_BEFORE, JOBS_EXCHANGE, RabbitQueue},
    queue::{DeadLetter, Death, Queue, Reason},
};
use pixfleet_tests::{conformance::queue::job, servers};
use tokio::{sync::watch, time::timeout};

use super::{PATIENCE, engine, raw};

/// All letters, which stay where they are.
async fn all(queue: &dyn Queue) -> Vec<DeadLetter> {
    let mut look = timeout(PATIENCE, queue.dead_letters()).await.unwrap().unwrap();
    let mut letters = Vec::new();
    while let Some(letter) = timeout(PATIENCE, look.next()).await.unwrap().unwrap() {
        letters.push(letter);
    }
    timeout(PATIENCE, look.close()).await.unwrap();
    letters
}

pub(super) async fn count(queue: &dyn Queue) -> usize {
    all(queue).await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_broker_gave_up_says_where_and_when() {
    let (queue, _) = engine().await;
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let (_keep, prefetch) = watch::channel(1);
    let mut intake = queue.receive(prefetch).await.unwrap();
    for _ in 0..21 {
        drop(timeout(PATIENCE, intake.next()).await.unwrap().unwrap());
    }
    let letter = timeout(PATIENCE, async {
        loop {
            if let Some(letter) = all(&*queue).await.pop() {
                return letter;
            }
        }
    });
    let letter = letter.await.expect("a letter in time");
    let Death { reason, message, at, .. } = &letter.death;
    assert_eq!(*reason, Reason::DeliveryLimit);
    assert!(message.contains("pixfleet.jobs.v1.normal.0"), "{message}");
    assert!(at.is_some());
    assert_eq!(letter.job.unwrap().id, job("b", 1).id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_no_job_is_kept_as_it_came() {
    let (queue, url) = engine().await;
    let channel = raw(&url).await;
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel
        .basic_publish(JOBS_EXCHANGE.into(), "normal.0".into(), options, b"nonsense", properties)
        .await
        .unwrap();
    let (_keep, prefetch) = watch::channel(1);
    let mut intake = queue.receive(prefetch).await.unwrap();
    let letter = tokio::select! {
        _ = intake.next() => panic!("nonsense was lent"),
        letter = async { loop { if let Some(letter) = all(&*queue).await.pop() { return letter } } } => letter,
    };
    assert_eq!(letter.death.reason, Reason::Malformed);
    assert!(letter.death.message.contains("not a job") && letter.death.at.is_some(), "{:?}", letter.death);
    assert_eq!(letter.job.unwrap_err(), b"nonsense");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_letters_of_an_earlier_release_are_looked_at_too_and_none_is_in_two_queues() {
    let url = servers::fresh_rabbitmq_url();
    let channel = raw(&url).await;
    let (exchange, queue) = (DEAD_EXCHANGE, DEAD_QUEUE_BEFORE);
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default())
        .await
        .unwrap();
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), quorum).await.unwrap();
    let bind = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), "#".into(), bind, FieldTable::default()).await.unwrap();
    let mut headers = FieldTable::default();
    for (name, value) in
        [("x-reason", "rejected"), ("x-message", "no such model"), ("x-died-at", "2026-11-20T08:00:00Z")]
    {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    let old = job("old", 1).to_message().unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let publish = BasicPublishOptions::default();
    let confirm = channel.basic_publish(exchange.into(), "rejected".into(), publish, &old, properties).await;
    confirm.unwrap().await.unwrap();

    let engine = RabbitQueue::connect(Config { url: url.clone(), ..Config::default() }).await.unwrap();
    engine.enqueue(vec![job("new", 1)]).await.unwrap();
    let (_keep, prefetch) = watch::channel(1);
    let mut intake = engine.receive(prefetch).await.unwrap();
    let (dead, unsettled) = timeout(PATIENCE, intake.next()).await.unwrap().unwrap().split();
    unsettled.dead_letter(dead, Vec::new(), Reason::Poison).await.unwrap();
    for _ in 0..2 {
        let letters = all(&*engine).await;
        let mut batches: Vec<_> =
            letters.iter().map(|letter| letter.job.as_ref().unwrap().batch.to_string()).collect();
        batches.sort_unstable();
        assert_eq!(batches, ["new", "old"]);
        let old = letters.iter().find(|letter| letter.death.reason == Reason::Rejected).unwrap();
        assert_eq!(old.death.message, "no such model");
        assert_eq!(old.death.at, Some("2026-11-20T08:00:00Z".parse().unwrap()));
    }
    let channel = raw(&url).await;
    let passive = QueueDeclareOptions::durable().passive();
    let gone = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
    assert!(gone.is_err(), "the earlier queue is empty, and gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn very_many_letters_are_seen_in_their_order_and_a_look_that_is_torn_loses_none() {
    const LETTERS: usize = 3_000;
    let (queue, url) = engine().await;
    let channel = raw(&url).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for n in 0..LETTERS {
        let body = job("b", n).to_message().unwrap();
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let _ = channel
            .basic_publish(DEAD_EXCHANGE.into(), "rejected".into(), options, &body, properties)
            .await
            .unwrap();
    }
    channel.wait_for_confirms().await.unwrap();
    let expected: Vec<String> = (0..LETTERS).map(|n| format!("i{n}")).collect();
    let images = async |queue: &dyn Queue| -> Vec<String> {
        all(queue).await.into_iter().map(|letter| letter.job.unwrap().image.id).collect()
    };
    assert!(images(&*queue).await == expected, "the first look finds them in another order");
    for _ in 0..3 {
        assert!(images(&*queue).await == expected, "a look changes their order");
    }
    // Another process looks, sees most of them, and dies.
    let torn = RabbitQueue::connect(Config { url, ..Config::default() }).await.unwrap();
    let mut look = torn.dead_letters().await.unwrap();
    for _ in 0..LETTERS - 10 {
        look.next().await.unwrap().expect("a letter");
    }
    let while_it_looks = timeout(PATIENCE, queue.dead_letters()).await.unwrap().err().expect("a refusal");
    assert!(while_it_looks.to_string().contains("somebody else looks"), "{while_it_looks}");
    drop(look);
    torn.close().await;
    drop(torn);
    let complete = async {
        loop {
            match queue.dead_letters().await {
                Ok(look) => look.close().await,
                Err(_) => continue,
            }
            let seen = images(&*queue).await;
            if seen.len() == LETTERS {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // Whoever dies gives nothing back in its order.
    let back: BTreeSet<String> =
        timeout(PATIENCE, complete).await.expect("all letters are back").into_iter().collect();
    assert_eq!(back.len(), LETTERS);
}
