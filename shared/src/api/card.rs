//! A model card: what a bundle is, by its manifest, and how it does in the field.

use serde::{Deserialize, Serialize};

use super::DriftReport;
use crate::alert::Alert;
use crate::bundle::Manifest;
use crate::ids::{BundleRef, Digest, RolloutId};
use crate::messages::RequestCounts;
use crate::quality::QualityReport;
use crate::rollout::RolloutStatus;

/// A bundle's card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelCard {
    /// Name and version.
    pub bundle: BundleRef,
    /// Digest of the signed manifest.
    pub manifest_digest: Digest,
    /// The keys that signed it; the controller took it in because enough of them were trusted then. Of a folder, nobody has checked them.
    pub signed_by: Vec<String>,
    /// When the controller took it in, in milliseconds since the Unix epoch.
    pub pushed_at_ms: Option<u64>,
    /// What it is.
    pub manifest: Manifest,
    /// How it does in the field; none of a bundle that no controller was asked about.
    pub live: Option<LiveCard>,
}

/// How a bundle does in the field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LiveCard {
    /// When this was found, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Windows that started before this were left out, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Devices that say they run it.
    pub devices: u32,
    /// Devices that are to run it, whether they do yet or not.
    pub devices_assigned: u32,
    /// When the first of those that run it was told to, in milliseconds since the Unix epoch.
    pub running_since_ms: Option<u64>,
    /// Requests in the windows of all devices.
    pub requests: RequestCounts,
    /// Requests it failed, as a share of those served; none without any.
    pub error_rate: Option<f64>,
    /// Time to answer; none where no request was served.
    pub latency: Option<LatencyCard>,
    /// By its labels, for the whole fleet.
    pub quality: QualityReport,
    /// Against its reference sample, for the whole fleet.
    pub drift: DriftReport,
    /// Alerts about it that are pending or fire, the worst first.
    pub alerts: Vec<Alert>,
    /// Rollouts that bring or brought it, the newest first.
    pub rollouts: Vec<RolloutCard>,
}

/// Quantiles of the time to answer, in microseconds, over the requests of all devices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LatencyCard {
    /// Half of them took no longer.
    pub p50_us: f64,
    /// 95 in a hundred took no longer.
    pub p95_us: f64,
    /// 99 in a hundred took no longer.
    pub p99_us: f64,
}

/// What became of a bundle in a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutCard {
    /// The rollout.
    pub id: RolloutId,
    /// How it stands, or ended.
    pub status: RolloutStatus,
    /// Why, in a sentence.
    pub status_reason: String,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// When it last changed, in milliseconds since the Unix epoch.
    pub updated_at_ms: u64,
    /// Devices that came in.
    pub devices: u32,
    /// Of those, devices on which the bundle failed.
    pub failures: u32,
}
