use std::path::PathBuf;

use muster_shared::messages::{DeviceEventKind, RequestCounts, Resources, TelemetryWindow, WindowKey};
use muster_shared::profile::Profile;
use muster_shared::sketch::LatencySketch;

use super::*;

mod damaged;
mod full_disk;

const N: u64 = NUMBERS_PER_OPENING;
const BOUNDS: Bounds = Bounds { max_bytes: 100_000, max_events: 100 };

/// sled's own threads may hold the lock for a moment after the last handle is gone; a process that ends takes them with it,
/// which a test that starts again within its process has to wait for.
fn open(dir: &Path) -> Outbox {
    open_with(dir, BOUNDS)
}

fn open_with(dir: &Path, bounds: Bounds) -> Outbox {
    loop {
        let outbox = Outbox::open(dir, bounds, Metrics::new());
        let locked = outbox.lock().trouble.as_ref().is_some_and(|why| why.contains("could not acquire lock"));
        if !locked {
            return outbox;
        }
        std::thread::yield_now();
    }
}

fn event(detail: &str) -> DeviceEvent {
    DeviceEvent {
        at_ms: 1,
        kind: DeviceEventKind::Alarm,
        generation: 0,
        bundle: None,
        detail: detail.into(),
        track: Default::default(),
    }
}

fn window() -> ClosedWindow {
    let key = WindowKey { manifest: Digest::of(b"m"), generation: 1, start_ms: 2, duration_ms: 3 };
    ClosedWindow {
        telemetry: TelemetryWindow {
            key,
            requests: RequestCounts::default(),
            latency_us: LatencySketch::default(),
            resources: Resources::default(),
            comparison: None,
            objectives: Default::default(),
            numbers: Default::default(),
            program: None,
        },
        sketch: Some(SketchWindow::empty(key, &Profile::default())),
    }
}

fn events(outbox: &Outbox) -> Vec<(Position, String)> {
    let read = |next: Outgoing| {
        let message: Sequenced<DeviceEvent> = serde_json::from_slice(&next.payload).unwrap();
        (message.position, message.body.detail)
    };
    outbox.waiting(Stream::Event).into_iter().map(read).collect()
}

/// Every entry of the store, with its path below the data folder.
fn files_of(data_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![data_dir.join("outbox")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// The same store in a folder of its own.
fn copied(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("outbox.epoch"), folder.path().join("outbox.epoch")).unwrap();
    for path in files_of(from) {
        let to = folder.path().join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(path, to).unwrap();
    }
    folder
}

#[test]
fn messages_survive_a_restart_and_keep_their_places_until_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path());
    assert!(outbox.is_empty());
    for detail in ["one", "two", "three"] {
        outbox.event(&event(detail)).unwrap();
    }
    outbox.window(&window());
    let before = events(&outbox);
    let epoch = before[0].0.epoch;
    assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 1 }));
    drop(outbox);

    let outbox = open(folder.path());
    let waiting = events(&outbox);
    assert_eq!(waiting.last().unwrap().1, "three");
    assert!(waiting.iter().all(|(p, _)| p.epoch == epoch));
    // Another epoch, and sequences never given, are no acknowledgements.
    assert!(!outbox.acknowledged(&Ack { stream: Stream::Event, epoch: epoch ^ 1, sequence: 3 }));
    assert!(!outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: u64::MAX }));
    assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 3 }));
    assert!(events(&outbox).is_empty());
    let sketch = outbox.next_after(Stream::Sketch, 0).unwrap();
    let sketch = Sequenced::<SketchWindow>::decode(&sketch.payload).unwrap();
    assert_eq!(sketch.position, Position { epoch, sequence: 1, oldest: 1 });
    assert_eq!(Some(sketch.body), window().sketch);
    outbox.event(&event("four")).unwrap();
    assert_eq!(events(&outbox)[0].0, Position { epoch, sequence: N, oldest: N });
}

#[test]
fn an_acknowledgement_writes_nothing_by_itself() {
    let bounds = Bounds { max_bytes: 1 << 20, max_events: 1_000 };
    let folder = tempfile::tempdir().unwrap();
    let outbox = open_with(folder.path(), bounds);
    for number in 0..400 {
        outbox.event(&event(&number.to_string())).unwrap();
    }
    let epoch = events(&outbox)[0].0.epoch;
    let content = || std::fs::read(folder.path().join("outbox/db")).unwrap();
    let before = content();
    assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 1 }));
    assert!(content() == before, "it was written");
    // The next message takes it along, and many do not wait for that.
    outbox.event(&event("next")).unwrap();
    drop(outbox);
    let outbox = open_with(folder.path(), bounds);
    assert_eq!(events(&outbox)[0].0.sequence, 2);
    assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 400 }));
    drop(outbox);
    let left: Vec<String> = events(&open_with(folder.path(), bounds)).into_iter().map(|e| e.1).collect();
    assert_eq!(left, ["next"]);
}

/// The controller has what the store has lost, and numbers given again would be taken for those it has.
#[test]
fn what_is_put_after_the_end_was_lost_gets_numbers_that_were_never_given() {
    let first = tempfile::tempdir().unwrap();
    open(first.path()).event(&event("one")).unwrap();
    let mut folder = copied(first.path());
    let mut had = 0;
    for life in 0..4 {
        let outbox = open(folder.path());
        outbox.event(&event("new")).unwrap();
        let (position, text) = events(&outbox).pop().unwrap();
        assert_eq!((text.as_str(), position.sequence % N), ("new", 0), "life {life}");
        // It says so to whatever it is sent.
        outbox.acknowledged(&Ack { stream: Stream::Event, epoch: position.epoch, sequence: had });
        let waiting = events(&outbox);
        assert_eq!(waiting.last().map(|(at, text)| (at.sequence, text.as_str())), Some((position.sequence, "new")));
        assert_eq!(waiting.len(), if life == 0 { 2 } else { 1 }, "nothing is said to be missing");
        had = position.sequence;
        drop(outbox);
        let torn = copied(first.path());
        std::fs::copy(folder.path().join("outbox.epoch"), torn.path().join("outbox.epoch")).unwrap();
        folder = torn;
    }
}

#[test]
fn what_is_behind_a_gap_goes_once_all_before_it_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).event(&event("one")).unwrap();
    let outbox = open(folder.path());
    outbox.event(&event("two")).unwrap();
    let epoch = events(&outbox)[0].0.epoch;
    assert_eq!(outbox.next_after(Stream::Event, 0).unwrap().sequence, 1);
    assert_eq!(outbox.next_after(Stream::Event, 1), None);
    assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 1 }));
    let next = outbox.next_after(Stream::Event, 1).unwrap();
    let message: Sequenced<DeviceEvent> = serde_json::from_slice(&next.payload).unwrap();
    assert_eq!(message.position, Position { epoch, sequence: N, oldest: N });
}

#[test]
fn a_message_that_cannot_be_read_holds_nothing_up_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path());
    let damaged = |stream| outbox.append(&mut outbox.lock(), stream, b"\xffnonsense").unwrap();
    outbox.event(&event("before")).unwrap();
    damaged(Stream::Event);
    damaged(Stream::Event);
    outbox.event(&event("after")).unwrap();
    damaged(Stream::Telemetry);
    let epoch = events(&outbox)[0].0.epoch;
    // In the midst of others it waits its turn: what is behind it would not be taken either.
    assert_eq!(outbox.next_after(Stream::Event, 0).unwrap().sequence, 1);
    assert_eq!((outbox.next_after(Stream::Event, 1), outbox.given_up()), (None, 0));
    assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 1 }));
    let next = outbox.next_after(Stream::Event, 1).unwrap();
    let message: Sequenced<DeviceEvent> = serde_json::from_slice(&next.payload).unwrap();
    assert_eq!((message.position.sequence, message.position.oldest, message.body.detail.as_str()), (4, 4, "after"));
    assert_eq!((outbox.next_after(Stream::Telemetry, 0), outbox.given_up()), (None, 3));
    let told: Vec<String> = events(&outbox).into_iter().map(|(_, text)| text).collect();
    assert!(
        told.len() == 3 && told[1].contains("2 messages (Event)") && told[2].contains("1 messages (Telemetry)"),
        "{told:?}"
    );
    drop(outbox);
    let outbox = open(folder.path());
    assert_eq!((outbox.given_up(), outbox.next_after(Stream::Telemetry, 0)), (3, None));
}

#[test]
fn an_outbox_that_is_an_older_one_goes_on_behind_what_the_controller_has() {
    let folder = tempfile::tempdir().unwrap();
    {
        let outbox = open(folder.path());
        outbox.event(&event("delivered")).unwrap();
        outbox.state(&StateReport { generation: 1, ..StateReport::default() });
    }
    let outbox = open(folder.path());
    outbox.event(&event("new")).unwrap();
    outbox.state(&StateReport { generation: 2, ..StateReport::default() });
    let epoch = events(&outbox)[0].0.epoch;
    // The device had been started a few times more when its data folder was put back.
    for (stream, sequence) in [(Stream::Event, 3 * N + 7), (Stream::State, 2 * N + 5)] {
        assert!(outbox.acknowledged(&Ack { stream, epoch, sequence }));
    }
    let waiting = events(&outbox);
    assert_eq!(waiting[0], (Position { epoch, sequence: 4 * N, oldest: 4 * N }, "new".to_owned()));
    assert!(waiting.len() == 3 && waiting[1..].iter().all(|(_, text)| text.contains("an older one")), "{waiting:?}");
    let state = outbox.next_after(Stream::State, 0).unwrap();
    let body = serde_json::from_slice::<Sequenced<StateReport>>(&state.payload).unwrap().body;
    assert_eq!((state.sequence, body.generation), (3 * N, 2));
    // Once is enough: it cannot have happened since.
    assert!(!outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 70 * N }));
    assert_eq!(events(&outbox), waiting);
    drop(outbox);
    assert_eq!(events(&open(folder.path())), waiting);
}

#[test]
fn a_store_that_is_refused_over_and_over_is_not_taken_for_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    first.event(&event("kept")).unwrap();
    for _ in 0..5 {
        // The first one has its lock, as a store that could not be closed would.
        let refused = Outbox::open(folder.path(), BOUNDS, Metrics::new());
        assert!(refused.lock().trouble.as_ref().is_some_and(|why| why.contains("could not acquire lock")));
    }
    drop(first);
    assert_eq!(events(&open(folder.path()))[0].1, "kept");
    assert!(!folder.path().join("outbox.damaged").exists());
}

#[test]
fn only_the_last_state_waits_and_a_repeat_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path());
    let report = |generation, reported_at_ms| StateReport { generation, reported_at_ms, ..StateReport::default() };
    outbox.state(&report(1, 10));
    outbox.state(&report(1, 20));
    assert_eq!(outbox.next_after(Stream::State, 0).unwrap().sequence, 1);
    outbox.state(&report(2, 30));
    let last = outbox.next_after(Stream::State, 0).unwrap();
    assert_eq!(last.sequence, 2);
    assert_eq!(outbox.next_after(Stream::State, 2), None);
    let message: Sequenced<StateReport> = serde_json::from_slice(&last.payload).unwrap();
    assert!(outbox.acknowledged(&Ack { stream: Stream::State, epoch: message.position.epoch, sequence: 2 }));
    // Acknowledged once, it is told again when asked for: the controller may have lost it.
    outbox.state(&report(2, 40));
    assert_eq!(outbox.next_after(Stream::State, 0).unwrap().sequence, 3);
}

#[test]
fn a_full_outbox_gives_up_telemetry_and_counts_it() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let bounds = Bounds { max_bytes: 2_000, max_events: 3 };
    let outbox = Outbox::open(folder.path(), bounds, metrics.clone());
    for _ in 0..20 {
        outbox.window(&window());
    }
    assert!(outbox.given_up() > 0);
    let oldest = outbox.next_after(Stream::Telemetry, 0).unwrap();
    let message: Sequenced<TelemetryWindow> = serde_json::from_slice(&oldest.payload).unwrap();
    assert!(message.position.oldest > 1 && message.position.oldest == message.position.sequence);
    assert!(metrics.encode().unwrap().contains(&format!("muster_agent_outbox_dropped_total {}", outbox.given_up())));
    let given_up = outbox.given_up();
    drop(outbox);
    let outbox = Outbox::open(folder.path(), bounds, metrics);
    assert_eq!(outbox.given_up(), given_up);
    assert!(matches!(outbox.event(&event(&"x".repeat(MAX_PACKET_BYTES))), Err(OutboxError::Packet { .. })));
    assert!(matches!(outbox.event(&event(&"x".repeat(3_000))), Err(OutboxError::TooLarge(_))));
    // Whoever brings such an event still has it; one that is only noted is lost, and counted.
    assert_eq!(outbox.given_up(), given_up);
    outbox.note(&event(&"x".repeat(3_000)));
    assert_eq!(outbox.given_up(), given_up + 1);
}
