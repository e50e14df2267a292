//! What the device was told last: held against what came before, stored, and only then acted upon.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use muster_agent_core::reservoir::{Random, Reservoir};
use muster_shared::collection::{CollectionStage, Collections, Phase, SampleLimits, Wanted};
use muster_shared::ids::{CollectionId, DeviceId};
use muster_shared::limits::{MAX_COLLECTIONS, MAX_DOCUMENT_BYTES};
use muster_shared::trust::{Envelope, TrustedRoot};
use serde::{Deserialize, Serialize};

use super::store::{Found, Store};
use super::{Collection, Hot, Samples};
use crate::causes::with_source;
use crate::files::{self, FileError};

/// Base64 and signatures make an envelope larger than its document.
const MAX_FILE_BYTES: u64 = MAX_DOCUMENT_BYTES as u64 * 2;
/// The least room in which a collection makes sense, in bytes.
const LEAST_BYTES: u64 = 16 * 1024;

/// Why a statement is not acted upon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// A later one was accepted.
    #[error("collections of generation {found}: this device has accepted {known} already")]
    Older {
        /// Its generation.
        found: u64,
        /// The one accepted.
        known: u64,
    },
    /// Another one of the same generation was accepted.
    #[error(
        "collections of generation {0} say something else than those this device has accepted under the same number"
    )]
    Changed(u64),
    /// It cannot be stored, and what is not stored could be forgotten.
    #[error("the statement of what may be collected cannot be stored")]
    File(#[from] FileError),
}

/// What is on disk of the last statement.
#[derive(Serialize, Deserialize)]
struct Stored {
    epoch: u64,
    envelope: Envelope,
}

impl Samples {
    fn orders_path(&self) -> PathBuf {
        self.inner.folder.join("orders.json")
    }

    /// Reads what was stored for `device` and goes on where it was left. It counts only as far as `root` still vouches for it.
    pub(crate) fn restore(&self, device: &DeviceId, root: &TrustedRoot) {
        self.hot().device = Some(device.clone());
        if !self.inner.config.allow {
            // Whoever no longer allows it wants none of it on the disk either.
            if let Err(error) = files::remove(&self.inner.folder) {
                tracing::warn!(error = %with_source(&error), "samples that are not allowed any more stay on the disk, sealed");
            }
            return;
        }
        let stored = files::read_start(&self.orders_path(), MAX_FILE_BYTES).ok().flatten();
        let stored = stored.and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
        // Expired, it still says which statements are older.
        let known = stored.filter(|stored| stored.epoch == root.director_epoch());
        match known.map(|stored| root.verify_collections(&stored.envelope, device, 0)) {
            Some(Ok(mut collections)) => {
                if collections.expires_ms <= self.now_ms() {
                    collections.collections.clear();
                }
                self.act_upon(collections, root.director_epoch());
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "what was stored of collections is not trusted; nothing is collected until it is told again");
                self.clear_others(&BTreeSet::new());
            }
            None => self.clear_others(&BTreeSet::new()),
        }
    }

    /// Accepts a statement that has been verified, of the epoch `epoch` of the director's keys.
    ///
    /// # Errors
    /// [`OrderError`]; nothing has changed then.
    pub(crate) fn accept(&self, envelope: &Envelope, collections: Collections, epoch: u64) -> Result<(), OrderError> {
        let found = collections.generation;
        {
            let hot = self.hot();
            let (known_epoch, known) = hot.standing;
            if (epoch, found) < (known_epoch, known) {
                return Err(OrderError::Older { found, known });
            }
            if (epoch, found) == (known_epoch, known) {
                return if hot.statement == collections.collections { Ok(()) } else { Err(OrderError::Changed(found)) };
            }
        }
        if self.inner.config.allow {
            files::make_folder(&self.inner.folder)?;
            let stored = Stored { epoch, envelope: envelope.clone() };
            files::write_durably(&self.orders_path(), &serde_json::to_vec(&stored).unwrap_or_default())?;
        }
        self.act_upon(collections, epoch);
        Ok(())
    }

    fn act_upon(&self, statement: Collections, epoch: u64) {
        let Collections { generation, collections, .. } = statement;
        let _turn = self.turn();
        let named: BTreeSet<CollectionId> = collections.iter().map(|wanted| wanted.collection.clone()).collect();
        let mut known: Vec<Collection> = {
            let mut hot = self.hot();
            hot.standing = (epoch, generation);
            hot.statement.clone_from(&collections);
            hot.collections.retain(|collection| named.contains(&collection.wanted.collection));
            hot.queue.retain(|job| named.contains(&job.collection));
            hot.queued_bytes = hot.queue.iter().map(|job| job.bytes).sum();
            // Nothing is offered while the disk is looked at.
            std::mem::take(&mut hot.collections)
        };
        self.clear_others(&named);
        let mut taken = Vec::new();
        for wanted in collections.into_iter().take(MAX_COLLECTIONS) {
            let at = known.iter().position(|collection| collection.wanted.collection == wanted.collection);
            let collection = match at {
                // What was refused may have room by now.
                Some(at) if known[at].stage != CollectionStage::Refused => self.renewed(known.swap_remove(at), wanted),
                Some(_) | None => self.begun(wanted, &taken),
            };
            taken.push(collection);
        }
        let mut hot = self.hot();
        hot.collections = taken;
        self.refresh(&hot);
        drop(hot);
        self.inner.work.notify_one();
        self.tell();
    }

    /// A collection that goes on under another statement: it can end earlier, and become no larger.
    fn renewed(&self, mut collection: Collection, wanted: Wanted) -> Collection {
        collection.ends_at_ms = collection.ends_at_ms.min(self.end_of(&wanted));
        collection.wanted = wanted;
        collection
    }

    /// When a collection ends, by the clock that does not jump.
    fn end_of(&self, wanted: &Wanted) -> u64 {
        self.inner.clock.now_ms().saturating_add(wanted.ends_ms.saturating_sub(self.now_ms()))
    }

    /// A collection this device did not know a moment ago; it may have before the last start.
    fn begun(&self, wanted: Wanted, others: &[Collection]) -> Collection {
        let mut seed = [0; 8];
        // Without random numbers nothing is sealed either, and that is told there.
        let _ = getrandom::fill(&mut seed);
        let seed = u64::from_le_bytes(seed);
        let mut collection = Collection {
            ends_at_ms: self.end_of(&wanted),
            stage: CollectionStage::Refused,
            reason: None,
            reservoir: Reservoir::new(1, 0, seed),
            random: Random::new(!seed),
            under_way: 0,
            dropped: 0,
            too_large: 0,
            lost: 0,
            uploaded: 0,
            wanted,
        };
        let limits = match self.limits(&collection.wanted, others) {
            Ok(limits) => limits,
            Err(reason) => {
                collection.reason = Some(reason);
                return collection;
            }
        };
        let folder = self.inner.folder.join(collection.wanted.collection.as_str());
        let (store, found) = match Store::open(&folder, limits.max_bytes.saturating_mul(2)) {
            Ok(opened) => opened,
            Err(error) => {
                collection.reason = Some(with_source(&error));
                return collection;
            }
        };
        self.disk().insert(collection.wanted.collection.clone(), store);
        collection.reservoir = Reservoir::new(limits.max_count, limits.max_bytes, seed);
        match found {
            Found::Nothing if collection.wanted.phase == Phase::Closed => collection.stage = CollectionStage::Uploaded,
            Found::Nothing => collection.stage = CollectionStage::Sampling,
            Found::Sampling(state) => {
                (collection.reservoir, collection.dropped) = (state.reservoir, state.dropped);
                (collection.too_large, collection.lost) = (state.too_large, state.lost);
                collection.stage = CollectionStage::Sampling;
            }
            Found::Ended { state, plan } => {
                (collection.reservoir, collection.dropped) = (state.reservoir, state.dropped);
                (collection.too_large, collection.lost) = (state.too_large, state.lost);
                collection.uploaded = plan.samples_done;
                collection.stage = plan.stage();
                collection.reason = plan.given_up;
                self.inner.uploads.notify_one();
            }
        }
        collection
    }

    /// What a collection may keep: what it asks for, within what the owner allows all of them together. Half of the owner's bytes are for
    /// writing what is kept anew.
    fn limits(&self, wanted: &Wanted, others: &[Collection]) -> Result<SampleLimits, String> {
        let config = &self.inner.config;
        if !config.allow {
            return Err("the device's owner does not allow it: [samples] allow in agent.toml".to_owned());
        }
        if !config.recipients.is_empty() && !config.recipients.contains(&wanted.recipient) {
            let key = wanted.recipient.id();
            return Err(format!(
                "the device's owner does not allow the recipient's key {key}: [samples] recipients in agent.toml"
            ));
        }
        let keeps = |other: &&Collection| matches!(other.stage, CollectionStage::Sampling | CollectionStage::Uploading);
        let active = || others.iter().filter(keeps).map(|other| other.wanted.limits);
        let count: u32 = active().map(|limits| limits.max_count).fold(0, u32::saturating_add);
        let bytes: u64 = active().map(|limits| limits.max_bytes).fold(0, u64::saturating_add);
        let limits = SampleLimits {
            max_count: wanted.limits.max_count.min(config.max_count.saturating_sub(count)),
            max_bytes: wanted.limits.max_bytes.min((config.max_bytes / 2).saturating_sub(bytes)),
        };
        if limits.max_count == 0 || limits.max_bytes < LEAST_BYTES.min(wanted.limits.max_bytes) {
            return Err("other collections take all that the device's owner allows: [samples] max-count and max-bytes in agent.toml".to_owned());
        }
        Ok(limits)
    }

    /// Removes every collection that is not `named`.
    fn clear_others(&self, named: &BTreeSet<CollectionId>) {
        let mut disk = self.disk();
        disk.retain(|id, _| named.contains(id));
        for folder in folders(&self.inner.folder) {
            let name = folder.file_name().and_then(|name| name.to_str()).and_then(|name| CollectionId::new(name).ok());
            if name.is_some_and(|name| named.contains(&name)) {
                continue;
            }
            match files::remove(&folder) {
                Ok(()) => {
                    tracing::info!(path = %folder.display(), "a collection has ended here: what it kept is removed")
                }
                Err(error) => tracing::warn!(error = %with_source(&error), "what a collection kept stays, sealed"),
            }
        }
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let is_folder = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_folder).map(|entry| entry.path()).collect()
}

impl Hot {
    /// Whether a sample of `collection` waits to be sealed, or is being.
    pub(super) fn is_under_way(&self, collection: &CollectionId) -> bool {
        self.collections.iter().any(|known| known.wanted.collection == *collection && known.under_way > 0)
    }
}
