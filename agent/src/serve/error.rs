//! What the inference API answers when it cannot answer: a status and `{"error": "..."}`, as the protocol has it.

use std::error::Error;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, extract::rejection::PathRejection};
use muster_inference::RunError;
use muster_inference::quality::Rejection;
use serde::Serialize;

use super::answer::AnswerError;
use super::request::RequestError;
use crate::host::Busy;
use crate::monitor::NumbersRefused;

/// Seconds after which a caller may try again: long enough for a queue to empty, short enough for a switch of models.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// No such path.
    #[error("there is nothing at {0}: the Open Inference Protocol starts at /v2")]
    NoSuchPath(String),
    /// The path exists, for another method.
    #[error("{method} is not allowed at {path}")]
    Method {
        /// The method used.
        method: String,
        /// The path.
        path: String,
    },
    /// The path is no text.
    #[error("the path cannot be read")]
    Path(#[from] PathRejection),
    /// No model is active.
    #[error("no model is being served yet: none has been assigned to this device, or it is still being fetched")]
    NoModel,
    /// Another model is active.
    #[error("there is no model {asked:?}: {served:?} is served")]
    UnknownModel {
        /// The name asked for.
        asked: String,
        /// The name that is served.
        served: String,
    },
    /// Another version is active.
    #[error("model {model:?} has no version {asked:?}: {served} is served")]
    UnknownVersion {
        /// The model's name.
        model: String,
        /// The version asked for.
        asked: String,
        /// The version that is served.
        served: String,
    },
    /// The body is too large.
    #[error("the request is too large: at most {limit_bytes} bytes are allowed")]
    TooLarge {
        /// The largest body that is taken, in bytes.
        limit_bytes: usize,
    },
    /// The body did not come.
    #[error("the request's body did not arrive within {limit_s} s")]
    TooSlow {
        /// The longest wait, in seconds.
        limit_s: u64,
    },
    /// The connection broke.
    #[error("the request's body could not be read")]
    Body(#[source] Box<dyn Error + Send + Sync>),
    /// The body is compressed.
    #[error("Content-Encoding {0:?} is not supported: send the request uncompressed")]
    Encoding(String),
    /// A header is malformed.
    #[error("the header Inference-Header-Content-Length must be a number of bytes, not {0:?}")]
    HeaderLength(String),
    /// The body is malformed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The body holds no labels.
    #[error(
        "the body holds no labels: one {{\"id\": ..., \"label\": ...}}, a list of them, or {{\"feedback\": [...]}} is expected"
    )]
    Feedback(#[source] serde_json::Error),
    /// Too many labels at once.
    #[error("the request holds more than {limit} labels: send them in several")]
    TooManyLabels {
        /// How many may come at once.
        limit: usize,
    },
    /// The body holds no numbers.
    #[error("the body holds no metrics: {{\"metrics\": {{\"line_stops\": 3}}}} is expected, names with numbers")]
    Metrics(#[source] serde_json::Error),
    /// The numbers were not taken.
    #[error(transparent)]
    Numbers(#[from] NumbersRefused),
    /// All workers are busy.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The data schema rejects it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The model refused the request, or failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The model's answer cannot be written.
    #[error("the model's answer cannot be sent")]
    Answer(#[from] AnswerError),
    /// Something panicked.
    #[error("the request made the agent fail: this is a fault of the agent")]
    Panicked,
}

#[derive(Serialize)]
struct Body {
    error: String,
}

/// `error` and everything that caused it, in one line.
fn whole_story(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl ApiError {
    /// The status of the answer.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchPath(_) | Self::UnknownModel { .. } | Self::UnknownVersion { .. } => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Path(_)
            | Self::Body(_)
            | Self::HeaderLength(_)
            | Self::Request(_)
            | Self::Feedback(_)
            | Self::Metrics(_)
            | Self::Numbers(NumbersRefused::Numbers(_)) => StatusCode::BAD_REQUEST,
            Self::Numbers(NumbersRefused::TooOften) => StatusCode::TOO_MANY_REQUESTS,
            Self::NoModel | Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooLarge { .. } | Self::TooManyLabels { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Encoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Rejected(_) => StatusCode::BAD_REQUEST,
            Self::Run(error) if error.is_request_fault() => StatusCode::BAD_REQUEST,
            Self::Run(_) | Self::Answer(_) | Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(Body { error: whole_story(&self) })).into_response();
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
        }
        response
    }
}
