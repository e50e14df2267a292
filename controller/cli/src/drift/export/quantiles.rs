//! Quantile sketches as files, one a column and group, that Apache DataSketches' libraries read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_shared::api::{GroupQuantiles, QuantileExport};
use serde::Serialize;

use crate::command::Context;
use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;
use crate::output;

/// The file that says what the others are.
const INDEX: &str = "index.csv";
/// Longest part of a file's name that is taken from a column or group.
const MAX_NAME_CHARS: usize = 60;

/// What was written.
#[derive(Debug, Serialize)]
struct Written {
    contains_raw_values: bool,
    dir: PathBuf,
    files: Vec<String>,
}

/// `text` with nothing in it that a file system or shell takes for something else.
fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    text.chars().take(MAX_NAME_CHARS).map(plain).collect()
}

/// A name for every sketch: the column, the group if there is one, and the start of the step of time if these are told apart.
fn names(export: &QuantileExport) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let name = |sketch: &GroupQuantiles| {
        let mut name = plain(&sketch.column);
        if export.group_by.is_some() {
            name = format!("{name}--{}", plain(&sketch.group));
        }
        if export.by_window {
            name = format!("{name}--{}", sketch.start_ms);
        }
        let mut free = format!("{name}.kll");
        let mut copy = 1;
        while !taken.insert(free.clone()) {
            copy += 1;
            free = format!("{name}--{copy}.kll");
        }
        free
    };
    export.sketches.iter().map(name).collect()
}

fn index(export: &QuantileExport, names: &[String]) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["file", "column", "group", "start_ms", "end_ms", "devices", "n", "rank_error"])?;
    for (sketch, name) in export.sketches.iter().zip(names) {
        let [start, end, devices, n] =
            [sketch.start_ms, sketch.end_ms, u64::from(sketch.devices), sketch.n].map(|number| number.to_string());
        let error = sketch.rank_error.to_string();
        writer.write_record([name, &sketch.column, &sketch.group, &start, &end, &devices, &n, &error])?;
    }
    Ok(writer.into_inner().map_err(csv::IntoInnerError::into_error)?)
}

/// Writes every sketch of `export` into `folder`, which is made if it is not there. Nobody else may read the files.
///
/// # Errors
/// [`Failure`] when there is no sketch, or a file cannot be written.
pub(super) fn write(
    context: &Context,
    export: &QuantileExport,
    folder: &Path,
    existing: Existing,
) -> Result<(), Failure> {
    if export.sketches.is_empty() {
        return Err(Failure::input(format!(
            "{} has no quantile sketch: its description asks for none (quantiles in [[inputs]]), or no device has reported yet",
            export.bundle
        )));
    }
    let files = names(export);
    let index = index(export, &files)
        .map_err(|error| Failure::unmet("what the files are has no form in CSV").because(error))?;
    fs::create_dir_all(folder)
        .map_err(|error| Failure::input(format!("cannot make {}", folder.display())).because(error))?;
    for (sketch, name) in export.sketches.iter().zip(&files) {
        let bytes = STANDARD
            .decode(&sketch.sketch)
            .map_err(|error| Failure::unmet("the controller sent a damaged sketch").because(error))?;
        disk::write(&folder.join(name), &bytes, Privacy::Secret, existing)?;
    }
    disk::write(&folder.join(INDEX), &index, Privacy::Secret, existing)?;
    let written = Written { contains_raw_values: true, dir: folder.to_owned(), files };
    context.output.show(&written, |written| {
        output::clean(&format!(
            "{} sketch(es) and {INDEX} are in {}; they contain raw values",
            written.files.len(),
            written.dir.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sketch_has_a_file_of_its_own() {
        let sketch = |column: &str, group: &str| GroupQuantiles {
            group: group.into(),
            start_ms: 5,
            end_ms: 6,
            devices: 1,
            column: column.into(),
            n: 9,
            rank_error: 0.025,
            sketch: String::new(),
        };
        let sketches = vec![sketch("a b", "x"), sketch("a/b", "x"), sketch("a_b", ""), sketch("../c", "é,\n")];
        let mut export =
            QuantileExport { bundle: "m@1.0.0".parse().unwrap(), group_by: None, by_window: false, sketches };
        assert_eq!(names(&export), ["a_b.kll", "a_b--2.kll", "a_b--3.kll", ".._c.kll"]);
        export.group_by = Some("site".into());
        assert_eq!(names(&export), ["a_b--x.kll", "a_b--x--2.kll", "a_b--.kll", ".._c--___.kll"]);
        export.by_window = true;
        assert_eq!(names(&export)[0], "a_b--x--5.kll");
        let index = String::from_utf8(index(&export, &names(&export)).unwrap()).unwrap();
        assert!(index.contains("a_b--x--5.kll,a b,x,5,6,1,9,0.025\n") && index.contains("\"é,\n\""), "{index}");
    }
}
