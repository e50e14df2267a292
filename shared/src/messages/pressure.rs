//! How hard pressed a device is, as it says itself.

use serde::{Deserialize, Serialize};

/// How hard pressed a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PressureLevel {
    /// Not at all.
    #[default]
    None,
    /// It runs no shadow.
    Some,
    /// It slows downloads and uploads as well.
    High,
    /// Something this version has no word for.
    #[serde(other)]
    Other,
}

/// Whether a processor is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttling {
    /// It is not.
    None,
    /// For heat.
    Heat,
    /// For want of voltage.
    UnderVoltage,
}

/// What presses on a device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pressure {
    /// How hard.
    pub level: PressureLevel,
    /// What it is, in words, at most [`crate::limits::MAX_TEXT_BYTES`].
    pub reason: String,
}

impl Pressure {
    /// Whether nothing presses and nothing is said of it; it is left out of reports then.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
