//! Each contract over real HTTP: what the vendors' clients send, and what they read.

mod client;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use client::{IMAGE, JPEG, ROOM, client, json, post, predict, sandbox};
use pixfleet_sandbox::answer::{TILITER_MODEL, label_for, labels_for, score_for};
use pixfleet_sandbox::{Judging, Rule, Settings};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const SIX: &str = "re_roomtype_global_v2,re_exterior_styles,re_features_v4,re_logo,re_compliance_v2,re_condition_r1r6_global";

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lets nothing pass a second time.
fn once() -> Settings {
    let judging = Judging { rule: Rule::Sliding, limit: 1, window_ms: 86_400_000, count_refused: false };
    Settings { judging, ..Settings::default() }
}

#[tokio::test]
async fn restb_predict_answers_where_its_clients_read() {
    let sandbox = sandbox(Settings::default()).await;
    let (status, body) = json(predict(&client(), &sandbox, IMAGE)).await;
    assert_eq!(status, 200);
    assert_eq!(body["error"], "false", "the text, not the boolean");
    let top = &body["response"]["solutions"][ROOM]["top_prediction"];
    assert_eq!(top["label"], label_for(IMAGE, ROOM));
    assert_eq!(top["confidence"], score_for(IMAGE, ROOM));
    assert_eq!(&body["response"]["solutions"][ROOM]["predictions"][0], top);
    for field in ["time", "correlation_id", "version"] {
        assert!(body[field].is_string(), "{field} is missing in {body}");
    }
}

#[tokio::test]
async fn restb_multipredict_answers_each_model_in_its_own_shape() {
    let sandbox = sandbox(Settings::default()).await;
    let query = [("client_key", "k"), ("model_id", SIX), ("image_url", IMAGE)];
    let (status, body) =
        json(client().get(format!("{}/vision/v2/multipredict", sandbox.url())).query(&query)).await;
    assert_eq!(status, 200);
    let solutions = &body["response"]["solutions"];
    assert_eq!(solutions.as_object().unwrap().len(), 6);
    assert_eq!(
        solutions["re_exterior_styles"]["top_prediction"]["label"],
        label_for(IMAGE, "re_exterior_styles")
    );
    assert_eq!(solutions["re_condition_r1r6_global"]["score"], score_for(IMAGE, "re_condition_r1r6_global"));
    for model in ["re_features_v4", "re_logo", "re_compliance_v2"] {
        let detections = solutions[model]["detections"].as_array().unwrap();
        let seen: Vec<_> = detections.iter().map(|seen| seen["label"].as_str().unwrap()).collect();
        assert_eq!(seen, labels_for(IMAGE, model), "{model}");
    }
    assert!(solutions["re_logo"]["detections"][0]["bounding_box"]["top_left_x"].is_number());
}

#[tokio::test]
async fn restb_takes_an_upload_with_the_key_in_the_query_or_in_the_form() {
    let sandbox = sandbox(Settings::default()).await;
    let upload = URL_SAFE.encode(JPEG);
    let url = format!("{}/vision/v2/multipredict", sandbox.url());
    let with_query =
        client().post(format!("{url}?client_key=k")).form(&[("model_id", ROOM), ("image_base64", &upload)]);
    let with_form =
        client().post(&url).form(&[("client_key", "k"), ("model_id", ROOM), ("image_base64", &upload)]);
    for request in [with_query, with_form] {
        let (status, body) = json(request).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(
            body["response"]["solutions"][ROOM]["top_prediction"]["label"],
            label_for(&sha256(&JPEG), ROOM)
        );
    }
}

#[tokio::test]
async fn restb_says_what_is_wrong_with_a_call() {
    let settings = Settings { keys: vec!["good".into()], max_body_bytes: 2_000, ..Settings::default() };
    let sandbox = sandbox(settings).await;
    let url = format!("{}/vision/v2/predict", sandbox.url());
    let get = |key: &str, model: &str, image: &str| {
        client().get(&url).query(&[("client_key", key), ("model_id", model), ("image_url", image)])
    };
    let upload = |data: String| {
        client()
            .post(format!("{url}?client_key=good"))
            .form(&[("model_id", ROOM.to_owned()), ("image_base64", data)])
    };
    // 0xfb 0xff needs the letters in which the two alphabets differ.
    let wrong_alphabet = STANDARD.encode([&JPEG[..], &[0xfb, 0xff, 0xfe, 0xfb, 0xff, 0xfe]].concat());
    assert!(wrong_alphabet.contains(['+', '/']));
    let cases = [
        (get("bad", ROOM, IMAGE), 401, "001"),
        (get("", ROOM, IMAGE), 401, "001"),
        (get("good", "re_nothing", IMAGE), 404, "002"),
        (get("good", ROOM, ""), 400, "003"),
        (get("good", ROOM, "not a url"), 400, "004"),
        (get("good", ROOM, "ftp://images.example/1.jpg"), 400, "004"),
        (get("good", ROOM, "https://images.example/broken-7.jpg"), 400, "004"),
        (upload("!!!".into()), 400, "004"),
        (upload(URL_SAFE.encode("plain text")), 400, "004"),
        (upload(wrong_alphabet), 400, "004"),
        (upload("A".repeat(3_000)), 413, "004"),
        (get("good", "", IMAGE), 400, "006"),
        (get("good", "re_logo,re_features_v4", IMAGE), 400, "006"),
    ];
    let count = cases.len() as u64;
    for (i, (request, expected, error_id)) in cases.into_iter().enumerate() {
        let (status, body) = json(request).await;
        assert_eq!(
            (status.as_u16(), body["error_id"].as_str()),
            (expected, Some(error_id)),
            "case {i}: {body}"
        );
        assert_eq!(body["error"], "true");
        assert!(body["message"].is_string());
    }
    assert_eq!(sandbox.bill().total.rejected, count);
    assert_eq!(sandbox.bill().total.charged, 0);
}

#[tokio::test]
async fn restb_over_the_rate_is_005_under_whatever_status_was_ordered() {
    for throttle_status in [429, 200, 403] {
        let sandbox = sandbox(Settings { throttle_status, ..once() }).await;
        assert_eq!(json(predict(&client(), &sandbox, IMAGE)).await.0, 200);
        let (status, body) = json(predict(&client(), &sandbox, IMAGE)).await;
        assert_eq!(
            (status.as_u16(), &body["error"], &body["error_id"]),
            (throttle_status, &json!("true"), &json!("005"))
        );
        assert_eq!(body["message"], "API rate limit exceeded");
    }
}

#[tokio::test]
async fn tiliter_recognises_and_its_catalogue_names_the_product() {
    let sandbox = sandbox(Settings { keys: vec!["t".into()], ..Settings::default() }).await;
    let request = json!({
        "device_id": "demo",
        "images": [{ "image": STANDARD.encode(JPEG), "camera_type": "generic", "capture_time": "2026-11-22T10:00:00" }],
        "include_scores": true,
        "score_threshold": null,
    });
    let send = |path: &str, body: &Value| post(&client(), format!("{}{path}", sandbox.url()), body);
    let image = sha256(&JPEG);
    let mut product_id = Value::Null;
    for path in ["/recognition/", "/v1/15/recognition/"] {
        let (status, body) = json(send(path, &request).header("tiliter-api-key", "t")).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["product_recognition"]["result_type"], "recognised");
        let option = &body["product_recognition"]["options"][0];
        assert_eq!(option["product_id"], label_for(&image, TILITER_MODEL));
        assert_eq!(option["score"], score_for(&image, TILITER_MODEL));
        assert!(body["bag_recognition"]["present"].is_boolean());
        product_id = option["product_id"].clone();
    }
    let catalogue = client().get(format!("{}/products/", sandbox.url()));
    let (_, products) = json(catalogue.header("tiliter-api-key", "t")).await;
    let named =
        products["products"].as_array().unwrap().iter().find(|p| p["product_id"] == product_id).unwrap();
    assert!(named["product_name"].is_string());

    let mut unsure = request.clone();
    unsure["score_threshold"] = json!(1.0);
    let (_, body) = json(send("/recognition/", &unsure).header("tiliter-api-key", "t")).await;
    assert_eq!(body["product_recognition"]["options"], json!([]));
    assert_eq!(body["product_recognition"]["result_type"], "unrecognised");

    assert_eq!(json(send("/recognition/", &request)).await.0, 401);
    assert_eq!(json(client().get(format!("{}/products/", sandbox.url()))).await.0, 401);
    let empty = json!({ "device_id": "demo", "images": [] });
    assert_eq!(json(send("/recognition/", &empty).header("tiliter-api-key", "t")).await.0, 400);
}

#[tokio::test]
async fn analyze_answers_each_known_model_and_names_the_unknown() {
    let sandbox = sandbox(Settings::default()).await;
    let send = |body: &Value| post(&client(), format!("{}/v1/analyze", sandbox.url()), body).bearer_auth("k");
    let (status, body) = json(send(&json!({ "image_url": IMAGE, "models": ["a", "unknown_b", "c"] }))).await;
    assert_eq!(status, 200);
    for model in ["a", "c"] {
        let said = json!({ "label": label_for(IMAGE, model), "score": score_for(IMAGE, model) });
        assert_eq!(body["results"][model], said);
    }
    assert_eq!(body["errors"]["unknown_b"]["code"], "unknown_model");
    assert!(body["results"].get("unknown_b").is_none());

    let (_, body) = json(send(&json!({ "image_base64": STANDARD.encode(JPEG), "models": ["a"] }))).await;
    assert_eq!(body["results"]["a"]["label"], label_for(&sha256(&JPEG), "a"));
    assert!(body.get("errors").is_none());

    for (request, status, code) in [
        (json!({ "image_url": IMAGE, "models": ["unknown"] }), 404, "unknown_model"),
        (json!({ "image_url": IMAGE, "models": [] }), 400, "malformed"),
        (json!({ "models": ["a"] }), 400, "missing_image"),
        (json!([1, 2]), 400, "malformed"),
    ] {
        let (got, body) = json(send(&request)).await;
        assert_eq!((got.as_u16(), body["error"]["code"].as_str()), (status, Some(code)), "{request}");
    }
    let no_key = post(
        &client(),
        format!("{}/v1/analyze", sandbox.url()),
        &json!({ "image_url": IMAGE, "models": ["a"] }),
    );
    assert_eq!(json(no_key).await.0, 401);
}

#[tokio::test]
async fn chat_answers_with_the_label_of_the_last_image() {
    let sandbox = sandbox(once()).await;
    let url = format!("{}/v1/chat/completions", sandbox.url());
    let data = format!("data:image/jpeg;base64,{}", STANDARD.encode(JPEG));
    let ask = |image: &str| {
        json!({ "model": "gpt-vision", "messages": [{ "role": "user", "content": [
            { "type": "text", "text": "What is this?" },
            { "type": "image_url", "image_url": { "url": image } },
        ]}]})
    };
    let text =
        |body: &Value| body["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();

    let (status, body) = json(post(&client(), url.clone(), &ask(IMAGE)).bearer_auth("1")).await;
    assert_eq!((status.as_u16(), &body["object"]), (200, &json!("chat.completion")));
    assert_eq!(text(&body), label_for(IMAGE, "gpt-vision"));
    let (_, body) = json(post(&client(), url.clone(), &ask(&data)).bearer_auth("2")).await;
    assert_eq!(text(&body), label_for(&sha256(&JPEG), "gpt-vision"));
    let mut structured = ask(IMAGE);
    structured["response_format"] = json!({ "type": "json_object" });
    let (_, body) = json(post(&client(), url.clone(), &structured).bearer_auth("3")).await;
    let said: Value = serde_json::from_str(&text(&body)).unwrap();
    assert_eq!(said["score"], score_for(IMAGE, "gpt-vision"));

    let (status, body) = json(post(&client(), url.clone(), &ask(IMAGE)).bearer_auth("1")).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    let (status, body) = json(post(&client(), url, &ask(IMAGE))).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (401, &json!("invalid_api_key")));
}

#[tokio::test]
async fn what_is_not_a_call_costs_nothing() {
    let sandbox = sandbox(once()).await;
    let get = |path: &str| client().get(format!("{}{path}", sandbox.url()));
    assert_eq!(json(get("/sandbox/health")).await.1, json!({ "status": "ok" }));
    let picture = get("/sandbox/images/house-1.jpg?width=40&height=30").send().await.unwrap();
    assert_eq!(picture.headers()["content-type"], "image/jpeg");
    let drawn = image::load_from_memory(&picture.bytes().await.unwrap()).unwrap();
    assert_eq!((drawn.width(), drawn.height()), (40, 30));
    assert_eq!(json(get("/sandbox/images/house-1.txt")).await.0, 404);
    assert_eq!(json(get("/nowhere")).await.0, 404);
    assert_eq!(json(get("/v1/analyze")).await.0, 405);
    let bill = sandbox.bill();
    assert_eq!((bill.total.calls, bill.images_served), (0, 1));
    assert!(sandbox.access().await.is_empty());
}

#[test]
fn the_answers_in_the_documentation_are_the_real_ones() {
    let page = include_str!("../../docs/sandbox.md");
    let image = "https://images.example/1.jpg";
    for model in [ROOM, "mood"] {
        for said in [label_for(image, model), score_for(image, model).to_string()] {
            assert!(page.contains(&said), "docs/sandbox.md does not show {model}'s {said}");
        }
    }
}
