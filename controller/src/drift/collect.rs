//! Adds up windows from the store, group by group, in memory that grows with groups and not with devices.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use muster_shared::drift::{DeviceGroups, InputCounts};
use muster_shared::ids::{BundleRef, DeviceId};
use muster_shared::messages::WindowKey;
use muster_shared::profile::{Profile, SliceName};
use muster_shared::sketch::{ColumnSketch, LabelCounts, QuantileSketches, SketchWindow, SliceSketch};
use muster_shared::suppression::{K_MIN, suppressed};

use super::{DriftError, MAX_GROUPS, Wish};
use crate::content::Listed;
use crate::state::App;
use crate::store::records::WindowRecord;
use crate::windows::{self, ReportError, SketchSeen, Sketches};

/// Steps of time told apart; when windows reach further, steps become longer.
pub(super) const MAX_STEPS: usize = 48;

/// Clusters of devices whose labels are kept apart in a step of time.
const LABEL_CLUSTERS: usize = 32;

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
    /// What was wrong or odd with their inputs; not of slices.
    pub(super) inputs: InputCounts,
    /// Their labels, by cluster of devices; where they were asked for.
    pub(super) labels: BTreeMap<usize, LabelCounts>,
    /// It is a slice that is not to be shown.
    pub(super) suppressed: bool,
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

    fn count(&mut self, device: &DeviceId, key: &WindowKey, columns: &[ColumnSketch]) {
        self.span(key.start_ms, key.start_ms.saturating_add(key.duration_ms));
        self.windows += 1;
        self.counts.add(device.as_str(), columns);
    }

    fn add_slice(&mut self, device: &DeviceId, key: &WindowKey, slice: &SliceSketch) {
        self.count(device, key, &slice.columns);
        self.rows = self.rows.saturating_add(slice.rows);
    }

    fn add(&mut self, device: &DeviceId, window: &SketchWindow) {
        self.count(device, &window.key, &window.columns);
        self.inputs.add(device.as_str(), window);
        self.add_quantiles(&window.quantiles);
    }

    fn add_labels(&mut self, cluster: usize, counts: &LabelCounts) {
        match self.labels.get_mut(&cluster) {
            // They fit the same profile, so they can be added.
            Some(sum) => drop(sum.merge(counts)),
            None => drop(self.labels.insert(cluster, counts.clone())),
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.span(other.start_ms, other.end_ms);
        self.windows += other.windows;
        self.rows = self.rows.saturating_add(other.rows);
        self.counts.merge(&other.counts);
        self.inputs.merge(&other.inputs);
        self.add_quantiles(&other.quantiles);
        other.labels.iter().for_each(|(cluster, counts)| self.add_labels(*cluster, counts));
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
    visit: impl FnMut(String, &DeviceId, SketchWindow) -> Result<(), DriftError>,
) -> Result<(), DriftError> {
    each_beside(app, listed, wish, |_| {}, visit).await
}

/// The same, with counters of requests shown to `counters`.
async fn each_beside(
    app: &App,
    listed: &Listed,
    wish: &Wish,
    mut counters: impl FnMut(&WindowRecord),
    mut visit: impl FnMut(String, &DeviceId, SketchWindow) -> Result<(), DriftError>,
) -> Result<(), DriftError> {
    let mut sketches = Sketches::of(app, listed, wish.since_ms);
    while let Some(seen) = sketches.next_beside(&mut counters).await.map_err(ReportError::from)? {
        let SketchSeen { device, at_ms, mut sketch } = seen;
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
    /// Of each group the number of each device that has labels, in the order in which they were met.
    numbers: BTreeMap<String, HashMap<DeviceId, usize>>,
}

impl Tally {
    /// Nothing yet of `listed`.
    pub(crate) fn new(listed: Arc<Listed>, wish: Wish) -> Self {
        let slices = listed.manifest.profile.slice_names();
        Self { wish, listed, slices, steps: Steps::new(), groups: BTreeMap::new(), numbers: BTreeMap::new() }
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
                self.groups.entry(key).or_default().add_slice(device, &window.key, slice);
            }
        }
        let labels = window.labels.as_ref().filter(|labels| self.wish.labels && labels.all.total() > 0);
        let number = labels.map(|_| {
            let numbers = self.numbers.entry(group.clone()).or_default();
            let next = numbers.len();
            *numbers.entry(device.clone()).or_insert(next)
        });
        let sums = self.groups.entry(Key { group, slice: None, step_ms }).or_default();
        sums.add(device, window);
        if let Some((labels, number)) = labels.zip(number) {
            sums.add_labels(number % LABEL_CLUSTERS, &labels.all);
        }
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

/// Adds up everything that `wish` asks for of `listed`. Counters of requests are shown to `counters`.
///
/// # Errors
/// [`DriftError`].
pub(super) async fn tally(
    app: &App,
    listed: &Arc<Listed>,
    wish: &Wish,
    counters: impl FnMut(&WindowRecord),
) -> Result<Tally, DriftError> {
    let mut tally = Tally::new(Arc::clone(listed), wish.clone());
    each_beside(app, listed, wish, counters, |group, device, window| tally.add(group, device, &window)).await?;
    Ok(tally)
}

/// What `wish` asks for, ready to be scored.
///
/// # Errors
/// [`DriftError`].
pub(super) async fn collect(app: &App, bundle: &BundleRef, wish: &Wish) -> Result<Collected, DriftError> {
    let listed = windows::find(app, bundle).await?;
    Ok(tally(app, &listed, wish, |_| {}).await?.into_parts().1)
}

/// Marks slices with too few rows, and what would give them away.
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
            if let Some(sums) = groups.get_mut(key) {
                sums.suppressed = hidden;
            }
        }
    }
}
