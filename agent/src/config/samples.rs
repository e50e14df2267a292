//! Settings of what may leave the device of the inputs it sees: nothing, unless its owner says otherwise.

use muster_shared::collection::RecipientKey;
use muster_shared::limits::MAX_SAMPLES;
use serde::Deserialize;

/// Keys that may be named.
const MAX_RECIPIENTS: usize = 64;

/// Samples for retraining.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SamplesConfig {
    /// Whether any may be kept.
    pub(crate) allow: bool,
    /// The only keys they may be sealed to; any that the director names where there are none.
    pub(crate) recipients: Vec<RecipientKey>,
    /// How many are kept at once, of all collections together.
    pub(crate) max_count: u32,
    /// Bytes they take on disk, of all collections together.
    pub(crate) max_bytes: u64,
    /// How long sealed samples wait in memory before they are written, in milliseconds.
    pub(crate) flush_ms: u64,
    /// How often counts are reported while they grow, in milliseconds.
    pub(crate) report_ms: u64,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self {
            allow: false,
            recipients: Vec::new(),
            max_count: 1_000,
            max_bytes: 64 * 1024 * 1024,
            flush_ms: 60_000,
            report_ms: 60_000,
        }
    }
}

impl SamplesConfig {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |field, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err((field, format!("is {value}, must be from {least} to {most}")))
            }
        };
        within("samples.max-count", u64::from(self.max_count), 1, u64::from(MAX_SAMPLES))?;
        within("samples.max-bytes", self.max_bytes, 64 * 1024, 1 << 40)?;
        within("samples.flush-ms", self.flush_ms, 100, 86_400_000)?;
        within("samples.report-ms", self.report_ms, 100, 86_400_000)?;
        if self.recipients.len() > MAX_RECIPIENTS {
            let problem = format!("names {} keys, at most {MAX_RECIPIENTS} are allowed", self.recipients.len());
            return Err(("samples.recipients", problem));
        }
        Ok(())
    }
}
