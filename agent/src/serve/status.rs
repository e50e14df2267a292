//! `/status` and `/metrics`: how the agent does, for people and for Prometheus.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_shared::exposition;

use super::App;
use crate::monitor::Monitor;
use crate::status;

/// `GET /status`: JSON, or lines for people where text is asked for.
pub(super) async fn status(State(app): State<App>, headers: HeaderMap) -> Response {
    // What is asked for it may wait for a disk, which no answer to anybody else shall.
    let Ok(status) = tokio::task::spawn_blocking(move || app.condition.status(&app.host)).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accept.is_some_and(|accept| accept.starts_with("text/plain")) {
        return status::text(&status).into_response();
    }
    Json(status).into_response()
}

/// `GET /metrics`: OpenMetrics for those who ask for it, else the text form before it.
pub(super) async fn metrics(State(app): State<App>, headers: HeaderMap) -> Response {
    let model = app.host.current().map(|model| model.installed());
    app.metrics.set_model(model.as_ref());
    app.metrics.set_predictions_remembered(app.host.feedback().remembered());
    app.metrics.set_application(&app.host.monitor().last_sent());
    let closed = [app.host.monitor(), app.host.beside_monitor()].map(Monitor::closed_total);
    app.metrics.set_windows_closed(closed.into_iter().fold(0, u64::saturating_add));
    match app.metrics.encode() {
        Ok(text) => {
            let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
            let (kind, text) = exposition::for_scraper(accept, text);
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
