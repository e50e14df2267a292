//! How a bundle compares with the one it ran beside, from the windows of both.
//!
//! Counts of every device and window are added up exactly; a share's interval rests on the devices, which are the statistical unit. The
//! incumbent's own windows count as far as they overlap with the candidate's on the same device.

mod labels;

use std::collections::BTreeMap;

use muster_shared::comparison::{ColumnAgreement, ComparisonGroup, ComparisonReport, ModelFigures};
use muster_shared::ids::{BundleRef, DeviceId, Digest};
use muster_shared::labels::LabelSpec;
use muster_shared::messages::{RequestCounts, TelemetryWindow};
use muster_shared::quality::share_estimate;
use muster_shared::sketch::{ColumnComparison, Comparison, DIFFERENCE_EDGES, LabelOutcomes, LatencySketch, MergeError};

use crate::state::App;
use crate::store::records::{LeftOut, WindowRecord};
use crate::store::{StoreError, Table};
use crate::windows::{self, ReportError, Windows};

/// A group of devices, and the manifest of what the bundle ran beside there.
type Key = (String, Digest);

/// Compares `bundle` with what it ran beside in windows that started at `since_ms` or later, for each value of the label `group_by`
/// apart, or for the whole fleet.
///
/// # Errors
/// [`ReportError`].
pub(crate) async fn report(
    app: &App,
    bundle: &BundleRef,
    group_by: Option<&str>,
    since_ms: u64,
) -> Result<ComparisonReport, ReportError> {
    let listed = windows::find(app, bundle).await?;
    let group_of = |device: &DeviceId| group_by.and_then(|label| app.fleet.label(device, label)).unwrap_or_default();
    let mut groups: BTreeMap<Key, Sums> = BTreeMap::new();
    let mut spans: BTreeMap<(DeviceId, Digest), Span> = BTreeMap::new();
    let mut left_out = LeftOut::default();
    each_window(app, since_ms, |key, device, window| {
        let Some(comparison) = window.comparison.as_ref().filter(|_| window.key.manifest == listed.digest) else {
            return;
        };
        let place = (group_of(device), comparison.against);
        let sums = groups.entry(place).or_insert_with(|| Sums::new(comparison.against));
        if sums.add(device, window, comparison).is_err() {
            return left_out.add(Table::Windows, key);
        }
        spans.entry((device.clone(), comparison.against)).or_default().widen(window);
    })
    .await?;
    // Without a candidate's window there is no incumbent to look for.
    if !spans.is_empty() {
        each_window(app, since_ms, |_, device, window| {
            let span = spans.get(&(device.clone(), window.key.manifest)).filter(|span| span.meets(window));
            let group = span.and_then(|_| groups.get_mut(&(group_of(device), window.key.manifest)));
            if let Some(group) = group {
                group.incumbent.merge(&window.requests);
                group.incumbent_us.merge(&window.latency_us);
            }
        })
        .await?;
    }
    left_out.tell();
    let mut shown = Vec::new();
    for ((group, against), sums) in groups {
        let incumbent = app.catalogue.get(&against).await?;
        let spec = incumbent.as_ref().and_then(|listed| listed.manifest.profile.labels.as_ref());
        shown.push(sums.show(group, against, incumbent.as_ref().map(|listed| listed.bundle.clone()), spec));
    }
    Ok(ComparisonReport {
        bundle: listed.bundle.clone(),
        group_by: group_by.map(str::to_owned),
        since_ms,
        groups: shown,
    })
}

/// Hands every window of counters that started at `since_ms` or later to `visit`, with its key in the store.
async fn each_window(
    app: &App,
    since_ms: u64,
    mut visit: impl FnMut(&str, &DeviceId, &TelemetryWindow) + Send,
) -> Result<(), StoreError> {
    let mut windows = Windows::started(&app.records, since_ms);
    while let Some((key, WindowRecord { device, telemetry, .. })) = windows.next().await? {
        if let Some(telemetry) = telemetry.filter(|telemetry| telemetry.key.start_ms >= since_ms) {
            visit(&key, &device, &telemetry);
        }
    }
    Ok(())
}

/// When a candidate ran on a device, by that device's clock.
struct Span {
    from_ms: u64,
    until_ms: u64,
}

impl Default for Span {
    fn default() -> Self {
        Self { from_ms: u64::MAX, until_ms: 0 }
    }
}

impl Span {
    fn end_ms(window: &TelemetryWindow) -> u64 {
        window.key.start_ms.saturating_add(window.key.duration_ms)
    }

    fn widen(&mut self, window: &TelemetryWindow) {
        self.from_ms = self.from_ms.min(window.key.start_ms);
        self.until_ms = self.until_ms.max(Self::end_ms(window));
    }

    fn meets(&self, window: &TelemetryWindow) -> bool {
        window.key.start_ms < self.until_ms && Self::end_ms(window) > self.from_ms
    }
}

/// The windows of a group, added up.
struct Sums {
    windows: u64,
    comparison: Comparison,
    candidate: RequestCounts,
    candidate_us: LatencySketch,
    incumbent: RequestCounts,
    incumbent_us: LatencySketch,
    devices: BTreeMap<DeviceId, OfDevice>,
}

/// What intervals rest on, of one device.
#[derive(Default)]
struct OfDevice {
    /// Rows that agreed and all rows, of each column of classes.
    classes: BTreeMap<String, (u64, u64)>,
    labels: Option<Box<LabelOutcomes>>,
}

impl Sums {
    fn new(against: Digest) -> Self {
        Self {
            windows: 0,
            comparison: Comparison::empty(against),
            candidate: RequestCounts::default(),
            candidate_us: LatencySketch::default(),
            incumbent: RequestCounts::default(),
            incumbent_us: LatencySketch::default(),
            devices: BTreeMap::new(),
        }
    }

    fn add(&mut self, device: &DeviceId, window: &TelemetryWindow, comparison: &Comparison) -> Result<(), MergeError> {
        self.comparison.merge(comparison)?;
        self.windows += 1;
        self.candidate.merge(&window.requests);
        self.candidate_us.merge(&window.latency_us);
        let own = self.devices.entry(device.clone()).or_default();
        for (name, column) in &comparison.columns {
            if let ColumnComparison::Classes(classes) = column {
                let (agreed, rows) = own.classes.entry(name.clone()).or_default();
                *agreed = agreed.saturating_add(classes.agreed);
                *rows = rows.saturating_add(classes.rows());
            }
        }
        match (&mut own.labels, &comparison.labels) {
            (Some(mine), Some(theirs)) => mine.merge(theirs)?,
            (None, Some(theirs)) => own.labels = Some(theirs.clone()),
            (_, None) => {}
        }
        Ok(())
    }

    fn show(
        self,
        group: String,
        against: Digest,
        incumbent: Option<BundleRef>,
        spec: Option<&LabelSpec>,
    ) -> ComparisonGroup {
        let figures = |requests: &RequestCounts, latency_us: &LatencySketch| ModelFigures {
            requests: requests.served,
            errors: requests.errors(),
            latency_p50_us: latency_us.quantile_us(0.5),
            latency_p99_us: latency_us.quantile_us(0.99),
        };
        // Times of models can be told from times of requests only by what they are compared with.
        let is_shadow = self.comparison.compared > 0;
        let incumbent_us = if is_shadow { &self.comparison.incumbent_us } else { &self.incumbent_us };
        ComparisonGroup {
            group,
            against,
            incumbent,
            devices: u32::try_from(self.devices.len()).unwrap_or(u32::MAX),
            windows: self.windows,
            compared: self.comparison.compared,
            skipped: self.comparison.skipped,
            paused: self.comparison.paused,
            candidate_failed: self.comparison.failed,
            candidate_figures: figures(&self.candidate, &self.candidate_us),
            incumbent_figures: figures(&self.incumbent, incumbent_us),
            columns: self.comparison.columns.iter().filter_map(|(name, column)| self.column(name, column)).collect(),
            labels: self.comparison.labels.as_deref().and_then(|all| {
                let devices: Vec<&LabelOutcomes> =
                    self.devices.values().filter_map(|own| own.labels.as_deref()).collect();
                labels::report(all, &devices, spec)
            }),
        }
    }

    /// None where this version has no word for what was compared.
    fn column(&self, name: &str, column: &ColumnComparison) -> Option<ColumnAgreement> {
        let name = name.to_owned();
        Some(match column {
            ColumnComparison::Other => return None,
            ColumnComparison::Classes(classes) => {
                let devices = self.devices.values().filter_map(|own| own.classes.get(&name));
                let devices: Vec<(f64, f64)> = devices.map(|(agreed, rows)| (*agreed as f64, *rows as f64)).collect();
                let agreement = share_estimate(&devices);
                ColumnAgreement::Classes { name, rows: classes.rows(), agreement, pairs: classes.pairs.clone() }
            }
            ColumnComparison::Numbers(numbers) => ColumnAgreement::Numbers {
                name,
                rows: numbers.rows(),
                untold: numbers.untold,
                mean_difference: numbers.mean(),
                root_mean_square: numbers.root_mean_square(),
                edges: DIFFERENCE_EDGES.to_vec(),
                cells: numbers.cells.to_vec(),
            },
        })
    }
}
