//! What a device counts while a bundle serves: requests, latency and resources of one window.

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::numbers::Numbers;
use crate::sketch::{Comparison, LatencySketch, ObjectiveCounts};

/// Requests of one window, by how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RequestCounts {
    /// Answered with a result, or failed by the model: the denominator of the error rate.
    pub served: u64,
    /// Of those served, the model gave an error.
    pub failed: u64,
    /// Of those served, an output held NaN or an infinity.
    pub non_finite: u64,
    /// Turned away because the caller's input did not fit; not the model's fault.
    pub rejected: u64,
    /// Turned away because all workers were busy.
    pub overloaded: u64,
}

impl RequestCounts {
    /// Requests the model is to blame for.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.failed.saturating_add(self.non_finite)
    }

    /// Adds what another window counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.served, other.served),
            (&mut self.failed, other.failed),
            (&mut self.non_finite, other.non_finite),
            (&mut self.rejected, other.rejected),
            (&mut self.overloaded, other.overloaded),
        ] {
            *mine = mine.saturating_add(theirs);
        }
    }
}

/// The agent's own use of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resources {
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Processor time since the start, in milliseconds.
    pub cpu_ms: u64,
    /// Time since the start, in milliseconds.
    pub uptime_ms: u64,
    /// Free space where the agent keeps its data, in bytes.
    pub disk_free_bytes: u64,
    /// Temperature of the device's hottest thermal zone, in thousandths of a degree Celsius; absent where it has none to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_mc: Option<i32>,
    /// How long its processor was held back for heat or want of voltage since the start, in milliseconds; absent where it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_ms: Option<u64>,
}

/// Which bundle a window is about, and when it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowKey {
    /// Digest of the manifest that served.
    pub manifest: Digest,
    /// The generation under which it served.
    pub generation: u64,
    /// Start of the window by the device's clock, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// How long it was, in milliseconds. A window also closes when the bundle changes.
    pub duration_ms: u64,
}

/// An agent program that a device was told to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProgramKey {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// The generation of the program's track under which it ran.
    pub generation: u64,
}

/// Counters of one closed window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TelemetryWindow {
    /// Which bundle, and when.
    pub key: WindowKey,
    /// Requests by outcome.
    pub requests: RequestCounts,
    /// Time from a request's last byte to its answer's first, in microseconds, over requests served.
    pub latency_us: LatencySketch,
    /// The agent's own use of the device.
    pub resources: Resources,
    /// How the bundle's answers compare with the incumbent's; absent where it ran beside none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// Requests served, held against the bundle's latency objectives; absent where it has none.
    #[serde(default, skip_serializing_if = "ObjectiveCounts::is_empty")]
    pub objectives: ObjectiveCounts,
    /// Numbers that applications on the device sent while the bundle served; absent where none came.
    #[serde(default, skip_serializing_if = "Numbers::is_empty")]
    pub numbers: Numbers,
    /// The agent program that counted; absent for the one that the package installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramKey>,
}
