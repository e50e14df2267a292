//! `muster profile`: what a table looks like, to hold others against it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use muster_shared::limits::{MAX_BINS, MAX_CLASSES, MAX_COLUMNS, MAX_LABEL_BYTES};
use muster_shared::profile::{Column, Profile, Reference, Source};
use muster_shared::reference::{self, REFERENCE_BINS};
use muster_shared::sketch::ColumnSketch;

use crate::command::Context;
use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;
use crate::image_file;
use crate::output::{self, cell, number};
use crate::reference_file::{FORMAT, ReferenceFile};
use crate::table_file::{TableFile, Value, value};

/// Numbers of a table that are kept to find their quantiles: 400 MB of them.
const MAX_VALUES: usize = 50_000_000;
/// Different texts of one column that are counted.
const MAX_TEXTS: usize = 1_000_000;

#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// Make a profile of a table, to score others against with `muster drift score`.
    ///
    /// A column of numbers gets bins at its quantiles, any other its most frequent values as classes. Empty cells, NA, NaN and null are no
    /// values.
    Build {
        /// The reference: a CSV file with a header.
        #[arg(value_name = "REF.csv")]
        table: PathBuf,
        /// Bins of a column of numbers; fewer where quantiles coincide.
        #[arg(long, default_value_t = REFERENCE_BINS, value_parser = bins)]
        bins: usize,
        /// The file to write; standard output otherwise.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Replace the file if it is there.
        #[arg(long)]
        force: bool,
    },
}

fn bins(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|bins| (1..=MAX_BINS).contains(bins))
        .ok_or_else(|| format!("1 to {MAX_BINS} bins are possible"))
}

/// What a column turned out to hold.
enum Seen {
    /// Numbers so far, and how many of them are infinite.
    Numbers(Vec<f64>),
    /// Texts, and how often each.
    Texts { counts: BTreeMap<String, u64>, missing: u64 },
}

/// Which columns hold something that is neither a number nor missing.
fn texts(table: TableFile) -> Result<Vec<bool>, Failure> {
    let mut texts = vec![false; table.header().len()];
    table.each(|record| {
        for (is_text, cell) in texts.iter_mut().zip(record) {
            *is_text |= matches!(value(cell), Value::Text(_));
        }
        Ok(())
    })?;
    Ok(texts)
}

fn read(path: &Path) -> Result<(Vec<String>, Vec<Seen>, u64), Failure> {
    let texts = texts(TableFile::open(path)?)?;
    let fresh = |is_text: &bool| {
        if *is_text { Seen::Texts { counts: BTreeMap::new(), missing: 0 } } else { Seen::Numbers(Vec::new()) }
    };
    let mut columns: Vec<Seen> = texts.iter().map(fresh).collect();
    let table = TableFile::open(path)?;
    let header = table.header().to_vec();
    let mut room = MAX_VALUES;
    let too_much = |what: String| Failure::input(format!("{}: {what}", path.display()));
    let rows = table.each(|record| {
        for ((seen, cell), name) in columns.iter_mut().zip(record).zip(&header) {
            match (seen, value(cell)) {
                (Seen::Numbers(numbers), Value::Number(number)) => numbers.push(number),
                (Seen::Numbers(numbers), Value::Missing | Value::Text(_)) => numbers.push(f64::NAN),
                (Seen::Texts { missing, .. }, Value::Missing) => *missing += 1,
                (Seen::Texts { counts, .. }, Value::Number(_) | Value::Text(_)) => {
                    *counts.entry(cell.to_owned()).or_default() += 1;
                    if counts.len() > MAX_TEXTS {
                        let what = format!("column {name:?} has more than {MAX_TEXTS} different values; leave it out");
                        return Err(too_much(what));
                    }
                }
            }
        }
        room = room.checked_sub(columns.len()).ok_or_else(|| {
            too_much(format!("it holds more than {MAX_VALUES} values: a smaller sample serves as well"))
        })?;
        Ok(())
    })?;
    Ok((header, columns, rows))
}

/// A column's reference and its counts in every cell; the reason where it cannot be watched.
fn describe(name: &str, index: usize, seen: Seen, bins: usize) -> Result<(Column, Vec<u64>), String> {
    let source = Source::Input { tensor: "table".to_owned(), index: u32::try_from(index).unwrap_or(u32::MAX) };
    if name.is_empty() || name.len() > MAX_LABEL_BYTES {
        return Err(format!("a column's name has 1 to {MAX_LABEL_BYTES} bytes"));
    }
    match seen {
        Seen::Numbers(numbers) => {
            let held: Vec<f64> = numbers.iter().map(|x| if x.is_finite() { *x } else { f64::NAN }).collect();
            let reference = reference::numeric_in(&held, bins).map_err(|error| error.to_string())?;
            let column = Column { name: name.to_owned(), source, reference };
            let mut sketch = ColumnSketch::empty(&column);
            numbers.iter().for_each(|x| if x.is_nan() { sketch.add_missing() } else { sketch.add(&column, *x) });
            Ok((column, sketch.cells()))
        }
        Seen::Texts { counts, missing } => {
            let mut known: Vec<(String, u64)> =
                counts.into_iter().filter(|(text, _)| text.len() <= MAX_LABEL_BYTES).collect();
            let total: u64 = known.iter().map(|(_, n)| n).sum();
            // The most frequent are known, in alphabetical order where they are equal.
            known.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            known.truncate(MAX_CLASSES);
            let (classes, counts): (Vec<String>, Vec<u64>) = known.into_iter().unzip();
            if classes.is_empty() {
                return Err(format!("no value has at most {MAX_LABEL_BYTES} bytes"));
            }
            let other = total - counts.iter().sum::<u64>();
            let cells = counts.iter().copied().chain([other, missing]).collect();
            Ok((Column { name: name.to_owned(), source, reference: Reference::Class { classes, counts } }, cells))
        }
    }
}

impl Seen {
    /// Whether its texts are names of images.
    fn names_images(&self) -> bool {
        matches!(self, Self::Texts { counts, .. } if !counts.is_empty() && counts.keys().all(|text| image_file::is_named_so(Path::new(text))))
    }
}

/// What the table in `path` looks like.
fn build(path: &Path, bins: usize) -> Result<ReferenceFile, Failure> {
    let images = "images are profiled as the model sees them: give them to `muster bundle build` as its `reference`, and hold others against the bundle \
                  with `muster drift score BUNDLE TABLE.csv`";
    if path.is_dir() {
        return Err(Failure::input(format!("{} is a folder, and a CSV file is needed; {images}", path.display())));
    }
    let (header, columns, rows) = read(path)?;
    for (name, _) in header.iter().zip(&columns).filter(|(_, seen)| seen.names_images()) {
        output::warn(&format!("column {name:?} names images, and only the names are counted; {images}"));
    }
    if rows == 0 {
        return Err(Failure::input(format!("{}: it has a header and no row", path.display())));
    }
    let mut profile = Profile::default();
    let mut cells = BTreeMap::new();
    for (index, (name, seen)) in header.iter().zip(columns).enumerate() {
        match describe(name, index, seen, bins) {
            Ok((column, counts)) => {
                cells.insert(name.clone(), counts);
                profile.columns.push(column);
            }
            Err(reason) => output::warn(&format!("column {name:?} is left out: {reason}")),
        }
        if profile.columns.len() > MAX_COLUMNS {
            return Err(Failure::input(format!("{}: more than {MAX_COLUMNS} columns", path.display())));
        }
    }
    if profile.columns.is_empty() {
        return Err(Failure::input(format!("{}: no column can be profiled", path.display())));
    }
    profile.validate().map_err(|error| Failure::input(path.display().to_string()).because(error))?;
    Ok(ReferenceFile { format: FORMAT.to_owned(), rows, profile, cells })
}

fn counted(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

fn summary(file: &ReferenceFile) -> String {
    let rows = file.profile.columns.iter().map(|column| {
        let cells = file.cells_of(column);
        let (kind, parts) = match &column.reference {
            Reference::Numeric { lower_edges, .. } => ("number", counted(lower_edges.len(), "bin", "bins")),
            Reference::Class { classes, .. } => ("category", counted(classes.len(), "class", "classes")),
        };
        vec![cell(&column.name), cell(kind), cell(parts), number(cells.last().copied().unwrap_or(0).to_string())]
    });
    output::table(&["column", "kind", "cells", "missing"], rows)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the table cannot be profiled or the file not written.
pub(crate) fn run(context: &Context, command: ProfileCommand) -> Result<(), Failure> {
    let ProfileCommand::Build { table, bins, out, force } = command;
    let file = build(&table, bins)?;
    let Some(out) = out else { return output::print(&as_json(&file)?) };
    let text = as_json(&file)? + "\n";
    disk::write(&out, text.as_bytes(), Privacy::Public, Existing::from_force(force))?;
    if context.output.is_json() { Ok(()) } else { output::print(&summary(&file)) }
}

fn as_json(file: &ReferenceFile) -> Result<String, Failure> {
    serde_json::to_string(file).map_err(|error| Failure::unmet("the profile has no form in JSON").because(error))
}
