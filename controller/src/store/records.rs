//! What is stored, in types: the documents of every table, their keys, and typed access to them.
//!
//! Documents are JSON. A record that this version cannot read is an error that names it, never a default.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::engine::general_purpose::STANDARD;
use muster_rollout::UpdateLog;
use muster_shared::api::{AccessRole, EventView, Revocation};
use muster_shared::bundle::Manifest;
use muster_shared::ids::{BundleRef, DeviceId, Digest, RolloutId};
use muster_shared::messages::{Position, ProgramKey, StateReport, Stream, TelemetryWindow, WindowKey};
use muster_shared::rollout::Pin;
use muster_shared::trust::{Activation, DeliveryPolicy, Envelope, Stage, Track, WatchPolicy};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use super::certificates::{PendingCertificate, SupersededCertificate};
use super::{Change, Expect, Store, StoreError, Table, Versioned};
use crate::analysis::TemplateRecord;
use crate::feedback::FeedbackBatchRecord;
use crate::pki::AuthoritiesVersion;

/// A device that enrolled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeviceRecord {
    /// Its name.
    pub(crate) id: DeviceId,
    /// Set by operators.
    pub(crate) labels: BTreeMap<String, String>,
    /// In milliseconds since the Unix epoch.
    pub(crate) enrolled_at_ms: u64,
    /// Serial number of the certificate it uses, in lower-case hexadecimal without leading zeros.
    pub(crate) certificate_serial: String,
    /// Digest of that certificate's public key (SubjectPublicKeyInfo, DER).
    pub(crate) public_key_sha256: Digest,
    /// The outside authority whose certificate it showed to enrol; none for those that had a token.
    #[serde(default)]
    pub(crate) outside: Option<String>,
    /// Which authorities there were when it was given that certificate.
    #[serde(default)]
    pub(crate) authorities: AuthoritiesVersion,
    /// When that certificate ends, in milliseconds since the Unix epoch; records from before this was kept do not say.
    #[serde(default)]
    pub(crate) certificate_ends_ms: Option<u64>,
    /// Certificates it has been given since and has not shown yet, oldest first.
    #[serde(default)]
    pub(crate) pending: Vec<PendingCertificate>,
    /// Certificates it had and that are refused by now, the last at the end.
    #[serde(default)]
    pub(crate) superseded: Vec<SupersededCertificate>,
    /// When it was last given a certificate to follow the one in use, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub(crate) renewed_at_ms: Option<u64>,
    /// Set while it is shut out.
    #[serde(default)]
    pub(crate) revocation: Option<Revocation>,
    /// The model that it shall serve.
    pub(crate) desired: Option<Desired>,
    /// The program that it shall be; none where it was never told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) desired_program: Option<Desired>,
    /// Digests of the manifests it was told to run, the last at the end; at most [`MAX_ASSIGNED`].
    #[serde(default)]
    pub(crate) assigned: Vec<Digest>,
    /// How updates went on it.
    #[serde(default, skip_serializing_if = "UpdateLog::is_empty")]
    pub(crate) updates: UpdateLog,
    /// Set while an operator keeps it from rollouts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pin: Option<Pin>,
}

/// Bundles remembered of a device: the one it holds is among its last.
const MAX_ASSIGNED: usize = 8;

impl DeviceRecord {
    /// Whether it is shut out.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revocation.is_some()
    }

    /// What it shall run on `track`; none where it was never told.
    pub(crate) fn desired(&self, track: Track) -> Option<&Desired> {
        match track {
            Track::Model => self.desired.as_ref(),
            Track::Program => self.desired_program.as_ref(),
        }
    }

    /// Gives it something else to run, on the track that `desired` is of.
    pub(crate) fn assign(&mut self, desired: Desired) {
        let place = match desired.track {
            Track::Model => &mut self.desired,
            Track::Program => &mut self.desired_program,
        };
        let before = place.take().and_then(|before| before.manifest);
        let manifest = desired.manifest;
        *place = Some(desired);
        for manifest in [before, manifest].into_iter().flatten() {
            self.assigned.retain(|known| *known != manifest);
            self.assigned.push(manifest);
        }
        let over = self.assigned.len().saturating_sub(MAX_ASSIGNED);
        self.assigned.drain(..over);
    }
}

/// What a device shall run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Desired {
    /// Digest of the manifest; none to run nothing.
    pub(crate) manifest: Option<Digest>,
    /// The generation of the assignment.
    pub(crate) generation: u64,
    /// The rollout it belongs to.
    pub(crate) rollout: RolloutId,
    /// How the device watches the bundle.
    pub(crate) watch: WatchPolicy,
    /// When and how fast the device may fetch it.
    #[serde(default, skip_serializing_if = "DeliveryPolicy::is_default")]
    pub(crate) delivery: DeliveryPolicy,
    /// In which part the device runs it.
    #[serde(default, skip_serializing_if = "Stage::is_serve")]
    pub(crate) stage: Stage,
    /// When the device switches to it.
    #[serde(default, skip_serializing_if = "Activation::is_at_once")]
    pub(crate) activation: Activation,
    /// What of the device it is about.
    #[serde(default, skip_serializing_if = "Track::is_model")]
    pub(crate) track: Track,
    /// Since when, in milliseconds since the Unix epoch.
    pub(crate) since_ms: u64,
}

impl Desired {
    /// What tells it from what the device was told before.
    pub(crate) fn news(&self) -> (Track, u64) {
        (self.track, self.generation)
    }
}

/// The last thing a device said of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReportRecord {
    /// What it said.
    pub(crate) reported: StateReport,
    /// When it arrived, in milliseconds since the Unix epoch.
    pub(crate) received_at_ms: u64,
}

/// How much of a stream is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamPosition {
    /// The device's outbox.
    pub(crate) epoch: u64,
    /// The highest sequence before which nothing is missing.
    pub(crate) contiguous: u64,
}

/// A closed window of one device: its counters, or its sketches. A crash is kept as a window of no length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WindowRecord {
    /// Whose it is.
    pub(crate) device: DeviceId,
    /// When it arrived, in milliseconds since the Unix epoch.
    pub(crate) received_at_ms: u64,
    /// Where it stood in its stream.
    pub(crate) position: Position,
    /// Which bundle, and when.
    pub(crate) key: WindowKey,
    /// Its counters.
    pub(crate) telemetry: Option<TelemetryWindow>,
    /// Its sketches in their wire form.
    #[serde(default, with = "base64_bytes")]
    pub(crate) sketch: Option<Vec<u8>>,
    /// The agent had crashed; neither counters nor sketches then.
    #[serde(default)]
    pub(crate) crash: bool,
    /// With a crash: the program that it was; none for the one that the package installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) program: Option<ProgramKey>,
}

/// A right to enrol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EnrolmentTokenRecord {
    /// Digest of the secret.
    pub(crate) secret_sha256: Digest,
    /// In milliseconds since the Unix epoch.
    pub(crate) expires_ms: u64,
    /// Devices that may still use it.
    pub(crate) uses_left: u32,
    /// The authority it names; the first where that was not kept.
    #[serde(default)]
    pub(crate) ca_sha256: Option<Digest>,
    /// Labels for devices that enrol with it.
    pub(crate) labels: BTreeMap<String, String>,
    /// In milliseconds since the Unix epoch.
    #[serde(default)]
    pub(crate) created_at_ms: Option<u64>,
    /// The name of the access token it was made with.
    #[serde(default)]
    pub(crate) created_by: Option<String>,
    /// Set once it is no longer accepted.
    #[serde(default)]
    pub(crate) revocation: Option<Revocation>,
}

/// A right to use the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccessTokenRecord {
    /// Its name, which stands in the records of what its bearer did.
    pub(crate) name: String,
    /// What its bearer may do.
    pub(crate) role: AccessRole,
    /// In milliseconds since the Unix epoch.
    pub(crate) created_at_ms: u64,
}

/// A root document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootRecord {
    /// As it was signed.
    pub(crate) envelope: Envelope,
}

/// A bundle taken in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BundleRecord {
    /// Digest of the signed bytes of the manifest.
    pub(crate) manifest_digest: Digest,
    /// Name and version.
    pub(crate) bundle: BundleRef,
    /// In milliseconds since the Unix epoch.
    pub(crate) pushed_at_ms: u64,
    /// Bytes of all files.
    pub(crate) total_bytes: u64,
    /// The manifest as it was signed.
    pub(crate) envelope: Envelope,
    /// Its content.
    pub(crate) manifest: Manifest,
}

/// Key in [`Table::Positions`].
pub(crate) fn position_key(device: &DeviceId, stream: Stream) -> String {
    let stream = match stream {
        Stream::State => "state",
        Stream::Telemetry => "telemetry",
        Stream::Sketch => "sketch",
        Stream::Event => "event",
    };
    format!("{device}/{stream}")
}

/// Key in [`Table::Windows`]: in order of arrival.
pub(crate) fn window_key(received_at_ms: u64, device: &DeviceId, stream: Stream, position: &Position) -> String {
    format!("{received_at_ms:020}/{}/{:016x}/{:020}", position_key(device, stream), position.epoch, position.sequence)
}

/// Everything in [`Table::Windows`] that arrived at `received_at_ms` or later comes after this key.
pub(crate) fn window_key_floor(received_at_ms: u64) -> String {
    format!("{received_at_ms:020}")
}

/// Key in [`Table::Roots`].
pub(crate) fn root_key(version: u64) -> String {
    format!("{version:010}")
}

/// Key in [`Table::Events`].
pub(crate) fn event_key(sequence: u64) -> String {
    format!("{sequence:020}")
}

/// Key in [`Table::Meta`] of the [`BundleRef`] whose manifest has this digest.
pub(crate) fn manifest_key(manifest: &Digest) -> String {
    format!("manifest/{manifest}")
}

/// Key in [`Table::Meta`] of the number of the last rollout.
pub(crate) const ROLLOUT_SEQUENCE_KEY: &str = "rollout-sequence";

/// Key in [`Table::Meta`] of the freezes.
pub(crate) const FREEZES_KEY: &str = "freezes";

/// Key in [`Table::Meta`] of the fleet-wide stop.
pub(crate) const FLEET_STOP_KEY: &str = "fleet-stop";

/// A record and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored<T> {
    /// For [`Expect::Version`].
    pub(crate) version: u64,
    /// The record.
    pub(crate) value: T,
}

/// Typed access to a store.
#[derive(Clone)]
pub(crate) struct Records {
    store: Arc<dyn Store>,
}

impl Records {
    /// Over this store.
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The record under `key`.
    ///
    /// # Errors
    /// [`StoreError`], also when the document is not a `T`.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        table: Table,
        key: &str,
    ) -> Result<Option<Stored<T>>, StoreError> {
        self.store.get(table, key).await?.map(|document| parse(table, key, &document)).transpose()
    }

    /// The record under `key`, where `known` is what it was once: that itself, as long as its version is the one stored. For records that are large
    /// and looked at often, and never deleted, as a key that is used again counts from 1.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) async fn renew<T: DeserializeOwned>(
        &self,
        table: Table,
        key: &str,
        known: Option<Stored<T>>,
    ) -> Result<Option<Stored<T>>, StoreError> {
        let Some(document) = self.store.get(table, key).await? else { return Ok(None) };
        match known.filter(|known| known.version == document.version) {
            Some(known) => Ok(Some(known)),
            None => parse(table, key, &document).map(Some),
        }
    }

    /// Up to `limit` records whose keys start with `prefix` and come after `after`, in order of their keys.
    ///
    /// # Errors
    /// [`StoreError`], also when a document is not a `T`.
    pub(crate) async fn scan<T: DeserializeOwned>(
        &self,
        table: Table,
        after: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Stored<T>)>, StoreError> {
        let found = self.store.scan(table, after, prefix, limit).await?;
        found
            .into_iter()
            .map(|(key, document)| {
                let record = parse(table, &key, &document)?;
                Ok((key, record))
            })
            .collect()
    }

    /// Every record whose key starts with `prefix`, in order of their keys: for tables that are small by nature.
    ///
    /// # Errors
    /// [`StoreError`], also when a document is not a `T`.
    pub(crate) async fn all<T: DeserializeOwned>(
        &self,
        table: Table,
        prefix: &str,
    ) -> Result<Vec<(String, Stored<T>)>, StoreError> {
        const PAGE: usize = 512;
        let mut all: Vec<(String, Stored<T>)> = Vec::new();
        loop {
            let page = self.scan(table, all.last().map(|(key, _)| key.as_str()), prefix, PAGE).await?;
            let last = page.len() < PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// The change that stores `record` under `key`.
    ///
    /// # Errors
    /// [`StoreError::Document`] when it cannot be written as JSON.
    pub(crate) fn put<T: Serialize>(
        table: Table,
        key: impl Into<String>,
        expect: Expect,
        record: &T,
    ) -> Result<Change, StoreError> {
        let key = key.into();
        match serde_json::to_vec(record) {
            Ok(value) => Ok(Change::Put { table, key, expect, value }),
            Err(error) => Err(StoreError::Document { table, key, reason: error.to_string() }),
        }
    }

    /// The change that removes what is under `key`.
    pub(crate) fn delete(table: Table, key: impl Into<String>, expect: Expect) -> Change {
        Change::Delete { table, key: key.into(), expect }
    }

    /// Makes all changes or none; durable when it returns.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is changed on [`StoreError::Conflict`].
    pub(crate) async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.store.commit(changes).await
    }
}

fn parse<T: DeserializeOwned>(table: Table, key: &str, document: &Versioned) -> Result<Stored<T>, StoreError> {
    match serde_json::from_slice(&document.value) {
        Ok(value) => Ok(Stored { version: document.version, value }),
        Err(error) => Err(StoreError::Document { table, key: key.to_owned(), reason: error.to_string() }),
    }
}

/// Records that are read and cannot be used, as one under a key that names nothing: told once, however many there are.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    first: Option<(Table, String)>,
    count: u64,
}

impl LeftOut {
    /// Counts one.
    pub(crate) fn add(&mut self, table: Table, key: &str) {
        self.count += 1;
        self.first.get_or_insert_with(|| (table, key.to_owned()));
    }

    /// How many there were.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Writes into the log that there were some.
    pub(crate) fn tell(&self) {
        if let Some((table, key)) = &self.first {
            tracing::warn!(
                count = self.count,
                table = table.name(),
                key,
                "documents of the store make no sense and are left out; here is the first"
            );
        }
    }
}

/// Reads every document that must be readable for the controller to work and is not looked at in any case when it starts.
///
/// # Errors
/// [`StoreError::Document`] with the first that is not what it should be.
pub(crate) async fn check(records: &Records) -> Result<(), StoreError> {
    records.all::<StreamPosition>(Table::Positions, "").await?;
    records.all::<EnrolmentTokenRecord>(Table::EnrolmentTokens, "").await?;
    records.all::<AccessTokenRecord>(Table::AccessTokens, "").await?;
    each::<BundleRecord>(records, Table::Bundles).await?;
    each::<TemplateRecord>(records, Table::AnalysisTemplates).await?;
    each::<EventView>(records, Table::Events).await?;
    each::<FeedbackBatchRecord>(records, Table::Feedback).await?;
    each::<WindowRecord>(records, Table::Windows).await
}

/// Reads a table that need not fit into memory.
async fn each<T: DeserializeOwned>(records: &Records, table: Table) -> Result<(), StoreError> {
    const PAGE: usize = 128;
    let mut after = None;
    loop {
        let page = records.scan::<T>(table, after.as_deref(), "", PAGE).await?;
        let last = page.len() < PAGE;
        after = page.into_iter().next_back().map(|(key, _)| key);
        if last {
            return Ok(());
        }
    }
}

/// Bytes in JSON, as base64.
mod base64_bytes {
    use base64::Engine as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::STANDARD;

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(|bytes| STANDARD.encode(bytes)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| STANDARD.decode(text).map_err(serde::de::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{device_record, records};

    /// A record with some bytes changed.
    fn damaged() -> impl Strategy<Value = Vec<u8>> {
        let good = serde_json::to_vec(&record(None)).unwrap();
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4).prop_map(move |changes| {
            let mut bytes = good.clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
    }

    #[tokio::test]
    async fn what_is_known_is_not_read_again_until_it_changes() {
        let (records, _folder) = records();
        let put = |expect, number: u64| Records::put(Table::Meta, "k", expect, &number).unwrap();
        let renew = async |known| records.renew::<u64>(Table::Meta, "k", known).await.unwrap();
        assert_eq!(renew(None).await, None);
        records.commit(vec![put(Expect::Absent, 7)]).await.unwrap();
        assert_eq!(renew(None).await, Some(Stored { version: 1, value: 7 }));
        // Told apart from the stored one, to see which of the two is given.
        let known = Stored { version: 1, value: 70 };
        assert_eq!(renew(Some(known.clone())).await, Some(known.clone()));
        records.commit(vec![put(Expect::Version(1), 8)]).await.unwrap();
        assert_eq!(renew(Some(known)).await, Some(Stored { version: 2, value: 8 }));
    }

    proptest! {
        #[test]
        fn any_document_is_a_record_or_named(value in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), damaged()]) {
            match parse::<DeviceRecord>(Table::Devices, "dev-1", &Versioned { version: 3, value }) {
                Ok(stored) => prop_assert_eq!(stored.version, 3),
                Err(error) => prop_assert!(error.to_string().contains("dev-1"), "{}", error),
            }
        }
    }

    #[test]
    fn the_last_bundles_a_device_was_told_to_run_are_remembered_each_once() {
        let digest = |n: u8| Digest::of(&[n]);
        let desired = |n: Option<u8>| Desired {
            manifest: n.map(digest),
            generation: 1,
            rollout: RolloutId::new("r1").unwrap(),
            watch: WatchPolicy::default(),
            delivery: DeliveryPolicy::default(),
            stage: Stage::Serve,
            activation: Activation::AtOnce,
            track: Track::Model,
            since_ms: 1,
        };
        // Written before there was a memory: what it runs counts all the same.
        let mut json = serde_json::to_value(record(Some(desired(Some(0))))).unwrap();
        json.as_object_mut().unwrap().remove("assigned");
        let mut record: DeviceRecord = serde_json::from_value(json).unwrap();
        for n in [Some(1), None, Some(0), Some(1)] {
            record.assign(desired(n));
        }
        assert_eq!(record.assigned, [digest(0), digest(1)]);
        (2..20).for_each(|n| record.assign(desired(Some(n))));
        assert_eq!(record.assigned, (12..20).map(digest).collect::<Vec<_>>());
    }

    fn record(desired: Option<Desired>) -> DeviceRecord {
        DeviceRecord { desired, ..device_record("dev-1") }
    }

    #[test]
    fn windows_sort_by_arrival_and_survive_json() {
        let device = DeviceId::new("dev-1").unwrap();
        let position = Position { epoch: 7, sequence: 9, oldest: 1 };
        let early = window_key(999, &device, Stream::Sketch, &position);
        let late = window_key(1_000, &device, Stream::Sketch, &position);
        assert!(early < late && early < window_key_floor(1_000) && window_key_floor(1_000) < late);
        let record = WindowRecord {
            device,
            received_at_ms: 1,
            position,
            key: WindowKey { manifest: Digest::of(b"m"), generation: 1, start_ms: 0, duration_ms: 1 },
            telemetry: None,
            sketch: Some(vec![0, 255, 1]),
            crash: false,
            program: None,
        };
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains("\"AP8B\""), "{json}");
        assert_eq!(serde_json::from_str::<WindowRecord>(&json).unwrap(), record);
    }
}
