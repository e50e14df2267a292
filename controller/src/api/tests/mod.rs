//! The API through its router, without a network.

mod alerts;
mod analysis;
mod collections;
mod content;
mod enrolment;
mod provisioned;
mod revocation;
mod rollouts;
mod surroundings;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use muster_shared::api::{AccessRole, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tower::ServiceExt as _;

use super::router;
use crate::config::Config;
use crate::testing::{TestApp, app_with};

/// A controller, and somebody with every token.
struct Client {
    test: TestApp,
    router: Router,
    admin: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// The body, when the status is this one.
    fn ok<T: DeserializeOwned>(&self, status: u16) -> T {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        self.json()
    }

    /// The detail of a problem of this status and kind.
    fn problem(&self, status: u16, kind: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        let problem: Problem = self.json();
        assert_eq!(problem.kind, format!("urn:muster:problem:{kind}"), "{}", problem.detail);
        assert_eq!(problem.status, status);
        problem.detail
    }
}

impl Client {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let test = app_with(change).await;
        let admin = test.token(AccessRole::Admin).await;
        Self { router: router(test.app.clone()), test, admin }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    fn request(&self, method: Method, path: &str) -> axum::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.admin))
            .header(header::CONTENT_TYPE, "application/json")
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    async fn raw(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        self.send(self.request(method, path).body(body.into()).unwrap()).await
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Answer {
        self.raw(Method::POST, path, serde_json::to_vec(body).unwrap()).await
    }

    /// Pushes the first root document.
    async fn trust(&self) {
        let answer = self.post("/api/v1/trust/root", &json!({ "root": self.test.root() })).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    }
}
