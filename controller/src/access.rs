//! Access tokens besides the administrator's, each with a name of its own: the records say by name who did what, and approvals
//! count names. A name that was taken back is given to nobody else, so that nobody inherits what was done under it.

use muster_shared::access::{AccessView, CreateAccess, CreatedAccess, is_access_name};
use muster_shared::api::AccessRole;
use muster_shared::ids::Digest;
use muster_shared::limits::MAX_ACCESS_TOKENS;
use serde::{Deserialize, Serialize};

use crate::auth;
use crate::clock;
use crate::events::NewEvent;
use crate::state::App;
use crate::store::records::AccessTokenRecord;
use crate::store::{Expect, Records, StoreError, Stored, Table};

/// Under which the names that were ever given stand in the table of settings.
const NAMES: &str = "access/";
const ADMIN: &str = "admin";

/// Why there is no such access token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    /// Not a name.
    #[error("the name of an access token has 1 to 64 letters, digits, '-', '_', '.' and '@'")]
    Name,
    /// There is one administrator.
    #[error(
        "there is one administrator, whose token is in the controller's admin.token: make a viewer, operator or approver"
    )]
    Administrator,
    /// Somebody has or had it.
    #[error("{0:?} is taken, or was: every token has a name of its own for good, so choose another")]
    Taken(String),
    /// There is no room.
    #[error("there are {MAX_ACCESS_TOKENS} access tokens: revoke one first")]
    TooMany,
    /// There is none of this name.
    #[error("there is no access token {0:?}")]
    Unknown(String),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers for a token: {0}")]
    Random(getrandom::Error),
    /// The store failed.
    #[error("the access tokens cannot be read or written")]
    Store(#[from] StoreError),
}

/// Which token has or had a name.
#[derive(Debug, Serialize, Deserialize)]
struct NameRecord {
    token_sha256: Digest,
}

fn view(record: AccessTokenRecord) -> AccessView {
    AccessView { name: record.name, role: record.role, created_at_ms: record.created_at_ms }
}

/// Makes a token.
///
/// # Errors
/// [`AccessError`] with what is wrong with the wish.
pub(crate) async fn create(app: &App, wish: CreateAccess, actor: &str) -> Result<CreatedAccess, AccessError> {
    let CreateAccess { name, role } = wish;
    if !is_access_name(&name) {
        return Err(AccessError::Name);
    }
    if role == AccessRole::Admin || name == ADMIN {
        return Err(AccessError::Administrator);
    }
    if list(app).await?.len() >= MAX_ACCESS_TOKENS {
        return Err(AccessError::TooMany);
    }
    let secret = auth::new_secret().map_err(AccessError::Random)?;
    let token_sha256 = Digest::of(secret.as_bytes());
    let record = AccessTokenRecord { name: name.clone(), role, created_at_ms: clock::now_ms() };
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "access.created".into(),
        actor: actor.to_owned(),
        detail: format!("{name} as {}", word(role)),
        ..NewEvent::default()
    })?;
    let changes = vec![
        Records::put(Table::AccessTokens, token_sha256.to_string(), Expect::Absent, &record)?,
        Records::put(Table::Meta, format!("{NAMES}{name}"), Expect::Absent, &NameRecord { token_sha256 })?,
        event,
    ];
    match app.records.commit(changes).await {
        Ok(()) => Ok(CreatedAccess { name, role, token: secret.to_string() }),
        Err(StoreError::Conflict { .. }) => Err(AccessError::Taken(name)),
        Err(error) => Err(error.into()),
    }
}

/// Every token in order of the names.
///
/// # Errors
/// [`AccessError::Store`].
pub(crate) async fn list(app: &App) -> Result<Vec<AccessView>, AccessError> {
    let all = app.records.all::<AccessTokenRecord>(Table::AccessTokens, "").await?;
    let mut views: Vec<AccessView> = all.into_iter().map(|(_, record)| view(record.value)).collect();
    views.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(views)
}

/// Lets nobody use the token of this name any more.
///
/// # Errors
/// [`AccessError::Unknown`]; [`AccessError::Administrator`].
pub(crate) async fn revoke(app: &App, name: &str, actor: &str) -> Result<AccessView, AccessError> {
    if name == ADMIN {
        return Err(AccessError::Administrator);
    }
    let unknown = || AccessError::Unknown(name.chars().take(80).collect());
    let known = app.records.get::<NameRecord>(Table::Meta, &format!("{NAMES}{name}")).await?.ok_or_else(unknown)?;
    let key = known.value.token_sha256.to_string();
    let record = app.records.get::<AccessTokenRecord>(Table::AccessTokens, &key).await?;
    let Stored { version, value: record } = record.ok_or_else(unknown)?;
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "access.revoked".into(),
        actor: actor.to_owned(),
        detail: format!("{name}, {}", word(record.role)),
        ..NewEvent::default()
    })?;
    let changes = vec![Records::delete(Table::AccessTokens, key, Expect::Version(version)), event];
    match app.records.commit(changes).await {
        Ok(()) => Ok(view(record)),
        Err(StoreError::Conflict { .. }) => Err(unknown()),
        Err(error) => Err(error.into()),
    }
}

fn word(role: AccessRole) -> &'static str {
    match role {
        AccessRole::Viewer => "viewer",
        AccessRole::Operator => "operator",
        AccessRole::Approver => "approver",
        AccessRole::Admin => "admin",
    }
}
