//! How a bundle compares with the one it runs beside.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::Problem;
use muster_shared::comparison::ComparisonReport;
use muster_shared::ids::BundleRef;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{self, Parameters, Viewer};
use crate::comparison;
use crate::problem::ApiResult;
use crate::state::App;

/// What to look at.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query, rename_all = "kebab-case")]
pub(super) struct Compare {
    /// The bundle that runs beside another, as `digits@1.2.0`.
    #[param(value_type = String)]
    bundle: BundleRef,
    /// A label: one group of devices for each of its values.
    group_by: Option<String>,
    /// Leaves out what came before, in milliseconds since the Unix epoch.
    since_ms: Option<u64>,
}

/// Shows how a bundle answered beside the one in service.
#[utoipa::path(
    get, path = "/api/v1/comparison", tag = "rollouts", params(Compare),
    responses(
        (status = 200, description = "Agreement, differences, times and errors of both", body = ComparisonReport),
        (status = 404, description = "There is no such bundle", body = Problem),
    ),
)]
pub(super) async fn report(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<Compare>,
) -> ApiResult<axum::Json<ComparisonReport>> {
    let group_by = extract::group_by(wish.group_by)?;
    let report = comparison::report(&app, &wish.bundle, group_by.as_deref(), wish.since_ms.unwrap_or(0)).await?;
    Ok(axum::Json(report))
}
