//! Drift of a bundle's inputs and answers against its reference.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{DriftExplanation, DriftReport, Problem, QuantileExport, WindowExport};
use muster_shared::ids::BundleRef;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{self, Parameters, Viewer};
use crate::drift::{self, DriftError, Question, Wish};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

/// What else than groups of devices a report tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
enum By {
    /// Steps of time: windows, or several together where there are many.
    Window,
    /// Slices of rows, as the profile declares them.
    Slice,
}

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
    /// What else to tell apart.
    #[param(inline)]
    by: Option<By>,
    /// Leaves out what came before, in milliseconds since the Unix epoch.
    since_ms: Option<u64>,
}

/// What to explain.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query, rename_all = "kebab-case")]
pub(super) struct ExplainDrift {
    /// The bundle, as `digits@1.2.0`.
    #[param(value_type = String)]
    bundle: BundleRef,
    /// The column; otherwise the one that moved most, in each group.
    column: Option<String>,
    /// A label: one group of devices for each of its values.
    group_by: Option<String>,
    /// Leaves out what came before, in milliseconds since the Unix epoch.
    since_ms: Option<u64>,
}

fn wish(group_by: Option<String>, by: Option<By>, since_ms: Option<u64>) -> ApiResult<Wish> {
    Ok(Wish {
        group_by: extract::group_by(group_by)?,
        since_ms: since_ms.unwrap_or(0),
        by_window: by == Some(By::Window),
        by_slice: by == Some(By::Slice),
        ..Wish::default()
    })
}

impl From<DriftError> for ApiError {
    fn from(error: DriftError) -> Self {
        match error {
            DriftError::Report(error) => error.into(),
            DriftError::UnknownColumn { .. } => Self::unknown("unknown-column", error),
            DriftError::TooManyGroups => Self::unacceptable("too-many-groups", error),
            DriftError::Interrupted => Self::internal(&error),
        }
    }
}

/// Shows how far each column has moved from the reference.
#[utoipa::path(
    get, path = "/api/v1/drift", tag = "drift", params(ReportDrift),
    responses(
        (status = 200, description = "Scores a group and column", body = DriftReport),
        (status = 404, description = "There is no such bundle", body = Problem),
        (status = 422, description = "There are too many groups", body = Problem),
    ),
)]
pub(super) async fn report(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(query): Parameters<ReportDrift>,
) -> ApiResult<axum::Json<DriftReport>> {
    let wish = wish(query.group_by, query.by, query.since_ms)?;
    Ok(axum::Json(drift::report(&app, &query.bundle, wish).await?))
}

/// Explains what moved in a column, which devices contribute and since when.
#[utoipa::path(
    get, path = "/api/v1/drift/explain", tag = "drift", params(ExplainDrift),
    responses(
        (status = 200, description = "One explanation a group", body = [DriftExplanation]),
        (status = 404, description = "There is no such bundle or column", body = Problem),
        (status = 422, description = "There are too many groups", body = Problem),
    ),
)]
pub(super) async fn explain(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(query): Parameters<ExplainDrift>,
) -> ApiResult<axum::Json<Vec<DriftExplanation>>> {
    let wish = wish(query.group_by, None, query.since_ms)?;
    let question = Question { wish, column: query.column };
    Ok(axum::Json(drift::explain(&app, &query.bundle, question).await?))
}

/// Gives the counts behind the scores, by group, step of time and column.
#[utoipa::path(
    get, path = "/api/v1/drift/export", tag = "drift", params(ReportDrift),
    responses(
        (status = 200, description = "Counts a group, step of time and column", body = WindowExport),
        (status = 404, description = "There is no such bundle", body = Problem),
        (status = 422, description = "There are too many groups", body = Problem),
    ),
)]
pub(super) async fn export(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(query): Parameters<ReportDrift>,
) -> ApiResult<axum::Json<WindowExport>> {
    let wish = wish(query.group_by, query.by, query.since_ms)?;
    Ok(axum::Json(drift::export(&app, &query.bundle, wish).await?))
}

/// Gives the quantile sketches of columns whose bundle asks for them. They contain raw values.
#[utoipa::path(
    get, path = "/api/v1/drift/quantiles", tag = "drift", params(ReportDrift),
    responses(
        (status = 200, description = "A sketch a group and column, as Apache DataSketches has it", body = QuantileExport),
        (status = 404, description = "There is no such bundle", body = Problem),
        (status = 422, description = "There are too many groups", body = Problem),
    ),
)]
pub(super) async fn quantiles(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(query): Parameters<ReportDrift>,
) -> ApiResult<axum::Json<QuantileExport>> {
    let wish = wish(query.group_by, query.by, query.since_ms)?;
    Ok(axum::Json(drift::quantiles(&app, &query.bundle, wish).await?))
}
