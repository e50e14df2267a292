//! `/status` and `/metrics`: how serving goes, for people and for Prometheus.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_shared::exposition;
use muster_shared::messages::{InstalledBundle, RequestCounts};
use muster_shared::trust::Stage;
use serde::Serialize;

use super::App;
use crate::monitor::Monitor;

#[derive(Serialize)]
struct Status {
    agent_version: &'static str,
    /// What answers requests.
    running: Option<InstalledBundle>,
    /// What it was asked since it took over.
    requests: RequestCounts,
    /// What runs beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    beside: Option<BesideStatus>,
    workers: Use,
    queue: Use,
}

#[derive(Serialize)]
struct BesideStatus {
    bundle: InstalledBundle,
    stage: Stage,
    /// What it was asked since it began.
    requests: RequestCounts,
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
        beside: app.host.beside().map(|beside| BesideStatus {
            bundle: beside.active().served.installed(),
            stage: beside.stage().clone(),
            requests: app.host.beside_monitor().counts_since_watch(),
        }),
        workers: Use { used: load.running, limit: limits.max_concurrency },
        queue: Use { used: load.waiting, limit: limits.max_queue },
    })
    .into_response()
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
