//! Settings of when, how fast and over which links anything is fetched.

use muster_agent_core::delivery::{QuietHours, Rules};
use muster_shared::trust::MIN_DOWNLOAD_BYTES_PER_S;
use serde::Deserialize;

/// Longest name of a network interface, in bytes, with room for a pattern's star.
const MAX_INTERFACE_BYTES: usize = 16;

/// When, how fast and over which links bundles are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DeliveryConfig {
    /// Most bytes of chunks fetched in a second.
    pub(crate) max_download_bytes_per_s: Option<u64>,
    /// Spans of the day in which no chunks are fetched.
    pub(crate) quiet_hours: QuietHours,
    /// The zone of these hours; the device's own where none is given.
    pub(crate) time_zone: Option<String>,
    /// Whether the link costs by the byte.
    pub(crate) metered: MeteredSetting,
    /// Names of interfaces that do, where a `*` at the end stands for anything.
    pub(crate) metered_interfaces: Vec<String>,
    /// Whether chunks travel on a metered link where the rollout does not say.
    pub(crate) metered_chunks: bool,
    /// What of the telemetry travels on a metered link.
    pub(crate) metered_telemetry: MeteredTelemetry,
}

/// How it is known whether the link costs by the byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MeteredSetting {
    /// It always does.
    Yes,
    /// It never does.
    No,
    /// It does while the default route leads over one of the interfaces named.
    Auto,
}

/// What of the telemetry travels on a metered link; the rest waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MeteredTelemetry {
    /// Everything.
    All,
    /// Counters and latency, and no sketches.
    Counts,
    /// Nothing.
    None,
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            max_download_bytes_per_s: None,
            quiet_hours: QuietHours::default(),
            time_zone: None,
            metered: MeteredSetting::Auto,
            metered_interfaces: ["wwan*", "ppp*"].map(str::to_owned).into(),
            metered_chunks: false,
            metered_telemetry: MeteredTelemetry::All,
        }
    }
}

impl DeliveryConfig {
    /// What holds downloads back, where the rollout does not say otherwise.
    pub(crate) fn rules(&self) -> Rules {
        Rules {
            max_download_bytes_per_s: self.max_download_bytes_per_s,
            quiet_hours: self.quiet_hours.clone(),
            metered_chunks: self.metered_chunks,
        }
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(cap) = self.max_download_bytes_per_s.filter(|cap| *cap < MIN_DOWNLOAD_BYTES_PER_S) {
            let problem =
                format!("is {cap}, must be {MIN_DOWNLOAD_BYTES_PER_S} or more, or no bundle would ever arrive");
            return Err(("delivery.max-download-bytes-per-s", problem));
        }
        let is_pattern = |name: &str| {
            let name = name.strip_suffix('*').unwrap_or(name);
            name.len() < MAX_INTERFACE_BYTES && !name.contains(['*', '/', ' '])
        };
        if let Some(name) = self.metered_interfaces.iter().find(|name| name.is_empty() || !is_pattern(name)) {
            let name: String = name.chars().take(40).collect();
            return Err((
                "delivery.metered-interfaces",
                format!("names {name:?}, which is no interface: write wwan0, or wwan* for all that begin so"),
            ));
        }
        Ok(())
    }
}
