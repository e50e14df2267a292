//! The store on a disk that is full. sled keeps a lock for the whole process where it does not come back, so every disk gets
//! a process of its own.

use super::*;
use crate::testing::{SmallDisk, small_disk};

#[tokio::test]
async fn a_start_with_too_little_room_says_so_and_makes_nothing() {
    const TEST: &str = "store::sled_backend::tests::full_disk::a_start_with_too_little_room_says_so_and_makes_nothing";
    let SmallDisk::Seen { disk, .. } = small_disk(TEST, 8) else { return };
    let folder = disk.join("store");
    let error = SledStore::open(&folder).err().expect("8 MiB are too few");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains(folder.to_str().unwrap()) && said.contains("32 MiB"), "{said}");
    assert!(content(&disk).is_empty());
}

fn copy_all(from: &Path, to: &Path) {
    for (path, bytes) in content(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn pair(n: u32, document_bytes: usize) -> Vec<Change> {
    let value = vec![n.to_be_bytes()[3]; document_bytes];
    vec![put(&format!("key-{n:05}"), &value), put(&format!("twin-{n:05}"), &value)]
}

/// Fills the disk with a store that does not look for room before it writes. Its files as the next process would find them, and
/// how many pairs were acknowledged, are left in `beside`.
async fn fill_up(disk: &Path, beside: &Path, document_bytes: usize) {
    let folder = disk.join("store");
    let store = SledStore::open_with_reserve(&folder, 0).unwrap();
    let failure = store.failure();
    let mut acknowledged = 0_u32;
    let error = loop {
        match store.commit(pair(acknowledged, document_bytes)).await {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(matches!(failure.await, Some(StoreError::Full { .. })));
    assert!(matches!(store.commit(pair(0, 1)).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(Table::Meta, "key-00000").await, Err(StoreError::Closed)));
    copy_all(&folder, &beside.join("store"));
    std::fs::write(beside.join("acknowledged"), acknowledged.to_string()).unwrap();
}

/// What the next process finds, once there is room.
async fn expect_acknowledged(beside: &Path, document_bytes: usize) {
    let acknowledged: u32 = std::fs::read_to_string(beside.join("acknowledged")).unwrap().parse().unwrap();
    assert!(acknowledged > 0);
    let store = SledStore::open_with_reserve(&beside.join("store"), 0).unwrap();
    for n in 0..acknowledged {
        for change in pair(n, document_bytes) {
            let Change::Put { key, value, .. } = change else { unreachable!() };
            assert_eq!(store.get(Table::Meta, &key).await.unwrap().unwrap().value, value, "{key} of {acknowledged}");
        }
    }
    store.commit(pair(0, 1)).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_fills_up_loses_nothing_acknowledged() {
    const TEST: &str = "store::sled_backend::tests::full_disk::a_disk_that_fills_up_loses_nothing_acknowledged";
    const BYTES: usize = 20_000;
    for size_mib in [3, 4, 5] {
        match small_disk(TEST, size_mib) {
            SmallDisk::Seen { disk, beside } => return fill_up(&disk, &beside, BYTES).await,
            SmallDisk::Over(beside) => expect_acknowledged(beside.path(), BYTES).await,
            SmallDisk::Refused => return,
        }
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_under_large_documents_loses_nothing_acknowledged() {
    const TEST: &str =
        "store::sled_backend::tests::full_disk::a_disk_that_fills_up_under_large_documents_loses_nothing_acknowledged";
    const BYTES: usize = 300_000;
    for size_mib in [5, 6] {
        match small_disk(TEST, size_mib) {
            SmallDisk::Seen { disk, beside } => return fill_up(&disk, &beside, BYTES).await,
            SmallDisk::Over(beside) => expect_acknowledged(beside.path(), BYTES).await,
            SmallDisk::Refused => return,
        }
    }
}
