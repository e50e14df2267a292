//! Rollouts: asked for, shown, and steered.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use muster_rollout::OperatorAction;
use muster_shared::api::{AccessRole, ActionReason, CreateRollout, Page, Problem, RollbackOrder};
use muster_shared::ids::RolloutId;
use muster_shared::rollout::{FleetStopView, RolloutEvidence, RolloutPreview, RolloutSpec, RolloutView};
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Approver, Json, Operator, OptionalJson, Parameters, Segments, Viewer, ViewerByName, reason_of};
use super::paging::{page, page_size};
use crate::analysis::TemplatesError;
use crate::auth::Caller;
use crate::executor::{self, ExecutorError};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

const MAX_KEY_BYTES: usize = 128;

impl From<ExecutorError> for ApiError {
    fn from(error: ExecutorError) -> Self {
        match error {
            ExecutorError::UnknownRollout(_) => Self::unknown("unknown-rollout", error),
            ExecutorError::UnknownBundle(_) => Self::unacceptable("unknown-bundle", error),
            ExecutorError::Untrusted { .. } => Self::unacceptable("untrusted-bundle", error),
            ExecutorError::Root(error) => error.into(),
            ExecutorError::Spec(_) => Self::invalid("invalid-rollout", error),
            ExecutorError::Analysis(TemplatesError::Unknown(_)) => {
                Self::unacceptable("unknown-analysis-template", error)
            }
            ExecutorError::Analysis(error) => error.into(),
            ExecutorError::Action(_) => Self::conflict("not-in-this-state", error),
            ExecutorError::UnknownFreeze(_) => Self::unknown("unknown-freeze", error),
            ExecutorError::Freeze(_) => Self::invalid("invalid-freeze", error),
            ExecutorError::Conflict(_) => Self::conflict("rollouts-in-conflict", error),
            ExecutorError::Approval(refusal) if refusal.is_about_the_person() => {
                Self::new(StatusCode::FORBIDDEN, "not-an-approver", refusal.to_string())
            }
            ExecutorError::Approval(_) => Self::conflict("not-in-this-state", error),
            ExecutorError::Rollback(_) => Self::conflict("not-in-this-state", error),
            ExecutorError::Stopped(_) => Self::conflict("fleet-stopped", error),
            ExecutorError::NotStopped => Self::conflict("fleet-not-stopped", error),
            ExecutorError::KeyReused(_) => Self::unacceptable("idempotency-key-reused", error),
            ExecutorError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string()),
            ExecutorError::Store(error) => error.into(),
        }
    }
}

/// Which rollouts to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListRollouts {
    /// Rollouts a page has at most.
    limit: Option<usize>,
    /// Where the page starts: `next_cursor` of the one before.
    #[param(value_type = Option<String>)]
    cursor: Option<RolloutId>,
}

/// Creates a rollout, which starts at once, or as soon as enough people have approved it.
#[utoipa::path(
    post, path = "/api/v1/rollouts", tag = "rollouts", request_body = RolloutSpec,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and wish again give the same rollout")),
    responses(
        (status = 201, description = "The rollout", body = RolloutView),
        (status = 400, description = "The wish is not valid", body = Problem),
        (status = 403, description = "The caller may not make it", body = Problem),
        (status = 409, description = "The fleet is stopped, or other rollouts want its devices", body = Problem),
        (status = 422, description = "There is no such bundle, it is not trusted any more, or the key was used for another wish", body = Problem),
    ),
)]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    headers: HeaderMap,
    Json(spec): Json<CreateRollout>,
) -> ApiResult<(StatusCode, axum::Json<RolloutView>)> {
    if spec.emergency && app.config.rollout.approvals_needed > 0 && caller.role < AccessRole::Approver {
        // It waits for no approval, so it must not be a way around those who are to approve.
        let detail = "an emergency waits for no approval: where the controller demands approvals, the role approver is needed for it";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    let key = idempotency_key(&headers)?;
    let view = executor::create(&app, spec, &caller.name, key).await?;
    Ok((StatusCode::CREATED, axum::Json(view)))
}

/// Shows what a rollout would do: the devices of every wave, and who would be compared with whom. Nothing is stored.
#[utoipa::path(
    post, path = "/api/v1/rollouts/preview", tag = "rollouts", request_body = RolloutSpec,
    responses(
        (status = 200, description = "What it would do, as things are", body = RolloutPreview),
        (status = 400, description = "The wish is not valid", body = Problem),
        (status = 422, description = "There is no such bundle, or it is not trusted any more", body = Problem),
    ),
)]
pub(super) async fn preview(
    State(app): State<Arc<App>>,
    ViewerByName(caller): ViewerByName,
    Json(spec): Json<CreateRollout>,
) -> ApiResult<axum::Json<RolloutPreview>> {
    Ok(axum::Json(executor::preview(&app, spec, &caller.name).await?))
}

fn idempotency_key(headers: &HeaderMap) -> ApiResult<Option<&str>> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = value.to_str().ok().map(str::trim);
    match key.filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic())) {
        Some(key) => Ok(Some(key)),
        None => Err(ApiError::invalid(
            "invalid-idempotency-key",
            format!("an Idempotency-Key is 1 to {MAX_KEY_BYTES} visible ASCII characters"),
        )),
    }
}

/// Lists rollouts.
#[utoipa::path(
    get, path = "/api/v1/rollouts", tag = "rollouts", params(ListRollouts),
    responses((status = 200, description = "A page of rollouts", body = Page<RolloutView>)),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<ListRollouts>,
) -> ApiResult<axum::Json<Page<RolloutView>>> {
    let size = page_size(wish.limit);
    let found = executor::views(&app, wish.cursor.as_ref(), size + 1).await?;
    Ok(axum::Json(page(found, size, |rollout| rollout.id.to_string())))
}

/// Shows one rollout.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{id}", tag = "rollouts",
    params(("id" = RolloutId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The rollout", body = RolloutView),
        (status = 404, description = "There is no such rollout", body = Problem),
    ),
)]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Segments(rollout): Segments<RolloutId>,
) -> ApiResult<axum::Json<RolloutView>> {
    Ok(axum::Json(executor::view(&app, &rollout).await?))
}

/// Shows what every verdict rests on: the numbers held against limits and abort criteria, the measurements of analyses, the scores of devices that were
/// compared. It is enough to reach the verdicts again elsewhere.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{id}/evidence", tag = "rollouts",
    params(("id" = RolloutId, Path, description = "Its name")),
    responses(
        (status = 200, description = "What each verdict rests on, in order", body = Vec<RolloutEvidence>),
        (status = 404, description = "There is no such rollout", body = Problem),
    ),
)]
pub(super) async fn evidence(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Segments(rollout): Segments<RolloutId>,
) -> ApiResult<axum::Json<Vec<RolloutEvidence>>> {
    Ok(axum::Json(executor::evidence(&app, &rollout).await?))
}

/// Whether the fleet is stopped, by whom, since when and why.
#[utoipa::path(
    get, path = "/api/v1/rollouts/stop", tag = "rollouts",
    responses((status = 200, description = "The stop, if one stands", body = FleetStopView)),
)]
pub(super) async fn stop(State(app): State<Arc<App>>, _caller: Viewer) -> ApiResult<axum::Json<FleetStopView>> {
    Ok(axum::Json(executor::stop_view(&app).await?))
}

/// Ends every unfinished rollout and lets none begin, until the stop is lifted. Devices keep what they have; what runs beside another ends.
#[utoipa::path(
    post, path = "/api/v1/rollouts/stop-all", tag = "rollouts", request_body = Option<ActionReason>,
    responses((status = 200, description = "The stop, and the rollouts it ended", body = FleetStopView)),
)]
pub(super) async fn stop_all(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<FleetStopView>> {
    let reason = reason_of(&why)?;
    Ok(axum::Json(executor::stop_all(&app, &caller.name, reason).await?))
}

/// Lifts the fleet-wide stop: rollouts may be made again. Those that it ended stay so.
#[utoipa::path(
    post, path = "/api/v1/rollouts/lift-stop", tag = "rollouts", request_body = Option<ActionReason>,
    responses(
        (status = 200, description = "No stop stands", body = FleetStopView),
        (status = 409, description = "There was none", body = Problem),
    ),
)]
pub(super) async fn lift_stop(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<FleetStopView>> {
    let reason = reason_of(&why)?;
    Ok(axum::Json(executor::lift_stop(&app, &caller.name, reason).await?))
}

async fn act(
    app: &App,
    caller: &Caller,
    rollout: &RolloutId,
    action: OperatorAction,
    why: ActionReason,
) -> ApiResult<axum::Json<RolloutView>> {
    let reason = reason_of(&why)?;
    Ok(axum::Json(executor::act(app, rollout, action, &caller.name, reason).await?))
}

macro_rules! action {
    ($(#[$doc:meta])* $name:ident, $path:literal, $action:expr) => {
        $(#[$doc])*
        #[utoipa::path(
            post, path = $path, tag = "rollouts", request_body = Option<ActionReason>,
            params(("id" = RolloutId, Path, description = "Its name")),
            responses(
                (status = 200, description = "The rollout", body = RolloutView),
                (status = 404, description = "There is no such rollout", body = Problem),
                (status = 409, description = "Its state does not allow it", body = Problem),
            ),
        )]
        pub(super) async fn $name(
            State(app): State<Arc<App>>,
            Operator(caller): Operator,
            Segments(rollout): Segments<RolloutId>,
            OptionalJson(why): OptionalJson<ActionReason>,
        ) -> ApiResult<axum::Json<RolloutView>> {
            act(&app, &caller, &rollout, $action, why).await
        }
    };
}

action!(
    /// Gives no further device the bundle.
    pause,
    "/api/v1/rollouts/{id}/pause",
    OperatorAction::Pause
);
action!(
    /// Goes on after a pause.
    resume,
    "/api/v1/rollouts/{id}/resume",
    OperatorAction::Resume
);
action!(
    /// Stops at once and for good; devices keep what they have.
    abort,
    "/api/v1/rollouts/{id}/abort",
    OperatorAction::Abort
);

/// Approves a rollout that waits for approvals. With enough of them it begins.
#[utoipa::path(
    post, path = "/api/v1/rollouts/{id}/approve", tag = "rollouts", request_body = Option<ActionReason>,
    params(("id" = RolloutId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The rollout", body = RolloutView),
        (status = 403, description = "The caller is none of those who are asked", body = Problem),
        (status = 404, description = "There is no such rollout", body = Problem),
        (status = 409, description = "It does not wait for approval, or the caller has approved already", body = Problem),
    ),
)]
pub(super) async fn approve(
    State(app): State<Arc<App>>,
    Approver(caller): Approver,
    Segments(rollout): Segments<RolloutId>,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<RolloutView>> {
    Ok(axum::Json(executor::approve(&app, &rollout, &caller.name, reason_of(&why)?).await?))
}

/// Rejects a rollout that waits for approvals: it has ended.
#[utoipa::path(
    post, path = "/api/v1/rollouts/{id}/reject", tag = "rollouts", request_body = Option<ActionReason>,
    params(("id" = RolloutId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The rollout", body = RolloutView),
        (status = 403, description = "The caller is none of those who are asked", body = Problem),
        (status = 404, description = "There is no such rollout", body = Problem),
        (status = 409, description = "It does not wait for approval", body = Problem),
    ),
)]
pub(super) async fn reject(
    State(app): State<Arc<App>>,
    Approver(caller): Approver,
    Segments(rollout): Segments<RolloutId>,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<RolloutView>> {
    Ok(axum::Json(executor::reject(&app, &rollout, &caller.name, reason_of(&why)?).await?))
}

/// Brings every device back to what it ran before, or to a bundle that is named.
#[utoipa::path(
    post, path = "/api/v1/rollouts/{id}/rollback", tag = "rollouts", request_body = Option<RollbackOrder>,
    params(("id" = RolloutId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The rollout", body = RolloutView),
        (status = 404, description = "There is no such rollout", body = Problem),
        (status = 409, description = "Its state does not allow it", body = Problem),
        (status = 422, description = "There is no such bundle, or it is not trusted any more", body = Problem),
    ),
)]
pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(rollout): Segments<RolloutId>,
    OptionalJson(RollbackOrder { reason, to }): OptionalJson<RollbackOrder>,
) -> ApiResult<axum::Json<RolloutView>> {
    let why = ActionReason { reason };
    match to {
        None => act(&app, &caller, &rollout, OperatorAction::Rollback, why).await,
        Some(to) => {
            let reason = reason_of(&why)?;
            Ok(axum::Json(executor::roll_back_to(&app, &rollout, &to, &caller.name, reason).await?))
        }
    }
}
