//! Why a rollout is not further than it is.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::explanation::Decider;
use crate::ids::{DeviceId, RolloutId};
use crate::listing::{by_reason, first_few};
use crate::messages::HeldBack;

/// Why a rollout is not further than it is. Every reason reaches the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reason", rename_all_fields = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Waiting {
    /// People must approve it before it begins.
    Approval {
        /// Approvals that count.
        have: u32,
        /// Approvals needed.
        need: u32,
        /// Who has approved.
        given: Vec<String>,
        /// Whose approvals are missing, as far as approvers are named.
        missing: Vec<String>,
        /// Who asked for it, where everybody else's approval is missing: that one alone never suffices.
        not_alone: Option<String>,
        /// Until when they are waited for, in milliseconds since the Unix epoch; for ever, where none is given.
        until_ms: Option<u64>,
    },
    /// Its time has not come.
    Scheduled {
        /// When it begins, in milliseconds since the Unix epoch.
        at_ms: u64,
    },
    /// Other rollouts have devices that it means, or go first.
    Queued {
        /// Which.
        behind: Vec<RolloutId>,
    },
    /// A freeze keeps devices out that the wave has room for.
    Frozen {
        /// Until when, in milliseconds since the Unix epoch.
        until_ms: u64,
        /// Why.
        why: String,
    },
    /// Devices that the wave has room for are outside their maintenance windows.
    OutsideWindow {
        /// Which.
        devices: Vec<DeviceId>,
        /// When the first of them may come in, in milliseconds since the Unix epoch; none where that is not in the days ahead.
        next_ms: Option<u64>,
    },
    /// The wave has room for more devices than the rate lets in now.
    Rate {
        /// Devices a minute, at present.
        per_minute: u32,
        /// Devices that the wave has yet to take in.
        left: u32,
        /// When the next may come in, in milliseconds since the Unix epoch.
        next_ms: u64,
    },
    /// No device is selected.
    NoDevices,
    /// Devices of the wave are still updating.
    Updating {
        /// Devices done.
        done: u32,
        /// Devices of the wave that can be reached.
        of: u32,
    },
    /// Devices of the wave do not fetch the bundle now.
    HeldBack {
        /// Which, and what keeps them from it.
        devices: BTreeMap<DeviceId, HeldBack>,
    },
    /// Groups of devices prepare the bundle and serve what they have until all of a group are ready.
    Preparing {
        /// Which, and how far they are.
        groups: BTreeMap<String, Prepared>,
    },
    /// Groups of devices have been told when to switch, and the time has not come.
    Switching {
        /// Which, and when, in milliseconds since the Unix epoch.
        groups: BTreeMap<String, u64>,
    },
    /// Devices of the wave are away; they join when they return.
    Offline {
        /// Which.
        devices: Vec<DeviceId>,
    },
    /// The deadline of devices is over. They hold nothing up, and may commit yet.
    TimedOut {
        /// Which.
        devices: Vec<DeviceId>,
    },
    /// The wave is being watched.
    Soaking {
        /// Until when, in milliseconds since the Unix epoch.
        until_ms: u64,
    },
    /// Too few telemetry windows.
    TooFewReports {
        /// Windows there are.
        have: u32,
        /// Windows needed.
        need: u32,
    },
    /// Too few requests.
    TooFewRequests {
        /// Requests there are.
        have: u64,
        /// Requests needed.
        need: u64,
    },
    /// A score of the predictions is above its limit, and still within what chance makes of so few.
    TooFewPredictions {
        /// Predictions there are.
        have: u64,
        /// Predictions that would settle it, if it stays as it is.
        need: u64,
    },
    /// Too few rows that a shadow and the bundle in service both answered.
    TooFewCompared {
        /// Rows compared.
        have: u64,
        /// Rows needed.
        need: u64,
        /// Devices of the wave that let their shadow rest under pressure, as far as they said so.
        #[serde(default)]
        resting: u32,
    },
    /// Devices that are to be compared have not shown what they are scored by since the soak began.
    Unscored {
        /// Which.
        devices: Vec<DeviceId>,
    },
    /// An analysis has measurements to make.
    Analysing {
        /// The template and the metric.
        metric: String,
        /// Measurements made.
        have: u32,
        /// Measurements to make.
        of: u32,
        /// When the next one is due, in milliseconds since the Unix epoch.
        next_ms: u64,
    },
    /// Devices belong to another rollout that is not finished.
    HeldByOtherRollout {
        /// Which devices.
        devices: Vec<DeviceId>,
    },
    /// Devices are left out: they cannot run the bundle, are pinned or quarantined.
    Unsuitable {
        /// Which, and why.
        devices: BTreeMap<DeviceId, String>,
    },
    /// Devices are in and cannot read what they shall be told: their agents are of an earlier version than when they came in.
    CannotBeTold {
        /// Which, and why.
        devices: BTreeMap<DeviceId, String>,
    },
    /// Devices of the group that is held back: they keep what they have for good, to compare with.
    HoldbackGroup {
        /// Which.
        devices: Vec<DeviceId>,
    },
    /// Devices that are meant since the rollout began, which takes nobody in who comes later.
    CameLater {
        /// Which.
        devices: Vec<DeviceId>,
    },
    /// An operator or a verdict paused the rollout.
    Paused {
        /// Who or what, and why.
        why: String,
    },
    /// Devices have not gone back yet.
    GoingBack {
        /// Devices done.
        done: u32,
        /// Devices that must.
        of: u32,
    },
}

impl Waiting {
    /// Who or what ends it.
    #[must_use]
    pub const fn decider(&self) -> Decider {
        match self {
            Self::Soaking { until_ms: at_ms }
            | Self::Analysing { next_ms: at_ms, .. }
            | Self::Scheduled { at_ms }
            | Self::Frozen { until_ms: at_ms, .. }
            | Self::Rate { next_ms: at_ms, .. }
            | Self::OutsideWindow { next_ms: Some(at_ms), .. } => Decider::Clock { at_ms: *at_ms },
            Self::OutsideWindow { next_ms: None, .. } => Decider::People,
            Self::Updating { .. }
            | Self::HeldBack { .. }
            | Self::Preparing { .. }
            | Self::Switching { .. }
            | Self::Offline { .. }
            | Self::TimedOut { .. }
            | Self::TooFewReports { .. }
            | Self::Unscored { .. }
            | Self::GoingBack { .. } => Decider::Devices,
            Self::TooFewRequests { .. } | Self::TooFewPredictions { .. } | Self::TooFewCompared { .. } => {
                Decider::Applications
            }
            Self::HeldByOtherRollout { .. } | Self::Queued { .. } => Decider::OtherRollouts,
            Self::Approval { .. } | Self::NoDevices | Self::CannotBeTold { .. } | Self::Paused { .. } => {
                Decider::People
            }
            Self::Unsuitable { .. } | Self::HoldbackGroup { .. } | Self::CameLater { .. } => Decider::Nobody,
        }
    }
}

/// How far a group of devices has prepared a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Prepared {
    /// Devices that have checked and tested it.
    pub ready: u32,
    /// Devices that can be reached, those that have yet to come in included.
    pub of: u32,
}

/// Names up to how many are shown.
const SHOWN: usize = 5;

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |devices: &mut dyn Iterator<Item = &DeviceId>| first_few(devices, SHOWN);
        let reasons = |devices| BTreeMap::iter(devices).map(|(id, why): (&DeviceId, &String)| (id, why.as_str()));
        match self {
            Self::Approval { have, need, given, missing, not_alone, until_ms } => {
                write!(f, "{have} of {need} approvals")?;
                if !given.is_empty() {
                    write!(f, " ({})", given.join(", "))?;
                }
                match missing.is_empty() {
                    true => f.write_str("; whoever has the role approver or admin may give them")?,
                    false => write!(f, "; not yet: {}", missing.join(", "))?,
                }
                if let Some(creator) = not_alone {
                    write!(f, "; one must be somebody else's than {creator}'s")?;
                }
                until_ms.map_or(Ok(()), |until_ms| write!(f, "; until {until_ms} ms"))
            }
            Self::Scheduled { at_ms } => write!(f, "it begins at {at_ms} ms"),
            Self::Queued { behind } => write!(f, "queued behind {}", first_few(behind, SHOWN)),
            Self::Frozen { until_ms, why } => write!(f, "a freeze until {until_ms} ms: {why}"),
            Self::OutsideWindow { devices, next_ms } => {
                write!(f, "{} outside their maintenance windows: {}", devices.len(), names(&mut devices.iter()))?;
                next_ms.map_or(Ok(()), |next_ms| write!(f, "; open at {next_ms} ms"))
            }
            Self::Rate { per_minute, left, next_ms } => {
                write!(f, "{per_minute} devices a minute: {left} still to come in, the next at {next_ms} ms")
            }
            Self::NoDevices => f.write_str("no device matches the selector"),
            Self::Updating { done, of } => {
                write!(f, "{done} of {of} reachable devices have committed")
            }
            Self::HeldBack { devices } => {
                let mut why: Vec<HeldBack> = Vec::new();
                devices.values().for_each(|held| {
                    if !why.contains(held) {
                        why.push(*held)
                    }
                });
                let why: Vec<String> = why.iter().take(3).map(ToString::to_string).collect();
                write!(f, "{} not fetching now: {} ({})", devices.len(), names(&mut devices.keys()), why.join(", "))
            }
            Self::Preparing { groups } => {
                let said = groups.iter().map(|(name, Prepared { ready, of })| format!("{name} {ready} of {of} ready"));
                write!(f, "preparing: {}", first_few(said, SHOWN))
            }
            Self::Switching { groups } => {
                let said = groups.iter().map(|(name, at_ms)| format!("{name} at {at_ms} ms"));
                write!(f, "to switch together: {}", first_few(said, SHOWN))
            }
            Self::Offline { devices } => {
                write!(f, "{} away, to join on return: {}", devices.len(), names(&mut devices.iter()))
            }
            Self::TimedOut { devices } => {
                write!(f, "{} timed out, not waited for: {}", devices.len(), names(&mut devices.iter()))
            }
            Self::Soaking { until_ms } => write!(f, "soaking until {until_ms} ms"),
            Self::TooFewReports { have, need } => {
                write!(f, "{have} of {need} reports with requests")
            }
            Self::TooFewRequests { have, need } => write!(f, "{have} of {need} requests"),
            Self::TooFewPredictions { have, need } => {
                write!(f, "{have} of about {need} predictions that tell a move from chance")
            }
            Self::TooFewCompared { have, need, resting } => {
                write!(f, "{have} of {need} rows compared with the incumbent")?;
                match resting {
                    0 => Ok(()),
                    1 => f.write_str("; 1 device lets its shadow rest under pressure"),
                    _ => write!(f, "; {resting} devices let their shadows rest under pressure"),
                }
            }
            Self::Unscored { devices } => {
                write!(f, "{} to be compared have yet to report: {}", devices.len(), names(&mut devices.iter()))
            }
            Self::Analysing { metric, have, of, next_ms } => {
                write!(f, "analysis {metric}: {have} of {of} measurements, the next at {next_ms} ms")
            }
            Self::HeldByOtherRollout { devices } => {
                write!(f, "held by another rollout: {}", names(&mut devices.iter()))
            }
            Self::Unsuitable { devices } => {
                write!(f, "left out: {}", by_reason(reasons(devices), SHOWN))
            }
            Self::CannotBeTold { devices } => {
                write!(f, "in, and cannot be told: {}", by_reason(reasons(devices), SHOWN))
            }
            Self::HoldbackGroup { devices } => {
                write!(f, "{} held back for good, to compare with: {}", devices.len(), names(&mut devices.iter()))
            }
            Self::CameLater { devices } => {
                write!(f, "{} came later and left out: {}", devices.len(), names(&mut devices.iter()))
            }
            Self::Paused { why } => write!(f, "paused: {why}"),
            Self::GoingBack { done, of } => write!(f, "{done} of {of} devices have gone back"),
        }
    }
}
