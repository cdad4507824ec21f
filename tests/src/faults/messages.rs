//! Messages that nobody of ours made: broken, of another version, too large, and made to hurt.

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldArray, FieldTable},
};
use pixfleet_shared::{
    fleet::rabbit::JOBS_EXCHANGE,
    job::{Job, MAX_JOB_BYTES},
    queue::Reason,
};

use super::{
    gather,
    stage::{BATCH, Plan, Report, Setting, Stage},
};
use crate::fleet::job;

/// Hostile messages among the jobs: each becomes a dead letter with its reason, or is worked on like any other; the workers
/// live, and no job suffers for it.
pub(super) async fn hostile(plan: Plan) -> Report {
    let mut stage = Stage::set("hostile", plan, Setting::default()).await;
    stage.start_workers();
    let connection = Connection::connect(&stage.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let unreadable = unreadable();
    for (_, body) in &unreadable {
        publish(&channel, body, BasicProperties::default()).await;
    }
    stage.enqueue().await;
    // Readable, and made to hurt: numbers at their ends, a history of deaths, a priority that there is not.
    let mut jobs = Vec::new();
    for n in 0..4 {
        let one = job(BATCH, plan.jobs + n);
        jobs.push(match n {
            0 => Job { throttled: 1_000_000, replays: 1_000_000, ..one },
            1 => Job { lane: 255, ..one },
            _ => one,
        });
    }
    for job in &jobs {
        stage.want_job(job);
        publish(&channel, &serde_json::to_vec(job).unwrap(), hostile_properties()).await;
    }
    stage.uncounted();
    stage.settled(jobs.iter().map(|job| job.result_id("m"))).await;
    let letters = gather::letters(&stage.broker_url).await.unwrap();
    let mut reasons: Vec<Reason> =
        letters.iter().filter(|letter| letter.job.is_none()).filter_map(|letter| letter.reason).collect();
    let mut expected: Vec<Reason> = unreadable.iter().map(|(reason, _)| *reason).collect();
    reasons.sort_unstable();
    expected.sort_unstable();
    if reasons != expected {
        stage.problems.push(format!("dead letters for {reasons:?} instead of {expected:?}"));
    }
    for number in stage.fleet.workers() {
        if stage.fleet.has_died(number) {
            stage.problems.push(format!("worker {number} died of a message:\n{}", stage.fleet.log(number)));
        }
    }
    stage.end().await
}

/// What is no job, with the reason that it is kept under.
fn unreadable() -> Vec<(Reason, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let counted = |set: fn(&mut Job)| {
        let mut job = job(BATCH, 0);
        set(&mut job);
        (Reason::Malformed, serde_json::to_vec(&job).unwrap())
    };
    let mut no_models = serde_json::to_value(job(BATCH, 0)).unwrap();
    no_models["models"] = serde_json::json!("m");
    vec![
        (Reason::Empty, Vec::new()),
        (Reason::Oversize, vec![b' '; MAX_JOB_BYTES + 1]),
        (Reason::Oversize, vec![b'['; 17 << 20]),
        (Reason::UnknownVersion, text(r#"{"v": 2}"#)),
        (Reason::UnknownVersion, text(r#"{"v": 18446744073709551615}"#)),
        (Reason::Malformed, text("{")),
        (Reason::Malformed, text("null")),
        (Reason::Malformed, text(r#"{"v": -1}"#)),
        (Reason::Malformed, vec![0xff, 0xfe, 0x00]),
        // So deep that a parser that recurses without a bound would leave its stack.
        (Reason::Malformed, vec![b'['; 1 << 19]),
        (Reason::Malformed, serde_json::to_vec(&no_models).unwrap()),
        // Workers add to these.
        counted(|job| job.attempt = u32::MAX),
        counted(|job| job.throttled = u32::MAX),
        counted(|job| job.replays = u32::MAX),
    ]
}

/// Headers that the broker itself would write, and others that mean nothing.
fn hostile_properties() -> BasicProperties {
    let mut death = FieldTable::default();
    death.insert("queue".into(), AMQPValue::LongString("pixfleet.retry.v1.1s".into()));
    death.insert("reason".into(), AMQPValue::LongString("expired".into()));
    death.insert("count".into(), AMQPValue::LongLongInt(i64::MAX));
    let mut deaths = FieldArray::default();
    deaths.push(AMQPValue::FieldTable(death));
    let mut headers = FieldTable::default();
    headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
    headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(i64::MAX));
    headers.insert("x-reason".into(), AMQPValue::Void);
    headers.insert("traceparent".into(), AMQPValue::LongString("00-zz-zz-zz".into()));
    BasicProperties::default().with_headers(headers).with_priority(255).with_delivery_mode(2)
}

async fn publish(channel: &Channel, body: &[u8], properties: BasicProperties) {
    let (exchange, key) = (JOBS_EXCHANGE.into(), "normal.0".into());
    channel.basic_publish(exchange, key, BasicPublishOptions::default(), body, properties).await.unwrap();
}
