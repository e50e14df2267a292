//! Which store this is: told by a document in it and by a file beside sled's own. When the two do not agree, the store is
//! damaged.

use std::path::Path;

use super::disk::Disk;
use super::seal::{self, Counter, Seal, term};
use super::{corrupt, from_file, from_sled, split};
use crate::durable::{self, Access};
use crate::store::{StoreError, Table};

const FILE: &str = "muster-store";
const KEY: &str = "store-identity";

/// Whether the folder says that it holds a store.
pub(super) fn is_named(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

/// Holds the document against the file, or makes both in a new store, and tells what was committed.
pub(super) fn check(db: &sled::Db, disk: &mut Disk) -> Result<Seal, StoreError> {
    let folder = disk.folder.clone();
    let path = folder.join(FILE);
    let plain = |error: durable::FileError| from_file(&folder, &error);
    let outside = durable::read(&path).map_err(plain)?;
    let key = Table::Meta.key(KEY);
    let inside = db.get(&key).map_err(|error| from_sled(&folder, &error))?;
    match (outside, inside) {
        (Some(outside), Some(inside)) if split(&folder, &inside)?.value == outside => Seal::check(db, &folder),
        (Some(_), Some(_)) => Err(corrupt(&folder, format!("its content belongs to another {FILE} file"))),
        (Some(_), None) => Err(corrupt(&folder, "it held data, and its log cannot be read any more")),
        (None, Some(inside)) => {
            let identity = split(&folder, &inside)?.value;
            // The first start was cut short before anything else was stored, or the file is gone.
            let first = Seal { commits: 0, sum: term(&key, &inside) };
            if stored_seal(db, &folder)? != Some(first.to_bytes()) {
                return Err(corrupt(&folder, format!("its file {FILE} is missing")));
            }
            finish(&folder, &identity)?;
            Ok(first)
        }
        (None, None) if !db.is_empty() => Err(corrupt(&folder, "it does not say which store it is")),
        (None, None) => {
            let mut random = [0_u8; 16];
            getrandom::fill(&mut random).map_err(|error| StoreError::Io {
                folder: folder.display().to_string(),
                reason: format!("the system gave no random numbers: {error}"),
            })?;
            let identity = format!("1 {}\n", hex::encode(random)).into_bytes();
            let document = [1_u64.to_be_bytes().as_slice(), &identity].concat();
            let seal = Seal { commits: 0, sum: term(&key, &document) };
            let mut batch = sled::Batch::default();
            batch.insert(key.as_slice(), document);
            batch.insert(seal::KEY, seal.to_bytes());
            db.apply_batch(batch).map_err(|error| from_sled(&folder, &error))?;
            disk.sync(db)?;
            finish(&folder, &identity)?;
            Ok(seal)
        }
    }
}

fn stored_seal(db: &sled::Db, folder: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(db.get(seal::KEY).map_err(|error| from_sled(folder, &error))?.map(|seal| seal.to_vec()))
}

/// Writes the files beside a new store: the one with its name last, since it says that the others are there.
fn finish(folder: &Path, identity: &[u8]) -> Result<(), StoreError> {
    Counter::make(folder, 0).map_err(|error| from_file(folder, &error))?;
    durable::write(&folder.join(FILE), identity, Access::Public).map_err(|error| from_file(folder, &error))
}
