//! Finding a step's numbers in the reference sample, so that nobody copies means by hand.
//!
//! What is found is what scikit-learn's estimators of the same names find; NaN and empty texts are left out.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::bundle::TensorSpec;
use muster_shared::pipeline::{Categories, Half, MAX_CATEGORIES, Operation, PipelineError, Step, Unknown, forms_after};
use serde::Deserialize;

use super::columns::no_zero;
use super::encode::whole;
use super::flow::Flow;
use super::value::{Numbers, Value, columns};
use crate::tensor::Tensor;

/// A step whose numbers may yet have to be found.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftStep {
    /// The values it reads.
    pub from: Vec<String>,
    /// The value it writes.
    pub to: String,
    /// What it does.
    pub draft: Draft,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Draft {
    /// Everything is given.
    Given(Operation),
    /// The sample says it.
    Fit(Fit),
}

/// What to find in the sample.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Fit {
    /// Mean and standard deviation.
    Standard,
    /// Median and the distance between the quartiles.
    Robust,
    /// Least and greatest value.
    MinMax {
        /// What the least becomes.
        #[serde(default)]
        low: f64,
        /// What the greatest becomes.
        #[serde(default = "one")]
        high: f64,
        /// Whether results are kept between them.
        #[serde(default)]
        clip: bool,
    },
    /// The mean, for missing values.
    ImputeMean,
    /// The median, for missing values.
    ImputeMedian,
    /// The most frequent value, the least of equally frequent ones, for missing values.
    ImputeMostFrequent,
    /// The categories there are, in order.
    OneHot {
        /// What becomes of others.
        #[serde(default)]
        unknown: Unknown,
    },
    /// The categories there are, in order.
    Ordinal {
        /// What becomes of others.
        #[serde(default)]
        unknown_value: Option<f64>,
    },
}

const fn one() -> f64 {
    1.0
}

/// Why a step's numbers cannot be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FitError {
    /// The steps do not fit together.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// There is no sample to find them in.
    #[error("pipeline, pre step {number} is to be fitted, but there is no reference sample")]
    NoSample {
        /// The step, counted from 1.
        number: usize,
    },
    /// The step cannot be carried out on the sample, or the sample does not hold what it needs.
    #[error("pipeline, pre step {number} (to {to:?}), on the reference sample: {reason}")]
    Step {
        /// The step, counted from 1.
        number: usize,
        /// The value it writes.
        to: String,
        /// What is wrong.
        reason: String,
    },
}

/// Finds what is to be found for `drafts`, step by step: each sees the sample as the steps before it leave it. `sample` holds the
/// tensors that `inputs` describe, all rows of the reference sample at once.
///
/// # Errors
/// [`FitError`] with the first step whose numbers cannot be found.
pub fn fit(inputs: &[TensorSpec], drafts: &[DraftStep], sample: Option<&[Tensor]>) -> Result<Vec<Step>, FitError> {
    let last_fit = drafts.iter().rposition(|step| matches!(step.draft, Draft::Fit(_)));
    let mut steps: Vec<Step> = Vec::with_capacity(drafts.len());
    // What the steps so far make of the sample, as tensors of their own names.
    let mut seen: Vec<Tensor> = sample.unwrap_or_default().to_vec();
    for (at, DraftStep { from, to, draft }) in drafts.iter().enumerate() {
        let number = at + 1;
        let refuse = |reason: String| FitError::Step { number, to: to.clone(), reason };
        let operation = match draft {
            Draft::Given(operation) => operation.clone(),
            Draft::Fit(_) if sample.is_none() => return Err(FitError::NoSample { number }),
            Draft::Fit(fit) => {
                // Whether there is such a value, in the words that name those there are.
                let reads = Step { from: from.clone(), to: to.clone(), operation: Operation::Join };
                forms_after(Half::Pre, inputs, &[steps.clone(), vec![reads]].concat())?;
                let specs: Vec<TensorSpec> = seen.iter().map(spec_of).collect();
                let flow = Flow::new(Half::Pre, &specs, &[])?;
                let value = flow.read(from, &flow.start(&seen)).map_err(refuse)?;
                find(*fit, value).map_err(refuse)?
            }
        };
        let step = Step { from: from.clone(), to: to.clone(), operation };
        steps.push(step.clone());
        forms_after(Half::Pre, inputs, &steps)?;
        if last_fit.is_some_and(|last| at < last) {
            let specs: Vec<TensorSpec> = seen.iter().map(spec_of).collect();
            let flow =
                Flow::new(Half::Pre, &specs, std::slice::from_ref(&step)).map_err(|error| refuse(error.to_string()))?;
            let form = forms_after(Half::Pre, &specs, std::slice::from_ref(&step))?;
            let mut written: Vec<TensorSpec> = Vec::new();
            for name in std::iter::once(to).chain(step.operation.second_result()) {
                if let Some(form) = form.get(name) {
                    // Between steps nothing is rounded.
                    let datatype =
                        if form.datatype.is_float() { muster_shared::bundle::DataType::Fp64 } else { form.datatype };
                    written.push(TensorSpec { name: name.clone(), datatype, shape: form.shape.clone() });
                }
            }
            let results = flow.run(&seen, &written).map_err(|error| refuse(error.to_string()))?;
            seen.retain(|tensor| written.iter().all(|spec| spec.name != tensor.name()));
            seen.extend(results);
        }
    }
    Ok(steps)
}

/// The form of a tensor of the sample, whose rows a request would choose.
fn spec_of(tensor: &Tensor) -> TensorSpec {
    let sizes = tensor.shape().iter().skip(1).map(|size| i64::try_from(*size).unwrap_or(-1));
    let shape = std::iter::once(-1).chain(sizes).take(tensor.shape().len()).collect();
    TensorSpec { name: tensor.name().to_owned(), datatype: tensor.datatype(), shape }
}

/// Every column's numbers without NaN.
fn by_column(numbers: &Numbers) -> Result<Vec<Vec<f64>>, String> {
    let width = columns(&numbers.shape).max(1);
    let column = |at: usize| {
        let values: Vec<f64> =
            numbers.data.iter().skip(at).step_by(width).copied().filter(|value| !value.is_nan()).collect();
        if values.is_empty() {
            return Err(format!("column {} has no value", at + 1));
        }
        if values.iter().any(|value| value.is_infinite()) {
            return Err(format!("column {} holds an infinity", at + 1));
        }
        Ok(values)
    };
    (0..width).map(column).collect()
}

fn mean(values: &[f64]) -> f64 {
    let first = values.iter().sum::<f64>() / values.len() as f64;
    // A second pass takes away what rounding left.
    first + values.iter().map(|value| value - first).sum::<f64>() / values.len() as f64
}

/// scikit-learn's `StandardScaler`: the scale of a column that is constant but for rounding is 1.
fn standard(values: &[f64]) -> (f64, f64) {
    let (n, mean) = (values.len() as f64, mean(values));
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    let rounding = n * f64::EPSILON * variance + (n * mean * f64::EPSILON).powi(2);
    (mean, if variance <= rounding { 1.0 } else { variance.sqrt() })
}

/// numpy's `percentile`, linear between the two nearest.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a position in the slice")]
    let below = (place.floor() as usize).min(sorted.len() - 1);
    let above = (below + 1).min(sorted.len() - 1);
    let part = place - below as f64;
    let difference = sorted[above] - sorted[below];
    if part >= 0.5 { sorted[above] - difference * (1.0 - part) } else { sorted[below] + difference * part }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: Vec<f64>) -> f64 {
    percentile(&sorted(values), 0.5)
}

/// The most frequent of `values`, the least of equally frequent ones.
fn most_frequent<T: Ord + Clone>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let most = counts.values().max().copied()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(value, _)| value)
}

fn most_frequent_number(values: Vec<f64>) -> f64 {
    let values = sorted(values);
    let mut best = (0, f64::NAN);
    for equal in values.chunk_by(|a, b| a.total_cmp(b).is_eq()) {
        if equal.len() > best.0 {
            best = (equal.len(), equal[0]);
        }
    }
    best.1
}

fn text_of(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a text is not UTF-8".to_owned())
}

/// The categories of every column.
fn categories(value: Value<'_>) -> Result<Vec<Categories>, String> {
    let width = columns(value.shape()).max(1);
    let bounded = |column: usize, count: usize| {
        if (1..=MAX_CATEGORIES).contains(&count) {
            return Ok(());
        }
        Err(format!("column {} has {count} categories; 1 to {MAX_CATEGORIES} are allowed", column + 1))
    };
    if value.is_text() {
        let texts = value.into_texts()?;
        let column = |at: usize| {
            let known: BTreeSet<&[u8]> =
                texts.data.iter().skip(at).step_by(width).copied().filter(|text| !text.is_empty()).collect();
            bounded(at, known.len())?;
            Ok(Categories::Texts(known.into_iter().map(text_of).collect::<Result<_, String>>()?))
        };
        return (0..width).map(column).collect();
    }
    let columns = by_column(&value.into_numbers()?)?;
    let column = |(at, values): (usize, &Vec<f64>)| {
        let known = values.iter().map(|value| whole(*value).ok_or_else(|| format!("{value} is no whole number")));
        let known: BTreeSet<i64> = known.collect::<Result<_, String>>()?;
        bounded(at, known.len())?;
        Ok(Categories::Integers(known.into_iter().collect()))
    };
    columns.iter().enumerate().map(column).collect()
}

fn find(fit: Fit, value: Value<'_>) -> Result<Operation, String> {
    match fit {
        Fit::Standard => {
            let (center, scale) = by_column(&value.into_numbers()?)?.iter().map(|values| standard(values)).unzip();
            Ok(Operation::Scale { center, scale })
        }
        Fit::Robust => {
            let robust = |values: Vec<f64>| {
                let sorted = sorted(values);
                let spread = percentile(&sorted, 0.75) - percentile(&sorted, 0.25);
                (percentile(&sorted, 0.5), no_zero(spread))
            };
            let (center, scale) = by_column(&value.into_numbers()?)?.into_iter().map(robust).unzip();
            Ok(Operation::Scale { center, scale })
        }
        Fit::MinMax { low, high, clip } => {
            let bounds = |values: Vec<f64>| {
                (
                    values.iter().copied().fold(f64::INFINITY, f64::min),
                    values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                )
            };
            let (data_min, data_max) = by_column(&value.into_numbers()?)?.into_iter().map(bounds).unzip();
            Ok(Operation::MinMax { data_min, data_max, low, high, clip })
        }
        Fit::ImputeMean => {
            let values = by_column(&value.into_numbers()?)?.iter().map(|values| mean(values)).collect();
            Ok(Operation::Impute { values })
        }
        Fit::ImputeMedian => {
            Ok(Operation::Impute { values: by_column(&value.into_numbers()?)?.into_iter().map(median).collect() })
        }
        Fit::ImputeMostFrequent if value.is_text() => {
            let texts = value.into_texts()?;
            let width = columns(&texts.shape).max(1);
            let column = |at: usize| {
                let values = texts.data.iter().skip(at).step_by(width).copied().filter(|text| !text.is_empty());
                text_of(most_frequent(values).ok_or_else(|| format!("column {} has no value", at + 1))?)
            };
            Ok(Operation::ImputeText { values: (0..width).map(column).collect::<Result<_, String>>()? })
        }
        Fit::ImputeMostFrequent => {
            let values = by_column(&value.into_numbers()?)?.into_iter().map(most_frequent_number).collect();
            Ok(Operation::Impute { values })
        }
        Fit::OneHot { unknown } => Ok(Operation::OneHot { categories: categories(value)?, unknown }),
        Fit::Ordinal { unknown_value } => Ok(Operation::Ordinal { categories: categories(value)?, unknown_value }),
    }
}
