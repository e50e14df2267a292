//! What inputs of a model must be like: the rules that a device holds every request against, before the pipeline.
//!
//! The schema is part of the signed manifest. Element types and shapes are the signature's matter; a rule here is about the
//! values of one feature. What a rule's violation does is its `on-violation`; all violations are counted by cause
//! ([`crate::sketch::QualitySketch`]). A share, as that of missing values, is judged on those counts, not on a single request.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::bundle::{DataType, ModelSignature};
use crate::ids::Digest;
use crate::limits::{MAX_COLUMNS, MAX_LABEL_BYTES, MAX_TEXT_BYTES};
use crate::pipeline::Categories;
use crate::sketch::Cause;

/// Rows a device remembers by a hash to recognise duplicates.
pub const MAX_REMEMBERED_ROWS: u32 = 1_024;

/// What is expected of inputs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DataSchema {
    /// Whether rows that were just seen are noticed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<Duplicates>,
    /// Rules by feature.
    pub features: Vec<FeatureRule>,
}

/// When a row counts as a duplicate: all its features are, byte for byte, those of one of the rows just before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Duplicates {
    /// How many rows before it are looked at, at most [`MAX_REMEMBERED_ROWS`].
    pub among_last: u32,
    /// What is done; a whole row cannot be imputed.
    #[serde(default)]
    pub on_violation: OnViolation,
}

/// What is expected of one feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FeatureRule {
    /// Its name, for people and in answers.
    pub name: String,
    /// The input that holds it.
    pub tensor: String,
    /// The element of the input's row, counted from 0.
    #[serde(default)]
    pub index: u32,
    /// The input's element type; a reminder for the reader, checked against the signature.
    pub datatype: DataType,
    /// The least value that is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The greatest value that is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The values that are expected; any where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub categories: Option<Categories>,
    /// Whether a single value may be missing: NaN, or an empty text.
    #[serde(default)]
    pub may_be_missing: bool,
    /// The share of values that may be missing in a window, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_missing_share: Option<f64>,
    /// Whether a value may be infinite.
    #[serde(default)]
    pub may_be_infinite: bool,
    /// How many times in a row a value may come before the sensor counts as stuck.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck_after: Option<u32>,
    /// Whether it is a time, which must not be before the one before it.
    #[serde(default)]
    pub is_time: bool,
    /// What is done with a request that breaks a rule.
    #[serde(default)]
    pub on_violation: OnViolation,
    /// What takes the place of a value that breaks a rule, when that is to be imputed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impute: Option<Imputed>,
}

/// What is done about a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OnViolation {
    /// The request is answered with the rule that it breaks, and the model does not see it.
    Reject,
    /// The request is answered as always, and the answer says so.
    #[default]
    Flag,
    /// Another value takes the place of a missing, infinite, out-of-range or unknown one, and the answer says so. Other
    /// violations are flagged.
    Impute,
}

/// What happens to values that break a rule, as reports tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Handling {
    /// Nothing: no rule forbids it.
    Counted,
    /// The request was answered, and the answer said so.
    Flagged,
    /// Another value took its place.
    Imputed,
    /// The request was not answered.
    Rejected,
}

impl From<OnViolation> for Handling {
    fn from(on_violation: OnViolation) -> Self {
        match on_violation {
            OnViolation::Reject => Self::Rejected,
            OnViolation::Flag => Self::Flagged,
            OnViolation::Impute => Self::Imputed,
        }
    }
}

/// A value to put in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Imputed {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// Why a schema is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("data schema, feature {feature:?}: {reason}")]
pub struct SchemaError {
    /// The feature's name.
    pub feature: String,
    /// What is wrong.
    pub reason: String,
}

impl DataSchema {
    /// Identifies the schema: the digest of its JSON form, which is deterministic.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// Checks every rule against what callers send, by `signature`, and against its own bounds.
    ///
    /// # Errors
    /// [`SchemaError`] with the first feature whose rules cannot be followed.
    pub fn validate(&self, signature: &ModelSignature) -> Result<(), SchemaError> {
        let refuse =
            |feature: &str, reason: String| Err(SchemaError { feature: feature.chars().take(80).collect(), reason });
        if self.features.len() > MAX_COLUMNS {
            return refuse("", format!("a schema has at most {MAX_COLUMNS} features"));
        }
        if let Some(Duplicates { among_last, on_violation }) = self.duplicates {
            if !(1..=MAX_REMEMBERED_ROWS).contains(&among_last) {
                return refuse("", format!("duplicates: among-last is from 1 to {MAX_REMEMBERED_ROWS}"));
            }
            if on_violation == OnViolation::Impute {
                return refuse("", "duplicates: a whole row cannot be imputed; reject or flag it".into());
            }
        }
        let mut names = BTreeSet::new();
        let mut places = BTreeSet::new();
        for rule in &self.features {
            if rule.name.is_empty() || rule.name.len() > MAX_LABEL_BYTES {
                return refuse(&rule.name, format!("a name has 1 to {MAX_LABEL_BYTES} bytes"));
            }
            if !names.insert(&rule.name) || !places.insert((&rule.tensor, rule.index)) {
                return refuse(&rule.name, "it has rules already".into());
            }
            let Some(spec) = signature.inputs.iter().find(|spec| spec.name == rule.tensor) else {
                let tensor: String = rule.tensor.chars().take(80).collect();
                return refuse(&rule.name, format!("there is no input {tensor:?}"));
            };
            if spec.datatype != rule.datatype {
                return refuse(
                    &rule.name,
                    format!("input {:?} is {}, not {}", spec.name, spec.datatype, rule.datatype),
                );
            }
            if spec.row_width().is_some_and(|width| rule.index as usize >= width) {
                return refuse(&rule.name, format!("rows of input {:?} have no element {}", spec.name, rule.index));
            }
            if let Err(reason) = rule.check() {
                return refuse(&rule.name, reason);
            }
        }
        Ok(())
    }
}

impl FeatureRule {
    /// A rule that expects nothing of a feature but that its values are there and finite.
    #[must_use]
    pub fn of(name: &str, tensor: &str, index: u32, datatype: DataType) -> Self {
        Self {
            name: name.to_owned(),
            tensor: tensor.to_owned(),
            index,
            datatype,
            min: None,
            max: None,
            categories: None,
            may_be_missing: false,
            max_missing_share: None,
            may_be_infinite: false,
            stuck_after: None,
            is_time: false,
            on_violation: OnViolation::Flag,
            impute: None,
        }
    }

    /// What a device does about a value with this cause.
    #[must_use]
    pub fn handling(&self, cause: Cause) -> Handling {
        match self.on_violation {
            _ if cause == Cause::Missing && self.may_be_missing => Handling::Counted,
            OnViolation::Impute if matches!(cause, Cause::Stuck | Cause::OutOfOrder) => Handling::Flagged,
            OnViolation::Reject | OnViolation::Flag | OnViolation::Impute => self.on_violation.into(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let is_text = self.datatype == DataType::Bytes;
        let numbers = [self.min, self.max, self.max_missing_share];
        if numbers.iter().flatten().any(|number| !number.is_finite()) {
            return Err("min, max and max-missing-share are finite numbers".into());
        }
        if self.min.zip(self.max).is_some_and(|(min, max)| min > max) {
            return Err("min is above max".into());
        }
        if is_text && (self.min.is_some() || self.max.is_some() || self.is_time) {
            return Err("BYTES have no range and no order; give categories".into());
        }
        if self.max_missing_share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err("max-missing-share is from 0 to 1".into());
        }
        if self.stuck_after.is_some_and(|times| times < 2) {
            return Err("stuck-after is at least 2".into());
        }
        if let Some(categories) = &self.categories {
            categories.check()?;
            if matches!(categories, Categories::Texts(_)) != is_text {
                return Err(format!("the categories are not of the type {}", self.datatype));
            }
            if !is_text && self.datatype.is_float() {
                return Err("categories are for texts and integers".into());
            }
        }
        match (&self.impute, self.on_violation) {
            (None, OnViolation::Impute) => Err("on-violation = impute needs the value to put in: impute = ...".into()),
            (Some(Imputed::Number(number)), _) if is_text || !number.is_finite() => {
                Err("impute: a text is expected, or a finite number".into())
            }
            (Some(Imputed::Number(number)), _) if !self.datatype.is_float() && number.fract() != 0.0 => {
                Err(format!("impute: {} holds whole numbers only", self.datatype))
            }
            (Some(Imputed::Text(text)), _) if !is_text || text.len() > MAX_TEXT_BYTES => {
                Err("impute: a number is expected, or a shorter text".into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bundle::TensorSpec;
    use crate::damage;

    fn signature() -> ModelSignature {
        let spec =
            |name: &str, datatype, shape: &[i64]| TensorSpec { name: name.into(), datatype, shape: shape.to_vec() };
        ModelSignature {
            inputs: vec![spec("x", DataType::Fp32, &[-1, 2]), spec("city", DataType::Bytes, &[-1, 1])],
            outputs: vec![spec("y", DataType::Fp32, &[-1, 1])],
        }
    }

    fn schema() -> DataSchema {
        let age = FeatureRule {
            min: Some(0.0),
            max: Some(120.0),
            stuck_after: Some(10),
            on_violation: OnViolation::Impute,
            impute: Some(Imputed::Number(40.0)),
            ..FeatureRule::of("age", "x", 0, DataType::Fp32)
        };
        let city = FeatureRule {
            categories: Some(Categories::Texts(vec!["Lyon".into(), "Graz".into()])),
            max_missing_share: Some(0.1),
            on_violation: OnViolation::Reject,
            ..FeatureRule::of("city", "city", 0, DataType::Bytes)
        };
        let duplicates = Some(Duplicates { among_last: 8, on_violation: OnViolation::Flag });
        DataSchema { duplicates, features: vec![age, city] }
    }

    #[test]
    fn rules_that_cannot_be_followed_are_refused_by_name() {
        assert_eq!(schema().validate(&signature()), Ok(()));
        let refuse = |change: &dyn Fn(&mut DataSchema), expected: &str| {
            let mut schema = schema();
            change(&mut schema);
            let error = schema.validate(&signature()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refuse(&|s| s.features[0].min = Some(200.0), "feature \"age\": min is above max");
        refuse(&|s| s.features[0].max = Some(f64::NAN), "finite");
        refuse(&|s| s.features[0].index = 2, "have no element 2");
        refuse(&|s| s.features[0].tensor = "z".into(), "there is no input \"z\"");
        refuse(&|s| s.features[0].datatype = DataType::Int64, "is FP32, not INT64");
        refuse(&|s| s.features[0].impute = None, "needs the value");
        refuse(&|s| s.features[0].impute = Some(Imputed::Text("a".into())), "a number is expected");
        refuse(&|s| s.features[1].min = Some(0.0), "feature \"city\": BYTES have no range");
        refuse(&|s| s.features[1].categories = Some(Categories::Integers(vec![1])), "not of the type BYTES");
        refuse(&|s| s.features[1].categories = Some(Categories::Texts(vec!["a".into(), "a".into()])), "twice");
        refuse(&|s| s.features[1].name = "age".into(), "it has rules already");
        refuse(&|s| s.duplicates = Some(Duplicates { among_last: 0, on_violation: OnViolation::Flag }), "among-last");
    }

    proptest! {
        #[test]
        fn a_damaged_schema_is_refused_or_valid(json in damage::json(serde_json::to_value(schema()).unwrap())) {
            if let Ok(schema) = serde_json::from_value::<DataSchema>(json) {
                let _ = schema.validate(&signature());
            }
        }
    }
}
