//! Labels for devices that are known at the centre only.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::api::{Page, Problem};
use muster_shared::feedback::{DeviceFeedback, PushFeedback, PushedFeedback};
use muster_shared::ids::DeviceId;
use muster_shared::limits::MAX_PUSHED_FEEDBACK;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Json, Operator, Parameters, Viewer};
use super::paging::{page, page_size};
use crate::feedback::{self, FeedbackError};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

/// Which devices to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListFeedback {
    /// Devices a page has at most.
    limit: Option<usize>,
    /// Where the page starts: `next_cursor` of the one before.
    #[param(value_type = Option<String>)]
    cursor: Option<DeviceId>,
}

/// Takes labels and sends each to the device that made the prediction.
#[utoipa::path(
    post, path = "/api/v1/feedback", tag = "quality", request_body = PushFeedback,
    responses(
        (status = 200, description = "What was taken and what was refused", body = PushedFeedback),
        (status = 400, description = "A label names no device, or there are too many", body = Problem),
        (status = 503, description = "Too many labels wait to be delivered", body = Problem),
    ),
)]
pub(super) async fn push(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Json(wish): Json<PushFeedback>,
) -> ApiResult<axum::Json<PushedFeedback>> {
    if wish.feedback.len() > MAX_PUSHED_FEEDBACK {
        let detail =
            format!("{} labels are more than the {MAX_PUSHED_FEEDBACK} one request may hold", wish.feedback.len());
        return Err(ApiError::invalid("too-many-labels", detail));
    }
    let pushed = feedback::push(&app, wish.feedback, wish.selector.as_ref(), &caller.name).await;
    pushed.map(axum::Json).map_err(|error| match error {
        FeedbackError::NoDevice(_) => ApiError::invalid("missing-device", error.to_string()),
        FeedbackError::TooLong(_) => ApiError::invalid("label-too-long", error.to_string()),
        FeedbackError::Full { .. } => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "feedback-full", error.to_string())
        }
        FeedbackError::Store(error) => error.into(),
    })
}

/// Lists devices for which labels wait, or that have taken some, in order of their names.
#[utoipa::path(
    get, path = "/api/v1/feedback", tag = "quality", params(ListFeedback),
    responses((status = 200, description = "What waits, and what came of the rest", body = Page<DeviceFeedback>)),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<ListFeedback>,
) -> ApiResult<axum::Json<Page<DeviceFeedback>>> {
    let size = page_size(wish.limit);
    let found = feedback::standing(&app, wish.cursor.as_ref(), size + 1).await?;
    Ok(axum::Json(page(found, size, |device| device.device.to_string())))
}
