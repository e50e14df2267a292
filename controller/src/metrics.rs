//! What the controller measures of itself and the fleet, for Prometheus. docs/metrics.md lists every name.
//!
//! Counters live here and are counted where things happen; gauges that others know better (devices, rollouts, alerts, drift) are set
//! just before a scrape is answered. Nothing is counted by device: a fleet may have a hundred thousand.

mod latency;
mod outcomes;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use muster_shared::alert::{AlertState, Severity};
use muster_shared::feedback::{FeedbackCounts, FeedbackResult};
use muster_shared::ids::RolloutId;
use muster_shared::messages::RequestCounts;
use muster_shared::rollout::{DeviceOutcomes, RolloutStatus};
use muster_shared::sketch::{LatencySketch, ObjectiveCounts};
use muster_shared::topics::Up;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::alerts::LastRound;
use crate::config::Config;
use latency::ReportedLatency;
use outcomes::RolloutOutcomes;

/// Upper bounds of the time from a window's end to its arrival, in seconds: from a device that is connected to one that was away
/// for days.
const LAG_BOUNDS_S: [f64; 9] =
    [1.0, 10.0, 60.0, 600.0, 3_600.0, 6.0 * 3_600.0, 86_400.0, 3.0 * 86_400.0, 10.0 * 86_400.0];
/// Upper bounds of the time a round of alerts takes, in seconds.
const ROUND_BOUNDS_S: [f64; 8] = [0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0];

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
struct RequestLabels {
    bundle: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BundleLabels {
    bundle: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectiveLabels {
    bundle: String,
    latency_ms: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AlertLabels {
    severity: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeliveryLabels {
    receiver: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReceiverLabels {
    receiver: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DriftLabels {
    bundle: String,
    group: String,
    column: String,
}

type Share = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: &'static str,
}

/// Counters and gauges. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    ingest: Family<IngestLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    latency: Family<BundleLabels, ReportedLatency>,
    above_objective: Family<ObjectiveLabels, Counter>,
    window_lag: Histogram,
    api: Family<StatusLabels, Counter>,
    rollouts: Family<StatusLabels, Gauge>,
    outcomes: RolloutOutcomes,
    devices_known: Gauge,
    devices_online: Gauge,
    chunks: Counter,
    chunk_bytes: Counter,
    assignments: Counter,
    feedback: Family<ResultLabels, Counter>,
    alerts: Family<AlertLabels, Gauge>,
    alert_deliveries: Family<DeliveryLabels, Counter>,
    alert_queue: Family<ReceiverLabels, Gauge>,
    alert_rounds: Histogram,
    alert_round_at: Share,
    drift_psi: Family<DriftLabels, Share>,
    drift_critical: Family<DriftLabels, Share>,
    drift_missing: Family<DriftLabels, Share>,
    drift_unexpected: Family<DriftLabels, Share>,
    drift_left_out: Gauge,
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
    /// How many alerts there are, by severity and state.
    pub(crate) alerts: BTreeMap<(&'static str, &'static str), usize>,
    /// Messages that wait, by receiver.
    pub(crate) alerts_queued: BTreeMap<String, usize>,
    /// What the last round of alerts found.
    pub(crate) last_round: LastRound,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(config: &Config) -> Self {
        let mut registry = Registry::with_prefix("muster_controller");
        let ingest = Family::default();
        registry.register("ingest_messages", "Messages from devices, by kind and outcome", ingest.clone());
        let requests = Family::default();
        registry.register(
            "reported_requests",
            "Inference requests in the telemetry of all devices, by bundle and how they ended",
            requests.clone(),
        );
        let latency = Family::default();
        registry.register_with_unit(
            "reported_request_duration",
            "Time to answer inference requests in the telemetry of all devices, by bundle",
            Unit::Seconds,
            latency.clone(),
        );
        let above_objective = Family::default();
        registry.register(
            "reported_requests_above_objective",
            "Requests in the telemetry of all devices that took longer than a latency objective of their bundle",
            above_objective.clone(),
        );
        let window_lag = Histogram::new(LAG_BOUNDS_S);
        registry.register_with_unit(
            "window_lag",
            "Time from the end of a monitoring window, by the device's clock, to its arrival",
            Unit::Seconds,
            window_lag.clone(),
        );
        let api = Family::default();
        registry.register("api_requests", "Requests to the API, by class of status", api.clone());
        let rollouts = Family::default();
        registry.register("rollouts", "Rollouts, by status", rollouts.clone());
        let outcomes = RolloutOutcomes::default();
        registry.register_collector(Box::new(outcomes.clone()));
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
        let alerts = Family::default();
        registry.register("alerts", "Alerts, by severity and state", alerts.clone());
        let alert_deliveries = Family::<DeliveryLabels, Counter>::default();
        registry.register(
            "alert_deliveries",
            "Tries to tell a receiver of alerts, by what came of them",
            alert_deliveries.clone(),
        );
        for receiver in &config.alerts.receivers {
            for result in ["delivered", "failed", "given-up", "dropped"] {
                drop(alert_deliveries.get_or_create(&DeliveryLabels { receiver: receiver.name.to_string(), result }));
            }
        }
        let alert_queue = Family::default();
        registry.register("alert_messages_queued", "Messages about alerts that wait, by receiver", alert_queue.clone());
        let alert_rounds = Histogram::new(ROUND_BOUNDS_S);
        registry.register_with_unit(
            "alert_evaluation_duration",
            "Time a round of alerts took",
            Unit::Seconds,
            alert_rounds.clone(),
        );
        let alert_round_at = Share::default();
        registry.register_with_unit(
            "alert_evaluation_last_timestamp",
            "When alerts were last evaluated, 0 for never",
            Unit::Seconds,
            alert_round_at.clone(),
        );
        let [drift_psi, drift_critical, drift_missing, drift_unexpected]: [Family<DriftLabels, Share>; 4] =
            Default::default();
        for (name, help, family) in [
            ("drift_psi", "Population stability index of a column against its reference", &drift_psi),
            ("drift_psi_critical", "What that index exceeds by chance only", &drift_critical),
            ("drift_missing_ratio", "Share of requests in which a column had no value", &drift_missing),
            (
                "drift_unexpected_ratio",
                "Share of a column's values that its reference does not know",
                &drift_unexpected,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        let drift_left_out = Gauge::default();
        registry.register(
            "drift_series_left_out",
            "Columns of bundles and groups whose drift is not shown, being more than alerts.max-drift-series",
            drift_left_out.clone(),
        );
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Which controller this is", build);
        Self {
            registry: Arc::new(registry),
            ingest,
            requests,
            latency,
            above_objective,
            api,
            rollouts,
            outcomes,
            devices_known,
            devices_online,
            chunks,
            chunk_bytes,
            assignments,
            feedback,
            window_lag,
            alerts,
            alert_deliveries,
            alert_queue,
            alert_rounds,
            alert_round_at,
            drift_psi,
            drift_critical,
            drift_missing,
            drift_unexpected,
            drift_left_out,
        }
    }

    /// Counts a message from a device.
    pub(crate) fn ingested(&self, kind: Up, outcome: Ingested) {
        self.ingest.get_or_create(&IngestLabels { kind: kind.as_str(), outcome: outcome.as_str() }).inc();
    }

    /// Counts the requests of a window of `bundle` that was stored, and the time their answers took.
    pub(crate) fn requests_reported(&self, bundle: &str, requests: &RequestCounts, latency_us: &LatencySketch) {
        if latency_us.count() > 0 {
            self.latency.get_or_create(&BundleLabels { bundle: bundle.to_owned() }).add(latency_us);
        }
        for (outcome, count) in [
            ("served", requests.served),
            ("failed", requests.failed),
            ("non-finite", requests.non_finite),
            ("rejected", requests.rejected),
            ("overloaded", requests.overloaded),
        ] {
            // Windows of sketches and crashes hold no requests; they make no series.
            if count > 0 {
                self.requests.get_or_create(&RequestLabels { bundle: bundle.to_owned(), outcome }).inc_by(count);
            }
        }
    }

    /// Counts the requests of a window of `bundle` that took longer than its latency objectives.
    pub(crate) fn objectives_reported(&self, bundle: &str, objectives: &ObjectiveCounts) {
        for count in objectives.iter() {
            let latency_ms = (count.edge_us as f64 / 1_000.0).to_string();
            let labels = ObjectiveLabels { bundle: bundle.to_owned(), latency_ms };
            self.above_objective.get_or_create(&labels).inc_by(count.above);
        }
    }

    /// Counts a window that arrived `lag_ms` after its end.
    pub(crate) fn window_arrived(&self, lag_ms: u64) {
        self.window_lag.observe(Duration::from_millis(lag_ms).as_secs_f64());
    }

    /// Counts a try to tell a receiver.
    pub(crate) fn alert_delivered(&self, receiver: &str, result: &'static str) {
        self.alert_deliveries.get_or_create(&DeliveryLabels { receiver: receiver.to_owned(), result }).inc();
    }

    /// Counts a round of alerts.
    pub(crate) fn alerts_evaluated(&self, took: Duration) {
        self.alert_rounds.observe(took.as_secs_f64());
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

    /// Shows how the devices of a rollout that has not ended fare in its current wave, counted from 0.
    pub(crate) fn rollout_stands(&self, rollout: &RolloutId, wave: u32, outcomes: DeviceOutcomes) {
        self.outcomes.note(rollout, wave, outcomes);
    }

    /// Shows nothing of the rollout any more.
    pub(crate) fn rollout_ended(&self, rollout: &RolloutId) {
        self.outcomes.forget(rollout);
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
        self.show_alerts(snapshot);
        let mut text = String::new();
        // Writing to a string fails only where a metric cannot be encoded; what came before it is still true.
        if encode(&mut text, &self.registry).is_err() {
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}

impl Metrics {
    fn show_alerts(&self, snapshot: &Snapshot) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        // Also those of which there is none, so that a rule on them never finds nothing.
        for severity in Severity::ALL {
            for state in AlertState::ALL {
                let labels = AlertLabels { severity: severity.as_str(), state: state.as_str() };
                let count = snapshot.alerts.get(&(labels.severity, labels.state)).copied().unwrap_or(0);
                self.alerts.get_or_create(&labels).set(gauge(count));
            }
        }
        for (receiver, waiting) in &snapshot.alerts_queued {
            self.alert_queue.get_or_create(&ReceiverLabels { receiver: receiver.clone() }).set(gauge(*waiting));
        }
        let last = &snapshot.last_round;
        self.alert_round_at.set(last.at_ms as f64 / 1_000.0);
        self.drift_left_out.set(gauge(last.drift_left_out));
        let families = [&self.drift_psi, &self.drift_critical, &self.drift_missing, &self.drift_unexpected];
        families.iter().for_each(|family| family.clear());
        for series in &last.drift {
            let labels = DriftLabels {
                bundle: series.bundle.clone(),
                group: series.group.clone(),
                column: series.column.clone(),
            };
            let values = [series.psi, series.critical, Some(series.missing_share), Some(series.unexpected_share)];
            for (family, value) in families.iter().zip(values) {
                if let Some(value) = value {
                    family.get_or_create(&labels).set(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::profile::Objectives;

    use super::*;
    use crate::alerts::DriftSeries;

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::new(&Config::default());
        metrics.ingested(Up::Telemetry, Ingested::Stored);
        let mut latency_us = LatencySketch::default();
        [200, 200, 4_000, 4_000, 4_000, 4_000, 20_000_000].into_iter().for_each(|us| latency_us.add(us));
        let requests = RequestCounts { served: 7, failed: 2, ..RequestCounts::default() };
        metrics.requests_reported("digits@1.0.0", &requests, &latency_us);
        let mut objectives = ObjectiveCounts::empty(&Objectives { latency_us: vec![2_500, 50_000] });
        [1_000, 3_000, 60_000].iter().for_each(|latency_us| objectives.add(*latency_us));
        metrics.objectives_reported("digits@1.0.0", &objectives);
        metrics.api_answered(404);
        metrics.chunk_sent(65_536);
        metrics.feedback_delivered(&FeedbackCounts { joined: 5, ..FeedbackCounts::default() });
        metrics.feedback_expired(3);
        metrics.window_arrived(2_000);
        metrics.alert_delivered("on-call", "failed");
        let rollout = RolloutId::new("r7").unwrap();
        let outcomes =
            DeviceOutcomes { targeted: 9, succeeded: 8, reported: 7, erring: 2, ..DeviceOutcomes::default() };
        metrics.rollout_stands(&rollout, 0, DeviceOutcomes::default());
        metrics.rollout_stands(&rollout, 1, outcomes);
        let drift = DriftSeries {
            bundle: "digits@1.0.0".into(),
            group: "site=lyon".into(),
            column: "x".into(),
            psi: Some(0.5),
            critical: None,
            missing_share: 0.25,
            unexpected_share: 0.0,
        };
        let snapshot = Snapshot {
            devices_known: 3,
            devices_online: 2,
            rollouts: vec![RolloutStatus::Running],
            alerts: [(("warning", "firing"), 4)].into(),
            alerts_queued: [("on-call".to_owned(), 2)].into(),
            last_round: LastRound { at_ms: 1_500, drift: vec![drift], drift_left_out: 7 },
        };
        let text = metrics.render(&snapshot);
        for line in [
            "muster_controller_ingest_messages_total{kind=\"telemetry\",outcome=\"stored\"} 1",
            "muster_controller_reported_requests_total{bundle=\"digits@1.0.0\",outcome=\"served\"} 7",
            "muster_controller_reported_requests_above_objective_total{bundle=\"digits@1.0.0\",latency_ms=\"2.5\"} 2",
            "muster_controller_reported_requests_above_objective_total{bundle=\"digits@1.0.0\",latency_ms=\"50\"} 1",
            "muster_controller_reported_requests_total{bundle=\"digits@1.0.0\",outcome=\"failed\"} 2",
            "# TYPE muster_controller_reported_request_duration_seconds histogram",
            "muster_controller_reported_request_duration_seconds_bucket{le=\"0.0001\",bundle=\"digits@1.0.0\"} 0",
            "muster_controller_reported_request_duration_seconds_bucket{le=\"0.001\",bundle=\"digits@1.0.0\"} 2",
            "muster_controller_reported_request_duration_seconds_bucket{le=\"0.005\",bundle=\"digits@1.0.0\"} 6",
            "muster_controller_reported_request_duration_seconds_bucket{le=\"10.0\",bundle=\"digits@1.0.0\"} 6",
            "muster_controller_reported_request_duration_seconds_bucket{le=\"+Inf\",bundle=\"digits@1.0.0\"} 7",
            "muster_controller_reported_request_duration_seconds_count{bundle=\"digits@1.0.0\"} 7",
            "muster_controller_window_lag_seconds_bucket{le=\"10.0\"} 1",
            "muster_controller_alerts{severity=\"warning\",state=\"firing\"} 4",
            "muster_controller_alerts{severity=\"critical\",state=\"firing\"} 0",
            "muster_controller_alert_deliveries_total{receiver=\"on-call\",result=\"failed\"} 1",
            "muster_controller_alert_messages_queued{receiver=\"on-call\"} 2",
            "muster_controller_alert_evaluation_last_timestamp_seconds 1.5",
            "muster_controller_drift_psi{bundle=\"digits@1.0.0\",group=\"site=lyon\",column=\"x\"} 0.5",
            "muster_controller_drift_missing_ratio{bundle=\"digits@1.0.0\",group=\"site=lyon\",column=\"x\"} 0.25",
            "muster_controller_drift_series_left_out 7",
            "muster_controller_api_requests_total{status=\"4xx\"} 1",
            "muster_controller_chunk_sent_bytes_total 65536",
            "muster_controller_feedback_total{result=\"joined\"} 5",
            "muster_controller_feedback_total{result=\"expired\"} 3",
            "muster_controller_devices_known 3",
            "muster_controller_devices_online 2",
            "muster_controller_rollouts{status=\"running\"} 1",
            "# TYPE muster_controller_rollout_devices_targeted gauge",
            "muster_controller_rollout_devices_targeted{rollout=\"r7\",wave=\"2\"} 9",
            "muster_controller_rollout_devices_succeeded{rollout=\"r7\",wave=\"2\"} 8",
            "muster_controller_rollout_devices_reported{rollout=\"r7\",wave=\"2\"} 7",
            "muster_controller_rollout_devices_erring{rollout=\"r7\",wave=\"2\"} 2",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("wave=\"1\""), "the wave that is over in\n{text}");
        metrics.rollout_ended(&rollout);
        let empty = metrics.render(&Snapshot::default());
        assert!(!empty.contains("rollout_devices"), "{empty}");
        assert!(!empty.contains("status=\"running\"") && !empty.contains("drift_psi{"), "{empty}");
    }
}
