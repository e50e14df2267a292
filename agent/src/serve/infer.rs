//! `POST .../infer`: one request from its bytes to its answer, and its place in the counts.
//!
//! A small request to a model that is known to be quick is computed where it was read, while no other is; anything else goes to the
//! threads for blocking work, and there the answer leaves before its rows are sketched.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, Request};
use axum::response::{IntoResponse, Response};
use muster_agent_core::feedback::Place;
use muster_inference::quality::Checked;
use muster_inference::{Images, OutliersFound, RunError, Tensor};
use muster_shared::sketch::{Comparison, OutlierCounts};
use tokio::sync::oneshot;

use super::answer::{Answer, HEADER_LENGTH};
use super::body::ReadBody;
use super::error::ApiError;
use super::request::InferRequest;
use super::{App, Target};
use crate::beside::{Answered, Beside};
use crate::feedback::Second;
use crate::host::{Active, Shapes, Turn};
use crate::metrics::{BesideOutcome, RequestOutcome};
use crate::monitor::{InputQuality, Served, TurnedAway, has_non_finite};
use crate::samples::Offered;
use crate::time;

/// Says whom or what a request belongs to: requests with the same key fall to the same model of a split.
const STICKY_KEY: HeaderName = HeaderName::from_static("muster-sticky-key");

/// Larger bodies are neither parsed nor sketched on a thread that serves others too, in bytes. Sketching costs about 15 ns for
/// each value: with many rows, more than a small model itself.
const PARSED_AT_ONCE_BYTES: usize = 16 * 1024;

/// Answers an inference request.
pub(super) async fn infer(
    State(app): State<App>,
    target: Result<Path<Target>, PathRejection>,
    request: Request<Body>,
) -> Response {
    let answered = match target {
        Ok(Path(target)) => answer(&app, &target, request).await,
        Err(error) => Err(error.into()),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(app: &App, target: &Target, request: Request<Body>) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let body = app.bodies.read(&parts.headers, body).await;
    let received = Instant::now();
    let active = target.find(app).inspect_err(|_| app.metrics.request(RequestOutcome::NotServed, None))?;
    let reject = |error: ApiError| {
        app.host.monitor().turned_away(&active.watch, time::wall_ms(), TurnedAway::Rejected, None);
        app.metrics.request(RequestOutcome::Rejected, None);
        error
    };
    let body = body.map_err(reject)?;
    let header_bytes = header_bytes(&parts.headers).map_err(reject)?;
    let turn = app.host.turn().await.inspect_err(|_| {
        app.host.monitor().turned_away(&active.watch, time::wall_ms(), TurnedAway::Overloaded, None);
        app.metrics.request(RequestOutcome::Overloaded, None);
    })?;
    let sticky_key = parts.headers.get(&STICKY_KEY).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    // Who asks for a version gets that one.
    let beside = app.host.beside().filter(|beside| !(beside.is_split() && target.names_version()));
    let job = Job { app: app.clone(), active, beside, sticky_key, received, turn };
    if body.bytes.len() > PARSED_AT_ONCE_BYTES {
        return elsewhere(move || (job.parse(&body, header_bytes), job)).await;
    }
    let parsed = job.parse(&body, header_bytes);
    let here = app.host.here();
    if here.is_none() || parsed.as_ref().is_ok_and(|parsed| !job.is_quick(parsed)) {
        drop(here);
        return elsewhere(move || (parsed, job)).await;
    }
    let Done { response, count } = job.finish(parsed);
    if job.app.host.open_samples().is_some() {
        // Whoever collects samples must not make anybody wait for an answer.
        tokio::task::spawn_blocking(move || job.count(count));
    } else {
        job.count(count);
    }
    Ok(response)
}

/// The length of the JSON at the start of the body, where binary data follows it.
fn header_bytes(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let refuse = || ApiError::HeaderLength(String::from_utf8_lossy(value.as_bytes()).chars().take(40).collect());
    length.map(Some).ok_or_else(refuse)
}

/// Finishes what `start` begins on a thread for blocking work. The answer is given as soon as it is known; counting goes on
/// there, with the job's turn still held, so that it cannot pile up.
async fn elsewhere(
    start: impl FnOnce() -> (Result<Parsed, ApiError>, Job) + Send + 'static,
) -> Result<Response, ApiError> {
    let (sender, receiver) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let (parsed, job) = start();
        let done = job.finish(parsed);
        // A caller who has gone is counted all the same.
        let _ = sender.send(done.response);
        job.count(done.count);
    });
    receiver.await.map_err(|_| ApiError::Panicked)
}

/// A request that has its turn.
struct Job {
    app: App,
    active: Arc<Active>,
    /// The model beside it, where it may have this request.
    beside: Option<Arc<Beside>>,
    /// What the request's header says it belongs to.
    sticky_key: Option<String>,
    /// When its last byte came.
    received: Instant,
    #[expect(dead_code, reason = "it is held, not read")]
    turn: Turn,
}

/// A request that has been read.
struct Parsed {
    request: InferRequest,
    /// The caller's name for it, or the one it was given.
    id: String,
    /// The model that answers it in place of the incumbent.
    instead: Option<Arc<Active>>,
}

/// A request that has its answer.
struct Done {
    response: Response,
    count: Count,
}

/// How a request is counted.
enum Count {
    Rejected { quality: Option<InputQuality> },
    Served(Box<Counted>),
}

/// A request that a model served.
struct Counted {
    /// The model.
    active: Arc<Active>,
    id: String,
    inputs: Vec<Tensor>,
    images: Images,
    outputs: Vec<Tensor>,
    failed: bool,
    /// Time from the request's last byte to its answer's first.
    latency: Duration,
    /// How long the model took.
    run: Duration,
    failed_before: Option<FailedBefore>,
    /// Where the answer is remembered for its label, if it is.
    place: Option<Place>,
    quality: Option<InputQuality>,
    outliers: Option<OutlierCounts>,
}

/// A model that had a request first and failed it.
struct FailedBefore {
    candidate: Arc<Active>,
    /// How long it was at it.
    took: Duration,
    /// What was measured of the images meanwhile.
    images: Images,
}

impl Job {
    fn parse(&self, body: &ReadBody, header_bytes: Option<usize>) -> Result<Parsed, ApiError> {
        let signature = &self.active.served.signature;
        let request = guarded(|| InferRequest::parse(&body.bytes, header_bytes, signature).map_err(ApiError::from))?;
        // Its label may come much later, and names it by this.
        let id = request.id.clone().unwrap_or_else(|| self.app.ids.make());
        let key = self.sticky_key.as_ref().or(request.sticky_key.as_ref()).unwrap_or(&id);
        let instead = self.beside.as_ref().and_then(|beside| beside.answers(key, &self.active.served.manifest));
        let instead = instead.cloned();
        Ok(Parsed { request, id, instead })
    }

    /// Whether the request is expected to be over before anyone else on the thread would notice.
    fn is_quick(&self, parsed: &Parsed) -> bool {
        let shapes = Shapes::of(&parsed.request.inputs);
        let instead = parsed.instead.as_ref().is_none_or(|instead| instead.pace.is_quick(shapes));
        instead && self.active.pace.is_quick(shapes)
    }

    /// Runs the model and writes the answer.
    fn finish(&self, parsed: Result<Parsed, ApiError>) -> Done {
        let Parsed { request, id, instead } = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Done { response: error.into_response(), count: Count::Rejected { quality: None } },
        };
        let (mut active, mut failed_before) = (instead.as_ref().unwrap_or(&self.active), None);
        let mut attempt = Attempt::of(active, &request, &id);
        if let (Some(instead), Err(error)) = (&instead, &attempt.answer) {
            // The caller gets an answer all the same, and the failure stays with who failed.
            report(instead, error);
            failed_before =
                Some(FailedBefore { candidate: Arc::clone(instead), took: attempt.run, images: attempt.images });
            active = &self.active;
            attempt = Attempt::of(active, &request, &id);
        }
        let Attempt { answer, quality, images, outliers, run, is_turned_away } = attempt;
        let mut place = None;
        if let (Ok((_, outputs)), Some(labels)) = (&answer, &active.labels) {
            // What was to be the second model's and became the incumbent's is no fair part of either's share.
            let beside = self.beside.as_ref().filter(|_| failed_before.is_none());
            let second = beside.map_or(Second::None, |beside| beside.second(&id, active));
            // Before the caller has the answer: its label may follow at once.
            place = self.app.host.feedback().remember(labels, &id, (&request.inputs, outputs), &second);
        }
        let (response, outputs, failed) = match answer {
            Ok((answer, outputs)) => (answer.into_response(), outputs, false),
            Err(error) if is_turned_away => {
                return Done { response: error.into_response(), count: Count::Rejected { quality } };
            }
            Err(error) => {
                report(active, &error);
                (error.into_response(), Vec::new(), true)
            }
        };
        let (active, inputs, latency) = (Arc::clone(active), request.inputs, self.received.elapsed());
        let counted = Counted {
            active,
            id,
            inputs,
            images,
            outputs,
            failed,
            latency,
            run,
            failed_before,
            place,
            quality,
            outliers,
        };
        Done { response, count: Count::Served(Box::new(counted)) }
    }

    fn count(&self, count: Count) {
        let now_ms = time::wall_ms();
        let counted = match count {
            Count::Rejected { quality } => {
                let Active { monitor, watch, .. } = &*self.active;
                monitor.turned_away(watch, now_ms, TurnedAway::Rejected, quality.as_ref());
                return self.app.metrics.request(RequestOutcome::Rejected, None);
            }
            Count::Served(counted) => *counted,
        };
        let Counted {
            active,
            id,
            inputs,
            images,
            outputs,
            failed,
            latency,
            run,
            failed_before,
            place,
            quality,
            outliers,
        } = counted;
        let non_finite = outputs.iter().any(has_non_finite);
        let outcome = match (failed, non_finite) {
            (true, _) => RequestOutcome::Failed,
            (false, true) => RequestOutcome::NonFinite,
            (false, false) => RequestOutcome::Answered,
        };
        self.app.metrics.request(outcome, Some(latency));
        self.app.metrics.objectives(&active.served.profile.objectives, latency);
        let quality = quality.as_ref();
        let served = Served {
            inputs: &inputs,
            images: &images,
            outputs: &outputs,
            failed,
            non_finite,
            latency,
            outliers,
            quality,
        };
        active.monitor.served(&active.watch, now_ms, &served);
        if let Some(samples) = self.app.host.open_samples() {
            let offered = Offered { id: &id, at_ms: now_ms, inputs: &inputs, images: &images, outputs: &outputs };
            samples.offer(&active.served, &offered);
        }
        let Some(beside) = &self.beside else { return };
        if let Some(FailedBefore { candidate, took, images }) = failed_before {
            self.app.metrics.beside(BesideOutcome::Failed, Some(took));
            let outliers = candidate.watch.outliers(&inputs, &images).map(|found| found.counts);
            let served =
                Served { inputs: &inputs, images: &images, failed: true, latency, outliers, ..Served::default() };
            let failed = Comparison { failed: 1, ..Comparison::empty(self.active.served.manifest) };
            candidate.monitor.served_beside(&candidate.watch, now_ms, &served, &failed);
        }
        if beside.is_split() && Arc::ptr_eq(&active, beside.active()) {
            self.app.metrics.beside(BesideOutcome::Answered, Some(run));
            passing!(BesideAnswered);
        }
        if !failed && beside.shadows(&id, &active.served.manifest) {
            beside.run_again(Answered { id, at_ms: now_ms, place, inputs, images, outputs, run });
        }
    }
}

/// What came of giving a request to a model.
struct Attempt {
    answer: Result<(Answer, Vec<Tensor>), ApiError>,
    /// What was found wrong with the inputs, where a schema says what to expect.
    quality: Option<InputQuality>,
    /// What was measured of images.
    images: Images,
    /// Which rows are unlike the reference, where anybody looked.
    outliers: Option<OutlierCounts>,
    /// How long the model took.
    run: Duration,
    /// Whether the request is to blame for the error.
    is_turned_away: bool,
}

impl Attempt {
    /// Gives `request` to the model of `active`.
    fn of(active: &Active, request: &InferRequest, id: &str) -> Self {
        let (model, inputs) = (&active.served, &request.inputs);
        let started = Instant::now();
        let (mut quality, mut parameters, mut repaired) = (None, Vec::new(), None);
        if let Some((gate, checked)) = model.quality.as_ref().map(|gate| (gate, gate.check(inputs))) {
            let Checked { findings, inputs, rejection } = checked;
            parameters = gate.parameters(&findings);
            repaired = inputs;
            quality = Some(InputQuality { findings, rejected: rejection.is_some(), malformed: false });
            if let Some(rejection) = rejection {
                let answer = Err(ApiError::from(rejection));
                return Self {
                    answer,
                    quality,
                    images: Images::NONE,
                    outliers: None,
                    run: Duration::ZERO,
                    is_turned_away: true,
                };
            }
        }
        // The monitor sees what came, not what was put in its place.
        let seen = repaired.as_deref().unwrap_or(inputs);
        let ran_from = Instant::now();
        let mut images = Images::NONE;
        let outputs = guarded(|| active.watch.run(&*model.model, seen, &mut images).map_err(ApiError::from));
        let run = ran_from.elapsed();
        let odd = active.watch.outliers(inputs, &images);
        parameters.extend(odd.as_ref().and_then(OutliersFound::text).map(|text| ("muster_outlier", text)));
        let answer = outputs.and_then(|outputs| {
            let write = || Answer::write(model, id, &parameters, &request.outputs, &outputs).map_err(ApiError::from);
            Ok((guarded(write)?, outputs))
        });
        active.pace.took(Shapes::of(inputs), started.elapsed());
        let is_turned_away = matches!(&answer, Err(ApiError::Run(error)) if error.is_request_fault());
        if matches!(&answer, Err(ApiError::Run(RunError::Datatype { .. } | RunError::Shape { .. }))) {
            quality.get_or_insert_default().malformed = true;
        }
        let outliers = odd.map(|found| found.counts);
        Self { answer, quality, images, outliers, run, is_turned_away }
    }
}

/// A failing model fails often: the log has its first failure, the counts have all of them.
fn report(active: &Active, error: &ApiError) {
    active.first_failure.call_once(|| {
        let model = &active.served;
        tracing::warn!(bundle = %model.bundle, generation = model.generation, %error, "the model failed a request");
    });
}

/// Runs `work`, turning a panic into an error. Runtimes catch their own; this keeps whatever else may go wrong from taking the
/// connection down.
fn guarded<T>(work: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(ApiError::Panicked))
}
