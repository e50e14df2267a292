//! Rules: what is measured, from where on it is bad, and what is said about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{MAX_RULE_COLUMNS, Severity, Signal, Worse};
use crate::ids::{BundleName, BundleRef, RuleName};
use crate::limits::{MAX_LABELS, MAX_TEXT_BYTES};
use crate::selector::{Selector, is_label_text};

/// Labels that Muster itself sets on alerts; a rule neither adds them nor groups by them.
pub const RESERVED_LABELS: [&str; 10] =
    ["alertname", "rule", "severity", "bundle", "column", "device", "slice", "class", "target", "cause"];

/// Longest time in a rule, in milliseconds: a year.
const MAX_TIME_MS: u64 = 366 * 24 * 3_600_000;

/// Which bundles are meant: a model in every version, written `digits`, or one of them, written `digits@1.2.0`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BundleFilter {
    /// A model in every version.
    Name(BundleName),
    /// One version of it.
    Exact(BundleRef),
}

impl BundleFilter {
    /// Whether `bundle` is meant.
    #[must_use]
    pub fn matches(&self, bundle: &BundleRef) -> bool {
        match self {
            Self::Name(name) => bundle.name == *name,
            Self::Exact(exact) => bundle == exact,
        }
    }
}

impl FromStr for BundleFilter {
    type Err = crate::ids::IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('@') { text.parse().map(Self::Exact) } else { BundleName::new(text).map(Self::Name) }
    }
}

impl TryFrom<String> for BundleFilter {
    type Error = crate::ids::IdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BundleFilter> for String {
    fn from(filter: BundleFilter) -> Self {
        filter.to_string()
    }
}

impl fmt::Display for BundleFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Exact(exact) => exact.fmt(f),
        }
    }
}

fn yes() -> bool {
    true
}

fn three_hours() -> u64 {
    3 * 3_600_000
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AlertRule {
    /// Its name; one of a built-in rule takes that one's place.
    pub name: RuleName,
    /// Whether it is looked at.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// What it measures.
    pub signal: Signal,
    /// Only this bundle; all that devices run otherwise.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub bundle: Option<BundleFilter>,
    /// Only these devices.
    #[serde(default = "Selector::all")]
    pub selector: Selector,
    /// A label: each of its values is measured apart. Signals of single devices show it only.
    #[serde(default)]
    pub group_by: Option<String>,
    /// Measures each slice of the bundle's rows apart, as its profile declares them, in place of all rows; devices' labels need `group_by`.
    #[serde(default)]
    pub by_slice: bool,
    /// Only these columns; all of them otherwise.
    #[serde(default)]
    pub columns: Vec<String>,
    /// Beyond this it is bad, in the signal's unit.
    pub fire_at: f64,
    /// Back at this it is good again: `fire_at` itself, or on its good side. `fire_at` when left out.
    #[serde(default)]
    pub clear_at: Option<f64>,
    /// How long it must be bad without a break before it fires, in milliseconds.
    #[serde(default)]
    pub for_ms: u64,
    /// How long it must be good without a break before it is resolved, in milliseconds.
    #[serde(default)]
    pub keep_firing_for_ms: u64,
    /// How far back windows are added up, in milliseconds.
    #[serde(default = "three_hours")]
    pub over_ms: u64,
    /// With fewer values or requests than this, nothing is said.
    #[serde(default)]
    pub min_count: u64,
    /// For `latency-share`: what takes longer than this counts, in microseconds.
    #[serde(default)]
    pub latency_above_us: Option<u64>,
    /// How bad it is.
    pub severity: Severity,
    /// Added to its alerts for those who route them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Words for people; `{value}` and other plain fields of [`Signal::fields`] are filled in.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Whether receivers of kind `retraining` are asked for a new training when it fires.
    #[serde(default)]
    pub retrain: bool,
}

/// Rules to take over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApplyRules {
    /// Each one is new, or takes the place of the one of its name.
    pub rules: Vec<AlertRule>,
}

/// Where a rule comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RuleOrigin {
    /// It comes with the controller.
    BuiltIn,
    /// It was applied.
    Own,
}

/// A rule in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RuleView {
    /// Where it comes from.
    pub origin: RuleOrigin,
    /// The rule.
    pub rule: AlertRule,
}

/// Why a rule is not valid.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("alert rule {rule}, {field}: {reason}")]
pub struct RuleError {
    /// The rule's name.
    pub rule: RuleName,
    /// The field at fault.
    pub field: &'static str,
    /// What is expected.
    pub reason: String,
}

impl AlertRule {
    /// The value at which it is good again.
    #[must_use]
    pub fn clear_at(&self) -> f64 {
        self.clear_at.unwrap_or(self.fire_at)
    }

    /// Whether `value` is bad.
    #[must_use]
    pub fn is_bad(&self, value: f64) -> bool {
        match self.signal.worse() {
            Worse::Above => value > self.fire_at,
            Worse::Below => value < self.fire_at,
        }
    }

    /// Whether `value` is good again.
    #[must_use]
    pub fn is_good(&self, value: f64) -> bool {
        match self.signal.worse() {
            Worse::Above => value <= self.clear_at(),
            Worse::Below => value >= self.clear_at(),
        }
    }

    /// Checks what the types alone do not express.
    ///
    /// # Errors
    /// [`RuleError`] with the first fault found.
    pub fn validate(&self) -> Result<(), RuleError> {
        let expect = |ok: bool, field: &'static str, reason: &str| {
            if ok { Ok(()) } else { Err(RuleError { rule: self.name.clone(), field, reason: reason.to_owned() }) }
        };
        expect(self.fire_at.is_finite(), "fire_at", "a finite number is expected")?;
        expect(self.clear_at().is_finite(), "clear_at", "a finite number is expected")?;
        expect(
            !self.is_bad(self.clear_at()),
            "clear_at",
            match self.signal.worse() {
                Worse::Above => "it must be fire_at or below it, or the alert would flap",
                Worse::Below => "it must be fire_at or above it, or the alert would flap",
            },
        )?;
        for (field, time_ms) in
            [("for_ms", self.for_ms), ("keep_firing_for_ms", self.keep_firing_for_ms), ("over_ms", self.over_ms)]
        {
            expect(time_ms <= MAX_TIME_MS, field, "a year at most is expected")?;
        }
        expect(self.over_ms > 0, "over_ms", "it must be above 0")?;
        let takes_latency = self.signal == Signal::LatencyShare;
        expect(
            takes_latency == self.latency_above_us.is_some_and(|us| us > 0),
            "latency_above_us",
            "it is needed above 0 for the signal latency-share, and belongs to no other",
        )?;
        expect(
            self.columns.is_empty() || self.signal.is_of_columns() || self.signal.is_of_rows(),
            "columns",
            "only drift, shares of values and of rows are measured by column",
        )?;
        expect(
            !self.by_slice || self.signal.knows_slices(),
            "by_slice",
            "only drift, shares of values and metrics of labels are measured by slice, and a loss against the reference as a whole",
        )?;
        expect(self.columns.len() <= MAX_RULE_COLUMNS, "columns", "256 at most are expected")?;
        let distinct: BTreeSet<&String> = self.columns.iter().collect();
        expect(distinct.len() == self.columns.len(), "columns", "one is named twice")?;
        let may_group = |label: &str| is_label_text(label) && label != "id" && !RESERVED_LABELS.contains(&label);
        expect(
            self.group_by.as_deref().is_none_or(may_group),
            "group_by",
            "the key of a device's label is expected, none of those that Muster sets on alerts",
        )?;
        expect(self.labels.len() <= MAX_LABELS, "labels", "64 at most are expected")?;
        let label_fits = |(key, value): (&String, &String)| may_group(key) && is_label_text(value);
        expect(
            self.labels.iter().all(label_fits) && self.group_by.iter().all(|key| !self.labels.contains_key(key)),
            "labels",
            "keys and values are 1 to 128 visible ASCII characters without ,=!*, and none that Muster or group_by sets",
        )?;
        expect(self.annotations.len() <= MAX_LABELS, "annotations", "64 at most are expected")?;
        for (key, text) in &self.annotations {
            expect(is_label_text(key), "annotations", "a name is 1 to 128 visible ASCII characters without ,=!*")?;
            expect(text.len() <= MAX_TEXT_BYTES, "annotations", "a text has 1024 bytes at most")?;
            if let Err(field) = fields_of(text, &self.signal.fields()) {
                let known = self.signal.fields().join(", ");
                return Err(RuleError {
                    rule: self.name.clone(),
                    field: "annotations",
                    reason: format!(
                        "{field:?} is no field of {}: use {known} in braces, and braces for nothing else",
                        self.signal.as_str()
                    ),
                });
            }
        }
        Ok(())
    }
}

/// Whether every brace in `text` belongs to one of `known`; else what stands there.
fn fields_of(text: &str, known: &[&str]) -> Result<(), String> {
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let from = &rest[at..];
        let shown = || from.chars().take(20).collect::<String>();
        let field = from.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let Some((field, after)) = field else { return Err(shown()) };
        if !known.contains(&field) {
            return Err(shown());
        }
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(signal: Signal) -> AlertRule {
        let json = serde_json::json!({ "name": "r", "signal": signal, "fire_at": 0.5, "severity": "warning" });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn mistakes_are_named_by_field() {
        rule(Signal::InputDrift).validate().unwrap();
        type Spoil = fn(&mut AlertRule);
        let faults: [(&str, Spoil); 13] = [
            ("fire_at", |r| r.fire_at = f64::NAN),
            ("clear_at", |r| r.clear_at = Some(0.6)),
            ("clear_at", |r| r.clear_at = Some(f64::NEG_INFINITY)),
            ("over_ms", |r| r.over_ms = 0),
            ("for_ms", |r| r.for_ms = u64::MAX),
            ("latency_above_us", |r| r.latency_above_us = Some(5)),
            ("columns", |r| r.columns = vec!["a".into(), "a".into()]),
            ("group_by", |r| r.group_by = Some("device".into())),
            ("by_slice", |r| (r.signal, r.by_slice) = (Signal::QualityLoss, true)),
            ("labels", |r| r.labels = [("severity".to_owned(), "x".to_owned())].into()),
            ("annotations", |r| r.annotations = [("summary".to_owned(), "{device} is off".to_owned())].into()),
            ("annotations", |r| r.annotations = [("summary".to_owned(), "{value".to_owned())].into()),
            ("annotations", |r| r.annotations = [("summary".to_owned(), "a }".to_owned())].into()),
        ];
        for (field, spoil) in faults {
            let mut spoilt = rule(Signal::InputDrift);
            spoil(&mut spoilt);
            assert_eq!(spoilt.validate().unwrap_err().field, field, "{spoilt:?}");
        }
        assert_eq!(rule(Signal::LatencyShare).validate().unwrap_err().field, "latency_above_us");
        rule(Signal::Accuracy).validate().unwrap();
        let mut low = rule(Signal::DiskFree);
        low.clear_at = Some(0.4);
        assert_eq!(low.validate().unwrap_err().field, "clear_at", "where small is bad, good is above");
    }

    #[test]
    fn a_filter_means_a_model_or_one_version() {
        let bundle: BundleRef = "digits@1.0.0".parse().unwrap();
        for (filter, meant) in [("digits", true), ("digits@1.0.0", true), ("digits@1.0.1", false), ("digit", false)] {
            assert_eq!(filter.parse::<BundleFilter>().unwrap().matches(&bundle), meant, "{filter}");
        }
        assert!("a b".parse::<BundleFilter>().is_err());
    }

    proptest! {
        #[test]
        fn no_value_is_bad_and_good(fire_at in -1e6..1e6f64, step in 0.0..1e3f64, value in -2e6..2e6f64, low: bool) {
            let mut rule = rule(if low { Signal::DiskFree } else { Signal::ErrorRate });
            rule.fire_at = fire_at;
            rule.clear_at = Some(if low { fire_at + step } else { fire_at - step });
            prop_assert!(rule.validate().is_ok());
            prop_assert!(!(rule.is_bad(value) && rule.is_good(value)));
        }

        #[test]
        fn any_annotation_is_taken_or_refused(text in ".{0,40}|\\{(value|x)\\}?.{0,5}") {
            let mut rule = rule(Signal::ErrorRate);
            rule.annotations.insert("summary".into(), text);
            let _ = rule.validate();
        }
    }
}
