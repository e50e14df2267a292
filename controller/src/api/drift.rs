//! Drift of a bundle's inputs and answers against its reference.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{DriftReport, Problem};
use muster_shared::ids::BundleRef;
use muster_shared::selector::is_label_text;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Parameters, Viewer};
use crate::drift::{self, DriftError};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

/// What to look at.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query, rename_all = "kebab-case")]
pub(super) struct ReportDrift {
    /// The bundle, as `digits@1.2.0`.
    #[param(value_type = String)]
    bundle: BundleRef,
    /// A label: one group of devices for each of its values.
    group_by: Option<String>,
    /// Leaves out what came before, in milliseconds since the Unix epoch.
    since_ms: Option<u64>,
}

/// Shows how far each column has moved from the reference.
#[utoipa::path(
    get, path = "/api/v1/drift", tag = "drift", params(ReportDrift),
    responses(
        (status = 200, description = "Scores a group and column", body = DriftReport),
        (status = 404, description = "There is no such bundle", body = Problem),
    ),
)]
pub(super) async fn report(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<ReportDrift>,
) -> ApiResult<axum::Json<DriftReport>> {
    if wish.group_by.as_deref().is_some_and(|label| !is_label_text(label)) {
        return Err(ApiError::invalid("invalid-query", "group-by must be the key of a label"));
    }
    let since_ms = wish.since_ms.unwrap_or(0);
    drift::report(&app, &wish.bundle, wish.group_by.as_deref(), since_ms).await.map(axum::Json).map_err(|error| {
        match error {
            DriftError::UnknownBundle(_) => ApiError::unknown("unknown-bundle", error),
            DriftError::Store(error) => error.into(),
        }
    })
}
