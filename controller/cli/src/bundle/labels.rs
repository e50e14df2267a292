//! From the description's `[labels]` to what a label is in the profile, with how good the model is on a labelled reference sample.

use std::path::Path;

use csv::{ReaderBuilder, Trim};
use muster_inference::ColumnExtractor;
use muster_shared::bundle::ModelSignature;
use muster_shared::labels::{LabelSpec, LabelTarget, LabelTask, Truth};
use muster_shared::profile::Profile;
use muster_shared::quality::Baseline;
use muster_shared::sketch::LabelCounts;
use serde_json::Value;

use super::description::{Description, LabelTable, OutputKind};
use crate::failure::Failure;
use crate::output;

/// Elements that are labelled where nothing else is said.
const FIRST_ELEMENT: [u32; 1] = [0];

/// What the description declares, held against the model. Scales that are not given are still to be measured: they are none.
struct Declared {
    spec: LabelSpec,
    is_scale_given: bool,
}

fn declare(description: &Description, signature: &ModelSignature) -> Result<Option<Declared>, Failure> {
    let Some(spanned) = &description.labels else { return Ok(None) };
    let table: &LabelTable = spanned.as_ref();
    let fault = |field: &str, reason: String| Err(description.origin.fault(spanned.span(), field, reason));
    let output = description.outputs.iter().map(|output| output.as_ref()).find(|output| output.name == table.output);
    let Some(output) = output else {
        let reason = format!("no output {:?} is described; describe it in [[outputs]], with its kind", table.output);
        return fault("labels.output", reason);
    };
    let task = match output.kind {
        OutputKind::ClassProbabilities | OutputKind::ClassLabel
            if !table.elements.is_empty() || table.scale.is_some() =>
        {
            return fault("labels.elements", "an output of classes is labelled with a class as a whole".into());
        }
        OutputKind::ClassProbabilities | OutputKind::ClassLabel => {
            LabelTask::Classification { classes: output.classes.clone() }
        }
        OutputKind::Numeric => {
            let elements = if table.elements.is_empty() { &FIRST_ELEMENT[..] } else { &table.elements };
            let scale = table.scale.unwrap_or(1.0);
            let targets = elements.iter().map(|index| LabelTarget { index: *index, scale }).collect();
            LabelTask::Regression { targets }
        }
    };
    let names_class = output.kind == OutputKind::ClassLabel;
    let spec = LabelSpec { names_class, ..LabelSpec::new(&table.output, task) };
    if let Err(error) = spec.validate() {
        return fault("labels", error.to_string());
    }
    let watched = Profile { columns: spec.columns(), ..Profile::default() };
    if let Err(error) = ColumnExtractor::new(&watched, signature) {
        return fault("labels", error.to_string());
    }
    Ok(Some(Declared { spec, is_scale_given: table.scale.is_some() }))
}

/// What a label is, of a bundle without a reference sample.
///
/// # Errors
/// [`Failure`] naming line and field; also where only a reference sample could tell how far a target ranges.
pub(super) fn without_reference(
    description: &Description,
    signature: &ModelSignature,
) -> Result<Option<LabelSpec>, Failure> {
    let Some(declared) = declare(description, signature)? else { return Ok(None) };
    if let (LabelTask::Regression { .. }, false) = (&declared.spec.task, declared.is_scale_given) {
        let reason = "without a reference sample, say in scale how far the truth ranges, about";
        return Err(description.origin.whole_fault(format!("labels.scale: {reason}")));
    }
    Ok(Some(declared.spec))
}

/// What is watched of the model's answers to compare them with labels; nothing where none are declared.
///
/// # Errors
/// [`Failure`] naming line and field.
pub(super) fn watched(description: &Description, signature: &ModelSignature) -> Result<Option<Profile>, Failure> {
    let declared = declare(description, signature)?;
    Ok(declared.map(|declared| Profile { columns: declared.spec.columns(), ..Profile::default() }))
}

/// The labels of every row of the sample, as they are written: one text for each column.
fn read_labels(path: &Path, columns: &[String]) -> Result<Vec<Vec<String>>, Failure> {
    let refuse = |reason: String| Failure::input(format!("{}: {reason}", path.display()));
    if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("csv")) {
        return Err(refuse(
            "labels.label-column needs a reference sample in CSV, where columns have names: write the sample as a .csv file with the labels \
             beside the inputs, or leave label-column out and live labels are held against earlier ones"
                .into(),
        ));
    }
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_path(path).map_err(|error| refuse(error.to_string()))?;
    let header = reader.headers().map_err(|error| refuse(error.to_string()))?.clone();
    let position = |name: &String| {
        let at = header.iter().position(|title| title == name);
        at.ok_or_else(|| refuse(format!("the header has no column {name:?}, which labels.label-column names")))
    };
    let positions = columns.iter().map(position).collect::<Result<Vec<_>, _>>()?;
    let texts = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(|error| refuse(error.to_string()))?;
        Ok(positions.iter().map(|at| record.get(*at).unwrap_or_default().to_owned()).collect())
    };
    reader.records().map(texts).collect()
}

fn is_missing(text: &str) -> bool {
    text.is_empty() || text.eq_ignore_ascii_case("nan")
}

/// How far the numbers range; at least a little, so that it can be divided by.
fn range(numbers: impl Iterator<Item = f64>) -> f64 {
    let (least, most) = numbers
        .filter(|x| x.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), x| (least.min(x), most.max(x)));
    let range = most - least;
    if least > most {
        return 1.0;
    }
    if range.is_finite() && range > 0.0 { range } else { most.abs().clamp(1.0, 1e30) }
}

/// What a label is, with the baseline where the sample has labels. `answers` are the values of [`watched`]'s columns over the sample.
///
/// # Errors
/// [`Failure`] when the labels of the sample cannot be read or are none.
pub(super) fn measured(
    description: &Description,
    signature: &ModelSignature,
    reference: &Path,
    answers: &[Vec<f64>],
) -> Result<Option<LabelSpec>, Failure> {
    let Some(Declared { mut spec, is_scale_given }) = declare(description, signature)? else { return Ok(None) };
    let columns = description.labels.as_ref().map(|table| table.as_ref().label_column.names()).unwrap_or_default();
    let rows = answers.first().map_or(0, Vec::len);
    let labels = if columns.is_empty() { Vec::new() } else { read_labels(reference, &columns)? };
    if let LabelTask::Regression { targets } = &mut spec.task {
        if !columns.is_empty() && columns.len() != targets.len() {
            return Err(description.origin.whole_fault(format!(
                "labels.label-column: {} columns are named for {} elements",
                columns.len(),
                targets.len()
            )));
        }
        for (at, target) in targets.iter_mut().enumerate().filter(|_| !is_scale_given) {
            let truths = labels.iter().filter_map(|row| row.get(at)?.parse::<f64>().ok());
            target.scale = if columns.is_empty() { range(answers[at].iter().copied()) } else { range(truths) };
        }
        spec.validate().map_err(|error| description.origin.whole_fault(error.to_string()))?;
    }
    if columns.is_empty() {
        return Ok(Some(spec));
    }
    if labels.len() != rows {
        let reason = format!("{} labels were read for {rows} rows", labels.len());
        return Err(Failure::input(format!("{}: {reason}", reference.display())));
    }
    let mut counts = LabelCounts::empty(&spec.task);
    for (row, texts) in labels.iter().enumerate().filter(|(_, texts)| !texts.iter().all(|text| is_missing(text))) {
        let values: Vec<Value> = texts.iter().map(|text| Value::from(text.as_str())).collect();
        let label = if values.len() == 1 { values[0].clone() } else { Value::Array(values) };
        let truth = spec.read(&label).filter(|truth| !is_other(truth, &spec.task));
        let truth = truth.ok_or_else(|| {
            Failure::input(format!("{}, row {}: {label} is no label of this model", reference.display(), row + 1))
        })?;
        let answer: Vec<f64> = answers.iter().map(|column| column[row]).collect();
        counts.add(&spec.task, &spec.prediction(&answer), &truth);
    }
    spec.baseline = Baseline::of(&counts, &spec.task);
    if let Some(baseline) = &spec.baseline {
        output::note(&format!("labels     {}", in_words(baseline)));
    }
    Ok(Some(spec))
}

fn is_other(truth: &Truth, task: &LabelTask) -> bool {
    matches!((truth, task), (Truth::Class(class), LabelTask::Classification { classes }) if usize::from(*class) >= classes.len())
}

fn in_words(baseline: &Baseline) -> String {
    match baseline {
        Baseline::Classification { rows, right, .. } => {
            format!(
                "accuracy {} over {rows} rows of the sample",
                output::percent(*right as f64 / (*rows).max(1) as f64)
            )
        }
        Baseline::Regression { rows, targets } => {
            let errors: Vec<String> = targets.iter().map(|target| output::significant(target.mae)).collect();
            format!("mean absolute error {} over {rows} rows of the sample", errors.join(", "))
        }
    }
}
