//! What the controller measures of itself, in Prometheus' text form (OpenMetrics).
//!
//! Counters live here and are counted where things happen; gauges that others know better (devices,
//! rollouts) are set just before a scrape is answered.

use std::fmt::Write as _;
use std::sync::Arc;

use muster_shared::feedback::{FeedbackCounts, FeedbackResult};
use muster_shared::messages::RequestCounts;
use muster_shared::rollout::RolloutStatus;
use muster_shared::topics::Up;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// How a message from a device ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ingested {
    /// It was taken in; where it must last, it is durable.
    Stored,
    /// It was known already.
    Duplicate,
    /// It was not what it should be.
    Refused,
    /// It could not be stored; the device will repeat it.
    Failed,
}

impl Ingested {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IngestLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: &'static str,
}

/// Counters and gauges. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    ingest: Family<IngestLabels, Counter>,
    requests: Family<OutcomeLabels, Counter>,
    api: Family<StatusLabels, Counter>,
    rollouts: Family<StatusLabels, Gauge>,
    devices_known: Gauge,
    devices_online: Gauge,
    chunks: Counter,
    chunk_bytes: Counter,
    assignments: Counter,
    feedback: Family<ResultLabels, Counter>,
}

/// What is known only to others, for one scrape.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// Devices that enrolled.
    pub(crate) devices_known: usize,
    /// Devices connected.
    pub(crate) devices_online: usize,
    /// The status of every rollout.
    pub(crate) rollouts: Vec<RolloutStatus>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("muster_controller");
        let ingest = Family::default();
        registry.register("ingest_messages", "Messages from devices, by kind and outcome", ingest.clone());
        let requests = Family::default();
        registry.register(
            "reported_requests",
            "Inference requests in the telemetry of all devices, by how they ended",
            requests.clone(),
        );
        let api = Family::default();
        registry.register("api_requests", "Requests to the API, by class of status", api.clone());
        let rollouts = Family::default();
        registry.register("rollouts", "Rollouts, by status", rollouts.clone());
        let devices_known = Gauge::default();
        registry.register("devices_known", "Devices that enrolled", devices_known.clone());
        let devices_online = Gauge::default();
        registry.register("devices_online", "Devices connected to the broker", devices_online.clone());
        let chunks = Counter::default();
        registry.register("chunks_sent", "Chunks handed to the broker", chunks.clone());
        let chunk_bytes = Counter::default();
        registry.register("chunk_sent_bytes", "Bytes of chunks handed to the broker", chunk_bytes.clone());
        let assignments = Counter::default();
        registry.register("assignments_sent", "Assignments handed to the broker", assignments.clone());
        let feedback = Family::default();
        registry.register("feedback", "Labels pushed at the centre, by what came of them on devices", feedback.clone());
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Which controller this is", build);
        Self {
            registry: Arc::new(registry),
            ingest,
            requests,
            api,
            rollouts,
            devices_known,
            devices_online,
            chunks,
            chunk_bytes,
            assignments,
            feedback,
        }
    }
}

impl Metrics {
    /// Counts a message from a device.
    pub(crate) fn ingested(&self, kind: Up, outcome: Ingested) {
        self.ingest.get_or_create(&IngestLabels { kind: kind.as_str(), outcome: outcome.as_str() }).inc();
    }

    /// Counts the requests of a window that was stored.
    pub(crate) fn requests_reported(&self, requests: &RequestCounts) {
        for (outcome, count) in [
            ("served", requests.served),
            ("failed", requests.failed),
            ("non-finite", requests.non_finite),
            ("rejected", requests.rejected),
            ("overloaded", requests.overloaded),
        ] {
            self.requests.get_or_create(&OutcomeLabels { outcome }).inc_by(count);
        }
    }

    /// Counts a chunk of `bytes` handed to the broker.
    pub(crate) fn chunk_sent(&self, bytes: usize) {
        self.chunks.inc();
        self.chunk_bytes.inc_by(bytes as u64);
    }

    /// Counts an assignment handed to the broker.
    pub(crate) fn assignment_sent(&self) {
        self.assignments.inc();
    }

    /// Counts labels that a device has taken.
    pub(crate) fn feedback_delivered(&self, counts: &FeedbackCounts) {
        for result in FeedbackResult::ALL {
            self.feedback.get_or_create(&ResultLabels { result: result.as_str() }).inc_by(counts.of(result));
        }
    }

    /// Counts labels that no device took in time.
    pub(crate) fn feedback_expired(&self, labels: u64) {
        self.feedback.get_or_create(&ResultLabels { result: "expired" }).inc_by(labels);
    }

    /// Counts an answer of the API.
    pub(crate) fn api_answered(&self, status: u16) {
        let class = match status {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.api.get_or_create(&StatusLabels { status: class }).inc();
    }

    /// Everything, in OpenMetrics' text form.
    pub(crate) fn render(&self, snapshot: &Snapshot) -> String {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.devices_known.set(gauge(snapshot.devices_known));
        self.devices_online.set(gauge(snapshot.devices_online));
        self.rollouts.clear();
        for status in &snapshot.rollouts {
            self.rollouts.get_or_create(&StatusLabels { status: status.as_str() }).inc();
        }
        let mut text = String::new();
        // Writing to a string fails only where a metric cannot be encoded; what came before it is still true.
        if encode(&mut text, &self.registry).is_err() {
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::default();
        metrics.ingested(Up::Telemetry, Ingested::Stored);
        metrics.requests_reported(&RequestCounts { served: 7, failed: 2, ..RequestCounts::default() });
        metrics.api_answered(404);
        metrics.chunk_sent(65_536);
        metrics.feedback_delivered(&FeedbackCounts { joined: 5, ..FeedbackCounts::default() });
        metrics.feedback_expired(3);
        let snapshot = Snapshot { devices_known: 3, devices_online: 2, rollouts: vec![RolloutStatus::Running] };
        let text = metrics.render(&snapshot);
        for line in [
            "muster_controller_ingest_messages_total{kind=\"telemetry\",outcome=\"stored\"} 1",
            "muster_controller_reported_requests_total{outcome=\"served\"} 7",
            "muster_controller_reported_requests_total{outcome=\"failed\"} 2",
            "muster_controller_api_requests_total{status=\"4xx\"} 1",
            "muster_controller_chunk_sent_bytes_total 65536",
            "muster_controller_feedback_total{result=\"joined\"} 5",
            "muster_controller_feedback_total{result=\"expired\"} 3",
            "muster_controller_devices_known 3",
            "muster_controller_devices_online 2",
            "muster_controller_rollouts{status=\"running\"} 1",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!metrics.render(&Snapshot::default()).contains("status=\"running\""));
    }
}
