//! What handlers take: a caller with the role they need, and parts of the request that have been checked.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use muster_shared::api::{AccessRole, ActionReason};
use muster_shared::limits::MAX_TEXT_BYTES;
use muster_shared::selector::is_label_text;
use serde::de::DeserializeOwned;

use crate::auth::{self, Caller};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

/// Finds out who asks, and refuses those who may not.
async fn caller_with(parts: &Parts, app: &App, least: AccessRole) -> Result<Caller, ApiError> {
    let refuse = |detail: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail));
    let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
        return refuse("a token is needed: send the header Authorization: Bearer TOKEN");
    };
    let token = value.to_str().ok().and_then(|value| value.split_once(' '));
    let Some((scheme, token)) = token else {
        return refuse("the header Authorization must read: Bearer TOKEN");
    };
    if !scheme.eq_ignore_ascii_case("bearer") {
        return refuse("the header Authorization must read: Bearer TOKEN");
    }
    let Some(caller) = auth::caller(&app.records, token.trim()).await? else {
        return refuse("the token is not known to this controller");
    };
    if caller.role < least {
        let least = serde_json::to_string(&least).unwrap_or_default();
        let detail = format!("the token {:?} may not do this: the role {least} is needed", caller.name);
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    Ok(caller)
}

/// Somebody who may read.
#[derive(Debug)]
pub(super) struct Viewer;

impl FromRequestParts<Arc<App>> for Viewer {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        caller_with(parts, app, AccessRole::Viewer).await.map(|_| Self)
    }
}

macro_rules! role {
    ($(#[$doc:meta])* $name:ident, $least:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name(pub(super) Caller);

        impl FromRequestParts<Arc<App>> for $name {
            type Rejection = ApiError;
            async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
                caller_with(parts, app, $least).await.map(Self)
            }
        }
    };
}

role!(
    /// Somebody who may read, where it matters who that is.
    ViewerByName,
    AccessRole::Viewer
);
role!(
    /// Somebody who may read samples and delete them, and approve rollouts.
    Approver,
    AccessRole::Approver
);
role!(
    /// Somebody who may change what devices run.
    Operator,
    AccessRole::Operator
);
role!(
    /// Somebody who may change whom the fleet trusts.
    Admin,
    AccessRole::Admin
);

/// A JSON body.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

/// A JSON body that may be left out.
#[derive(Debug)]
pub(super) struct OptionalJson<T>(pub(super) T);

/// Parts of the path.
#[derive(Debug)]
pub(super) struct Segments<T>(pub(super) T);

/// The label that a report is to group devices by.
///
/// # Errors
/// [`ApiError`] when it can be no label's key.
pub(super) fn group_by(label: Option<String>) -> Result<Option<String>, ApiError> {
    if label.as_deref().is_some_and(|label| !is_label_text(label)) {
        return Err(ApiError::invalid("invalid-query", "group-by must be the key of a label"));
    }
    Ok(label)
}

/// The query string.
#[derive(Debug)]
pub(super) struct Parameters<T>(pub(super) T);

async fn body(request: Request, app: &Arc<App>) -> Result<(HeaderMap, Bytes), ApiError> {
    let headers = request.headers().clone();
    let limit_bytes = app.config.api.max_body_bytes;
    let limit = Duration::from_millis(app.config.api.request_timeout_ms);
    match tokio::time::timeout(limit, Bytes::from_request(request, app)).await {
        Ok(Ok(bytes)) => Ok((headers, bytes)),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("the body is larger than {limit_bytes} bytes, the controller's api.max-body-bytes");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail))
        }
        Ok(Err(_)) => Err(ApiError::invalid("incomplete-body", "the body did not arrive completely")),
        Err(_) => {
            let detail = format!("the body did not arrive within {} ms", limit.as_millis());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "incomplete-body", detail))
        }
    }
}

fn parse<T: DeserializeOwned>(headers: &HeaderMap, bytes: &[u8]) -> Result<T, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence != "application/json" && !(essence.starts_with("application/") && essence.ends_with("+json")) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not-json",
            "a JSON body is expected: send the header Content-Type: application/json",
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            ApiError::invalid("invalid-body", format!("the body is not valid: {error}"))
        }
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof | serde_json::error::Category::Io => {
            ApiError::invalid("malformed-json", format!("the body is not JSON: {error}"))
        }
    })
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (headers, bytes) = body(request, app).await?;
        parse(&headers, &bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Default> FromRequest<Arc<App>> for OptionalJson<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (headers, bytes) = body(request, app).await?;
        if bytes.is_empty() { Ok(Self(T::default())) } else { parse(&headers, &bytes).map(Self) }
    }
}

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for Segments<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, app).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid("invalid-path", rejection.body_text())),
        }
    }
}

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Parameters<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, app).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid("invalid-query", rejection.body_text())),
        }
    }
}

/// The reason somebody gives, if it is a sentence still.
pub(super) fn reason_of(why: &ActionReason) -> ApiResult<Option<&str>> {
    match why.reason.as_deref() {
        Some(reason) if reason.len() > MAX_TEXT_BYTES => {
            Err(ApiError::invalid("invalid-body", format!("a reason has at most {MAX_TEXT_BYTES} bytes")))
        }
        reason => Ok(reason),
    }
}
