//! One window: what it has counted so far, when it ends, and what it becomes when it is closed.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_inference::Counted;
use muster_shared::ids::MetricName;
use muster_shared::labels::LabelSpec;
use muster_shared::messages::{RequestCounts, Resources, TelemetryWindow, WindowKey};
use muster_shared::numbers::{Numbers, NumbersError};
use muster_shared::sketch::{
    Comparison, LabelSketch, LatencySketch, ObjectiveCounts, OutlierCounts, QualitySketch, QuantileSketches,
    SketchWindow, SliceSketches,
};

use super::{InputQuality, ModelWatch, Served};

/// A closed window, ready to be stored and sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClosedWindow {
    /// Its counters. A window in which nothing was asked has them too, so that silence shows.
    pub(crate) telemetry: TelemetryWindow,
    /// Its sketches; none when nothing was counted.
    pub(crate) sketch: Option<SketchWindow>,
}

/// A window that is being counted into.
pub(super) struct OpenWindow {
    /// The model it is about.
    pub(super) watch: Arc<ModelWatch>,
    /// Its first millisecond.
    pub(super) start_ms: u64,
    /// The first millisecond after it.
    pub(super) end_ms: u64,
    requests: RequestCounts,
    latency_us: LatencySketch,
    counted: Counted,
    quality: QualitySketch,
    labels: Option<Box<LabelSketch>>,
    /// How the model answered beside the incumbent, where it ran beside one.
    comparison: Option<Comparison>,
    outliers: OutlierCounts,
    objectives: ObjectiveCounts,
    numbers: Numbers,
}

/// The first multiple of `window_ms` after `now_ms`.
pub(super) fn next_boundary_ms(now_ms: u64, window_ms: u64) -> u64 {
    (now_ms / window_ms).saturating_add(1).saturating_mul(window_ms)
}

impl OpenWindow {
    /// An empty window.
    pub(super) fn new(watch: Arc<ModelWatch>, start_ms: u64, end_ms: u64) -> Self {
        Self {
            counted: watch.nothing_counted(),
            objectives: watch.no_latency_counted(),
            quality: watch.no_faults(),
            watch,
            start_ms,
            end_ms,
            requests: RequestCounts::default(),
            latency_us: LatencySketch::default(),
            labels: None,
            comparison: None,
            outliers: OutlierCounts::default(),
            numbers: Numbers::default(),
        }
    }

    /// Its counts of labels, which are those of `spec`.
    pub(super) fn labels(&mut self, spec: &LabelSpec) -> &mut LabelSketch {
        self.labels.get_or_insert_with(|| Box::new(LabelSketch::empty(spec)))
    }

    /// Numbers that applications sent in it.
    pub(super) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Takes in numbers that an application sent: all of them, or none.
    pub(super) fn count_numbers(&mut self, sent: &BTreeMap<MetricName, f64>) -> Result<(), NumbersError> {
        self.numbers.add(sent)
    }

    /// Whether nothing was asked in it, and no label or number came.
    pub(super) fn is_silent(&self) -> bool {
        self.requests == RequestCounts::default()
            && self.labels.is_none()
            && self.comparison.is_none()
            && self.numbers.is_empty()
            && self.watch.skipped() == 0
    }

    /// Whether the clock has been set back since it was opened, by more than `slack_ms`.
    pub(super) fn starts_long_after(&self, now_ms: u64, slack_ms: u64) -> bool {
        self.start_ms > now_ms.saturating_add(slack_ms)
    }

    /// Adds to the request counts.
    pub(super) fn count_requests(&mut self, counts: &RequestCounts) {
        self.requests.merge(counts);
    }

    /// Counts the latency of a request that was served.
    pub(super) fn count_latency(&mut self, latency_us: u64) {
        self.latency_us.add(latency_us);
        self.objectives.add(latency_us);
    }

    /// Counts the rows of a request that was served.
    pub(super) fn count_rows(&mut self, served: &Served<'_>) {
        self.watch.count(&mut self.counted, served);
    }

    /// Counts rows that are unlike those of the reference.
    pub(super) fn count_outliers(&mut self, outliers: &OutlierCounts) {
        self.outliers.merge(outliers);
    }

    /// Counts what was found wrong with a request's inputs.
    pub(super) fn count_quality(&mut self, quality: &InputQuality) {
        if quality.malformed {
            self.quality.malformed = self.quality.malformed.saturating_add(1);
        }
        quality.findings.add_to(&mut self.quality, quality.rejected);
    }

    /// Adds rows that were counted apart.
    pub(super) fn merge_rows(&mut self, counted: &Counted) {
        if !self.counted.merge(counted) {
            tracing::error!("sketches of one watch must have the same cells");
        }
    }

    /// Adds how the model answered beside the incumbent.
    pub(super) fn compare(&mut self, comparison: &Comparison) {
        let sum = self.comparison.get_or_insert_with(|| Comparison::empty(comparison.against));
        if sum.merge(comparison).is_err() {
            tracing::error!("a model is compared with one incumbent at a time");
        }
    }

    /// What it has counted, as a window that ended at `end_ms`.
    pub(super) fn close(self, end_ms: u64) -> ClosedWindow {
        let key = WindowKey {
            manifest: self.watch.manifest,
            generation: self.watch.generation,
            start_ms: self.start_ms,
            // Rates are counts over it, so it is never 0.
            duration_ms: end_ms.saturating_sub(self.start_ms).max(1),
        };
        let mut comparison = self.watch.comparison();
        if let (Some(sum), Some(more)) = (&mut comparison, &self.comparison) {
            // Of one watch there is one incumbent.
            drop(sum.merge(more));
        }
        let Counted { columns, slices, quantiles } = self.counted;
        let counted =
            self.labels.is_some() || !self.quality.is_empty() || columns.iter().any(|column| column.total() > 0);
        ClosedWindow {
            telemetry: TelemetryWindow {
                key,
                requests: self.requests,
                latency_us: self.latency_us,
                resources: Resources::default(),
                comparison,
                objectives: self.objectives,
                numbers: self.numbers,
                program: None,
            },
            sketch: counted.then(|| SketchWindow {
                key,
                profile: self.watch.profile_digest,
                columns,
                slices: SliceSketches::of_counted(slices),
                quality: self.quality,
                labels: self.labels.map(|labels| *labels),
                outliers: self.outliers,
                quantiles: QuantileSketches::of_counted(quantiles),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_multiples_of_the_length() {
        assert_eq!(next_boundary_ms(0, 1_000), 1_000);
        assert_eq!(next_boundary_ms(999, 1_000), 1_000);
        assert_eq!(next_boundary_ms(1_000, 1_000), 2_000);
        assert_eq!(next_boundary_ms(u64::MAX, 1_000), u64::MAX);
    }
}
