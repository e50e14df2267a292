//! `POST .../feedback`: the truth about inferences that were answered.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use muster_shared::feedback::{FeedbackAnswer, FeedbackItem};
use muster_shared::limits::{MAX_FEEDBACK_BYTES, MAX_FEEDBACK_ITEMS};
use serde_json::Value;

use super::error::ApiError;
use super::{App, Target};

/// Joins labels with their predictions and says what came of each. A model that is not served any more may be named as long as
/// something of it is remembered.
pub(super) async fn feedback(
    State(app): State<App>,
    target: Result<Path<Target>, PathRejection>,
    request: Request<Body>,
) -> Response {
    let answered = match target {
        Ok(Path(target)) => answer(&app, target, request).await,
        Err(error) => Err(error.into()),
    };
    answered.map(Json).into_response()
}

async fn answer(app: &App, target: Target, request: Request<Body>) -> Result<FeedbackAnswer, ApiError> {
    let (parts, body) = request.into_parts();
    let body = app.bodies.read(&parts.headers, body).await?;
    if !app.host.feedback().knows(&target.model) {
        target.find(app)?;
    }
    if body.bytes.len() > MAX_FEEDBACK_BYTES {
        return Err(ApiError::TooLarge { limit_bytes: MAX_FEEDBACK_BYTES });
    }
    let app = app.clone();
    // A thousand labels take a while, in which others want to be answered.
    let joined = tokio::task::spawn_blocking(move || {
        let items = parse(&body.bytes)?;
        let labels = app.host.active().and_then(|active| active.labels.clone());
        Ok(app.host.feedback().join(&items, Some(&target.model), labels.as_ref()))
    });
    joined.await.unwrap_or(Err(ApiError::Panicked))
}

/// One item, a list of them, or a list under `feedback`.
fn parse(body: &[u8]) -> Result<Vec<FeedbackItem>, ApiError> {
    let mut value: Value = serde_json::from_slice(body).map_err(ApiError::Feedback)?;
    let list = match &mut value {
        Value::Object(members) => members.remove("feedback"),
        Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    };
    let value = list.unwrap_or(value);
    let items = if value.is_array() {
        serde_json::from_value(value)
    } else {
        serde_json::from_value(value).map(|item| vec![item])
    };
    let items: Vec<FeedbackItem> = items.map_err(ApiError::Feedback)?;
    if items.len() > MAX_FEEDBACK_ITEMS {
        return Err(ApiError::TooManyLabels { limit: MAX_FEEDBACK_ITEMS });
    }
    Ok(items)
}
