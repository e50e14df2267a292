//! Devices joining: a token's secret and a key that proves itself, for a name and a certificate.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::api::{EnrolRequest, EnrolResponse, Problem};
use muster_shared::ids::{DeviceId, Digest};

use super::authorities;
use super::extract::Json;
use crate::clock;
use crate::events::{ACTOR_DEVICE, NewEvent};
use crate::pki::{DeviceCertificate, DeviceKey};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;
use crate::store::records::{DeviceRecord, EnrolmentTokenRecord};
use crate::store::{Change, Expect, Records, StoreError, Stored, Table};
use crate::trust;

/// Times an enrolment is tried again because another one used the same token at the same moment.
const ATTEMPTS: usize = 64;

/// Joins the fleet.
#[utoipa::path(
    post, path = "/api/v1/enrol", tag = "devices", security(()), request_body = EnrolRequest,
    responses(
        (status = 200, description = "The device's papers", body = EnrolResponse),
        (status = 401, description = "The secret is not known", body = Problem),
        (status = 403, description = "The token has expired, is revoked or used up, or the device of that name is revoked", body = Problem),
        (status = 409, description = "The name is taken, or no root document is there yet", body = Problem),
        (status = 422, description = "The certificate request proves nothing", body = Problem),
        (status = 429, description = "The device of that name and key has been given too many certificates", body = Problem),
    ),
)]
pub(super) async fn enrol(
    State(app): State<Arc<App>>,
    Json(wish): Json<EnrolRequest>,
) -> ApiResult<axum::Json<EnrolResponse>> {
    let secret_sha256 = Digest::of(wish.secret.as_bytes());
    // Only those who hold a token learn what else is wrong.
    let named = token(&app.records, &secret_sha256).await?.value.ca_sha256;
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
    let device = match wish.device {
        Some(device) => device,
        None => derived_name(&key)?,
    };
    let valid_for_ms = app.config.pki.device_certificate_valid_for_ms;
    for _ in 0..ATTEMPTS {
        let now_ms = clock::now_ms();
        let token = token(&app.records, &secret_sha256).await?;
        let known = app.records.get::<DeviceRecord>(Table::Devices, device.as_str()).await?;
        let certificate =
            app.pki.issue(&device, &key, now_ms, valid_for_ms).map_err(|error| ApiError::internal(&error))?;
        let version = known.as_ref().map_or(0, |known| known.version) + 1;
        let (record, mut changes) = match known {
            Some(known) => again(known, &key, &certificate, now_ms, valid_for_ms)?,
            None => first(&token, &device, &key, &certificate, now_ms)?,
        };
        let (event, _held) = app.events.prepare(NewEvent {
            kind: "device.enrolled".into(),
            actor: ACTOR_DEVICE.into(),
            device: Some(device.clone()),
            detail: format!("certificate {}, token {}", certificate.serial, secret_sha256.short()),
            ..NewEvent::default()
        })?;
        changes.push(event);
        match app.records.commit(changes).await {
            Ok(()) => {
                app.fleet.update_record(&record, version);
                app.nudge.notify_one();
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
    token: &Stored<EnrolmentTokenRecord>,
    device: &DeviceId,
    key: &DeviceKey,
    certificate: &DeviceCertificate,
    now_ms: u64,
) -> ApiResult<(DeviceRecord, Vec<Change>)> {
    let Some(uses_left) = token.value.uses_left.checked_sub(1) else {
        let detail = "the enrolment token is used up: make one with `muster token create`";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "used-up-enrolment-token", detail));
    };
    let record = DeviceRecord {
        id: device.clone(),
        labels: token.value.labels.clone(),
        enrolled_at_ms: now_ms,
        certificate_serial: certificate.serial.clone(),
        public_key_sha256: key.sha256(),
        authorities: certificate.version,
        pending: Vec::new(),
        superseded: Vec::new(),
        renewed_at_ms: None,
        revocation: None,
        desired: None,
        assigned: Vec::new(),
    };
    let used = EnrolmentTokenRecord { uses_left, ..token.value.clone() };
    let token_key = token.value.secret_sha256.to_string();
    let changes = vec![
        Records::put(Table::EnrolmentTokens, token_key, Expect::Version(token.version), &used)?,
        Records::put(Table::Devices, device.as_str(), Expect::Absent, &record)?,
    ];
    Ok((record, changes))
}

/// The changes for a device that enrolled before with the same key: its first answer was lost on the way, or its certificate
/// ended while it was away. Its place in the fleet and the token's uses stay as they are. Anybody else who wants the name is refused.
fn again(
    known: Stored<DeviceRecord>,
    key: &DeviceKey,
    certificate: &DeviceCertificate,
    now_ms: u64,
    valid_for_ms: u64,
) -> ApiResult<(DeviceRecord, Vec<Change>)> {
    let device = &known.value.id;
    if known.value.is_revoked() {
        let detail = format!("the device {device} is revoked: `muster device reinstate {device}` lets it in again");
        return Err(ApiError::new(StatusCode::FORBIDDEN, "device-revoked", detail));
    }
    let is_pending = known.value.pending.iter().any(|pending| pending.public_key_sha256 == key.sha256());
    if known.value.public_key_sha256 != key.sha256() && !is_pending {
        let detail = format!("a device {device} has enrolled already: choose another name");
        return Err(ApiError::conflict("device-exists", detail));
    }
    let mut record = known.value.clone();
    if !record.has_room_for_certificate(now_ms, valid_for_ms) {
        return Err(too_many_certificates(device));
    }
    record.take_up(certificate.of(key), now_ms);
    let change = Records::put(Table::Devices, device.as_str(), Expect::Version(known.version), &record)?;
    Ok((record, vec![change]))
}

/// The answer to a device that has been given more certificates than any agent asks for.
pub(super) fn too_many_certificates(device: &DeviceId) -> ApiError {
    let detail = format!("device {device} has too many certificates that have not ended: try again once one has");
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too-many-certificates", detail)
}
