//! What a label says about a bundle's answers: which output it is the truth of, and how a written label is read.
//!
//! It is part of the signed profile, so that devices and controller count the same cells. Joining labels with predictions
//! is the agent's matter; the counts are [`crate::sketch::LabelSketch`]'s, and what they mean is [`crate::quality`]'s.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::limits::{MAX_CLASSES, MAX_LABEL_BYTES, MAX_LABEL_TARGETS};
use crate::profile::{Column, Reference, Source};
use crate::quality::Baseline;

/// Numbers are counted in this share of their target's scale, 2⁻²⁰: sums of whole units are exact, whatever their order.
pub const UNITS_PER_SCALE: f64 = 1_048_576.0;
/// Most units a truth or an error counts as, 2⁵²; what is larger counts as this.
const MAX_UNITS: f64 = 4_503_599_627_370_496.0;
/// Scales outside of this make no sense, and their squares would not fit a number.
const SCALES: std::ops::RangeInclusive<f64> = 1e-30..=1e30;

/// What a label is the truth of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LabelSpec {
    /// The output tensor whose rows are labelled.
    pub tensor: String,
    /// What a label is.
    pub task: LabelTask,
    /// How good the model was on the labelled reference sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// The output names the class itself, as a text or a whole number, in place of a score for each class: scikit-learn's `label`. Nothing
    /// is known of confidence then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub names_class: bool,
}

/// What a label is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LabelTask {
    /// One of a set of classes.
    Classification {
        /// Their names, in the order of the output's elements.
        classes: Vec<String>,
    },
    /// A number for each target.
    Regression {
        /// The elements that are labelled.
        targets: Vec<LabelTarget>,
    },
}

/// An element of an output that is labelled with a number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LabelTarget {
    /// Element of the row, counted from 0.
    pub index: u32,
    /// How far the truth ranges, about; numbers are counted in 2⁻²⁰ of it.
    pub scale: f64,
}

/// What a model answered for one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Prediction {
    /// A class by its position, with how sure the model was of it. None where the answer was of no class, as with a NaN.
    Class(Option<(u16, f64)>),
    /// The answer for each target; NaN where there was none.
    Numbers(Box<[f64]>),
}

/// A label that was read.
#[derive(Debug, Clone, PartialEq)]
pub enum Truth {
    /// A class by its position; the number of classes for one that is not among them.
    Class(u16),
    /// A finite number for each target.
    Numbers(Box<[f64]>),
}

/// Why labels cannot be declared so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("labels: {0}")]
pub struct LabelSpecError(pub &'static str);

impl LabelTarget {
    /// `x` in units of this target, rounded.
    #[must_use]
    pub fn units(&self, x: f64) -> i64 {
        #[expect(clippy::cast_possible_truncation, reason = "within 2^52 by the clamp; NaN becomes 0")]
        let units = (x / self.scale * UNITS_PER_SCALE).round().clamp(-MAX_UNITS, MAX_UNITS) as i64;
        units
    }

    /// One unit in the target's own measure.
    #[must_use]
    pub fn unit(&self) -> f64 {
        self.scale / UNITS_PER_SCALE
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        // As a table has it.
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
    .filter(|number| number.is_finite())
}

/// A class as it was written, in the form in which names are compared.
fn class_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => {
            let whole = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15);
            #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
            Some(whole.map_or_else(|| number.to_string(), |x| (x as i64).to_string()))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

impl LabelSpec {
    /// Labels of the output `tensor`, which has a score for each class where they are classes. There is no baseline.
    #[must_use]
    pub fn new(tensor: impl Into<String>, task: LabelTask) -> Self {
        Self { tensor: tensor.into(), task, baseline: None, names_class: false }
    }

    /// Checks every bound that counting relies on.
    ///
    /// # Errors
    /// [`LabelSpecError`] with the first that is broken.
    pub fn validate(&self) -> Result<(), LabelSpecError> {
        let refuse = |reason| Err(LabelSpecError(reason));
        if self.tensor.is_empty() || self.tensor.len() > MAX_LABEL_BYTES {
            return refuse("the output's name has 1 to 128 bytes");
        }
        match &self.task {
            LabelTask::Classification { classes } => {
                if classes.is_empty() || classes.len() > MAX_CLASSES {
                    return refuse("1 to 256 classes are allowed");
                }
                if classes.iter().any(|class| class.is_empty() || class.len() > MAX_LABEL_BYTES) {
                    return refuse("a class name has 1 to 128 bytes");
                }
                if classes.iter().collect::<BTreeSet<_>>().len() != classes.len() {
                    return refuse("a class is named twice");
                }
            }
            LabelTask::Regression { targets } => {
                if self.names_class {
                    return refuse("a number does not name a class");
                }
                if targets.is_empty() || targets.len() > MAX_LABEL_TARGETS {
                    return refuse("1 to 16 elements can be labelled");
                }
                if targets.iter().any(|target| !SCALES.contains(&target.scale)) {
                    return refuse("a scale is from 1e-30 to 1e30");
                }
                if targets.iter().map(|target| target.index).collect::<BTreeSet<_>>().len() != targets.len() {
                    return refuse("an element is named twice");
                }
            }
        }
        if self.baseline.as_ref().is_some_and(|baseline| !baseline.fits(&self.task)) {
            return refuse("the baseline is not of the task");
        }
        Ok(())
    }

    /// The columns from whose values [`Self::prediction`] is made: the predicted class and, where there are scores, its confidence, or the
    /// targets. They have no reference of their own.
    #[must_use]
    pub fn columns(&self) -> Vec<Column> {
        let number = || Reference::Numeric { lower_edges: vec![0.0], max: 0.0, counts: vec![0], missing: 0 };
        let tensor = || self.tensor.clone();
        let classes_of =
            |classes: &[String]| Reference::Class { classes: classes.to_vec(), counts: vec![0; classes.len()] };
        match &self.task {
            LabelTask::Classification { classes } if self.names_class => vec![Column {
                name: "class".into(),
                source: Source::Output { tensor: tensor(), index: 0 },
                reference: classes_of(classes),
            }],
            LabelTask::Classification { classes } => vec![
                Column {
                    name: "class".into(),
                    source: Source::PredictedClass { tensor: tensor() },
                    reference: classes_of(classes),
                },
                Column {
                    name: "confidence".into(),
                    source: Source::Confidence { tensor: tensor() },
                    reference: number(),
                },
            ],
            LabelTask::Regression { targets } => targets
                .iter()
                .map(|target| Column {
                    name: format!("target.{}", target.index),
                    source: Source::Output { tensor: tensor(), index: target.index },
                    reference: number(),
                })
                .collect(),
        }
    }

    /// What the model answered for a row, from the values of [`Self::columns`] in it; NaN where a column has none.
    #[must_use]
    pub fn prediction(&self, values: &[f64]) -> Prediction {
        match &self.task {
            LabelTask::Classification { classes } => {
                let class =
                    values.first().copied().filter(|x| x.fract() == 0.0 && *x >= 0.0 && *x < classes.len() as f64);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "below the number of classes"
                )]
                let class = class.map(|x| (x as u16, values.get(1).copied().unwrap_or(f64::NAN)));
                Prediction::Class(class)
            }
            LabelTask::Regression { targets } => {
                Prediction::Numbers((0..targets.len()).map(|at| values.get(at).copied().unwrap_or(f64::NAN)).collect())
            }
        }
    }

    /// Reads the label of one row. A class may be written as its name or, where no class is called by a number, as its position;
    /// one that is not known is still a label. Numbers may be written as text; with several targets there is a list of
    /// them. `None` where it is no label: of another kind, not finite, too many or too few.
    #[must_use]
    pub fn read(&self, label: &Value) -> Option<Truth> {
        match &self.task {
            LabelTask::Classification { classes } => {
                let text = class_text(label)?;
                let by_position = || {
                    let named_by_numbers = classes.iter().any(|class| class.parse::<f64>().is_ok());
                    text.parse::<usize>().ok().filter(|at| !named_by_numbers && *at < classes.len())
                };
                if matches!(text.to_ascii_lowercase().as_str(), "nan" | "inf" | "-inf") && !classes.contains(&text) {
                    return None;
                }
                let at = classes.iter().position(|class| *class == text).or_else(by_position).unwrap_or(classes.len());
                u16::try_from(at).ok().map(Truth::Class)
            }
            LabelTask::Regression { targets } => {
                let numbers: Option<Box<[f64]>> = match label.as_array() {
                    Some(list) => list.iter().map(number).collect(),
                    None => number(label).map(|x| vec![x].into()),
                };
                numbers.filter(|numbers| numbers.len() == targets.len()).map(Truth::Numbers)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::damage;

    fn classes(names: &[&str]) -> LabelSpec {
        let classes = names.iter().map(|name| (*name).to_owned()).collect();
        LabelSpec::new("p", LabelTask::Classification { classes })
    }

    fn numbers(count: u32) -> LabelSpec {
        let targets = (0..count).map(|index| LabelTarget { index, scale: 10.0 }).collect();
        LabelSpec::new("y", LabelTask::Regression { targets })
    }

    #[test]
    fn classes_are_read_by_name_before_position() {
        let named = classes(&["cat", "dog"]);
        for (label, at) in [
            (json!("cat"), Some(0)),
            (json!(" dog "), Some(1)),
            (json!(1), Some(1)),
            (json!("1"), Some(1)),
            (json!(1.0), Some(1)),
            (json!(2), Some(2)),
            (json!("cow"), Some(2)),
            (json!(0.5), Some(2)),
            (json!(null), None),
            (json!("NaN"), None),
            (json!(""), None),
            (json!(["cat"]), None),
        ] {
            assert_eq!(named.read(&label), at.map(Truth::Class), "{label}");
        }
        // Here a number is a name, and never a position.
        let digits = classes(&["7", "8"]);
        assert_eq!(digits.read(&json!(8)), Some(Truth::Class(1)));
        assert_eq!(digits.read(&json!(1)), Some(Truth::Class(2)));
        assert_eq!(classes(&["true", "false"]).read(&json!(false)), Some(Truth::Class(1)));
    }

    #[test]
    fn numbers_are_read_one_for_each_target() {
        let truth = |numbers: &[f64]| Some(Truth::Numbers(numbers.into()));
        assert_eq!(numbers(1).read(&json!(1.5)), truth(&[1.5]));
        assert_eq!(numbers(1).read(&json!(" -2e3 ")), truth(&[-2000.0]));
        assert_eq!(numbers(1).read(&json!([1.5])), truth(&[1.5]));
        assert_eq!(numbers(2).read(&json!([1, "2"])), truth(&[1.0, 2.0]));
        for bad in [json!("NaN"), json!("inf"), json!(null), json!([1, 2]), json!([]), json!(true), json!("x")] {
            assert_eq!(numbers(1).read(&bad), None, "{bad}");
        }
    }

    #[test]
    fn units_are_a_millionth_of_the_scale_and_bounded() {
        let target = LabelTarget { index: 0, scale: 10.0 };
        assert_eq!((target.units(10.0), target.units(-5.0)), (1_048_576, -524_288));
        assert_eq!(target.units(1e300), 1 << 52);
        assert_eq!(target.units(f64::NEG_INFINITY), -(1 << 52));
        assert_eq!(target.units(f64::NAN), 0);
    }

    #[test]
    fn what_counting_cannot_bear_is_refused() {
        assert_eq!(classes(&["a", "b"]).validate(), Ok(()));
        assert!(classes(&[]).validate().is_err());
        assert!(classes(&["a", "a"]).validate().is_err());
        assert!(numbers(0).validate().is_err());
        assert!(numbers(17).validate().is_err());
        let scaled = |scale| LabelSpec {
            task: LabelTask::Regression { targets: vec![LabelTarget { index: 0, scale }] },
            ..numbers(1)
        };
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(scaled(scale).validate().is_err(), "{scale}");
        }
        let other = Baseline::Classification { rows: 1, right: 1, classes: Vec::new(), ece: None };
        assert!(LabelSpec { baseline: Some(other), ..numbers(1) }.validate().is_err());
    }

    proptest! {
        #[test]
        fn any_label_is_read_or_refused(
            label in damage::json(json!({"a": [1, "x", null, 1e308], "b": true})),
            values in prop::collection::vec(any::<f64>(), 0..4),
        ) {
            for spec in [classes(&["a", "b"]), numbers(1), numbers(3)] {
                if let Some(Truth::Numbers(read)) = spec.read(&label) {
                    prop_assert!(read.iter().all(|x| x.is_finite()));
                }
                if let Prediction::Class(Some((class, _))) = spec.prediction(&values) {
                    prop_assert!(class < 2);
                }
            }
        }
    }
}
