//! Messages on their way into the store.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_shared::api::EventView;
use muster_shared::comparison::ColumnAgreement;
use muster_shared::ids::Digest;
use muster_shared::messages::{
    Ack, AssignmentDelivery, DeviceEvent, DeviceEventKind, Position, Presence, RequestCounts, Resources, Sequenced,
    StateReport, Stream, TelemetryWindow, WindowKey,
};
use muster_shared::profile::{Objectives, Profile};
use muster_shared::sketch::{
    ClassPairs, ColumnComparison, Comparison, Differences, LatencySketch, ObjectiveCounts, SketchWindow,
};
use muster_shared::topics::{Down, Kind, Topic, Up};
use serde::Serialize;

use super::*;
use crate::store::observed::{Fate, ObservedStore};
use crate::store::records::{ReportRecord, StreamPosition, WindowRecord, position_key};
use crate::store::{Records, SledStore, Table};
use crate::testing::{RecordingBroker, TestApp, app, digest_of, open_over, profile};

/// Ingest at work, and what goes into it.
struct Intake {
    events: mpsc::Sender<BrokerEvent>,
    _stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn start(app: &Arc<App>) -> Intake {
    let (events, receiver) = mpsc::channel(1_024);
    let (stop, stopping) = watch::channel(false);
    Intake { events, _stop: stop, task: spawn(Arc::clone(app), receiver, Requests::default(), stopping) }
}

impl Intake {
    async fn bytes(&self, device: &DeviceId, kind: Up, payload: impl Into<Bytes>) {
        let topic = Topic::up(device, kind);
        self.events.send(BrokerEvent::Message { topic, payload: payload.into() }).await.unwrap();
    }

    async fn say<T: Serialize>(&self, device: &DeviceId, kind: Up, position: Position, body: T) {
        let json = serde_json::to_vec(&Sequenced { position, body }).unwrap();
        self.bytes(device, kind, json).await;
    }

    /// Ends the broker and waits until everything it brought has been dealt with.
    async fn finish(self) {
        drop(self.events);
        tokio::time::timeout(std::time::Duration::from_secs(60), self.task).await.expect("ingest ends").unwrap();
    }
}

fn at(epoch: u64, sequence: u64, oldest: u64) -> Position {
    Position { epoch, sequence, oldest }
}

fn telemetry(manifest: Digest, served: u64) -> TelemetryWindow {
    TelemetryWindow {
        key: WindowKey { manifest, generation: 1, start_ms: 0, duration_ms: 1 },
        requests: RequestCounts { served, ..RequestCounts::default() },
        latency_us: LatencySketch::default(),
        resources: Resources::default(),
        comparison: None,
        objectives: Default::default(),
        numbers: Default::default(),
        program: None,
    }
}

fn event(kind: DeviceEventKind) -> DeviceEvent {
    DeviceEvent { at_ms: 5, kind, generation: 1, bundle: None, detail: "it did".into(), track: Default::default() }
}

/// The acknowledgements among what was published.
fn acks(published: &[(Topic, Bytes)]) -> Vec<(Stream, u64, u64)> {
    published
        .iter()
        .filter(|(topic, _)| topic.kind == Kind::Down(Down::Ack))
        .map(|(_, payload)| serde_json::from_slice::<Ack>(payload).unwrap())
        .map(|ack| (ack.stream, ack.epoch, ack.sequence))
        .collect()
}

async fn windows(test: &TestApp) -> Vec<WindowRecord> {
    let all = test.app.records.all::<WindowRecord>(Table::Windows, "").await.unwrap();
    all.into_iter().map(|(_, window)| window.value).collect()
}

async fn history(test: &TestApp) -> Vec<EventView> {
    test.app.events.list(0, None, None, 1_000).await.unwrap().events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_is_stored_and_acknowledged() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let manifest = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let intake = start(&test.app);
    let report = StateReport { generation: 1, starts: 3, ..StateReport::default() };
    intake.say(&device, Up::State, at(1, 1, 1), report.clone()).await;
    intake.say(&device, Up::Telemetry, at(1, 1, 1), telemetry(manifest, 7)).await;
    intake.say(&device, Up::Event, at(1, 1, 1), event(DeviceEventKind::Committed)).await;
    let body = SketchWindow::empty(telemetry(manifest, 0).key, &profile());
    intake.bytes(&device, Up::Sketch, Sequenced { position: at(1, 1, 1), body }.encode()).await;
    intake.finish().await;

    let mut got = acks(&test.broker.take());
    got.sort_unstable();
    assert_eq!(got, Stream::ALL.map(|stream| (stream, 1, 1)));
    let view = test.app.fleet.view(&device).unwrap();
    assert!(view.online);
    assert_eq!(view.reported, Some(report.clone()));
    let stored = test.app.records.get::<ReportRecord>(Table::Reports, "dev-1").await.unwrap().unwrap().value;
    assert_eq!(stored.reported, report);
    let windows = windows(&test).await;
    assert_eq!(windows.len(), 2);
    assert!(windows.iter().any(|w| w.telemetry.is_some()) && windows.iter().any(|w| w.sketch.is_some()));
    let events = history(&test).await;
    assert_eq!((events[0].kind.as_str(), events[0].detail.as_str()), ("device.committed", "it did"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_objectives_must_be_the_bundles() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let objectives = Objectives { latency_us: vec![50_000] };
    let with = Profile { objectives: objectives.clone(), ..profile() };
    let with = digest_of(&test.bundle_with("press", "1.0.0", with).await);
    let without = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let other = Objectives { latency_us: vec![1] };
    let intake = start(&test.app);
    for (sequence, manifest, counted) in [(1, with, &objectives), (2, with, &other), (3, without, &objectives)] {
        let body = TelemetryWindow { objectives: ObjectiveCounts::empty(counted), ..telemetry(manifest, sequence) };
        intake.say(&device, Up::Telemetry, at(1, sequence, 1), body).await;
    }
    intake.say(&device, Up::Telemetry, at(1, 4, 1), telemetry(with, 4)).await;
    intake.finish().await;
    let served: Vec<u64> = windows(&test).await.iter().map(|w| w.telemetry.as_ref().unwrap().requests.served).collect();
    assert_eq!(served, [1, 4]);
    // What is refused is acknowledged, or it would come for ever.
    assert_eq!(acks(&test.broker.take()).last(), Some(&(Stream::Telemetry, 1, 4)));
    let page = test.app.metrics.render(&Default::default());
    let refused = "muster_controller_ingest_messages_total{kind=\"telemetry\",outcome=\"refused\"} 2";
    assert!(page.lines().any(|line| line == refused), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_device_invents_of_a_comparison_pushes_nobody_else_out_of_it() {
    let test = app().await;
    let (liar, honest) = (test.enrol("dev-1", &[]).await, test.enrol("dev-2", &[]).await);
    let incumbent = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let candidate = digest_of(&test.bundle("digits", "1.1.0", 11).await);
    let window = |against: Digest, column: &str, compared: ColumnComparison| {
        let columns = [(column.to_owned(), compared)].into();
        let comparison = Comparison { compared: 5, columns, ..Comparison::empty(against) };
        TelemetryWindow { comparison: Some(comparison), ..telemetry(candidate, 5) }
    };
    let numbers = || ColumnComparison::Numbers(Differences::default());
    let classes = || ColumnComparison::Classes(ClassPairs { agreed: 4, disagreed: 1, ..ClassPairs::default() });
    let intake = start(&test.app);
    let lies = [(incumbent, "class"), (incumbent, "x"), (incumbent, "invented"), (Digest::of(b"no bundle"), "class")];
    for (sequence, (against, column)) in (1..).zip(lies) {
        intake.say(&liar, Up::Telemetry, at(1, sequence, 1), window(against, column, numbers())).await;
    }
    intake.say(&honest, Up::Telemetry, at(1, 1, 1), window(incumbent, "class", classes())).await;
    intake.finish().await;

    assert_eq!(windows(&test).await.len(), 5, "the rest of such a window is as good as another's");
    let bundle = "digits@1.1.0".parse().unwrap();
    let report = crate::comparison::report(&test.app, &bundle, None, 0).await.unwrap();
    let [group] = &report.groups[..] else { panic!("{report:?}") };
    assert_eq!((group.against, group.devices, group.windows, group.compared), (incumbent, 2, 4, 20));
    let [ColumnAgreement::Classes { name, rows, .. }] = &group.columns[..] else { panic!("{group:?}") };
    assert_eq!((name.as_str(), *rows), ("class", 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_and_disorder_count_once() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let manifest = Digest::of(b"m");
    let mut last = Vec::new();
    // Twice over the whole mess, as after a restart of ours: the second intake knows only what is stored.
    for _ in 0..2 {
        let intake = start(&test.app);
        for sequence in [1, 1, 3, 2, 2, 1, 3, 5, 4, 5, 5] {
            intake.say(&device, Up::Telemetry, at(9, sequence, 1), telemetry(manifest, sequence)).await;
        }
        intake.finish().await;
        last = acks(&test.broker.take());
    }
    let served: Vec<u64> = windows(&test).await.iter().map(|w| w.telemetry.as_ref().unwrap().requests.served).collect();
    assert_eq!(served, [1, 2, 3, 4, 5]);
    assert_eq!(last.last(), Some(&(Stream::Telemetry, 9, 5)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_and_given_up_messages_move_on() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let manifest = Digest::of(b"m");
    let steps: [(Position, u64); 6] = [
        (at(1, 1, 1), 1),
        // Too early, until what is before it is given up.
        (at(1, 4, 1), 1),
        (at(1, 4, 4), 4),
        (at(1, 6, 6), 6),
        (at(2, 1, 1), 1),
        (at(2, 3, 1), 1),
    ];
    for (position, acknowledged) in steps {
        let intake = start(&test.app);
        intake.say(&device, Up::Telemetry, position, telemetry(manifest, 1)).await;
        intake.finish().await;
        assert_eq!(acks(&test.broker.take()), [(Stream::Telemetry, position.epoch, acknowledged)], "{position:?}");
    }
    let taken: Vec<_> = windows(&test).await.iter().map(|w| (w.position.epoch, w.position.sequence)).collect();
    assert_eq!(taken, [(1, 1), (1, 4), (1, 6), (2, 1)]);
    let key = position_key(&device, Stream::Telemetry);
    let standing = test.app.records.get::<StreamPosition>(Table::Positions, &key).await.unwrap().unwrap();
    assert_eq!(standing.value, StreamPosition { epoch: 2, contiguous: 1 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_before_it_is_stored() {
    let folder = app().await;
    let sled = SledStore::open(&folder.folder.path().join("observed")).unwrap();
    let store = Arc::new(ObservedStore::new(Arc::new(sled)));
    let broker = Arc::new(RecordingBroker::default());
    let records = Records::new(Arc::clone(&store) as Arc<dyn crate::store::Store>);
    let opened = open_over(folder.app.config.clone(), Arc::clone(&broker), records).await;
    let test = TestApp { app: Arc::new(opened), broker, folder: tempfile::tempdir().unwrap() };
    let device = test.enrol("dev-1", &[]).await;
    let mut pending = store.hold();
    let intake = start(&test.app);
    let window = || telemetry(Digest::of(b"m"), 3);

    intake.say(&device, Up::Telemetry, at(1, 1, 1), window()).await;
    let commit = pending.recv().await.unwrap();
    assert!(commit.touches(Table::Windows) && commit.touches(Table::Positions));
    assert!(test.broker.take().is_empty(), "acknowledged before the commit");
    // The disk fails: no acknowledgement, and the repeat is taken in as if it were the first.
    commit.decide(Fate::Fail);
    intake.say(&device, Up::Telemetry, at(1, 1, 1), window()).await;
    let commit = pending.recv().await.unwrap();
    assert!(test.broker.take().is_empty(), "acknowledged though the commit failed");
    assert!(commit.touches(Table::Windows));
    commit.decide(Fate::Go);
    let published = test.broker.take_until(|topic, _| topic.kind == Kind::Down(Down::Ack)).await;
    assert_eq!(acks(&published), [(Stream::Telemetry, 1, 1)]);
    drop(pending);
    intake.finish().await;
    assert_eq!(windows(&test).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_not_acknowledged_and_the_repeat_counts_once() {
    let TestApp { app, broker, folder } = app().await;
    let test = TestApp { app, broker: Arc::clone(&broker), folder };
    let device = test.enrol("dev-1", &[]).await;
    let TestApp { app, folder, .. } = test;
    let (config, path) = (app.config.clone(), folder.path().join("store"));
    drop(app);
    let window = || telemetry(Digest::of(b"m"), 3);
    for (reserve_bytes, acknowledged) in [(u64::MAX, 0), (1, 1)] {
        let store = SledStore::open_with_reserve(&path, reserve_bytes).unwrap();
        let app = Arc::new(open_over(config.clone(), Arc::clone(&broker), Records::new(Arc::new(store))).await);
        let intake = start(&app);
        intake.say(&device, Up::Telemetry, at(1, 1, 1), window()).await;
        intake.say(&device, Up::Event, at(1, 1, 1), event(DeviceEventKind::Started)).await;
        intake.finish().await;
        assert_eq!(acks(&broker.take()).len(), 2 * acknowledged);
        let stored = app.records.all::<WindowRecord>(Table::Windows, "").await.unwrap();
        assert_eq!(stored.len(), acknowledged);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_is_told_once_and_holds_nothing_up() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let manifest = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let intake = start(&test.app);
    for kind in Up::ALL {
        for garbage in [&b""[..], b"{}", b"\xff\xfe", b"[[[[[[", b"{\"position\":{}}", b"null"] {
            intake.bytes(&device, kind, garbage).await;
        }
    }
    // Readable enough to be acknowledged, or nothing behind it would ever come through.
    let newer = br#"{"position":{"epoch":1,"sequence":1,"oldest":1},"body":{"shape":"round"}}"#;
    intake.bytes(&device, Up::Telemetry, &newer[..]).await;
    intake.say(&device, Up::Telemetry, at(1, 2, 1), telemetry(manifest, 1)).await;
    // Sketches of another profile, and of no bundle at all.
    let mut window = SketchWindow::empty(telemetry(manifest, 0).key, &profile());
    window.columns.pop();
    intake.bytes(&device, Up::Sketch, Sequenced { position: at(1, 1, 1), body: window.clone() }.encode()).await;
    window.key.manifest = Digest::of(b"unknown");
    intake.bytes(&device, Up::Sketch, Sequenced { position: at(1, 2, 1), body: window }.encode()).await;
    // One of a later version, one that ends half-way, and a good one behind them.
    let good = |sequence| {
        let body = SketchWindow::empty(telemetry(manifest, 0).key, &profile());
        Sequenced { position: at(1, sequence, 1), body }.encode()
    };
    let mut later = good(3);
    later[0] = 9;
    intake.bytes(&device, Up::Sketch, later).await;
    let mut half = good(4);
    half.truncate(half.len() / 2);
    intake.bytes(&device, Up::Sketch, half).await;
    intake.bytes(&device, Up::Sketch, good(5)).await;
    intake.say(&device, Up::Event, at(1, 0, 0), event(DeviceEventKind::Started)).await;
    intake.finish().await;

    let last: BTreeMap<Stream, u64> = acks(&test.broker.take()).into_iter().map(|(s, _, n)| (s, n)).collect();
    assert_eq!(last, [(Stream::Telemetry, 2), (Stream::Sketch, 5)].into());
    let windows = windows(&test).await;
    assert_eq!((windows.len(), windows.iter().filter(|window| window.sketch.is_some()).count()), (2, 1));
    let events = history(&test).await;
    assert_eq!(events.iter().map(|e| e.kind.as_str()).collect::<Vec<_>>(), ["device.bad-message"]);
    let scrape = test.app.metrics.render(&crate::metrics::Snapshot::default());
    assert!(scrape.contains("kind=\"sketch\",outcome=\"refused\"} 10"), "{scrape}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_counts_as_evidence_of_what_ran() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let manifest = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    test.desire(&device, Some(manifest), 1).await;
    let intake = start(&test.app);
    intake.say(&device, Up::Event, at(1, 1, 1), event(DeviceEventKind::Crashed)).await;
    // A repeat, and a crash under a generation nobody knows.
    intake.say(&device, Up::Event, at(1, 1, 1), event(DeviceEventKind::Crashed)).await;
    let unknown = DeviceEvent { generation: 99, ..event(DeviceEventKind::Crashed) };
    intake.say(&device, Up::Event, at(1, 2, 1), unknown).await;
    intake.finish().await;
    let windows = windows(&test).await;
    assert_eq!(windows.len(), 1);
    assert!(windows[0].crash && windows[0].key.manifest == manifest);
    let events = history(&test).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].rollout.as_ref().map(ToString::to_string).as_deref(), Some("r1"));
    assert_eq!(events[1].rollout, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_follows_the_connection() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let presence = |online| serde_json::to_vec(&Presence { online }).unwrap();
    let gone = BrokerEvent::Disconnected(device.clone());
    let steps: [(BrokerEvent, bool); 4] = [
        (BrokerEvent::Subscribed(device.clone()), true),
        (gone, false),
        (BrokerEvent::Message { topic: Topic::up(&device, Up::Presence), payload: presence(true).into() }, true),
        (BrokerEvent::Message { topic: Topic::up(&device, Up::Presence), payload: presence(false).into() }, false),
    ];
    for (event, online) in steps {
        let intake = start(&test.app);
        intake.events.send(event.clone()).await.unwrap();
        intake.finish().await;
        assert_eq!(test.app.fleet.is_online(&device), online, "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_subscribes_gets_what_it_should_have() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let manifest = test.bundle("digits", "1.0.0", 10).await;
    test.desire(&device, Some(digest_of(&manifest)), 4).await;
    let intake = start(&test.app);
    intake.events.send(BrokerEvent::Subscribed(device.clone())).await.unwrap();
    intake.finish().await;
    let published = test.broker.take();
    let [(topic, payload)] = &published[..] else { panic!("{published:?}") };
    assert_eq!(*topic, Topic::down(&device, Down::Assignment));
    let delivery: AssignmentDelivery = serde_json::from_slice(payload).unwrap();
    let root = muster_shared::trust::TrustedRoot::first(test.root(), None).unwrap();
    let assignment = root.verify_assignment(&delivery.assignment, &device, crate::clock::now_ms()).unwrap();
    assert_eq!((assignment.generation, assignment.manifest), (4, Some(digest_of(&manifest))));
    let verified = root.verify_manifest(&delivery.manifest.unwrap(), crate::clock::now_ms()).unwrap();
    assert_eq!(verified.manifest, manifest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_the_revoked_are_not_listened_to() {
    let test = app().await;
    let stranger = DeviceId::new("stranger").unwrap();
    let intake = start(&test.app);
    intake.say(&stranger, Up::Event, at(1, 1, 1), event(DeviceEventKind::Started)).await;
    intake.events.send(BrokerEvent::Subscribed(stranger.clone())).await.unwrap();
    intake.finish().await;
    assert!(test.broker.take().is_empty() && history(&test).await.is_empty());
    // It was revoked while it was connected: now it no longer is.
    let cut_off = async {
        while !test.broker.disconnected().contains(&stranger) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), cut_off).await.expect("it is cut off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_revoked_in_the_moment_it_was_let_in_is_cut_off() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    test.revoke(&device).await;
    let intake = start(&test.app);
    intake.events.send(BrokerEvent::Subscribed(device.clone())).await.unwrap();
    intake.finish().await;
    let cut_off = async {
        while test.broker.disconnected() != [device.clone()] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), cut_off).await.expect("it is cut off");
    assert!(!test.app.fleet.is_online(&device) && test.broker.take().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_devices_at_once_lose_nothing() {
    let test = app().await;
    let mut devices = Vec::new();
    for n in 0..40 {
        devices.push(test.enrol(&format!("dev-{n}"), &[]).await);
    }
    let intake = start(&test.app);
    for sequence in 1..=25 {
        for device in &devices {
            intake.say(device, Up::Telemetry, at(1, sequence, 1), telemetry(Digest::of(b"m"), sequence)).await;
        }
    }
    intake.finish().await;
    let mut last: BTreeMap<DeviceId, u64> = BTreeMap::new();
    for (topic, payload) in test.broker.take() {
        let ack: Ack = serde_json::from_slice(&payload).unwrap();
        let before = last.insert(topic.device, ack.sequence);
        assert!(before.is_none_or(|before| before < ack.sequence));
    }
    assert_eq!((last.len(), last.values().all(|n| *n == 25)), (40, true));
    assert_eq!(windows(&test).await.len(), 1_000);
}
