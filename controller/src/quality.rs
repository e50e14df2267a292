//! How good a bundle is by the labels that devices joined with its predictions.
//!
//! Counts of every device and window are added up exactly, for each group of devices, each slice and each span of time apart. The device
//! is the statistical unit of every interval; where a group has more devices than [`CLUSTERS`], they are put together at random
//! into as many (random groups: Wolter, Introduction to Variance Estimation, 2007, ch. 2), so that memory does not grow with the fleet.
//! Nothing here stops a rollout.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use muster_shared::ids::{BundleRef, DeviceId};
use muster_shared::labels::LabelSpec;
use muster_shared::limits::MAX_SLICES_OF_ONE;
use muster_shared::profile::{MISSING_SLICE, OTHER_SLICE, Profile, SliceBy, SliceName};
use muster_shared::quality::{
    AgainstLimit, ConceptDrift, INTERVAL, LabelStanding, Metric, Quality, QualityGroup, QualityReport, SliceQuality,
    TrendPoint, against_limit, concept_drift, quality_of,
};
use muster_shared::sketch::{LabelCounts, LabelSketch};
use muster_shared::suppression::{K_MIN, suppressed, worst_first};

use crate::content::Listed;
use crate::state::App;
use crate::windows::{self, MAX_GROUPS, ReportError, SketchSeen, Sketches};

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
    let mut tally = Tally::new(Arc::clone(&listed), wish.trend_ms);
    if listed.manifest.profile.labels.is_some() {
        let mut sketches = Sketches::of(app, &listed, wish.since_ms);
        while let Some(seen) = sketches.next().await? {
            let label = wish.group_by.and_then(|label| app.fleet.label(&seen.device, label));
            tally.add(app, label.unwrap_or_default(), &seen)?;
        }
    }
    let profile = &listed.manifest.profile;
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
            Some(spec) => tally.groups.into_iter().map(|(group, sums)| sums.show(group, spec)).collect(),
            None => Vec::new(),
        },
    })
}

/// Labels of one bundle being added up.
pub(crate) struct Tally {
    listed: Arc<Listed>,
    names: Vec<SliceName>,
    trend_ms: u64,
    groups: BTreeMap<String, Group>,
}

/// A metric of one group of devices, or of one slice of its rows.
pub(crate) struct Found {
    /// The group's label; empty for the whole fleet.
    pub(crate) group: String,
    /// The slice; none for all rows.
    pub(crate) slice: Option<String>,
    /// What was found.
    pub(crate) result: AgainstLimit,
}

impl Tally {
    /// Nothing yet of `listed`. A span of the trend has `trend_ms`, at least 1.
    pub(crate) fn new(listed: Arc<Listed>, trend_ms: u64) -> Self {
        let names = listed.manifest.profile.slice_names();
        Self { listed, names, trend_ms, groups: BTreeMap::new() }
    }

    /// Adds a window of a device in `group` that fits the bundle.
    ///
    /// # Errors
    /// [`ReportError::TooManyGroups`].
    pub(crate) fn add(&mut self, app: &App, group: String, seen: &SketchSeen) -> Result<(), ReportError> {
        let profile = &self.listed.manifest.profile;
        let (Some(spec), Some(labels)) = (&profile.labels, &seen.sketch.labels) else { return Ok(()) };
        let told: Vec<SliceName> = labels_of(app, profile, &seen.device);
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group) {
            return Err(ReportError::TooManyGroups);
        }
        let span_ms = seen.at_ms / self.trend_ms * self.trend_ms;
        self.groups.entry(group).or_default().add(spec, &seen.device, labels, (&self.names, told), span_ms);
        Ok(())
    }

    /// Holds `metric` against `limit`, for each group and, where `by_slice` says so, each slice that may be shown.
    pub(crate) fn against(&self, metric: Metric, limit: f64, by_slice: bool) -> Vec<Found> {
        let Some(spec) = &self.listed.manifest.profile.labels else { return Vec::new() };
        let mut found = Vec::new();
        for (group, sums) in &self.groups {
            let mut hold = |slice: Option<String>, clusters: &Clusters| {
                let counts: Vec<&LabelCounts> = clusters.values().collect();
                let results = against_limit(spec, &counts, metric, limit, K_MIN);
                found.extend(results.into_iter().map(|result| Found {
                    group: group.clone(),
                    slice: slice.clone(),
                    result,
                }));
            };
            if by_slice {
                let shown = sums.slices().into_iter().filter(|(_, _, is_kept_back)| !is_kept_back);
                shown.for_each(|(name, clusters, _)| hold(Some(name.to_string()), clusters));
            } else {
                hold(None, &sums.all);
            }
        }
        found
    }

    /// Holds each group against the reference sample.
    pub(crate) fn concept(&self) -> Vec<(String, ConceptDrift, u64)> {
        let Some(spec) = &self.listed.manifest.profile.labels else { return Vec::new() };
        let of_group = |(group, sums): (&String, &Group)| {
            let labels = rows(&sums.all);
            let found = concept_drift(spec, &sums.all.values().collect::<Vec<_>>());
            found.into_iter().filter(move |_| labels >= K_MIN).map(|drift| (group.clone(), drift, labels)).collect()
        };
        self.groups.iter().flat_map(|group| -> Vec<_> { of_group(group) }).collect()
    }
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

/// Labels in all clusters.
fn rows(clusters: &Clusters) -> u64 {
    clusters.values().fold(0, |sum, counts| sum.saturating_add(counts.total()))
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

    /// Every slice, and whether it is kept back: small ones are, together with as many others as it takes to hide them.
    fn slices(&self) -> Vec<(&SliceName, &Clusters, bool)> {
        let mut by_slicing: BTreeMap<&str, Vec<(&SliceName, &Clusters)>> = BTreeMap::new();
        for (name, clusters) in &self.slices {
            by_slicing.entry(&name.slicing).or_default().push((name, clusters));
        }
        let mut all = Vec::new();
        for slices in by_slicing.into_values() {
            let counts: Vec<u64> = slices.iter().map(|(_, clusters)| rows(clusters)).collect();
            let kept_back = suppressed(&counts, K_MIN);
            all.extend(slices.into_iter().zip(kept_back).map(|((name, clusters), kept)| (name, clusters, kept)));
        }
        all
    }

    fn show_slices(&self, spec: &LabelSpec) -> Vec<SliceQuality> {
        let show = |(name, clusters, is_kept_back): (&SliceName, &Clusters, bool)| {
            let quality = if is_kept_back {
                Quality { suppressed: true, ..Quality::default() }
            } else {
                measure(spec, clusters, false)
            };
            SliceQuality { slice: name.to_string(), quality }
        };
        let mut shown: Vec<SliceQuality> = self.slices().into_iter().map(show).collect();
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
pub(crate) mod tests;
