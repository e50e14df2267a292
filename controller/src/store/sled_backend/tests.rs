//! sled under the conformance suite, and damaged in ways that a disk can.

mod full_disk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::store::Expect;
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

/// Every file below a folder, by its path, but for those that vanish meanwhile.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content(&path));
        } else {
            match std::fs::read(&path) {
                Ok(bytes) => _ = found.insert(path, bytes),
                // A store in use gives files their names when they are whole.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
    found
}

/// Where two folders' contents differ, in words.
fn differences(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<String> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let of = |files: &BTreeMap<PathBuf, Vec<u8>>, name| {
        files.get(name).map_or_else(|| "none".into(), |f: &Vec<u8>| f.len().to_string())
    };
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| format!("{}: {} then {} bytes", name.display(), of(before, name), of(after, name)))
        .collect()
}

/// Expects that the store is refused as damaged, by its folder, and is left as it was.
fn refused_and_unchanged(folder: &Path, harm: &str) -> String {
    let before = content(folder);
    let error = SledStore::open(folder).err().unwrap_or_else(|| panic!("{harm}: it was taken for a store"));
    assert!(matches!(error, StoreError::Corrupt { .. }), "{harm}: {error}");
    let said = error.to_string();
    assert!(said.contains("damaged") && said.contains(folder.to_str().unwrap()), "{harm}: {said}");
    assert_eq!(differences(&before, &content(folder)), Vec::<String>::new(), "{harm}: {said}");
    said
}

/// Without its index sled has to read the log itself.
fn remove_index(folder: &Path) {
    for path in content(folder).into_keys() {
        if path.file_name().unwrap().to_str().unwrap().starts_with("snap") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

async fn expect_all(store: &SledStore, harm: &str) {
    let found = store.scan(Table::Meta, None, "key-", 1_000).await.unwrap();
    assert_eq!(found.len(), 200, "{harm}");
    for (n, (key, document)) in found.iter().enumerate() {
        assert_eq!((key, &document.value), (&format!("key-{n:03}"), &vec![7; 1_000]), "{harm}");
    }
}

#[tokio::test]
async fn a_log_that_ends_too_early_is_called_damaged_and_kept() {
    for cut_bytes in [600, 5_000, 100_000] {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path()).await;
        let log = std::fs::OpenOptions::new().write(true).open(log_of(folder.path())).unwrap();
        log.set_len(log.metadata().unwrap().len().saturating_sub(cut_bytes)).unwrap();
        drop(log);
        refused_and_unchanged(folder.path(), &format!("{cut_bytes} bytes cut"));
    }
}

#[tokio::test]
async fn damage_anywhere_in_the_log_loses_nothing_silently() {
    // A log of several segments, with an index from the middle of its life and large documents beside it.
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    let store = SledStore::open(folder.path()).unwrap();
    for n in 0..300_u32 {
        store.commit(vec![put(&format!("more-{:02}", n % 70), &vec![n.to_be_bytes()[3]; 9_000])]).await.unwrap();
    }
    store.commit(vec![put("large", &vec![5; 300_000])]).await.unwrap();
    store.commit(vec![put("last", b"last")]).await.unwrap();
    drop(store);
    let whole = content(folder.path());
    let log = whole[&log_of(folder.path())].clone();
    let (mut refused, steps) = (0, 48);
    for step in 0..steps {
        let mut harmed = log.clone();
        // Now and then the head of a segment.
        let at = if step % 8 == 0 { (step * 4 % (log.len() >> 19)) << 19 } else { log.len() / steps * step } + 6;
        harmed[at..at + 24].iter_mut().for_each(|byte| *byte ^= 0x5a);
        std::fs::write(log_of(folder.path()), &harmed).unwrap();
        let harm = format!("24 bytes at {at} of {}", log.len());
        if SledStore::open(folder.path()).is_ok() {
            // What was overwritten meant nothing any more.
            let store = SledStore::open(folder.path()).unwrap();
            expect_all(&store, &harm).await;
            assert_eq!(store.get(Table::Meta, "last").await.unwrap().unwrap().value, b"last", "{harm}");
            assert_eq!(store.get(Table::Meta, "large").await.unwrap().unwrap().value, vec![5; 300_000], "{harm}");
            assert_eq!(store.scan(Table::Meta, None, "more-", 1_000).await.unwrap().len(), 70, "{harm}");
        } else {
            refused_and_unchanged(folder.path(), &harm);
            refused += 1;
        }
        // As it was before the harm.
        for path in content(folder.path()).into_keys().filter(|path| !whole.contains_key(path)) {
            std::fs::remove_file(path).unwrap();
        }
        for (path, bytes) in &whole {
            std::fs::write(path, bytes).unwrap();
        }
    }
    assert!(refused > steps / 3, "{refused} of {steps} were noticed");
}

#[tokio::test]
async fn a_damaged_large_document_is_called_so_and_the_log_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = SledStore::open(folder.path()).unwrap();
    store.commit(vec![put("large", &vec![5; 300_000])]).await.unwrap();
    for n in 0..2_000_u32 {
        store.commit(vec![put(&format!("key-{n:03}"), &vec![7; 3_000])]).await.unwrap();
    }
    drop(store);
    for name in content(&folder.path().join("blobs")).into_keys() {
        let mut bytes = std::fs::read(&name).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&name, bytes).unwrap();
    }
    refused_and_unchanged(folder.path(), "a large document");
}

fn overwrite(log: &Path, byte: fn(u32) -> u8) {
    let length = u32::try_from(std::fs::metadata(log).unwrap().len()).unwrap();
    std::fs::write(log, (0..length).map(byte).collect::<Vec<u8>>()).unwrap();
}

#[tokio::test]
async fn a_destroyed_store_is_called_damaged_and_kept() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 3] = [
        ("zeros", |log| overwrite(log, |_| 0)),
        ("noise", |log| overwrite(log, |n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])),
        ("empty", |log| std::fs::write(log, "").unwrap()),
    ];
    for (name, harm) in harms {
        for indexed in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            filled(folder.path()).await;
            if !indexed {
                remove_index(folder.path());
            }
            harm(&log_of(folder.path()));
            refused_and_unchanged(folder.path(), name);
        }
    }
}

#[tokio::test]
async fn a_log_that_is_gone_is_not_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    std::fs::remove_file(log_of(folder.path())).unwrap();
    assert!(refused_and_unchanged(folder.path(), "gone").contains("its file db is missing"));
}

#[tokio::test]
async fn a_damaged_index_is_called_so() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    drop(SledStore::open(folder.path()).unwrap());
    let is_index = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("snap");
    let index = content(folder.path()).into_keys().find(is_index).unwrap();
    overwrite(&index, |n| n.to_le_bytes()[0]);
    refused_and_unchanged(folder.path(), "index");
}

#[tokio::test]
async fn the_files_beside_the_log_are_held_against_it() {
    for (file, words) in [
        ("muster-store", ["missing", "another muster-store", "another muster-store"]),
        ("muster-commits", ["missing", "damaged", "damaged"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path()).await;
        let path = folder.path().join(file);
        let right = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let gone = refused_and_unchanged(folder.path(), file);
        std::fs::write(&path, "").unwrap();
        let empty = refused_and_unchanged(folder.path(), file);
        std::fs::write(&path, right.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()).unwrap();
        let noise = refused_and_unchanged(folder.path(), file);
        for (said, word) in [gone, empty, noise].iter().zip(words) {
            assert!(said.contains(file) && said.contains(word), "{said} without {word}");
        }
        std::fs::write(&path, right).unwrap();
        expect_all(&SledStore::open(folder.path()).unwrap(), file).await;
    }
}

#[tokio::test]
async fn a_counter_may_lag_and_never_lead() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    let path = folder.path().join("muster-commits");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("00000000000000000200 "));
    Counter::make(folder.path(), 150).unwrap();
    expect_all(&SledStore::open(folder.path()).unwrap(), "lagging").await;
    Counter::make(folder.path(), 203).unwrap();
    let said = refused_and_unchanged(folder.path(), "leading");
    assert!(said.contains("last 3 of 203 changes"), "{said}");
}

#[tokio::test]
async fn a_start_cut_short_is_taken_up() {
    // sled had begun to change the log when the power went; its copy is complete, another one is not.
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    std::fs::rename(log_of(folder.path()), folder.path().join("db.before")).unwrap();
    std::fs::write(log_of(folder.path()), "zeros from here on").unwrap();
    std::fs::write(folder.path().join("db.before.new"), "half").unwrap();
    expect_all(&SledStore::open(folder.path()).unwrap(), "copy").await;
    assert!(!content(folder.path()).into_keys().any(|path| path.to_str().unwrap().contains("before")));
}

#[tokio::test]
async fn after_a_failed_write_nothing_is_taken_and_everything_acknowledged_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    let store = SledStore::open(folder.path()).unwrap();
    let failure = store.failure();
    // What cannot be looked through cannot be made durable.
    let (large, aside) = (folder.path().join("blobs"), folder.path().join("aside"));
    std::fs::rename(&large, &aside).unwrap();
    let failed = store.commit(vec![put("unknown", b"x")]).await;
    assert!(matches!(failed, Err(StoreError::Io { .. })), "{failed:?}");
    assert!(matches!(failure.await, Some(StoreError::Io { .. })));
    assert!(matches!(store.commit(vec![put("later", b"x")]).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(Table::Meta, "key-000").await, Err(StoreError::Closed)));
    drop(store);
    std::fs::rename(aside, large).unwrap();
    // It is closed aside, since that may hang.
    let store = loop {
        match SledStore::open(folder.path()) {
            Err(StoreError::InUse { .. }) => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    expect_all(&store, "reopened").await;
    assert_eq!(store.get(Table::Meta, "later").await.unwrap(), None);
    store.commit(vec![put("later", b"x")]).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_killed_at_any_moment_is_whole() {
    const TEST: &str = "store::sled_backend::tests::a_store_killed_at_any_moment_is_whole";
    const VARIABLE: &str = "MUSTER_TEST_KILLED_STORE";
    if let Some(folder) = std::env::var_os(VARIABLE) {
        let store = Arc::new(SledStore::open(Path::new(&folder)).unwrap());
        let commits = (0..8_u32).map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                // Until it is killed.
                for n in 0_u32.. {
                    let value = vec![n.to_be_bytes()[3]; 10 + usize::try_from(n % 7).unwrap() * 3_000];
                    let key = format!("{task}-{:03}", n % 100);
                    store.commit(vec![put(&key, &value), put(&format!("twin-{key}"), &value)]).await.unwrap();
                }
            })
        });
        for task in commits.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    drop(SledStore::open(folder.path()).unwrap());
    let counter = folder.path().join("muster-commits");
    let committed = || std::fs::read_to_string(&counter).unwrap()[..20].parse::<u64>().unwrap();
    for round in 0..10_u64 {
        let until = committed() + 20 + round * 37;
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST])
            .env(VARIABLE, folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while committed() < until {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself in round {round}");
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        drop(SledStore::open(folder.path()).unwrap_or_else(|error| panic!("round {round}: {error}")));
    }
}
