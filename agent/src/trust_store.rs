//! The root documents the device trusts, and the latest time it knows to have passed: both kept, both only moving forward.
//!
//! Whether a document is genuine is decided in `muster_shared::trust`; here the chain is stored, walked at start from the
//! pinned first document, and extended.

use std::path::{Path, PathBuf};

use muster_agent_core::clock::TimeFloor;
use muster_agent_core::freshness::Freshness;
use muster_shared::ids::Digest;
use muster_shared::limits::MAX_DOCUMENT_BYTES;
use muster_shared::messages::FreezeProtection;
use muster_shared::trust::{Envelope, TrustError, TrustedRoot};
use serde::Deserialize;

use crate::files::{self, FileError};
use crate::sealed;
use crate::time::{EffectiveTime, wall_ms};

/// Base64 and signatures make an envelope larger than its document.
const MAX_FILE_BYTES: u64 = MAX_DOCUMENT_BYTES as u64 * 2;
/// Root documents one message may bring.
const MAX_ROOTS_AT_ONCE: usize = 64;

const MAX_NUMBER_BYTES: u64 = 128;
/// What there is before a floor was ever stored.
const FIRST_EPOCH: u64 = 1;

/// Why trust cannot be established.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustStoreError {
    /// A file cannot be read or written.
    #[error("the trusted root documents cannot be used")]
    File(#[from] FileError),
    /// The document everything rests on is missing or wrong.
    #[error("{path} is missing or damaged: restore it, or remove the identity folder beside it to enrol again")]
    First {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TrustError,
    },
}

/// What the device trusts.
#[derive(Debug)]
pub(crate) struct TrustStore {
    dir: PathBuf,
    root: TrustedRoot,
    floor: TimeFloor,
    time: EffectiveTime,
    freshness: Freshness,
}

fn root_path(dir: &Path, version: u64) -> PathBuf {
    dir.join(format!("root-{version}.json"))
}

fn read_root(dir: &Path, version: u64) -> Result<Option<Envelope>, FileError> {
    let bytes = files::read_start(&root_path(dir, version), MAX_FILE_BYTES)?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn write_root(dir: &Path, root: &TrustedRoot) -> Result<(), FileError> {
    let json = serde_json::to_vec(root.envelope()).unwrap_or_default();
    files::write_durably(&root_path(dir, root.root().version), &json)
}

/// Walks the stored chain from the pinned first document. Gives the last one that holds, and where one lies that does not.
fn walk(dir: &Path, pinned: Digest) -> Result<(TrustedRoot, Option<PathBuf>), TrustStoreError> {
    let mut root = read_root(dir, 1)?
        .ok_or(TrustError::RootPin)
        .and_then(|envelope| TrustedRoot::first(envelope, Some(pinned)))
        .map_err(|source| TrustStoreError::First { path: root_path(dir, 1), source })?;
    loop {
        let path = root_path(dir, root.root().version.saturating_add(1));
        let Some(bytes) = files::read_start(&path, MAX_FILE_BYTES)? else { return Ok((root, None)) };
        match serde_json::from_slice::<Envelope>(&bytes).ok().and_then(|envelope| root.next(envelope).ok()) {
            Some(next) => root = next,
            None => return Ok((root, Some(path))),
        }
    }
}

/// The root documents in force, for those who only look.
pub(crate) fn stored_root(data_dir: &Path, pinned: Digest) -> Result<TrustedRoot, TrustStoreError> {
    Ok(walk(&data_dir.join("trust"), pinned)?.0)
}

/// The time floor, for those who only look; the beginning of time where it is damaged.
pub(crate) fn stored_floor(data_dir: &Path) -> TimeFloor {
    TrustStore::read_floor(&data_dir.join("trust")).ok().flatten().map_or_else(TimeFloor::default, |(floor, _)| floor)
}

impl TrustStore {
    /// Stores the documents an enrolment brought, which begin with the one whose payload has the digest `pinned`. What lay there
    /// before belonged to another controller.
    pub(crate) fn install(data_dir: &Path, roots: &[Envelope], pinned: Digest) -> Result<(), TrustStoreError> {
        let dir = data_dir.join("trust");
        files::remove(&dir)?;
        files::make_folder(&dir)?;
        let wrong = |source| TrustStoreError::First { path: root_path(&dir, 1), source };
        let mut roots = roots.iter().cloned();
        let mut root =
            TrustedRoot::first(roots.next().ok_or_else(|| wrong(TrustError::RootPin))?, Some(pinned)).map_err(wrong)?;
        write_root(&dir, &root)?;
        for next in roots {
            root = root.next(next).map_err(wrong)?;
            write_root(&dir, &root)?;
        }
        Ok(())
    }

    /// Reads what is stored, and says what had to be repaired.
    pub(crate) fn open(
        data_dir: &Path,
        pinned: Digest,
        time: EffectiveTime,
    ) -> Result<(Self, Vec<String>), TrustStoreError> {
        let dir = data_dir.join("trust");
        files::make_folder(&dir)?;
        let mut alarms = Vec::new();
        let (root, damaged) = walk(&dir, pinned)?;
        if let Some(path) = damaged {
            // The controller sends it again; until then the document before it holds.
            files::set_aside(&path)?;
            alarms.push(format!("{} was damaged and set aside", path.display()));
        }
        let (floor, floor_epoch) = match Self::read_floor(&dir)? {
            Some(floor) => floor,
            None => {
                files::set_aside(&floor_path(&dir))?;
                alarms.push("the time floor was damaged and starts anew: until the next assignment an old document could pass for a current one".to_owned());
                (TimeFloor::default(), root.director_epoch())
            }
        };
        let floor = if floor_epoch < root.director_epoch() { TimeFloor::default() } else { floor };
        time.set_floor(floor);
        // Damaged, it is as good as none: the controller renews it.
        let freshness = Freshness::restored(read_number(&assignment_path(&dir))?);
        Ok((Self { dir, root, floor, time, freshness }, alarms))
    }

    /// The stored floor, and the epoch of the director's keys in which it was learned; none when it is damaged.
    fn read_floor(dir: &Path) -> Result<Option<(TimeFloor, u64)>, FileError> {
        let Some(bytes) = files::read_start(&floor_path(dir), MAX_NUMBER_BYTES)? else {
            return Ok(Some((TimeFloor::default(), FIRST_EPOCH)));
        };
        let numbers: Option<Vec<u64>> = sealed::open(&bytes)
            .and_then(|text| std::str::from_utf8(text).ok())
            .and_then(|text| text.split_ascii_whitespace().map(|number| number.parse().ok()).collect());
        Ok(match numbers.as_deref() {
            Some([floor_ms, epoch]) => Some((TimeFloor::new(*floor_ms), *epoch)),
            _ => None,
        })
    }

    fn store_floor(&mut self, floor: TimeFloor) -> Result<(), FileError> {
        let text = format!("{} {}", floor.floor_ms(), self.root.director_epoch());
        files::write_durably(&floor_path(&self.dir), &sealed::seal(text.as_bytes()))?;
        self.floor = floor;
        self.time.set_floor(floor);
        Ok(())
    }

    /// The root documents in force.
    pub(crate) fn root(&self) -> &TrustedRoot {
        &self.root
    }

    /// The time to hold documents against, in milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        self.floor.effective_now_ms(wall_ms())
    }

    /// Whether a document that is out of date can be told.
    pub(crate) fn protection(&self) -> FreezeProtection {
        self.floor.protection(wall_ms())
    }

    /// Learns from a verified document that it was made at `made_at_ms`.
    pub(crate) fn learn_time(&mut self, made_at_ms: u64) -> Result<(), FileError> {
        let raised = self.floor.raised(made_at_ms, self.root.root().expires_ms);
        if raised > self.floor {
            self.store_floor(raised)?;
            passing!(TimeFloorStored);
        }
        Ok(())
    }

    /// Learns from a verified assignment that was issued at `issued_at_ms` that it holds until `expires_ms`. Nothing holds longer than
    /// the root document.
    pub(crate) fn learn_assignment(&mut self, issued_at_ms: u64, expires_ms: u64) -> Result<(), FileError> {
        let expires_ms = expires_ms.min(self.root.root().expires_ms);
        let now_ms = self.now_ms();
        if let Some(expires_ms) = self.freshness.renewed(issued_at_ms, expires_ms, now_ms) {
            write_number(&assignment_path(&self.dir), expires_ms)?;
            passing!(AssignmentDateStored);
            self.freshness.stored(expires_ms);
        }
        Ok(())
    }

    /// When the last assignment ended, if that has passed, in milliseconds since the Unix epoch.
    pub(crate) fn stale_since_ms(&self) -> Option<u64> {
        self.freshness.stale_since_ms(self.now_ms())
    }

    /// [`Self::stale_since_ms`], once for each assignment that ends.
    pub(crate) fn stale_news(&mut self) -> Option<u64> {
        let now_ms = self.now_ms();
        self.freshness.news(now_ms)
    }

    /// Takes the root documents that follow the one in force; older ones are passed over. Says whether there was one.
    ///
    /// # Errors
    /// Why the first that was not taken is refused.
    pub(crate) fn extend(&mut self, roots: Vec<Envelope>) -> Result<bool, RootRefusal> {
        let mut taken = 0;
        for envelope in roots {
            // Unverified, and good for nothing but to pass over what is known already.
            let claimed = envelope.payload_bytes().ok().and_then(|p| serde_json::from_slice::<Claimed>(&p).ok());
            if claimed.is_some_and(|c| c.version <= self.root.root().version) {
                continue;
            }
            // The rest comes again with the next connection; each step is written, and flash is not endless.
            if taken == MAX_ROOTS_AT_ONCE {
                break;
            }
            let next = self.root.next(envelope)?;
            write_root(&self.dir, &next)?;
            let begins = next.director_epoch() > self.root.director_epoch();
            self.root = next;
            taken += 1;
            if begins {
                // Times come from assignments: whoever had a key that is trusted no more may have named any. A restart finds the same
                // by the epoch, so this need not be stored first.
                self.floor = TimeFloor::default();
                self.time.set_floor(self.floor);
                self.freshness.forget_issue();
            }
        }
        Ok(taken > 0)
    }
}

#[derive(Deserialize)]
struct Claimed {
    version: u64,
}

/// Why a root document was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootRefusal {
    /// It is not trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It cannot be stored.
    #[error("a root document cannot be stored")]
    File(#[from] FileError),
}

fn floor_path(dir: &Path) -> PathBuf {
    dir.join("time-floor")
}

fn assignment_path(dir: &Path) -> PathBuf {
    dir.join("assignment-ends")
}

fn write_number(path: &Path, number: u64) -> Result<(), FileError> {
    files::write_durably(path, &sealed::seal(number.to_string().as_bytes()))
}

/// The number a file holds; none when it is not as it was written, or not there.
fn read_number(path: &Path) -> Result<Option<u64>, FileError> {
    let bytes = files::read_start(path, MAX_NUMBER_BYTES)?;
    Ok(bytes.and_then(|bytes| std::str::from_utf8(sealed::open(&bytes)?).ok()?.parse().ok()))
}

#[cfg(test)]
pub(crate) mod tests {
    use muster_shared::trust::{DocumentKind, Role, RoleKeys, Root, SigningKey, sign_document};
    use zeroize::Zeroizing;

    use super::*;

    /// The one key of every role in tests.
    pub(crate) fn signer() -> SigningKey {
        SigningKey::from_seed(&Zeroizing::new([9; 32]))
    }

    /// A root document that trusts [`signer`] with everything.
    pub(crate) fn root(version: u64, expires_ms: u64) -> Envelope {
        let key = signer();
        let (id, public) = (key.public().id(), key.public());
        let role = |role| (role, RoleKeys { key_ids: [id].into(), threshold: 1 });
        let root = Root {
            version,
            expires_ms,
            keys: [(id, public)].into(),
            roles: [role(Role::Root), role(Role::Release), role(Role::Director)].into(),
        };
        sign_document(DocumentKind::Root, &root, [&key]).unwrap()
    }

    pub(crate) fn pin() -> Digest {
        Digest::of(&root(1, u64::MAX).payload_bytes().unwrap())
    }

    fn open(dir: &Path) -> Result<(TrustStore, Vec<String>), TrustStoreError> {
        TrustStore::open(dir, pin(), EffectiveTime::default())
    }

    #[test]
    fn the_chain_is_walked_again_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        TrustStore::install(folder.path(), &[root(1, u64::MAX), root(2, 50)], pin()).unwrap();
        let (mut store, alarms) = open(folder.path()).unwrap();
        assert_eq!((store.root().root().version, alarms.len()), (2, 0));
        assert!(store.extend(vec![root(1, 5), root(2, 5), root(3, 60)]).unwrap());
        assert!(!store.extend(vec![root(3, 60)]).unwrap());
        let skipped = store.extend(vec![root(5, 60)]).unwrap_err();
        let text = crate::causes::with_source(&skipped);
        assert_eq!(text, "root version 5 cannot follow version 3: versions go up one by one");
        let mut forged = root(4, 70);
        forged.signatures.clear();
        assert!(matches!(store.extend(vec![forged]), Err(RootRefusal::Trust(TrustError::Threshold { .. }))));
        assert_eq!(open(folder.path()).unwrap().0.root().root().version, 3);
    }

    #[test]
    fn a_chain_longer_than_one_message_brings_is_walked_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        TrustStore::install(folder.path(), &[root(1, u64::MAX)], pin()).unwrap();
        let (mut store, _) = open(folder.path()).unwrap();
        let last = MAX_ROOTS_AT_ONCE as u64 * 2 + 5;
        // The controller sends the whole chain each time.
        let chain: Vec<Envelope> = (1..=last).map(|version| root(version, 60)).collect();
        for reached in [MAX_ROOTS_AT_ONCE as u64 + 1, MAX_ROOTS_AT_ONCE as u64 * 2 + 1, last] {
            assert!(store.extend(chain.clone()).unwrap());
            assert_eq!(store.root().root().version, reached);
        }
        assert!(!store.extend(chain).unwrap());
    }

    #[test]
    fn a_damaged_later_root_is_set_aside_and_a_damaged_first_one_stops_the_start() {
        let folder = tempfile::tempdir().unwrap();
        TrustStore::install(folder.path(), &[root(1, u64::MAX), root(2, 50)], pin()).unwrap();
        std::fs::write(folder.path().join("trust/root-2.json"), "{}").unwrap();
        let (store, alarms) = open(folder.path()).unwrap();
        assert_eq!((store.root().root().version, alarms.len()), (1, 1));
        std::fs::write(folder.path().join("trust/root-1.json"), "{}").unwrap();
        let text = open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("root-1.json") && text.contains("enrol again"), "{text}");
    }

    #[test]
    fn the_time_floor_survives_and_is_said_openly_when_lost() {
        let folder = tempfile::tempdir().unwrap();
        TrustStore::install(folder.path(), &[root(1, u64::MAX)], pin()).unwrap();
        let (mut store, _) = open(folder.path()).unwrap();
        assert_eq!(store.protection(), FreezeProtection::Full);
        let later = wall_ms() + 1_000_000_000;
        store.learn_time(later).unwrap();
        let (store, _) = open(folder.path()).unwrap();
        assert_eq!((store.now_ms(), store.protection()), (later, FreezeProtection::Degraded));
        let path = folder.path().join("trust/time-floor");
        let good = std::fs::read_to_string(&path).unwrap();
        // Another digit would keep every assignment out for as long as it takes, and a digit less let old ones in.
        let (ahead, cut) = (good.replacen(&later.to_string(), &(later + 1).to_string(), 1), &later.to_string()[1..]);
        for damaged in ["soon", &ahead, cut] {
            std::fs::write(&path, damaged).unwrap();
            let (store, alarms) = open(folder.path()).unwrap();
            assert!(store.now_ms() < later && alarms[0].contains("time floor"), "{alarms:?}");
        }
    }

    #[test]
    fn files_that_are_too_large_are_as_good_as_damaged_ones() {
        let folder = tempfile::tempdir().unwrap();
        TrustStore::install(folder.path(), &[root(1, u64::MAX), root(2, 50)], pin()).unwrap();
        let large = vec![b'1'; usize::try_from(MAX_FILE_BYTES).unwrap() + 10];
        for name in ["root-2.json", "time-floor"] {
            std::fs::write(folder.path().join("trust").join(name), &large).unwrap();
        }
        let (store, alarms) = open(folder.path()).unwrap();
        assert_eq!((store.root().root().version, alarms.len()), (1, 2), "{alarms:?}");
        std::fs::write(folder.path().join("trust/root-1.json"), &large).unwrap();
        assert!(open(folder.path()).unwrap_err().to_string().contains("enrol again"));
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_files_say_nothing_but_the_signed_chain_is_trusted(
            first: Option<Vec<u8>>,
            second: Option<Vec<u8>>,
            floor: Option<Vec<u8>>,
            at: proptest::sample::Index,
            byte: u8,
        ) {
            let folder = tempfile::tempdir().unwrap();
            TrustStore::install(folder.path(), &[root(1, u64::MAX), root(2, 50)], pin()).unwrap();
            let trust = folder.path().join("trust");
            for (name, content) in [("root-1.json", &first), ("root-2.json", &second), ("time-floor", &floor)] {
                if let Some(content) = content {
                    std::fs::write(trust.join(name), content).unwrap();
                }
            }
            // And a good one with one byte changed.
            if second.is_none() {
                let path = trust.join("root-2.json");
                let mut good = std::fs::read(&path).unwrap();
                let at = at.index(good.len());
                good[at] = byte;
                std::fs::write(path, good).unwrap();
            }
            match open(folder.path()) {
                Ok((store, alarms)) => {
                    let root = store.root().root();
                    proptest::prop_assert!(root.version == 1 || (root.version == 2 && root.expires_ms == 50));
                    proptest::prop_assert!(root.version == 2 || !alarms.is_empty());
                }
                Err(error) => {
                    proptest::prop_assert!(first.is_some(), "{}", error);
                    proptest::prop_assert!(error.to_string().contains("root-1.json"));
                }
            }
        }
    }
}
