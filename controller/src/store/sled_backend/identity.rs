//! Which store this is: told by a document in it and by a file beside sled's own. When the two do not agree, the store is damaged.

use super::disk::Disk;
use super::{corrupt, from_sled, split};
use crate::durable::{self, Access};
use crate::store::{StoreError, Table};

const FILE: &str = "muster-store";
const KEY: &str = "store-identity";

/// Holds the document against the file, or makes both in a new store.
pub(super) fn check(db: &sled::Db, disk: &mut Disk) -> Result<(), StoreError> {
    let folder = disk.folder.clone();
    let path = folder.join(FILE);
    let plain =
        |error: durable::FileError| StoreError::Io { folder: folder.display().to_string(), reason: error.to_string() };
    let outside = durable::read(&path).map_err(plain)?;
    let key = Table::Meta.key(KEY);
    let inside = db.get(&key).map_err(|error| from_sled(&folder, &error))?;
    match (outside, inside) {
        (Some(outside), Some(inside)) if split(&folder, &inside)?.value == outside => Ok(()),
        (Some(_), Some(_)) => Err(corrupt(&folder, format!("its content belongs to another {FILE} file"))),
        (Some(_), None) => Err(corrupt(&folder, "it held data, and its log cannot be read any more")),
        (None, Some(inside)) => {
            // The first start was cut short between the two.
            durable::write(&path, &split(&folder, &inside)?.value, Access::Public).map_err(plain)
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
            db.insert(key, document).map_err(|error| from_sled(&folder, &error))?;
            disk.sync(db)?;
            durable::write(&path, &identity, Access::Public).map_err(plain)
        }
    }
}
