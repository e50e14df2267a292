//! `/status` and `/metrics`: how serving goes, for people and for Prometheus.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_shared::messages::{InstalledBundle, RequestCounts};
use serde::Serialize;

use super::App;
use crate::metrics;

#[derive(Serialize)]
struct Status {
    agent_version: &'static str,
    /// What answers requests.
    running: Option<InstalledBundle>,
    /// What it was asked since it took over.
    requests: RequestCounts,
    workers: Use,
    queue: Use,
}

#[derive(Serialize)]
struct Use {
    used: usize,
    limit: usize,
}

/// `GET /status`.
pub(super) async fn status(State(app): State<App>) -> Response {
    let (limits, load) = (app.host.limits(), app.host.load());
    Json(Status {
        agent_version: env!("CARGO_PKG_VERSION"),
        running: app.host.current().map(|model| model.installed()),
        requests: app.host.counts(),
        workers: Use { used: load.running, limit: limits.max_concurrency },
        queue: Use { used: load.waiting, limit: limits.max_queue },
    })
    .into_response()
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    let model = app.host.current().map(|model| model.installed());
    app.metrics.set_model(model.as_ref());
    app.metrics.set_predictions_remembered(app.host.feedback().remembered());
    app.metrics.set_windows_closed(app.host.monitor().closed_total());
    match app.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
