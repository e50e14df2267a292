//! Devices that renew their certificate: the one they have, shown to TLS, for one on a new key.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::api::{Problem, RenewRequest, RenewResponse};

use super::authorities;
use super::extract::Json;
use super::peer::Holder;
use crate::admission::{self, Refusal};
use crate::clock;
use crate::events::{ACTOR_DEVICE, NewEvent};
use crate::pki::DeviceKey;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;
use crate::store::records::DeviceRecord;
use crate::store::{Expect, Records, StoreError, Table};

/// Times a renewal is tried again because somebody else changed the device at the same moment.
const ATTEMPTS: usize = 16;
/// Certificates given out and not yet shown that are accepted; the oldest goes first.
const MAX_PENDING: usize = 4;
/// A device gets a new certificate no sooner than after this part of the life of one, and never has to wait longer than
/// [`LONGEST_WAIT_MS`].
const LEAST_PART: u64 = 100;
const LONGEST_WAIT_MS: u64 = 60_000;

/// Gives a device a new certificate.
#[utoipa::path(
    post, path = "/api/v1/renew", tag = "devices", security(()), request_body = RenewRequest,
    responses(
        (status = 200, description = "The certificate; the one before it is good until this one is used", body = RenewResponse),
        (status = 401, description = "No certificate of a device was shown", body = Problem),
        (status = 403, description = "The device is revoked, or the certificate was superseded", body = Problem),
        (status = 422, description = "The certificate request proves nothing", body = Problem),
        (status = 429, description = "The device has been given one just now, or too many", body = Problem),
    ),
)]
pub(super) async fn renew(
    State(app): State<Arc<App>>,
    Holder { device, serial }: Holder,
    Json(wish): Json<RenewRequest>,
) -> ApiResult<axum::Json<RenewResponse>> {
    let key = DeviceKey::from_request(&wish.csr_pem)
        .map_err(|error| ApiError::unacceptable("invalid-certificate-request", error))?;
    let valid_for_ms = app.config.pki.device_certificate_valid_for_ms;
    for _ in 0..ATTEMPTS {
        let stored =
            admission::accept(&app.records, &app.fleet, &device, Some(&serial)).await.map_err(
                |refusal| match refusal {
                    Refusal::Store(error) => error.into(),
                    Refusal::Unknown | Refusal::Revoked | Refusal::Superseded => {
                        ApiError::new(StatusCode::FORBIDDEN, "certificate-refused", refusal.to_string())
                    }
                },
            )?;
        let now_ms = clock::now_ms();
        let pause_ms = (valid_for_ms / LEAST_PART).min(LONGEST_WAIT_MS);
        let wait_until_ms = stored.value.renewed_at_ms.map_or(0, |at_ms| at_ms.min(now_ms).saturating_add(pause_ms));
        if now_ms < wait_until_ms {
            let detail = format!("the device was given a certificate just now: try again in {pause_ms} ms");
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "renewed-just-now", detail));
        }
        let certificate = app.pki.issue(&device, &key, now_ms, valid_for_ms)?;
        let mut record = DeviceRecord { renewed_at_ms: Some(now_ms), ..stored.value };
        if !record.has_room_for_certificate(now_ms, app.pki.oldest_generation()) {
            // More than any agent asks for.
            let detail = format!(
                "device {device} has too many certificates that have not ended: try again once one has, or enrol it again"
            );
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too-many-certificates", detail));
        }
        record.give(certificate.of(&key), MAX_PENDING, now_ms);
        let (event, _held) = app.events.prepare(NewEvent {
            kind: "device.renewed".into(),
            actor: ACTOR_DEVICE.into(),
            device: Some(device.clone()),
            detail: format!("certificate {} after {serial}", certificate.serial),
            ..NewEvent::default()
        })?;
        let change = Records::put(Table::Devices, device.as_str(), Expect::Version(stored.version), &record)?;
        match app.records.commit(vec![change, event]).await {
            Ok(()) => {
                app.fleet.update_record(&record, stored.version + 1);
                tracing::info!(%device, certificate = certificate.serial, "a certificate is renewed");
                return Ok(axum::Json(RenewResponse {
                    certificate_pem: certificate.pem,
                    authorities: authorities::signed_list(&app)?,
                }));
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let detail = format!("device {device} is being changed by somebody else: try again");
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail))
}
