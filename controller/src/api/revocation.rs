//! Shutting a device out, and letting it in again.
//!
//! What counts is the record: once it is stored, no certificate of the device is accepted any more, whichever part asks. Only
//! then its connection is cut, so that it cannot come back in between. Both ways can be asked for again without harm.

use std::sync::Arc;

use axum::extract::State;
use muster_rollout::Rollout;
use muster_shared::api::{ActionReason, DeviceView, Problem, Revocation};
use muster_shared::ids::DeviceId;
use muster_shared::trust::{Activation, DeliveryPolicy, Stage, Track};

use super::device_record::{ATTEMPTS, busy, change, load, view};
use super::extract::{Operator, OptionalJson, Segments, reason_of};
use crate::clock;
use crate::problem::ApiResult;
use crate::state::App;
use crate::store::records::{Desired, DeviceRecord};
use crate::store::{StoreError, Table};

/// Shuts a device out: its connection ends, and none of its certificates is accepted from now on.
#[utoipa::path(
    post, path = "/api/v1/devices/{id}/revoke", tag = "devices", request_body = Option<ActionReason>,
    params(("id" = DeviceId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The device, revoked now or before", body = DeviceView),
        (status = 404, description = "There is no such device", body = Problem),
    ),
)]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(device): Segments<DeviceId>,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<DeviceView>> {
    reason_of(&why)?;
    for _ in 0..ATTEMPTS {
        let stored = load(&app, &device).await?;
        if !stored.value.is_revoked() {
            let revocation =
                Revocation { since_ms: clock::now_ms(), by: caller.name.clone(), reason: why.reason.clone() };
            let record = DeviceRecord { revocation: Some(revocation), ..stored.value };
            let told = ("device.revoked", why.reason.clone().unwrap_or_default());
            if !change(&app, &record, stored.version, &caller.name, told).await? {
                continue;
            }
            tracing::warn!(%device, by = caller.name, reason = why.reason, "a device is revoked");
        }
        // Also where it was revoked before: whoever asks again has seen it connected.
        app.broker.disconnect(&device).await;
        return view(&app, &device);
    }
    Err(busy(&device))
}

/// Lets a revoked device in again, with the certificate it had.
#[utoipa::path(
    post, path = "/api/v1/devices/{id}/reinstate", tag = "devices",
    params(("id" = DeviceId, Path, description = "Its name")),
    responses(
        (status = 200, description = "The device, reinstated now or never revoked", body = DeviceView),
        (status = 404, description = "There is no such device", body = Problem),
    ),
)]
pub(super) async fn reinstate(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(device): Segments<DeviceId>,
) -> ApiResult<axum::Json<DeviceView>> {
    for _ in 0..ATTEMPTS {
        let stored = load(&app, &device).await?;
        let Some(revocation) = &stored.value.revocation else { return view(&app, &device) };
        let detail = match &revocation.reason {
            Some(reason) => format!("it was revoked by {}: {reason}", revocation.by),
            None => format!("it was revoked by {}", revocation.by),
        };
        let desired = brought_up_to_date(&app, &stored.value, Track::Model).await?;
        let desired_program = brought_up_to_date(&app, &stored.value, Track::Program).await?;
        let record = DeviceRecord { revocation: None, desired, desired_program, ..stored.value };
        if change(&app, &record, stored.version, &caller.name, ("device.reinstated", detail)).await? {
            tracing::info!(%device, by = caller.name, "a device is reinstated");
            return view(&app, &device);
        }
    }
    Err(busy(&device))
}

/// What the device shall run on `track`. A rollout that went back meanwhile passed it over; it must not be told to run what was taken back.
async fn brought_up_to_date(app: &App, record: &DeviceRecord, track: Track) -> Result<Option<Desired>, StoreError> {
    let Some(desired) = record.desired(track) else { return Ok(None) };
    let rollout = app.records.get::<Rollout>(Table::Rollouts, desired.rollout.as_str()).await?;
    let reported = app.fleet.view(&record.id).and_then(|view| view.reported).unwrap_or_default();
    let back = rollout.and_then(|rollout| rollout.value.way_back(&record.id, desired.generation, &reported));
    let Some(back) = back else { return Ok(Some(desired.clone())) };
    let reported = match track {
        Track::Model => reported.generation,
        Track::Program => reported.program.map_or(0, |program| program.generation),
    };
    let Some(generation) = desired.generation.max(reported).checked_add(1) else { return Ok(Some(desired.clone())) };
    let (stage, activation, delivery) = (Stage::Serve, Activation::AtOnce, DeliveryPolicy::at_once());
    let since_ms = clock::now_ms();
    Ok(Some(Desired { manifest: back, generation, stage, activation, delivery, since_ms, ..desired.clone() }))
}
