//! Devices joining: a token's secret and a key that proves itself, for a name and a certificate.

use std::fmt;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::api::{EnrolRequest, EnrolResponse, Problem};
use muster_shared::ids::{DeviceId, Digest};

use super::authorities;
use super::extract::Json;
use super::peer::Shown;
use crate::clock;
use crate::events::{ACTOR_DEVICE, NewEvent};
use crate::pki::{DeviceCertificate, DeviceKey, OutsideError, Provisioned};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;
use crate::store::records::{DeviceRecord, EnrolmentTokenRecord, SupersededCertificate};
use crate::store::{Change, Expect, Records, StoreError, Stored, Table};
use crate::trust;

/// Times an enrolment is tried again because another one used the same token at the same moment.
const ATTEMPTS: usize = 64;

/// What gives a device the right to join.
enum Right {
    /// It knows the secret of the token with this digest.
    Token(Digest),
    /// It has shown a certificate of an outside authority.
    Certificate(Provisioned),
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(secret_sha256) => write!(f, "token {}", secret_sha256.short()),
            Self::Certificate(certificate) => write!(f, "shown a certificate of {}", certificate.authority),
        }
    }
}

/// The same, as it stands in the store at this moment.
enum Used<'a> {
    Token(Stored<EnrolmentTokenRecord>),
    Certificate(&'a Provisioned),
}

/// Who the certificate shown says the device is.
fn provisioned(app: &App, shown: Option<Extension<Shown>>) -> ApiResult<Provisioned> {
    let refuse = |detail: String| ApiError::new(StatusCode::UNAUTHORIZED, "no-right-to-enrol", detail);
    let Some(Extension(Shown(chain))) = shown else {
        return Err(refuse("neither an enrolment token's secret nor a certificate was shown".into()));
    };
    app.pki.provisioned(&chain, clock::now_ms()).map_err(|error| match error {
        OutsideError::Revoked { .. } => ApiError::internal(&error),
        OutsideError::Certificate(_) | OutsideError::Rule { .. } => {
            refuse(format!("the certificate shown gives no right to enrol: {error}"))
        }
    })
}

/// Joins the fleet.
#[utoipa::path(
    post, path = "/api/v1/enrol", tag = "devices", security(()), request_body = EnrolRequest,
    responses(
        (status = 200, description = "The device's papers", body = EnrolResponse),
        (status = 401, description = "The secret is not known, or the certificate shown gives no right to enrol", body = Problem),
        (status = 403, description = "The token has expired, is revoked or used up, or the device of that name is revoked", body = Problem),
        (status = 409, description = "The name is taken, or no root document is there yet", body = Problem),
        (status = 422, description = "The certificate request proves nothing", body = Problem),
    ),
)]
pub(super) async fn enrol(
    State(app): State<Arc<App>>,
    shown: Option<Extension<Shown>>,
    Json(wish): Json<EnrolRequest>,
) -> ApiResult<axum::Json<EnrolResponse>> {
    // Only those who have a right to enrol learn what else is wrong.
    let (right, named) = match &wish.secret {
        Some(secret) => {
            let secret_sha256 = Digest::of(secret.as_bytes());
            let named = token(&app.records, &secret_sha256).await?.value.ca_sha256;
            (Right::Token(secret_sha256), named)
        }
        None => (Right::Certificate(provisioned(&app, shown)?), Some(app.pki.current().sha256)),
    };
    let key = DeviceKey::from_request(&wish.csr_pem)
        .map_err(|error| ApiError::unacceptable("invalid-certificate-request", error))?;
    let ca_pem = named_authority(&app, &named)?;
    let roots = trust::roots(&app.records).await?;
    if roots.is_empty() {
        return Err(ApiError::conflict(
            "no-root",
            "no root document has been pushed yet, so a device would have nothing to trust",
        ));
    }
    let device = match (&right, wish.device) {
        (Right::Certificate(certificate), Some(wish)) if wish != certificate.device => {
            let detail =
                format!("the certificate shown is {}'s: a device cannot choose another name", certificate.device);
            return Err(ApiError::conflict("other-device", detail));
        }
        (Right::Certificate(certificate), _) => certificate.device.clone(),
        (Right::Token(_), Some(device)) => device,
        (Right::Token(_), None) => derived_name(&key)?,
    };
    let valid_for_ms = app.config.pki.device_certificate_valid_for_ms;
    for _ in 0..ATTEMPTS {
        let now_ms = clock::now_ms();
        let used = match &right {
            Right::Token(secret_sha256) => Used::Token(token(&app.records, secret_sha256).await?),
            Right::Certificate(certificate) => Used::Certificate(certificate),
        };
        let known = app.records.get::<DeviceRecord>(Table::Devices, device.as_str()).await?;
        let certificate = app.pki.issue(&device, &key, now_ms, valid_for_ms)?;
        let version = known.as_ref().map_or(0, |known| known.version) + 1;
        let (record, mut changes, forgotten) = match known {
            Some(known) => again(known, &used, &key, &certificate, now_ms, app.pki.oldest_generation())?,
            None => {
                let (record, changes) = first(&used, &device, &key, &certificate, now_ms)?;
                (record, changes, Vec::new())
            }
        };
        let event = |kind: &str, detail: String| NewEvent {
            kind: kind.into(),
            actor: ACTOR_DEVICE.into(),
            device: Some(device.clone()),
            detail,
            ..NewEvent::default()
        };
        let enrolled = format!("certificate {}, {right}", certificate.serial);
        let (enrolled, _held) = app.events.prepare(event("device.enrolled", enrolled))?;
        changes.push(enrolled);
        let unlisted = (!forgotten.is_empty()).then(|| unlisted(&forgotten));
        let _also_held = match &unlisted {
            Some(detail) => {
                let (unlisted, held) = app.events.prepare(event("device.certificates-forgotten", detail.clone()))?;
                changes.push(unlisted);
                Some(held)
            }
            None => None,
        };
        match app.records.commit(changes).await {
            Ok(()) => {
                app.fleet.update_record(&record, version);
                app.nudge.notify_one();
                if let Some(detail) = unlisted {
                    tracing::warn!(%device, %detail, "a device enrols over and over");
                }
                tracing::info!(%device, certificate = certificate.serial, "a device enrolled");
                return Ok(axum::Json(EnrolResponse {
                    device,
                    certificate_pem: certificate.pem,
                    ca_pem: ca_pem.clone(),
                    broker_host: app.endpoints.broker_host.clone(),
                    broker_port: app.endpoints.broker_port,
                    roots,
                    authorities: authorities::signed_list(&app)?,
                }));
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "busy",
        "too many devices enrol with this token at the same moment: try again",
    ))
}

/// The token with this secret, if it is still good for a look; whether it has uses left is decided by [`first`].
async fn token(records: &Records, secret_sha256: &Digest) -> ApiResult<Stored<EnrolmentTokenRecord>> {
    let token = records
        .get::<EnrolmentTokenRecord>(Table::EnrolmentTokens, &secret_sha256.to_string())
        .await?
        .ok_or_else(|| {
            let detail = "the enrolment token is not known to this controller: make one with `muster token create`";
            ApiError::new(StatusCode::UNAUTHORIZED, "unknown-enrolment-token", detail)
        })?;
    if token.value.revocation.is_some() {
        let detail = "the enrolment token is revoked: make one with `muster token create`";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "revoked-enrolment-token", detail));
    }
    if clock::now_ms() >= token.value.expires_ms {
        let detail = "the enrolment token has expired: make one with `muster token create`";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "expired-enrolment-token", detail));
    }
    Ok(token)
}

/// The certificate of the authority that a token names, which is where the device's trust begins.
fn named_authority(app: &App, named: &Option<Digest>) -> ApiResult<String> {
    let authority = match named {
        Some(sha256) => app.pki.authority(sha256),
        None => app.pki.authorities().into_iter().find(|authority| authority.generation == 1),
    };
    authority.map(|authority| authority.pem).ok_or_else(|| {
        let detail =
            "the certificate authority that the token names was replaced: make a token with `muster token create`";
        ApiError::new(StatusCode::FORBIDDEN, "retired-authority", detail)
    })
}

/// A name made from the key, so that a device that asks again is given the same.
fn derived_name(key: &DeviceKey) -> ApiResult<DeviceId> {
    DeviceId::new(format!("device-{}", key.sha256().short())).map_err(|error| ApiError::internal(&error))
}

/// The changes that let a new device in.
fn first(
    used: &Used<'_>,
    device: &DeviceId,
    key: &DeviceKey,
    certificate: &DeviceCertificate,
    now_ms: u64,
) -> ApiResult<(DeviceRecord, Vec<Change>)> {
    let (labels, outside, spent) = match used {
        Used::Token(token) => (token.value.labels.clone(), None, Some(spend(token)?)),
        Used::Certificate(certificate) => (certificate.labels.clone(), Some(certificate.authority.clone()), None),
    };
    let record = DeviceRecord {
        id: device.clone(),
        labels,
        enrolled_at_ms: now_ms,
        certificate_serial: certificate.serial.clone(),
        public_key_sha256: key.sha256(),
        outside,
        authorities: certificate.version,
        certificate_ends_ms: Some(certificate.ends_ms),
        pending: Vec::new(),
        superseded: Vec::new(),
        renewed_at_ms: None,
        revocation: None,
        desired: None,
        desired_program: None,
        assigned: Vec::new(),
        updates: Default::default(),
        pin: None,
    };
    let joins = Records::put(Table::Devices, device.as_str(), Expect::Absent, &record)?;
    Ok((record, spent.into_iter().chain([joins]).collect()))
}

/// The change that uses `token` once.
fn spend(token: &Stored<EnrolmentTokenRecord>) -> ApiResult<Change> {
    let Some(uses_left) = token.value.uses_left.checked_sub(1) else {
        let detail = "the enrolment token is used up: make one with `muster token create`";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "used-up-enrolment-token", detail));
    };
    let used = EnrolmentTokenRecord { uses_left, ..token.value.clone() };
    let key = token.value.secret_sha256.to_string();
    Ok(Records::put(Table::EnrolmentTokens, key, Expect::Version(token.version), &used)?)
}

/// The changes for a device that enrolled before with the same key, or showed the same authority's certificate: its first answer was lost on the
/// way, its certificate ended while it was away, or it was set up anew. Its place in the fleet and the token's uses stay as they are. Anybody else who wants the name is refused.
/// With them come the certificates that are remembered no more, for there were too many.
fn again(
    known: Stored<DeviceRecord>,
    used: &Used<'_>,
    key: &DeviceKey,
    certificate: &DeviceCertificate,
    now_ms: u64,
    oldest_authority: u64,
) -> ApiResult<(DeviceRecord, Vec<Change>, Vec<SupersededCertificate>)> {
    let device = &known.value.id;
    if known.value.is_revoked() {
        let detail = format!("the device {device} is revoked: `muster device reinstate {device}` lets it in again");
        return Err(ApiError::new(StatusCode::FORBIDDEN, "device-revoked", detail));
    }
    let is_pending = known.value.pending.iter().any(|pending| pending.public_key_sha256 == key.sha256());
    let is_itself = match used {
        Used::Token(_) => known.value.public_key_sha256 == key.sha256() || is_pending,
        // A name that was given by a token is not another authority's to take.
        Used::Certificate(certificate) => known.value.outside.as_ref() == Some(&certificate.authority),
    };
    if !is_itself {
        let detail = format!("a device {device} has enrolled already: choose another name");
        return Err(ApiError::conflict("device-exists", detail));
    }
    let mut record = known.value.clone();
    let forgotten = record.make_room_for_certificate(now_ms, oldest_authority);
    record.take_up(certificate.of(key), now_ms);
    let change = Records::put(Table::Devices, device.as_str(), Expect::Version(known.version), &record)?;
    Ok((record, vec![change], forgotten))
}

/// What is to be known of certificates that are remembered no more.
fn unlisted(forgotten: &[SupersededCertificate]) -> String {
    let serials: Vec<&str> = forgotten.iter().map(|certificate| certificate.serial.as_str()).collect();
    format!(
        "{} superseded certificates that have not ended are named no more by the list for outside brokers, since the device has too many: {}",
        serials.len(),
        serials.join(", ")
    )
}
