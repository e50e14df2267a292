//! How many requests of a bundle took longer than its latency objectives, group by group.

use std::collections::BTreeMap;

use muster_shared::sketch::ObjectiveCounts;

use super::{DriftError, MAX_GROUPS, Wish};
use crate::content::Listed;
use crate::state::App;
use crate::windows::{ReportError, Windows, time_of};

/// The counts of every group. Windows are read once more for them, and only where the bundle has objectives: they come with the counters of
/// requests, not with the sketches.
///
/// # Errors
/// [`DriftError`].
pub(super) async fn of(
    app: &App,
    listed: &Listed,
    wish: &Wish,
) -> Result<BTreeMap<String, ObjectiveCounts>, DriftError> {
    let mut groups: BTreeMap<String, ObjectiveCounts> = BTreeMap::new();
    let objectives = &listed.manifest.profile.objectives;
    if objectives.is_empty() {
        return Ok(groups);
    }
    let mut windows = Windows::started(&app.records, wish.since_ms);
    while let Some((_, window)) = windows.next().await.map_err(ReportError::from)? {
        let is_meant = window.key.manifest == listed.digest
            && time_of(&window, app.config.telemetry.retention_ms) >= wish.since_ms;
        let counts = window.telemetry.as_ref().map(|telemetry| &telemetry.objectives);
        let Some(counts) = counts.filter(|counts| is_meant && counts.fits(objectives)) else { continue };
        let label = wish.group_by.as_deref().and_then(|label| app.fleet.label(&window.device, label));
        groups.entry(label.unwrap_or_default()).or_default().merge(counts);
        if groups.len() > MAX_GROUPS {
            return Err(DriftError::TooManyGroups);
        }
    }
    Ok(groups)
}
