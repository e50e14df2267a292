//! The inference endpoint: the Open Inference Protocol (KServe V2) over HTTP, on TCP and on a Unix socket.
//!
//! JSON tensors and the binary tensor extension are spoken, with the bundle's name as the model's and its semantic version as
//! the version. Beside it are `/metrics` and `/status`. Which model answers, and how many requests at once, is
//! [`crate::host`]'s; there is no authentication, for the endpoint is meant for programs on the device.

mod answer;
mod body;
mod error;
mod feedback;
mod infer;
mod listen;
mod metadata;
mod numbers;
mod request;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::routing::{get, post};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::body::BodyReader;
use self::error::ApiError;
pub(crate) use self::listen::ServeError;
use self::listen::{Connections, TcpPort, UnixSocket};
use crate::condition::Condition;
use crate::config::ServeConfig;
use crate::feedback::InferenceIds;
use crate::host::{Active, ModelHost};
use crate::metrics::Metrics;

/// How long requests under way may take once the agent is told to stop, in seconds.
const DRAIN_S: u64 = 10;

/// The endpoint while it listens.
pub(crate) struct Serving {
    /// The TCP address it is bound to.
    pub(crate) local_addr: SocketAddr,
    /// Ends after the shutdown, when every request under way has been answered and counted, or has taken too long.
    pub(crate) join: JoinHandle<()>,
}

/// What every handler needs.
#[derive(Clone)]
struct App {
    host: ModelHost,
    metrics: Metrics,
    condition: Condition,
    bodies: BodyReader,
    /// Names inferences whose callers gave none.
    ids: InferenceIds,
}

/// The model a path names.
#[derive(Debug, Deserialize)]
struct Target {
    model: String,
    version: Option<String>,
}

impl Target {
    fn names_version(&self) -> bool {
        self.version.is_some()
    }

    /// The model, if it is the one that is served now.
    ///
    /// # Errors
    /// [`ApiError::NoModel`], [`ApiError::UnknownModel`] or [`ApiError::UnknownVersion`].
    fn find(&self, app: &App) -> Result<Arc<Active>, ApiError> {
        let active = app.host.active().ok_or(ApiError::NoModel)?;
        let bundle = &active.served.bundle;
        if self.model != bundle.name.as_str() {
            return Err(ApiError::UnknownModel { asked: self.model.clone(), served: bundle.name.to_string() });
        }
        match &self.version {
            Some(asked) if *asked != bundle.version.to_string() => Err(ApiError::UnknownVersion {
                model: self.model.clone(),
                asked: asked.clone(),
                served: bundle.version.to_string(),
            }),
            Some(_) | None => Ok(active),
        }
    }
}

/// Starts to answer requests as `config` says, until `shutdown` becomes true.
///
/// # Errors
/// [`ServeError`] when an address or socket cannot be listened on.
pub(crate) async fn serve(
    config: &ServeConfig,
    host: ModelHost,
    metrics: Metrics,
    condition: Condition,
    shutdown: watch::Receiver<bool>,
) -> Result<Serving, ServeError> {
    let port = TcpPort::bind(config.listen).await?;
    let local_addr = port.local_addr;
    let socket = match &config.unix_socket {
        Some(path) => Some(UnixSocket::bind(path, config.unix_socket_group.as_deref(), config.unix_socket_mode).await?),
        None => None,
    };
    let connections = Connections::new(router(host.clone(), metrics, condition, config.max_body_bytes), shutdown);
    tracing::info!(address = %local_addr, socket = ?config.unix_socket, "inference requests are answered");
    let join = tokio::spawn(async move {
        let on_socket = async {
            if let Some(socket) = &socket {
                connections.accept(socket).await;
            }
        };
        tokio::join!(connections.accept(&port), on_socket);
        // Nobody may come in while the last requests are finished.
        drop((port, socket));
        let drained = async {
            connections.ended().await;
            host.drained().await;
        };
        if tokio::time::timeout(Duration::from_secs(DRAIN_S), drained).await.is_err() {
            tracing::warn!("requests under way were given up at the shutdown");
        }
    });
    Ok(Serving { local_addr, join })
}

fn router(host: ModelHost, metrics: Metrics, condition: Condition, max_body_bytes: usize) -> Router {
    let app = App { host, metrics, condition, bodies: BodyReader::new(max_body_bytes), ids: InferenceIds::default() };
    Router::new()
        .route("/v2", get(metadata::server))
        .route("/v2/", get(metadata::server))
        .route("/v2/health/live", get(metadata::live))
        .route("/v2/health/ready", get(metadata::ready))
        .route("/v2/models/{model}", get(metadata::model))
        .route("/v2/models/{model}/ready", get(metadata::model_ready))
        .route("/v2/models/{model}/infer", post(infer::infer))
        .route("/v2/models/{model}/feedback", post(feedback::feedback))
        .route("/v2/models/{model}/metrics", post(numbers::sent))
        .route("/v2/models/{model}/versions/{version}", get(metadata::model))
        .route("/v2/models/{model}/versions/{version}/ready", get(metadata::model_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer::infer))
        .route("/metrics", get(status::metrics))
        .route("/status", get(status::status))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// Longest path that an error repeats, in characters.
const SHOWN_PATH: usize = 200;

async fn no_such_path(request: Request) -> ApiError {
    ApiError::NoSuchPath(request.uri().path().chars().take(SHOWN_PATH).collect())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::Method {
        method: request.method().to_string(),
        path: request.uri().path().chars().take(SHOWN_PATH).collect(),
    }
}

#[cfg(test)]
mod tests;
