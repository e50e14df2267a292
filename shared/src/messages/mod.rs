//! What travels between a device and the controller, besides chunks and sketches. All of it is JSON.
//!
//! Streams that must not lose anything ([`Stream`]) travel as [`Sequenced`] and are answered with an
//! [`Ack`] once they are stored; until then the device keeps and repeats them.
//!
//! Fields that a reader does not know are ignored, so that a fleet of mixed versions can talk; a command it does not know is
//! refused, and so is any signed document with a field it does not know.

mod pressure;
mod state;
mod telemetry;

use serde::{Deserialize, Serialize};

pub use pressure::{Pressure, PressureLevel, Throttling};
pub use state::{FreezeProtection, HeldBack, InstalledBundle, StateReport, TrackReport, UpdateReport, UpdateState};
pub use telemetry::{ProgramKey, RequestCounts, Resources, TelemetryWindow, WindowKey};

use crate::chunk::{Accepts, ChunkSet};
use crate::ids::{BundleRef, Digest};
use crate::trust::{Envelope, Track};

/// The streams a device repeats until they are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// [`StateReport`]; only the last one counts.
    State,
    /// [`TelemetryWindow`].
    Telemetry,
    /// [`crate::sketch::SketchWindow`].
    Sketch,
    /// [`DeviceEvent`].
    Event,
}

impl Stream {
    /// Every stream.
    pub const ALL: [Self; 4] = [Self::State, Self::Telemetry, Self::Sketch, Self::Event];
}

/// Where a message stands in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Chosen at random when the device's outbox is made; another one starts the count anew.
    pub epoch: u64,
    /// 1 for the first message of a stream in this epoch, then one more each.
    pub sequence: u64,
    /// The oldest sequence the device still holds: everything before is stored already, or was given up for want of
    /// space.
    pub oldest: u64,
}

/// A message of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sequenced<T> {
    /// Where it stands.
    pub position: Position,
    /// What it says.
    pub body: T,
}

/// What kind of thing happened on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DeviceEventKind {
    /// The agent started.
    Started,
    /// The agent found that it had not been stopped in order.
    Crashed,
    /// An assignment was accepted.
    Assigned,
    /// A document, chunk or bundle was refused.
    Refused,
    /// All files are there and right.
    Verified,
    /// The bundle runs beside the incumbent.
    Beside,
    /// The bundle serves under watch.
    Trial,
    /// The bundle passed its probation.
    Committed,
    /// The bundle failed on the device and the one before serves again.
    Reverted,
    /// The update failed before it served.
    Failed,
    /// The device was told to run nothing, and does.
    Withdrawn,
    /// The device's signed documents are out of date.
    StaleMetadata,
    /// Something an operator should know.
    Alarm,
    /// Something this version has no word for; the event's detail says what it is.
    #[serde(other)]
    Other,
}

/// Something that happened on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceEvent {
    /// The device's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What kind of thing.
    pub kind: DeviceEventKind,
    /// The generation concerned; 0 for none.
    pub generation: u64,
    /// The bundle concerned.
    pub bundle: Option<BundleRef>,
    /// The rest, in words, at most [`crate::limits::MAX_TEXT_BYTES`].
    pub detail: String,
    /// What of the device it is about, where a generation is concerned; left out for the model.
    #[serde(default, skip_serializing_if = "Track::is_model")]
    pub track: Track,
}

/// A wish for chunks; the answer is one [`crate::chunk::ChunkFrame`] each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRequest {
    /// Digest of the manifest whose chunks are wanted.
    pub manifest: Digest,
    /// Number of the chunk that bit 0 of `wanted` stands for.
    pub first: u32,
    /// Which, relative to `first`; at most [`crate::limits::CHUNK_WINDOW`] of them are answered.
    pub wanted: ChunkSet,
    /// How they may be written.
    #[serde(default)]
    pub accepts: Accepts,
    /// Grows with every request on one connection, so that one that comes twice or late is known for it; 0 where nobody counts.
    #[serde(default)]
    pub number: u64,
}

/// Whether a device is there. The offline form is its will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Whether it is there.
    pub online: bool,
}

/// An assignment with the documents it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentDelivery {
    /// The signed assignment.
    pub assignment: Envelope,
    /// The signed manifest it names; absent when it names none.
    pub manifest: Option<Envelope>,
}

/// Root documents, in ascending order of version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDelivery {
    /// The signed root documents.
    pub roots: Vec<Envelope>,
}

/// Which samples a device may collect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionsDelivery {
    /// The signed [`crate::collection::Collections`].
    pub collections: Envelope,
}

/// Everything of a stream up to `sequence` is stored: the device may forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Which stream.
    pub stream: Stream,
    /// The epoch the sequence belongs to.
    pub epoch: u64,
    /// The highest sequence before which nothing is missing.
    pub sequence: u64,
}

/// A request to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command", deny_unknown_fields)]
pub enum Command {
    /// Run the golden examples of the running bundle and report the result as an event.
    SelfTest,
    /// Renew the certificate now: another authority signs.
    Renew,
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::collection::{CollectionProgress, CollectionStage, SamplesReport};
    use crate::damage;
    use crate::numbers::Numbers;
    use crate::profile::Objectives;
    use crate::sketch::{LatencySketch, ObjectiveCounts};
    use crate::trust::{DocumentKind, Signature};

    fn window() -> Sequenced<TelemetryWindow> {
        let mut latency_us = LatencySketch::default();
        latency_us.add(1_234);
        Sequenced {
            position: Position { epoch: u64::MAX, sequence: 2, oldest: 1 },
            body: TelemetryWindow {
                key: WindowKey { manifest: Digest::of(b"m"), generation: 1, start_ms: 5, duration_ms: 7 },
                requests: RequestCounts { served: 1, ..RequestCounts::default() },
                latency_us,
                resources: Resources::default(),
                comparison: None,
                objectives: ObjectiveCounts::empty(&Objectives { latency_us: vec![1_000, 5_000] }),
                numbers: Numbers::default(),
                program: None,
            },
        }
    }

    /// Parses `bytes` as a `T`; one that parses must be written as it was read.
    fn parse_as<T: DeserializeOwned + Serialize + PartialEq + fmt::Debug>(bytes: &[u8]) -> Result<(), TestCaseError> {
        if let Ok(message) = serde_json::from_slice::<T>(bytes) {
            let json = serde_json::to_vec(&message).unwrap();
            prop_assert_eq!(serde_json::from_slice::<T>(&json).unwrap(), message);
        }
        Ok(())
    }

    /// Parses `bytes` as everything a peer may send.
    fn parse_as_everything(bytes: &[u8]) -> Result<(), TestCaseError> {
        parse_as::<Sequenced<StateReport>>(bytes)?;
        parse_as::<Sequenced<TelemetryWindow>>(bytes)?;
        parse_as::<Sequenced<DeviceEvent>>(bytes)?;
        parse_as::<ChunkRequest>(bytes)?;
        parse_as::<Presence>(bytes)?;
        parse_as::<AssignmentDelivery>(bytes)?;
        parse_as::<RootDelivery>(bytes)?;
        parse_as::<CollectionsDelivery>(bytes)?;
        parse_as::<Ack>(bytes)?;
        parse_as::<Command>(bytes)
    }

    /// One good message of every kind, up and down.
    fn every_message() -> Vec<serde_json::Value> {
        let envelope = |kind| Envelope {
            signatures: vec![Signature { keyid: "a".into(), sig: "c2ln".into() }],
            ..Envelope::unsigned(kind, b"{}")
        };
        let installed =
            InstalledBundle { manifest: Digest::of(b"m"), bundle: "digits@1.0.0".parse().unwrap(), generation: 3 };
        let report = StateReport {
            running: Some(installed.clone()),
            committed: Some(installed.clone()),
            update: UpdateReport {
                reason: Some("why".into()),
                manifest: Some(Digest::of(b"m")),
                held_back: Some(HeldBack::QuietHours { until_minute: 390 }),
                ..Default::default()
            },
            attributes: [("arch".to_owned(), "x86_64".to_owned())].into(),
            samples: SamplesReport {
                generation: 2,
                allowed: true,
                collections: vec![CollectionProgress::new("c1".parse().unwrap(), CollectionStage::Uploading)],
            },
            pressure: Pressure { level: PressureLevel::High, reason: "hot: 91 °C".into() },
            ..StateReport::default()
        };
        let event = DeviceEvent {
            at_ms: 1,
            kind: DeviceEventKind::StaleMetadata,
            generation: 3,
            bundle: Some(installed.bundle),
            detail: "two\nlines".into(),
            track: Track::default(),
        };
        let mut wanted = ChunkSet::empty(11);
        wanted.insert(9);
        let accepts = Accepts::Packed { base: Some(Digest::of(b"earlier")) };
        let position = window().position;
        let delivery = AssignmentDelivery {
            assignment: envelope(DocumentKind::Assignment),
            manifest: Some(envelope(DocumentKind::Manifest)),
        };
        let roots = RootDelivery { roots: vec![envelope(DocumentKind::Root), envelope(DocumentKind::Root)] };
        [
            serde_json::to_value(window()),
            serde_json::to_value(Sequenced { position, body: report }),
            serde_json::to_value(Sequenced { position, body: event }),
            serde_json::to_value(ChunkRequest { manifest: Digest::of(b"m"), first: 8, wanted, accepts, number: 3 }),
            serde_json::to_value(Presence { online: true }),
            serde_json::to_value(delivery),
            serde_json::to_value(CollectionsDelivery { collections: envelope(DocumentKind::Collections) }),
            serde_json::to_value(roots),
            serde_json::to_value(Ack { stream: Stream::Sketch, epoch: 9, sequence: 4 }),
            serde_json::to_value(Command::SelfTest),
        ]
        .map(Result::unwrap)
        .into()
    }

    #[test]
    fn messages_survive_their_json() {
        let json = serde_json::to_vec(&window()).unwrap();
        assert_eq!(serde_json::from_slice::<Sequenced<TelemetryWindow>>(&json).unwrap(), window());
        let report = Sequenced { position: window().position, body: StateReport::default() };
        let json = serde_json::to_vec(&report).unwrap();
        assert_eq!(serde_json::from_slice::<Sequenced<StateReport>>(&json).unwrap(), report);
    }

    #[test]
    fn what_holds_a_device_back_is_said_and_read_from_later_versions() {
        assert_eq!(HeldBack::QuietHours { until_minute: 390 }.to_string(), "quiet hours until 06:30");
        for (json, expected) in [
            (r#"{"by":"quiet-hours","until_minute":390}"#, HeldBack::QuietHours { until_minute: 390 }),
            (r#"{"by":"metered-link"}"#, HeldBack::MeteredLink),
            (r#"{"by":"switch"}"#, HeldBack::Switch { at_ms: None }),
            (r#"{"by":"switch","at_ms":7}"#, HeldBack::Switch { at_ms: Some(7) }),
            (r#"{"by":"moon","phase":3}"#, HeldBack::Other),
        ] {
            assert_eq!(serde_json::from_str::<HeldBack>(json).unwrap(), expected);
        }
    }

    #[test]
    fn words_of_later_versions_are_carried_as_unknown() {
        let report = r#"{"reported_at_ms": 5, "generation": 4, "freeze_protection": "partial",
            "update": {"state": "warming", "generation": 4}, "samples": {"generation": 1, "allowed": true,
            "collections": [{"collection": "c1", "stage": "melting"}]}, "pressure": {"level": "crushing", "since": 3}}"#;
        let report: StateReport = serde_json::from_str(report).unwrap();
        assert_eq!((report.reported_at_ms, report.generation, report.update.state), (5, 4, UpdateState::Other));
        assert_eq!((report.freeze_protection, report.update.state.is_final()), (FreezeProtection::Other, false));
        assert_eq!(report.samples.collections[0].stage, CollectionStage::Other);
        assert_eq!((report.pressure.level, StateReport::default().pressure.is_none()), (PressureLevel::Other, true));
        let event = r#"{"at_ms": 1, "kind": "teleported", "generation": 2, "bundle": null, "detail": "to the moon"}"#;
        let event: DeviceEvent = serde_json::from_str(event).unwrap();
        assert_eq!((event.kind, event.detail.as_str()), (DeviceEventKind::Other, "to the moon"));
        // What was read so can be stored, and read again.
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<DeviceEvent>(&json).unwrap(), event);
        assert_eq!(serde_json::to_string(&UpdateState::Other).unwrap(), "\"other\"");
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_commands_refused() {
        assert!(serde_json::from_str::<Presence>(r#"{"online":true}"#).is_ok());
        assert!(serde_json::from_str::<Presence>(r#"{"online":true,"since":3}"#).is_ok());
        assert!(serde_json::from_str::<Command>(r#"{"command":"run-shell"}"#).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse_as_everything(&bytes)?;
        }

        #[test]
        fn messages_with_damaged_bytes_parse_or_are_refused(
            json in prop::sample::select(every_message()).prop_flat_map(|good| damage::bytes(good.to_string().into_bytes()))
        ) {
            parse_as_everything(&json)?;
        }

        #[test]
        fn messages_with_damaged_fields_parse_or_are_refused(
            json in prop::sample::select(every_message()).prop_flat_map(damage::json)
        ) {
            parse_as_everything(json.to_string().as_bytes())?;
        }
    }
}
