//! `POST .../infer`: one request from its bytes to its answer, and its place in the counts.
//!
//! A small request to a model that is known to be quick is computed where it was read; anything else goes to the threads
//! for blocking work, and there the answer leaves before its rows are sketched.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Request};
use axum::response::{IntoResponse, Response};
use muster_inference::quality::Checked;
use muster_inference::{RunError, Tensor};
use muster_shared::bundle::DataType;
use tokio::sync::oneshot;

use super::answer::{Answer, HEADER_LENGTH};
use super::body::ReadBody;
use super::error::ApiError;
use super::request::InferRequest;
use super::{App, Target};
use crate::host::{Active, Shapes, Turn};
use crate::metrics::RequestOutcome;
use crate::monitor::{InputQuality, Served, TurnedAway};
use crate::time;

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
        app.host.monitor().turned_away(&active.watch, time::wall_ms(), TurnedAway::Rejected);
        app.metrics.request(RequestOutcome::Rejected, None);
        error
    };
    let body = body.map_err(reject)?;
    let header_bytes = header_bytes(&parts.headers).map_err(reject)?;
    let turn = app.host.turn().await.inspect_err(|_| {
        app.host.monitor().turned_away(&active.watch, time::wall_ms(), TurnedAway::Overloaded);
        app.metrics.request(RequestOutcome::Overloaded, None);
    })?;
    let job = Job { app: app.clone(), active, received, turn };
    if body.bytes.len() > PARSED_AT_ONCE_BYTES {
        return elsewhere(move || (job.parse(&body, header_bytes), job)).await;
    }
    let parsed = job.parse(&body, header_bytes);
    match &parsed {
        Ok(request) if !job.active.pace.is_quick(Shapes::of(&request.inputs)) => elsewhere(move || (parsed, job)).await,
        Ok(_) | Err(_) => {
            let done = job.finish(parsed);
            job.count(&done.count);
            Ok(done.response)
        }
    }
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
    start: impl FnOnce() -> (Result<InferRequest, ApiError>, Job) + Send + 'static,
) -> Result<Response, ApiError> {
    let (sender, receiver) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let (parsed, job) = start();
        let done = job.finish(parsed);
        // A caller who has gone is counted all the same.
        let _ = sender.send(done.response);
        job.count(&done.count);
    });
    receiver.await.map_err(|_| ApiError::Panicked)
}

/// A request that has its turn.
struct Job {
    app: App,
    active: Arc<Active>,
    /// When its last byte came.
    received: Instant,
    #[expect(dead_code, reason = "it is held, not read")]
    turn: Turn,
}

/// A request that has its answer.
struct Done {
    response: Response,
    count: Count,
}

/// How a request is counted.
enum Count {
    Rejected { quality: Option<InputQuality> },
    Served { inputs: Vec<Tensor>, outputs: Vec<Tensor>, failed: bool, latency: Duration, quality: Option<InputQuality> },
}

impl Job {
    fn parse(&self, body: &ReadBody, header_bytes: Option<usize>) -> Result<InferRequest, ApiError> {
        let signature = &self.active.served.signature;
        guarded(|| InferRequest::parse(&body.bytes, header_bytes, signature).map_err(ApiError::from))
    }

    /// Runs the model and writes the answer.
    fn finish(&self, parsed: Result<InferRequest, ApiError>) -> Done {
        let InferRequest { id, inputs, outputs: wanted } = match parsed {
            Ok(request) => request,
            Err(error) => return Done { response: error.into_response(), count: Count::Rejected { quality: None } },
        };
        // Its label may come much later, and names it by this.
        let id = id.unwrap_or_else(|| self.app.ids.make());
        let model = &self.active.served;
        let started = Instant::now();
        let checked = model.quality.as_ref().map(|gate| (gate, gate.check(&inputs)));
        let (mut quality, mut parameters, mut repaired) = (None, Vec::new(), None);
        if let Some((gate, Checked { findings, inputs, rejection })) = checked {
            let rejected = rejection.is_some();
            parameters = gate.parameters(&findings);
            repaired = inputs;
            quality = Some(InputQuality { findings, rejected, malformed: false });
            if let Some(rejection) = rejection {
                return Done {
                    response: ApiError::from(rejection).into_response(),
                    count: Count::Rejected { quality },
                };
            }
        }
        // The monitor sees what came, not what was put in its place.
        let seen = repaired.as_deref().unwrap_or(&inputs);
        let outputs = guarded(|| model.model.run(seen).map_err(ApiError::from));
        let answer = outputs.and_then(|outputs| {
            let answer = guarded(|| Answer::write(model, &id, &parameters, &wanted, &outputs).map_err(ApiError::from))?;
            Ok((answer, outputs))
        });
        self.active.pace.took(Shapes::of(&inputs), started.elapsed());
        if let (Ok((_, outputs)), Some(labels)) = (&answer, &self.active.labels) {
            // Before the caller has the answer: its label may follow at once.
            self.app.host.feedback().remember(labels, &id, &inputs, outputs);
        }
        let (response, outputs, failed) = match answer {
            Ok((answer, outputs)) => (answer.into_response(), outputs, false),
            Err(ApiError::Run(error)) if error.is_request_fault() => {
                if matches!(error, RunError::Datatype { .. } | RunError::Shape { .. }) {
                    quality.get_or_insert_default().malformed = true;
                }
                return Done { response: ApiError::Run(error).into_response(), count: Count::Rejected { quality } };
            }
            Err(error) => {
                self.report(&error);
                (error.into_response(), Vec::new(), true)
            }
        };
        Done { response, count: Count::Served { inputs, outputs, failed, latency: self.received.elapsed(), quality } }
    }

    /// A failing model fails often: the log has its first failure, the counts have all of them.
    fn report(&self, error: &ApiError) {
        self.active.first_failure.call_once(|| {
            let model = &self.active.served;
            tracing::warn!(bundle = %model.bundle, generation = model.generation, %error, "the model failed a request");
        });
    }

    fn count(&self, count: &Count) {
        let monitor = self.app.host.monitor();
        let now_ms = time::wall_ms();
        let (Count::Rejected { quality } | Count::Served { quality, .. }) = count;
        if let Some(quality) = quality {
            monitor.looked_at(&self.active.watch, now_ms, quality);
        }
        match count {
            Count::Rejected { .. } => {
                monitor.turned_away(&self.active.watch, now_ms, TurnedAway::Rejected);
                self.app.metrics.request(RequestOutcome::Rejected, None);
            }
            Count::Served { inputs, outputs, failed, latency, quality: _ } => {
                let non_finite = outputs.iter().any(has_non_finite);
                let outcome = match (failed, non_finite) {
                    (true, _) => RequestOutcome::Failed,
                    (false, true) => RequestOutcome::NonFinite,
                    (false, false) => RequestOutcome::Answered,
                };
                self.app.metrics.request(outcome, Some(*latency));
                let served = Served { inputs, outputs, failed: *failed, non_finite, latency: *latency };
                monitor.served(&self.active.watch, now_ms, &served);
            }
        }
    }
}

/// Runs `work`, turning a panic into an error. Runtimes catch their own; this keeps whatever else may go wrong from taking the
/// connection down.
fn guarded<T>(work: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(ApiError::Panicked))
}

fn has_non_finite(tensor: &Tensor) -> bool {
    match tensor.datatype() {
        DataType::Fp16 | DataType::Fp32 | DataType::Fp64 => tensor.values().any(|value| !value.is_finite()),
        DataType::Bool
        | DataType::Uint8
        | DataType::Uint16
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Bytes => false,
    }
}
