//! What every backend of [`Store`] must do. A backend's tests call [`conformance_suite!`] with a function that opens it in a
//! folder.

use std::path::Path;
use std::sync::Arc;

use super::{Change, Expect, Store, StoreError, Table};

/// Opens a backend in a folder.
pub(super) type Open = fn(&Path) -> Result<Arc<dyn Store>, StoreError>;

/// Makes one test of each requirement.
macro_rules! conformance_suite {
    ($open:expr) => {
        crate::store::conformance::conformance_suite!(
            @cases $open;
            versions_count_the_puts
            expectations_guard_every_change
            a_batch_is_made_whole_or_not_at_all
            scans_are_ordered_and_paged
            tables_do_not_mix
            any_bytes_are_kept
            concurrent_increments_are_all_counted
            one_of_many_creators_wins
            everything_committed_is_there_after_reopening
        );
    };
    (@cases $open:expr; $($case:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let folder = tempfile::tempdir().unwrap();
            crate::store::conformance::$case($open, folder.path()).await;
        }
    )*};
}
pub(super) use conformance_suite;

fn put(key: &str, expect: Expect, value: &[u8]) -> Change {
    Change::Put { table: Table::Meta, key: key.into(), expect, value: value.into() }
}

fn delete(key: &str, expect: Expect) -> Change {
    Change::Delete { table: Table::Meta, key: key.into(), expect }
}

async fn version(store: &Arc<dyn Store>, key: &str) -> Option<u64> {
    store.get(Table::Meta, key).await.unwrap().map(|document| document.version)
}

fn is_conflict(result: &Result<(), StoreError>, on: &str) -> bool {
    matches!(result, Err(StoreError::Conflict { table: Table::Meta, key }) if key == on)
}

pub(super) async fn versions_count_the_puts(open: Open, folder: &Path) {
    let store = open(folder).unwrap();
    assert_eq!(version(&store, "k").await, None);
    for n in 1..=3 {
        store.commit(vec![put("k", Expect::Anything, b"v")]).await.unwrap();
        assert_eq!(version(&store, "k").await, Some(n));
    }
    store.commit(vec![put("k", Expect::Anything, b"a"), put("k", Expect::Anything, b"b")]).await.unwrap();
    assert_eq!(version(&store, "k").await, Some(5));
    assert_eq!(store.get(Table::Meta, "k").await.unwrap().unwrap().value, b"b");
    store.commit(vec![delete("k", Expect::Anything)]).await.unwrap();
    assert_eq!(version(&store, "k").await, None);
    store.commit(vec![put("k", Expect::Absent, b"v")]).await.unwrap();
    assert_eq!(version(&store, "k").await, Some(1));
}

pub(super) async fn expectations_guard_every_change(open: Open, folder: &Path) {
    let store = open(folder).unwrap();
    assert!(is_conflict(&store.commit(vec![put("k", Expect::Version(1), b"v")]).await, "k"));
    assert!(is_conflict(&store.commit(vec![put("k", Expect::Version(0), b"v")]).await, "k"));
    assert!(is_conflict(&store.commit(vec![delete("k", Expect::Version(1))]).await, "k"));
    store.commit(vec![delete("k", Expect::Anything)]).await.unwrap();
    store.commit(vec![delete("k", Expect::Absent)]).await.unwrap();
    store.commit(vec![put("k", Expect::Absent, b"1")]).await.unwrap();
    assert!(is_conflict(&store.commit(vec![put("k", Expect::Absent, b"2")]).await, "k"));
    assert!(is_conflict(&store.commit(vec![put("k", Expect::Version(2), b"2")]).await, "k"));
    assert!(is_conflict(&store.commit(vec![delete("k", Expect::Absent)]).await, "k"));
    store.commit(vec![put("k", Expect::Version(1), b"2")]).await.unwrap();
    assert!(is_conflict(&store.commit(vec![delete("k", Expect::Version(1))]).await, "k"));
    store.commit(vec![delete("k", Expect::Version(2))]).await.unwrap();
    assert_eq!(version(&store, "k").await, None);
}

pub(super) async fn a_batch_is_made_whole_or_not_at_all(open: Open, folder: &Path) {
    let store = open(folder).unwrap();
    store.commit(vec![put("a", Expect::Absent, b"1"), put("b", Expect::Absent, b"1")]).await.unwrap();
    let failing = vec![
        put("a", Expect::Version(1), b"2"),
        delete("b", Expect::Version(1)),
        put("c", Expect::Absent, b"2"),
        put("d", Expect::Version(7), b"2"),
    ];
    assert!(is_conflict(&store.commit(failing).await, "d"));
    assert_eq!(store.get(Table::Meta, "a").await.unwrap().unwrap().value, b"1");
    assert_eq!(version(&store, "b").await, Some(1));
    assert_eq!(version(&store, "c").await, None);
    store.commit(Vec::new()).await.unwrap();
}

pub(super) async fn scans_are_ordered_and_paged(open: Open, folder: &Path) {
    let store = open(folder).unwrap();
    let keys = ["a", "a/1", "a/10", "a/2", "a0", "b", "é"];
    let changes = keys.iter().rev().map(|key| put(key, Expect::Absent, key.as_bytes())).collect();
    store.commit(changes).await.unwrap();
    let scan = async |after: Option<&str>, prefix: &str, limit: usize| -> Vec<String> {
        let found = store.scan(Table::Devices, None, "", 10).await.unwrap();
        assert!(found.is_empty(), "another table was scanned");
        let found = store.scan(Table::Meta, after, prefix, limit).await.unwrap();
        found.into_iter().map(|(key, _)| key).filter(|key| keys.contains(&key.as_str())).collect()
    };
    assert_eq!(scan(None, "", 100).await, keys);
    assert_eq!(scan(None, "a/", 100).await, ["a/1", "a/10", "a/2"]);
    assert_eq!(scan(None, "a/", 2).await, ["a/1", "a/10"]);
    assert_eq!(scan(Some("a/10"), "a/", 100).await, ["a/2"]);
    assert_eq!(scan(Some("a/2"), "a/", 100).await, Vec::<String>::new());
    assert_eq!(scan(Some("a/11"), "a/", 100).await, ["a/2"]);
    assert_eq!(scan(Some("A"), "a/", 1).await, ["a/1"]);
    assert_eq!(scan(Some("zzz"), "a/", 1).await, Vec::<String>::new());
    assert_eq!(scan(Some("b"), "", 100).await.last().map(String::as_str), Some("é"));
    assert_eq!(scan(None, "none", 100).await, Vec::<String>::new());
    assert_eq!(scan(None, "", 0).await, Vec::<String>::new());
}

pub(super) async fn tables_do_not_mix(open: Open, folder: &Path) {
    const ALL: [Table; 12] = [
        Table::Devices,
        Table::Reports,
        Table::Windows,
        Table::Positions,
        Table::EnrolmentTokens,
        Table::AccessTokens,
        Table::Roots,
        Table::Bundles,
        Table::Rollouts,
        Table::Events,
        Table::Feedback,
        Table::Meta,
    ];
    let store = open(folder).unwrap();
    let changes = ALL
        .iter()
        .map(|table| Change::Put {
            table: *table,
            key: "same".into(),
            expect: Expect::Absent,
            value: table.name().into(),
        })
        .collect();
    store.commit(changes).await.unwrap();
    for table in ALL {
        assert_eq!(store.get(table, "same").await.unwrap().unwrap().value, table.name().as_bytes());
        let found = store.scan(table, None, "same", 10).await.unwrap();
        assert_eq!(found.len(), 1, "{}", table.name());
    }
}

pub(super) async fn any_bytes_are_kept(open: Open, folder: &Path) {
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 4]).collect();
    let values = [Vec::new(), vec![0], vec![255; 8], large];
    let store = open(folder).unwrap();
    for (n, value) in values.iter().enumerate() {
        store.commit(vec![put(&n.to_string(), Expect::Absent, value)]).await.unwrap();
    }
    drop(store);
    let store = reopen(open, folder).await;
    for (n, value) in values.iter().enumerate() {
        assert_eq!(store.get(Table::Meta, &n.to_string()).await.unwrap().unwrap().value, *value);
    }
}

pub(super) async fn concurrent_increments_are_all_counted(open: Open, folder: &Path) {
    const TASKS: u64 = 16;
    const EACH: u64 = 25;
    let store = open(folder).unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..EACH {
                    loop {
                        let before = store.get(Table::Meta, "counter").await.unwrap();
                        let (expect, count) = match &before {
                            None => (Expect::Absent, 0),
                            Some(document) => (
                                Expect::Version(document.version),
                                String::from_utf8(document.value.clone()).unwrap().parse::<u64>().unwrap(),
                            ),
                        };
                        let changes = vec![
                            put("counter", expect, (count + 1).to_string().as_bytes()),
                            put(&format!("by/{task}/{n}"), Expect::Absent, b""),
                        ];
                        match store.commit(changes).await {
                            Ok(()) => break,
                            Err(StoreError::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let counter = store.get(Table::Meta, "counter").await.unwrap().unwrap();
    assert_eq!(counter.value, (TASKS * EACH).to_string().as_bytes());
    assert_eq!(counter.version, TASKS * EACH);
    let by = store.scan(Table::Meta, None, "by/", 10_000).await.unwrap();
    assert_eq!(by.len() as u64, TASKS * EACH);
}

pub(super) async fn one_of_many_creators_wins(open: Open, folder: &Path) {
    let store = open(folder).unwrap();
    let tasks: Vec<_> = (0..32_u8)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.commit(vec![put("one", Expect::Absent, &[task])]).await.is_ok() })
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        winners += usize::from(task.await.unwrap());
    }
    assert_eq!(winners, 1);
}

pub(super) async fn everything_committed_is_there_after_reopening(open: Open, folder: &Path) {
    for round in 0..5_u8 {
        let store = reopen(open, folder).await;
        for before in 0..round {
            let document = store.get(Table::Meta, &before.to_string()).await.unwrap().unwrap();
            assert_eq!((document.version, document.value), (1, vec![before; 10_000]));
        }
        store.commit(vec![put(&round.to_string(), Expect::Absent, &vec![round; 10_000])]).await.unwrap();
    }
}

/// Opens again what has just been dropped; a backend may hold its lock for a moment longer.
async fn reopen(open: Open, folder: &Path) -> Arc<dyn Store> {
    loop {
        match open(folder) {
            Ok(store) => return store,
            Err(StoreError::InUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}
