//! The updater against a pretended controller: real files, real signatures, a real model, no network.

use std::fs;
use std::time::Instant;

use muster_agent_core::outbox::Bounds;
use muster_inference::{LoadOptions, Runtime, TractRuntime};
use muster_shared::bundle::{Budgets, BundleFile, GOLDEN_PATH, Lineage, MODEL_PATH, Manifest, Requirements};
use muster_shared::chunk::{ChunkEncoding, ChunkFrame};
use muster_shared::messages::{
    AssignmentDelivery, RequestCounts, Resources, Sequenced, StateReport, Stream, UpdateState,
};
use muster_shared::profile::Profile;
use muster_shared::topics::Down;
use muster_shared::trust::{Activation, Assignment, DeliveryPolicy, DocumentKind, Stage, WatchPolicy, sign_document};

use super::*;
use crate::config::{DeliveryConfig, MeteredSetting, SamplesConfig};
use crate::feedback::Feedback;
use crate::heartbeat::Begun;
use crate::host::HostLimits;
use crate::monitor::{Monitor, Served};
use crate::time::EffectiveTime;
use crate::trust_store::tests::{pin, root, signer};

mod damage;
mod director;
mod disk;

const PADDING_CHUNKS: usize = 40;

struct Bundle {
    digest: Digest,
    envelope: Envelope,
    chunks: Vec<Vec<u8>>,
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/digits").join(name)).unwrap()
}

fn digits(version: &str, golden: &str, change: impl FnOnce(&mut Manifest)) -> Bundle {
    let onnx = fixture(&format!("digits-{version}.onnx"));
    let padding: Vec<u8> = (0..PADDING_CHUNKS * 65_536).map(|n| u8::try_from(n / 65_536).unwrap()).collect();
    let files = [
        (MODEL_PATH, onnx.clone()),
        (GOLDEN_PATH, fixture(&format!("golden-{golden}.json"))),
        ("extra/pad.bin", padding),
    ];
    let mut manifest = Manifest {
        name: "digits".parse().unwrap(),
        version: version.parse().unwrap(),
        description: String::new(),
        release_counter: 5,
        security_floor: 0,
        created_at_ms: 1,
        expires_ms: u64::MAX,
        requirements: Requirements::default(),
        budgets: Budgets::default(),
        files: files.iter().map(|(path, content)| BundleFile::describe(*path, content)).collect(),
        signature: TractRuntime.load(&onnx, &LoadOptions::default()).unwrap().signature().clone(),
        pipeline: None,
        schema: None,
        profile: Profile::default(),
        lineage: Lineage::default(),
        card: None,
        program: None,
    };
    change(&mut manifest);
    let envelope = sign_document(DocumentKind::Manifest, &manifest, [&signer()]).unwrap();
    let chunks = files.iter().flat_map(|(_, content)| content.chunks(65_536).map(<[u8]>::to_vec)).collect();
    Bundle { digest: Digest::of(&envelope.payload_bytes().unwrap()), envelope, chunks }
}

fn good(version: &str) -> Bundle {
    digits(version, version, |_| {})
}

fn device() -> DeviceId {
    DeviceId::new("press-7").unwrap()
}

/// An updater and the controller it talks to.
struct Rig {
    data_dir: PathBuf,
    host: ModelHost,
    outbox: Outbox,
    metrics: Metrics,
    inbox: SyncSender<Input>,
    requests: mpsc::Receiver<ChunkRequest>,
    running: Option<Running>,
    asked: Vec<u32>,
}

impl Rig {
    fn start(data_dir: &Path) -> Self {
        Self::start_within(data_dir, u64::MAX)
    }

    fn start_within(data_dir: &Path, disk_allowed_bytes: u64) -> Self {
        if !data_dir.join("trust").exists() {
            TrustStore::install(data_dir, &[root(1, u64::MAX)], pin()).unwrap();
        }
        let (trust, _) = TrustStore::open(data_dir, pin(), EffectiveTime::default()).unwrap();
        let metrics = Metrics::new();
        let bounds = Bounds { max_bytes: 1 << 20, max_events: 1_000 };
        let outbox = Outbox::open(data_dir, bounds, metrics.clone());
        let monitor = Monitor::new(3_600_000);
        let feedback = Feedback::for_tests();
        let host = ModelHost::new(HostLimits { max_concurrency: 1, max_queue: 1 }, monitor, feedback);
        let (inbox, input) = std::sync::mpsc::sync_channel(INBOX);
        let (ask, requests) = mpsc::channel(8);
        let link = LinkState::up();
        let parts = Parts {
            data_dir: data_dir.to_owned(),
            device: device(),
            trust,
            host: host.clone(),
            outbox: outbox.clone(),
            metrics: metrics.clone(),
            attributes: BTreeMap::new(),
            system: System::default(),
            starts: 1,
            tests: Begun::new(1),
            load_within_ms: 600_000,
            chunk_timeout_ms: 30_000,
            disk_allowed_bytes,
            gate: Gate::new(&DeliveryConfig { metered: MeteredSetting::No, ..DeliveryConfig::default() }).0,
            link,
            requests: ask,
            receipts: mpsc::channel(1).0,
            renew: Arc::default(),
            samples: Samples::new(data_dir, SamplesConfig::default(), EffectiveTime::default()),
            program: crate::program::Running::packaged(),
            config_file: None,
            restart: Arc::default(),
        };
        let updater = Updater::open(parts, inbox.clone(), false).unwrap();
        let (ready, is_ready) = oneshot::channel();
        let running = updater.start(input, ready).unwrap();
        is_ready.blocking_recv().unwrap();
        let data_dir = data_dir.to_owned();
        Self { data_dir, host, outbox, metrics, inbox, requests, running: Some(running), asked: Vec::new() }
    }

    fn stop(mut self) {
        self.running.take().unwrap().stop();
    }

    /// The disk as a power cut at this moment would leave it, in another folder.
    fn snapshot(&self, to: &Path) {
        for part in ["slots", "trust"] {
            copy(&self.data_dir.join(part), &to.join(part));
        }
    }

    fn tell(&self, kind: Down, payload: Vec<u8>) {
        self.inbox.send(Input::Told(Told { kind, payload: payload.into() })).unwrap();
    }

    fn assign(&self, generation: u64, bundle: Option<&Bundle>) {
        self.tell(Down::Assignment, delivery(generation, bundle, |_| {}));
    }

    fn send(&self, bundle: &Bundle, index: u32, bytes: &[u8]) {
        let frame = ChunkFrame { manifest: bundle.digest, index, encoding: ChunkEncoding::Plain, bytes };
        self.tell(Down::Chunk, frame.encode());
    }

    fn state(&self) -> Option<StateReport> {
        let last = self.outbox.next_after(Stream::State, 0)?;
        Some(serde_json::from_slice::<Sequenced<StateReport>>(&last.payload).unwrap().body)
    }

    fn events(&self) -> Vec<DeviceEvent> {
        let waiting = self.outbox.waiting(Stream::Event).into_iter();
        waiting.map(|next| serde_json::from_slice::<Sequenced<DeviceEvent>>(&next.payload).unwrap().body).collect()
    }

    fn has_event(&self, kind: DeviceEventKind, words: &str) -> bool {
        self.events().iter().any(|e| e.kind == kind && e.detail.contains(words))
    }

    /// Answers requests for chunks until `done`.
    fn until(&mut self, what: &str, bundle: Option<&Bundle>, done: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{what} did not happen: {:?} {:#?}",
                self.state(),
                self.events()
            );
            match self.requests.try_recv() {
                Ok(request) => {
                    for index in request.wanted.iter().map(|i| i + request.first) {
                        self.asked.push(index);
                        if let Some(bundle) = bundle.filter(|b| b.digest == request.manifest) {
                            self.send(bundle, index, &bundle.chunks[index as usize]);
                        }
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn until_state(&mut self, state: UpdateState, generation: u64, bundle: Option<&Bundle>) -> StateReport {
        let reached =
            |rig: &Self| rig.state().is_some_and(|s| s.update.state == state && s.update.generation == generation);
        self.until(&format!("{state:?}"), bundle, reached);
        self.state().unwrap()
    }

    fn serving(&self) -> Option<Digest> {
        self.host.current().map(|m| m.manifest)
    }

    fn request(&self, failed: bool) {
        let active = self.host.active().unwrap();
        let served = Served { failed, latency: Duration::from_micros(50), ..Served::default() };
        self.host.monitor().served(&active.watch, wall_ms(), &served);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

fn delivery(generation: u64, bundle: Option<&Bundle>, change: impl FnOnce(&mut Assignment)) -> Vec<u8> {
    let mut assignment = Assignment {
        device: device(),
        rollout: "r1".parse().unwrap(),
        manifest: bundle.map(|b| b.digest),
        generation,
        issued_at_ms: 1,
        expires_ms: u64::MAX,
        watch: WatchPolicy { probation_ms: 0, max_error_rate: 0.2, min_requests: 5 },
        delivery: DeliveryPolicy::default(),
        stage: Stage::Serve,
        activation: Activation::AtOnce,
        track: Default::default(),
    };
    change(&mut assignment);
    let delivery = AssignmentDelivery {
        assignment: sign_document(DocumentKind::Assignment, &assignment, [&signer()]).unwrap(),
        manifest: bundle.map(|b| b.envelope.clone()),
    };
    serde_json::to_vec(&delivery).unwrap()
}

fn watched_for(probation_ms: u64) -> impl FnOnce(&mut Assignment) {
    move |assignment| assignment.watch.probation_ms = probation_ms
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_bundle_is_fetched_tested_served_and_committed_and_serves_again_at_once_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = digits("1.0.0", "1.0.0", |m| m.security_floor = 4);
    let mut rig = Rig::start(folder.path());
    assert_eq!(rig.serving(), None);
    rig.assign(3, Some(&bundle));
    let state = rig.until_state(UpdateState::Committed, 3, Some(&bundle));
    assert_eq!(rig.serving(), Some(bundle.digest));
    assert_eq!((state.security_floor, state.generation, state.update.chunks_done), (4, 3, state.update.chunks_total));
    assert_eq!(state.running, state.committed);
    let kinds: Vec<_> = rig.events().into_iter().map(|e| e.kind).collect();
    use DeviceEventKind::{Assigned, Committed, Started, Trial, Verified};
    assert_eq!(kinds, [Started, Assigned, Verified, Trial, Committed]);
    let metrics = rig.metrics.encode().unwrap();
    let total = bundle.chunks.len();
    assert!(metrics.contains(&format!("muster_agent_chunks_received_total {total}\n")), "{metrics}");
    rig.stop();

    let rig = Rig::start(folder.path());
    assert_eq!(rig.serving(), Some(bundle.digest));
}

#[test]
fn killed_in_mid_download_it_asks_for_nothing_that_is_durable() {
    let (folder, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bundle = good("1.0.0");
    let mut rig = Rig::start(folder.path());
    rig.assign(1, Some(&bundle));
    let half =
        |rig: &Rig| rig.state().is_some_and(|s| s.generation == 1 && s.update.chunks_done * 2 >= s.update.chunks_total);
    rig.until("half of it", Some(&bundle), half);
    rig.snapshot(copied.path());
    let durable = rig.state().unwrap().update.chunks_done;
    drop(rig);

    let mut rig = Rig::start(copied.path());
    rig.until_state(UpdateState::Committed, 1, Some(&bundle));
    let total = bundle.chunks.len();
    let asked: std::collections::BTreeSet<u32> = rig.asked.iter().copied().collect();
    assert_eq!(asked.len(), rig.asked.len(), "nothing is asked for twice");
    assert!(asked.len() <= total - durable as usize, "{} asked for, {durable} of {total} were durable", asked.len());
}

#[test]
fn a_bundle_that_answers_wrongly_never_serves() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, wrong) = (good("1.0.0"), digits("1.1.0", "1.2.0", |_| {}));
    let mut rig = Rig::start(folder.path());
    rig.assign(1, Some(&bundle));
    rig.until_state(UpdateState::Committed, 1, Some(&bundle));
    rig.assign(2, Some(&wrong));
    let state = rig.until_state(UpdateState::Failed, 2, Some(&wrong));
    assert!(state.update.reason.unwrap().contains("golden example"));
    assert_eq!(rig.serving(), Some(bundle.digest));
    assert_eq!(state.running.unwrap().generation, 1);
}

#[test]
fn budgets_and_signatures_are_held_against_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(folder.path());
    let hungry = digits("1.0.0", "1.0.0", |m| m.budgets.max_memory_bytes = Some(1));
    rig.assign(1, Some(&hungry));
    let state = rig.until_state(UpdateState::Failed, 1, Some(&hungry));
    assert!(state.update.reason.unwrap().contains("bytes of memory"));
    let lying = digits("1.0.0", "1.0.0", |m| m.signature.outputs[0].name = "answers".into());
    rig.assign(2, Some(&lying));
    let state = rig.until_state(UpdateState::Failed, 2, Some(&lying));
    assert!(state.update.reason.unwrap().contains("promises the output \"answers\""));
    assert_eq!(rig.serving(), None);
}

#[test]
fn a_bundle_that_fails_in_service_is_left_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, bad) = (good("1.0.0"), good("1.1.0"));
    let mut rig = Rig::start(folder.path());
    rig.assign(1, Some(&bundle));
    rig.until_state(UpdateState::Committed, 1, Some(&bundle));
    rig.tell(Down::Assignment, delivery(2, Some(&bad), watched_for(3_600_000)));
    rig.until_state(UpdateState::Trial, 2, Some(&bad));
    assert_eq!(rig.serving(), Some(bad.digest));
    for n in 0..5 {
        rig.request(n < 2);
    }
    let state = rig.until_state(UpdateState::Reverted, 2, None);
    assert!(state.update.reason.unwrap().contains("2 of 5 requests"));
    assert_eq!(rig.serving(), Some(bundle.digest));
    let windows = rig.host.monitor().close_all(wall_ms(), Resources::default());
    let of_bad: Vec<RequestCounts> =
        windows.iter().filter(|w| w.telemetry.key.generation == 2).map(|w| w.telemetry.requests).collect();
    assert!(of_bad.iter().any(|r| r.failed == 2), "{of_bad:?}");
}

#[test]
fn a_trial_survives_restarts_but_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, new) = (good("1.0.0"), good("1.1.0"));
    let mut rig = Rig::start(folder.path());
    rig.assign(1, Some(&bundle));
    rig.until_state(UpdateState::Committed, 1, Some(&bundle));
    rig.tell(Down::Assignment, delivery(2, Some(&new), watched_for(3_600_000)));
    rig.until_state(UpdateState::Trial, 2, Some(&new));
    let mut last = tempfile::tempdir().unwrap();
    rig.snapshot(last.path());
    drop(rig);
    for _ in 0..2 {
        let mut rig = Rig::start(last.path());
        rig.until("the trial", None, |rig| rig.serving() == Some(new.digest));
        let next = tempfile::tempdir().unwrap();
        rig.snapshot(next.path());
        drop(rig);
        last = next;
    }
    let mut rig = Rig::start(last.path());
    let state = rig.until_state(UpdateState::Reverted, 2, None);
    assert!(state.update.reason.unwrap().contains("did not survive"));
    assert_eq!(rig.serving(), Some(bundle.digest));
}

#[test]
fn what_is_not_trusted_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = good("1.0.0");
    let mut rig = Rig::start(folder.path());
    rig.assign(5, Some(&bundle));
    let before = rig.until_state(UpdateState::Committed, 5, Some(&bundle));
    let forged = |payload: Vec<u8>, change: fn(&mut AssignmentDelivery)| {
        let mut delivery: AssignmentDelivery = serde_json::from_slice(&payload).unwrap();
        change(&mut delivery);
        serde_json::to_vec(&delivery).unwrap()
    };
    let good_delivery = || delivery(6, Some(&bundle), |_| {});
    let cases: [(Vec<u8>, &str); 7] = [
        (b"rubbish".to_vec(), "does not parse"),
        (forged(good_delivery(), |d| d.assignment.signatures.clear()), "0 of 1 required signatures"),
        (forged(good_delivery(), |d| d.manifest.as_mut().unwrap().signatures.clear()), "manifest of an assignment"),
        (forged(good_delivery(), |d| d.manifest = None), "was delivered"),
        (delivery(4, Some(&bundle), |_| {}), "generation 4"),
        (delivery(6, Some(&bundle), |a| a.device = DeviceId::new("press-8").unwrap()), "is for device press-8"),
        (delivery(6, Some(&bundle), |a| a.expires_ms = 1), "expired"),
    ];
    for (payload, words) in cases {
        rig.tell(Down::Assignment, payload);
        rig.until(words, None, |rig| rig.has_event(DeviceEventKind::Refused, words));
    }
    for kind in [Down::Root, Down::Command, Down::Chunk] {
        rig.tell(kind, b"{".to_vec());
    }
    rig.until("the last", None, |rig| rig.has_event(DeviceEventKind::Refused, "chunk frame"));
    let refused = |rig: &Rig| rig.events().iter().filter(|e| e.kind == DeviceEventKind::Refused).count();
    assert_eq!(refused(&rig), 10);
    // A flood of junk, and of genuine documents damaged anywhere.
    for n in 0..200 {
        rig.tell(Down::Assignment, format!("\"{n}\"").into_bytes());
        // Of the present generation: damage to a mere hint leaves it genuine, and then it changes nothing.
        let mut damaged = delivery(5, Some(&bundle), |_| {});
        let at = (n * 7_919) % damaged.len();
        damaged[at] = damaged[at].wrapping_add(u8::try_from(n % 255).unwrap() + 1);
        rig.tell(Down::Assignment, damaged.clone());
        damaged.truncate(at);
        rig.tell(Down::Assignment, damaged);
        rig.tell(Down::Chunk, vec![1; n]);
    }
    rig.tell(Down::Command, br#"{"command":"self-test"}"#.to_vec());
    rig.until("the self-test", None, |rig| rig.has_event(DeviceEventKind::Verified, "self-test passed"));
    assert!(refused(&rig) <= muster_agent_core::refusals::PER_PERIOD);
    let after = rig.state().unwrap();
    assert_eq!((after.generation, after.update, after.running), (before.generation, before.update, before.running));
}

#[test]
fn self_tests_are_run_one_at_a_time_and_not_endlessly() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = good("1.0.0");
    let mut rig = Rig::start(folder.path());
    rig.assign(1, Some(&bundle));
    rig.until_state(UpdateState::Committed, 1, Some(&bundle));
    let tested = |rig: &Rig| rig.events().iter().filter(|e| e.detail.contains("self-test passed")).count();
    for asked in 1..=SELF_TESTS_PER_HOUR {
        // Those that come while it runs make no second one.
        for _ in 0..3 {
            rig.tell(Down::Command, br#"{"command":"self-test"}"#.to_vec());
        }
        rig.until("a self-test", None, |rig| tested(rig) >= asked);
        if rig.has_event(DeviceEventKind::Refused, "self-tests") {
            break;
        }
    }
    for _ in 0..200 {
        rig.tell(Down::Command, br#"{"command":"self-test"}"#.to_vec());
    }
    rig.until("the refusal", None, |rig| rig.has_event(DeviceEventKind::Refused, "self-tests are asked for more than"));
    // What comes after is told after.
    rig.tell(Down::Command, b"{".to_vec());
    rig.until("the last", None, |rig| {
        rig.has_event(DeviceEventKind::Refused, "a command does not parse") && tested(rig) >= SELF_TESTS_PER_HOUR
    });
    assert_eq!(tested(&rig), SELF_TESTS_PER_HOUR);
}

#[test]
fn an_unsuitable_bundle_is_a_failed_update_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(folder.path());
    let elsewhere = digits("1.0.0", "1.0.0", |m| m.requirements.architectures = ["s390x".to_owned()].into());
    rig.assign(1, Some(&elsewhere));
    let state = rig.until_state(UpdateState::Failed, 1, None);
    assert!(state.update.reason.unwrap().contains("is for s390x"));
    let stale = digits("1.0.0", "1.0.0", |m| m.expires_ms = 2);
    rig.assign(2, Some(&stale));
    let state = rig.until_state(UpdateState::Failed, 2, None);
    assert!(state.update.reason.unwrap().contains("expired"));
    let other_chip = digits("1.0.0", "1.0.0", |m| m.requirements.cpu_features = ["abacus".to_owned()].into());
    rig.assign(3, Some(&other_chip));
    let state = rig.until_state(UpdateState::Failed, 3, None);
    assert!(state.update.reason.unwrap().contains("needs a processor with abacus"));
    assert!(rig.asked.is_empty());
}

#[test]
fn a_source_of_rubbish_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = good("1.0.0");
    let mut rig = Rig::start(folder.path());
    rig.assign(1, Some(&bundle));
    rig.until_state(UpdateState::Fetching, 1, None);
    for _ in 0..muster_agent_core::fetch::MAX_CORRUPT {
        rig.send(&bundle, 0, b"rubbish");
    }
    let state = rig.until_state(UpdateState::Failed, 1, None);
    assert!(state.update.reason.unwrap().contains("wrong bytes"));
    assert!(rig.has_event(DeviceEventKind::Refused, "chunk 0"));
}

#[test]
fn told_to_run_nothing_it_runs_nothing_and_can_come_back_without_fetching() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = good("1.0.0");
    let mut rig = Rig::start(folder.path());
    rig.assign(1, Some(&bundle));
    rig.until_state(UpdateState::Committed, 1, Some(&bundle));
    rig.assign(2, None);
    let state = rig.until_state(UpdateState::Idle, 2, None);
    assert_eq!((state.running, state.committed, rig.serving()), (None, None, None));
    rig.asked.clear();
    rig.assign(3, Some(&bundle));
    rig.until_state(UpdateState::Committed, 3, None);
    assert!(rig.asked.is_empty());
}

#[test]
fn a_committed_model_that_rots_on_the_disk_is_fetched_again_piece_by_piece() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = good("1.0.0");
    let mut rig = Rig::start(folder.path());
    rig.assign(1, Some(&bundle));
    rig.until_state(UpdateState::Committed, 1, Some(&bundle));
    rig.stop();
    let path = folder.path().join("slots/a/files").join(MODEL_PATH);
    let mut rotten = fs::read(&path).unwrap();
    rotten[100] ^= 1;
    fs::write(&path, rotten).unwrap();
    let mut rig = Rig::start(folder.path());
    assert_eq!(rig.serving(), None);
    assert!(rig.has_event(DeviceEventKind::Alarm, "is damaged in 1 of its"));
    rig.until("the repair", Some(&bundle), |rig| rig.serving() == Some(bundle.digest));
    assert_eq!(rig.asked, [0]);
}
