//! One receiver: how it is reached, what it wants, and what its answers mean.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use muster_shared::alert::{Alert, AlertState, ReceiverView, Told};
use reqwest::{Certificate, Client, StatusCode, Url, header};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Delivery, forms};
use crate::config::{ReceiverConfig, ReceiverKind, is_loopback, receiver_url};
use crate::durable::{self, FileError};
use crate::problem::chain;
use crate::state::App;

/// Shortest secret that signs anything, in bytes.
const MIN_SECRET_BYTES: usize = 16;
/// Longest address, token or secret in a file, in bytes.
const MAX_SECRET_BYTES: usize = 4_096;
/// How much of an answer is read, in bytes.
const MAX_ANSWER_BYTES: usize = 512;
/// The header with the signature, as `t=SECONDS,v1=HEX`.
const SIGNATURE_HEADER: &str = "muster-signature";
/// The header with the message's key.
const KEY_HEADER: &str = "muster-delivery";

/// Why a receiver cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiverError {
    /// One of its files cannot be read.
    #[error("receiver {name}")]
    File {
        /// Its name.
        name: String,
        /// Which and why.
        source: FileError,
    },
    /// One of its files is not what it should be.
    #[error("receiver {name}: {path}: {reason}")]
    Content {
        /// Its name.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is expected.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("receiver {name}: TLS cannot be set up: {reason}")]
    Tls {
        /// Its name.
        name: String,
        /// What the library says.
        reason: String,
    },
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// It was not reached.
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    /// It answered with something else than success.
    #[error("it answered {status}{}", if said.is_empty() { String::new() } else { format!(": {said}") })]
    Refused {
        /// The status.
        status: StatusCode,
        /// The beginning of what it said.
        said: String,
        /// How long it asks to be left alone, in milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// Our own files do not allow it.
    #[error("{0}")]
    Own(String),
}

impl SendError {
    /// Whether another try would come to the same: the receiver understood, and does not want it.
    pub(super) fn is_final(&self) -> bool {
        let Self::Refused { status, .. } = self else { return false };
        let later = [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_EARLY,
            StatusCode::TOO_MANY_REQUESTS,
            // Keys and addresses get mended.
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::NOT_FOUND,
        ];
        status.is_client_error() && !later.contains(status)
    }

    /// How long the receiver asks to be left alone, in milliseconds.
    pub(super) fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Refused { retry_after_ms, .. } => *retry_after_ms,
            Self::Unreachable(_) | Self::Own(_) => None,
        }
    }
}

/// Somebody who is told.
pub(crate) struct Receiver {
    config: ReceiverConfig,
    http: Client,
    host: String,
    last_error: Mutex<Option<String>>,
}

/// What a file holds, without the end of its line.
fn secret_of(name: &str, path: &Path, least_bytes: usize) -> Result<Zeroizing<String>, ReceiverError> {
    let read = durable::read(path).map_err(|source| ReceiverError::File { name: name.to_owned(), source })?;
    let wrong = |reason: String| ReceiverError::Content { name: name.to_owned(), path: path.to_owned(), reason };
    let bytes = Zeroizing::new(read.ok_or_else(|| wrong("it is not there".into()))?);
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("it is not UTF-8 text".into()))?.trim();
    if !(least_bytes.max(1)..=MAX_SECRET_BYTES).contains(&text.len()) {
        return Err(wrong(format!("{} to {MAX_SECRET_BYTES} characters are expected", least_bytes.max(1))));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

fn url_of(config: &ReceiverConfig) -> Result<Url, ReceiverError> {
    let name = config.name.as_str();
    let text = match (&config.url, &config.url_file) {
        (Some(url), _) => Zeroizing::new(url.clone()),
        (None, Some(path)) => secret_of(name, path, 1)?,
        (None, None) => Zeroizing::new(String::new()),
    };
    receiver_url(&text, config.allow_plain_http).map_err(|reason| ReceiverError::Content {
        name: name.to_owned(),
        path: config.url_file.clone().unwrap_or_default(),
        reason,
    })
}

impl Receiver {
    /// Reads its files once, so that what is wrong with them is known at the start.
    ///
    /// # Errors
    /// [`ReceiverError`] with the file at fault.
    pub(crate) fn new(config: &ReceiverConfig) -> Result<Self, ReceiverError> {
        let name = config.name.to_string();
        let url = url_of(config)?;
        if let Some(path) = &config.secret_file {
            secret_of(&name, path, MIN_SECRET_BYTES)?;
        }
        if let Some(path) = &config.bearer_token_file {
            secret_of(&name, path, 1)?;
        }
        let mut builder = Client::builder()
            .user_agent(concat!("muster-controller/", env!("CARGO_PKG_VERSION")))
            .timeout(Duration::from_millis(config.timeout_ms))
            .redirect(reqwest::redirect::Policy::none())
            .https_only(url.scheme() == "https");
        if is_loopback(&url) {
            builder = builder.no_proxy();
        }
        if let Some(path) = &config.ca_file {
            let read = durable::read(path).map_err(|source| ReceiverError::File { name: name.clone(), source })?;
            let certificates = Certificate::from_pem_bundle(&read.unwrap_or_default()).unwrap_or_default();
            if certificates.is_empty() {
                let reason = "it holds no certificate in PEM form".to_owned();
                return Err(ReceiverError::Content { name, path: path.clone(), reason });
            }
            builder = builder.tls_certs_only(certificates);
        }
        let http = builder.build().map_err(|error| ReceiverError::Tls { name, reason: error.to_string() })?;
        let host = url.host_str().unwrap_or_default().to_owned();
        Ok(Self { config: config.clone(), http, host, last_error: Mutex::default() })
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        self.config.name.as_str()
    }

    /// What it understands.
    pub(super) fn kind(&self) -> ReceiverKind {
        self.config.kind
    }

    /// How often Alertmanager is told again, in milliseconds.
    pub(super) fn resend_ms(&self) -> u64 {
        self.config.resend_ms
    }

    /// As people see it.
    pub(crate) fn view(&self, queued: usize) -> ReceiverView {
        ReceiverView {
            name: self.name().to_owned(),
            kind: self.config.kind.as_str().to_owned(),
            host: self.host.clone(),
            queued,
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Whether it is told of this.
    pub(super) fn wants(&self, alert: &Alert) -> bool {
        let asks = self.config.kind != ReceiverKind::Retraining || (alert.retrain && alert.state == AlertState::Firing);
        asks && alert.severity >= self.config.min_severity
    }

    /// Whether Alertmanager is told of it again and again.
    pub(super) fn repeats(&self, alert: &Alert) -> bool {
        alert.state == AlertState::Firing
            && alert.told == Told::Firing
            && alert.silenced_by.is_none()
            && self.wants(alert)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`SendError`] when it was not taken.
    pub(super) async fn send(&self, app: &App, delivery: &Delivery, now_ms: u64) -> Result<(), SendError> {
        let lineage = match self.config.kind {
            ReceiverKind::Retraining => forms::lineage(app, &delivery.alerts).await,
            ReceiverKind::Alertmanager | ReceiverKind::Webhook | ReceiverKind::Slack => Vec::new(),
        };
        let context = forms::Context { receiver: self.name(), api_url: &app.endpoints.api_url, now_ms, test: false };
        self.deliver(&context, delivery, &lineage).await.map(|_| ())
    }

    async fn deliver(
        &self,
        context: &forms::Context<'_>,
        delivery: &Delivery,
        lineage: &[serde_json::Value],
    ) -> Result<StatusCode, SendError> {
        let body = match self.config.kind {
            ReceiverKind::Alertmanager => forms::alertmanager(context, &delivery.alerts, self.config.resend_ms),
            ReceiverKind::Webhook => forms::webhook(context, delivery),
            ReceiverKind::Slack => forms::slack(context, delivery.state, &delivery.alerts),
            ReceiverKind::Retraining => forms::retraining(context, delivery, lineage),
        };
        self.post(&body, Some(&delivery.dedup_key), context.now_ms).await
    }

    /// Tells Alertmanager again of what fires.
    ///
    /// # Errors
    /// [`SendError`] when it was not taken.
    pub(super) async fn send_firing(&self, app: &App, alerts: &[Alert], now_ms: u64) -> Result<(), SendError> {
        if alerts.is_empty() {
            return Ok(());
        }
        let context = forms::Context { receiver: self.name(), api_url: &app.endpoints.api_url, now_ms, test: false };
        self.post(&forms::alertmanager(&context, alerts, self.config.resend_ms), None, now_ms).await.map(|_| ())
    }

    /// Sends a message that says it is a test, and gives what was answered.
    ///
    /// # Errors
    /// [`SendError`] when it was not taken.
    pub(crate) async fn test(&self, app: &App, now_ms: u64) -> Result<String, SendError> {
        let context = forms::Context { receiver: self.name(), api_url: &app.endpoints.api_url, now_ms, test: true };
        let delivery = forms::test_delivery(self.name(), now_ms);
        self.deliver(&context, &delivery, &[]).await.map(|status| format!("it answered {status}"))
    }

    async fn post(&self, body: &serde_json::Value, key: Option<&str>, now_ms: u64) -> Result<StatusCode, SendError> {
        let outcome = self.try_post(body, key, now_ms).await;
        let failure = outcome.as_ref().err().map(ToString::to_string);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        outcome
    }

    async fn try_post(
        &self,
        body: &serde_json::Value,
        key: Option<&str>,
        now_ms: u64,
    ) -> Result<StatusCode, SendError> {
        let own = |error: ReceiverError| SendError::Own(chain(&error));
        // Read each time: addresses and secrets can be exchanged while the controller runs.
        let mut url = url_of(&self.config).map_err(own)?;
        if self.config.kind == ReceiverKind::Alertmanager {
            let path = format!("{}/api/v2/alerts", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        let body = serde_json::to_vec(body).map_err(|error| SendError::Own(error.to_string()))?;
        let mut request = self.http.post(url).header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header(KEY_HEADER, key);
        }
        if let Some(path) = &self.config.bearer_token_file {
            let token = secret_of(self.name(), path, 1).map_err(own)?;
            request = request.bearer_auth(token.as_str());
        }
        if let Some(path) = &self.config.secret_file {
            let secret = secret_of(self.name(), path, MIN_SECRET_BYTES).map_err(own)?;
            let signature = signature(secret.as_bytes(), now_ms / 1_000, &body).map_err(SendError::Own)?;
            request = request.header(SIGNATURE_HEADER, signature);
        }
        let response = request.body(body).send().await;
        let mut response = response.map_err(|error| SendError::Unreachable(chain(&error.without_url())))?;
        let status = response.status();
        if status.is_success() {
            return Ok(status);
        }
        let seconds =
            response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let mut said = Vec::new();
        while said.len() < MAX_ANSWER_BYTES {
            match response.chunk().await {
                Ok(Some(piece)) => said.extend_from_slice(&piece[..piece.len().min(MAX_ANSWER_BYTES - said.len())]),
                Ok(None) | Err(_) => break,
            }
        }
        let said = String::from_utf8_lossy(&said).chars().filter(|c| !c.is_control()).take(200).collect();
        Err(SendError::Refused { status, said, retry_after_ms: seconds.map(|s| s.saturating_mul(1_000)) })
    }
}

/// HMAC-SHA256 (RFC 2104) over the time, a dot and the body, so that neither can be exchanged and an old message can be told by its
/// time.
fn signature(secret: &[u8], at_s: u64, body: &[u8]) -> Result<String, String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|error| error.to_string())?;
    mac.update(at_s.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    Ok(format!("t={at_s},v1={}", hex::encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_that_openssl_makes() {
        // printf '%s' '1700000000.{"a":1}' | openssl dgst -sha256 -hmac 'correct horse battery'
        let expected = "t=1700000000,v1=98a51b330afc58453095af8ed727e6cc4bd565edb4230482620146eda751b416";
        assert_eq!(signature(b"correct horse battery", 1_700_000_000, b"{\"a\":1}").unwrap(), expected);
    }

    #[test]
    fn only_a_clear_no_ends_the_tries() {
        let refused = |code: u16| SendError::Refused {
            status: StatusCode::from_u16(code).unwrap(),
            said: String::new(),
            retry_after_ms: None,
        };
        for (code, is_final) in [
            (400, true),
            (422, true),
            (404, false),
            (401, false),
            (429, false),
            (408, false),
            (500, false),
            (302, false),
        ] {
            assert_eq!(refused(code).is_final(), is_final, "{code}");
        }
        assert!(!SendError::Unreachable("x".into()).is_final());
    }
}
