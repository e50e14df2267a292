//! What a device says of itself: what it runs, how an update goes, and what it is.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Pressure;
use crate::collection::SamplesReport;
use crate::ids::{BundleRef, Digest};

/// States of an update on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum UpdateState {
    /// Nothing to do.
    #[default]
    Idle,
    /// Chunks are on their way.
    Fetching,
    /// All files are there and right.
    Verified,
    /// The new bundle runs beside the incumbent, as it was told to: it shadows it, or shares the requests with it.
    Beside,
    /// The new bundle serves under watch.
    Trial,
    /// The new bundle passed its probation: this is success.
    Committed,
    /// The new bundle failed on the device, and the one before serves again.
    Reverted,
    /// The bundle was refused or could not be fetched; the incumbent never stopped.
    Failed,
    /// Something this version has no word for.
    #[serde(other)]
    Other,
}

impl UpdateState {
    /// Whether the device is done with this assignment, well or badly.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Committed | Self::Reverted | Self::Failed => true,
            Self::Idle | Self::Fetching | Self::Verified | Self::Beside | Self::Trial | Self::Other => false,
        }
    }
}

/// A bundle on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstalledBundle {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Its name and version.
    pub bundle: BundleRef,
    /// The generation under which it came to run.
    pub generation: u64,
}

/// What keeps a device from fetching what it was told to run, or from switching to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by", rename_all_fields = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HeldBack {
    /// The device has quiet hours.
    QuietHours {
        /// Until this minute of the device's day.
        until_minute: u16,
    },
    /// The device's link costs by the byte.
    MeteredLink,
    /// The bundle is checked and tested, and the device was told to wait before it switches.
    Switch {
        /// Until when, in milliseconds since the Unix epoch; none for another word.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_ms: Option<u64>,
    },
    /// Something this version has no word for.
    #[serde(other)]
    Other,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QuietHours { until_minute } => {
                write!(f, "quiet hours until {:02}:{:02}", until_minute / 60, until_minute % 60)
            }
            Self::MeteredLink => f.write_str("metered link"),
            Self::Switch { at_ms: None } => f.write_str("the word to switch"),
            Self::Switch { at_ms: Some(at_ms) } => write!(f, "the switch at {at_ms} ms"),
            Self::Other => f.write_str("the device's delivery policy"),
        }
    }
}

/// The update a device works on, or did last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateReport {
    /// How far it is.
    pub state: UpdateState,
    /// The generation it belongs to; 0 before the first.
    pub generation: u64,
    /// Digest of the manifest it brings; none when the device is told to run nothing.
    pub manifest: Option<Digest>,
    /// Chunks on the device.
    pub chunks_done: u32,
    /// Chunks of the bundle.
    pub chunks_total: u32,
    /// Why it failed, reverted or waits, in words.
    pub reason: Option<String>,
    /// With [`UpdateState::Failed`]: the device refused the bundle before it began. Agents that cannot tell do not say so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// What keeps the device from fetching or from switching; none while nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_back: Option<HeldBack>,
}

/// How a device stands with its own program. Generations are those of the program's track.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrackReport {
    /// The highest generation it has accepted.
    pub generation: u64,
    /// The update it works on, or did last.
    pub update: UpdateReport,
    /// The bundle that runs; none for what the package installed.
    pub running: Option<InstalledBundle>,
    /// The bundle that it falls back to; none for what the package installed.
    pub committed: Option<InstalledBundle>,
    /// The version of the program that the package installed; empty where nobody says.
    pub package_version: String,
    /// The least release counter of a program it will run.
    pub security_floor: u64,
}

/// Whether a device can tell that a document is out of date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FreezeProtection {
    /// The clock is trusted.
    Full,
    /// The clock stands before the latest time the device has verified; expiry is checked against that time only.
    #[default]
    Degraded,
    /// Something this version has no word for.
    #[serde(other)]
    Other,
}

/// What a device reports about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StateReport {
    /// The device's clock when it said so, in milliseconds since the Unix epoch.
    pub reported_at_ms: u64,
    /// The highest generation it has accepted.
    pub generation: u64,
    /// The update it works on, or did last.
    pub update: UpdateReport,
    /// What answers requests now.
    pub running: Option<InstalledBundle>,
    /// What has passed its probation and is what the device falls back to.
    pub committed: Option<InstalledBundle>,
    /// The least release counter it will run.
    pub security_floor: u64,
    /// Whether it can tell that a document is out of date.
    pub freeze_protection: FreezeProtection,
    /// When the last assignment ended, in milliseconds since the Unix epoch, if it was not renewed: the device has not heard from the
    /// controller since, or is kept from hearing.
    pub stale_since_ms: Option<u64>,
    /// The version of the root document it trusts; 0 from agents that do not say.
    pub root_version: u64,
    /// What it accepted was signed by a director that the root document names no more: it waits to hear it from the one named now.
    pub awaits_director: bool,
    /// Facts about the device (docs/hardware.md) and whatever its configuration adds.
    pub attributes: BTreeMap<String, String>,
    /// Telemetry given up for want of space since the outbox was made.
    pub dropped_messages: u64,
    /// Times the agent has started.
    pub starts: u64,
    /// It can prepare a bundle and wait with the switch; agents that cannot do not say so.
    pub can_hold: bool,
    /// How it stands with collections of samples.
    #[serde(skip_serializing_if = "SamplesReport::is_empty")]
    pub samples: SamplesReport,
    /// What presses on it, and so keeps a shadow from running; absent where nothing does.
    #[serde(skip_serializing_if = "Pressure::is_none")]
    pub pressure: Pressure,
    /// How it stands with its own program; agents that cannot exchange theirs do not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<TrackReport>,
    /// What the agent understands of the wire contract ([`crate::protocol`]); 0 from agents that do not say.
    pub protocol: u32,
}
