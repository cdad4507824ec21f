//! A sandbox on a free port, and a client that talks plain HTTP to it.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test helper that fails is a test that fails")]

use std::sync::Once;

use pixfleet_sandbox::{Running, Sandbox, Settings};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;

/// The smallest JPEG that names itself one: its first bytes are all that the sandbox looks at.
pub(crate) const JPEG: [u8; 12] = [0xff, 0xd8, 0xff, 0xe0, 0, 16, b'J', b'F', b'I', b'F', 0, 1];
pub(crate) const IMAGE: &str = "https://images.example/house/1.jpg?size=large&v=2";
pub(crate) const ROOM: &str = "re_roomtype_global_v2";

pub(crate) async fn sandbox(settings: Settings) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Sandbox::start(listener, settings).unwrap()
}

pub(crate) fn client() -> Client {
    static TLS: Once = Once::new();
    TLS.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    Client::builder().no_proxy().retry(reqwest::retry::never()).build().unwrap()
}

/// One Restb call for a room type.
pub(crate) fn predict(client: &Client, sandbox: &Running, image: &str) -> RequestBuilder {
    let query = [("client_key", "k"), ("model_id", ROOM), ("image_url", image)];
    client.get(format!("{}/vision/v2/predict", sandbox.url())).query(&query)
}

pub(crate) async fn json(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}")))
}

pub(crate) fn post(client: &Client, url: String, body: &Value) -> RequestBuilder {
    client.post(url).header("content-type", "application/json").body(body.to_string())
}
