//! `POST .../metrics`: numbers that an application sends, for rollouts to watch.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use muster_shared::ids::MetricName;
use muster_shared::limits::MAX_METRICS_BYTES;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::{App, Target};
use crate::time;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    metrics: BTreeMap<MetricName, f64>,
}

#[derive(Serialize)]
struct Counted {
    /// Numbers that were taken.
    counted: usize,
}

/// Counts numbers in the window of the model that serves: all of them, or none.
pub(super) async fn sent(
    State(app): State<App>,
    target: Result<Path<Target>, PathRejection>,
    request: Request<Body>,
) -> Response {
    let answered = match target {
        Ok(Path(target)) => answer(&app, &target, request).await,
        Err(error) => Err(error.into()),
    };
    answered.map(Json).into_response()
}

async fn answer(app: &App, target: &Target, request: Request<Body>) -> Result<Counted, ApiError> {
    let (parts, body) = request.into_parts();
    let body = app.bodies.read(&parts.headers, body).await?;
    let active = target.find(app)?;
    if body.bytes.len() > MAX_METRICS_BYTES {
        return Err(ApiError::TooLarge { limit_bytes: MAX_METRICS_BYTES });
    }
    let sent: Sent = serde_json::from_slice(&body.bytes).map_err(ApiError::Metrics)?;
    active.monitor.sent(&active.watch, time::wall_ms(), &sent.metrics)?;
    Ok(Counted { counted: sent.metrics.len() })
}
