//! Enrolment tokens: one string that lets devices join.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::api::{
    ActionReason, CreateToken, CreatedToken, Page, Problem, ProvisioningString, Revocation, TokenView,
};
use muster_shared::ids::Digest;
use muster_shared::selector::check_labels;
use muster_shared::token::EnrolmentToken;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Json, Operator, OptionalJson, Parameters, Segments, Viewer, reason_of};
use super::paging::{page, page_size};
use crate::auth;
use crate::clock;
use crate::events::NewEvent;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;
use crate::store::records::EnrolmentTokenRecord;
use crate::store::{Change, Expect, Records, StoreError, Table};
use crate::trust;

const MAX_VALID_FOR_MS: u64 = 366 * 24 * 3_600_000;
/// Hexadecimal digits of a token's id.
const ID_DIGITS: usize = 12;
/// Times a token is revoked again because a device used it at the same moment.
const ATTEMPTS: usize = 64;
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
    let root_sha256 = first_root(&app).await?;
    let now_ms = clock::now_ms();
    let secret = auth::new_secret().map_err(|error| ApiError::internal(&error))?;
    let ca_sha256 = app.pki.current().sha256;
    let record = EnrolmentTokenRecord {
        secret_sha256: Digest::of(secret.as_bytes()),
        expires_ms: now_ms.saturating_add(wish.valid_for_ms),
        uses_left: wish.uses,
        ca_sha256: Some(ca_sha256),
        labels: wish.labels,
        created_at_ms: Some(now_ms),
        created_by: Some(caller.name.clone()),
        revocation: None,
    };
    let id = record.secret_sha256.short();
    let mut changes = forget_expired(&app.records, now_ms).await?;
    let key = record.secret_sha256.to_string();
    changes.push(Records::put(Table::EnrolmentTokens, key, Expect::Absent, &record)?);
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "token.created".into(),
        actor: caller.name,
        detail: format!("enrolment token {id} for {} devices, good until {} ms", record.uses_left, record.expires_ms),
        ..NewEvent::default()
    })?;
    changes.push(event);
    app.records.commit(changes).await?;
    let token = EnrolmentToken {
        url: app.endpoints.api_url.clone(),
        ca_sha256,
        root_sha256,
        secret: Some(secret.as_str().to_owned()),
    };
    let created = CreatedToken { id, token: token.to_token_string(), expires_ms: record.expires_ms };
    Ok((StatusCode::CREATED, axum::Json(created)))
}

/// What devices of an outside authority need to find and trust this controller. It is no secret.
#[utoipa::path(
    get, path = "/api/v1/tokens/provisioning", tag = "devices",
    responses(
        (status = 200, description = "An enrolment token without a secret", body = ProvisioningString),
        (status = 409, description = "No root document has been pushed yet", body = Problem),
    ),
)]
pub(super) async fn provisioning(
    State(app): State<Arc<App>>,
    _caller: Viewer,
) -> ApiResult<axum::Json<ProvisioningString>> {
    let token = EnrolmentToken {
        url: app.endpoints.api_url.clone(),
        ca_sha256: app.pki.current().sha256,
        root_sha256: first_root(&app).await?,
        secret: None,
    };
    Ok(axum::Json(ProvisioningString { token: token.to_token_string() }))
}

/// The digest of the first root document, where devices' trust begins.
async fn first_root(app: &App) -> ApiResult<Digest> {
    let roots = trust::roots(&app.records).await?;
    let Some(first_root) = roots.first() else {
        return Err(ApiError::conflict(
            "no-root",
            "no root document has been pushed yet: make one with `muster root init` and push it, so that devices know whom to trust",
        ));
    };
    let root = first_root.payload_bytes().map_err(|error| ApiError::internal(&error))?;
    Ok(Digest::of(&root))
}

/// Which tokens to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListTokens {
    /// Tokens a page has at most.
    limit: Option<usize>,
    /// Where the page starts: `next_cursor` of the one before.
    #[param(value_type = Option<String>)]
    cursor: Option<TokenId>,
}

/// What a token is called: [`Digest::short`] of its secret's digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct TokenId(String);

impl TryFrom<String> for TokenId {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_id = text.len() == ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_id {
            Ok(Self(text))
        } else {
            Err("a token's id is the 12 hexadecimal digits that `muster token list` shows")
        }
    }
}

fn view(record: EnrolmentTokenRecord) -> TokenView {
    TokenView {
        id: record.secret_sha256.short(),
        created_at_ms: record.created_at_ms,
        created_by: record.created_by,
        expires_ms: record.expires_ms,
        uses_left: record.uses_left,
        labels: record.labels,
        revoked: record.revocation,
    }
}

/// Lists enrolment tokens in order of their ids, without their secrets. Those that expired long ago are forgotten.
#[utoipa::path(
    get, path = "/api/v1/tokens", tag = "devices", params(ListTokens),
    responses((status = 200, description = "A page of tokens", body = Page<TokenView>)),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<ListTokens>,
) -> ApiResult<axum::Json<Page<TokenView>>> {
    let size = page_size(wish.limit);
    // Keys go on after the id with more hexadecimal digits, all of which come before this.
    let after = wish.cursor.map(|TokenId(id)| id + "g");
    let found =
        app.records.scan::<EnrolmentTokenRecord>(Table::EnrolmentTokens, after.as_deref(), "", size + 1).await?;
    let views = found.into_iter().map(|(_, token)| view(token.value)).collect();
    Ok(axum::Json(page(views, size, |token: &TokenView| token.id.clone())))
}

/// Lets no further device join with a token. Those that have stay.
#[utoipa::path(
    post, path = "/api/v1/tokens/{id}/revoke", tag = "devices", request_body = Option<ActionReason>,
    params(("id" = String, Path, description = "Its id, as lists show it")),
    responses(
        (status = 200, description = "The token, revoked now or before", body = TokenView),
        (status = 404, description = "There is no such token", body = Problem),
    ),
)]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(TokenId(id)): Segments<TokenId>,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<TokenView>> {
    reason_of(&why)?;
    for _ in 0..ATTEMPTS {
        let found = app.records.scan::<EnrolmentTokenRecord>(Table::EnrolmentTokens, None, &id, 2).await?;
        let [(key, stored)] = <[_; 1]>::try_from(found)
            .map_err(|_| ApiError::unknown("unknown-token", format!("there is no enrolment token {id}")))?;
        if stored.value.revocation.is_some() {
            return Ok(axum::Json(view(stored.value)));
        }
        let revocation = Revocation { since_ms: clock::now_ms(), by: caller.name.clone(), reason: why.reason.clone() };
        let record = EnrolmentTokenRecord { revocation: Some(revocation), ..stored.value };
        let reason = why.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let (event, _held) = app.events.prepare(NewEvent {
            kind: "token.revoked".into(),
            actor: caller.name.clone(),
            detail: format!("enrolment token {id}{reason}"),
            ..NewEvent::default()
        })?;
        let change = Records::put(Table::EnrolmentTokens, key, Expect::Version(stored.version), &record)?;
        match app.records.commit(vec![change, event]).await {
            Ok(()) => return Ok(axum::Json(view(record))),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let detail = format!("the enrolment token {id} is being used all the time: try again");
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail))
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

async fn forget_expired(records: &Records, now_ms: u64) -> Result<Vec<Change>, StoreError> {
    let known = records.all::<EnrolmentTokenRecord>(Table::EnrolmentTokens, "").await?;
    let long_gone =
        known.into_iter().filter(|(_, token)| token.value.expires_ms.saturating_add(KEPT_EXPIRED_MS) < now_ms);
    Ok(long_gone.map(|(key, _)| Records::delete(Table::EnrolmentTokens, key, Expect::Anything)).collect())
}
