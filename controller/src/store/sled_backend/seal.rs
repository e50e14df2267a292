//! Whether the store still holds everything that was committed to it.
//!
//! Where sled's log is damaged, sled goes on without what it cannot read: at the log's end all of it is gone, in its
//! middle a hole is left, and neither is told. So every batch carries a seal: how many batches there were, and a sum over all
//! documents. A hole makes the sum wrong. A log that ends too early is consistent in itself, so the number of batches
//! is kept in a file beside it as well, written after a batch is durable: it never runs ahead, and after a power cut it may
//! lag by what the system had not written yet.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{corrupt, from_io, from_sled};
use crate::durable::{self, Access};
use crate::store::StoreError;

/// Its first byte is no table's.
pub(super) const KEY: &[u8] = b"\0seal";
const FILE: &str = "muster-commits";
/// Twenty digits of the number, a space, eight digits of its digest, a new line.
const LINE_BYTES: usize = 30;

/// What a document adds to the sum: half of a digest over its key and itself.
pub(super) fn term(key: &[u8], document: &[u8]) -> u128 {
    let mut hasher = Sha256::new();
    hasher.update((key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(document);
    let digest: [u8; 32] = hasher.finalize().into();
    digest.first_chunk().map_or(0, |half| u128::from_le_bytes(*half))
}

/// What was committed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seal {
    /// Batches.
    pub(super) commits: u64,
    /// Of all documents, wrapping.
    pub(super) sum: u128,
}

impl Seal {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        [self.commits.to_be_bytes().as_slice(), &self.sum.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (commits, rest) = bytes.split_first_chunk()?;
        let sum = rest.try_into().ok()?;
        Some(Self { commits: u64::from_be_bytes(*commits), sum: u128::from_be_bytes(sum) })
    }

    /// Adds up what is in the store.
    pub(super) fn of_content(db: &sled::Db, folder: &Path) -> Result<u128, StoreError> {
        let mut sum = 0_u128;
        for item in db.iter() {
            let (key, document) = item.map_err(|error| from_sled(folder, &error))?;
            if key.as_ref() != KEY {
                sum = sum.wrapping_add(term(&key, &document));
            }
        }
        Ok(sum)
    }

    /// The seal in a store, held against what is there and against the file beside it.
    pub(super) fn check(db: &sled::Db, folder: &Path) -> Result<Self, StoreError> {
        let stored = db.get(KEY).map_err(|error| from_sled(folder, &error))?;
        let seal = stored
            .and_then(|bytes| Self::from_bytes(&bytes))
            .ok_or_else(|| corrupt(folder, "its seal is missing: its log cannot be read to the end"))?;
        let known = Counter::read(folder)?;
        if seal.commits < known {
            let missing = known - seal.commits;
            return Err(corrupt(folder, format!("the last {missing} of {known} changes are missing from its log")));
        }
        if Self::of_content(db, folder)? != seal.sum {
            return Err(corrupt(folder, "documents are missing or altered: part of its log cannot be read"));
        }
        Ok(seal)
    }
}

/// The file with the number of batches.
pub(super) struct Counter {
    file: File,
}

fn line(commits: u64) -> String {
    let number = format!("{commits:020}");
    let check = hex::encode(&Sha256::digest(number.as_bytes())[..4]);
    format!("{number} {check}\n")
}

impl Counter {
    fn path(folder: &Path) -> PathBuf {
        folder.join(FILE)
    }

    /// Makes the file.
    pub(super) fn make(folder: &Path, commits: u64) -> Result<(), durable::FileError> {
        durable::write(&Self::path(folder), line(commits).as_bytes(), Access::Public)
    }

    fn read(folder: &Path) -> Result<u64, StoreError> {
        let bytes = match std::fs::read(Self::path(folder)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt(folder, format!("its file {FILE} is missing")));
            }
            Err(error) => return Err(from_io(folder, &error)),
        };
        let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.get(..20)?.parse().ok());
        number
            .filter(|number| bytes == line(*number).as_bytes())
            .ok_or_else(|| corrupt(folder, format!("its file {FILE} is damaged")))
    }

    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().write(true).open(Self::path(folder))? })
    }

    /// Writes the number over the one before. Within one sector and without changing the file's length, so that no cut of
    /// power leaves half of it. It is not waited for: the batch is durable already, and an old number is right as well.
    pub(super) fn set(&self, commits: u64) -> io::Result<()> {
        let text = line(commits);
        debug_assert_eq!(text.len(), LINE_BYTES);
        self.file.write_all_at(text.as_bytes(), 0)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
