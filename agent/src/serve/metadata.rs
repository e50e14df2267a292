//! Health and metadata: what a client asks before it sends anything.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use muster_shared::bundle::TensorSpec;
use serde::Serialize;

use super::error::ApiError;
use super::{App, Target};

/// The server's name in its metadata.
const SERVER_NAME: &str = "muster-agent";
/// Extensions of the protocol that are offered.
const EXTENSIONS: [&str; 1] = ["binary_tensor_data"];
/// What kind of model is served.
const PLATFORM: &str = "onnx";

#[derive(Serialize)]
struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 1],
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
}

#[derive(Serialize)]
struct ModelReady<'a> {
    name: &'a str,
    ready: bool,
}

#[derive(Serialize)]
struct ModelMetadata<'a> {
    name: &'a str,
    versions: [String; 1],
    platform: &'static str,
    inputs: &'a [TensorSpec],
    outputs: &'a [TensorSpec],
}

/// `GET /v2`.
pub(super) async fn server() -> Response {
    Json(ServerMetadata { name: SERVER_NAME, version: env!("CARGO_PKG_VERSION"), extensions: EXTENSIONS })
        .into_response()
}

/// `GET /v2/health/live`.
pub(super) async fn live() -> Response {
    Json(Live { live: true }).into_response()
}

/// `GET /v2/health/ready`: whether a model answers requests.
pub(super) async fn ready(State(app): State<App>) -> Response {
    match app.host.active() {
        Some(_) => Json(Ready { ready: true }).into_response(),
        None => ApiError::NoModel.into_response(),
    }
}

/// `GET /v2/models/{model}[/versions/{version}]/ready`.
pub(super) async fn model_ready(
    State(app): State<App>,
    target: Result<Path<Target>, PathRejection>,
) -> Result<Response, ApiError> {
    let active = target?.find(&app)?;
    Ok(Json(ModelReady { name: active.served.bundle.name.as_str(), ready: true }).into_response())
}

/// `GET /v2/models/{model}[/versions/{version}]`.
pub(super) async fn model(
    State(app): State<App>,
    target: Result<Path<Target>, PathRejection>,
) -> Result<Response, ApiError> {
    let active = target?.find(&app)?;
    let model = &active.served;
    Ok(Json(ModelMetadata {
        name: model.bundle.name.as_str(),
        versions: [model.bundle.version.to_string()],
        platform: PLATFORM,
        inputs: &model.signature.inputs,
        outputs: &model.signature.outputs,
    })
    .into_response())
}
