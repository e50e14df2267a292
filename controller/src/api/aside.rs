//! Devices that rollouts leave aside: pinned by operators, or quarantined until operators release them.
//!
//! All three ways can be asked for again without harm: what stands already stays as it is.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{ActionReason, DeviceView, Problem};
use muster_shared::ids::DeviceId;
use muster_shared::rollout::Pin;

use super::device_record::edit;
use super::extract::{Operator, OptionalJson, Segments, reason_of};
use crate::clock;
use crate::problem::ApiResult;
use crate::state::App;
use crate::store::records::DeviceRecord;

/// Keeps a device from rollouts: none takes it in from now on. Those it takes part in go on, and ways back reach it.
#[utoipa::path(
    post, path = "/api/v1/devices/{id}/pin", tag = "devices", request_body = Option<ActionReason>,
    params(("id" = DeviceId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The device, pinned now or before", body = DeviceView),
        (status = 404, description = "There is no such device", body = Problem),
    ),
)]
pub(super) async fn pin(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(device): Segments<DeviceId>,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<DeviceView>> {
    reason_of(&why)?;
    edit(&app, &device, &caller.name, |record| {
        let pin = Pin { since_ms: clock::now_ms(), by: caller.name.clone(), reason: why.reason.clone() };
        let told = ("device.pinned", why.reason.clone().unwrap_or_default());
        Ok(record.pin.is_none().then_some((DeviceRecord { pin: Some(pin), ..record }, told)))
    })
    .await
}

/// Lets rollouts take a pinned device in again.
#[utoipa::path(
    post, path = "/api/v1/devices/{id}/unpin", tag = "devices", request_body = Option<ActionReason>,
    params(("id" = DeviceId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The device, not pinned", body = DeviceView),
        (status = 404, description = "There is no such device", body = Problem),
    ),
)]
pub(super) async fn unpin(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(device): Segments<DeviceId>,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<DeviceView>> {
    reason_of(&why)?;
    edit(&app, &device, &caller.name, |record| {
        let told = ("device.unpinned", why.reason.clone().unwrap_or_default());
        Ok(record.pin.is_some().then_some((DeviceRecord { pin: None, ..record }, told)))
    })
    .await
}

/// Releases a device from its quarantine: what failed on it before counts no more, and rollouts take it in again.
#[utoipa::path(
    post, path = "/api/v1/devices/{id}/release", tag = "devices", request_body = Option<ActionReason>,
    params(("id" = DeviceId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The device, not quarantined", body = DeviceView),
        (status = 404, description = "There is no such device", body = Problem),
    ),
)]
pub(super) async fn release(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(device): Segments<DeviceId>,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<DeviceView>> {
    reason_of(&why)?;
    edit(&app, &device, &caller.name, |record| {
        let Some(quarantine) = record.updates.quarantine() else { return Ok(None) };
        let detail = match &why.reason {
            Some(reason) => format!("{reason}; it was quarantined {}", quarantine.why),
            None => format!("it was quarantined {}", quarantine.why),
        };
        let updates = record.updates.released();
        Ok(Some((DeviceRecord { updates, ..record }, ("device.released", detail))))
    })
    .await
}
