//! What a template is, what makes it valid, and what it comes to with its arguments.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Condition, Measurement, Provider, Span, Value, arguments};
use crate::ids::TemplateName;
use crate::limits::{MAX_ANALYSIS_ARGS, MAX_ANALYSIS_METRICS, MAX_MEASUREMENTS, MAX_QUESTION_BYTES};
use crate::rollout::Outcome;

/// The shortest time between two measurements, in milliseconds.
const MIN_INTERVAL_MS: u64 = 100;
/// Time after which a metric without an interval is measured again where the answer was an error, as in Argo Rollouts, in milliseconds.
const ERROR_RETRY_MS: u64 = 10_000;
/// Errors in a row that a metric allows where nothing is said, as in Argo Rollouts.
const CONSECUTIVE_ERROR_LIMIT: u32 = 4;

/// A template by name, or by name and version, written `success-rate@2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateRef {
    /// Its name.
    pub name: TemplateName,
    /// Its version; the newest where there is none.
    pub version: Option<u32>,
}

/// Why a text names no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no analysis template: write NAME or NAME@VERSION, as success-rate@2")]
pub struct TemplateRefError(String);

impl FromStr for TemplateRef {
    type Err = TemplateRefError;
    fn from_str(text: &str) -> Result<Self, TemplateRefError> {
        let refuse = || TemplateRefError(text.chars().take(80).collect());
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let version = version.map(|digits| digits.parse::<u32>().ok().filter(|n| *n > 0).ok_or_else(refuse));
        Ok(Self { name: TemplateName::new(name).map_err(|_| refuse())?, version: version.transpose()? })
    }
}

impl TryFrom<String> for TemplateRef {
    type Error = TemplateRefError;
    fn try_from(text: String) -> Result<Self, TemplateRefError> {
        text.parse()
    }
}

impl From<TemplateRef> for String {
    fn from(reference: TemplateRef) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for TemplateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// An argument of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// What it is where nobody says otherwise; none where somebody must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// What is measured, how often, and what the measurements may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MetricTemplate {
    /// Its name.
    pub name: String,
    /// How long after the beginning it is first measured; at once where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_delay: Option<Span>,
    /// The time between two measurements; needed for more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// Measurements to make, those that end in errors not counted; 1 where there is no interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// When a measurement is successful.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_condition: Option<String>,
    /// When it has failed. With both conditions, one that meets neither is inconclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_condition: Option<String>,
    /// Measurements that may fail.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failure_limit: u32,
    /// Measurements that may be inconclusive.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inconclusive_limit: u32,
    /// Errors in a row that are put up with.
    #[serde(default = "consecutive_error_limit", skip_serializing_if = "is_usual_error_limit")]
    pub consecutive_error_limit: u32,
    /// Who is asked.
    pub provider: Provider,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

const fn consecutive_error_limit() -> u32 {
    CONSECUTIVE_ERROR_LIMIT
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_usual_error_limit(n: &u32) -> bool {
    *n == CONSECUTIVE_ERROR_LIMIT
}

/// A template as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AnalysisTemplate {
    /// Its name.
    pub name: TemplateName,
    /// What can be said when it is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
    /// What is measured.
    pub metrics: Vec<MetricTemplate>,
}

/// A template as it is kept: no version of it ever changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TemplateView {
    /// Which version, counted from 1.
    pub version: u32,
    /// When it came, in milliseconds since the Unix epoch.
    pub pushed_at_ms: u64,
    /// Who brought it.
    pub pushed_by: String,
    /// What it says.
    pub template: AnalysisTemplate,
}

/// A template with its arguments, as a rollout keeps it: what becomes of the template later does not change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Analysis {
    /// Which template, with its version.
    pub template: TemplateRef,
    /// The waves it is for, counted from 1; all of them where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<u32>,
    /// What is measured, arguments filled in.
    pub metrics: Vec<MetricTemplate>,
}

impl Analysis {
    /// Whether it is for `wave`, counted from 0.
    #[must_use]
    pub fn is_for(&self, wave: u32) -> bool {
        self.waves.is_empty() || self.waves.iter().any(|number| number.checked_sub(1) == Some(wave))
    }
}

/// What is wrong with a template or its arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct TemplateError {
    /// The field, as `metrics[0].interval`.
    pub field: String,
    /// What is expected.
    pub reason: String,
}

fn expect(holds: bool, field: impl Into<String>, reason: impl Into<String>) -> Result<(), TemplateError> {
    if holds { Ok(()) } else { Err(TemplateError { field: field.into(), reason: reason.into() }) }
}

impl AnalysisTemplate {
    /// Checks what the types alone do not express. What rests on arguments without a value is checked when they have one.
    ///
    /// # Errors
    /// [`TemplateError`] with the first fault found.
    pub fn validate(&self) -> Result<(), TemplateError> {
        expect(self.args.len() <= MAX_ANALYSIS_ARGS, "args", format!("at most {MAX_ANALYSIS_ARGS} are expected"))?;
        for (at, Argument { name, value }) in self.args.iter().enumerate() {
            let field = format!("args[{at}].name");
            expect(arguments::is_name(name), &field, "1 to 64 letters, digits, '-' and '_' are expected")?;
            expect(!self.args[..at].iter().any(|other| other.name == *name), &field, format!("{name} is there twice"))?;
            let short = value.as_ref().is_none_or(|value| value.len() <= MAX_QUESTION_BYTES);
            expect(short, format!("args[{at}].value"), format!("at most {MAX_QUESTION_BYTES} bytes are expected"))?;
        }
        let metrics = 1..=MAX_ANALYSIS_METRICS;
        expect(metrics.contains(&self.metrics.len()), "metrics", format!("1 to {MAX_ANALYSIS_METRICS} are expected"))?;
        let known: BTreeMap<String, Option<String>> =
            self.args.iter().map(|arg| (arg.name.clone(), arg.value.clone())).collect();
        for (at, metric) in self.metrics.iter().enumerate() {
            let twice = self.metrics[..at].iter().any(|other| other.name == metric.name);
            expect(!twice, format!("metrics[{at}].name"), format!("{} is there twice", metric.name))?;
            // Names must be right in any case; the rest is checked where its arguments have values.
            let given = arguments::given(&known);
            metric.filled(at, &|name| match known.get(name) {
                Some(None) => Ok("1".to_owned()),
                Some(Some(_)) | None => given(name),
            })?;
            metric.validate(at, &|text| arguments::fill(text, &given))?;
        }
        Ok(())
    }

    /// What is measured with these arguments; those not given are what the template says.
    ///
    /// # Errors
    /// [`TemplateError`] with an argument that is missing or unknown, or what it makes wrong.
    pub fn resolve(&self, args: &BTreeMap<String, String>) -> Result<Vec<MetricTemplate>, TemplateError> {
        let mut all: BTreeMap<String, Option<String>> =
            self.args.iter().map(|arg| (arg.name.clone(), arg.value.clone())).collect();
        let names = all.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        for (name, value) in args {
            let known = all.get_mut(name).ok_or_else(|| TemplateError {
                field: format!("args.{name}"),
                reason: if names.is_empty() {
                    format!("{} takes no arguments", self.name)
                } else {
                    format!("{} has no such argument; it has: {names}", self.name)
                },
            })?;
            *known = Some(value.clone());
        }
        let missing = all.iter().find(|(_, value)| value.is_none()).map(|(name, _)| name.clone());
        if let Some(name) = missing {
            let reason = format!("{} needs it: give it a value", self.name);
            return Err(TemplateError { field: format!("args.{name}"), reason });
        }
        let given = arguments::given(&all);
        let filled = self.metrics.iter().enumerate().map(|(at, metric)| {
            let filled = metric.filled(at, &given)?;
            filled.validate(at, &|text| Ok(text.to_owned())).map(|()| filled)
        });
        filled.collect()
    }
}

impl MetricTemplate {
    /// Measurements it takes.
    #[must_use]
    pub fn needed(&self) -> u32 {
        self.count.unwrap_or(1)
    }

    /// The time from one measurement to the next, in milliseconds. Without an interval there is another one only after an error.
    #[must_use]
    pub fn pause_ms(&self) -> u64 {
        self.interval.map_or(ERROR_RETRY_MS, Span::ms)
    }

    /// What one answer, or the lack of one, is worth (Argo Rollouts, `EvaluateResult`): with one condition, what does not meet it is its
    /// contrary; with both, what meets neither is inconclusive, and the failure condition wins.
    #[must_use]
    pub fn measure(&self, at_ms: u64, answer: Result<Value, String>) -> Measurement {
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return Measurement::new(at_ms, Outcome::Error, None, Some(why)),
        };
        let asked = |condition: &Option<String>| {
            let text = condition.as_ref()?;
            Some(Condition::parse(text).and_then(|condition| condition.holds(&answer)))
        };
        let judged = match (asked(&self.success_condition).transpose(), asked(&self.failure_condition).transpose()) {
            (Err(error), _) => Err(format!("successCondition: {error}")),
            (_, Err(error)) => Err(format!("failureCondition: {error}")),
            (Ok(_), Ok(Some(true))) | (Ok(Some(false)), Ok(None)) => Ok(Outcome::Failed),
            (Ok(Some(true)), Ok(_)) | (Ok(None), Ok(Some(false))) => Ok(Outcome::Successful),
            (Ok(Some(false)), Ok(Some(false))) => Ok(Outcome::Inconclusive),
            (Ok(None), Ok(None)) => Err("there is no condition".to_owned()),
        };
        match judged {
            Ok(outcome) => Measurement::new(at_ms, outcome, Some(&answer), None),
            Err(why) => Measurement::new(at_ms, Outcome::Error, Some(&answer), Some(why)),
        }
    }

    /// The same with its arguments.
    fn filled(&self, at: usize, value_of: &impl Fn(&str) -> Result<String, String>) -> Result<Self, TemplateError> {
        let fault = |field: &str, reason| TemplateError { field: format!("metrics[{at}].{field}"), reason };
        let fill = |text: &str| arguments::fill(text, value_of);
        let condition = |field: &'static str, text: &Option<String>| {
            text.as_ref().map(|text| fill(text).map_err(|reason| fault(field, reason))).transpose()
        };
        Ok(Self {
            success_condition: condition("successCondition", &self.success_condition)?,
            failure_condition: condition("failureCondition", &self.failure_condition)?,
            provider: self
                .provider
                .map(&fill)
                .map_err(|(field, reason)| fault(&format!("provider.{field}"), reason))?,
            ..self.clone()
        })
    }

    /// Checks it all, except for texts that `fill` makes nothing of, for want of an argument.
    fn validate(&self, at: usize, fill: &impl Fn(&str) -> Result<String, String>) -> Result<(), TemplateError> {
        self.validate_numbers(at)?;
        for (field, condition) in
            [("successCondition", &self.success_condition), ("failureCondition", &self.failure_condition)]
        {
            let filled = condition.as_ref().and_then(|text| fill(text).ok());
            if let Some(Err(error)) = filled.map(|text| Condition::parse(&text)) {
                return Err(TemplateError { field: format!("metrics[{at}].{field}"), reason: error.to_string() });
            }
        }
        let wrong = |(field, reason)| TemplateError { field: format!("metrics[{at}].provider.{field}"), reason };
        self.provider.map(fill).map_or(Ok(()), |filled| filled.validate()).map_err(wrong)
    }

    fn validate_numbers(&self, at: usize) -> Result<(), TemplateError> {
        let field = |name: &str| format!("metrics[{at}].{name}");
        expect(arguments::is_name(&self.name), field("name"), "1 to 64 letters, digits, '-' and '_' are expected")?;
        let judged = self.success_condition.is_some() || self.failure_condition.is_some();
        let reason = "it or failureCondition is needed: no data must never promote";
        expect(judged, field("successCondition"), reason)?;
        let pause = self.interval.is_none_or(|interval| interval.ms() >= MIN_INTERVAL_MS);
        expect(pause, field("interval"), "at least 100ms is expected")?;
        let ends = self.interval.is_none() || self.count.is_some();
        expect(ends, field("count"), "it is needed beside interval, or the wave would never end")?;
        let range = format!("1 to {MAX_MEASUREMENTS} is expected");
        expect(self.count.is_none_or(|count| (1..=MAX_MEASUREMENTS).contains(&count)), field("count"), range)?;
        let several = self.needed() <= 1 || self.interval.is_some();
        expect(several, field("interval"), "it is needed where count is above 1")?;
        let reason = "it must be below count, or the metric could not fail";
        expect(self.failure_limit < self.needed(), field("failureLimit"), reason)?;
        let reason = "it must be below count: no data must never promote";
        expect(self.inconclusive_limit < self.needed(), field("inconclusiveLimit"), reason)?;
        let reason = format!("at most {MAX_MEASUREMENTS} is expected");
        expect(self.consecutive_error_limit <= MAX_MEASUREMENTS, field("consecutiveErrorLimit"), reason)
    }
}
