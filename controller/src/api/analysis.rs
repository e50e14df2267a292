//! Analysis templates: what waves of a rollout can be asked to stand.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::api::{Page, Problem};
use muster_shared::rollout::{AnalysisTemplate, TemplateRef, TemplateView};

use super::extract::{Json, Operator, Segments, Viewer};
use crate::analysis::{self, TemplatesError};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

impl From<TemplatesError> for ApiError {
    fn from(error: TemplatesError) -> Self {
        match error {
            TemplatesError::Unknown(_) => Self::unknown("unknown-analysis-template", error),
            TemplatesError::Template(_) | TemplatesError::TooLong(_) => Self::unacceptable("invalid-analysis", error),
            TemplatesError::Use { .. } => Self::unacceptable("invalid-analysis", error),
            TemplatesError::TooMany => Self::conflict("too-many", error),
            TemplatesError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string()),
            TemplatesError::Store(error) => error.into(),
        }
    }
}

/// Keeps a template as the newest version under its name. The same as the newest there is stays that one.
#[utoipa::path(
    post, path = "/api/v1/analysis-templates", tag = "analysis", request_body = AnalysisTemplate,
    responses(
        (status = 201, description = "The version", body = TemplateView),
        (status = 422, description = "It makes no sense", body = Problem),
    ),
)]
pub(super) async fn push(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Json(template): Json<AnalysisTemplate>,
) -> ApiResult<(StatusCode, axum::Json<TemplateView>)> {
    Ok((StatusCode::CREATED, axum::Json(analysis::push(&app, template, &caller.name).await?)))
}

/// Lists the newest version of every template.
#[utoipa::path(
    get, path = "/api/v1/analysis-templates", tag = "analysis",
    responses((status = 200, description = "All templates", body = Page<TemplateView>)),
)]
pub(super) async fn list(State(app): State<Arc<App>>, _caller: Viewer) -> ApiResult<axum::Json<Page<TemplateView>>> {
    Ok(axum::Json(Page { items: analysis::list(&app).await?, next_cursor: None }))
}

/// Shows one version of a template, the newest where none is named.
#[utoipa::path(
    get, path = "/api/v1/analysis-templates/{reference}", tag = "analysis",
    params(("reference" = String, Path, description = "Its name, or NAME@VERSION")),
    responses(
        (status = 200, description = "The version", body = TemplateView),
        (status = 404, description = "There is none", body = Problem),
    ),
)]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Segments(reference): Segments<TemplateRef>,
) -> ApiResult<axum::Json<TemplateView>> {
    Ok(axum::Json(analysis::show(&app, &reference).await?))
}

/// Takes every version of a template away. Rollouts that use it go on with what they have.
#[utoipa::path(
    delete, path = "/api/v1/analysis-templates/{reference}", tag = "analysis",
    params(("reference" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "What was the newest version", body = TemplateView),
        (status = 400, description = "A version is named: templates go as a whole", body = Problem),
        (status = 404, description = "There is none", body = Problem),
    ),
)]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(reference): Segments<TemplateRef>,
) -> ApiResult<axum::Json<TemplateView>> {
    if reference.version.is_some() {
        let detail = format!("a template is deleted as a whole: name {} without a version", reference.name);
        return Err(ApiError::invalid("version-named", detail));
    }
    Ok(axum::Json(analysis::delete(&app, &reference.name, &caller.name).await?))
}
