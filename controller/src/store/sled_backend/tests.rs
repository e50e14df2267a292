//! sled under the conformance suite, and damaged in ways that a disk can.

use std::sync::Arc;

use super::*;
use crate::store::conformance::conformance_suite;

fn open(folder: &Path) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(SledStore::open(folder)?))
}

conformance_suite!(open);

fn put(key: &str, value: &[u8]) -> Change {
    Change::Put { table: Table::Meta, key: key.into(), expect: Expect::Anything, value: value.into() }
}

/// sled's file with the latest changes.
fn log_of(folder: &Path) -> PathBuf {
    folder.join("db")
}

async fn filled(folder: &Path) {
    let store = SledStore::open(folder).unwrap();
    for n in 0..200_u32 {
        store.commit(vec![put(&format!("key-{n:03}"), &vec![7; 1_000])]).await.unwrap();
    }
}

#[tokio::test]
async fn a_torn_tail_opens_with_a_beginning_or_is_called_damaged() {
    for cut_bytes in [1, 100, 5_000, 100_000] {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path()).await;
        let log = std::fs::OpenOptions::new().write(true).open(log_of(folder.path())).unwrap();
        let length = log.metadata().unwrap().len();
        log.set_len(length.saturating_sub(cut_bytes)).unwrap();
        drop(log);
        match SledStore::open(folder.path()) {
            Err(error) => assert!(matches!(error, StoreError::Corrupt { .. }), "{error}"),
            Ok(store) => match store.scan(Table::Meta, None, "key-", 1_000).await {
                Err(error) => assert!(matches!(error, StoreError::Corrupt { .. }), "{error}"),
                Ok(found) => {
                    for (n, (key, document)) in found.iter().enumerate() {
                        assert_eq!(*key, format!("key-{n:03}"), "a hole after cutting {cut_bytes}");
                        assert_eq!(document.value, vec![7; 1_000]);
                    }
                }
            },
        }
    }
}

fn overwrite(log: &Path, byte: fn(u32) -> u8) {
    let length = u32::try_from(std::fs::metadata(log).unwrap().len()).unwrap();
    std::fs::write(log, (0..length).map(byte).collect::<Vec<u8>>()).unwrap();
}

#[tokio::test]
async fn a_destroyed_store_is_called_damaged_and_kept() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 4] = [
        ("zeros", |log| overwrite(log, |_| 0)),
        ("noise", |log| overwrite(log, |n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])),
        ("empty", |log| std::fs::write(log, "").unwrap()),
        ("gone", |log| std::fs::remove_file(log).unwrap()),
    ];
    for (name, harm) in harms {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path()).await;
        // Without its index sled has to read the log itself.
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with("snap") {
                std::fs::remove_file(path).unwrap();
            }
        }
        harm(&log_of(folder.path()));
        let error = SledStore::open(folder.path()).err().unwrap_or_else(|| panic!("{name} was taken for a store"));
        assert!(matches!(error, StoreError::Corrupt { .. }), "{name}: {error}");
        assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
        assert!(folder.path().join("muster-store").exists());
    }
}

#[tokio::test]
async fn a_store_is_opened_once() {
    let folder = tempfile::tempdir().unwrap();
    let _first = SledStore::open(folder.path()).unwrap();
    assert!(matches!(SledStore::open(folder.path()), Err(StoreError::InUse { .. })));
}

#[tokio::test]
async fn a_nearly_full_disk_stops_growth_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = SledStore::open(folder.path()).unwrap();
    store.commit(vec![put("a", b"1")]).await.unwrap();
    drop(store);
    let store = SledStore::open_with_reserve(folder.path(), u64::MAX).unwrap();
    assert!(matches!(store.commit(vec![put("a", b"2")]).await, Err(StoreError::Full { .. })));
    assert_eq!(store.get(Table::Meta, "a").await.unwrap().unwrap().value, b"1");
    let delete = Change::Delete { table: Table::Meta, key: "a".into(), expect: Expect::Anything };
    store.commit(vec![delete]).await.unwrap();
}
