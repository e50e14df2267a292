//! What the agent tells Prometheus: every metric of the process, its name, and how it is set.
//!
//! One [`Metrics`] is made at start and cloned to whoever has something to count; reading it out is
//! [`Metrics::encode`]'s. docs/metrics.md lists every name. Metrics are for people looking at one device; what the
//! controller decides on travels in windows instead (`monitor`).

mod pressure;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_shared::feedback::FeedbackResult;
use muster_shared::ids::MetricName;
use muster_shared::messages::{InstalledBundle, PressureLevel, UpdateState};
use muster_shared::profile::Objectives;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use self::pressure::PressureMetrics;

/// Upper bounds of the latency histogram, in seconds: from a model that answers at once to one that takes seconds.
const LATENCY_BOUNDS_S: [f64; 16] =
    [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

/// How an inference request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RequestOutcome {
    /// Answered with a result, all of it finite.
    Answered,
    /// Answered with a result that holds NaN or an infinity.
    NonFinite,
    /// The model gave an error.
    Failed,
    /// The caller's input did not fit.
    Rejected,
    /// All workers were busy and the queue was full.
    Overloaded,
    /// It named a model or version that is not served, or nothing is served.
    NotServed,
}

impl RequestOutcome {
    const ALL: [Self; 6] =
        [Self::Answered, Self::NonFinite, Self::Failed, Self::Rejected, Self::Overloaded, Self::NotServed];

    const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NonFinite => "non_finite",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Overloaded => "overloaded",
            Self::NotServed => "not_served",
        }
    }
}

impl EncodeLabelValue for RequestOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.name().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    outcome: RequestOutcome,
}

/// What came of a request for a model that runs beside the one in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BesideOutcome {
    /// A shadow ran on it, and both answers were compared.
    Compared,
    /// A shadow had no room for it, or no time.
    Skipped,
    /// The device was pressed, and ran no shadow.
    Paused,
    /// It answered the caller, in a split.
    Answered,
    /// It failed; the incumbent answered.
    Failed,
}

impl BesideOutcome {
    const ALL: [Self; 5] = [Self::Compared, Self::Skipped, Self::Answered, Self::Failed, Self::Paused];

    const fn name(self) -> &'static str {
        match self {
            Self::Compared => "compared",
            Self::Skipped => "skipped",
            Self::Paused => "paused",
            Self::Answered => "answered",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApplicationLabels {
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BesideLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct UpdateResult(UpdateState);

impl EncodeLabelValue for UpdateResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let name = match self.0 {
            UpdateState::Idle => "idle",
            UpdateState::Fetching => "fetching",
            UpdateState::Verified => "verified",
            UpdateState::Beside => "beside",
            UpdateState::Trial => "trial",
            UpdateState::Committed => "committed",
            UpdateState::Reverted => "reverted",
            UpdateState::Failed => "failed",
            UpdateState::Other => "other",
        };
        name.encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpdateLabels {
    result: UpdateResult,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedbackLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
    version: String,
    manifest: String,
}

/// A latency objective, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Edge {
    us: u64,
}

impl EncodeLabelValue for Edge {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        (self.us as f64 / 1_000.0).to_string().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EdgeLabels {
    latency_ms: Edge,
}

/// Every metric of the agent. Cloning gives another handle to the same ones.
#[derive(Clone)]
pub(crate) struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    // Made once: looking one up by its label costs a lock on every request.
    requests: [Counter; RequestOutcome::ALL.len()],
    latency: Histogram,
    above: Family<EdgeLabels, Counter>,
    model: Family<ModelLabels, Gauge>,
    generation: Gauge<u64, AtomicU64>,
    windows_closed: Counter,
    chunks_received: Counter,
    chunk_bytes_received: Counter,
    chunks_repeated: Counter,
    chunks_copied: Counter,
    outbox_messages: Gauge<u64, AtomicU64>,
    outbox_bytes: Gauge<u64, AtomicU64>,
    outbox_dropped: Counter,
    updates: Family<UpdateLabels, Counter>,
    broker_connected: Gauge,
    feedback: Family<FeedbackLabels, Counter>,
    predictions_remembered: Gauge<u64, AtomicU64>,
    predictions_forgotten: Counter,
    application: Family<ApplicationLabels, Gauge<f64, AtomicU64>>,
    beside: [Counter; BesideOutcome::ALL.len()],
    beside_disagreements: Counter,
    beside_duration: Histogram,
    pressure: PressureMetrics,
}

impl Metrics {
    /// All metrics at zero.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("muster_agent");
        registry.register(
            "build",
            "What is running",
            Info::new([("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)]),
        );
        let by_outcome = Family::<RequestLabels, Counter>::default();
        registry.register("requests", "Inference requests, by how they ended", by_outcome.clone());
        let latency = Histogram::new(LATENCY_BOUNDS_S);
        registry.register_with_unit(
            "request_duration",
            "Time from a request's last byte to its answer's first, over requests the model served",
            Unit::Seconds,
            latency.clone(),
        );
        let above = Family::<EdgeLabels, Counter>::default();
        registry.register(
            "requests_above_objective",
            "Requests the model served that took longer than a latency objective of its bundle",
            above.clone(),
        );
        let model = Family::<ModelLabels, Gauge>::default();
        registry.register("model_info", "1 for the model that answers requests", model.clone());
        let generation = Gauge::default();
        registry.register(
            "generation",
            "Generation of the model that answers requests, 0 for none",
            generation.clone(),
        );
        let windows_closed = Counter::default();
        registry.register("windows_closed", "Monitoring windows closed", windows_closed.clone());
        let chunks_received = Counter::default();
        registry.register("chunks_received", "Chunks of bundles received and verified", chunks_received.clone());
        let chunk_bytes_received = Counter::default();
        registry.register("chunk_received_bytes", "Bytes of those chunks, as they came", chunk_bytes_received.clone());
        let chunks_repeated = Counter::default();
        registry.register(
            "chunks_repeated",
            "Chunks that came and were there already, or for no download",
            chunks_repeated.clone(),
        );
        let chunks_copied = Counter::default();
        registry.register("chunks_copied", "Chunks taken from the bundle before", chunks_copied.clone());
        let outbox_messages = Gauge::default();
        registry.register(
            "outbox_messages",
            "Messages not yet acknowledged by the controller",
            outbox_messages.clone(),
        );
        let outbox_bytes = Gauge::default();
        registry.register_with_unit("outbox", "Size of those messages", Unit::Bytes, outbox_bytes.clone());
        let outbox_dropped = Counter::default();
        registry.register("outbox_dropped", "Messages given up for want of space", outbox_dropped.clone());
        let updates = Family::<UpdateLabels, Counter>::default();
        registry.register("updates", "Updates, by the state they ended in", updates.clone());
        let broker_connected = Gauge::default();
        registry.register("broker_connected", "1 while connected to the broker", broker_connected.clone());
        let feedback = Family::<FeedbackLabels, Counter>::default();
        registry.register("feedback", "Labels, row by row, by what came of them", feedback.clone());
        for result in FeedbackResult::ALL {
            // All of them show from the start, so that a rate can be taken of the first.
            drop(feedback.get_or_create(&FeedbackLabels { result: result.as_str() }));
        }
        let predictions_remembered = Gauge::default();
        registry.register(
            "predictions_remembered",
            "Rows of answers that are remembered for their labels",
            predictions_remembered.clone(),
        );
        let predictions_forgotten = Counter::default();
        registry.register(
            "predictions_forgotten",
            "Rows of answers given up without a label, for want of room",
            predictions_forgotten.clone(),
        );
        let application = Family::<ApplicationLabels, Gauge<f64, AtomicU64>>::default();
        registry.register(
            "application_metric",
            "What applications on the device sent last under each name, in this window or the one before",
            application.clone(),
        );
        let by_beside = Family::<BesideLabels, Counter>::default();
        registry.register(
            "beside_requests",
            "Requests for a model that runs beside the one in service, by what came of them",
            by_beside.clone(),
        );
        let beside_disagreements = Counter::default();
        registry.register(
            "beside_disagreements",
            "Requests on which a shadow and the model in service disagreed",
            beside_disagreements.clone(),
        );
        let beside_duration = Histogram::new(LATENCY_BOUNDS_S);
        registry.register_with_unit(
            "beside_duration",
            "How long the model beside the one in service took for a request",
            Unit::Seconds,
            beside_duration.clone(),
        );
        let beside =
            BesideOutcome::ALL.map(|outcome| by_beside.get_or_create_owned(&BesideLabels { outcome: outcome.name() }));
        Self {
            inner: Arc::new(Inner {
                application,
                beside,
                beside_disagreements,
                beside_duration,
                pressure: PressureMetrics::register(&mut registry),
                registry,
                requests: RequestOutcome::ALL.map(|outcome| by_outcome.get_or_create_owned(&RequestLabels { outcome })),
                latency,
                above,
                model,
                generation,
                windows_closed,
                chunks_received,
                chunk_bytes_received,
                chunks_repeated,
                chunks_copied,
                outbox_messages,
                outbox_bytes,
                outbox_dropped,
                updates,
                broker_connected,
                feedback,
                predictions_remembered,
                predictions_forgotten,
            }),
        }
    }

    /// Counts an inference request; `latency` is given when the model served it.
    pub(crate) fn request(&self, outcome: RequestOutcome, latency: Option<Duration>) {
        let at = match outcome {
            RequestOutcome::Answered => 0,
            RequestOutcome::NonFinite => 1,
            RequestOutcome::Failed => 2,
            RequestOutcome::Rejected => 3,
            RequestOutcome::Overloaded => 4,
            RequestOutcome::NotServed => 5,
        };
        self.inner.requests[at].inc();
        if let Some(latency) = latency {
            self.inner.latency.observe(latency.as_secs_f64());
        }
    }

    /// Holds a request that the model served against its bundle's objectives.
    pub(crate) fn objectives(&self, objectives: &Objectives, latency: Duration) {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        for us in objectives.latency_us.iter().copied() {
            // A latency that was never exceeded shows as 0, so that a rate can be taken of the first that is.
            let above = self.inner.above.get_or_create(&EdgeLabels { latency_ms: Edge { us } });
            above.inc_by(u64::from(latency_us > us));
        }
    }

    /// Counts a request for a model beside the one in service; `took` is how long that model was at it, if it was.
    pub(crate) fn beside(&self, outcome: BesideOutcome, took: Option<Duration>) {
        let at = match outcome {
            BesideOutcome::Compared => 0,
            BesideOutcome::Skipped => 1,
            BesideOutcome::Answered => 2,
            BesideOutcome::Failed => 3,
            BesideOutcome::Paused => 4,
        };
        self.inner.beside[at].inc();
        if let Some(took) = took {
            self.inner.beside_duration.observe(took.as_secs_f64());
        }
    }

    /// Counts a request on which the two models disagreed, if they did.
    pub(crate) fn beside_disagreed(&self, disagreed: bool) {
        self.inner.beside_disagreements.inc_by(u64::from(disagreed));
    }

    /// The device was pressed this hard for `passed_ms`.
    pub(crate) fn pressed(&self, level: PressureLevel, passed_ms: u64) {
        self.inner.pressure.pressed(level, passed_ms);
    }

    /// The device says that its processor was held back for `for_ms`, which may be nothing.
    pub(crate) fn throttled(&self, for_ms: u64) {
        self.inner.pressure.throttled(for_ms);
    }

    /// The hottest thermal zone has this temperature, in thousandths of a degree Celsius.
    pub(crate) fn temperature(&self, temperature_mc: i32) {
        self.inner.pressure.temperature(temperature_mc);
    }

    /// Says which model answers requests from now on; `None` for none.
    pub(crate) fn set_model(&self, model: Option<&InstalledBundle>) {
        self.inner.model.clear();
        self.inner.generation.set(model.map_or(0, |m| m.generation));
        if let Some(model) = model {
            let labels = ModelLabels {
                model: model.bundle.name.to_string(),
                version: model.bundle.version.to_string(),
                manifest: model.manifest.to_string(),
            };
            self.inner.model.get_or_create(&labels).set(1);
        }
    }

    /// Sets how many monitoring windows have closed since the start.
    pub(crate) fn set_windows_closed(&self, total: u64) {
        self.inner.windows_closed.inner().store(total, Ordering::Relaxed);
    }

    /// Counts chunks that were found on the device.
    pub(crate) fn chunks_copied(&self, chunks: u64) {
        self.inner.chunks_copied.inc_by(chunks);
    }

    /// Counts a chunk that came as `bytes` bytes and was verified.
    pub(crate) fn chunk_received(&self, bytes: usize) {
        self.inner.chunks_received.inc();
        self.inner.chunk_bytes_received.inc_by(bytes as u64);
    }

    /// Counts a chunk that came in vain.
    pub(crate) fn chunk_repeated(&self) {
        self.inner.chunks_repeated.inc();
    }

    /// Sets what the outbox holds, and how many messages it has given up since it was made.
    pub(crate) fn set_outbox(&self, messages: u64, bytes: u64, dropped: u64) {
        self.inner.outbox_messages.set(messages);
        self.inner.outbox_bytes.set(bytes);
        // The outbox keeps this count itself, across restarts.
        self.inner.outbox_dropped.inner().store(dropped, Ordering::Relaxed);
    }

    /// Counts an update that ended in `state`.
    pub(crate) fn update_finished(&self, state: UpdateState) {
        self.inner.updates.get_or_create(&UpdateLabels { result: UpdateResult(state) }).inc();
    }

    /// Counts labels that ended in `result`.
    pub(crate) fn labels(&self, result: FeedbackResult, rows: u64) {
        self.inner.feedback.get_or_create(&FeedbackLabels { result: result.as_str() }).inc_by(rows);
    }

    /// Sets how many rows are remembered for their labels.
    pub(crate) fn set_predictions_remembered(&self, rows: usize) {
        self.inner.predictions_remembered.set(rows as u64);
    }

    /// Counts rows that were given up without a label.
    pub(crate) fn predictions_forgotten(&self, rows: u64) {
        self.inner.predictions_forgotten.inc_by(rows);
    }

    /// Sets what applications sent last under each name.
    pub(crate) fn set_application(&self, sent: &BTreeMap<MetricName, f64>) {
        self.inner.application.clear();
        for (name, value) in sent {
            self.inner.application.get_or_create(&ApplicationLabels { name: name.to_string() }).set(*value);
        }
    }

    /// Sets whether the broker is connected.
    pub(crate) fn set_broker_connected(&self, connected: bool) {
        self.inner.broker_connected.set(i64::from(connected));
    }

    /// All metrics in the text form of OpenMetrics.
    ///
    /// # Errors
    /// When a metric cannot be written, which no metric here gives cause for.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.inner.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::ids::Digest;

    use super::*;

    #[test]
    fn every_setter_shows_under_its_published_name() {
        let metrics = Metrics::new();
        let bundle =
            InstalledBundle { manifest: Digest::of(b"m"), bundle: "digits@1.2.0".parse().unwrap(), generation: 7 };
        metrics.request(RequestOutcome::Answered, Some(Duration::from_micros(300)));
        metrics.request(RequestOutcome::Overloaded, None);
        for latency_us in [500, 501, 70_000] {
            let objectives = Objectives { latency_us: vec![500, 50_000, 90_000] };
            metrics.objectives(&objectives, Duration::from_micros(latency_us));
        }
        metrics.set_model(Some(&bundle));
        metrics.set_windows_closed(2);
        metrics.chunk_received(65_536);
        metrics.chunk_repeated();
        metrics.set_outbox(3, 4_000, 5);
        metrics.update_finished(UpdateState::Reverted);
        metrics.set_broker_connected(true);
        metrics.labels(FeedbackResult::Late, 4);
        metrics.set_predictions_remembered(6);
        metrics.predictions_forgotten(2);
        metrics.beside(BesideOutcome::Compared, Some(Duration::from_micros(300)));
        metrics.beside(BesideOutcome::Skipped, None);
        metrics.beside_disagreed(true);
        metrics.beside_disagreed(false);
        metrics.set_application(&BTreeMap::from([("oven_c".parse().unwrap(), 71.5)]));
        metrics.pressed(PressureLevel::Some, 5_000);
        metrics.pressed(PressureLevel::High, 2_500);
        assert!(!metrics.encode().unwrap().contains("throttled"), "nobody says");
        metrics.throttled(0);
        metrics.throttled(1_500);
        metrics.temperature(61_250);
        let text = metrics.encode().unwrap();
        for line in [
            "muster_agent_requests_total{outcome=\"answered\"} 1",
            "muster_agent_requests_total{outcome=\"overloaded\"} 1",
            "muster_agent_requests_total{outcome=\"failed\"} 0",
            "muster_agent_request_duration_seconds_bucket{le=\"0.0002\"} 0",
            "muster_agent_request_duration_seconds_bucket{le=\"0.0005\"} 1",
            "muster_agent_requests_above_objective_total{latency_ms=\"0.5\"} 2",
            "muster_agent_requests_above_objective_total{latency_ms=\"50\"} 1",
            "muster_agent_requests_above_objective_total{latency_ms=\"90\"} 0",
            "muster_agent_generation 7",
            "muster_agent_windows_closed_total 2",
            "muster_agent_chunks_received_total 1",
            "muster_agent_chunk_received_bytes_total 65536",
            "muster_agent_chunks_repeated_total 1",
            "muster_agent_outbox_messages 3",
            "muster_agent_outbox_bytes 4000",
            "muster_agent_outbox_dropped_total 5",
            "muster_agent_updates_total{result=\"reverted\"} 1",
            "muster_agent_broker_connected 1",
            "muster_agent_feedback_total{result=\"late\"} 4",
            "muster_agent_feedback_total{result=\"joined\"} 0",
            "muster_agent_predictions_remembered 6",
            "muster_agent_predictions_forgotten_total 2",
            "muster_agent_beside_requests_total{outcome=\"compared\"} 1",
            "muster_agent_beside_requests_total{outcome=\"skipped\"} 1",
            "muster_agent_beside_requests_total{outcome=\"paused\"} 0",
            "muster_agent_pressure 2",
            "muster_agent_pressed_seconds_total 7.5",
            "muster_agent_throttled_seconds_total{} 1.5",
            "muster_agent_temperature_celsius{} 61.25",
            "muster_agent_beside_requests_total{outcome=\"answered\"} 0",
            "muster_agent_beside_requests_total{outcome=\"failed\"} 0",
            "muster_agent_beside_disagreements_total 1",
            "muster_agent_beside_duration_seconds_count 1",
            "muster_agent_application_metric{name=\"oven_c\"} 71.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("muster_agent_model_info{model=\"digits\",version=\"1.2.0\","), "{text}");
        metrics.set_model(None);
        let text = metrics.encode().unwrap();
        assert!(!text.contains("version=\"1.2.0\""), "{text}");
        assert!(text.contains("muster_agent_generation 0"), "{text}");
    }
}
