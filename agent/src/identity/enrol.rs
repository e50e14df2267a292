//! Joining: one HTTPS request that brings the device its papers, over and over until it is answered.
//!
//! A controller that is away is waited for; a token that is refused is not, since trying again cannot help.

use std::time::Duration;

use jiff::tz::TimeZone;
use muster_agent_core::backoff::{Backoff, Pauses};
use muster_shared::api::{EnrolRequest, EnrolResponse, Problem};
use muster_shared::ids::DeviceId;
use muster_shared::token::EnrolmentToken;
use muster_shared::trust::Envelope;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use reqwest::StatusCode;

use super::papers::{self, PapersError};
use super::provisioned::{self, ProvisionedError};
use super::{Identity, IdentityError, IdentityStore, pin};
use crate::config::ProvisionedConfig;
use crate::time::{EffectiveTime, Steady, jitter, wall_ms};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Before this no clock was right when this program ran: 2026-01-01, in milliseconds since the Unix epoch.
const WRITTEN_MS: u64 = 1_767_225_600_000;
/// A clock that is off by more than this from one look to another has been set, in milliseconds.
const JUMP_MS: u64 = 60_000;
/// How often the clock is looked at while enrolment waits, in milliseconds.
const LOOK_MS: u64 = 1_000;
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// Why the device could not join.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    /// The device's own files are in the way.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate it was given cannot be read.
    #[error(transparent)]
    Provisioned(#[from] ProvisionedError),
    /// Neither a secret nor a certificate.
    #[error(
        "the enrolment token holds no secret: it is for devices that show a certificate they were given; set provisioned, or get a token from `muster token create`"
    )]
    NoRight,
    /// The request could not be made.
    #[error("no enrolment request could be made: {0}")]
    Request(String),
    /// The controller cannot be reached, or is in trouble.
    #[error("the controller at {url} cannot be reached: {reason}")]
    Away {
        /// Where it should be.
        url: String,
        /// What happened.
        reason: String,
    },
    /// Another controller answered.
    #[error("the controller at {url} is not the one the enrolment token names: {reason}")]
    OtherController {
        /// Where it is.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The controller does not take the token or the request.
    #[error("the controller at {url} refused to enrol this device ({status}): {detail}")]
    Refused {
        /// Where it is.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Its reason.
        detail: String,
    },
    /// What the controller answered cannot be used.
    #[error("the controller at {url} gave an answer that cannot be used")]
    Papers {
        /// Where it is.
        url: String,
        /// What is wrong with it.
        #[source]
        source: PapersError,
    },
}

impl EnrolError {
    /// Whether trying again can help.
    fn is_temporary(&self) -> bool {
        match self {
            Self::Away { .. } => true,
            Self::Identity(_)
            | Self::Provisioned(_)
            | Self::NoRight
            | Self::Request(_)
            | Self::OtherController { .. }
            | Self::Refused { .. }
            | Self::Papers { .. } => false,
        }
    }
}

/// Joins with `token`, or with the certificate `provisioned` where that holds no secret, as `wish` if the controller agrees; waits for a controller that is away. The root documents are to be
/// stored before `commit` is called on the result.
///
/// # Errors
/// [`EnrolError`] when trying again cannot help.
pub(crate) async fn enrol(
    store: &IdentityStore,
    token: &EnrolmentToken,
    wish: Option<&DeviceId>,
    provisioned: Option<&ProvisionedConfig>,
    time: &EffectiveTime,
) -> Result<Enrolled, EnrolError> {
    if token.secret.is_none() && provisioned.is_none() {
        return Err(EnrolError::NoRight);
    }
    let mut backoff = Backoff::new(Pauses { first_ms: 1_000, longest_ms: 300_000 });
    loop {
        match attempt(store, token, wish, provisioned, time).await {
            Err(error) if error.is_temporary() => {
                let pause_ms = backoff.failed(jitter());
                let clock = unset_clock(wall_ms()).unwrap_or_default();
                tracing::warn!(%error, pause_ms, "enrolment has to wait{clock}");
                pause_unless_set(pause_ms).await;
            }
            ended => return ended,
        }
    }
}

/// What to say of a clock that cannot be right, since this program is younger.
fn unset_clock(now_ms: u64) -> Option<String> {
    let year = jiff::Timestamp::from_millisecond(i64::try_from(now_ms).ok()?).ok()?.to_zoned(TimeZone::UTC).year();
    (now_ms < WRITTEN_MS).then(|| {
        format!(": this device's clock says {year}, at which no certificate is good; it goes on by itself once the network has set it")
    })
}

/// Waits for `pause_ms`, or until the clock has been set meanwhile: then what was wrong may be right.
async fn pause_unless_set(pause_ms: u64) {
    let (steady, began_ms) = (Steady::start(), wall_ms());
    loop {
        let passed_ms = steady.now_ms();
        let is_set = wall_ms().abs_diff(began_ms.saturating_add(passed_ms)) > JUMP_MS;
        if is_set || passed_ms >= pause_ms {
            return;
        }
        tokio::time::sleep(Duration::from_millis(LOOK_MS.min(pause_ms - passed_ms))).await;
    }
}

/// Papers that have come and are not yet in force.
#[derive(Debug)]
pub(crate) struct Enrolled {
    papers: papers::Papers,
}

impl Enrolled {
    /// Every root document, the pinned one first.
    pub(crate) fn roots(&self) -> &[Envelope] {
        &self.papers.roots
    }

    /// The digest of the first root document's payload.
    pub(crate) fn root_sha256(&self) -> muster_shared::ids::Digest {
        self.papers.root_sha256
    }

    /// Puts the papers into force: the device is enrolled once this returns.
    ///
    /// # Errors
    /// [`IdentityError`] when a file cannot be written.
    pub(crate) fn commit(&self, store: &IdentityStore) -> Result<Identity, IdentityError> {
        store.install(&self.papers, wall_ms())
    }
}

async fn attempt(
    store: &IdentityStore,
    token: &EnrolmentToken,
    wish: Option<&DeviceId>,
    provisioned: Option<&ProvisionedConfig>,
    time: &EffectiveTime,
) -> Result<Enrolled, EnrolError> {
    let key = store.key()?;
    let request = EnrolRequest {
        secret: token.secret.clone(),
        device: wish.cloned(),
        csr_pem: csr(&key, wish).map_err(EnrolError::Request)?,
    };
    // A token that was handed out counts for itself; a certificate is shown where there is none.
    let own = provisioned.filter(|_| token.secret.is_none()).map(provisioned::read).transpose()?;
    let tls = pin::client(token.ca_sha256, time, own).map_err(|error| EnrolError::Request(error.to_string()))?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(REQUEST_TIMEOUT)
        .build()
        .map_err(|error| EnrolError::Request(reason(&error)))?;
    let url = format!("{}/api/v1/enrol", token.url.trim_end_matches('/'));
    let answer = client.post(&url).json(&request).send().await.map_err(|error| failed(&url, &error))?;
    let status = answer.status();
    let body = bounded_body(answer).await.map_err(|error| match error {
        BodyError::Http(error) => failed(&url, &error),
        BodyError::TooLarge => EnrolError::Away { url: url.clone(), reason: "its answer is too large".to_owned() },
    })?;
    let response = read_answer(&url, status, &body)?;
    let papers = papers::check(token, &key, response).map_err(|source| EnrolError::Papers { url, source })?;
    Ok(Enrolled { papers })
}

/// What the controller's answer says.
fn read_answer(url: &str, status: StatusCode, body: &[u8]) -> Result<EnrolResponse, EnrolError> {
    let url = url.to_owned();
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT {
        return Err(EnrolError::Away { url, reason: format!("it answered {status}") });
    }
    if !status.is_success() {
        let detail = serde_json::from_slice::<Problem>(body).map_or_else(
            |_| {
                "no reason given; a token that was used up or has expired is replaced with `muster token create`"
                    .to_owned()
            },
            |p| p.detail.chars().take(400).collect(),
        );
        return Err(EnrolError::Refused { url, status: status.as_u16(), detail });
    }
    serde_json::from_slice(body).map_err(|_| EnrolError::Papers { url, source: PapersError::Parse("answer") })
}

pub(super) fn csr(key: &KeyPair, wish: Option<&DeviceId>) -> Result<String, String> {
    let mut params = CertificateParams::new([]).map_err(|e| e.to_string())?;
    params.distinguished_name = DistinguishedName::new();
    // The controller decides on the name; this is what the device would like.
    params.distinguished_name.push(DnType::CommonName, wish.map_or("device", DeviceId::as_str));
    params.serialize_request(key).and_then(|request| request.pem()).map_err(|e| e.to_string())
}

fn failed(url: &str, error: &reqwest::Error) -> EnrolError {
    let url = url.to_owned();
    match tls_error(error).and_then(pin::reason) {
        Some(reason) => EnrolError::OtherController { url, reason },
        None => EnrolError::Away { url, reason: reason(error) },
    }
}

fn tls_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    // An IO error hides the error it carries from `source`, and may carry another IO error.
    let carried = || error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref).map(|e| e as _);
    error.downcast_ref().or_else(|| carried().and_then(tls_error)).or_else(|| error.source().and_then(tls_error))
}

/// The innermost words of an error, which say more than the layers around them.
pub(crate) fn reason(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Why an answer has no body that can be used.
pub(crate) enum BodyError {
    Http(reqwest::Error),
    TooLarge,
}

pub(crate) async fn bounded_body(mut answer: reqwest::Response) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(BodyError::Http)? {
        if body.len() + piece.len() > MAX_RESPONSE_BYTES {
            return Err(BodyError::TooLarge);
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::super::papers::tests::Controller;
    use super::*;

    /// A controller that answers one request, and the token that leads there.
    async fn controller_answering(controller: &Controller, status: u16, body: Vec<u8>) -> EnrolmentToken {
        EnrolmentToken { url: controller.answering("/api/v1/enrol", status, body).await, ..controller.token() }
    }

    async fn attempt_at(store: &IdentityStore, token: &EnrolmentToken) -> Result<Enrolled, EnrolError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        attempt(store, token, None, None, &EffectiveTime::default()).await
    }

    #[tokio::test]
    async fn the_papers_come_from_the_controller_the_token_names_and_from_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(folder.path());
        let controller = Controller::new();
        let papers = serde_json::to_vec(&controller.enrol(&store.key().unwrap())).unwrap();
        let token = controller_answering(&controller, 200, papers.clone()).await;
        let enrolled = attempt_at(&store, &token).await.unwrap();
        assert_eq!(store.load().unwrap(), None, "nothing is in force before it is committed");
        let identity = enrolled.commit(&store).unwrap();
        assert_eq!(store.load().unwrap(), Some(identity));

        let token = controller_answering(&Controller::new(), 200, papers).await;
        let error = attempt_at(&store, &EnrolmentToken { url: token.url, ..controller.token() }).await.unwrap_err();
        assert!(matches!(&error, EnrolError::OtherController { .. }) && !error.is_temporary(), "{error}");
    }

    #[tokio::test]
    async fn a_refused_token_ends_it_and_a_controller_in_trouble_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(folder.path());
        let controller = Controller::new();
        let problem = br#"{"type":"t","title":"t","status":403,"detail":"the token is used up"}"#;
        let token = controller_answering(&controller, 403, problem.to_vec()).await;
        let error = attempt_at(&store, &token).await.unwrap_err();
        assert!(error.to_string().contains("(403): the token is used up") && !error.is_temporary(), "{error}");
        let token = controller_answering(&controller, 200, b"{}".to_vec()).await;
        assert!(matches!(attempt_at(&store, &token).await, Err(EnrolError::Papers { .. })));
        for trouble in [500, 503, 429] {
            let token = controller_answering(&controller, trouble, Vec::new()).await;
            assert!(attempt_at(&store, &token).await.unwrap_err().is_temporary(), "{trouble}");
        }
        let token = controller_answering(&controller, 200, vec![b' '; MAX_RESPONSE_BYTES + 1]).await;
        assert!(attempt_at(&store, &token).await.unwrap_err().to_string().contains("too large"));
    }

    #[tokio::test]
    async fn a_controller_that_is_away_is_worth_waiting_for() {
        let folder = tempfile::tempdir().unwrap();
        // Bound and never accepted from again once dropped: nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let token = EnrolmentToken { url: format!("https://127.0.0.1:{port}"), ..Controller::new().token() };
        let store = IdentityStore::new(folder.path());
        let error = attempt_at(&store, &token).await.unwrap_err();
        assert!(error.is_temporary(), "{error}");
        assert!(!error.to_string().contains(&format!("secret {}", token.secret.unwrap_or_default())));
        assert!(folder.path().join("identity/device.key").exists(), "the key is kept for the next attempt");
        assert_eq!(store.load().unwrap(), None);
    }

    #[test]
    fn a_clock_that_was_never_set_is_named_and_one_that_may_be_right_is_not() {
        assert!(unset_clock(600_000).unwrap().contains("clock says 1970"));
        assert!(unset_clock(1_700_000_000_000).unwrap().contains("clock says 2023"));
        assert_eq!((unset_clock(1_780_000_000_000), unset_clock(u64::MAX)), (None, None));
    }

    #[test]
    fn the_request_carries_the_name_wished_for() {
        let key = KeyPair::generate().unwrap();
        let wish = DeviceId::new("press-7").unwrap();
        assert!(csr(&key, Some(&wish)).unwrap().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_papers_or_says_who_gave_it(status in 100..1_000u16, body: Vec<u8>, detail in ".{0,900}") {
            let status = StatusCode::from_u16(status).unwrap();
            let problem = serde_json::json!({"type": "t", "title": "t", "status": 403, "detail": detail}).to_string();
            for body in [body.as_slice(), problem.as_bytes(), b"{}"] {
                let error = read_answer("https://c:1", status, body).unwrap_err();
                let text = error.to_string();
                proptest::prop_assert!(text.contains("https://c:1") && text.chars().count() < 600, "{}", text);
                proptest::prop_assert!(!error.is_temporary() || !status.is_success());
            }
        }
    }
}
