//! Latency that devices report, as a histogram of Prometheus.

use std::sync::{Arc, Mutex, PoisonError};

use muster_shared::sketch::LatencySketch;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper bounds, in seconds: from a small model on a desk to a large one on a board.
const BOUNDS_S: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0];

/// The latencies of one bundle on all devices since the controller started. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct ReportedLatency {
    sum: Arc<Mutex<LatencySketch>>,
}

impl ReportedLatency {
    /// Adds those of a window.
    pub(super) fn add(&self, latency_us: &LatencySketch) {
        self.sum.lock().unwrap_or_else(PoisonError::into_inner).merge(latency_us);
    }
}

impl TypedMetric for ReportedLatency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for ReportedLatency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (sum_s, up_to) = {
            let sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
            let bounds = BOUNDS_S.into_iter().chain([f64::INFINITY]);
            (sum.sum_us() / 1e6, bounds.map(|bound| (bound, sum.count_up_to(bound * 1e6))).collect::<Vec<_>>())
        };
        // The encoder adds buckets up itself.
        let below = std::iter::once(0).chain(up_to.iter().map(|(_, n)| *n));
        let buckets: Vec<(f64, u64)> =
            up_to.iter().zip(below).map(|((bound, n), below)| (*bound, n.saturating_sub(below))).collect();
        let count = up_to.last().map_or(0, |(_, n)| *n);
        encoder.encode_histogram::<NoLabelSet>(sum_s, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
