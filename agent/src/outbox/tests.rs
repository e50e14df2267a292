use muster_shared::ids::Digest;
use muster_shared::messages::{DeviceEventKind, RequestCounts, Resources, TelemetryWindow, WindowKey};
use muster_shared::profile::Profile;
use muster_shared::sketch::LatencySketch;

use super::*;

const BOUNDS: Bounds = Bounds { max_bytes: 100_000, max_events: 100 };

fn open(dir: &Path) -> (Outbox, Vec<String>) {
    Outbox::open(dir, BOUNDS, Metrics::new()).unwrap()
}

fn event(detail: &str) -> DeviceEvent {
    DeviceEvent { at_ms: 1, kind: DeviceEventKind::Alarm, generation: 0, bundle: None, detail: detail.into() }
}

fn window() -> ClosedWindow {
    let key = WindowKey { manifest: Digest::of(b"m"), generation: 1, start_ms: 2, duration_ms: 3 };
    ClosedWindow {
        telemetry: TelemetryWindow {
            key,
            requests: RequestCounts::default(),
            latency_us: LatencySketch::default(),
            resources: Resources::default(),
        },
        sketch: Some(SketchWindow::empty(key, &Profile { columns: vec![] })),
    }
}

fn events(outbox: &Outbox) -> Vec<(Position, String)> {
    let mut found = Vec::new();
    let mut after = 0;
    while let Some(next) = outbox.next_after(Stream::Event, after) {
        let message: Sequenced<DeviceEvent> = serde_json::from_slice(&next.payload).unwrap();
        found.push((message.position, message.body.detail));
        after = next.sequence;
    }
    found
}

#[test]
fn messages_survive_a_restart_and_keep_their_places_until_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, alarms) = open(folder.path());
    assert!(alarms.is_empty() && outbox.is_empty());
    for detail in ["one", "two", "three"] {
        outbox.event(&event(detail)).unwrap();
    }
    outbox.window(&window()).unwrap();
    let before = events(&outbox);
    let epoch = before[0].0.epoch;
    assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 1 }));
    drop(outbox);

    let (outbox, _) = open(folder.path());
    let waiting = events(&outbox);
    assert_eq!(waiting.last().unwrap().1, "three");
    assert!(waiting.iter().all(|(p, _)| p.epoch == epoch));
    // Another epoch, and sequences never given, are no acknowledgements.
    assert!(!outbox.acknowledged(&Ack { stream: Stream::Event, epoch: epoch ^ 1, sequence: 3 }));
    assert!(!outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 99 }));
    assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 3 }));
    assert!(events(&outbox).is_empty());
    let sketch = outbox.next_after(Stream::Sketch, 0).unwrap();
    let sketch = Sequenced::<SketchWindow>::decode(&sketch.payload).unwrap();
    assert_eq!(sketch.position, Position { epoch, sequence: 1, oldest: 1 });
    assert_eq!(Some(sketch.body), window().sketch);
    outbox.event(&event("four")).unwrap();
    assert_eq!(events(&outbox)[0].0, Position { epoch, sequence: 4, oldest: 4 });
}

#[test]
fn only_the_last_state_waits_and_a_repeat_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(folder.path());
    let report = |generation, reported_at_ms| StateReport { generation, reported_at_ms, ..StateReport::default() };
    outbox.state(&report(1, 10)).unwrap();
    outbox.state(&report(1, 20)).unwrap();
    assert_eq!(outbox.next_after(Stream::State, 0).unwrap().sequence, 1);
    outbox.state(&report(2, 30)).unwrap();
    let last = outbox.next_after(Stream::State, 0).unwrap();
    assert_eq!(last.sequence, 2);
    assert_eq!(outbox.next_after(Stream::State, 2), None);
    let message: Sequenced<StateReport> = serde_json::from_slice(&last.payload).unwrap();
    assert!(outbox.acknowledged(&Ack { stream: Stream::State, epoch: message.position.epoch, sequence: 2 }));
    // Acknowledged once, it is told again when asked for: the controller may have lost it.
    outbox.state(&report(2, 40)).unwrap();
    assert_eq!(outbox.next_after(Stream::State, 0).unwrap().sequence, 3);
}

#[test]
fn a_full_outbox_gives_up_telemetry_and_counts_it() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let bounds = Bounds { max_bytes: 2_000, max_events: 3 };
    let (outbox, _) = Outbox::open(folder.path(), bounds, metrics.clone()).unwrap();
    for _ in 0..20 {
        outbox.window(&window()).unwrap();
    }
    assert!(outbox.given_up() > 0);
    let oldest = outbox.next_after(Stream::Telemetry, 0).unwrap();
    let message: Sequenced<TelemetryWindow> = serde_json::from_slice(&oldest.payload).unwrap();
    assert!(message.position.oldest > 1 && message.position.oldest == message.position.sequence);
    assert!(metrics.encode().unwrap().contains(&format!("muster_agent_outbox_dropped_total {}", outbox.given_up())));
    let given_up = outbox.given_up();
    drop(outbox);
    let (outbox, _) = Outbox::open(folder.path(), bounds, metrics).unwrap();
    assert_eq!(outbox.given_up(), given_up);
    assert!(matches!(outbox.event(&event(&"x".repeat(MAX_PACKET_BYTES))), Err(OutboxError::Packet { .. })));
    assert!(matches!(outbox.event(&event(&"x".repeat(3_000))), Err(OutboxError::TooLarge(_))));
}

#[test]
fn a_torn_tail_costs_no_message_that_was_durable() {
    let folder = tempfile::tempdir().unwrap();
    {
        let (outbox, _) = open(folder.path());
        for n in 0..50 {
            outbox.event(&event(&n.to_string())).unwrap();
        }
    }
    let db = folder.path().join("outbox/db");
    // What a power cut leaves: a last write that did not get through.
    let mut torn = std::fs::read(&db).unwrap();
    torn.extend_from_slice(&[0xff; 700]);
    std::fs::write(&db, torn).unwrap();
    let (outbox, alarms) = open(folder.path());
    assert_eq!(alarms, Vec::<String>::new());
    assert_eq!(events(&outbox).len(), 50);
}

#[test]
fn a_damaged_store_is_set_aside_and_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let first = {
        let (outbox, _) = open(folder.path());
        outbox.event(&event("lost")).unwrap();
        events(&outbox)[0].0.epoch
    };
    let db = folder.path().join("outbox/db");
    let length = std::fs::metadata(&db).unwrap().len();
    std::fs::write(&db, vec![0x5a; usize::try_from(length).unwrap()]).unwrap();
    let (outbox, alarms) = open(folder.path());
    assert!(alarms[0].contains("outbox.damaged"), "{alarms:?}");
    assert!(folder.path().join("outbox.damaged/db").exists());
    assert!(events(&outbox).is_empty());
    outbox.event(&event("new")).unwrap();
    assert_ne!(events(&outbox)[0].0.epoch, first);
}

#[test]
fn a_store_nobody_survives_is_set_aside_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    std::fs::write(folder.path().join("outbox.opening"), "...").unwrap();
    let (_, alarms) = open(folder.path());
    assert!(alarms[0].contains("did not survive"), "{alarms:?}");
    assert!(!folder.path().join("outbox.opening").exists());
}
