//! Collections of samples: opened and closed by operators, filled by devices, read by approvers.
//!
//! Whoever may open a collection may not read it: that takes another role, and the recipient's key besides. Every access is in the
//! history before anything is given out.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use muster_shared::api::{Page, Problem};
use muster_shared::collection::{
    BatchStored, CloseCollection, CollectionView, CreateCollection, SampleBatch, SampleLabels,
};
use muster_shared::ids::{CollectionId, DeviceId};
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Approver, Json, Operator, OptionalJson, Parameters, Segments, ViewerByName};
use super::peer::Holder;
use crate::admission::{self, Refusal};
use crate::collections::{self, CollectionError, batch_path};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

/// The form of an export: for each batch the length of its description (4 bytes, little-endian), the description as JSON, the batch.
pub(super) const EXPORT_TYPE: &str = "application/vnd.muster.samples.v1";

impl From<CollectionError> for ApiError {
    fn from(error: CollectionError) -> Self {
        match error {
            CollectionError::Unknown(_) => Self::unknown("unknown-collection", error),
            CollectionError::UnknownBundle(_) => Self::unacceptable("unknown-bundle", error),
            CollectionError::Spec(_) => Self::invalid("invalid-collection", error),
            CollectionError::TooMany(_) => Self::conflict("too-many-collections", error),
            CollectionError::Closed(_) => Self::conflict("not-in-this-state", error),
            CollectionError::NotWanted { .. } => Self::new(StatusCode::GONE, "samples-not-wanted", error.to_string()),
            CollectionError::Batch(_) => Self::unacceptable("invalid-batch", error),
            CollectionError::Changed(_) => Self::conflict("batch-changed", error),
            CollectionError::Full(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "samples-full", error.to_string()),
            CollectionError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string()),
            CollectionError::File(error) if crate::durable::is_full(error.cause()) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", "the controller's disk is full".to_owned())
            }
            CollectionError::File(error) => Self::internal(&error),
            CollectionError::Store(error) => error.into(),
        }
    }
}

/// Opens a collection.
#[utoipa::path(
    post, path = "/api/v1/collections", tag = "collections", request_body = CreateCollection,
    responses(
        (status = 201, description = "The collection; devices are told at once", body = CollectionView),
        (status = 400, description = "The wish is not valid", body = Problem),
        (status = 409, description = "There are as many as there may be", body = Problem),
        (status = 422, description = "There is no such bundle", body = Problem),
    ),
)]
pub(super) async fn open(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Json(spec): Json<CreateCollection>,
) -> ApiResult<(StatusCode, axum::Json<CollectionView>)> {
    Ok((StatusCode::CREATED, axum::Json(collections::open(&app, spec, &caller.name).await?)))
}

/// Lists collections, without their devices.
#[utoipa::path(
    get, path = "/api/v1/collections", tag = "collections",
    responses((status = 200, description = "All of them", body = Page<CollectionView>)),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    ViewerByName(caller): ViewerByName,
) -> ApiResult<axum::Json<Page<CollectionView>>> {
    let items = collections::views(&app);
    collections::note_access(&app, "listed", &caller.name, format!("{} collections", items.len())).await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

/// Shows one collection: how far it is on each device. Nothing of a sample shows.
#[utoipa::path(
    get, path = "/api/v1/collections/{id}", tag = "collections",
    params(("id" = CollectionId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The collection", body = CollectionView),
        (status = 404, description = "There is no such collection", body = Problem),
    ),
)]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    ViewerByName(_): ViewerByName,
    Segments(id): Segments<CollectionId>,
) -> ApiResult<axum::Json<CollectionView>> {
    Ok(axum::Json(collections::view(&app, &id)?))
}

/// Closes a collection: no more samples are taken, and devices upload those they have, or delete them.
#[utoipa::path(
    post, path = "/api/v1/collections/{id}/close", tag = "collections", request_body = Option<CloseCollection>,
    params(("id" = CollectionId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The collection", body = CollectionView),
        (status = 404, description = "There is no such collection", body = Problem),
        (status = 409, description = "It is closed already", body = Problem),
    ),
)]
pub(super) async fn close(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(id): Segments<CollectionId>,
    OptionalJson(wish): OptionalJson<CloseCollection>,
) -> ApiResult<axum::Json<CollectionView>> {
    Ok(axum::Json(collections::close(&app, &id, &wish, &caller.name).await?))
}

/// Deletes a collection with all its samples, here and on devices.
#[utoipa::path(
    delete, path = "/api/v1/collections/{id}", tag = "collections",
    params(("id" = CollectionId, Path, description = "Its name")),
    responses(
        (status = 200, description = "What was deleted", body = CollectionView),
        (status = 404, description = "There is no such collection", body = Problem),
    ),
)]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Approver(caller): Approver,
    Segments(id): Segments<CollectionId>,
) -> ApiResult<axum::Json<CollectionView>> {
    let view = collections::view(&app, &id)?;
    collections::delete(&app, &id, &caller.name, "it was asked for").await?;
    Ok(axum::Json(view))
}

/// Which batch a device brings.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BatchOf {
    /// How many there are.
    of: u32,
}

/// Takes a batch of sealed samples in from a device.
#[utoipa::path(
    put, path = "/api/v1/collections/{id}/batches/{number}", tag = "collections", security(()),
    params(("id" = CollectionId, Path, description = "The collection"), ("number" = u32, Path, description = "The batch, from 0"), BatchOf),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "It is stored", body = BatchStored),
        (status = 401, description = "No certificate of a device was shown", body = Problem),
        (status = 403, description = "The device is revoked, or the certificate was superseded", body = Problem),
        (status = 404, description = "There is no such collection", body = Problem),
        (status = 409, description = "Another batch is there under this number", body = Problem),
        (status = 410, description = "The collection takes nothing in from this device, or nothing more", body = Problem),
        (status = 422, description = "It is no batch", body = Problem),
        (status = 507, description = "There is no room", body = Problem),
    ),
)]
pub(super) async fn take(
    State(app): State<Arc<App>>,
    Holder { device, serial }: Holder,
    Segments((id, number)): Segments<(CollectionId, u32)>,
    Parameters(BatchOf { of }): Parameters<BatchOf>,
    content: Bytes,
) -> ApiResult<axum::Json<BatchStored>> {
    admission::accept(&app.records, &app.fleet, &device, Some(&serial)).await.map_err(|refusal| match refusal {
        Refusal::Store(error) => error.into(),
        Refusal::Unknown | Refusal::Revoked | Refusal::Superseded => {
            ApiError::new(StatusCode::FORBIDDEN, "certificate-refused", refusal.to_string())
        }
    })?;
    let batch = collections::receive(&app, &device, &id, (number, of), &content).await?;
    Ok(axum::Json(BatchStored { samples: batch.samples }))
}

/// Of which device.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OfDevice {
    /// Only of this one; of all when left out.
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
}

fn counted(id: &CollectionId, batches: &[SampleBatch], device: Option<&DeviceId>) -> String {
    let (samples, bytes) = batches.iter().fold((0, 0), |(n, b), batch| (n + batch.samples, b + batch.bytes));
    let of = device.map_or_else(String::new, |device| format!(" of {device}"));
    format!("{id}: {samples} samples, {bytes} bytes in {} batches{of}", batches.len())
}

/// Lists the batches of a collection.
#[utoipa::path(
    get, path = "/api/v1/collections/{id}/batches", tag = "collections",
    params(("id" = CollectionId, Path, description = "The collection"), OfDevice),
    responses(
        (status = 200, description = "The batches", body = Page<SampleBatch>),
        (status = 404, description = "There is no such collection", body = Problem),
    ),
)]
pub(super) async fn batches(
    State(app): State<Arc<App>>,
    Approver(caller): Approver,
    Segments(id): Segments<CollectionId>,
    Parameters(OfDevice { device }): Parameters<OfDevice>,
) -> ApiResult<axum::Json<Page<SampleBatch>>> {
    let items = collections::batches(&app, &id, device.as_ref()).await?;
    collections::note_access(&app, "batches-listed", &caller.name, counted(&id, &items, device.as_ref())).await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

/// Gives the sealed samples of a collection out, all or those of one device.
#[utoipa::path(
    get, path = "/api/v1/collections/{id}/export", tag = "collections",
    params(("id" = CollectionId, Path, description = "The collection"), OfDevice),
    responses(
        (status = 200, description = "For each batch the length of its description (4 bytes, little-endian), the description, the batch", body = Vec<u8>, content_type = "application/vnd.muster.samples.v1"),
        (status = 404, description = "There is no such collection", body = Problem),
    ),
)]
pub(super) async fn export(
    State(app): State<Arc<App>>,
    Approver(caller): Approver,
    Segments(id): Segments<CollectionId>,
    Parameters(OfDevice { device }): Parameters<OfDevice>,
) -> ApiResult<Response> {
    let batches = collections::batches(&app, &id, device.as_ref()).await?;
    let kind = if device.is_some() { "downloaded" } else { "exported" };
    collections::note_access(&app, kind, &caller.name, counted(&id, &batches, device.as_ref())).await?;
    let pieces = futures_util::stream::iter(batches).then(move |batch| {
        let path = batch_path(&app, &id, &batch);
        async move {
            let content = tokio::fs::read(path).await?;
            let described = serde_json::to_vec(&batch)?;
            let length = u32::try_from(described.len()).unwrap_or(u32::MAX).to_le_bytes();
            Ok::<Bytes, std::io::Error>([&length[..], &described, &content].concat().into())
        }
    });
    let mut response = Body::from_stream(pieces).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(EXPORT_TYPE));
    Ok(response)
}

/// Gives the labels that were brought for a collection.
#[utoipa::path(
    get, path = "/api/v1/collections/{id}/labels", tag = "collections",
    params(("id" = CollectionId, Path, description = "The collection")),
    responses(
        (status = 200, description = "The labels", body = SampleLabels),
        (status = 404, description = "There is no such collection", body = Problem),
    ),
)]
pub(super) async fn labels(
    State(app): State<Arc<App>>,
    Approver(_): Approver,
    Segments(id): Segments<CollectionId>,
) -> ApiResult<axum::Json<SampleLabels>> {
    Ok(axum::Json(collections::labels(&app, &id)?))
}

/// Brings labels for a collection: what its inferences should have been answered with. They are joined with samples when those are exported.
#[utoipa::path(
    post, path = "/api/v1/collections/{id}/labels", tag = "collections", request_body = SampleLabels,
    params(("id" = CollectionId, Path, description = "The collection")),
    responses(
        (status = 200, description = "All labels there are now", body = SampleLabels),
        (status = 400, description = "A label is too long", body = Problem),
        (status = 404, description = "There is no such collection", body = Problem),
    ),
)]
pub(super) async fn put_labels(
    State(app): State<Arc<App>>,
    Approver(caller): Approver,
    Segments(id): Segments<CollectionId>,
    Json(brought): Json<SampleLabels>,
) -> ApiResult<axum::Json<SampleLabels>> {
    Ok(axum::Json(collections::put_labels(&app, &id, brought, &caller.name).await?))
}
