//! Limits of a wave.

use serde::{Deserialize, Serialize};

/// Limits that stop a wave at once when they are passed. Each is judged once enough has been counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limits {
    /// Largest share of served requests that the model fails.
    pub max_error_rate: f64,
    /// Largest ratio of the 99th percentile of latency to the incumbent's.
    pub max_latency_p99_ratio: f64,
    /// Devices that may fail, revert or crash on the new bundle.
    pub max_failures: u32,
    /// Largest population stability index of predictions, canary against control.
    pub max_prediction_psi: f64,
    /// Largest share of rows for which a shadow names another class than the bundle in service, in waves that run as shadow; none to
    /// compare without a limit. It is judged once [`Self::min_requests`] rows were compared, and no such wave passes before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disagreement: Option<f64>,
    /// Telemetry windows with requests in them that a wave needs from its devices; the control needs as many for a
    /// comparison.
    pub min_reports: u32,
    /// Requests that a wave needs from its devices.
    pub min_requests: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_error_rate: 0.05,
            max_latency_p99_ratio: 2.0,
            max_failures: 0,
            max_prediction_psi: 0.25,
            max_disagreement: None,
            min_reports: 3,
            min_requests: 100,
        }
    }
}
