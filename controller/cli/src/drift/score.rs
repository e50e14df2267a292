//! `muster drift score`: a table against a reference, without a controller, by the code that judges fleets.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use muster_inference::Tensor;
use muster_shared::api::{ColumnDrift, DataQuality};
use muster_shared::bundle::{DataType, Manifest};
use muster_shared::drift::{Criteria, DeviceGroups, Draws, adjust, by_devices, cell_names, column_drift};
use muster_shared::ids::Digest;
use muster_shared::listing::first_few;
use muster_shared::profile::{Column, Profile, Reference, Source};
use muster_shared::sketch::ColumnSketch;
use serde::Serialize;

use super::answers::Answers;
use super::faults::{Faults, Seen};
use super::rows::{NoRequest, Rows};
use super::{columns_table, inputs};
use crate::bundle;
use crate::command::Context;
use crate::disk;
use crate::failure::Failure;
use crate::output;
use crate::reference_file::{MAX_BYTES, ReferenceFile};
use crate::table_file::{TableFile, Value, value};

/// Devices whose counts are kept apart before they are put into random groups.
const MAX_APART: usize = 4_096;

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// What to hold the table against: a bundle's folder or manifest.json, or a profile that `muster profile build` made.
    #[arg(value_name = "BUNDLE|PROFILE.json")]
    reference: PathBuf,
    /// The table: a CSV file with a header. Columns are matched by name. Of a bundle that takes images, a folder of them will do.
    #[arg(value_name = "DATA.csv")]
    table: PathBuf,
    /// Score inputs only, and do not run the bundle's model.
    #[arg(long)]
    inputs_only: bool,
    /// The column that names the device a row is from: rows of one device are alike. Without it, every row counts as drawn on
    /// its own.
    #[arg(long, value_name = "COLUMN")]
    device_column: Option<String>,
    /// Chance of calling a column drifted that has not moved.
    #[arg(long, default_value_t = Criteria::default().alpha, value_parser = share)]
    alpha: f64,
    /// The population stability index below which a move is too small to matter.
    #[arg(long, default_value_t = Criteria::default().min_effect, value_parser = not_negative)]
    min_effect: f64,
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| *x > 0.0 && *x < 1.0).ok_or_else(|| "a number between 0 and 1 is needed".to_owned())
}

fn not_negative(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x: &f64| *x >= 0.0 && x.is_finite())
        .ok_or_else(|| "a number from 0 on is needed".to_owned())
}

/// One column's scores, and what they were computed from.
#[derive(Debug, Serialize)]
struct Scored {
    #[serde(flatten)]
    drift: ColumnDrift,
    /// `drifted`, `stable`, or `empty` without a row.
    verdict: &'static str,
    /// Lower edges of the bins and the maximum; of numbers only.
    edges: Option<Vec<f32>>,
    /// The known classes; of categories only.
    classes: Option<Vec<String>>,
    /// What each cell holds, in the order of the counts.
    cells: Vec<String>,
    /// Rows of the reference in each cell.
    reference: Vec<u64>,
    /// Rows of the table in each cell.
    current: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct Report {
    profile: Digest,
    rows: u64,
    alpha: f64,
    min_effect: f64,
    device_column: Option<String>,
    /// Devices the rows are of; none where every row counts as drawn on its own.
    devices: Option<usize>,
    drifted: bool,
    columns: Vec<Scored>,
    /// Columns of the profile that the table does not have.
    missing_columns: Vec<String>,
    /// Columns of the table that the profile does not have.
    extra_columns: Vec<String>,
    /// Cells that hold text in columns of numbers; they count as missing.
    not_numbers: u64,
    /// Why the model's answers are not scored, if they are not.
    answers_left_out: Option<String>,
    /// Rows the model could not be run on, other than those that the data schema rejects.
    rows_without_answer: u64,
    /// What was wrong with the rows by the bundle's data schema, a request each; none where there is no schema.
    quality: Option<DataQuality>,
    /// Features of the data schema that the table does not have.
    unchecked_features: Vec<String>,
    /// There were too many devices to look for repeated values, duplicates and times that go back between any two rows of one.
    devices_forgotten: bool,
}

/// What the table is held against.
struct Against {
    file: ReferenceFile,
    bundle: Option<(PathBuf, Manifest)>,
}

fn read_reference(path: &Path) -> Result<Against, Failure> {
    let of_bundle = |dir: &Path| {
        let manifest = bundle::open::manifest(dir)?;
        let file = ReferenceFile::of_bundle(manifest.profile.clone());
        if file.profile.columns.is_empty() {
            return Err(Failure::input(format!(
                "the bundle in {} has no profile: it was built without a reference",
                dir.display()
            )));
        }
        Ok(Against { file, bundle: Some((dir.to_owned(), manifest)) })
    };
    let metadata =
        fs::metadata(path).map_err(|error| Failure::input(format!("cannot read {}", path.display())).because(error))?;
    if metadata.is_dir() {
        return of_bundle(path);
    }
    if path.file_name().is_some_and(|name| name == "manifest.json") {
        return of_bundle(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")));
    }
    let refuse =
        || Failure::input(format!("{} is neither a bundle nor a profile of `muster profile build`", path.display()));
    let file: ReferenceFile =
        serde_json::from_slice(&disk::read(path, MAX_BYTES)?).map_err(|error| refuse().because(error))?;
    file.validate().map_err(|reason| refuse().because(reason))?;
    Ok(Against { file, bundle: None })
}

/// Counts of one device, or of all rows.
fn empty(profile: &Profile) -> Vec<ColumnSketch> {
    profile.columns.iter().map(ColumnSketch::empty).collect()
}

/// Counts by device, in bounded memory.
struct Counts<'p> {
    profile: &'p Profile,
    apart: BTreeMap<String, Vec<ColumnSketch>>,
    groups: DeviceGroups,
}

impl<'p> Counts<'p> {
    fn of(&mut self, device: &str) -> &mut Vec<ColumnSketch> {
        if self.apart.len() >= MAX_APART && !self.apart.contains_key(device) {
            self.settle();
        }
        let profile = self.profile;
        self.apart.entry(device.to_owned()).or_insert_with(|| empty(profile))
    }

    fn settle(&mut self) {
        for (device, counts) in std::mem::take(&mut self.apart) {
            self.groups.add(&device, &counts);
        }
    }
}

/// `number` as a tensor of `datatype` holds it: bins were cut from such numbers, and one that lies on an edge must not fall beside it.
fn as_held(number: f64, datatype: Option<DataType>) -> f64 {
    if !matches!(datatype, Some(DataType::Fp32 | DataType::Fp16)) {
        return number;
    }
    let tensor = datatype.and_then(|datatype| Tensor::from_f64("", datatype, vec![1], &[number]).ok());
    tensor.and_then(|tensor| tensor.value(0)).unwrap_or(number)
}

/// The type of the tensor that `column` is read from, where a bundle says so.
fn datatype_of(column: &Column, manifest: Option<&Manifest>) -> Option<DataType> {
    let (_, tensor) = column.source.tensor();
    let signature = &manifest?.signature;
    signature.inputs.iter().chain(&signature.outputs).find(|spec| spec.name == tensor).map(|spec| spec.datatype)
}

fn add(sketch: &mut ColumnSketch, column: &Column, datatype: Option<DataType>, cell: &str, not_numbers: &mut u64) {
    match (&column.reference, value(cell)) {
        (_, Value::Missing) => sketch.add_missing(),
        (Reference::Numeric { .. }, Value::Number(number)) => sketch.add(column, as_held(number, datatype)),
        (Reference::Numeric { .. }, Value::Text(_)) => {
            *not_numbers += 1;
            sketch.add_missing();
        }
        (Reference::Class { classes, .. }, Value::Number(_) | Value::Text(_)) => {
            sketch.add(column, classes.iter().position(|class| class == cell).map_or(-1.0, |class| class as f64));
        }
    }
}

/// Where the columns of the profile are in the table.
struct Matched {
    inputs: Vec<(usize, usize)>,
    missing: Vec<String>,
    extra: Vec<String>,
    device: Option<usize>,
}

fn matched(profile: &Profile, header: &[String], args: &ScoreArgs) -> Result<Matched, Failure> {
    let find = |name: &str| header.iter().position(|column| column == name);
    let device = match &args.device_column {
        None => None,
        Some(name) => Some(find(name).ok_or_else(|| {
            Failure::input(format!("{}: there is no column {name:?} to tell devices by", args.table.display()))
        })?),
    };
    let (mut inputs, mut missing) = (Vec::new(), Vec::new());
    for (at, column) in profile.columns.iter().enumerate() {
        match (find(&column.name), &column.source) {
            (Some(position), _) => inputs.push((at, position)),
            (None, Source::Input { .. }) => missing.push(column.name.clone()),
            (None, _) => {}
        }
    }
    let known = |name: &str| profile.columns.iter().any(|column| column.name == name);
    let extra = header
        .iter()
        .enumerate()
        .filter(|(at, name)| !known(name) && Some(*at) != device)
        .map(|(_, name)| name.clone())
        .collect();
    Ok(Matched { inputs, missing, extra, device })
}

/// The one input of a bundle, which a folder of images fills.
fn image_input<'a>(args: &ScoreArgs, manifest: &'a Manifest) -> Result<&'a str, Failure> {
    let takes_images = |name: &str| manifest.pipeline.as_ref().is_some_and(|pipeline| pipeline.takes_images(name));
    match manifest.signature.inputs.as_slice() {
        [only] if takes_images(&only.name) => Ok(&only.name),
        _ => Err(Failure::input(format!(
            "{} is a folder, which fills a bundle's only input where that takes images; this one needs a CSV file, which may name images in a \
             column",
            args.table.display()
        ))),
    }
}

fn score(args: &ScoreArgs) -> Result<Report, Failure> {
    let against = read_reference(&args.reference)?;
    let profile = &against.file.profile;
    let table = match &against.bundle {
        Some((_, manifest)) if args.table.is_dir() => TableFile::of_images(&args.table, image_input(args, manifest)?)?,
        _ => TableFile::open(&args.table)?,
    };
    let matched = matched(profile, table.header(), args)?;
    let mut from_table = vec![false; profile.columns.len()];
    matched.inputs.iter().for_each(|(at, _)| from_table[*at] = true);
    // Which columns are for the model to fill, or for what is measured of wide inputs and images while it runs.
    let from_model: Vec<bool> = profile
        .columns
        .iter()
        .zip(&from_table)
        .map(|(column, from_table)| !matches!(column.source, Source::Input { .. }) && !from_table)
        .collect();
    let wants_answers = from_model.contains(&true);
    let (mut answers, mut left_out, mut faults) = (None, None, None);
    let requests = against.bundle.as_ref().map(|(_, manifest)| Rows::of(manifest, &args.table, table.header()));
    if let (Some((dir, manifest)), Some(requests)) = (&against.bundle, &requests) {
        match &requests.lacking {
            _ if !wants_answers => {}
            _ if args.inputs_only => left_out = Some("only inputs were asked for".to_owned()),
            Some(reason) => left_out = Some(reason.clone()),
            None => answers = Some(Answers::open(dir, manifest, requests)?),
        }
        let by_device = args.device_column.is_some();
        faults = manifest.schema.as_ref().map(|schema| Faults::new(schema, &manifest.signature, requests, by_device));
    }

    if matched.inputs.is_empty() && answers.is_none() {
        let reason = left_out.map_or_else(String::new, |reason| format!(", and its model cannot be run: {reason}"));
        return Err(Failure::input(format!(
            "{}: it has none of the reference's columns{reason}",
            args.table.display()
        )));
    }
    let reader = requests.as_ref().filter(|_| answers.is_some() || faults.is_some());
    let extra = |name: &String| {
        let at = table.header().iter().position(|n| n == name);
        !reader.zip(at).is_some_and(|(reader, at)| reader.reads(at))
    };
    let extra_columns: Vec<String> = matched.extra.iter().filter(|name| extra(name)).cloned().collect();

    let mut counts = Counts { profile, apart: BTreeMap::new(), groups: DeviceGroups::default() };
    let (mut not_numbers, mut no_request) = (0, 0);
    let manifest = against.bundle.as_ref().map(|(_, manifest)| manifest);
    let datatypes: Vec<Option<DataType>> = profile.columns.iter().map(|column| datatype_of(column, manifest)).collect();
    let take = |counts: &mut Counts<'_>, device: &str, column: usize, value: Option<f64>| {
        if from_model[column] {
            let sketch = &mut counts.of(device)[column];
            match value {
                Some(value) => sketch.add(&profile.columns[column], value),
                None => sketch.add_missing(),
            }
        }
    };
    let rows = table.each(|record| {
        let device = matched.device.and_then(|at| record.get(at)).unwrap_or_default();
        let sketches = counts.of(device);
        for (column, position) in &matched.inputs {
            let cell = record.get(*position).unwrap_or_default();
            add(&mut sketches[*column], &profile.columns[*column], datatypes[*column], cell, &mut not_numbers);
        }
        let Some(reader) = reader else { return Ok(()) };
        let seen = match (reader.tensors(record, answers.is_some()), &mut faults) {
            (Ok(tensors), Some(faults)) => faults.look_at(device, tensors),
            (Ok(tensors), None) => Seen::Passed(tensors),
            (Err(reason), faults) => {
                if let (NoRequest::Value, Some(faults)) = (reason, faults) {
                    faults.malformed(device);
                }
                no_request += u64::from(answers.is_some());
                Seen::Rejected
            }
        };
        match (&mut answers, seen) {
            (Some(answers), Seen::Passed(tensors)) => {
                answers.push(device, tensors, |device, column, value| take(&mut counts, device, column, value))
            }
            (Some(answers), Seen::Rejected) => {
                answers.pass_over(device);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    })?;
    if rows == 0 {
        return Err(Failure::input(format!("{}: it has a header and no row", args.table.display())));
    }
    if let Some(answers) = &mut answers {
        answers.flush(|device, column, value| take(&mut counts, device, column, value));
    }
    counts.settle();

    let criteria = Criteria { alpha: args.alpha, min_effect: args.min_effect, ..Criteria::default() };
    let shown = |at: &usize| from_table[*at] || (answers.is_some() && from_model[*at]);
    let totals = counts.groups.totals(profile);
    let mut columns: Vec<Scored> = (0..profile.columns.len())
        .filter(shown)
        .map(|at| {
            let column = &profile.columns[at];
            let (reference, current) = (against.file.cells_of(column), totals[at].clone());
            let apart = counts.groups.column(profile, at);
            let draws = if args.device_column.is_some() { by_devices(&apart) } else { Draws::Rows };
            let drift = column_drift(column, &reference, &current, draws, &criteria);
            let (edges, classes) = match &column.reference {
                Reference::Numeric { lower_edges, max, .. } => (Some([&lower_edges[..], &[*max]].concat()), None),
                Reference::Class { classes, .. } => (None, Some(classes.clone())),
            };
            Scored { drift, verdict: "", edges, classes, cells: cell_names(column), reference, current }
        })
        .collect();
    adjust(columns.iter_mut().map(|column| &mut column.drift), criteria.alpha);
    for column in &mut columns {
        column.verdict = match column.drift.psi {
            None => "empty",
            Some(_) if column.drift.drifted => "drifted",
            Some(_) => "stable",
        };
    }
    Ok(Report {
        profile: profile.digest(),
        rows,
        alpha: criteria.alpha,
        min_effect: criteria.min_effect,
        devices: args.device_column.as_ref().map(|_| counts.groups.devices()),
        device_column: args.device_column.clone(),
        drifted: columns.iter().any(|column| column.drift.drifted),
        columns,
        missing_columns: matched.missing,
        extra_columns,
        not_numbers,
        answers_left_out: left_out,
        rows_without_answer: answers.map_or(0, |answers| answers.failed.saturating_add(no_request)),
        unchecked_features: faults.as_ref().map_or_else(Vec::new, |faults| faults.unchecked.clone()),
        devices_forgotten: faults.as_ref().is_some_and(|faults| faults.forgot),
        quality: faults.and_then(|faults| faults.told(&criteria)),
    })
}

fn text(report: &Report) -> String {
    let devices = report.devices.map_or_else(String::new, |devices| format!(" of {devices} device(s)"));
    let head = format!(
        "{} rows{devices}; * beyond chance ({}); drifted: that among all columns, and psi above {}",
        report.rows, report.alpha, report.min_effect
    );
    let columns = columns_table(report.columns.iter().map(|column| &column.drift));
    let faults = report.quality.as_ref().map(inputs::quality);
    std::iter::once(format!("{head}\n{columns}")).chain(faults).collect::<Vec<_>>().join("\n\n")
}

fn tell(report: &Report) {
    let list = |names: &[String]| first_few(names.iter().map(|name| format!("{name:?}")), 10);
    if !report.missing_columns.is_empty() {
        output::warn(&format!("the table lacks {}: not scored", list(&report.missing_columns)));
    }
    if !report.extra_columns.is_empty() {
        output::note(&format!("the reference knows no {}: not scored", list(&report.extra_columns)));
    }
    if report.not_numbers > 0 {
        output::warn(&format!("{} cells in columns of numbers hold text: counted as missing", report.not_numbers));
    }
    if let Some(reason) = &report.answers_left_out {
        output::note(&format!("answers are not scored: {reason}"));
    }
    if !report.unchecked_features.is_empty() {
        output::warn(&format!(
            "the data schema has rules for {}, which the table lacks",
            list(&report.unchecked_features)
        ));
    }
    if report.devices_forgotten {
        output::warn(
            "there are too many devices to remember the last rows of each: stuck values, duplicates and times that go back are found between \
             rows that stand near each other; sort the table by device",
        );
    }
    if report.rows_without_answer > 0 {
        output::warn(&format!("the model could not be run on {} rows", report.rows_without_answer));
    }
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] of bad input, or of drift.
pub(super) fn run(context: &Context, args: &ScoreArgs) -> Result<(), Failure> {
    let report = score(args)?;
    tell(&report);
    context.output.show(&report, text)?;
    let drifted: Vec<String> = report
        .columns
        .iter()
        .filter(|column| column.drift.drifted)
        .map(|column| format!("{:?}", column.drift.name))
        .take(10)
        .collect();
    if drifted.is_empty() { Ok(()) } else { Err(Failure::drifted(format!("drifted: {}", drifted.join(", ")))) }
}
