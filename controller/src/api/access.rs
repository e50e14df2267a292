//! Access tokens for people and programs: made and taken back by the administrator.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::access::{AccessView, CreateAccess, CreatedAccess};
use muster_shared::api::{Page, Problem};

use super::extract::{Admin, Json, Segments, ViewerByName};
use crate::access::{self, AccessError};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Name | AccessError::Administrator => Self::invalid("invalid-body", error),
            AccessError::Taken(_) => Self::conflict("name-taken", error),
            AccessError::TooMany => Self::conflict("too-many-tokens", error),
            AccessError::Unknown(_) => Self::unknown("unknown-access-token", error),
            AccessError::Random(_) => Self::internal(&error),
            AccessError::Store(error) => error.into(),
        }
    }
}

/// Makes an access token for a person or a program. It is shown this once.
#[utoipa::path(
    post, path = "/api/v1/access", tag = "access", request_body = CreateAccess,
    responses(
        (status = 201, description = "The token, shown this once", body = CreatedAccess),
        (status = 400, description = "The name or the role makes no sense", body = Problem),
        (status = 409, description = "The name is taken, or there are too many tokens", body = Problem),
    ),
)]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Json(wish): Json<CreateAccess>,
) -> ApiResult<(StatusCode, axum::Json<CreatedAccess>)> {
    Ok((StatusCode::CREATED, axum::Json(access::create(&app, wish, &caller.name).await?)))
}

/// Lists access tokens, without what lets anybody use them.
#[utoipa::path(
    get, path = "/api/v1/access", tag = "access",
    responses((status = 200, description = "All of them", body = Page<AccessView>)),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    ViewerByName(_): ViewerByName,
) -> ApiResult<axum::Json<Page<AccessView>>> {
    Ok(axum::Json(Page { items: access::list(&app).await?, next_cursor: None }))
}

/// Takes an access token back: nobody can use it any more. What was done with it stays.
#[utoipa::path(
    delete, path = "/api/v1/access/{name}", tag = "access", params(("name" = String, Path, description = "Whose it is")),
    responses(
        (status = 200, description = "The token that was taken back", body = AccessView),
        (status = 400, description = "It is the administrator's", body = Problem),
        (status = 404, description = "There is no such token", body = Problem),
    ),
)]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Segments(name): Segments<String>,
) -> ApiResult<axum::Json<AccessView>> {
    Ok(axum::Json(access::revoke(&app, &name, &caller.name).await?))
}
