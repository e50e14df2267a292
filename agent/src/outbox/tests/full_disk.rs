//! Stores that cannot be written to, and what becomes of what was not written once they can be.

use super::*;
use crate::tiny_disk::TinyDisk;

#[test]
fn a_full_disk_refuses_and_room_given_back_is_used() {
    TinyDisk::run("outbox::tests::full_disk::a_full_disk_refuses_and_room_given_back_is_used", 12, |disk| {
        let outbox = open(disk.dir());
        outbox.event(&event("before")).unwrap();
        disk.fill();
        let error = outbox.event(&event("refused")).unwrap_err();
        assert!(matches!(error, OutboxError::Full { free_bytes: 0, .. }), "{error}");
        assert!(error.to_string().contains(disk.dir().to_str().unwrap()), "{error}");
        outbox.note(&event("noted"));
        for _ in 0..3 {
            outbox.window(&window());
        }
        outbox.state(&StateReport { generation: 1, ..StateReport::default() });
        outbox.state(&StateReport { generation: 2, ..StateReport::default() });
        // What is not durable is not told.
        assert_eq!(events(&outbox).len(), 1);
        let epoch = events(&outbox)[0].0.epoch;
        assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 1 }));
        assert!(outbox.next_after(Stream::Telemetry, 0).is_none() && outbox.is_empty());
        disk.empty();
        outbox.retry();
        let told: Vec<String> = events(&outbox).into_iter().map(|e| e.1).collect();
        assert!(told.len() == 2 && told[0].contains("is full") && told[1] == "noted", "{told:?}");
        assert!(outbox.next_after(Stream::Telemetry, 2).is_some() && outbox.next_after(Stream::Sketch, 2).is_some());
        let state = outbox.next_after(Stream::State, 0).unwrap();
        assert_eq!(serde_json::from_slice::<Sequenced<StateReport>>(&state.payload).unwrap().body.generation, 2);
        drop(outbox);
        // The message acknowledged while nothing could be written does not come back.
        let told = events(&open(disk.dir()));
        assert_eq!(told.len(), 2, "{told:?}");
    });
}

#[test]
fn an_outbox_opened_on_a_full_disk_opens_once_there_is_room() {
    TinyDisk::run("outbox::tests::full_disk::an_outbox_opened_on_a_full_disk_opens_once_there_is_room", 12, |disk| {
        open(disk.dir()).event(&event("before")).unwrap();
        disk.fill();
        let outbox = open(disk.dir());
        outbox.event(&event("refused")).unwrap_err();
        outbox.note(&event("noted"));
        assert!(events(&outbox).is_empty());
        disk.empty();
        let begun = std::time::Instant::now();
        while events(&outbox).is_empty() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(60), "it never opened again");
            outbox.retry();
        }
        let told: Vec<String> = events(&outbox).into_iter().map(|e| e.1).collect();
        assert_eq!((told[0].as_str(), told.last().unwrap().as_str()), ("before", "noted"), "{told:?}");
    });
}

/// Pages that are too large for the log go to files of their own; sled never finishes a write in which such a file failed.
#[test]
fn a_write_that_fails_half_way_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path());
    outbox.event(&event("before")).unwrap();
    crate::files::remove(&folder.path().join("outbox/blobs")).unwrap();
    std::fs::write(folder.path().join("outbox/blobs"), "in the way").unwrap();
    let error = outbox.event(&event(&"x".repeat(40_000))).unwrap_err();
    assert!(matches!(error, OutboxError::Store(sled::Error::Io(_))), "{error}");
    for _ in 0..3 {
        let _ = outbox.event(&event("after"));
        outbox.note(&event("noted"));
        let _ = outbox.next_after(Stream::Event, 0);
    }
    drop(outbox);
}

#[test]
fn a_message_that_was_stored_although_its_write_failed_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path());
    outbox.event(&event("before")).unwrap();
    // Something among the files of the store that cannot be made durable.
    let blob = folder.path().join("outbox/blobs/0");
    std::os::unix::fs::symlink("/dev/null", &blob).unwrap();
    outbox.note(&event("once"));
    outbox.note(&event("twice"));
    outbox.note(&event("twice"));
    assert!(outbox.lock().open.is_none());
    std::fs::remove_file(&blob).unwrap();
    let begun = std::time::Instant::now();
    while events(&outbox).is_empty() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "it never opened again");
        outbox.retry();
    }
    let told: Vec<String> = events(&outbox).into_iter().map(|e| e.1).collect();
    let times = |detail: &str| told.iter().filter(|told| *told == detail).count();
    assert_eq!((times("before"), times("once"), times("twice")), (1, 1, 2), "{told:?}");
}
