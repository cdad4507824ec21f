//! What is fuzzed: everything that reads what others wrote. Each target is a function of bytes that panics where a promise is
//! broken; `fuzz/` feeds them by cargo-fuzz, and `tests/tests/fuzz_corpus.rs` on stable, with the kept corpus and mutations.

#![allow(clippy::unwrap_used, reason = "a broken promise is a panic")]

mod delivery;
mod mutate;

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use pixfleet_producer::manifest::{Fault, Format, Manifest, Reading};
use pixfleet_shared::{
    fleet::rabbit::{deaths, headers as of_message},
    job::{Job, Unreadable},
    queue::Death,
    result::Announcement,
    settings::Document,
};
use pixfleet_worker::{
    classify::{Class, Verdict, classify},
    client::{CallOutcome, Content, Reply},
    provider::{Provider, Source, preset_names},
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

pub use mutate::Mutations;

/// A target: its name, which is its corpus' folder, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 7] = [
    ("job", job),
    ("event", event),
    ("letter", letter),
    ("headers", headers),
    ("answer", answer),
    ("manifest", manifest),
    ("provider", provider),
];

/// A routing key that the broker takes has at most so many bytes.
const LONGEST_KEY: usize = 255;
/// What the headers of a dead letter may have in bytes: the smallest frame that a broker may ask for.
const LARGEST_HEADERS: usize = 4_096;
/// The longest pause that any preset believes.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3_600);
/// The models that answers are read for.
const MODELS: [&str; 2] = ["m", "re_logo"];

/// A message on the queue of jobs: read, or refused with a reason; what was read is written and read again as the same job.
pub fn job(data: &[u8]) {
    match Job::from_message(data) {
        Ok(job) => {
            // As the worker does with every job.
            let (attempt, turn) = (job.attempt + 1, job.turn());
            assert!(attempt > 0 && turn < u64::MAX && job.throttled + job.ambiguous + job.replays < u32::MAX);
            assert!((1..=100).contains(&job.weight()) && job.routing_key().len() <= LONGEST_KEY);
            for model in &job.models {
                assert_eq!(job.result_id(model), job.result_id(model));
            }
            let _ = job.image.source.public();
            match job.to_message() {
                Ok(message) => assert_eq!(Job::from_message(&message).unwrap(), job),
                // Escapes that a message need not have had: written out it may be too large.
                Err(error) => assert!(matches!(error, Unreadable::Oversize(_)), "{error}"),
            }
        }
        Err(why) => assert!(!why.reason().as_str().is_empty() && why.to_string().len() < 10_000),
    }
}

/// A message of the results exchange: read, or refused; what was read is written and read again as the same.
pub fn event(data: &[u8]) {
    if let Ok(announcement) = Announcement::from_message(data) {
        let key = announcement.routing_key();
        assert!(key.len() <= LONGEST_KEY, "{} bytes: {key}", key.len());
        let message = announcement.to_message().unwrap();
        let again = Announcement::from_message(&message).unwrap();
        assert_eq!(again.id(), announcement.id());
        assert_eq!(again.routing_key(), key);
    }
}

/// A dead letter, which `delivery` makes of lines: whoever wrote its headers, what they say of its death can be shown, and is
/// written and read again as the same; and so is what is said of a message that is no job.
pub fn letter(data: &[u8]) {
    let (head, body) = split(data);
    let message = delivery::of(head, body);
    // As with every delivery of a job or of a result.
    let _ = (of_message::deliveries(&message), of_message::next_offset(&message));
    if let Some(trace) = of_message::traceparent(&message) {
        assert_eq!(trace.to_string().parse().ok(), Some(trace));
    }
    let (death, job) = (deaths::read(&message), Job::from_message(body));
    let texts = [Some(&death.message), death.class.as_ref(), death.worker.as_ref()];
    for text in texts.into_iter().flatten() {
        assert!(text.chars().count() <= Death::LONGEST_TEXT && !text.contains(char::is_control), "{text:?}");
    }
    let shown = serde_json::to_vec(&death).unwrap();
    assert_eq!(serde_json::from_slice::<Death>(&shown).unwrap(), death);
    assert_eq!(written_and_read(&death, job.as_ref().ok()), death);
    if let Err(why) = job {
        let death = Death { reason: why.reason(), message: why.to_string(), ..death };
        assert_eq!(written_and_read(&death, None), death.bounded());
    }
}

/// The headers of a throttled answer, one a line, then an empty line and its body: whatever they say, the pause is bounded.
pub fn headers(data: &[u8]) {
    let (head, body) = split(data);
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n').take(50) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.trim_ascii()))
        {
            headers.append(name, value);
        }
    }
    for status in [429, 503] {
        for preset in presets() {
            let verdict = verdict(preset, status, headers.clone(), body);
            match (verdict.class, verdict.hold_off) {
                (Class::Throttled, Some(pause)) => assert!(pause.length <= LONGEST_PAUSE, "{pause:?}"),
                (Class::Throttled, None) => panic!("no pause: {verdict:?}", verdict = verdict.message),
                (_, pause) => assert!(pause.is_none(), "{pause:?}"),
            }
        }
    }
}

/// The body of an answer, through the mapping of every preset: each model has its answer or the reason why not.
pub fn answer(data: &[u8]) {
    for status in [200, 400, 500] {
        for preset in presets() {
            let verdict = verdict(preset, status, HeaderMap::new(), data);
            assert!(
                verdict.message.chars().count() <= 1_000,
                "{} characters",
                verdict.message.chars().count()
            );
        }
    }
}

/// A manifest of each format, its first byte says which: every line is a row or a bad row, and there is an end.
pub fn manifest(data: &[u8]) {
    thread_local! {
        static FILE: PathBuf = std::env::temp_dir()
            .join(format!("pixfleet-fuzz-{}-{:?}", std::process::id(), std::thread::current().id()));
    }
    let Some((first, content)) = data.split_first() else { return };
    let format = match first % 4 {
        0 => Some(Format::Csv),
        1 => Some(Format::Jsonl),
        2 => Some(Format::List),
        _ => None,
    };
    FILE.with(|file| {
        std::fs::write(file, content).unwrap();
        let input = file.display().to_string();
        let reading = Reading { format, ..Reading::default() };
        let rows = Manifest::open(&[input], reading).unwrap();
        let mut most = content.len() + 2;
        for row in rows {
            most = most.checked_sub(1).unwrap_or_else(|| panic!("more rows than bytes"));
            match row {
                Ok(row) => assert!(!row.image.id.is_empty()),
                Err(Fault::Row(bad)) => assert!(bad.raw.len() <= 1_100 && !bad.reason.is_empty()),
                Err(Fault::Broken(broken)) => assert!(!broken.reason.is_empty()),
            }
        }
        let _ = std::fs::remove_file(file);
    });
}

/// A provider's description: compiled, or refused with everything that is wrong.
pub fn provider(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(document) = Document::parse("fuzzed.toml", text) else { return };
    // No file of this machine is read for it.
    if document.get("file").is_some() {
        return;
    }
    match Provider::load("mine", &document, source()) {
        Ok(provider) => {
            assert!(provider.stacks().count() >= 1 && provider.models_per_call() >= 1);
            let _ = provider.limits();
        }
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
}

fn written_and_read(death: &Death, job: Option<&Job>) -> Death {
    let written = deaths::headers(death, job);
    let bytes: usize = written.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(bytes <= LARGEST_HEADERS, "{bytes} bytes of headers");
    deaths::read(&delivery::with(death.reason.as_str(), of_message::table(&written), Vec::new()))
}

fn split(data: &[u8]) -> (&[u8], &[u8]) {
    let at = data.windows(2).position(|pair| pair == b"\n\n");
    at.map_or((data, &[][..]), |at| (&data[..at], &data[at + 2..]))
}

fn verdict(provider: &Provider, status: u16, headers: HeaderMap, body: &[u8]) -> Verdict {
    let content = Content::Whole(Bytes::copy_from_slice(body));
    let outcome = CallOutcome {
        sent_at: Timestamp::UNIX_EPOCH,
        duration: Duration::from_millis(1),
        answer: Ok(Reply { status, headers, content }),
    };
    let models = MODELS.map(str::to_owned);
    let verdict = classify(provider, &outcome, &models, Timestamp::UNIX_EPOCH);
    let named: Vec<&str> = verdict.models.iter().map(|(model, _)| model.as_str()).collect();
    assert_eq!(named, MODELS, "every model has its answer, or why it has none");
    verdict
}

fn source() -> Source<'static> {
    Source { env: &|_| Some("a-key-of-nobody".to_owned()), folder: Path::new("/nowhere") }
}

/// Every preset, compiled once a thread.
fn presets() -> &'static [Provider] {
    thread_local! {
        static PRESETS: OnceCell<&'static [Provider]> = const { OnceCell::new() };
    }
    PRESETS.with(|presets| {
        *presets.get_or_init(|| {
            let load = |name| Provider::load(name, &Document::empty("fuzz"), source()).ok();
            // For as long as the process fuzzes.
            Box::leak(preset_names().filter_map(load).collect::<Vec<_>>().into_boxed_slice())
        })
    })
}
