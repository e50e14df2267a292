//! Keeping with each device how its updates went.

use muster_rollout::{Note, Rollout};
use muster_shared::ids::DeviceId;

use super::history;
use crate::events::{ACTOR_CONTROLLER, NewEvent};
use crate::state::App;
use crate::store::records::DeviceRecord;
use crate::store::{StoreError, Stored, Table};

/// Puts `notes` into the records to be stored, `changed`, which may hold some of the devices already. Gives an entry in the history for
/// each device that is quarantined from now on.
pub(super) async fn keep(
    app: &App,
    changed: &mut Vec<Stored<DeviceRecord>>,
    notes: Vec<(DeviceId, Note)>,
    rollout: &Rollout,
    now_ms: u64,
) -> Result<Vec<NewEvent>, StoreError> {
    let mut entries = Vec::new();
    // Those to be told come in the order of their names, and so do the notes.
    let told = changed.len();
    for (device, note) in notes {
        let at = changed.get(..told).unwrap_or_default().binary_search_by(|record| record.value.id.cmp(&device));
        let at = match at {
            Ok(at) => at,
            Err(_) => {
                let stored = app.records.get::<DeviceRecord>(Table::Devices, device.as_str()).await?;
                let Some(stored) = stored else { continue };
                changed.push(stored);
                changed.len() - 1
            }
        };
        let Some(Stored { value: record, .. }) = changed.get_mut(at) else { continue };
        let before = record.updates.quarantine().is_some();
        record.updates = record.updates.with(&note, app.config.rollout.quarantine_after.max(1), now_ms);
        if let Some(quarantine) = record.updates.quarantine().filter(|_| !before) {
            tracing::warn!(%device, rollout = %rollout.id, why = quarantine.why, "a device is quarantined");
            let event = history::entry(rollout, "", ACTOR_CONTROLLER, quarantine.why.clone());
            entries.push(NewEvent { kind: "device.quarantined".into(), device: Some(device), ..event });
        }
    }
    Ok(entries)
}
