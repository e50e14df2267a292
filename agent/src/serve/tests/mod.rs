//! The endpoint as a client sees it: through the router, and over real sockets.

mod beside;
mod metrics;
mod protocol;
mod quality;
mod refusals;
mod sockets;
mod switching;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::condition::Condition;
use crate::feedback::Feedback;
use crate::host::{HostLimits, ModelHost, ServedModel};
use crate::metrics::Metrics;
use crate::monitor::Monitor;

/// Largest body in these tests, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// No window of these tests ends by itself.
const WINDOW_MS: u64 = 1 << 50;

/// An endpoint without sockets.
struct Endpoint {
    host: ModelHost,
    router: Router,
}

/// An answer, read whole.
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Endpoint {
    fn new(max_concurrency: usize, max_queue: usize) -> Self {
        let monitor = Monitor::new(WINDOW_MS);
        let feedback = Feedback::for_tests();
        let host = ModelHost::new(HostLimits { max_concurrency, max_queue }, monitor, feedback);
        let router = super::router(host.clone(), Metrics::new(), Condition::default(), MAX_BODY_BYTES);
        Self { host, router }
    }

    fn serving(model: ServedModel) -> Self {
        let endpoint = Self::new(2, 8);
        endpoint.host.activate(model, 1);
        endpoint
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Reply { status: parts.status, headers: parts.headers, body: to_bytes(body, usize::MAX).await.unwrap() }
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(request(Method::GET, path, Body::empty())).await
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Reply {
        self.send(request(Method::POST, path, body.into())).await
    }

    async fn infer(&self, model: &str, body: &Value) -> Reply {
        self.post(&format!("/v2/models/{model}/infer"), body.to_string()).await
    }

    /// Sends JSON with binary data behind it.
    async fn infer_binary(&self, model: &str, head: &Value, binary: &[u8]) -> Reply {
        let head = head.to_string();
        let mut request =
            request(Method::POST, &format!("/v2/models/{model}/infer"), Body::from([head.as_bytes(), binary].concat()));
        let length = head.len().to_string().parse().unwrap();
        request.headers_mut().insert("Inference-Header-Content-Length", length);
        self.send(request).await
    }
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The JSON and the binary data behind it.
    fn parts(&self) -> (Value, &[u8]) {
        let length = self.headers["Inference-Header-Content-Length"].to_str().unwrap().parse().unwrap();
        assert_eq!(self.headers["content-type"], "application/octet-stream");
        (serde_json::from_slice(&self.body[..length]).unwrap(), &self.body[length..])
    }

    /// Checks that this is a refusal with `status` whose reason contains `reason`.
    #[track_caller]
    fn refused(&self, status: u16, reason: &str) {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        assert_eq!(self.headers["content-type"], "application/json");
        let body = self.json();
        let error = body["error"].as_str().unwrap_or_else(|| panic!("no error in {body}"));
        assert!(error.contains(reason), "{error:?} does not contain {reason:?}");
        assert_eq!(matches!(status, 429 | 503), self.headers.contains_key("retry-after"));
    }
}

fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(path).body(body).unwrap()
}

fn image_input(rows: &[&[f32]]) -> Value {
    json!({"name": "image", "shape": [rows.len(), 64], "datatype": "FP32", "data": rows})
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn numbers(data: &Value) -> Vec<f32> {
    serde_json::from_value(data.clone()).unwrap()
}

/// The position of the greatest.
fn best(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap()
}
