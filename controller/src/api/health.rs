//! Whether the controller lives, whether it can work, and its numbers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_shared::exposition;

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

/// Numbers for Prometheus: OpenMetrics for those who ask for it, else the text form before it.
#[utoipa::path(
    get, path = "/metrics", tag = "health", security(()),
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text")),
)]
pub(super) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> ApiResult<Response> {
    let counts = app.fleet.counts();
    let snapshot = Snapshot {
        devices_known: counts.known,
        devices_online: app.broker.connected(),
        rollouts: executor::statuses(&app).await.map_err(|error| ApiError::internal(&error))?,
        alerts: app.alerts.counts().await,
        alerts_queued: app.alerts.queued(),
        last_round: app.alerts.last_round().await,
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let (kind, text) = exposition::for_scraper(accept, app.metrics.render(&snapshot));
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
