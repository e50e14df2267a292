use muster_rollout::{BundleFacts, DeviceFacts, Rollout};
use muster_shared::bundle::Requirements;
use muster_shared::ids::RolloutId;
use muster_shared::messages::{
    HeldBack, InstalledBundle, Position, RequestCounts, Resources, Sequenced, Stream, TelemetryWindow, UpdateReport,
    UpdateState, WindowKey,
};
use muster_shared::rollout::{RolloutSpec, WaveSpec};
use muster_shared::sketch::{LatencySketch, SketchWindow};

use super::*;
use crate::store::records::{ReportRecord, WindowRecord, window_key};
use crate::store::{Expect, Records, Table};
use crate::testing::{TestApp, app, device_record, digest_of, profile};

fn report(attribute: &str) -> StateReport {
    StateReport { attributes: [("arch".to_owned(), attribute.to_owned())].into(), ..StateReport::default() }
}

fn names(views: &[DeviceView]) -> Vec<&str> {
    views.iter().map(|view| view.id.as_str()).collect()
}

fn behind(fleet: &FleetIndex) -> Vec<DeviceId> {
    fleet.behind().into_iter().map(|(device, _)| device).collect()
}

fn rollout(selector: &str) -> Rollout {
    let wave = WaveSpec::of("100%".parse().unwrap(), 1, 2);
    let spec = RolloutSpec::of("digits@1.0.0".parse().unwrap(), selector.parse().unwrap(), vec![wave]);
    let bundle = BundleFacts {
        manifest: Digest::of(b"m"),
        bundle: spec.bundle.clone(),
        requirements: Requirements::default(),
        reference_predictions: BTreeMap::new(),
        track: Default::default(),
        features: Default::default(),
    };
    Rollout::new(RolloutId::new("r1").unwrap(), spec, bundle, 1_000).unwrap()
}

fn telemetry(device: &DeviceId, sequence: u64, received_at_ms: u64) -> WindowRecord {
    let key = WindowKey { manifest: Digest::of(b"m"), generation: 3, start_ms: 0, duration_ms: 1 };
    WindowRecord {
        device: device.clone(),
        received_at_ms,
        position: Position { epoch: 1, sequence, oldest: 1 },
        key,
        telemetry: Some(TelemetryWindow {
            key,
            requests: RequestCounts { served: 10, failed: 1, ..RequestCounts::default() },
            latency_us: LatencySketch::default(),
            resources: Resources::default(),
            comparison: None,
            objectives: Default::default(),
            numbers: Default::default(),
            program: None,
        }),
        sketch: None,
        crash: false,
        program: None,
    }
}

async fn store(test: &TestApp, stream: Stream, record: &WindowRecord) {
    let key = window_key(record.received_at_ms, &record.device, stream, &record.position);
    let change = Records::put(Table::Windows, key, Expect::Absent, record).unwrap();
    test.app.records.commit(vec![change]).await.unwrap();
}

#[tokio::test]
async fn devices_are_found_by_label_attribute_and_page() {
    let test = app().await;
    for (name, site) in [("a", "lyon"), ("b", "oslo"), ("c", "lyon")] {
        test.enrol(name, &[("site", site)]).await;
    }
    let fleet = &test.app.fleet;
    fleet.update_report(&DeviceId::new("b").unwrap(), report("armv7"));
    let find = |selector: &str, after: Option<&str>, limit| {
        let after = after.map(|name| DeviceId::new(name).unwrap());
        let views = fleet.views(&selector.parse().unwrap(), after.as_ref(), limit);
        names(&views).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(find("*", None, 10), ["a", "b", "c"]);
    assert_eq!(find("*", Some("a"), 1), ["b"]);
    assert_eq!(find("site=lyon", None, 10), ["a", "c"]);
    assert_eq!(find("arch=armv7", None, 10), ["b"]);
    assert_eq!(find("id=c", None, 10), ["c"]);
    assert_eq!(find("*", Some("c"), 10), [] as [&str; 0]);
    assert_eq!(fleet.label(&DeviceId::new("b").unwrap(), "arch").as_deref(), Some("armv7"));
    assert!(fleet.view(&DeviceId::new("nobody").unwrap()).is_none());
}

#[tokio::test]
async fn an_older_record_never_replaces_a_newer_one() {
    let test = app().await;
    let device = test.enrol("dev-1", &[("site", "lyon")]).await;
    let digest = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    test.desire(&device, Some(digest), 4).await;
    let older: DeviceRecord = DeviceRecord {
        labels: BTreeMap::new(),
        desired: None,
        ..test.app.records.get(Table::Devices, "dev-1").await.unwrap().unwrap().value
    };
    test.app.fleet.update_record(&older, 1);
    let view = test.app.fleet.view(&device).unwrap();
    assert_eq!(view.labels["site"], "lyon");
    let desired = view.desired.unwrap();
    assert_eq!((desired.generation, desired.bundle), (4, Some("digits@1.0.0".parse().unwrap())));
}

#[tokio::test]
async fn presence_is_known_from_what_is_heard() {
    let test = app().await;
    let (device, stranger) = (test.enrol("dev-1", &[]).await, DeviceId::new("stranger").unwrap());
    let fleet = &test.app.fleet;
    assert_eq!(fleet.counts(), FleetCounts { known: 1, online: 0 });
    assert!(fleet.set_online(&device, true, 5_000) && !fleet.set_online(&device, true, 6_000));
    assert!(!fleet.set_online(&stranger, true, 5_000));
    assert_eq!(fleet.counts(), FleetCounts { known: 1, online: 1 });
    let facts = |heard_since_ms| fleet.facts(&rollout("*"), |_| None, heard_since_ms).devices[&device].clone();
    assert!(facts(6_000).online);
    assert!(!facts(6_001).online, "silent for too long");
    assert!(fleet.set_online(&device, false, 7_000));
    let facts = facts(0);
    assert_eq!((facts.online, facts.last_seen_ms), (false, Some(6_000)));
}

#[tokio::test]
async fn a_device_that_said_it_waits_is_not_away() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let fleet = &test.app.fleet;
    let is_online = || fleet.facts(&rollout("*"), |_| None, 6_001).devices[&device].online;
    let say = |held_back| {
        let update = UpdateReport { state: UpdateState::Fetching, held_back, ..UpdateReport::default() };
        fleet.update_report(&device, StateReport { update, ..StateReport::default() });
    };
    fleet.set_online(&device, true, 6_000);
    say(None);
    assert!(!is_online(), "it should have said something since");
    for why in [HeldBack::QuietHours { until_minute: 360 }, HeldBack::MeteredLink] {
        say(Some(why));
        assert!(is_online(), "{why:?}");
    }
    fleet.set_online(&device, false, 7_000);
    assert!(!is_online(), "it hung up");
}

#[tokio::test]
async fn connected_devices_that_have_not_accepted_are_behind() {
    let test = app().await;
    let fleet = &test.app.fleet;
    let device = test.enrol("dev-1", &[]).await;
    test.enrol("dev-2", &[]).await;
    test.desire(&device, None, 3).await;
    assert!(fleet.behind().is_empty(), "not connected");
    fleet.set_online(&device, true, 1);
    assert_eq!(behind(fleet), std::slice::from_ref(&device));
    fleet.update_report(&device, StateReport { generation: 3, ..StateReport::default() });
    assert!(fleet.behind().is_empty());
    // What a director told it that is trusted no more has to be said again, whatever its generation.
    fleet.update_report(&device, StateReport { generation: 3, awaits_director: true, ..report("x86_64") });
    assert_eq!(behind(fleet), std::slice::from_ref(&device));
}

#[tokio::test]
async fn a_rollout_sees_the_devices_it_means_and_those_it_has() {
    let test = app().await;
    for (name, site) in [("a", "lyon"), ("b", "oslo")] {
        test.enrol(name, &[("site", site)]).await;
    }
    let seen = |rollout: &Rollout| {
        let fleet = test.app.fleet.facts(rollout, |_| None, 0);
        fleet.devices.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(seen(&rollout("site=lyon")), ["a"]);
    assert_eq!(seen(&rollout("*")), ["a", "b"]);
}

#[tokio::test]
async fn a_change_of_a_device_is_seen_at_the_next_look_and_not_in_what_was_seen_before() {
    let test = app().await;
    let device = test.enrol("a", &[("site", "lyon")]).await;
    let (fleet, rollout) = (&test.app.fleet, rollout("*"));
    let seen = || fleet.facts(&rollout, |_| None, 0).devices[&device].clone();
    let window = || Observation::of_telemetry(telemetry(&device, 1, 0).telemetry.as_ref().unwrap(), 2_000);
    let nothing = seen();
    fleet.update_report(&device, report("armv7"));
    fleet.observe(&device, window());
    let reported = seen();
    let record = DeviceRecord { labels: [("site".to_owned(), "oslo".to_owned())].into(), ..device_record("a") };
    fleet.update_record(&record, 2);
    fleet.observe(&device, window());
    let moved = seen();
    let served = |facts: &DeviceFacts| facts.evidence.iter().map(|seen| seen.requests.served).collect::<Vec<_>>();
    for (facts, site, arch, requests) in [
        (nothing, "lyon", None, vec![]),
        (reported, "lyon", Some("armv7"), vec![10]),
        (moved, "oslo", Some("armv7"), vec![20]),
    ] {
        assert_eq!((facts.labels["site"].as_str(), facts.attributes.get("arch").map(String::as_str)), (site, arch));
        assert_eq!((facts.reported.is_some(), served(&facts)), (arch.is_some(), requests));
    }
}

#[tokio::test]
async fn what_another_rollout_holds_comes_without_evidence() {
    let test = app().await;
    let fleet = &test.app.fleet;
    for name in ["a", "b"] {
        let device = test.enrol(name, &[]).await;
        let window = telemetry(&device, 1, 0).telemetry.unwrap();
        fleet.observe(&device, Observation::of_telemetry(&window, 2_000));
    }
    let other = RolloutId::new("r9").unwrap();
    let seen = fleet.facts(&rollout("*"), |device| (device.as_str() == "b").then(|| other.clone()), 0);
    let of = |name| &seen.devices[&DeviceId::new(name).unwrap()];
    assert_eq!((&of("a").held_by, of("a").evidence.len()), (&None, 1));
    assert_eq!((&of("b").held_by, of("b").evidence.len()), (&Some(other.clone()), 0));
}

#[tokio::test]
async fn everything_is_there_again_after_a_start() {
    let test = app().await;
    let device = test.enrol("dev-1", &[("site", "lyon")]).await;
    let manifest = test.bundle("digits", "1.0.0", 10).await;
    let digest = digest_of(&manifest);
    test.desire(&device, Some(digest), 2).await;
    let running = InstalledBundle { manifest: digest, bundle: manifest.bundle(), generation: 2 };
    let record =
        ReportRecord { reported: StateReport { running: Some(running), ..report("x86_64") }, received_at_ms: 9_000 };
    let mut sketch =
        SketchWindow::empty(WindowKey { manifest: digest, generation: 2, start_ms: 0, duration_ms: 1 }, &profile());
    sketch.columns[1].add(&profile().columns[1], 1.0);
    sketch.columns[1].add(&profile().columns[1], 7.0);
    let position = Position { epoch: 1, sequence: 1, oldest: 1 };
    let sketch = WindowRecord {
        telemetry: None,
        key: sketch.key,
        sketch: Some(Sequenced { position, body: sketch }.encode()),
        ..telemetry(&device, 1, 2_000)
    };
    let crash = WindowRecord { telemetry: None, crash: true, ..telemetry(&device, 1, 2_000) };
    let rollout = rollout("*");
    let changes = vec![
        Records::put(Table::Reports, "dev-1", Expect::Absent, &record).unwrap(),
        Records::put(Table::Rollouts, "r1", Expect::Absent, &rollout).unwrap(),
    ];
    test.app.records.commit(changes).await.unwrap();
    // One window before the rollout asked for evidence, three after.
    store(&test, Stream::Telemetry, &telemetry(&device, 1, 999)).await;
    store(&test, Stream::Telemetry, &telemetry(&device, 2, 1_000)).await;
    store(&test, Stream::Sketch, &sketch).await;
    store(&test, Stream::Event, &crash).await;

    let fleet = FleetIndex::load(&test.app.records).await.unwrap();
    let view = fleet.view(&device).unwrap();
    assert_eq!((view.online, view.last_seen_ms, view.reported), (false, Some(9_000), Some(record.reported)));
    assert_eq!(view.desired.unwrap().bundle, Some(manifest.bundle()));
    assert_eq!(fleet.manifest_of(&device, 2), Some(digest));
    assert_eq!(fleet.manifest_of(&device, 9), None);
    let facts = fleet.facts(&rollout, |_| None, 0).devices.remove(&device).unwrap();
    let of = |generation| facts.evidence.iter().find(|e| e.generation == generation).unwrap();
    assert_eq!((of(3).reports, of(3).requests.served, of(3).crashes), (1, 10, 1));
    let predictions: BTreeMap<String, u64> = [("dog".to_owned(), 1), ("(other)".to_owned(), 1)].into();
    assert_eq!(of(2).predictions, [("class".to_owned(), predictions)].into());
}

#[tokio::test]
async fn what_was_measured_in_a_soak_stands_apart_after_a_start() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let mut rollout = serde_json::to_value(rollout("*")).unwrap();
    let blocks = serde_json::json!([{ "canary": "dev-2", "controls": ["dev-1"] }]);
    let gate = serde_json::json!({ "blocks": blocks, "judged": null, "waived_by": null });
    for (key, value) in [("started_at_ms", 1_000.into()), ("soak_from_ms", 2_000.into()), ("gate", gate)] {
        rollout["waves"][0][key] = value;
    }
    let rollout: Rollout = serde_json::from_value(rollout).unwrap();
    assert_eq!((rollout.evidence_since_ms(), rollout.scored_since_ms()), (1_000, Some(2_000)));
    test.app
        .records
        .commit(vec![Records::put(Table::Rollouts, "r1", Expect::Absent, &rollout).unwrap()])
        .await
        .unwrap();
    // Two before the soak, two in it, all of them old enough to be added up when the last one is read.
    for (sequence, received_at_ms) in [(1, 1_500), (2, 1_600), (3, 2_500), (4, 2_600), (5, 200_000)] {
        store(&test, Stream::Telemetry, &telemetry(&device, sequence, received_at_ms)).await;
    }
    let fleet = FleetIndex::load(&test.app.records).await.unwrap();
    let facts = fleet.facts(&rollout, |_| None, 0).devices.remove(&device).unwrap();
    let reports = |evidence: &[muster_rollout::Evidence]| evidence.iter().map(|e| e.reports).sum::<u32>();
    assert_eq!((reports(&facts.evidence), reports(&facts.soak)), (5, 3));
}

#[tokio::test]
async fn documents_that_make_no_sense_are_counted_and_the_rest_is_there() {
    let test = app().await;
    test.enrol("dev-1", &[]).await;
    let report = ReportRecord { reported: StateReport::default(), received_at_ms: 7 };
    let bundle: BundleRef = "digits@1.0.0".parse().unwrap();
    let changes = vec![
        Records::put(Table::Reports, "dev-1", Expect::Absent, &report).unwrap(),
        Records::put(Table::Reports, "No Device", Expect::Absent, &report).unwrap(),
        Records::put(Table::Reports, "dev-9", Expect::Absent, &report).unwrap(),
        Records::put(Table::Meta, "manifest/xyz", Expect::Absent, &bundle).unwrap(),
    ];
    test.app.records.commit(changes).await.unwrap();
    let (fleet, left_out) = FleetIndex::load_usable(&test.app.records).await.unwrap();
    assert_eq!(left_out.count(), 3);
    assert_eq!(fleet.view(&DeviceId::new("dev-1").unwrap()).unwrap().last_seen_ms, Some(7));
}
