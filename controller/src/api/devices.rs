//! Devices: who there is, and the labels operators give them.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{DeviceView, LabelPatch, Page, Problem};
use muster_shared::ids::DeviceId;
use muster_shared::selector::{Selector, check_labels};
use serde::Deserialize;
use utoipa::IntoParams;

use super::device_record::{edit, view};
use super::extract::{Json, Operator, Parameters, Segments, Viewer};
use super::paging::{page, page_size};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;
use crate::store::records::DeviceRecord;

/// Which devices to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListDevices {
    /// Only these, as `site=lyon,arch!=armv7`; all when left out.
    #[param(value_type = Option<String>)]
    selector: Option<Selector>,
    /// Devices a page has at most.
    limit: Option<usize>,
    /// Where the page starts: `next_cursor` of the one before.
    #[param(value_type = Option<String>)]
    cursor: Option<DeviceId>,
}

pub(super) fn unknown(device: &DeviceId) -> ApiError {
    ApiError::unknown("unknown-device", format!("there is no device {device}"))
}

/// Lists devices in order of their names.
#[utoipa::path(
    get, path = "/api/v1/devices", tag = "devices", params(ListDevices),
    responses(
        (status = 200, description = "A page of devices", body = Page<DeviceView>),
        (status = 400, description = "The selector or another parameter is not valid", body = Problem),
    ),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<ListDevices>,
) -> axum::Json<Page<DeviceView>> {
    let size = page_size(wish.limit);
    let selector = wish.selector.unwrap_or_else(Selector::all);
    let found = app.fleet.views(&selector, wish.cursor.as_ref(), size + 1);
    axum::Json(page(found, size, |device| device.id.to_string()))
}

/// Shows one device.
#[utoipa::path(
    get, path = "/api/v1/devices/{id}", tag = "devices", params(("id" = DeviceId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The device", body = DeviceView),
        (status = 404, description = "There is no such device", body = Problem),
    ),
)]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Segments(device): Segments<DeviceId>,
) -> ApiResult<axum::Json<DeviceView>> {
    view(&app, &device)
}

/// Sets and removes labels.
#[utoipa::path(
    patch, path = "/api/v1/devices/{id}/labels", tag = "devices", request_body = LabelPatch,
    params(("id" = DeviceId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The device with its new labels", body = DeviceView),
        (status = 400, description = "A label is not valid", body = Problem),
        (status = 404, description = "There is no such device", body = Problem),
    ),
)]
pub(super) async fn label(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(device): Segments<DeviceId>,
    Json(patch): Json<LabelPatch>,
) -> ApiResult<axum::Json<DeviceView>> {
    edit(&app, &device, &caller.name, |record| {
        let labelled = patched(record, &patch)?;
        Ok(Some((labelled, ("device.labelled", in_words(&patch)))))
    })
    .await
}

fn patched(mut record: DeviceRecord, patch: &LabelPatch) -> ApiResult<DeviceRecord> {
    for (key, value) in &patch.labels {
        match value {
            Some(value) => _ = record.labels.insert(key.clone(), value.clone()),
            None => _ = record.labels.remove(key),
        }
    }
    check_labels(&record.labels).map_err(|detail| ApiError::invalid("invalid-label", detail))?;
    Ok(record)
}

fn in_words(patch: &LabelPatch) -> String {
    let parts: Vec<String> = patch
        .labels
        .iter()
        .map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => format!("{key} removed"),
        })
        .collect();
    parts.join(", ")
}
