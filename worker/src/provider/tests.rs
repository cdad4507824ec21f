//! The presets against documented answers, and what is said of a description that is wrong.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use pixfleet_shared::{
    job::{Image, Job, Source as Place},
    settings::Document,
};
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::*;
use crate::{
    classify::{Verdict, classify},
    client::{CallOutcome, Content, Reply},
    image::{Picture, Prepared},
};

const KEY: &str = "test-key-1234";

fn with_key(_: &str) -> Option<String> {
    Some(KEY.to_owned())
}

fn load(name: &str, settings: &str) -> Result<Provider, String> {
    let document = Document::parse("t.toml", settings).map_err(|problems| problems.to_string())?;
    let source = Source { env: &with_key, folder: Path::new(".") };
    Provider::load(name, &document, source).map_err(|problems| problems.to_string())
}

fn preset(name: &str) -> Provider {
    load(name, "").unwrap()
}

macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!("../presets/samples/", $name, ".json"))
    };
}

fn reply(status: u16, headers: &[(&'static str, &'static str)], body: &[u8]) -> CallOutcome {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
        .collect();
    let reply = Reply { status, headers, content: Content::Whole(Bytes::copy_from_slice(body)) };
    CallOutcome { sent_at: Timestamp::now(), duration: Duration::from_millis(9), answer: Ok(reply) }
}

fn judge(provider: &Provider, outcome: &CallOutcome, models: &[&str]) -> Verdict {
    let models: Vec<String> = models.iter().map(|model| (*model).to_owned()).collect();
    let verdict = classify(provider, outcome, &models, Timestamp::now());
    assert_eq!(
        verdict.models.iter().map(|(model, _)| model).collect::<Vec<_>>(),
        models.iter().collect::<Vec<_>>()
    );
    verdict
}

fn labels(verdict: &Verdict, model: &str) -> Vec<(String, Option<f64>)> {
    let answer = verdict.models.iter().find(|(name, _)| name == model).unwrap().1.as_ref().unwrap();
    answer.labels.iter().map(|label| (label.label.clone(), label.confidence)).collect()
}

fn value(verdict: &Verdict, model: &str) -> Option<Value> {
    verdict.models.iter().find(|(name, _)| name == model).unwrap().1.as_ref().unwrap().value.clone()
}

fn failed<'a>(verdict: &'a Verdict, model: &str) -> &'a Failed {
    verdict.models.iter().find(|(name, _)| name == model).unwrap().1.as_ref().unwrap_err()
}

fn job(source: Place, models: &[&str]) -> Job {
    let image = Image { id: "row 7".into(), source };
    Job::new("b".parse().unwrap(), image, "p".into(), models.iter().map(|m| (*m).to_owned()).collect())
}

async fn request(provider: &Provider, models: &[&str], image: Prepared) -> PreparedRequest {
    let job = job(Place::Url("https://x.example/1.jpg".into()), models);
    provider.requests(&job, &job.models, &image).await.unwrap().remove(0)
}

fn by_url() -> Prepared {
    Prepared::Url("https://x.example/1.jpg?a=1&b=2".into())
}

fn by_bytes() -> Prepared {
    // Bytes whose two base64 alphabets differ.
    Prepared::Bytes(Picture {
        bytes: Bytes::from_static(&[0xfb, 0xff, 0xfe, 0x00]),
        content_type: "image/jpeg",
    })
}

fn sent_json(request: &PreparedRequest) -> Value {
    assert_eq!(request.headers["content-type"], "application/json");
    serde_json::from_slice(&request.body).unwrap()
}

#[test]
fn every_preset_is_complete_and_says_what_it_is() {
    for name in preset_names() {
        let provider = preset(name);
        assert_eq!(provider.name(), name);
        assert!(!provider.definition().about.is_empty(), "{name}");
        assert_eq!(provider.limits().name, name);
    }
}

#[tokio::test]
async fn restb_is_asked_by_url_with_predict_and_multipredict() {
    let restb = preset("restb");
    let one = request(&restb, &["re_logo"], by_url()).await;
    assert_eq!(
        one.url.as_str(),
        "https://api-us.restb.ai/vision/v2/predict?image_url=https%3A%2F%2Fx.example%2F1.jpg%3Fa%3D1%26b%3D2&model_id=re_logo&client_key=test-key-1234"
    );
    assert_eq!((one.method.as_str(), one.body.len()), ("GET", 0));
    let many = request(&restb, &["re_logo", "re_features_v4"], by_url()).await;
    assert_eq!(many.url.path(), "/vision/v2/multipredict");
    assert!(many.url.query().unwrap().contains("model_id=re_logo%2Cre_features_v4&"));
}

#[tokio::test]
async fn restb_takes_bytes_as_a_form_with_the_key_in_the_query() {
    let request = request(&preset("restb"), &["re_logo"], by_bytes()).await;
    assert_eq!(request.url.query(), Some("client_key=test-key-1234"));
    assert_eq!(request.body, "image_base64=-__-AA%3D%3D&model_id=re_logo");
    assert_eq!(request.headers["content-type"], "application/x-www-form-urlencoded");
}

#[test]
fn restb_predictions_detections_and_scores_are_read() {
    let restb = preset("restb");
    let verdict = judge(&restb, &reply(200, &[], sample!("restb_predict")), &["re_roomtype_global_v2"]);
    assert_eq!(verdict.class, Class::Ok);
    let expected = [("kitchen".to_owned(), Some(0.9731)), ("dining_room".to_owned(), Some(0.0204))];
    assert_eq!(labels(&verdict, "re_roomtype_global_v2"), expected);

    let models = [
        "re_roomtype_global_v2",
        "re_features_v4",
        "re_logo",
        "re_condition_r1r6_global",
        "re_compliance_v2",
        "re_exterior_styles",
    ];
    let verdict = judge(&restb, &reply(200, &[], sample!("restb_multipredict")), &models);
    assert_eq!((verdict.class, verdict.charged), (Class::Ok, true));
    assert_eq!(labels(&verdict, "re_roomtype_global_v2"), [("kitchen".to_owned(), Some(0.97))]);
    assert_eq!(labels(&verdict, "re_features_v4").len(), 2);
    assert_eq!(labels(&verdict, "re_logo"), []);
    assert_eq!(value(&verdict, "re_condition_r1r6_global"), Some(json!(4.3)));
    let refused = failed(&verdict, "re_compliance_v2");
    assert_eq!((refused.class, refused.message.as_str()), (Class::Rejected, "The image is too small"));
    let missing = failed(&verdict, "re_exterior_styles");
    assert_eq!(missing.class, Class::Ambiguous);
    assert!(missing.message.contains("paid") && missing.message.contains("nothing for this model"));
}

#[test]
fn restb_says_005_under_any_status_and_that_is_a_limit() {
    for status in [200, 400, 403, 429, 500] {
        let verdict = judge(&preset("restb"), &reply(status, &[], sample!("restb_throttled")), &["re_logo"]);
        assert_eq!((verdict.class, verdict.charged), (Class::Throttled, false), "{status}");
        let pause = Pause { length: Duration::from_secs(1), said: false };
        assert_eq!(verdict.hold_off, Some(pause));
        assert!(verdict.message.contains("005: API rate limit exceeded"), "{}", verdict.message);
    }
}

#[test]
fn restb_failures_of_the_image_are_rejected_also_under_200() {
    for status in [200, 400] {
        let verdict =
            judge(&preset("restb"), &reply(status, &[], sample!("restb_rejected")), &["re_logo", "re_x"]);
        assert_eq!(verdict.class, Class::Rejected);
        assert!(failed(&verdict, "re_x").message.ends_with("004: The image can not be downloaded"));
    }
}

#[tokio::test]
async fn tiliter_is_asked_in_its_json_and_answers_two_models_at_once() {
    let tiliter = preset("tiliter");
    let request = request(&tiliter, &["product_recognition"], by_bytes()).await;
    assert_eq!(request.url.as_str(), "https://recognition.services.tiliter.com/recognition/");
    assert_eq!(request.headers["tiliter-api-key"], KEY);
    let sent = sent_json(&request);
    assert_eq!(sent["images"][0]["image"], "+//+AA==");
    assert_eq!(sent["include_scores"], true);
    assert_eq!(sent["score_threshold"], Value::Null);
    assert!(sent["images"][0]["capture_time"].as_str().unwrap().parse::<Timestamp>().is_ok());

    let models = ["product_recognition", "bag_recognition"];
    let verdict = judge(&tiliter, &reply(200, &[], sample!("tiliter_recognised")), &models);
    assert_eq!(
        labels(&verdict, models[0]),
        [("4011".to_owned(), Some(0.85)), ("4017".to_owned(), Some(0.12))]
    );
    assert_eq!(value(&verdict, models[1]), Some(json!({"present": true})));
    let verdict = judge(&tiliter, &reply(200, &[], sample!("tiliter_nothing")), &models);
    assert_eq!((verdict.class, labels(&verdict, models[0])), (Class::Ok, vec![]));
}

#[tokio::test]
async fn openai_takes_a_url_or_a_data_url_in_the_same_message() {
    let openai =
        load("openai", "endpoint = 'http://localhost:8000/v1'\noptions.prompt = 'say \"x\"\\n'").unwrap();
    for (image, expected) in
        [(by_url(), "https://x.example/1.jpg?a=1&b=2"), (by_bytes(), "data:image/jpeg;base64,+//+AA==")]
    {
        let request = request(&openai, &["a-vision-model"], image).await;
        assert_eq!(request.url.as_str(), "http://localhost:8000/v1/chat/completions");
        assert_eq!(request.headers["authorization"], "Bearer test-key-1234");
        let sent = sent_json(&request);
        assert_eq!((&sent["model"], &sent["max_completion_tokens"]), (&json!("a-vision-model"), &json!(300)));
        assert_eq!(sent["messages"][0]["content"][0]["text"], "say \"x\"\\n");
        assert_eq!(sent["messages"][0]["content"][1]["image_url"]["url"], expected);
    }
}

#[test]
fn openai_answers_refusals_limits_and_a_spent_budget_are_told_apart() {
    let openai = preset("openai");
    let judge = |status, headers: &[_], body| judge(&openai, &reply(status, headers, body), &["m"]);
    let ok = judge(200, &[], sample!("openai_answer"));
    assert_eq!(value(&ok, "m"), Some(json!("A bright kitchen.")));
    let refused = judge(200, &[], sample!("openai_refused"));
    assert_eq!(refused.class, Class::Rejected);
    assert!(refused.message.contains("I can't help with that."));
    let throttled = judge(429, &[("x-ratelimit-reset-requests", "1m2s")], sample!("openai_throttled"));
    assert_eq!(
        (throttled.class, throttled.hold_off),
        (Class::Throttled, Some(Pause { length: Duration::from_secs(62), said: true }))
    );
    assert_eq!(judge(429, &[], sample!("openai_no_budget")).class, Class::Unauthorized);
    let bad_key = judge(401, &[], sample!("openai_bad_key"));
    assert_eq!(bad_key.class, Class::Unauthorized);
    assert!(bad_key.message.contains("[redacted]") && !bad_key.message.contains(KEY), "{}", bad_key.message);
}

#[tokio::test]
async fn rapidocr_gets_a_file_and_gives_lines_of_text() {
    let rapidocr = preset("rapidocr");
    let request = request(&rapidocr, &["ocr"], by_bytes()).await;
    assert_eq!(request.url.as_str(), "http://127.0.0.1:9003/ocr");
    let body = String::from_utf8_lossy(&request.body);
    assert!(
        body.contains("name=\"image_file\"; filename=\"image.jpeg\"\r\nContent-Type: image/jpeg\r\n\r\n"),
        "{body}"
    );
    assert!(request.body.windows(4).any(|bytes| bytes == [0xfb, 0xff, 0xfe, 0x00]));
    for step in ["use_det", "use_cls", "use_rec"] {
        assert!(body.contains(&format!("name=\"{step}\"\r\n\r\ntrue\r\n")), "{body}");
    }

    let verdict = judge(&rapidocr, &reply(200, &[], sample!("rapidocr_text")), &["ocr"]);
    assert_eq!(value(&verdict, "ocr"), Some(json!("OPEN HOUSE\nSunday 2 pm")));
    assert_eq!(labels(&verdict, "ocr")[0], ("Sunday 2 pm".to_owned(), Some(0.99975)), "the surest first");
    let verdict = judge(&rapidocr, &reply(200, &[], sample!("rapidocr_nothing")), &["ocr"]);
    assert_eq!(
        (verdict.class, labels(&verdict, "ocr"), value(&verdict, "ocr")),
        (Class::Ok, vec![], Some(json!("")))
    );
    let lines: Vec<_> =
        (0..12).rev().map(|n| format!(r#""{n}":{{"rec_txt":"line {n}","score":0.9}}"#)).collect();
    let verdict = judge(&rapidocr, &reply(200, &[], format!("{{{}}}", lines.join(",")).as_bytes()), &["ocr"]);
    let lines: Vec<_> = (0..12).map(|n| format!("line {n}")).collect();
    assert_eq!(value(&verdict, "ocr"), Some(json!(lines.join("\n"))), "in the order of their numbers");
    let welcome = br#"{"message":"Welcome to RapidOCR API Server!"}"#;
    let verdict = judge(&rapidocr, &reply(200, &[], welcome), &["ocr"]);
    assert_eq!(verdict.class, Class::Ambiguous, "an answer to another question is none");
    let broken = judge(&rapidocr, &reply(500, &[], b"Internal Server Error"), &["ocr"]);
    assert_eq!(
        (broken.class, broken.message.as_str()),
        (Class::Rejected, "status 500: Internal Server Error"),
        "what the server can't decode fails again"
    );
}

#[tokio::test]
async fn the_generic_api_gets_its_models_as_an_array_and_may_answer_in_part() {
    let generic = preset("generic");
    let sent = sent_json(&request(&generic, &["rooms", "roms"], by_url()).await);
    assert_eq!(sent["models"], json!(["rooms", "roms"]));
    let verdict = judge(&generic, &reply(200, &[], sample!("generic_partial")), &["rooms", "roms"]);
    assert_eq!(verdict.class, Class::Ok);
    assert_eq!(labels(&verdict, "rooms"), [("kitchen".to_owned(), Some(0.93))]);
    assert_eq!(failed(&verdict, "roms").class, Class::Rejected);
}

#[test]
fn a_model_that_is_not_known_is_refused_with_the_one_that_was_meant() {
    let tiliter = preset("tiliter");
    assert!(tiliter.accepts("bag_recognition").is_ok());
    let why = tiliter.accepts("bag_recogniton").unwrap_err();
    assert!(why.contains("did you mean `bag_recognition`?"), "{why}");
    assert!(preset("restb").accepts("re_roomtype_global_v9").is_ok(), "new versions come often");
    assert!(preset("restb").accepts("roomtype").is_err());
}

#[test]
fn settings_over_a_preset_change_what_they_name_and_nothing_else() {
    let mine = load(
        "mine",
        "preset = 'restb'\nendpoint = 'https://api-eu.restb.ai'\ncost.price = 0.01\ncost.count = 'per_model'",
    )
    .unwrap();
    assert_eq!(mine.definition().endpoint, "https://api-eu.restb.ai");
    assert_eq!(mine.definition().auth.key_env.as_deref(), Some("RESTB_CLIENT_KEY"));
    assert!((mine.tariff().of_call(6) - 0.06).abs() < 1e-12);
    assert_eq!((mine.name(), mine.limits().name.as_str()), ("mine", "mine"));
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_its_line() {
    let wrong = r#"
endpoint = "ftp://api.example.com"
models_per_call = 0

[auth]
kind = "header"

[[request]]
image = ["bytes"]
json = '{"image": "${imgae}"}'

[answer]
labels = '.labels[] |'

[[errors]]
when = '.code == nonsense'
class = "throttled"

[[limits]]
name = "rate"
calls = 0

[http]
total_ms = 100
"#;
    let why = load("mine", wrong).unwrap_err();
    for expected in [
        "t.toml:2: endpoint: give an http or https URL",
        "t.toml:3: models_per_call: give 1 to 1000",
        "auth.name: missing",
        "t.toml:10: request[0].json: there is no placeholder `${imgae}`: did you mean `${image}`?",
        "t.toml:13: answer.labels: the jq expression is wrong at line 1, column 12: expected term",
        "t.toml:16: errors[0].when: the jq expression is wrong at line 1, column 10: undefined filter `nonsense`",
        "limits[0]: limit `rate` allows 0 calls",
        "t.toml:24: http.total_ms: give more than http.connect_ms",
    ] {
        assert!(why.contains(expected), "`{expected}` is not in:\n{why}");
    }
    assert_eq!(
        why.lines().count(),
        10,
        "one line a problem, and no problem that follows from another:\n{why}"
    );
}

/// `restb`, six models a call, under a second limit that counts models.
fn restb_under(limit: &str) -> Result<Provider, String> {
    load(
        "restb",
        &format!("[[limits]]\nname = 'other'\ncalls = 9\n[[limits]]\nname = 'rate'\nunit = 'model'\n{limit}"),
    )
}

#[test]
fn a_limit_that_no_call_could_pass_is_refused_at_its_line_with_what_would_do() {
    for (limit, way_out, mended) in [
        ("calls = 10", "give it burst = 6, as many as models_per_call, or models_per_call = 1", "burst = 6"),
        ("calls = 4", "give models_per_call = 4 and burst = 4", "burst = 4\nmodels_per_call = 4"),
        ("calls = 4\njudge = 'bucket'", "give it burst = 6", "burst = 6"),
        (
            "calls = 4\njudge = 'leaky'",
            "burst = 5, one less than models_per_call, or models_per_call = 2",
            "burst = 5",
        ),
    ] {
        let why = restb_under(limit).unwrap_err();
        let expected = "t.toml:4: limits[1]: limit `rate` counts models and gives";
        assert!(why.starts_with(expected) && why.contains(way_out), "{why}");
        assert_eq!(why.lines().count(), 1, "{why}");
        let (burst, models) = mended.split_once('\n').unwrap_or((mended, ""));
        let mended = format!("{models}\n[[limits]]\nname = 'rate'\nunit = 'model'\n{limit}\n{burst}");
        assert_eq!(load("restb", &mended).map(|_| ()), Ok(()), "the way out leads out");
    }
    let fewer =
        "models_per_call = 2\nlimits = [{ name = 'rate', calls = 4, unit = 'model', judge = 'leaky' }]";
    assert_eq!(load("restb", fewer).map(|_| ()), Ok(()));
}

#[test]
fn more_limits_than_a_stack_may_have_are_refused_before_any_call() {
    let limits =
        |n: usize| -> String { (0..n).map(|i| format!("[[limits]]\nname = 'l{i}'\ncalls = 1\n")).collect() };
    assert!(load("restb", &limits(16)).is_ok());
    let why = load("restb", &limits(17)).unwrap_err();
    assert!(why.contains("limits: it has 17 limits: give at most 16"), "{why}");
}

#[test]
fn a_proxy_with_a_password_is_refused_and_the_password_not_shown() {
    let why = load("restb", "http.proxy = 'http://me:hunter22@proxy.example:3128'").unwrap_err();
    assert!(
        why.contains("http.proxy: give an http or https URL without") && !why.contains("hunter22"),
        "{why}"
    );
    assert!(load("restb", "http.proxy = 'http://proxy.example:3128'").is_ok());
}

#[test]
fn a_missing_key_says_where_it_is_looked_for_and_an_unknown_preset_what_was_meant() {
    let source = Source { env: &|_| None, folder: Path::new(".") };
    let why = Provider::load("restb", &Document::empty("t.toml"), source).unwrap_err().to_string();
    assert!(why.contains("auth: the key is missing: set the environment variable RESTB_CLIENT_KEY"), "{why}");
    let why = load("x", "preset = 'retsb'").unwrap_err();
    assert!(why.contains("there is no preset `retsb`: did you mean `restb`?"), "{why}");
    assert!(
        load("x", "endpont = 'http://a'\npreset = 'generic'")
            .unwrap_err()
            .contains("did you mean `endpoint`?")
    );
}

#[tokio::test]
async fn a_role_that_makes_no_calls_needs_no_key_and_can_make_none() {
    let settings = Document::parse("s.toml", "[providers.restb]").unwrap();
    let restb =
        Arc::clone(Catalog::load_without_keys(&settings, Path::new(".")).unwrap().get("restb").unwrap());
    assert_eq!(restb.models_per_call(), 6);
    let job = job(Place::Url("https://x.example/1.jpg".into()), &["re_logo"]);
    let why = restb.requests(&job, &job.models, &by_url()).await.map(drop).unwrap_err();
    assert!(why.to_string().contains("without its key"), "{why}");
}

#[test]
fn a_bearer_key_may_be_missing_because_servers_of_your_own_need_none() {
    let source = Source { env: &|_| None, folder: Path::new(".") };
    assert!(Provider::load("openai", &Document::empty("t"), source).unwrap().accounts[0].key.is_none());
}

#[test]
fn a_description_in_a_file_is_found_beside_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let description = "endpoint = 'http://a.example'\n[[request]]\nimage = ['url']\nquery = { u = '${image}' }\n[answer]\nvalue = '.v'";
    std::fs::write(folder.path().join("mine.toml"), description).unwrap();
    let settings = Document::parse(
        "s.toml",
        "[providers.mine]\nfile = 'mine.toml'\n[providers.gone]\nfile = 'gone.toml'",
    )
    .unwrap();
    let source = Source { env: &with_key, folder: folder.path() };
    let why = Catalog::load(&settings, source).unwrap_err().to_string();
    assert!(why.starts_with("s.toml:4: providers.gone.file: ") && why.contains("gone.toml"), "{why}");
    let settings =
        Document::parse("s.toml", "[providers.mine]\nfile = 'mine.toml'\n[providers.restb]").unwrap();
    let catalog = Catalog::load(&settings, source).unwrap();
    assert_eq!(catalog.get("mine").unwrap().definition().endpoint, "http://a.example");
    assert_eq!(catalog.iter().count(), 2);
    assert!(catalog.get("restbb").unwrap_err().contains("did you mean `restb`?"));
}

#[tokio::test]
async fn names_that_hold_slashes_dots_and_marks_stay_inside_their_place() {
    let description = r#"
endpoint = "https://a.example/base/"
request = [{ image = ["url"], method = "GET", path = "/models/${model}/infer", query = { u = "${image}" } }]
answer.value = "."
"#;
    let provider = load("p", description).unwrap();
    let asked = request(&provider, &["a/../b?x#y z"], by_url()).await;
    assert_eq!(asked.url.path(), "/base/models/a%2F..%2Fb%3Fx%23y%20z/infer");
    assert!(format!("{asked:?}").starts_with("GET a.example/base/"));
}

#[tokio::test]
async fn a_request_shows_neither_its_key_nor_its_picture() {
    for name in preset_names() {
        let image = if name == "restb" { by_url() } else { by_bytes() };
        let provider = preset(name);
        let models = if name == "rapidocr" { ["ocr"] } else { ["m"] };
        let shown = format!("{:?} {provider:?}", request(&provider, &models, image).await);
        assert!(!shown.contains(KEY) && !shown.contains("base64"), "{shown}");
    }
}
