//! Errors of the API, as RFC 9457 has them: which status, which name, and what a caller may learn.
//!
//! Faults of the caller say what was wrong and what to do. Faults of the controller go to its log with all they know, and
//! to the caller without.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_shared::api::Problem;
use muster_shared::limits::bounded_text;

use crate::blobs::BlobError;
use crate::store::StoreError;
use crate::windows::ReportError;

/// An error on its way to a caller.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    detail: String,
}

/// What a handler gives.
pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// `kind` is a stable name, as `unknown-device`; `detail` says what was wrong, where, and what to do.
    pub(crate) fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into() }
    }

    /// 400: the request is not what it should be.
    pub(crate) fn invalid(kind: &'static str, detail: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, detail.to_string())
    }

    /// 404: what is named is not there.
    pub(crate) fn unknown(kind: &'static str, detail: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, kind, detail.to_string())
    }

    /// 409: it does not go with what is there.
    pub(crate) fn conflict(kind: &'static str, detail: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, kind, detail.to_string())
    }

    /// 422: understood, and not acceptable.
    pub(crate) fn unacceptable(kind: &'static str, detail: impl ToString) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, kind, detail.to_string())
    }

    /// 500: the controller's fault. The error and its sources are logged.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %chain(error), "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the controller could not do it; its log says why")
    }
}

/// An error with all its sources, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Conflict { .. } => Self::conflict("changed-meanwhile", format!("{error}: try again")),
            StoreError::Full { .. } => {
                tracing::error!(%error, "a request failed");
                Self::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "disk-full",
                    "the controller's disk is full: make room in its data-dir and try again",
                )
            }
            StoreError::Document { .. }
            | StoreError::InUse { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Io { .. }
            | StoreError::Closed => Self::internal(&error),
        }
    }
}

impl From<ReportError> for ApiError {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::UnknownBundle(_) => Self::unknown("unknown-bundle", error),
            ReportError::TooManyGroups => Self::unacceptable("too-many-groups", error),
            ReportError::Store(error) => error.into(),
        }
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        match &error {
            BlobError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "file-too-large", error.to_string()),
            BlobError::Digest { .. } => Self::unacceptable("digest-mismatch", error),
            BlobError::Interrupted(_) => Self::invalid("incomplete-file", error),
            BlobError::Full => {
                tracing::error!(%error, "an upload failed");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", error.to_string())
            }
            BlobError::Missing(_) => Self::unknown("unknown-file", error),
            BlobError::Io { .. } => Self::internal(&error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: format!("urn:muster:problem:{}", self.kind),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: bounded_text(&self.detail),
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_the_controller_do_not_leak() {
        let error = ApiError::from(StoreError::Io { folder: "/secret/place".into(), reason: "EIO".into() });
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!error.detail.contains("secret"));
    }

    #[test]
    fn a_full_disk_has_its_own_status() {
        for error in [ApiError::from(BlobError::Full), ApiError::from(StoreError::Full { folder: "x".into() })] {
            assert_eq!(error.into_response().status(), StatusCode::INSUFFICIENT_STORAGE);
        }
    }
}
