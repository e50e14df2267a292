//! What was measured, and what it came to.

use serde::{Deserialize, Serialize};

use super::{TemplateRef, Value};
use crate::rollout::Outcome;

/// Length of an answer or a message as it is kept, in bytes.
const MAX_KEPT_BYTES: usize = 600;

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Measurement {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What it was worth.
    pub outcome: Outcome,
    /// The answer, cut short where it is long; none where none came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

fn kept(text: &str) -> String {
    if text.len() <= MAX_KEPT_BYTES {
        return text.to_owned();
    }
    let end = (0..=MAX_KEPT_BYTES - 3).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

impl Measurement {
    pub(super) fn new(at_ms: u64, outcome: Outcome, value: Option<&Value>, message: Option<String>) -> Self {
        let value = value.map(|value| kept(&value.to_string()));
        Self { at_ms, outcome, value, message: message.map(|message| kept(&message)) }
    }

    /// The answer again; none where none came, where it was cut short, and where it has what JSON has not.
    #[must_use]
    pub fn answer(&self) -> Option<Value> {
        serde_json::from_str::<serde_json::Value>(self.value.as_deref()?).ok().map(Value::from)
    }
}

/// How one metric stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MetricReport {
    /// Its name.
    pub name: String,
    /// What it came to; none while it is being measured.
    pub outcome: Option<Outcome>,
    /// Measurements made, errors not counted.
    pub measured: u32,
    /// Measurements to make.
    pub needed: u32,
    /// Of those made, the ones that failed.
    pub failed: u32,
    /// Those that were inconclusive.
    pub inconclusive: u32,
    /// Measurements that ended in errors, all of them.
    pub errors: u32,
    /// The measurements, oldest first; of errors, those since the last that was none.
    pub measurements: Vec<Measurement>,
    /// All of it in a sentence.
    pub sentence: String,
}

/// How one analysis of a wave stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AnalysisReport {
    /// The template, with its version.
    pub template: TemplateRef,
    /// Its metrics.
    pub metrics: Vec<MetricReport>,
}
