//! Who may use the API: bearer tokens with roles, and the first of them.
//!
//! Only a token's digest is stored, and a token is found by its digest: no comparison takes longer the more of a guess is
//! right.

use std::path::Path;

use muster_shared::api::AccessRole;
use muster_shared::ids::Digest;
use zeroize::Zeroizing;

use crate::durable::{self, Access, FileError};
use crate::store::records::AccessTokenRecord;
use crate::store::{Expect, Records, StoreError, Table};

/// Longest token looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 512;

/// Why the first token could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    /// Its file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its file is empty or not text.
    #[error("{0} holds no token: remove the file to get a new one, or restore it")]
    Damaged(String),
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

/// Makes the administrator's token at the first start, and takes over one whose file is there already. Where the store knows
/// an administrator and the file is gone, somebody put it away, and nothing is made.
///
/// # Errors
/// [`AuthError`].
pub(crate) async fn ensure_admin(records: &Records, path: &Path, now_ms: u64) -> Result<(), AuthError> {
    let token = match durable::read(path)?.map(Zeroizing::new) {
        Some(text) => {
            let damaged = || AuthError::Damaged(path.display().to_string());
            let text = std::str::from_utf8(&text).map_err(|_| damaged())?.trim();
            if text.len() < 32 || text.len() > MAX_TOKEN_BYTES {
                return Err(damaged());
            }
            Zeroizing::new(text.to_owned())
        }
        None => {
            let known = records.all::<AccessTokenRecord>(Table::AccessTokens, "").await?;
            if known.iter().any(|(_, token)| token.value.role == AccessRole::Admin) {
                return Ok(());
            }
            let token = new_secret().map_err(AuthError::Random)?;
            durable::write(path, token.as_bytes(), Access::Secret)?;
            token
        }
    };
    let record = AccessTokenRecord { name: "admin".into(), role: AccessRole::Admin, created_at_ms: now_ms };
    let key = Digest::of(token.as_bytes()).to_string();
    match records.commit(vec![Records::put(Table::AccessTokens, key, Expect::Absent, &record)?]).await {
        Ok(()) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::records;

    #[tokio::test]
    async fn the_first_token_is_made_once_and_stored_as_a_digest() {
        let (records, folder) = records();
        let path = folder.path().join("admin.token");
        ensure_admin(&records, &path, 1).await.unwrap();
        let token = std::fs::read_to_string(&path).unwrap();
        ensure_admin(&records, &path, 2).await.unwrap();
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
        ensure_admin(&records, &path, 3).await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_damaged_token_file_is_named() {
        let (records, folder) = records();
        let path = folder.path().join("admin.token");
        for bad in ["", "short", "\u{0}"] {
            std::fs::write(&path, bad).unwrap();
            let error = ensure_admin(&records, &path, 1).await.unwrap_err();
            assert!(error.to_string().contains("admin.token"), "{error}");
        }
    }
}
