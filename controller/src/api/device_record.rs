//! What the record of a device becomes by an operator's word: tried again where somebody else changes the device at the same moment,
//! with its entry in the history.

use axum::http::StatusCode;
use muster_shared::api::DeviceView;
use muster_shared::ids::DeviceId;

use super::devices::unknown;
use crate::events::NewEvent;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;
use crate::store::records::DeviceRecord;
use crate::store::{Expect, Records, StoreError, Stored, Table};

/// Times a change is tried again because somebody else changed the device at the same moment.
pub(super) const ATTEMPTS: usize = 16;

/// Stores what `edit` makes of the device's record, with its entry in the history; none where it stays as it is.
pub(super) async fn edit(
    app: &App,
    device: &DeviceId,
    actor: &str,
    edit: impl Fn(DeviceRecord) -> ApiResult<Option<(DeviceRecord, (&'static str, String))>>,
) -> ApiResult<axum::Json<DeviceView>> {
    for _ in 0..ATTEMPTS {
        let stored = load(app, device).await?;
        let Some((record, told)) = edit(stored.value)? else { return view(app, device) };
        let kind = told.0;
        if change(app, &record, stored.version, actor, told).await? {
            tracing::info!(%device, kind, by = actor, "a device's record is changed");
            return view(app, device);
        }
    }
    Err(busy(device))
}

/// The device's record.
pub(super) async fn load(app: &App, device: &DeviceId) -> ApiResult<Stored<DeviceRecord>> {
    app.records.get(Table::Devices, device.as_str()).await?.ok_or_else(|| unknown(device))
}

/// Stores the record with its entry in the history. False when somebody else was faster.
pub(super) async fn change(
    app: &App,
    record: &DeviceRecord,
    version: u64,
    actor: &str,
    (kind, detail): (&str, String),
) -> ApiResult<bool> {
    let (event, _held) = app.events.prepare(NewEvent {
        kind: kind.into(),
        actor: actor.into(),
        device: Some(record.id.clone()),
        detail,
        ..NewEvent::default()
    })?;
    let change = Records::put(Table::Devices, record.id.as_str(), Expect::Version(version), record)?;
    match app.records.commit(vec![change, event]).await {
        Ok(()) => {
            app.fleet.update_record(record, version + 1);
            app.nudge.notify_one();
            Ok(true)
        }
        Err(StoreError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The device as it is now.
pub(super) fn view(app: &App, device: &DeviceId) -> ApiResult<axum::Json<DeviceView>> {
    app.fleet.view(device).map(axum::Json).ok_or_else(|| unknown(device))
}

/// Says that others were faster every time.
pub(super) fn busy(device: &DeviceId) -> ApiError {
    let detail = format!("device {device} is being changed by somebody else: try again");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
}
