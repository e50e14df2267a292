//! Freezes of the fleet: made, listed, lifted.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::api::{ActionReason, Page, Problem};
use muster_shared::rollout::{CreateFreeze, Freeze};

use super::extract::{Json, Operator, OptionalJson, Segments, Viewer, reason_of};
use crate::executor;
use crate::problem::ApiResult;
use crate::state::App;

/// Makes a freeze: from its beginning to its end no rollout tells a further device that it covers to go forward.
#[utoipa::path(
    post, path = "/api/v1/freezes", tag = "rollouts", request_body = CreateFreeze,
    responses(
        (status = 201, description = "The freeze", body = Freeze),
        (status = 400, description = "The wish makes no sense", body = Problem),
    ),
)]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Json(wish): Json<CreateFreeze>,
) -> ApiResult<(StatusCode, axum::Json<Freeze>)> {
    Ok((StatusCode::CREATED, axum::Json(executor::freeze(&app, wish, &caller.name).await?)))
}

/// Lists the freezes that are in force or to come.
#[utoipa::path(
    get, path = "/api/v1/freezes", tag = "rollouts",
    responses((status = 200, description = "All of them, the first to end first", body = Page<Freeze>)),
)]
pub(super) async fn list(State(app): State<Arc<App>>, _caller: Viewer) -> ApiResult<axum::Json<Page<Freeze>>> {
    Ok(axum::Json(Page { items: executor::freezes(&app).await?, next_cursor: None }))
}

/// Ends a freeze before its time.
#[utoipa::path(
    post, path = "/api/v1/freezes/{id}/lift", tag = "rollouts", request_body = Option<ActionReason>,
    params(("id" = String, Path, description = "What it is called")),
    responses(
        (status = 200, description = "The freeze that was lifted", body = Freeze),
        (status = 404, description = "There is no such freeze", body = Problem),
    ),
)]
pub(super) async fn lift(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(id): Segments<String>,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<Freeze>> {
    Ok(axum::Json(executor::lift_freeze(&app, &id, &caller.name, reason_of(&why)?).await?))
}
