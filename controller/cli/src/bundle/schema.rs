//! The data schema of a bundle: inferred from the reference sample, edited by people, held against sample and golden examples.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use muster_inference::quality::{Findings, QualityGate};
use muster_inference::{GoldenSet, Tensor};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::data_schema::{DataSchema, FeatureRule};
use muster_shared::limits::{MAX_CLASSES, MAX_COLUMNS};
use muster_shared::pipeline::Categories;
use muster_shared::sketch::Cause;
use serde::Serialize;

use super::description::Description;
use super::pipeline::assemble;
use super::{build, profile};
use crate::command::Context;
use crate::disk;
use crate::failure::Failure;
use crate::output;

const MAX_SCHEMA_BYTES: u64 = 1024 * 1024;
/// Integers of no more different values than this count as categories.
const MAX_INTEGER_CATEGORIES: usize = 12;
/// What an inferred schema begins with.
const HEAD: &str = "\
# What devices expect of inputs, inferred from the reference sample. Check it, change it, and name it in the bundle's
# description: schema = \"...\". Ranges are those of the sample; on-violation is reject, flag or impute (with impute = value).

";

/// Reads the schema that the description names and holds it against what callers send.
///
/// # Errors
/// [`Failure`] of bad input with the feature that is wrong.
pub(super) fn read(description: &Description, signature: &ModelSignature) -> Result<Option<DataSchema>, Failure> {
    let Some(path) = &description.schema else { return Ok(None) };
    let text = disk::read_text(path, MAX_SCHEMA_BYTES).map_err(|failure| {
        Failure::input("the data schema cannot be read; `muster bundle schema` makes one").because(failure)
    })?;
    let schema: DataSchema = toml::from_str(&text)
        .map_err(|error| Failure::input(format!("{}: {}", path.display(), error.to_string().trim_end())))?;
    schema.validate(signature).map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
    Ok(Some(schema))
}

/// What `findings` say, in words.
fn broken(schema: &DataSchema, findings: &Findings) -> String {
    let counted = findings.counts().map(|(feature, cause, values)| {
        let rule = schema.features.get(feature);
        let allowed =
            if cause == Cause::Missing && rule.is_some_and(|rule| rule.may_be_missing) { ", allowed" } else { "" };
        format!("{} {cause} in {values}{allowed}", rule.map_or("", |rule| &rule.name))
    });
    let duplicates = (findings.duplicates() > 0).then(|| format!("{} duplicates", findings.duplicates()));
    let words: Vec<String> = counted.chain(duplicates).collect();
    if words.is_empty() { "no rule is broken".to_owned() } else { words.join(", ") }
}

/// Says how many rows of the sample and of the golden examples break which rule.
///
/// # Errors
/// [`Failure`] of a failed check when the schema would reject a golden example: the model is proven on what it never gets.
pub(super) fn check(
    schema: &DataSchema,
    signature: &ModelSignature,
    sample: Option<&[Tensor]>,
    golden: &GoldenSet,
) -> Result<(), Failure> {
    if let Some(sample) = sample {
        let findings = QualityGate::new(schema, signature).check(sample).findings;
        output::note(&format!(
            "schema     {} features; in the sample: {}",
            schema.features.len(),
            broken(schema, &findings)
        ));
        for (feature, cause, values) in findings.counts().filter(|(_, cause, _)| *cause == Cause::Missing) {
            let Some(rule) = schema.features.get(feature) else { continue };
            let rows = sample.first().and_then(|tensor| tensor.shape().first()).copied().unwrap_or(1).max(1);
            let share = values as f64 / rows as f64;
            if rule.max_missing_share.is_some_and(|most| share > most) {
                output::warn(&format!(
                    "schema: {} is {cause} in {share:.3} of the sample, more than its max-missing-share",
                    rule.name
                ));
            }
        }
    }
    for (at, example) in golden.examples.iter().enumerate() {
        // Examples are no stream: nothing is remembered from one to the next.
        let checked = QualityGate::new(schema, signature).check(&example.inputs);
        if let Some(rejection) = checked.rejection {
            let reason = format!("golden example {}, which no device would let through", at + 1);
            return Err(Failure::unmet(reason).because(rejection));
        }
    }
    Ok(())
}

/// The rule that the values of one feature suggest.
fn rule(name: &str, spec: &TensorSpec, index: usize, tensor: &Tensor) -> FeatureRule {
    let rows = tensor.shape().first().copied().unwrap_or(1).max(1);
    let width = (tensor.element_count() / rows).max(1);
    let plain = FeatureRule::of(name, &spec.name, u32::try_from(index).unwrap_or(u32::MAX), spec.datatype);
    let with_missing = |rule: FeatureRule, missing: usize| {
        let share = missing as f64 / rows as f64;
        // Room for chance: a small window of the same data has more now and then.
        let most = ((2.0 * share + 0.05).min(1.0) * 1e3).round() / 1e3;
        FeatureRule { may_be_missing: missing > 0, max_missing_share: (missing > 0).then_some(most), ..rule }
    };
    if spec.datatype == DataType::Bytes {
        let texts: Vec<&[u8]> = tensor.byte_elements().skip(index).step_by(width).collect();
        let missing = texts.iter().filter(|text| text.is_empty()).count();
        let known: BTreeSet<String> = texts
            .iter()
            .filter(|text| !text.is_empty())
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .collect();
        let is_closed = !known.is_empty() && known.len() <= MAX_CLASSES && known.len() * 2 <= rows;
        let categories = is_closed.then(|| Categories::Texts(known.into_iter().collect()));
        return with_missing(FeatureRule { categories, ..plain }, missing);
    }
    let values: Vec<f64> = (0..rows).filter_map(|row| tensor.value(row * width + index)).collect();
    let there: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let missing = values.iter().filter(|value| value.is_nan()).count();
    let least = there.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = there.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    #[expect(clippy::cast_possible_truncation, reason = "integers that are exact in a sample")]
    let whole: BTreeSet<i64> = there.iter().map(|value| *value as i64).collect();
    let is_category = !spec.datatype.is_float() && !whole.is_empty() && whole.len() <= MAX_INTEGER_CATEGORIES;
    let rule = if is_category {
        FeatureRule { categories: Some(Categories::Integers(whole.into_iter().collect())), ..plain }
    } else {
        let finite = |bound: f64| bound.is_finite().then_some(bound);
        FeatureRule { min: finite(least), max: finite(greatest), ..plain }
    };
    with_missing(rule, missing)
}

/// The rules that the sample suggests, each to be flagged.
fn infer(description: &Description, signature: &ModelSignature, sample: &[Tensor]) -> DataSchema {
    let mut features = Vec::new();
    for input in &description.inputs {
        let table = input.as_ref();
        let spec = signature.inputs.iter().find(|spec| spec.name == table.name);
        let tensor = sample.iter().find(|tensor| tensor.name() == table.name);
        let Some((spec, tensor)) = spec.zip(tensor) else { continue };
        let width = spec.row_width().unwrap_or(0);
        if features.len() + width > MAX_COLUMNS {
            output::warn(&format!("{} has {width} elements a row: too many to have rules each", table.name));
            continue;
        }
        for index in 0..width {
            let name = table.features.get(index).cloned().unwrap_or_else(|| format!("{}.{index}", table.name));
            features.push(rule(&name, spec, index, tensor));
        }
    }
    DataSchema { duplicates: None, features }
}

#[derive(Serialize)]
struct Inferred<'a> {
    path: &'a Path,
    features: usize,
    may_be_missing: usize,
}

/// Writes the schema that the description's reference sample suggests.
///
/// # Errors
/// [`Failure`] when there is no sample, it does not fit, or the file is there already.
pub(super) fn run(context: &Context, description: &Path, out: &Path, force: bool) -> Result<(), Failure> {
    let description = Description::read(description)?;
    let Some(reference) = &description.reference else {
        return Err(description.origin.whole_fault("reference: a schema is inferred from a sample, and none is named"));
    };
    if !force && out.exists() {
        return Err(Failure::input(format!("{} is there already; --force replaces it", out.display())));
    }
    let (onnx, _, golden) = build::read_model(&description)?;
    let assembled = assemble(&description, &onnx, &golden)?;
    let signature = assembled.loaded.model.signature();
    let sample = profile::sample_tensors(&description, reference, &signature.inputs)?;
    let schema = infer(&description, signature, &sample);
    schema.validate(signature).map_err(|error| description.origin.whole_fault(error.to_string()))?;
    let text =
        toml::to_string(&schema).map_err(|error| Failure::unmet("the schema has no form in TOML").because(error))?;
    fs::write(out, format!("{HEAD}{text}"))
        .map_err(|error| Failure::unmet(format!("cannot write {}", out.display())).because(error))?;
    let may_be_missing = schema.features.iter().filter(|rule| rule.may_be_missing).count();
    let inferred = Inferred { path: out, features: schema.features.len(), may_be_missing };
    context.output.show(&inferred, |inferred| {
        format!(
            "{} has rules for {} features, {} of which may be missing; edit it, then name it in the description: schema = ...",
            inferred.path.display(),
            inferred.features,
            inferred.may_be_missing
        )
    })
}
