//! Which devices can run a bundle, and by which names devices say what they are.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::selector::Selector;

/// Instructions of a processor that matter to inference, by the names Linux has for them. Neon of 32-bit ARM counts as `asimd`.
pub const CPU_FEATURES: [&str; 17] = [
    "asimd",
    "asimdhp",
    "asimddp",
    "asimdfhm",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "amx_int8",
];
/// What the attributes that tell of them begin with.
pub const CPU_FEATURE_PREFIX: &str = "cpu-";

/// The attribute by which a device says that it has `feature`.
#[must_use]
pub fn cpu_feature_attribute(feature: &str) -> String {
    format!("{CPU_FEATURE_PREFIX}{feature}")
}

/// Which devices can run the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Requirements {
    /// Architectures as the agent reports them (`x86_64`, `aarch64`, `armv7`, ...); empty for any.
    pub architectures: BTreeSet<String>,
    /// Least memory of the device, in bytes.
    pub min_memory_bytes: u64,
    /// Least version of the agent.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub min_agent_version: Option<semver::Version>,
    /// Instructions the processor must have, of [`CPU_FEATURES`] or of those a later version knows; absent where there are none. Agents
    /// from before they were known refuse a manifest that names some.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub cpu_features: BTreeSet<String>,
    /// What else must hold of the device's attributes; absent where nothing must. Labels do not count: an operator sets those, and the device
    /// does not know them. Agents from before it was known refuse a manifest that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Selector>,
}
