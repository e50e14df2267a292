//! `muster samples label`: ground truth that arrives at the centre, joined with samples by the inference's id.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use muster_shared::collection::{SampleLabel, SampleLabels};
use muster_shared::feedback::{FeedbackFormat, FeedbackItem, FeedbackLine};
use muster_shared::ids::{CollectionId, DeviceId};
use serde::Serialize;
use serde_json::Value;

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
    /// The labels: a .csv file with columns id and label (and row, for one row of several, and device), or a .jsonl file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The private key of the collection, to hold the labels against what the model answered.
    #[arg(long, value_name = "KEYFILE")]
    key: Option<PathBuf>,
}

/// Whose answer a label is about: the inference, and where they are named the device and the row.
type Place<'a> = (&'a str, Option<&'a DeviceId>, Option<u32>);

/// Finds labels by inference, device and row.
pub(super) struct Joiner<'a> {
    labels: BTreeMap<Place<'a>, &'a str>,
}

impl<'a> Joiner<'a> {
    pub(super) fn new(labels: &'a SampleLabels) -> Self {
        let place = |label: &'a SampleLabel| (label.id.as_str(), label.device.as_ref(), label.row);
        Self { labels: labels.labels.iter().map(|label| (place(label), label.label.as_str())).collect() }
    }

    /// The place of the label of this row of inference `id` of `device`: one that names the device goes before one that does not, and then one
    /// that names the row.
    fn place<'b>(&self, id: &'b str, device: &'b DeviceId, row: u32) -> Option<Place<'b>> {
        let places = [Some(device), None].into_iter().flat_map(|device| [(id, device, Some(row)), (id, device, None)]);
        places.into_iter().find(|place| self.labels.contains_key(place))
    }

    /// The label of this row of inference `id` of `device`.
    pub(super) fn label(&self, id: &str, device: &DeviceId, row: u32) -> Option<String> {
        self.place(id, device, row).and_then(|place| self.labels.get(&place)).map(|label| (*label).to_owned())
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

/// The labels in a file, how many there were, and how many of these twice.
fn read(path: &Path) -> Result<(SampleLabels, u64, u64), Failure> {
    let fault = |what: String| Failure::input(format!("{}: {what}", path.display()));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let format = FeedbackFormat::of(name).ok_or_else(|| fault("labels are in a .csv or a .jsonl file".to_owned()))?;
    let text = disk::read_text(path, MAX_FILE_BYTES)?;
    let mut found: BTreeMap<(String, Option<DeviceId>, Option<u32>), String> = BTreeMap::new();
    let (mut in_file, mut duplicates) = (0, 0);
    for line in format.read(text.as_bytes()) {
        let (number, FeedbackLine { device, item }) = line.map_err(|error| fault(error.to_string()))?;
        let FeedbackItem { id, row, label, labels } = item;
        let each: Vec<(Option<u32>, Value)> = match labels {
            Some(labels) => (0..).map(Some).zip(labels).filter(|(_, label)| !label.is_null()).collect(),
            None => vec![(row, label)],
        };
        for (row, label) in each {
            let label = match label {
                Value::String(text) if !text.is_empty() => text,
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                    return Err(fault(format!("line {number}: the label is empty, or neither a text nor a number")));
                }
            };
            in_file += 1;
            if found.insert((id.clone(), device.clone(), row), label).is_some() {
                duplicates += 1;
            }
        }
    }
    let labels = found.into_iter().map(|((id, device, row), label)| SampleLabel { id, device, row, label }).collect();
    Ok((SampleLabels { labels }, in_file, duplicates))
}

/// Holds the labels that the collection has against its samples.
fn join(fetched: &Fetched) -> Result<Joined, Failure> {
    let joiner = Joiner::new(&fetched.labels);
    let mut joined = Joined::default();
    let mut pairs: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut met: std::collections::BTreeSet<(String, Option<DeviceId>, Option<u32>)> =
        std::collections::BTreeSet::new();
    let (mut right, mut numbers, mut absolute, mut square) = (0_u64, 0_u64, 0.0, 0.0);
    let pass = fetched.each(|device, sample| {
        let mut is_labelled = false;
        for row in rows(&sample, device, fetched.bundles.get(&sample.manifest)) {
            let at = u32::try_from(row.row).unwrap_or(u32::MAX);
            // Labels that another goes before are of this sample as well.
            for place in [(Some(device), Some(at)), (Some(device), None), (None, Some(at)), (None, None)] {
                met.insert((sample.id.clone(), place.0.cloned(), place.1));
            }
            let Some(label) = joiner.label(&sample.id, device, at) else { continue };
            is_labelled = true;
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
        joined.labelled += u64::from(is_labelled);
        Ok(())
    })?;
    joined.samples = pass.samples;
    let is_unknown = |label: &&SampleLabel| !met.contains(&(label.id.clone(), label.device.clone(), label.row));
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
        let (labels, in_file, duplicates) =
            read_text("label,id,device,row\n3,a,,\n4,a,dev-1,\n5, a ,dev-1,\n6,a,dev-1,2\n").unwrap();
        assert_eq!((labels.labels.len(), in_file, duplicates), (3, 4, 1));
        let device = DeviceId::new("dev-1").unwrap();
        let joiner = Joiner::new(&labels);
        let label = |device: &DeviceId, row| joiner.label("a", device, row);
        assert_eq!((label(&device, 0).as_deref(), label(&device, 2).as_deref()), (Some("5"), Some("6")));
        assert_eq!(label(&DeviceId::new("dev-2").unwrap(), 2).as_deref(), Some("3"));
        assert_eq!(joiner.label("b", &device, 0), None);
        for (bad, words) in [
            ("", "no columns id and label"),
            ("id,truth\na,1\n", "no columns id and label"),
            ("id,label\na,\n", "line 2: the label is empty"),
            ("id,label\na,1,2\n", "line: 2"),
            ("id,label,row\na,1,x\n", "line 2: row \"x\" is no number"),
            ("id,label,device\na,1,No Device\n", "line 2"),
        ] {
            let said = read_text(bad).unwrap_err();
            assert!(said.contains(words) && said.contains("labels.csv"), "{said}");
        }
    }
}
