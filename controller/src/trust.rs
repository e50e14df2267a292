//! The chain of root documents the controller knows, and what may be added to it.
//!
//! The controller holds none of the keys that sign roots and bundles. It checks what it is given so that mistakes are found
//! here and not on a thousand devices; devices check again.

use muster_shared::trust::{Envelope, PublicKey, Role, TrustError, TrustedRoot};

use crate::store::records::{RootRecord, root_key};
use crate::store::{Change, Expect, Records, StoreError, Table};

/// Why a root document is not taken, or those stored are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// The first one has another version.
    #[error("the first root document must have version 1, this one has {0}")]
    FirstVersion(u64),
    /// The document is not trustworthy.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It leaves this controller out.
    #[error(
        "the root document does not let this controller sign assignments alone: name its key {key} under the role \
         director, with a threshold of 1 (`muster root init` does)"
    )]
    Director {
        /// The controller's key.
        key: String,
    },
    /// The stored chain does not hold.
    #[error("the stored root documents do not follow from each other at version {version}")]
    Stored {
        /// Where it breaks.
        version: u64,
        /// Why.
        source: TrustError,
    },
    /// The store failed.
    #[error("the root documents cannot be read or written")]
    Store(#[from] StoreError),
}

/// Every root document taken in, in order.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn roots(records: &Records) -> Result<Vec<Envelope>, StoreError> {
    let stored = records.all::<RootRecord>(Table::Roots, "").await?;
    Ok(stored.into_iter().map(|(_, root)| root.value.envelope).collect())
}

/// The root that counts now; none before the first.
///
/// # Errors
/// [`RootError::Stored`] when the chain does not hold.
pub(crate) async fn current(records: &Records) -> Result<Option<TrustedRoot>, RootError> {
    let mut current: Option<TrustedRoot> = None;
    for envelope in roots(records).await? {
        let version = current.as_ref().map_or(1, |root| root.root().version + 1);
        let next = match &current {
            None => TrustedRoot::first(envelope, None),
            Some(root) => root.next(envelope),
        };
        current = Some(next.map_err(|source| RootError::Stored { version, source })?);
    }
    Ok(current)
}

/// Decides whether `envelope` may follow `current`. A later root may take this controller's key away: that is for the holders
/// of the root keys to decide.
///
/// # Errors
/// [`RootError`] with what is wrong.
pub(crate) fn follow(
    current: Option<&TrustedRoot>,
    envelope: Envelope,
    director: &PublicKey,
    now_ms: u64,
) -> Result<TrustedRoot, RootError> {
    let next = match current {
        Some(current) => current.next(envelope)?,
        None => {
            let first = TrustedRoot::first(envelope, None)?;
            if first.root().version != 1 {
                return Err(RootError::FirstVersion(first.root().version));
            }
            if !lets_sign(&first, director) {
                return Err(RootError::Director { key: String::from(director.clone()) });
            }
            first
        }
    };
    next.check_date(now_ms)?;
    Ok(next)
}

/// Whether `director` alone may sign assignments under `root`.
pub(crate) fn lets_sign(root: &TrustedRoot, director: &PublicKey) -> bool {
    root.root()
        .roles
        .get(&Role::Director)
        .is_some_and(|role| role.threshold == 1 && role.key_ids.contains(&director.id()))
}

/// The change that stores `root`, if nobody stored one of its version before.
///
/// # Errors
/// [`StoreError`] when it cannot be written as JSON.
pub(crate) fn store(root: &TrustedRoot) -> Result<Change, StoreError> {
    let record = RootRecord { envelope: root.envelope().clone() };
    Records::put(Table::Roots, root_key(root.root().version), Expect::Absent, &record)
}
