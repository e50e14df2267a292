//! Rollouts from wish to end, with a broker that remembers.

mod analysis;
mod people;
mod programs;
mod scale;
mod stop;
mod updates;
mod urgency;
mod versions;

use std::collections::BTreeSet;

use bytes::Bytes;
use muster_rollout::{OperatorAction, Rollout};
use muster_shared::bundle::Manifest;
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::messages::{
    AssignmentDelivery, InstalledBundle, RequestCounts, Resources, StateReport, TelemetryWindow, UpdateReport,
    UpdateState, WindowKey,
};
use muster_shared::protocol::PROTOCOL;
use muster_shared::rollout::{Limits, RolloutSpec, RolloutStatus, RolloutView, WaveSpec};
use muster_shared::sketch::LatencySketch;
use muster_shared::topics::{Down, Kind, Topic};
use muster_shared::trust::{Assignment, DeliveryPolicy, MeteredUse, Track, TrustedRoot, WatchPolicy};
use tokio::sync::mpsc;

use super::*;
use crate::fleet::Observation;
use crate::store::observed::{Fate, ObservedStore, Pending};
use crate::store::records::DeviceRecord;
use crate::store::{Records, SledStore, Store, Stored, Table};
use crate::testing::{RecordingBroker, TestApp, app, digest_of, open_over};

fn spec(bundle: &Manifest, selector: &str, waves: &[&str]) -> RolloutSpec {
    let wave = |size: &&str| WaveSpec::of(size.parse().unwrap(), 0, 3_600_000);
    RolloutSpec {
        limits: Limits { min_reports: 1, min_requests: 1, ..Limits::default() },
        watch: WatchPolicy { probation_ms: 7, ..WatchPolicy::default() },
        delivery: DeliveryPolicy { ignore_quiet_hours: true, ..DeliveryPolicy::default() },
        ..RolloutSpec::of(bundle.bundle(), selector.parse().unwrap(), waves.iter().map(wave).collect())
    }
}

/// A fleet of devices that are connected and have said so.
async fn fleet(test: &TestApp, names: &[&str]) -> Vec<DeviceId> {
    let mut devices = Vec::new();
    for name in names {
        let device = test.enrol(name, &[]).await;
        connect(test, &device);
        devices.push(device);
    }
    devices
}

fn connect(test: &TestApp, device: &DeviceId) {
    test.app.fleet.set_online(device, true, clock::now_ms());
    test.app.fleet.update_report(device, StateReport { protocol: PROTOCOL, ..StateReport::default() });
}

/// The device does as it was told, and serves.
fn comply(test: &TestApp, assignment: &Assignment, bundle: &Manifest, served: u64, failed: u64) {
    let manifest = assignment.manifest.unwrap();
    let generation = assignment.generation;
    let installed = InstalledBundle { manifest, bundle: bundle.bundle(), generation };
    let update =
        UpdateReport { state: UpdateState::Committed, generation, manifest: Some(manifest), ..UpdateReport::default() };
    let report = StateReport {
        generation,
        update,
        running: Some(installed.clone()),
        committed: Some(installed),
        protocol: PROTOCOL,
        ..StateReport::default()
    };
    test.app.fleet.update_report(&assignment.device, report);
    let mut latency_us = LatencySketch::default();
    (0..served).for_each(|_| latency_us.add(100));
    let window = TelemetryWindow {
        key: WindowKey { manifest, generation, start_ms: 0, duration_ms: 1 },
        requests: RequestCounts { served, failed, ..RequestCounts::default() },
        latency_us,
        resources: Resources::default(),
        comparison: None,
        objectives: Default::default(),
        numbers: Default::default(),
        program: None,
    };
    let observation = Observation::of_telemetry(&window, clock::now_ms());
    test.app.fleet.observe(&assignment.device, observation);
}

/// The assignments among what was published, verified as a device would.
fn assignments(test: &TestApp, published: &[(Topic, Bytes)]) -> Vec<Assignment> {
    let root = TrustedRoot::first(test.root(), None).unwrap();
    published
        .iter()
        .filter(|(topic, _)| topic.kind == Kind::Down(Down::Assignment))
        .map(|(topic, payload)| {
            let delivery: AssignmentDelivery = serde_json::from_slice(payload).unwrap();
            let assignment = root.verify_assignment(&delivery.assignment, &topic.device, clock::now_ms()).unwrap();
            let manifest = delivery.manifest.map(|m| root.verify_any_manifest(&m, clock::now_ms()).unwrap().digest);
            assert_eq!(manifest, assignment.manifest);
            assignment
        })
        .collect()
}

/// Plans until nothing is sent any more and `wanted` holds; gives what was assigned on the way.
async fn plan_until(test: &TestApp, id: &RolloutId, wanted: impl Fn(&RolloutView) -> bool) -> Vec<Assignment> {
    let mut all = Vec::new();
    let reached = async {
        loop {
            pass::pass(&test.app).await;
            all.extend(assignments(test, &test.broker.take()));
            if wanted(&view(&test.app, id).await.unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
    if reached.is_err() {
        panic!("stuck at {:#?}", view(&test.app, id).await.unwrap());
    }
    all
}

fn is(status: RolloutStatus) -> impl Fn(&RolloutView) -> bool {
    move |view| view.status == status
}

async fn desired(test: &TestApp, device: &DeviceId) -> Option<(Option<Digest>, u64)> {
    let record = test.app.records.get::<DeviceRecord>(Table::Devices, device.as_str()).await.unwrap().unwrap().value;
    record.desired.map(|desired| (desired.manifest, desired.generation))
}

async fn kinds(test: &TestApp, id: &RolloutId) -> Vec<String> {
    let page = test.app.events.list(0, None, Some(id), 1_000).await.unwrap();
    page.events.into_iter().map(|event| event.kind).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_reaches_its_devices_wave_by_wave_and_ends() {
    let test = app().await;
    let devices = fleet(&test, &["a", "b", "c"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["1", "100%"]), "alice", None).await.unwrap().id;
    assert_eq!(id.as_str(), "r1");

    let first = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    let [canary] = &first[..] else { panic!("{first:?}") };
    assert_eq!((canary.manifest, canary.generation, canary.watch.probation_ms), (Some(digest_of(&bundle)), 1, 7));
    assert!(canary.delivery.ignore_quiet_hours);
    assert_eq!(desired(&test, &canary.device).await, Some((Some(digest_of(&bundle)), 1)));
    let others: Vec<_> = devices.iter().filter(|device| **device != canary.device).collect();
    for device in &others {
        assert_eq!(desired(&test, device).await, None);
    }

    comply(&test, canary, &bundle, 5, 0);
    let second = plan_until(&test, &id, |view| view.current_wave == 1 && view.waves[1].devices.len() == 2).await;
    let told: BTreeSet<_> = second.iter().map(|assignment| &assignment.device).collect();
    assert_eq!(told, others.iter().copied().collect());
    second.iter().for_each(|assignment| comply(&test, assignment, &bundle, 5, 0));
    comply(&test, canary, &bundle, 5, 0);
    let more = plan_until(&test, &id, is(RolloutStatus::Completed)).await;
    assert!(more.is_empty(), "{more:?}");

    let kinds = kinds(&test, &id).await;
    for kind in ["created", "running", "wave", "assigned", "verdict", "completed"] {
        assert!(kinds.contains(&format!("rollout.{kind}")), "{kind} in {kinds:?}");
    }
    assert_eq!(statuses(&test.app).await.unwrap(), [RolloutStatus::Completed]);
    let stored = test.app.records.get::<Rollout>(Table::Rollouts, "r1").await.unwrap().unwrap();
    assert_eq!(stored.value.verdicts.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_fails_goes_back() {
    let test = app().await;
    let devices = fleet(&test, &["a"]).await;
    let (old, new) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    let id = create(&test.app, spec(&old, "*", &["100%"]), "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    comply(&test, &told[0], &old, 5, 0);
    plan_until(&test, &id, is(RolloutStatus::Completed)).await;

    let unhurried =
        DeliveryPolicy { max_download_bytes_per_s: Some(1_000), metered: MeteredUse::Never, ignore_quiet_hours: false };
    let careful = RolloutSpec { delivery: unhurried, ..spec(&new, "*", &["100%"]) };
    let id = create(&test.app, careful, "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    assert_eq!((told[0].manifest, told[0].generation), (Some(digest_of(&new)), 2));
    assert_eq!(told[0].delivery, unhurried);
    comply(&test, &told[0], &new, 10, 9);
    let back = plan_until(&test, &id, |view| view.status == RolloutStatus::RollingBack).await;
    let back = if back.is_empty() {
        pass::pass(&test.app).await;
        assignments(&test, &test.broker.take())
    } else {
        back
    };
    assert_eq!((back[0].manifest, back[0].generation), (Some(digest_of(&old)), 3));
    let at_once =
        DeliveryPolicy { max_download_bytes_per_s: None, metered: MeteredUse::Allowed, ignore_quiet_hours: true };
    assert_eq!(back[0].delivery, at_once);
    assert_eq!(desired(&test, &devices[0]).await, Some((Some(digest_of(&old)), 3)));
    comply(&test, &back[0], &old, 0, 0);
    plan_until(&test, &id, is(RolloutStatus::RolledBack)).await;
    let kinds = kinds(&test, &id).await;
    let at = |kind: &str| kinds.iter().position(|k| k == kind).unwrap_or_else(|| panic!("{kind} in {kinds:?}"));
    assert!(
        at("rollout.verdict") < at("rollout.rolling_back") && at("rollout.rolling_back") < at("rollout.rolled_back")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_told_once_until_it_is_due_again() {
    let test = app().await;
    fleet(&test, &["a"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap().id;
    plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    for _ in 0..20 {
        pass::pass(&test.app).await;
    }
    assert!(test.broker.take().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_are_away_are_told_when_they_return() {
    let test = app().await;
    let device = test.enrol("a", &[]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(desired(&test, &device).await, Some((Some(digest_of(&bundle)), 1)));
    connect(&test, &device);
    reissue(&test.app, &device).await;
    let told = assignments(&test, &test.broker.take());
    assert_eq!((told.len(), told[0].generation), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_return_after_an_abort_are_not_told() {
    let test = app().await;
    let (away, there) = (test.enrol("a", &[]).await, test.enrol("b", &[]).await);
    connect(&test, &there);
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| view.waves[0].devices.len() == 2).await;
    assert_eq!(told.iter().map(|assignment| &assignment.device).collect::<Vec<_>>(), [&there]);
    comply(&test, &told[0], &bundle, 0, 0);
    act(&test.app, &id, OperatorAction::Abort, "bob", None).await.unwrap();
    connect(&test, &away);
    reissue(&test.app, &away).await;
    pass::pass(&test.app).await;
    assert!(test.broker.take().is_empty(), "an assignment of a stopped rollout was sent");
    // Who has taken it up keeps it, and may hear of it again.
    reissue(&test.app, &there).await;
    assert_eq!(assignments(&test, &test.broker.take()).len(), 1);
    act(&test.app, &id, OperatorAction::Rollback, "bob", None).await.unwrap();
    let told = plan_until(&test, &id, is(RolloutStatus::RollingBack)).await;
    assert!(told.iter().all(|assignment| assignment.manifest.is_none() && assignment.generation == 2), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_and_not_sent_is_sent_after_a_restart() {
    let test = app().await;
    let device = fleet(&test, &["a"]).await.remove(0);
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap().id;
    plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    // The controller dies here: everything in memory is gone, and so is what was on its way.
    let broker = Arc::new(RecordingBroker::default());
    let again = open_over(test.app.config.clone(), Arc::clone(&broker), test.app.records.clone()).await;
    let again = TestApp { app: Arc::new(again), broker, folder: test.folder };
    requests::find_active(&again.app).await.unwrap();
    pass::pass(&again.app).await;
    assert!(again.broker.take().is_empty(), "nobody is connected yet");
    again.app.fleet.set_online(&device, true, clock::now_ms());
    pass::pass(&again.app).await;
    let told = assignments(&again, &again.broker.take());
    assert_eq!((told.len(), told[0].generation), (1, 1));
    comply(&again, &told[0], &bundle, 5, 0);
    plan_until(&again, &id, is(RolloutStatus::Completed)).await;
}

/// A controller over a store whose commits can be held up.
async fn observed() -> (TestApp, Arc<ObservedStore>) {
    let folder = tempfile::tempdir().unwrap();
    let config = app().await.app.config.clone();
    let sled = SledStore::open(&folder.path().join("observed")).unwrap();
    let store = Arc::new(ObservedStore::new(Arc::new(sled)));
    let records = Records::new(Arc::clone(&store) as Arc<dyn Store>);
    let broker = Arc::new(RecordingBroker::default());
    let opened = open_over(config, Arc::clone(&broker), records).await;
    (TestApp { app: Arc::new(opened), broker, folder }, store)
}

/// A rollout to one device, whose plan is made and about to be stored.
struct InTheMaking {
    test: TestApp,
    device: DeviceId,
    id: RolloutId,
    /// What is about to be stored next.
    pending: mpsc::UnboundedReceiver<Pending>,
    planner: JoinHandle<Option<u64>>,
    plan: Pending,
}

async fn plan_in_the_making() -> InTheMaking {
    let (test, store) = observed().await;
    let device = fleet(&test, &["a"]).await.remove(0);
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap().id;

    let mut pending = store.hold();
    let planner = {
        let app = Arc::clone(&test.app);
        tokio::spawn(async move { pass::pass(&app).await })
    };
    let plan = pending.recv().await.unwrap();
    assert!(plan.touches(Table::Rollouts));
    InTheMaking { test, device, id, pending, planner, plan }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_wins_over_a_plan_in_the_making() {
    let InTheMaking { test, device, id, mut pending, planner, plan } = plan_in_the_making().await;
    let operator = {
        let (app, id) = (Arc::clone(&test.app), id.clone());
        tokio::spawn(async move { act(&app, &id, OperatorAction::Abort, "bob", Some("smoke")).await })
    };
    let abort = pending.recv().await.unwrap();
    abort.decide(Fate::Go);
    let view = operator.await.unwrap().unwrap();
    assert_eq!(view.status, RolloutStatus::Stopped);
    assert!(view.status_reason.contains("bob") && view.status_reason.contains("smoke"), "{}", view.status_reason);
    plan.decide(Fate::Go);
    planner.await.unwrap();
    drop(pending);
    assert!(assignments(&test, &test.broker.take()).is_empty(), "a plan that was overtaken was acted upon");
    assert_eq!(desired(&test, &device).await, None);
    for _ in 0..3 {
        pass::pass(&test.app).await;
    }
    assert!(assignments(&test, &test.broker.take()).is_empty());
    let refused = act(&test.app, &id, OperatorAction::Resume, "bob", None).await;
    assert!(matches!(refused, Err(ExecutorError::Action(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_record_changed_meanwhile_is_planned_again() {
    let test = app().await;
    let device = fleet(&test, &["a"]).await.remove(0);
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap().id;
    // Another hand has moved the generation on, and the fleet in memory does not know yet.
    let stored: Stored<DeviceRecord> = test.app.records.get(Table::Devices, "a").await.unwrap().unwrap();
    test.desire(&device, None, 8).await;
    let newer = test.app.fleet.desired(&device, Track::Model).unwrap();
    assert_eq!(newer.generation, 8);
    assert_eq!(stored.version, 1);
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    assert!(told.iter().all(|assignment| assignment.generation > 8), "{told:?}");
    assert_eq!(desired(&test, &device).await, Some((Some(digest_of(&bundle)), 9)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_belongs_to_one_rollout_at_a_time() {
    let test = app().await;
    let device = fleet(&test, &["a"]).await.remove(0);
    let (one, two) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    let first = create(&test.app, spec(&one, "*", &["100%"]), "alice", None).await.unwrap().id;
    plan_until(&test, &first, |view| !view.waves[0].devices.is_empty()).await;
    let second = create(&test.app, spec(&two, "*", &["100%"]), "alice", None).await.unwrap().id;
    for _ in 0..5 {
        pass::pass(&test.app).await;
    }
    assert_eq!(desired(&test, &device).await, Some((Some(digest_of(&one)), 1)));
    let view = view(&test.app, &second).await.unwrap();
    assert!(view.waves[0].devices.is_empty(), "{view:#?}");
    let why: Vec<String> = view.waiting.iter().map(ToString::to_string).collect();
    assert!(why.iter().any(|why| why.contains("held by another rollout: a")), "{why:?}");
    act(&test.app, &first, OperatorAction::Abort, "bob", None).await.unwrap();
    let told = plan_until(&test, &second, |view| !view.waves[0].devices.is_empty()).await;
    assert_eq!((told.len(), told[0].manifest), (1, Some(digest_of(&two))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_makes_one_rollout() {
    let test = app().await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let wish = spec(&bundle, "*", &["100%"]);
    let first = create(&test.app, wish.clone(), "alice", Some("k")).await.unwrap();
    let again = create(&test.app, wish.clone(), "alice", Some("k")).await.unwrap();
    assert_eq!(first.id, again.id);
    let other = create(&test.app, spec(&bundle, "site=lyon", &["100%"]), "alice", Some("k")).await;
    assert!(matches!(other, Err(ExecutorError::KeyReused(id)) if id == first.id));
    // Another person's key is another key, and no key is none.
    assert_eq!(create(&test.app, wish.clone(), "bob", Some("k")).await.unwrap().id.as_str(), "r2");
    assert_eq!(create(&test.app, wish.clone(), "alice", None).await.unwrap().id.as_str(), "r3");
    let racing = (0..8).map(|_| {
        let (app, wish) = (Arc::clone(&test.app), wish.clone());
        tokio::spawn(async move { create(&app, wish, "alice", Some("race")).await.unwrap().id })
    });
    let ids: Vec<_> = racing.collect();
    let mut made = BTreeSet::new();
    for id in ids {
        made.insert(id.await.unwrap());
    }
    assert_eq!(made.len(), 1, "{made:?}");

    let ids = |views: Vec<RolloutView>| views.into_iter().map(|view| view.id.to_string()).collect::<Vec<_>>();
    for _ in 4..11 {
        create(&test.app, wish.clone(), "alice", None).await.unwrap();
    }
    assert_eq!(ids(views(&test.app, None, 2).await.unwrap()), ["r1", "r2"]);
    let after = RolloutId::new("r9").unwrap();
    assert_eq!(ids(views(&test.app, Some(&after), 10).await.unwrap()), ["r10", "r11"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wishes_that_cannot_be_are_refused() {
    let test = app().await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let unknown = RolloutSpec { bundle: "digits@9.9.9".parse().unwrap(), ..spec(&bundle, "*", &["100%"]) };
    let refused = create(&test.app, unknown, "alice", None).await;
    assert!(matches!(refused, Err(ExecutorError::UnknownBundle(_))), "{refused:?}");
    let refused = create(&test.app, spec(&bundle, "*", &["1"]), "alice", None).await;
    assert!(matches!(refused, Err(ExecutorError::Spec(_))), "{refused:?}");
    let nobody = RolloutId::new("r7").unwrap();
    assert!(matches!(view(&test.app, &nobody).await, Err(ExecutorError::UnknownRollout(_))));
    let refused = act(&test.app, &nobody, OperatorAction::Abort, "alice", None).await;
    assert!(matches!(refused, Err(ExecutorError::UnknownRollout(_))));
    assert!(views(&test.app, None, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_plan_pauses_its_rollout() {
    let test = app().await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap().id;
    let mut stored: Stored<Rollout> = test.app.records.get(Table::Rollouts, id.as_str()).await.unwrap().unwrap();
    pass::pause_broken(&test.app, &mut stored, "it skipped a wave".into(), clock::now_ms()).await.unwrap();
    let view = view(&test.app, &id).await.unwrap();
    assert_eq!(view.status, RolloutStatus::Paused);
    assert!(view.status_reason.contains("it skipped a wave"), "{}", view.status_reason);
    // Where it cannot be paused, it is written about, once.
    act(&test.app, &id, OperatorAction::Rollback, "bob", None).await.unwrap();
    stored = test.app.records.get(Table::Rollouts, id.as_str()).await.unwrap().unwrap();
    for _ in 0..3 {
        pass::pause_broken(&test.app, &mut stored, "again".into(), clock::now_ms()).await.unwrap();
    }
    let kinds = kinds(&test, &id).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "rollout.violation").count(), 2, "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loop_wakes_when_something_happens() {
    let test = crate::testing::app_with(|config| config.rollout.tick_ms = 3_600_000).await;
    fleet(&test, &["a"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let (stop, stopping) = watch::channel(false);
    let task = spawn(Arc::clone(&test.app), stopping);
    create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap();
    let published = test.broker.take_until(|topic, _| topic.kind == Kind::Down(Down::Assignment)).await;
    assert_eq!(assignments(&test, &published).len(), 1);
    stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(60), task).await.expect("the loop ends").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_devices_are_told_in_one_go() {
    let test = app().await;
    for n in 0..1_000 {
        let device = test.enrol(&format!("dev-{n}"), &[]).await;
        connect(&test, &device);
    }
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| view.waves[0].devices.len() == 1_000).await;
    let devices: BTreeSet<_> = told.iter().map(|assignment| &assignment.device).collect();
    assert_eq!((told.len(), devices.len()), (1_000, 1_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_root_documents_reach_everybody_in_order() {
    let test = app().await;
    let device = fleet(&test, &["a"]).await.remove(0);
    let roots: Vec<_> =
        (1..=3).map(|version| crate::testing::signed_root(version, test.app.director.public())).collect();
    for (version, envelope) in (1..).zip(&roots) {
        let record = crate::store::records::RootRecord { envelope: envelope.clone() };
        let key = crate::store::records::root_key(version);
        let change = Records::put(Table::Roots, key, crate::store::Expect::Absent, &record).unwrap();
        test.app.records.commit(vec![change]).await.unwrap();
    }
    announce_roots(&test.app).await.unwrap();
    reissue(&test.app, &device).await;
    let published = test.broker.take();
    assert_eq!(published.len(), 2);
    for (topic, payload) in published {
        assert_eq!(topic, Topic::down(&device, Down::Root));
        let delivery: muster_shared::messages::RootDelivery = serde_json::from_slice(&payload).unwrap();
        // The first one is in the device's hands since it enrolled.
        assert_eq!(delivery.roots, roots[1..]);
    }
    // One that says it goes on without the last one is told again, and not over and over; before any assignment.
    test.app.director.follow(&crate::trust::current(&test.app.records).await.unwrap().unwrap()).unwrap();
    for (root_version, told) in [(3, 0), (2, 1), (2, 0), (0, 0)] {
        test.app.fleet.update_report(&device, StateReport { root_version, ..StateReport::default() });
        pass::pass(&test.app).await;
        assert_eq!(test.broker.take().len(), told, "with root {root_version}");
    }
}
