//! How good a bundle is by its labels.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::Problem;
use muster_shared::ids::BundleRef;
use muster_shared::quality::QualityReport;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{self, Parameters, Viewer};
use crate::problem::{ApiError, ApiResult};
use crate::quality::{self, Wish};
use crate::state::App;

/// A point of the trend where nothing else is asked for, in milliseconds.
const TREND_MS: u64 = 3_600_000;

/// What to look at.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query, rename_all = "kebab-case")]
pub(super) struct ReportQuality {
    /// The bundle, as `digits@1.2.0`.
    #[param(value_type = String)]
    bundle: BundleRef,
    /// A label: one group of devices for each of its values.
    group_by: Option<String>,
    /// Leaves out what came before, in milliseconds since the Unix epoch.
    since_ms: Option<u64>,
    /// Length of a point of the trend, in milliseconds; an hour when left out.
    trend_ms: Option<u64>,
}

/// Shows how good a bundle is by the labels that devices joined with its predictions.
#[utoipa::path(
    get, path = "/api/v1/quality", tag = "quality", params(ReportQuality),
    responses(
        (status = 200, description = "Accuracy or errors by group, slice and time", body = QualityReport),
        (status = 404, description = "There is no such bundle", body = Problem),
    ),
)]
pub(super) async fn report(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<ReportQuality>,
) -> ApiResult<axum::Json<QualityReport>> {
    let group_by = extract::group_by(wish.group_by)?;
    if wish.trend_ms == Some(0) {
        return Err(ApiError::invalid("invalid-query", "trend-ms must be at least 1"));
    }
    let of = Wish {
        group_by: group_by.as_deref(),
        since_ms: wish.since_ms.unwrap_or(0),
        trend_ms: wish.trend_ms.unwrap_or(TREND_MS),
    };
    Ok(axum::Json(quality::report(&app, &wish.bundle, of).await?))
}
