//! Alerts as the HTTP API and the store carry them: rules, alerts, silences.
//!
//! What fires when is `muster-alerts`' decision; what is measured and who is told, the controller's.

mod rule;
mod signal;
mod silence;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::RuleName;

pub use rule::{AlertRule, ApplyRules, BundleFilter, RESERVED_LABELS, RuleError, RuleOrigin, RuleView};
pub use signal::{Signal, Worse};
pub use silence::{CreateSilence, Matcher, Silence, SilenceError};

/// Own rules a controller holds at most.
pub const MAX_RULES: usize = 256;
/// Columns one rule may name.
pub const MAX_RULE_COLUMNS: usize = 256;
/// Silences a controller holds at most.
pub const MAX_SILENCES: usize = 1_024;
/// Requirements one silence may have.
pub const MAX_MATCHERS: usize = 16;
/// Hexadecimal digits of an alert's fingerprint.
pub const FINGERPRINT_DIGITS: usize = 32;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// To be looked at in working hours.
    Warning,
    /// To be looked at now.
    Critical,
}

impl Severity {
    /// Every severity.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Critical];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// How an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AlertState {
    /// Beyond the threshold, and not for long enough yet.
    Pending,
    /// Beyond the threshold for long enough, or since then not back within the other for long enough.
    Firing,
    /// It fired, and is over.
    Resolved,
}

impl AlertState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Firing, Self::Resolved];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }

    /// Whether it is not over.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Pending | Self::Firing)
    }
}

/// What a value rests on. What makes no sense for a signal is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AlertEvidence {
    /// Values or requests counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// How many independent values they are worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_effective: Option<f64>,
    /// What the score exceeds by chance with the report's α only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<f64>,
    /// Chance of a value at least as large when nothing has moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
    /// Share of requests without a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_share: Option<f64>,
    /// Share of values that the reference does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexpected_share: Option<f64>,
    /// Devices that reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<u32>,
    /// Windows that start before this were left out, in milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// The device's own words, or the controller's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// That somebody has seen an alert and looks after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Acknowledgement {
    /// The name of the token it was done with.
    pub by: String,
    /// In milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// In words.
    pub reason: Option<String>,
}

/// What receivers were last told of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Told {
    /// Nothing of this incident.
    #[default]
    Nothing,
    /// That it fires.
    Firing,
    /// That it is over.
    Resolved,
}

/// An alert: one rule, broken by one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Alert {
    /// Names it as long as its rule and its labels are the same: the beginning of their digest.
    pub fingerprint: String,
    /// Its rule.
    pub rule: RuleName,
    /// What broke the rule: `bundle`, `column`, `device`, or the label of a group.
    pub labels: BTreeMap<String, String>,
    /// What the rule adds for those who route it.
    pub rule_labels: BTreeMap<String, String>,
    /// The rule's words with the fields filled in.
    pub annotations: BTreeMap<String, String>,
    /// How bad it is.
    pub severity: Severity,
    /// How it stands.
    pub state: AlertState,
    /// Since when it has been in this state, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// When this incident began, in milliseconds since the Unix epoch; tells it from others of the same fingerprint.
    pub began_ms: u64,
    /// When it began to fire, in milliseconds since the Unix epoch.
    pub fired_ms: Option<u64>,
    /// When it was resolved, in milliseconds since the Unix epoch.
    pub resolved_ms: Option<u64>,
    /// Since when it has been back within the rule's other threshold, in milliseconds since the Unix epoch.
    pub calm_since_ms: Option<u64>,
    /// When it was last measured, in milliseconds since the Unix epoch.
    pub measured_ms: u64,
    /// What was measured last, in the signal's unit.
    pub value: f64,
    /// What it is held against.
    pub threshold: f64,
    /// What the value rests on.
    pub evidence: AlertEvidence,
    /// Why it is resolved, in words.
    pub resolution: Option<String>,
    /// Somebody looks after it.
    pub acknowledged: Option<Acknowledgement>,
    /// What receivers were told.
    pub told: Told,
    /// Whether it asks for a new training.
    pub retrain: bool,
    /// The silence that keeps it from receivers now; filled in when it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silenced_by: Option<String>,
}

impl Alert {
    /// What the rule says of it to people: the annotation `summary`, or whichever comes first; none where there is no annotation.
    #[must_use]
    pub fn words(&self) -> Option<&String> {
        self.annotations.get("summary").or_else(|| self.annotations.values().next())
    }

    /// Every label receivers see: those of the thing, those of the rule, `rule` and `severity`.
    #[must_use]
    pub fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.rule_labels.clone();
        labels.extend(self.labels.clone());
        labels.insert("rule".to_owned(), self.rule.to_string());
        labels.insert("severity".to_owned(), self.severity.as_str().to_owned());
        labels
    }
}

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReceiverView {
    /// Its name in the configuration.
    pub name: String,
    /// `alertmanager`, `webhook`, `slack` or `retraining`.
    pub kind: String,
    /// The host it is told at; paths may be secrets.
    pub host: String,
    /// Messages that wait.
    pub queued: usize,
    /// Why the last try failed; none after one that succeeded.
    pub last_error: Option<String>,
}

/// How a receiver took a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReceiverTest {
    /// Its name.
    pub name: String,
    /// Whether it took the message.
    pub delivered: bool,
    /// What it answered, or why it could not be reached.
    pub detail: String,
}
