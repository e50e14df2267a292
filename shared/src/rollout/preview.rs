//! What a rollout would do if it were created now.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::analysis::Analysis;
use super::approval::ApprovalRecord;
use super::gate::Block;
use super::spec::RolloutSpec;
use crate::ids::{DeviceId, Digest, RolloutId};

/// One wave as it would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WavePreview {
    /// Devices it would take in beyond those of earlier waves.
    pub devices: Vec<DeviceId>,
    /// Of those, the ones that are away now.
    pub offline: Vec<DeviceId>,
    /// The wave's part of the gate's α; none without a gate.
    pub alpha: Option<f64>,
    /// Who would be compared with whom.
    pub blocks: Vec<Block<DeviceId>>,
    /// How long its devices would take to come in; none without a rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intake: Option<IntakePreview>,
}

/// How long the devices of a wave would take to come in at the rate asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IntakePreview {
    /// From the first to the last, in milliseconds, where everybody has done it within a minute.
    pub least_ms: u64,
    /// The same where nobody of the wave succeeds meanwhile.
    pub most_ms: u64,
}

/// A rollout as it would be, as things are: nothing was stored, and nobody told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutPreview {
    /// The name it would get, from which the order of devices comes.
    pub id: RolloutId,
    /// What was asked for.
    pub spec: RolloutSpec,
    /// Digest of the bundle's manifest.
    pub manifest: Digest,
    /// Its waves.
    pub waves: Vec<WavePreview>,
    /// Devices that belong to another rollout that is not finished.
    pub held: Vec<DeviceId>,
    /// Who must approve it before it begins; nobody where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRecord>,
    /// The analyses that its waves would have to stand, with the versions that it would keep.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub analyses: Vec<Analysis>,
    /// Rollouts that it would end, as an emergency does with those that have devices it wants.
    #[serde(default)]
    pub ends: Vec<RolloutId>,
    /// Devices that it would hold back for good, to compare with.
    #[serde(default)]
    pub group: Vec<DeviceId>,
    /// Devices that are left out, and why: they cannot run the bundle, are pinned or quarantined.
    pub unsuitable: BTreeMap<DeviceId, String>,
}
