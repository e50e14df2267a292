//! How good a bundle is by the labels that devices joined with its predictions.
//!
//! Counts of every device and window are added up exactly, for each group of devices, each slice and each span of time apart. The device
//! is the statistical unit of every interval; where a group has more devices than [`CLUSTERS`], they are put together at random
//! into as many (random groups: Wolter, Introduction to Variance Estimation, 2007, ch. 2), so that memory does not grow with the fleet.
//! Nothing here stops a rollout.

use std::collections::{BTreeMap, HashMap};

use muster_shared::ids::{BundleRef, DeviceId};
use muster_shared::labels::LabelSpec;
use muster_shared::limits::MAX_SLICES_OF_ONE;
use muster_shared::profile::{MISSING_SLICE, OTHER_SLICE, Profile, SliceBy, SliceName};
use muster_shared::quality::{
    INTERVAL, LabelStanding, Quality, QualityGroup, QualityReport, SliceQuality, TrendPoint, concept_drift, quality_of,
};
use muster_shared::sketch::{LabelCounts, LabelSketch};
use muster_shared::suppression::{K_MIN, suppressed, worst_first};

use crate::state::App;
use crate::windows::{self, ReportError, SketchSeen, Sketches};

/// Clusters of devices kept apart for intervals.
const CLUSTERS: usize = 256;
/// The same within one span of time.
const TREND_CLUSTERS: usize = 32;
/// Spans of time shown, the last ones.
const MAX_TREND_POINTS: usize = 200;

/// What is wanted of a report.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'w> {
    /// A label: one group of devices for each of its values.
    pub(crate) group_by: Option<&'w str>,
    /// Only windows that started then or later, in milliseconds since the Unix epoch.
    pub(crate) since_ms: u64,
    /// Length of a span of the trend, in milliseconds, at least 1.
    pub(crate) trend_ms: u64,
}

/// Measures the labels of `bundle`.
///
/// # Errors
/// [`ReportError`].
pub(crate) async fn report(app: &App, bundle: &BundleRef, wish: Wish<'_>) -> Result<QualityReport, ReportError> {
    let listed = windows::find(app, bundle).await?;
    let profile = &listed.manifest.profile;
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    if let Some(spec) = &profile.labels {
        let names = profile.slice_names();
        let mut sketches = Sketches::of(app, &listed, wish.since_ms);
        while let Some(SketchSeen { device, at_ms, sketch }) = sketches.next().await? {
            let Some(labels) = sketch.labels else { continue };
            let label = wish.group_by.and_then(|label| app.fleet.label(&device, label));
            let told: Vec<SliceName> = labels_of(app, profile, &device);
            let group = groups.entry(label.unwrap_or_default()).or_default();
            let span_ms = at_ms / wish.trend_ms * wish.trend_ms;
            group.add(spec, &device, &labels, (&names, told), span_ms);
        }
    }
    Ok(QualityReport {
        bundle: listed.bundle.clone(),
        profile: listed.profile_digest,
        group_by: wish.group_by.map(str::to_owned),
        since_ms: wish.since_ms,
        k_min: K_MIN,
        interval: INTERVAL,
        trend_ms: wish.trend_ms,
        task: profile.labels.as_ref().map(|spec| spec.task.clone()),
        baseline: profile.labels.as_ref().and_then(|spec| spec.baseline.clone()),
        groups: match &profile.labels {
            Some(spec) => groups.into_iter().map(|(group, sums)| sums.show(group, spec)).collect(),
            None => Vec::new(),
        },
    })
}

/// The slices a device is in by its labels.
fn labels_of(app: &App, profile: &Profile, device: &DeviceId) -> Vec<SliceName> {
    let by_label = |slicing: &muster_shared::profile::Slicing| match &slicing.by {
        SliceBy::Label { label } => Some(SliceName {
            slicing: slicing.name.clone(),
            slice: app.fleet.label(device, label).unwrap_or_else(|| MISSING_SLICE.to_owned()),
        }),
        SliceBy::Range { .. } | SliceBy::Category { .. } => None,
    };
    profile.slices.iter().filter_map(by_label).collect()
}

/// Counts by cluster of devices.
type Clusters = BTreeMap<usize, LabelCounts>;

fn merge_into(clusters: &mut Clusters, cluster: usize, counts: &LabelCounts) {
    match clusters.get_mut(&cluster) {
        // They fit the same profile, so they can be added.
        Some(sum) => drop(sum.merge(counts)),
        None => drop(clusters.insert(cluster, counts.clone())),
    }
}

fn measure(spec: &LabelSpec, clusters: &Clusters, detail: bool) -> Quality {
    quality_of(spec, &clusters.values().collect::<Vec<_>>(), K_MIN, detail)
}

/// The windows of a group, added up.
#[derive(Default)]
struct Group {
    windows: u64,
    /// The number of each device, in the order in which they were met.
    devices: HashMap<DeviceId, usize>,
    /// Everything but the counts by cluster.
    sum: Option<LabelSketch>,
    all: Clusters,
    slices: BTreeMap<SliceName, Clusters>,
    trend: BTreeMap<u64, Clusters>,
}

impl Group {
    fn add(
        &mut self,
        spec: &LabelSpec,
        device: &DeviceId,
        labels: &LabelSketch,
        (names, told): (&[SliceName], Vec<SliceName>),
        span_ms: u64,
    ) {
        self.windows += 1;
        let next = self.devices.len();
        let number = *self.devices.entry(device.clone()).or_insert(next);
        // It fits the same profile, so it can be added.
        drop(self.sum.get_or_insert_with(|| LabelSketch::empty(spec)).merge(labels));
        if labels.all.total() == 0 {
            return;
        }
        merge_into(&mut self.all, number % CLUSTERS, &labels.all);
        for (slice, counts) in &labels.slices {
            if let Some(name) = names.get(usize::from(*slice)) {
                merge_into(self.slices.entry(name.clone()).or_default(), number % CLUSTERS, counts);
            }
        }
        for name in told {
            let known = self.slices.keys().filter(|slice| slice.slicing == name.slicing).count();
            let has_room = known < MAX_SLICES_OF_ONE || self.slices.contains_key(&name);
            let name = if has_room { name } else { SliceName { slice: OTHER_SLICE.to_owned(), ..name } };
            merge_into(self.slices.entry(name).or_default(), number % CLUSTERS, &labels.all);
        }
        merge_into(self.trend.entry(span_ms).or_default(), number % TREND_CLUSTERS, &labels.all);
        if self.trend.len() > MAX_TREND_POINTS {
            self.trend.pop_first();
        }
    }

    fn show(&self, group: String, spec: &LabelSpec) -> QualityGroup {
        let span = |(start_ms, clusters): (&u64, &Clusters)| TrendPoint {
            start_ms: *start_ms,
            quality: measure(spec, clusters, false),
        };
        QualityGroup {
            group,
            devices: u32::try_from(self.devices.len()).unwrap_or(u32::MAX),
            windows: self.windows,
            standing: self.sum.as_ref().map(standing).unwrap_or_default(),
            quality: measure(spec, &self.all, true),
            concept: concept_drift(spec, &self.all.values().collect::<Vec<_>>()),
            slices: self.show_slices(spec),
            trend: self.trend.iter().map(span).collect(),
        }
    }

    /// Every slice, small ones kept back together with as many others as it takes to hide them.
    fn show_slices(&self, spec: &LabelSpec) -> Vec<SliceQuality> {
        let mut by_slicing: BTreeMap<&str, Vec<(&SliceName, &Clusters)>> = BTreeMap::new();
        for (name, clusters) in &self.slices {
            by_slicing.entry(&name.slicing).or_default().push((name, clusters));
        }
        let mut shown = Vec::new();
        for slices in by_slicing.into_values() {
            let rows = |clusters: &Clusters| clusters.values().fold(0_u64, |sum, c| sum.saturating_add(c.total()));
            let counts: Vec<u64> = slices.iter().map(|(_, clusters)| rows(clusters)).collect();
            for ((name, clusters), is_kept_back) in slices.into_iter().zip(suppressed(&counts, K_MIN)) {
                let quality = if is_kept_back {
                    Quality { suppressed: true, ..Quality::default() }
                } else {
                    measure(spec, clusters, false)
                };
                shown.push(SliceQuality { slice: name.to_string(), quality });
            }
        }
        worst_first(&mut shown, |slice| slice.quality.score);
        shown
    }
}

fn standing(sum: &LabelSketch) -> LabelStanding {
    let labelled = sum.all.total();
    LabelStanding {
        predictions: sum.predictions,
        results: sum.results,
        forgotten: sum.forgotten,
        coverage: (sum.predictions > 0).then(|| labelled as f64 / sum.predictions as f64),
        // The sketch counts milliseconds here.
        delay_p50_ms: sum.delay_ms.quantile_us(0.5),
        delay_p90_ms: sum.delay_ms.quantile_us(0.9),
    }
}

#[cfg(test)]
mod tests;
