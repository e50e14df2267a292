//! One request to the agent: over its Unix socket, within a time and a size. A connection of its own for each costs little on
//! one's own device, and leaves nothing to mend after the agent was restarted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// A longer answer is refused, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Where the agent is asked, and for what.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its Unix socket: `[serve] unix-socket`.
    pub socket: PathBuf,
    /// The model's name.
    pub model: String,
    /// How long one request may take, from connecting to the last byte.
    pub timeout: Duration,
}

/// What the agent said, whatever that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The status of HTTP.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// Why the agent said nothing.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    /// Nobody listens, or not yet.
    #[error("the agent cannot be reached at {socket:?}: {source}")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection broke, as when the agent is restarted.
    #[error("the connection to the agent broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The answer is too long, or broke off.
    #[error("the agent's answer cannot be read: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
    /// The request's head cannot be written: the model's name is none.
    #[error("no request can be made for this model: {0}")]
    Request(#[from] hyper::http::Error),
    /// No answer in time.
    #[error("the agent did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
}

impl Agent {
    /// Sends `body`, an inference request of the Open Inference Protocol in JSON.
    ///
    /// # Errors
    /// [`Silence`] when there is no answer; an answer that refuses is one.
    pub async fn ask(&self, body: Bytes) -> Result<Said, Silence> {
        match tokio::time::timeout(self.timeout, exchange(&self.socket, &self.model, body)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Silence::TimedOut(self.timeout)),
        }
    }
}

async fn exchange(socket: &Path, model: &str, body: Bytes) -> Result<Said, Silence> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| Silence::Unreachable { socket: socket.to_path_buf(), source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(format!("/v2/models/{model}/infer"))
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(Silence::Answer)?;
        Ok(Said { status, body: body.to_bytes() })
    };
    // The connection has to be driven while the answer is waited for; both end with the deadline.
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        said = &mut answer => said,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}
