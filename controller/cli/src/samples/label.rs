//! `muster samples label`: ground truth that arrives at the centre, joined with samples by the inference's id.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use muster_shared::collection::{SampleLabel, SampleLabels};
use muster_shared::ids::{CollectionId, DeviceId};
use serde::Serialize;

use super::export::Fetched;
use super::rows::rows;
use crate::command::{Context, block_on};
use crate::disk;
use crate::failure::Failure;
use crate::output::{self, cell, number};

const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Classes that a confusion matrix shows at most; the rest is counted together.
const MAX_CLASSES: usize = 256;
/// Labels sent at once: well within what the API takes in one body.
const AT_ONCE: usize = 4_000;

#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    /// The collection.
    id: CollectionId,
    /// A CSV file with the columns id, label and, if it has one, device.
    #[arg(value_name = "LABELS.csv")]
    file: PathBuf,
    /// The private key of the collection, to hold the labels against what the model answered.
    #[arg(long, value_name = "KEYFILE")]
    key: Option<PathBuf>,
}

/// Finds labels by inference and device.
pub(super) struct Joiner<'a> {
    exact: BTreeMap<(&'a str, &'a DeviceId), &'a str>,
    any: BTreeMap<&'a str, &'a str>,
}

impl<'a> Joiner<'a> {
    pub(super) fn new(labels: &'a SampleLabels) -> Self {
        let mut joiner = Self { exact: BTreeMap::new(), any: BTreeMap::new() };
        for SampleLabel { id, device, label } in &labels.labels {
            match device {
                Some(device) => _ = joiner.exact.insert((id, device), label),
                None => _ = joiner.any.insert(id, label),
            }
        }
        joiner
    }

    /// The label of inference `id` of `device`: one that names the device goes before one that does not.
    pub(super) fn label(&self, id: &str, device: &DeviceId) -> Option<String> {
        let exact = self.exact.get(&(id, device));
        exact.or_else(|| self.any.get(id)).map(|label| (*label).to_owned())
    }
}

/// How often something with this label was taken for that.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Confusion {
    label: String,
    predicted: String,
    count: u64,
}

/// What came of bringing labels.
#[derive(Debug, Default, Serialize)]
struct Labelled {
    /// Labels in the file.
    in_file: u64,
    /// Of them, named the same inference as one before; the last counts.
    duplicates: u64,
    /// Labels the collection has now.
    stored: u64,
    /// What came of holding them against the samples; none without a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    joined: Option<Joined>,
}

#[derive(Debug, Default, Serialize)]
struct Joined {
    /// Samples of the collection.
    samples: u64,
    /// Of them, have a label.
    labelled: u64,
    /// Labels that belong to no sample.
    unknown_ids: u64,
    /// Rows with a label whose prediction can be told.
    compared: u64,
    /// Share of them that the model got right.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    /// Every pair of label and prediction there was.
    confusion: Vec<Confusion>,
    /// Of a model that answers with one number: the mean of the absolute differences.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_absolute_error: Option<f64>,
    /// The root of the mean of their squares.
    #[serde(skip_serializing_if = "Option::is_none")]
    root_mean_square_error: Option<f64>,
}

/// The labels in a CSV file, and how many there were twice.
fn read(path: &Path) -> Result<(SampleLabels, u64, u64), Failure> {
    let text = disk::read_text(path, MAX_FILE_BYTES)?;
    let fault = |what: String| Failure::input(format!("{}: {what}", path.display()));
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| fault("it has no header".to_owned()).because(error))?.clone();
    let at = |name: &str| header.iter().position(|column| column == name);
    let (Some(id_at), Some(label_at)) = (at("id"), at("label")) else {
        return Err(fault("its first line must name the columns id and label, and may name device".to_owned()));
    };
    let device_at = at("device");
    let mut found: BTreeMap<(String, Option<DeviceId>), String> = BTreeMap::new();
    let (mut in_file, mut duplicates) = (0, 0);
    for record in reader.records() {
        let record = record.map_err(|error| fault("a line does not parse".to_owned()).because(error))?;
        let line = record.position().map_or(0, csv::Position::line);
        let field = |at: usize| record.get(at).unwrap_or_default();
        if field(id_at).is_empty() || field(label_at).is_empty() {
            return Err(fault(format!("line {line}: the id or the label is empty")));
        }
        let device = match device_at.map(field).filter(|text| !text.is_empty()) {
            Some(text) => Some(DeviceId::new(text).map_err(|error| fault(format!("line {line}")).because(error))?),
            None => None,
        };
        in_file += 1;
        if found.insert((field(id_at).to_owned(), device), field(label_at).to_owned()).is_some() {
            duplicates += 1;
        }
    }
    let labels = found.into_iter().map(|((id, device), label)| SampleLabel { id, device, label }).collect();
    Ok((SampleLabels { labels }, in_file, duplicates))
}

/// Holds the labels that the collection has against its samples.
fn join(fetched: &Fetched) -> Result<Joined, Failure> {
    let joiner = Joiner::new(&fetched.labels);
    let mut joined = Joined::default();
    let mut pairs: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut met: std::collections::BTreeSet<(String, Option<DeviceId>)> = std::collections::BTreeSet::new();
    let (mut right, mut numbers, mut absolute, mut square) = (0_u64, 0_u64, 0.0, 0.0);
    let pass = fetched.each(|device, sample| {
        let Some(label) = joiner.label(&sample.id, device) else { return Ok(()) };
        joined.labelled += 1;
        met.insert((sample.id.clone(), Some(device.clone())));
        met.insert((sample.id.clone(), None));
        for row in rows(&sample, device, fetched.bundles.get(&sample.manifest)) {
            if let Some(predicted) = row.predicted {
                joined.compared += 1;
                right += u64::from(predicted == label);
                let known = pairs.len() < MAX_CLASSES * MAX_CLASSES;
                let pair = (label.clone(), predicted);
                if known || pairs.contains_key(&pair) {
                    *pairs.entry(pair).or_default() += 1;
                }
            } else if let (Some(estimate), Ok(truth)) = (row.estimate, label.parse::<f64>()) {
                joined.compared += 1;
                numbers += 1;
                absolute += (estimate - truth).abs();
                square += (estimate - truth).powi(2);
            }
        }
        Ok(())
    })?;
    joined.samples = pass.samples;
    let is_unknown = |label: &&SampleLabel| !met.contains(&(label.id.clone(), label.device.clone()));
    joined.unknown_ids = fetched.labels.labels.iter().filter(is_unknown).count() as u64;
    let classified = joined.compared - numbers;
    #[expect(clippy::cast_precision_loss, reason = "counts of samples stay far below 2^53")]
    {
        joined.accuracy = (classified > 0).then(|| right as f64 / classified as f64);
        joined.mean_absolute_error = (numbers > 0).then(|| absolute / numbers as f64);
        joined.root_mean_square_error = (numbers > 0).then(|| (square / numbers as f64).sqrt());
    }
    joined.confusion =
        pairs.into_iter().map(|((label, predicted), count)| Confusion { label, predicted, count }).collect();
    Ok(joined)
}

fn text(labelled: &Labelled) -> String {
    let mut pairs = vec![
        ("labels in the file", labelled.in_file.to_string()),
        ("named twice", labelled.duplicates.to_string()),
        ("labels stored", labelled.stored.to_string()),
    ];
    let Some(joined) = &labelled.joined else {
        return output::properties(&pairs);
    };
    pairs.push(("samples", joined.samples.to_string()));
    pairs.push(("samples with a label", joined.labelled.to_string()));
    pairs.push(("labels of no sample", joined.unknown_ids.to_string()));
    pairs.extend(joined.accuracy.map(|share| ("accuracy", output::percent(share))));
    pairs.extend(joined.mean_absolute_error.map(|error| ("mean absolute error", output::significant(error))));
    pairs.extend(joined.root_mean_square_error.map(|error| ("root mean square error", output::significant(error))));
    let head = output::properties(&pairs);
    if joined.confusion.is_empty() {
        return head;
    }
    let row = |one: &Confusion| vec![cell(&one.label), cell(&one.predicted), number(one.count.to_string())];
    format!("{head}\n\n{}", output::table(&["label", "predicted", "count"], joined.confusion.iter().map(row)))
}

pub(super) fn run(context: &Context, args: &LabelArgs) -> Result<(), Failure> {
    let (labels, in_file, duplicates) = read(&args.file)?;
    if labels.labels.is_empty() {
        return Err(Failure::input(format!("{} has no labels", args.file.display())));
    }
    let client = context.client()?;
    let path = ["collections", args.id.as_str(), "labels"];
    let mut stored = 0;
    for labels in labels.labels.chunks(AT_ONCE) {
        let wish = SampleLabels { labels: labels.to_vec() };
        let all: SampleLabels = block_on(client.post(&path, &wish))?;
        stored = all.labels.len() as u64;
    }
    let joined = match &args.key {
        Some(key) => {
            let fetched = block_on(Fetched::of(&client, &args.id, None, key, Path::new("samples")))?;
            Some(join(&fetched)?)
        }
        None => None,
    };
    if joined.is_none() {
        output::note("give --key to hold them against what the model answered; an export has them in any case");
    }
    context.output.show(&Labelled { in_file, duplicates, stored, joined }, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_labels_are_read_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.csv");
        let read_text = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path).map_err(|failure| failure.chain())
        };
        let (labels, in_file, duplicates) = read_text("label,id,device\n3,a,\n4,a,dev-1\n5, a ,dev-1\n").unwrap();
        assert_eq!((labels.labels.len(), in_file, duplicates), (2, 3, 1));
        let device = DeviceId::new("dev-1").unwrap();
        let joiner = Joiner::new(&labels);
        assert_eq!(joiner.label("a", &device).as_deref(), Some("5"));
        assert_eq!(joiner.label("a", &DeviceId::new("dev-2").unwrap()).as_deref(), Some("3"));
        assert_eq!(joiner.label("b", &device), None);
        for (bad, words) in [
            ("", "must name the columns"),
            ("id,truth\na,1\n", "must name the columns"),
            ("id,label\na,\n", "line 2"),
            ("id,label\na,1,2\n", "does not parse"),
            ("id,label,device\na,1,No Device\n", "line 2"),
        ] {
            let said = read_text(bad).unwrap_err();
            assert!(said.contains(words) && said.contains("labels.csv"), "{said}");
        }
    }
}
