//! Whether the controller lives, whether it can work, and its numbers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::clock;
use crate::executor;
use crate::metrics::Snapshot;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()), responses((status = 200, description = "It lives")))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The store takes writes and the broker listens.
#[utoipa::path(
    get, path = "/readyz", tag = "health", security(()),
    responses((status = 200, description = "It can work"), (status = 503, description = "It cannot, and why")),
)]
pub(super) async fn readyz(State(app): State<Arc<App>>) -> ApiResult<&'static str> {
    match app.readiness.check(&app.records, clock::now_ms()).await {
        Ok(()) => Ok("ready\n"),
        Err(why) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", why.to_string())),
    }
}

/// Numbers for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "health", security(()),
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text")),
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> ApiResult<Response> {
    let counts = app.fleet.counts();
    let snapshot = Snapshot {
        devices_known: counts.known,
        devices_online: app.broker.connected(),
        rollouts: executor::statuses(&app).await.map_err(|error| ApiError::internal(&error))?,
    };
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    Ok((kind, app.metrics.render(&snapshot)).into_response())
}
