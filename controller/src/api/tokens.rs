//! Enrolment tokens: one string that lets devices join.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::api::{CreateToken, CreatedToken, Problem};
use muster_shared::ids::Digest;
use muster_shared::limits::MAX_LABELS;
use muster_shared::selector::is_label_text;
use muster_shared::token::EnrolmentToken;

use super::extract::{Json, Operator};
use crate::auth;
use crate::clock;
use crate::events::NewEvent;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;
use crate::store::records::EnrolmentTokenRecord;
use crate::store::{Change, Expect, Records, StoreError, Table};
use crate::trust;

const MAX_VALID_FOR_MS: u64 = 366 * 24 * 3_600_000;
/// Tokens are forgotten this long after they expired, so that a device still hears why it is refused.
const KEPT_EXPIRED_MS: u64 = 7 * 24 * 3_600_000;

/// Makes an enrolment token.
#[utoipa::path(
    post, path = "/api/v1/tokens", tag = "devices", request_body = CreateToken,
    responses(
        (status = 201, description = "The token, shown this once", body = CreatedToken),
        (status = 400, description = "A value makes no sense", body = Problem),
        (status = 409, description = "No root document has been pushed yet", body = Problem),
    ),
)]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Json(wish): Json<CreateToken>,
) -> ApiResult<(StatusCode, axum::Json<CreatedToken>)> {
    check(&wish)?;
    let roots = trust::roots(&app.records).await?;
    let Some(first_root) = roots.first() else {
        return Err(ApiError::conflict(
            "no-root",
            "no root document has been pushed yet: make one with `muster root init` and push it, so that devices know whom to trust",
        ));
    };
    let root = first_root.payload_bytes().map_err(|error| ApiError::internal(&error))?;
    let now_ms = clock::now_ms();
    let secret = auth::new_secret().map_err(|error| ApiError::internal(&error))?;
    let record = EnrolmentTokenRecord {
        secret_sha256: Digest::of(secret.as_bytes()),
        expires_ms: now_ms.saturating_add(wish.valid_for_ms),
        uses_left: wish.uses,
        labels: wish.labels,
    };
    let mut changes = forget_expired(&app.records, now_ms).await?;
    let key = record.secret_sha256.to_string();
    changes.push(Records::put(Table::EnrolmentTokens, key, Expect::Absent, &record)?);
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "token.created".into(),
        actor: caller.name,
        detail: format!("an enrolment token for {} devices, good until {} ms", record.uses_left, record.expires_ms),
        ..NewEvent::default()
    })?;
    changes.push(event);
    app.records.commit(changes).await?;
    let token = EnrolmentToken {
        url: app.endpoints.api_url.clone(),
        ca_sha256: app.pki.ca_sha256(),
        root_sha256: Digest::of(&root),
        secret: secret.as_str().to_owned(),
    };
    let created = CreatedToken { token: token.to_token_string(), expires_ms: record.expires_ms };
    Ok((StatusCode::CREATED, axum::Json(created)))
}

fn check(wish: &CreateToken) -> ApiResult<()> {
    let refuse = |detail: String| Err(ApiError::invalid("invalid-token-wish", detail));
    if wish.valid_for_ms == 0 || wish.valid_for_ms > MAX_VALID_FOR_MS {
        return refuse(format!("valid_for_ms must be 1 to {MAX_VALID_FOR_MS}"));
    }
    if wish.uses == 0 {
        return refuse("uses must be at least 1".into());
    }
    check_labels(&wish.labels).or_else(refuse)
}

/// Whether a device may carry these labels.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    if labels.len() > MAX_LABELS {
        return Err(format!("a device has at most {MAX_LABELS} labels"));
    }
    if labels.contains_key("id") {
        return Err("the label \"id\" is reserved: in selectors it names the device itself".into());
    }
    match labels.iter().flat_map(|(key, value)| [key, value]).find(|text| !is_label_text(text)) {
        None => Ok(()),
        Some(text) => {
            let text: String = text.chars().take(80).collect();
            Err(format!(
                "{text:?} cannot be a label's key or value: use 1 to 128 visible ASCII characters without ,=!*"
            ))
        }
    }
}

async fn forget_expired(records: &Records, now_ms: u64) -> Result<Vec<Change>, StoreError> {
    let known = records.all::<EnrolmentTokenRecord>(Table::EnrolmentTokens, "").await?;
    let long_gone =
        known.into_iter().filter(|(_, token)| token.value.expires_ms.saturating_add(KEPT_EXPIRED_MS) < now_ms);
    Ok(long_gone.map(|(key, _)| Records::delete(Table::EnrolmentTokens, key, Expect::Anything)).collect())
}
