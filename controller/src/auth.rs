//! Who may use the API: bearer tokens with roles, and the first of them.
//!
//! Only a token's digest is stored, and a token is found by its digest: no comparison takes longer the more of a guess is
//! right.

use std::path::{Path, PathBuf};

use muster_shared::api::AccessRole;
use muster_shared::ids::Digest;
use zeroize::Zeroizing;

use crate::durable::{self, Access, FileError};
use crate::store::records::AccessTokenRecord;
use crate::store::{Change, Expect, Records, StoreError, Table};

/// Longest token looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 512;

/// Why the first token could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    /// Its file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its file is empty or not text.
    #[error(
        "{0} holds no token, which has 32 to {MAX_TOKEN_BYTES} characters: remove the file to get a new one, or restore it"
    )]
    Damaged(String),
    /// The file that was named is not there.
    #[error("{0} is not there: put the administrator's token into it, or name no file")]
    Missing(String),
    /// The store failed.
    #[error("the access tokens cannot be read or written")]
    Store(#[from] StoreError),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers for a token: {0}")]
    Random(getrandom::Error),
}

/// Somebody who has shown a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The token's name, for the records.
    pub(crate) name: String,
    /// What they may do.
    pub(crate) role: AccessRole,
}

/// A new secret: 32 random bytes in hexadecimal.
///
/// # Errors
/// What the system says.
pub(crate) fn new_secret() -> Result<Zeroizing<String>, getrandom::Error> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    getrandom::fill(bytes.as_mut_slice())?;
    Ok(Zeroizing::new(hex::encode(bytes.as_slice())))
}

/// Who `token` belongs to; nobody when it is unknown.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn caller(records: &Records, token: &str) -> Result<Option<Caller>, StoreError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Ok(None);
    }
    let key = Digest::of(token.as_bytes()).to_string();
    let record = records.get::<AccessTokenRecord>(Table::AccessTokens, &key).await?;
    Ok(record.map(|record| Caller { name: record.value.name, role: record.value.role }))
}

/// Where the administrator's token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AdminToken {
    /// A file of ours, made at the first start.
    Own(PathBuf),
    /// A file that somebody else keeps.
    Given(PathBuf),
}

impl AdminToken {
    /// The file that is configured, or else the one that the environment names, or the credential that systemd brings, or our own.
    pub(crate) fn locate(configured: Option<&Path>, data: &Path, set: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let credential =
            || set("CREDENTIALS_DIRECTORY").map(|folder| folder.join("admin-token")).filter(|path| path.exists());
        configured
            .map(Path::to_owned)
            .or_else(|| set("MUSTER_CONTROLLER_ADMIN_TOKEN_FILE"))
            .or_else(credential)
            .map_or_else(|| Self::Own(data.join("admin.token")), Self::Given)
    }
}

fn parse(text: &[u8], path: &Path) -> Result<Zeroizing<String>, AuthError> {
    let damaged = || AuthError::Damaged(path.display().to_string());
    let text = std::str::from_utf8(text).map_err(|_| damaged())?.trim();
    if text.len() < 32 || text.len() > MAX_TOKEN_BYTES {
        return Err(damaged());
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Makes the administrator's token at the first start, and takes over what its file says. Another token in the file ends the
/// one before. Where the store knows an administrator and our own file is gone, somebody put it away, and nothing is made.
///
/// # Errors
/// [`AuthError`].
pub(crate) async fn ensure_admin(records: &Records, from: &AdminToken, now_ms: u64) -> Result<(), AuthError> {
    let known = records.all::<AccessTokenRecord>(Table::AccessTokens, "").await?;
    let admins: Vec<String> =
        known.into_iter().filter(|(_, token)| token.value.role == AccessRole::Admin).map(|(key, _)| key).collect();
    let (AdminToken::Own(path) | AdminToken::Given(path)) = from;
    let token = match (durable::read(path)?.map(Zeroizing::new), from) {
        (Some(text), _) => parse(&text, path)?,
        (None, AdminToken::Given(_)) => return Err(AuthError::Missing(path.display().to_string())),
        (None, AdminToken::Own(_)) if !admins.is_empty() => return Ok(()),
        (None, AdminToken::Own(_)) => {
            let token = new_secret().map_err(AuthError::Random)?;
            durable::write(path, token.as_bytes(), Access::Secret)?;
            token
        }
    };
    let key = Digest::of(token.as_bytes()).to_string();
    let record = AccessTokenRecord { name: "admin".into(), role: AccessRole::Admin, created_at_ms: now_ms };
    let is_new = !admins.contains(&key);
    let mut changes: Vec<Change> = admins
        .into_iter()
        .filter(|admin| *admin != key)
        .map(|admin| Records::delete(Table::AccessTokens, admin, Expect::Anything))
        .collect();
    if is_new {
        changes.push(Records::put(Table::AccessTokens, key, Expect::Anything, &record)?);
    }
    if changes.is_empty() {
        return Ok(());
    }
    Ok(records.commit(changes).await?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::records;

    proptest! {
        #[test]
        fn any_file_is_a_token_or_named(
            bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..700), "\\PC{20,600}".prop_map(String::into_bytes)]
        ) {
            match parse(&bytes, Path::new("admin.token")) {
                Ok(token) => {
                    prop_assert!((32..=MAX_TOKEN_BYTES).contains(&token.len()) && token.trim() == token.as_str());
                    prop_assert!(std::str::from_utf8(&bytes).is_ok_and(|text| text.contains(token.as_str())));
                }
                Err(error) => prop_assert!(error.to_string().contains("admin.token")),
            }
        }
    }

    #[tokio::test]
    async fn the_first_token_is_made_once_and_stored_as_a_digest() {
        let (records, folder) = records();
        let path = folder.path().join("admin.token");
        let own = AdminToken::Own(path.clone());
        ensure_admin(&records, &own, 1).await.unwrap();
        let token = std::fs::read_to_string(&path).unwrap();
        ensure_admin(&records, &own, 2).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), token);
        let known = records.all::<AccessTokenRecord>(Table::AccessTokens, "").await.unwrap();
        assert_eq!(known.len(), 1);
        assert_ne!(known[0].0, token);
        assert_eq!(caller(&records, &token).await.unwrap().unwrap().role, AccessRole::Admin);
        for wrong in ["", "x", &token[1..], &format!("{token} "), &known[0].0, &"x".repeat(10_000)] {
            assert_eq!(caller(&records, wrong).await.unwrap(), None);
        }
        // Put away on purpose.
        std::fs::remove_file(&path).unwrap();
        ensure_admin(&records, &own, 3).await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_damaged_token_file_is_named() {
        let (records, folder) = records();
        let path = folder.path().join("admin.token");
        for bad in ["", "short", "\u{0}"] {
            std::fs::write(&path, bad).unwrap();
            let error = ensure_admin(&records, &AdminToken::Own(path.clone()), 1).await.unwrap_err();
            assert!(error.to_string().contains("admin.token"), "{error}");
        }
    }

    #[tokio::test]
    async fn another_token_in_the_file_ends_the_one_before() {
        let (records, folder) = records();
        let own = AdminToken::Own(folder.path().join("admin.token"));
        ensure_admin(&records, &own, 1).await.unwrap();
        let first = std::fs::read_to_string(folder.path().join("admin.token")).unwrap();
        let path = folder.path().join("given");
        let given = AdminToken::Given(path.clone());
        let missing = ensure_admin(&records, &given, 2).await.unwrap_err().to_string();
        assert!(missing.contains("given is not there"), "{missing}");
        assert!(caller(&records, &first).await.unwrap().is_some(), "a failed start changes nothing");
        for round in 0..2 {
            let token = format!("{round}").repeat(40);
            std::fs::write(&path, format!("{token}\n")).unwrap();
            ensure_admin(&records, &given, 3).await.unwrap();
            assert_eq!(caller(&records, &token).await.unwrap().unwrap().role, AccessRole::Admin);
            assert_eq!(caller(&records, &first).await.unwrap(), None);
            assert_eq!(records.all::<AccessTokenRecord>(Table::AccessTokens, "").await.unwrap().len(), 1);
        }
        assert_eq!(caller(&records, &"0".repeat(40)).await.unwrap(), None);
    }

    #[test]
    fn a_token_comes_from_the_nearest_place_that_names_one() {
        let folder = tempfile::tempdir().unwrap();
        let data = Path::new("/data");
        let nothing = |_: &str| None;
        assert_eq!(AdminToken::locate(None, data, nothing), AdminToken::Own("/data/admin.token".into()));
        let credentials = |name: &str| (name == "CREDENTIALS_DIRECTORY").then(|| folder.path().to_owned());
        assert_eq!(AdminToken::locate(None, data, credentials), AdminToken::Own("/data/admin.token".into()));
        let credential = folder.path().join("admin-token");
        std::fs::write(&credential, "x").unwrap();
        assert_eq!(AdminToken::locate(None, data, credentials), AdminToken::Given(credential));
        let both = |name: &str| match name {
            "MUSTER_CONTROLLER_ADMIN_TOKEN_FILE" => Some(PathBuf::from("/named")),
            other => credentials(other),
        };
        assert_eq!(AdminToken::locate(None, data, both), AdminToken::Given("/named".into()));
        let configured = AdminToken::locate(Some(Path::new("/set")), data, both);
        assert_eq!(configured, AdminToken::Given("/set".into()));
    }
}
