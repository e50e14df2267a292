//! What a rollout is about, said to a person who asks: what it does, what it waits for, who decides next, and on which numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ArmSummary, DeviceProgress, FailureKind, RolloutStatus, Verdict, Waiting};
use crate::ids::{BundleRef, DeviceId, Digest, RolloutId};

/// Who or what brings a rollout on, or fails to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "who", rename_all_fields = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Decider {
    /// The clock.
    Clock {
        /// At this time, in milliseconds since the Unix epoch.
        at_ms: u64,
    },
    /// The controller, when it looks next.
    Controller,
    /// Devices, by what they do and report.
    Devices,
    /// Applications on the devices, by what they ask of the model.
    Applications,
    /// Another rollout, by ending.
    OtherRollouts,
    /// People.
    People,
    /// Nobody: it has ended, or the device is left out.
    Nobody,
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clock { at_ms } => write!(f, "the clock, at {at_ms} ms"),
            Self::Controller => f.write_str("the controller, when it looks next"),
            Self::Devices => f.write_str("devices, by what they do and report"),
            Self::Applications => f.write_str("applications, by what they ask of the model"),
            Self::OtherRollouts => f.write_str("another rollout, by ending"),
            Self::People => f.write_str("people"),
            Self::Nobody => f.write_str("nobody"),
        }
    }
}

/// Something that a rollout waits for, or is worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Obstacle {
    /// What.
    pub what: Waiting,
    /// Who or what ends it.
    pub decider: Decider,
}

/// Why a rollout stands where it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Explanation {
    /// Which.
    pub rollout: RolloutId,
    /// The bundle it brings.
    pub bundle: BundleRef,
    /// How it stands.
    pub status: RolloutStatus,
    /// What it does, in a sentence.
    pub doing: String,
    /// Why it is not further: what it waits for comes first, what is only worth knowing after it.
    pub obstacles: Vec<Obstacle>,
    /// Who or what decides next.
    pub decider: Decider,
    /// When the wave pauses without a verdict at the latest, in milliseconds since the Unix epoch.
    pub pauses_at_ms: Option<u64>,
    /// The numbers: of a wave that is watched, every rule held against what is known now, else the last verdict.
    pub numbers: Option<Verdict>,
    /// The device asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceExplanation>,
}

/// Why a device stands where it does in a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceExplanation {
    /// Which.
    pub device: DeviceId,
    /// What it does in the rollout, or why it has no part in it, in a sentence.
    pub doing: String,
    /// Who or what decides next.
    pub decider: Decider,
    /// The wave with which it came in, or would as things are, counted from 0.
    pub wave: Option<u32>,
    /// How far it is; none where it has no part.
    pub progress: Option<DeviceProgress>,
    /// In which way it has not succeeded; none where it has, or may in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureKind>,
    /// What the rollout told it last.
    pub told: Option<Told>,
    /// What it measured of that since the wave began.
    pub measured: Option<ArmSummary>,
}

/// What a device was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Told {
    /// Digest of the manifest; none to run nothing.
    pub manifest: Option<Digest>,
    /// Under which generation.
    pub generation: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// When it was first seen to have done so, in milliseconds since the Unix epoch.
    pub done_at_ms: Option<u64>,
    /// Generations it has been given for the same, this one included.
    pub attempts: u32,
}
