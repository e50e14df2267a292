//! How many requests of a bundle took longer than its latency objectives, group by group.

use std::collections::BTreeMap;

use muster_shared::profile::Objectives;
use muster_shared::sketch::ObjectiveCounts;

use super::{DriftError, MAX_GROUPS, Wish};
use crate::content::Listed;
use crate::state::App;
use crate::store::records::WindowRecord;

/// The counts of every group. They come with the counters of requests, not with the sketches.
pub(super) struct Counts<'l> {
    objectives: &'l Objectives,
    groups: BTreeMap<String, ObjectiveCounts>,
    too_many: bool,
}

impl<'l> Counts<'l> {
    /// Nothing yet of `listed`.
    pub(super) fn new(listed: &'l Listed) -> Self {
        Self { objectives: &listed.manifest.profile.objectives, groups: BTreeMap::new(), too_many: false }
    }

    /// Adds a window of the bundle that `wish` asks for; nothing where it holds no such counts.
    pub(super) fn add(&mut self, app: &App, wish: &Wish, window: &WindowRecord) {
        let counts = window.telemetry.as_ref().map(|telemetry| &telemetry.objectives);
        let Some(counts) = counts.filter(|counts| !counts.is_empty() && counts.fits(self.objectives)) else { return };
        let label = wish.group_by.as_deref().and_then(|label| app.fleet.label(&window.device, label));
        let group = label.unwrap_or_default();
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group) {
            self.too_many = true;
            return;
        }
        self.groups.entry(group).or_default().merge(counts);
    }

    /// The counts by group.
    ///
    /// # Errors
    /// [`DriftError::TooManyGroups`].
    pub(super) fn into_groups(self) -> Result<BTreeMap<String, ObjectiveCounts>, DriftError> {
        if self.too_many { Err(DriftError::TooManyGroups) } else { Ok(self.groups) }
    }
}
