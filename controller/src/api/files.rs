//! Files of bundles, by digest: taken in and given out as streams.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_shared::api::Problem;
use muster_shared::ids::Digest;
use tokio_util::io::ReaderStream;

use super::extract::{Operator, Segments, Viewer};
use crate::blobs::Received;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

/// Takes a file in.
#[utoipa::path(
    put, path = "/api/v1/files/{sha256}", tag = "bundles",
    params(("sha256" = Digest, Path, description = "Its digest")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "It is stored"),
        (status = 200, description = "It was there already"),
        (status = 413, description = "It is too large", body = Problem),
        (status = 422, description = "Its digest is another", body = Problem),
        (status = 507, description = "The disk is full", body = Problem),
    ),
)]
pub(super) async fn take(
    State(app): State<Arc<App>>,
    _caller: Operator,
    Segments(digest): Segments<Digest>,
    body: Body,
) -> ApiResult<StatusCode> {
    match app.blobs.receive(&digest, body.into_data_stream()).await? {
        Received::New => {
            tracing::info!(file = %digest, "a file was taken in");
            Ok(StatusCode::CREATED)
        }
        Received::Known => Ok(StatusCode::OK),
    }
}

/// Gives a file out.
#[utoipa::path(
    get, path = "/api/v1/files/{sha256}", tag = "bundles",
    params(("sha256" = Digest, Path, description = "Its digest")),
    responses(
        (status = 200, description = "Its bytes; none of them to HEAD", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "There is no such file", body = Problem),
    ),
)]
pub(super) async fn give(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Segments(digest): Segments<Digest>,
) -> ApiResult<Response> {
    let file = app.blobs.open_file(&digest).await?;
    let length = file.metadata().await.map_err(|error| ApiError::internal(&error))?.len();
    let mut response = Body::from_stream(ReaderStream::new(file)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}
