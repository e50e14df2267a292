//! Why a rollout, and any device in it or not, stand where they do.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{Problem, RolloutExplanation};
use muster_shared::ids::{DeviceId, RolloutId};
use serde::Deserialize;
use utoipa::IntoParams;

use super::devices::unknown;
use super::extract::{Parameters, Segments, Viewer};
use crate::executor;
use crate::problem::ApiResult;
use crate::state::App;

/// Which device is asked about.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExplainWish {
    /// Any device there is, whether it takes part or not.
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
}

/// Says what a rollout does, why it is not further, what it waits for, who or what decides next, on which numbers, and what happened so
/// far. Of a device, the same.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{id}/explain", tag = "rollouts",
    params(("id" = RolloutId, Path, description = "Its name"), ExplainWish),
    responses(
        (status = 200, description = "The explanation", body = RolloutExplanation),
        (status = 404, description = "There is no such rollout, or no such device", body = Problem),
    ),
)]
pub(super) async fn explain(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Segments(rollout): Segments<RolloutId>,
    Parameters(ExplainWish { device }): Parameters<ExplainWish>,
) -> ApiResult<axum::Json<RolloutExplanation>> {
    if let Some(device) = device.as_ref().filter(|device| app.fleet.view(device).is_none()) {
        return Err(unknown(device));
    }
    Ok(axum::Json(executor::explain(&app, &rollout, device.as_ref()).await?))
}
