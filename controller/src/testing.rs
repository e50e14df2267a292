//! What the tests of several parts need: a store, a broker that remembers, and a whole controller without its network.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use muster_shared::api::{AccessRole, Revocation};
use muster_shared::bundle::{
    BundleFile, DataType, GOLDEN_PATH, MODEL_PATH, Manifest, ModelSignature, PROGRAM_PATH, Program, Requirements,
    TensorSpec,
};
use muster_shared::data_schema::DataSchema;
use muster_shared::ids::{BundleName, DeviceId, Digest, RolloutId};
use muster_shared::profile::{Column, Profile, Reference, Source};
use muster_shared::topics::Topic;
use muster_shared::trust::{
    Activation, DeliveryPolicy, DocumentKind, Envelope, PublicKey, Role, RoleKeys, Root, SigningKey, Stage, Track,
    WatchPolicy, sign_document,
};
use tempfile::TempDir;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::alerts::Alerts;
use crate::blobs::Blobs;
use crate::broker::{Broker, BrokerError, Room, TlsFiles};
use crate::clock;
use crate::config::Config;
use crate::content::Catalogue;
use crate::director::Director;
use crate::endpoints::Endpoints;
use crate::events::EventLog;
use crate::executor::Schedule;
use crate::feedback::FeedbackQueue;
use crate::fleet::FleetIndex;
use crate::metrics::Metrics;
use crate::pki::{AuthoritiesVersion, Pki, ServerNames};
use crate::readiness::Readiness;
use crate::state::App;
use crate::store::records::{AccessTokenRecord, BundleRecord, Desired, DeviceRecord, manifest_key};
use crate::store::{Expect, Records, SledStore, Table};

/// An empty store, which lasts as long as its folder.
pub(crate) fn records() -> (Records, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = SledStore::open(&folder.path().join("store")).unwrap();
    (Records::new(Arc::new(store)), folder)
}

/// A disk of its own for a test.
pub(crate) enum SmallDisk {
    /// This process sees it, at `disk`; what is to outlast it belongs into the folder `beside`.
    Seen { disk: PathBuf, beside: PathBuf },
    /// Another process has run the test to its end; this is its folder `beside`.
    Over(TempDir),
    /// The system lets no user mount a disk: the test is left out.
    Refused,
}

/// Runs `test` again in a process that sees a disk of `size_mib`.
pub(crate) fn small_disk(test: &str, size_mib: u32) -> SmallDisk {
    const VARIABLE: &str = "MUSTER_TEST_SMALL_DISK";
    const MOUNT: &str = "mount -t tmpfs -o \"$1\" small \"$2\"";
    if let Some(folder) = std::env::var_os(VARIABLE) {
        let beside = PathBuf::from(folder);
        return SmallDisk::Seen { disk: beside.join("disk"), beside };
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let in_namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-Urm", "sh", "-c", script, "sh", &format!("size={size_mib}m")]).arg(&disk);
        command
    };
    if !in_namespace(MOUNT).output().is_ok_and(|output| output.status.success()) {
        eprintln!("{test} is left out: this system lets no user mount a disk of their own (unshare -Urm)");
        return SmallDisk::Refused;
    }
    let output = in_namespace(&format!("{MOUNT} && exec \"$3\" --exact \"$4\" --nocapture"))
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(VARIABLE, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    SmallDisk::Over(folder)
}

/// A broker that keeps what it was given.
#[derive(Default)]
pub(crate) struct RecordingBroker {
    published: Mutex<Vec<(Topic, Bytes)>>,
    disconnected: Mutex<Vec<DeviceId>>,
    cuts_of_all: AtomicUsize,
    changed: Notify,
}

impl RecordingBroker {
    /// Takes what was published since the last call.
    pub(crate) fn take(&self) -> Vec<(Topic, Bytes)> {
        std::mem::take(&mut self.published.lock().unwrap())
    }

    /// Everybody who was cut off.
    pub(crate) fn disconnected(&self) -> Vec<DeviceId> {
        self.disconnected.lock().unwrap().clone()
    }

    /// How often all were cut off at once.
    pub(crate) fn cuts_of_all(&self) -> usize {
        self.cuts_of_all.load(Ordering::Relaxed)
    }

    /// Takes everything published until something fits `wanted`, which comes last.
    pub(crate) async fn take_until(&self, wanted: impl Fn(&Topic, &Bytes) -> bool) -> Vec<(Topic, Bytes)> {
        let mut taken = Vec::new();
        let found = async {
            loop {
                let changed = self.changed.notified();
                {
                    let mut published = self.published.lock().unwrap();
                    let end = published.iter().position(|(topic, payload)| wanted(topic, payload));
                    let count = end.map_or(published.len(), |at| at + 1);
                    taken.extend(published.drain(..count));
                    if end.is_some() {
                        return;
                    }
                }
                changed.await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(60), found).await;
        assert!(found.is_ok(), "it was not published; {taken:?} was");
        taken
    }
}

#[async_trait]
impl Broker for RecordingBroker {
    async fn publish(&self, topic: &Topic, payload: Bytes) -> Result<(), BrokerError> {
        self.published.lock().unwrap().push((topic.clone(), payload));
        self.changed.notify_one();
        Ok(())
    }

    fn room(&self, _: &Topic, _: usize) -> Room {
        Room::Free
    }

    fn is_sending(&self, _: &DeviceId) -> bool {
        false
    }

    async fn disconnect(&self, device: &DeviceId) {
        self.disconnected.lock().unwrap().push(device.clone());
    }

    async fn disconnect_all(&self) {
        self.cuts_of_all.fetch_add(1, Ordering::Relaxed);
    }

    async fn reload(&self, _: TlsFiles) -> Result<(), BrokerError> {
        Ok(())
    }

    fn connected(&self) -> usize {
        0
    }
}

/// A controller without its network. Its folder goes with it.
pub(crate) struct TestApp {
    pub(crate) app: Arc<App>,
    pub(crate) broker: Arc<RecordingBroker>,
    pub(crate) folder: TempDir,
}

/// A controller in a new folder.
pub(crate) async fn app() -> TestApp {
    app_with(|_| {}).await
}

/// A controller in a new folder, with other settings.
pub(crate) async fn app_with(change: impl FnOnce(&mut Config)) -> TestApp {
    let folder = tempfile::tempdir().unwrap();
    let broker = Arc::new(RecordingBroker::default());
    let mut config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
    change(&mut config);
    let app = open(config, Arc::clone(&broker)).await;
    TestApp { app: Arc::new(app), broker, folder }
}

async fn open(config: Config, broker: Arc<RecordingBroker>) -> App {
    let records = Records::new(Arc::new(SledStore::open(&config.data_dir.join("store")).unwrap()));
    open_over(config, broker, records).await
}

/// A controller over a store that is open already: the next one of a series in the same folder, or one that a test watches.
pub(crate) async fn open_over(config: Config, broker: Arc<RecordingBroker>, records: Records) -> App {
    let data: &Path = &config.data_dir;
    let pki = Pki::open(&data.join("pki"), &ServerNames::of(&config), &config.pki.outside, clock::now_ms()).unwrap();
    let idle_timeout = Duration::from_millis(config.api.request_timeout_ms);
    App {
        endpoints: Endpoints::new(&config, config.api.listen, config.broker.listen, &pki.ca_file()),
        catalogue: Catalogue::new(records.clone()),
        blobs: Blobs::open(&data.join("blobs"), config.api.max_file_bytes, idle_timeout).unwrap(),
        schedule: Schedule::default(),
        collections: crate::collections::CollectionIndex::load(&records).await.unwrap(),
        director: Director::open(data).unwrap(),
        pki,
        broker,
        readiness: Readiness::default(),
        fleet: FleetIndex::load(&records).await.unwrap(),
        feedback: FeedbackQueue::load(&records).await.unwrap(),
        events: EventLog::open(records.clone()).await.unwrap(),
        metrics: Metrics::new(&config),
        alerts: Alerts::load(&records, &config.alerts, clock::now_ms()).await.unwrap(),
        nudge: Arc::new(Notify::new()),
        records,
        config,
    }
}

impl TestApp {
    /// A token with this role.
    pub(crate) async fn token(&self, role: AccessRole) -> String {
        let token = format!("{role:?}-token-for-tests").to_lowercase();
        let record = AccessTokenRecord { name: format!("{role:?}").to_lowercase(), role, created_at_ms: 1 };
        let key = Digest::of(token.as_bytes()).to_string();
        let change = Records::put(Table::AccessTokens, key, Expect::Anything, &record).unwrap();
        self.app.records.commit(vec![change]).await.unwrap();
        token
    }

    /// The first root document, signed, which names this controller's director.
    pub(crate) fn root(&self) -> Envelope {
        signed_root(1, self.app.director.public())
    }
}

/// A key made from a number.
pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&Zeroizing::new([seed; 32]))
}

/// The seed of the root key in [`signed_root`].
pub(crate) const ROOT_SEED: u8 = 1;
/// The seed of the release key in [`signed_root`].
pub(crate) const RELEASE_SEED: u8 = 2;

/// A root document with one key a role.
pub(crate) fn root_document(version: u64, director: PublicKey) -> Root {
    let (root, release) = (key(ROOT_SEED).public(), key(RELEASE_SEED).public());
    let role = |key: &PublicKey| RoleKeys { key_ids: [key.id()].into(), threshold: 1 };
    Root {
        version,
        expires_ms: u64::MAX,
        roles: [(Role::Root, role(&root)), (Role::Release, role(&release)), (Role::Director, role(&director))].into(),
        keys: [root, release, director].into_iter().map(|key| (key.id(), key)).collect(),
    }
}

/// [`root_document`], signed.
pub(crate) fn signed_root(version: u64, director: PublicKey) -> Envelope {
    sign_document(DocumentKind::Root, &root_document(version, director), [&key(ROOT_SEED)]).unwrap()
}

/// A manifest of a bundle with these two files.
pub(crate) fn manifest(name: &str, version: &str, model: &[u8], golden: &[u8]) -> Manifest {
    let tensor = |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: vec![-1, 4] };
    Manifest {
        name: BundleName::new(name).unwrap(),
        version: version.parse().unwrap(),
        description: String::new(),
        release_counter: 1,
        security_floor: 0,
        created_at_ms: 1,
        expires_ms: u64::MAX,
        requirements: Requirements::default(),
        budgets: Default::default(),
        files: vec![BundleFile::describe(MODEL_PATH, model), BundleFile::describe(GOLDEN_PATH, golden)],
        signature: ModelSignature { inputs: vec![tensor("x")], outputs: vec![tensor("y")] },
        pipeline: None,
        schema: None,
        profile: Profile::default(),
        lineage: Default::default(),
        card: None,
        program: None,
    }
}

/// `manifest`, signed with the release key.
pub(crate) fn signed_manifest(manifest: &Manifest) -> Envelope {
    sign_document(DocumentKind::Manifest, manifest, [&key(RELEASE_SEED)]).unwrap()
}

/// A profile with one number and the class predicted.
pub(crate) fn profile() -> Profile {
    let numeric = Column {
        name: "x".into(),
        source: Source::Input { tensor: "x".into(), index: 0 },
        reference: Reference::Numeric { lower_edges: vec![0.0, 1.0], max: 2.0, counts: vec![50, 50], missing: 0 },
    };
    let class = Column {
        name: "class".into(),
        source: Source::PredictedClass { tensor: "y".into() },
        reference: Reference::Class { classes: vec!["cat".into(), "dog".into()], counts: vec![60, 40] },
    };
    Profile { columns: vec![numeric, class], ..Profile::default() }
}

/// A device that has enrolled and was told nothing yet.
pub(crate) fn device_record(name: &str) -> DeviceRecord {
    DeviceRecord {
        id: DeviceId::new(name).unwrap(),
        labels: BTreeMap::new(),
        enrolled_at_ms: 1,
        certificate_serial: "1".into(),
        public_key_sha256: Digest::of(name.as_bytes()),
        outside: None,
        authorities: AuthoritiesVersion::default(),
        certificate_ends_ms: None,
        pending: Vec::new(),
        superseded: Vec::new(),
        renewed_at_ms: None,
        revocation: None,
        desired: None,
        desired_program: None,
        assigned: Vec::new(),
        updates: Default::default(),
        pin: None,
    }
}

/// A fleet and its bundles, without the API.
impl TestApp {
    /// A device that has enrolled.
    pub(crate) async fn enrol(&self, name: &str, labels: &[(&str, &str)]) -> DeviceId {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let record = DeviceRecord { labels, ..device_record(name) };
        let change = Records::put(Table::Devices, name, Expect::Absent, &record).unwrap();
        self.app.records.commit(vec![change]).await.unwrap();
        self.app.fleet.update_record(&record, 1);
        record.id
    }

    /// Shuts a device out, in the store and in what is kept in memory.
    pub(crate) async fn revoke(&self, device: &DeviceId) {
        let stored = self.app.records.get::<DeviceRecord>(Table::Devices, device.as_str()).await.unwrap().unwrap();
        let revocation = Revocation { since_ms: 5, by: "admin".into(), reason: None };
        let record = DeviceRecord { revocation: Some(revocation), ..stored.value };
        let change = Records::put(Table::Devices, device.as_str(), Expect::Version(stored.version), &record).unwrap();
        self.app.records.commit(vec![change]).await.unwrap();
        self.app.fleet.update_record(&record, stored.version + 1);
    }

    /// A bundle taken in with its files, the model having `model_bytes`, and [`profile`].
    pub(crate) async fn bundle(&self, name: &str, version: &str, model_bytes: usize) -> Manifest {
        let model: Vec<u8> = (0..model_bytes).map(|n| u8::try_from((n / 7 + version.len()) % 251).unwrap()).collect();
        self.bundle_of(name, version, &model).await
    }

    /// A small bundle taken in with its files and this profile.
    pub(crate) async fn bundle_with(&self, name: &str, version: &str, profile: Profile) -> Manifest {
        self.take_in(name, version, b"model", profile, None).await
    }

    /// A bundle taken in with its files, and [`profile`].
    pub(crate) async fn bundle_of(&self, name: &str, version: &str, model: &[u8]) -> Manifest {
        self.take_in(name, version, model, profile(), None).await
    }

    /// A small bundle taken in with its files, [`profile`] and this data schema.
    pub(crate) async fn bundle_with_schema(&self, name: &str, version: &str, schema: DataSchema) -> Manifest {
        self.take_in(name, version, b"model", profile(), Some(schema)).await
    }

    async fn take_in(
        &self,
        name: &str,
        version: &str,
        model: &[u8],
        profile: Profile,
        schema: Option<DataSchema>,
    ) -> Manifest {
        let golden = format!("{name} {version}").into_bytes();
        for content in [model, &golden] {
            let pieces = stream::iter([Ok::<_, Infallible>(Bytes::copy_from_slice(content))]);
            self.app.blobs.receive(&Digest::of(content), pieces).await.unwrap();
        }
        self.record(Manifest { profile, schema, ..manifest(name, version, model, &golden) }).await
    }

    /// A bundle of an agent program taken in, without its file.
    pub(crate) async fn program(&self, version: &str, architecture: &str) -> Manifest {
        let mut manifest = manifest(&format!("muster-agent-{architecture}"), version, version.as_bytes(), b"");
        manifest.files.retain(|file| file.path == MODEL_PATH);
        manifest.files[0].path = PROGRAM_PATH.to_owned();
        manifest.signature = ModelSignature { inputs: Vec::new(), outputs: Vec::new() };
        manifest.requirements.architectures = [architecture.to_owned()].into();
        manifest.program = Some(Program {
            target: format!("{architecture}-unknown-linux-gnu"),
            takes_over_from: "0.1.0".parse().unwrap(),
        });
        manifest.validate().unwrap();
        self.record(manifest).await
    }

    async fn record(&self, manifest: Manifest) -> Manifest {
        let envelope = signed_manifest(&manifest);
        let digest = Digest::of(&envelope.payload_bytes().unwrap());
        let bundle = manifest.bundle();
        let record = BundleRecord {
            manifest_digest: digest,
            bundle: bundle.clone(),
            pushed_at_ms: 1,
            total_bytes: manifest.total_bytes(),
            envelope,
            manifest: manifest.clone(),
        };
        let changes = vec![
            Records::put(Table::Bundles, bundle.to_string(), Expect::Absent, &record).unwrap(),
            Records::put(Table::Meta, manifest_key(&digest), Expect::Absent, &bundle).unwrap(),
        ];
        self.app.records.commit(changes).await.unwrap();
        self.app.fleet.update_bundle(digest, &bundle);
        manifest
    }

    /// Says that the device shall run `manifest`, as a rollout would.
    pub(crate) async fn desire(&self, device: &DeviceId, manifest: Option<Digest>, generation: u64) {
        self.desire_on(Track::Model, device, manifest, generation).await;
    }

    /// Says that the device shall be the program `manifest`, as a rollout would.
    pub(crate) async fn desire_program(&self, device: &DeviceId, manifest: Option<Digest>, generation: u64) {
        self.desire_on(Track::Program, device, manifest, generation).await;
    }

    async fn desire_on(&self, track: Track, device: &DeviceId, manifest: Option<Digest>, generation: u64) {
        let stored = self.app.records.get::<DeviceRecord>(Table::Devices, device.as_str()).await.unwrap().unwrap();
        let mut record = stored.value;
        record.assign(Desired {
            manifest,
            generation,
            rollout: RolloutId::new("r1").unwrap(),
            watch: WatchPolicy::default(),
            delivery: DeliveryPolicy::default(),
            stage: Stage::Serve,
            activation: Activation::AtOnce,
            track,
            since_ms: 1,
        });
        let change = Records::put(Table::Devices, device.as_str(), Expect::Version(stored.version), &record).unwrap();
        self.app.records.commit(vec![change]).await.unwrap();
        self.app.fleet.update_record(&record, stored.version + 1);
    }
}

/// The digest that names a manifest.
pub(crate) fn digest_of(manifest: &Manifest) -> Digest {
    Digest::of(&signed_manifest(manifest).payload_bytes().unwrap())
}
