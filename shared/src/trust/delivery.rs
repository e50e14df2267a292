//! When and how fast a device may fetch what an assignment brings, as far as the rollout has a say.

use serde::{Deserialize, Serialize};

/// Least cap that lets a rollout end, in bytes per second.
pub const MIN_DOWNLOAD_BYTES_PER_S: u64 = 256;

/// Whether a bundle may travel on a link that costs by the byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MeteredUse {
    /// As the device is configured.
    #[default]
    AsConfigured,
    /// It may, however the device is configured.
    Allowed,
    /// It must wait for another link, however the device is configured.
    Never,
}

/// What a rollout asks of devices that fetch its bundle, beside what they are configured to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeliveryPolicy {
    /// Most bytes of chunks that a device fetches in a second, if that is less than it is configured to; none for no cap of the
    /// rollout's.
    pub max_download_bytes_per_s: Option<u64>,
    /// Whether the bundle may travel on a metered link.
    pub metered: MeteredUse,
    /// The bundle is fetched in quiet hours, too.
    pub ignore_quiet_hours: bool,
}

impl DeliveryPolicy {
    /// As fast as the device can, on any link and at any time: for ways back, and for emergencies.
    #[must_use]
    pub const fn at_once() -> Self {
        Self { max_download_bytes_per_s: None, metered: MeteredUse::Allowed, ignore_quiet_hours: true }
    }

    /// Whether it asks for nothing. It is left out of documents then, so that agents that do not know of it read them.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
