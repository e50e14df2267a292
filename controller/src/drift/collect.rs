//! Adds up windows from the store, group by group, in memory that grows with groups and not with devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_shared::drift::DeviceGroups;
use muster_shared::ids::{BundleRef, DeviceId};
use muster_shared::messages::WindowKey;
use muster_shared::profile::{Profile, SliceName};
use muster_shared::sketch::{ColumnSketch, QuantileSketches, SketchWindow};
use muster_shared::suppression::{K_MIN, suppressed};

use super::{DriftError, MAX_GROUPS, Wish};
use crate::content::Listed;
use crate::state::App;
use crate::windows::{self, ReportError, SketchSeen, Sketches};

/// Steps of time told apart; when windows reach further, steps become longer.
pub(super) const MAX_STEPS: usize = 48;

/// A group of devices in a step of time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The value of the label.
    pub(super) group: String,
    /// The slice of rows; none for all of them.
    pub(super) slice: Option<String>,
    /// When the step begins; 0 where steps are not told apart.
    pub(super) step_ms: u64,
}

/// What a group counted.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    /// Windows added.
    pub(super) windows: u64,
    /// Rows of a slice; not counted where there is none.
    rows: u64,
    /// The earliest start of one.
    pub(super) start_ms: u64,
    /// The latest end of one.
    pub(super) end_ms: u64,
    /// Their counts.
    pub(super) counts: DeviceGroups,
    /// Raw values, of the columns of which the profile wants them; none of slices.
    pub(super) quantiles: QuantileSketches,
}

/// What all groups counted of a bundle.
pub(super) struct Collected {
    /// The bundle.
    pub(super) listed: Arc<Listed>,
    /// By group and step.
    pub(super) groups: BTreeMap<Key, Sums>,
}

impl Collected {
    /// The profile that counts were made against.
    pub(super) fn profile(&self) -> &Profile {
        &self.listed.manifest.profile
    }
}

impl Sums {
    fn span(&mut self, start_ms: u64, end_ms: u64) {
        self.start_ms = if self.windows == 0 { start_ms } else { self.start_ms.min(start_ms) };
        self.end_ms = self.end_ms.max(end_ms);
    }

    fn add(&mut self, device: &DeviceId, key: &WindowKey, rows: u64, columns: &[ColumnSketch]) {
        self.span(key.start_ms, key.start_ms.saturating_add(key.duration_ms));
        self.windows += 1;
        self.rows = self.rows.saturating_add(rows);
        self.counts.add(device.as_str(), columns);
    }

    fn merge(&mut self, other: &Self) {
        self.span(other.start_ms, other.end_ms);
        self.windows += other.windows;
        self.rows = self.rows.saturating_add(other.rows);
        self.counts.merge(&other.counts);
        self.add_quantiles(&other.quantiles);
    }

    /// What comes on top of 2^53 values is left out: no fleet sees as many, and devices that say so are not believed.
    fn add_quantiles(&mut self, quantiles: &QuantileSketches) {
        drop(self.quantiles.merge(quantiles));
    }
}

/// Shows every window of `listed` that `wish` asks for, with the value of the label its device is grouped by.
pub(super) async fn each(
    app: &App,
    listed: &Listed,
    wish: &Wish,
    mut visit: impl FnMut(String, &DeviceId, SketchWindow) -> Result<(), DriftError>,
) -> Result<(), DriftError> {
    let mut sketches = Sketches::of(app, listed, wish.since_ms);
    while let Some(SketchSeen { device, at_ms, mut sketch }) = sketches.next().await.map_err(ReportError::from)? {
        let label = wish.group_by.as_deref().and_then(|label| app.fleet.label(&device, label));
        sketch.key.start_ms = at_ms;
        visit(label.unwrap_or_default(), &device, sketch)?;
    }
    Ok(())
}

/// Steps of time: as long as a window, until there are too many.
pub(super) struct Steps {
    length_ms: u64,
}

impl Steps {
    pub(super) fn new() -> Self {
        Self { length_ms: 0 }
    }

    /// The step that `window` began in.
    pub(super) fn of(&mut self, window: &SketchWindow) -> u64 {
        if self.length_ms == 0 {
            self.length_ms = window.key.duration_ms.max(1);
        }
        window.key.start_ms - window.key.start_ms % self.length_ms
    }

    /// Makes steps longer until `groups` holds few enough of them.
    fn coarsen(&mut self, groups: &mut BTreeMap<Key, Sums>) {
        let steps = |groups: &BTreeMap<Key, Sums>| {
            groups.keys().map(|key| key.step_ms).collect::<std::collections::BTreeSet<_>>().len()
        };
        while steps(groups) > MAX_STEPS {
            self.length_ms = self.length_ms.saturating_mul(2);
            for (mut key, sums) in std::mem::take(groups) {
                key.step_ms -= key.step_ms % self.length_ms;
                groups.entry(key).or_default().merge(&sums);
            }
        }
    }
}

/// Windows of one bundle being added up.
pub(crate) struct Tally {
    wish: Wish,
    listed: Arc<Listed>,
    slices: Vec<SliceName>,
    steps: Steps,
    groups: BTreeMap<Key, Sums>,
}

impl Tally {
    /// Nothing yet of `listed`.
    pub(crate) fn new(listed: Arc<Listed>, wish: Wish) -> Self {
        let slices = listed.manifest.profile.slice_names();
        Self { wish, listed, slices, steps: Steps::new(), groups: BTreeMap::new() }
    }

    /// Adds a window of a device in `group` that fits the bundle and that `wish` asks for.
    ///
    /// # Errors
    /// [`DriftError::TooManyGroups`].
    pub(crate) fn add(&mut self, group: String, device: &DeviceId, window: &SketchWindow) -> Result<(), DriftError> {
        let step_ms = if self.wish.by_window { self.steps.of(window) } else { 0 };
        let known = self.groups.len();
        if self.wish.by_slice {
            for (number, slice) in window.slices.iter().filter(|(_, slice)| !slice.columns.is_empty()) {
                let Some(name) = self.slices.get(usize::from(number)) else { continue };
                let key = Key { group: group.clone(), slice: Some(name.to_string()), step_ms };
                self.groups.entry(key).or_default().add(device, &window.key, slice.rows, &slice.columns);
            }
        }
        let key = Key { group, slice: None, step_ms };
        let sums = self.groups.entry(key).or_default();
        sums.add(device, &window.key, 0, &window.columns);
        sums.add_quantiles(&window.quantiles);
        if self.groups.len() > known && self.wish.by_window {
            self.steps.coarsen(&mut self.groups);
        }
        if self.groups.len() > MAX_GROUPS { Err(DriftError::TooManyGroups) } else { Ok(()) }
    }

    /// What was asked for, and all that was added up.
    pub(super) fn into_parts(mut self) -> (Wish, Collected) {
        suppress(&mut self.groups, &self.slices);
        (self.wish, Collected { listed: self.listed, groups: self.groups })
    }
}

/// Adds up everything that `wish` asks for.
///
/// # Errors
/// [`DriftError`].
pub(super) async fn tally(app: &App, bundle: &BundleRef, wish: &Wish) -> Result<Tally, DriftError> {
    let listed = windows::find(app, bundle).await?;
    let mut tally = Tally::new(Arc::clone(&listed), wish.clone());
    each(app, &listed, wish, |group, device, window| tally.add(group, device, &window)).await?;
    Ok(tally)
}

/// The same, ready to be scored.
///
/// # Errors
/// [`DriftError`].
pub(super) async fn collect(app: &App, bundle: &BundleRef, wish: &Wish) -> Result<Collected, DriftError> {
    Ok(tally(app, bundle, wish).await?.into_parts().1)
}

/// Keeps back slices with too few rows, and what would give them away.
fn suppress(groups: &mut BTreeMap<Key, Sums>, slices: &[SliceName]) {
    /// The rows of each slice of one slicing, in one group and step.
    type Cells = Vec<(Key, u64)>;
    let mut tables: BTreeMap<(String, u64, &str), Cells> = BTreeMap::new();
    for (key, sums) in groups.iter() {
        let slicing = slices.iter().find(|name| key.slice.as_deref() == Some(name.to_string().as_str()));
        if let Some(slicing) = slicing {
            let table = tables.entry((key.group.clone(), key.step_ms, slicing.slicing.as_str())).or_default();
            table.push((key.clone(), sums.rows));
        }
    }
    for table in tables.into_values() {
        let rows: Vec<u64> = table.iter().map(|(_, rows)| *rows).collect();
        for ((key, _), hidden) in table.iter().zip(suppressed(&rows, K_MIN)) {
            if hidden {
                groups.remove(key);
            }
        }
    }
}
