//! Every preset that the sandbox speaks, end to end over HTTP: description, picture, request, call, verdict.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::path::Path;

use jiff::Timestamp;
use pixfleet_sandbox::{
    Faults, Judging, RetryAfter, Rule, Running, Sandbox, Settings,
    answer::{label_for, labels_for, score_for},
};
use pixfleet_shared::{
    job::{Image, Job, Source},
    limiter::Limit,
    settings::Document,
};
use pixfleet_worker::{
    classify::{Class, Verdict, classify},
    client::{Client, Transport},
    image::{Config, Images, Prepared},
    provider::{Definition, Provider, Source as Places},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

const URL: &str = "https://images.example/a room/1.jpg?size=l&sig=%2B";

async fn sandbox(settings: Settings) -> Running {
    Sandbox::start(TcpListener::bind("127.0.0.1:0").await.unwrap(), settings).unwrap()
}

fn provider(preset: &str, sandbox: &Running, more: &str) -> Provider {
    let path = if preset == "openai" { "/v1" } else { "" };
    let settings = format!("endpoint = '{}{path}'\n{more}", sandbox.url());
    let places = Places { env: &|_| Some("good-key".to_owned()), folder: Path::new(".") };
    Provider::load(preset, &Document::parse("t.toml", &settings).unwrap(), places).unwrap()
}

fn url() -> Source {
    Source::Url(URL.to_owned())
}

fn drawn(sandbox: &Running, file: &str) -> Source {
    Source::Url(format!("{}/sandbox/images/{file}", sandbox.url()))
}

/// What a worker does with a job between the delivery and its settlement.
async fn call(provider: &Provider, source: Source, models: &[&str]) -> (Verdict, Prepared) {
    let config = Config { allow_private: true, ports: vec![], ..Config::default() };
    let images = Images::new(&config).unwrap();
    let client = Client::new(provider.transport()).unwrap();
    let models: Vec<String> = models.iter().map(|model| (*model).to_owned()).collect();
    let image = Image { id: "1".into(), source };
    let job = Job::new("b".parse().unwrap(), image, provider.name().into(), models);
    let picture = images.prepare(&job.image.source, provider.wanted()).await.unwrap();
    let request = provider.requests(&job, &job.models, &picture).await.unwrap().remove(0);
    let outcome = client.send(&request).await;
    (classify(provider, &outcome, &job.models, Timestamp::now()), picture)
}

/// The sandbox's name for a picture that was sent as bytes.
fn hash(picture: &Prepared) -> String {
    match picture {
        Prepared::Bytes(picture) => {
            Sha256::digest(&picture.bytes).iter().map(|byte| format!("{byte:02x}")).collect()
        }
        Prepared::Url(url) => url.clone(),
    }
}

fn labels(verdict: &Verdict, model: &str) -> Vec<String> {
    let (_, answer) = verdict.models.iter().find(|(name, _)| name == model).unwrap();
    answer.as_ref().unwrap().labels.iter().map(|label| label.label.clone()).collect()
}

fn value(verdict: &Verdict, model: &str) -> serde_json::Value {
    let (_, answer) = verdict.models.iter().find(|(name, _)| name == model).unwrap();
    answer.as_ref().unwrap().value.clone().unwrap_or_default()
}

#[tokio::test]
async fn restb_answers_one_model_and_six_by_url_and_by_bytes() {
    let sandbox = sandbox(Settings::default()).await;
    let by_url = provider("restb", &sandbox, "");
    let (one, _) = call(&by_url, url(), &["re_roomtype_global_v2"]).await;
    assert_eq!(one.class, Class::Ok, "{}", one.message);
    assert_eq!(labels(&one, "re_roomtype_global_v2"), labels_for(URL, "re_roomtype_global_v2"));

    let models = [
        "re_roomtype_global_v2",
        "re_exterior_styles",
        "re_features_v4",
        "re_logo",
        "re_compliance_v2",
        "re_condition_r1r6_global",
    ];
    let by_bytes = provider("restb", &sandbox, "fetch = 'always'");
    for (provider, source) in
        [(by_url, url()), (by_bytes, drawn(&sandbox, "kitchen.png?width=1200&height=900"))]
    {
        let (six, picture) = call(&provider, source, &models).await;
        assert_eq!(six.class, Class::Ok, "{}", six.message);
        let image = hash(&picture);
        for model in &models[..5] {
            assert_eq!(labels(&six, model)[0], label_for(&image, model), "{model}");
        }
        assert_eq!(value(&six, models[5]), json!(score_for(&image, models[5])));
        if let Prepared::Bytes(picture) = picture {
            assert_eq!(picture.content_type, "image/jpeg", "prepared as the preset says");
        }
    }
    assert_eq!(sandbox.shutdown().await.unwrap().total.accepted, 3);
}

#[tokio::test]
async fn tiliter_and_an_openai_compatible_server_and_the_generic_api_answer() {
    let sandbox = sandbox(Settings::default()).await;
    let tiliter = provider("tiliter", &sandbox, "");
    let (verdict, picture) =
        call(&tiliter, drawn(&sandbox, "fruit.jpg"), &["product_recognition", "bag_recognition"]).await;
    assert_eq!(labels(&verdict, "product_recognition"), [label_for(&hash(&picture), "product_recognition")]);
    assert!(value(&verdict, "bag_recognition")["present"].is_boolean());

    let openai = provider("openai", &sandbox, "");
    assert_eq!(value(&call(&openai, url(), &["vision"]).await.0, "vision"), json!(label_for(URL, "vision")));
    let fetched = provider("openai", &sandbox, "fetch = 'always'");
    let (verdict, picture) = call(&fetched, drawn(&sandbox, "room.png"), &["vision"]).await;
    assert_eq!(value(&verdict, "vision"), json!(label_for(&hash(&picture), "vision")));

    let generic = provider("generic", &sandbox, "");
    let (verdict, _) = call(&generic, url(), &["rooms", "unknown_one"]).await;
    assert_eq!(labels(&verdict, "rooms"), [label_for(URL, "rooms")]);
    assert_eq!(verdict.models[1].1.as_ref().unwrap_err().class, Class::Rejected);
}

#[tokio::test]
async fn a_bad_key_stops_the_provider_and_a_bad_picture_or_model_only_itself() {
    let settings = Settings { keys: vec!["another-key".into()], ..Settings::default() };
    let closed = sandbox(settings).await;
    for preset in ["restb", "openai", "generic"] {
        let (verdict, _) = call(&provider(preset, &closed, ""), url(), &["re_logo"]).await;
        assert_eq!(verdict.class, Class::Unauthorized, "{preset}: {}", verdict.message);
        assert!(!verdict.message.contains("good-key"), "{}", verdict.message);
    }
    let open = sandbox(Settings::default()).await;
    for preset in ["restb", "openai", "generic"] {
        let provider = provider(preset, &open, "");
        let broken = Source::Url("https://images.example/broken.jpg".into());
        let (verdict, _) = call(&provider, broken, &["re_logo"]).await;
        assert_eq!(verdict.class, Class::Rejected, "{preset}: {}", verdict.message);
        let (verdict, _) = call(&provider, url(), &["unknown_model"]).await;
        assert_eq!(verdict.class, Class::Rejected, "{preset}: {}", verdict.message);
    }
}

#[tokio::test]
async fn over_the_limit_every_preset_holds_off_for_what_the_api_says() {
    for (status, preset) in [(429, "restb"), (200, "restb"), (429, "openai"), (429, "generic")] {
        let settings = Settings {
            judging: Judging { rule: Rule::Sliding, limit: 1, window_ms: 60_000, count_refused: false },
            retry_after: RetryAfter::Seconds,
            throttle_status: status,
            ..Settings::default()
        };
        let sandbox = sandbox(settings).await;
        let provider = provider(preset, &sandbox, "");
        assert_eq!(call(&provider, url(), &["re_logo"]).await.0.class, Class::Ok);
        let (verdict, _) = call(&provider, url(), &["re_logo"]).await;
        assert_eq!(verdict.class, Class::Throttled, "{preset} {status}: {}", verdict.message);
        let seconds = verdict.hold_off.unwrap().length.as_secs();
        assert!((2..=60).contains(&seconds), "{preset} {status}: {seconds}");
    }
}

#[tokio::test]
async fn each_fault_of_an_api_has_its_class() {
    let faults = |change: fn(&mut Faults)| {
        let mut faults = Faults { hang_ms: 60_000, huge_bytes: 8 << 20, ..Faults::default() };
        change(&mut faults);
        faults
    };
    for (faults, class, charged) in [
        (faults(|f| f.error_500 = 1.0), Class::Transient, false),
        (faults(|f| f.malformed = 1.0), Class::Ambiguous, true),
        (faults(|f| f.huge = 1.0), Class::Ambiguous, true),
        (faults(|f| f.cut = 1.0), Class::Ambiguous, true),
        (faults(|f| f.drop = 1.0), Class::Ambiguous, true),
        (faults(|f| f.hang = 1.0), Class::Ambiguous, true),
    ] {
        let settings = Settings { faults, ..Settings::default() };
        let sandbox = sandbox(settings).await;
        let provider = provider("restb", &sandbox, "http = { connect_ms = 500, total_ms = 1000 }");
        assert_eq!(
            provider.transport(),
            &Transport { connect_ms: 500, total_ms: 1000, ..Transport::default() }
        );
        let (verdict, _) = call(&provider, url(), &["re_logo"]).await;
        assert_eq!((verdict.class, verdict.charged), (class, charged), "{faults:?}: {}", verdict.message);
    }
}

#[tokio::test]
async fn the_worked_example_of_the_guide_is_a_provider() {
    let guide =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/providers.md")).unwrap();
    let examples: Vec<&str> =
        guide.split("```toml\n").skip(1).filter_map(|part| part.split("```").next()).collect();
    let mut whole = 0;
    for example in &examples {
        let document = Document::parse("docs/providers.md", example).unwrap();
        let places = Places { env: &|_| Some("key".to_owned()), folder: Path::new(".") };
        if document.has("endpoint") {
            Provider::load("example", &document, places)
                .unwrap_or_else(|problems| panic!("{problems}\n{example}"));
            whole += 1;
        } else {
            for name in document.subtable("providers").unwrap().keys() {
                let own = document.subtable(&format!("providers.{name}")).unwrap();
                Provider::load(name, &own, places).unwrap_or_else(|problems| panic!("{problems}\n{example}"));
            }
        }
    }
    assert!(whole >= 1 && examples.len() >= 3, "the guide lost its examples");
}

#[test]
fn the_guide_names_every_field_of_a_description() {
    let guide =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/providers.md")).unwrap();
    let mut fields = Vec::new();
    names(&pixfleet_shared::settings::schema::<Definition>(), &mut fields);
    assert!(fields.len() > 50, "{fields:?}");
    for field in fields {
        let told = [format!("`{field}`"), format!("`[{field}]`"), format!("`[[{field}]]`")];
        assert!(told.iter().any(|told| guide.contains(told)), "docs/providers.md does not tell of `{field}`");
    }
}

#[test]
fn the_guide_to_limits_names_every_field_of_one() {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/limits.md")).unwrap();
    let mut fields = Vec::new();
    names(&pixfleet_shared::settings::schema::<Limit>(), &mut fields);
    assert!(fields.len() > 6, "{fields:?}");
    for field in fields {
        let told = [format!("`{field}`"), format!("`{field} = ")];
        assert!(told.iter().any(|told| guide.contains(told)), "docs/limits.md does not tell of `{field}`");
    }
}

/// The names of all fields in a schema; those of a limit are told in the guide to limits.
fn names(schema: &serde_json::Value, found: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        found.push(name.clone());
        if name != "limits" {
            names(field, found);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            names(&schema[inner], found);
        }
    }
}
