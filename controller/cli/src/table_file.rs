//! A CSV table with a header, read row by row however long it is, or a folder of images in place of one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord, Trim, WriterBuilder};
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;
use crate::image_file;

/// Columns a table may have.
const MAX_COLUMNS: usize = 10_000;

/// A table that is being read.
pub(crate) struct TableFile {
    path: PathBuf,
    header: Vec<String>,
    reader: Reader<Box<dyn Read>>,
    progress: ProgressBar,
}

/// What a cell of a table holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    /// Nothing: the cell is empty, or says so.
    Missing,
    /// A number, which may be infinite.
    Number(f64),
    /// Any other text.
    Text(&'a str),
}

/// What `text` stands for. `NA`, `NaN` and `null` in any case are no value.
pub(crate) fn value(text: &str) -> Value<'_> {
    if text.is_empty() || ["na", "nan", "null"].iter().any(|none| text.eq_ignore_ascii_case(none)) {
        return Value::Missing;
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_nan() => Value::Missing,
        Ok(number) => Value::Number(number),
        Err(_) => Value::Text(text),
    }
}

impl TableFile {
    /// Opens the table in `path` and reads its header.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be read, or its header is none.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if path.is_dir() {
            return Err(Failure::input(format!(
                "{} is a folder, and a CSV file is needed; of images, one that names their files in a column",
                path.display()
            )));
        }
        let cannot = |error: std::io::Error| Failure::input(format!("cannot read {}", path.display())).because(error);
        let file = File::open(path).map_err(cannot)?;
        let length = file.metadata().map_err(cannot)?.len();
        let progress = ProgressBar::new(length);
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40} {bytes}/{total_bytes}, {eta} left") {
            progress.set_style(style);
        }
        progress.set_message(path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()));
        let mut reader =
            ReaderBuilder::new().trim(Trim::All).from_reader(Box::new(progress.wrap_read(file)) as Box<dyn Read>);
        let header: Vec<String> =
            reader.headers().map_err(|error| fault(path, &error))?.iter().map(str::to_owned).collect();
        let refuse = |reason: String| Err(Failure::input(format!("{}: {reason}", path.display())));
        if header.is_empty() {
            return refuse("the file is empty; a header with the columns' names comes first".into());
        }
        if header.len() > MAX_COLUMNS {
            return refuse(format!("it has more than {MAX_COLUMNS} columns"));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = header.iter().find(|name| !names.insert(name.as_str())) {
            return refuse(format!("column {twice:?} is there twice"));
        }
        Ok(Self { path: path.to_owned(), header, reader, progress })
    }

    /// The images of the folder `path` as a table of one column, `name`, that names them.
    ///
    /// # Errors
    /// [`Failure`] when the folder cannot be read, or there are none.
    pub(crate) fn of_images(path: &Path, name: &str) -> Result<Self, Failure> {
        let refuse = |reason: String| Failure::input(format!("{}: {reason}", path.display()));
        let names = image_file::names(path).map_err(refuse)?;
        let progress = ProgressBar::new(names.len() as u64);
        let mut writer = WriterBuilder::new().from_writer(Vec::new());
        for name in &names {
            writer.write_record([name]).map_err(|error| refuse(reason(&error)))?;
        }
        let table = writer.into_inner().map_err(|error| refuse(error.to_string()))?;
        let table = progress.wrap_read(Cursor::new(table));
        let reader = ReaderBuilder::new().has_headers(false).from_reader(Box::new(table) as Box<dyn Read>);
        Ok(Self { path: path.to_owned(), header: vec![name.to_owned()], reader, progress })
    }

    /// The columns' names.
    pub(crate) fn header(&self) -> &[String] {
        &self.header
    }

    /// Shows every row to `visit` and counts them.
    ///
    /// # Errors
    /// [`Failure`] with the line of the first mistake, or whatever `visit` gives.
    pub(crate) fn each(mut self, mut visit: impl FnMut(&StringRecord) -> Result<(), Failure>) -> Result<u64, Failure> {
        let mut record = StringRecord::new();
        let mut rows = 0;
        loop {
            match self.reader.read_record(&mut record) {
                Ok(true) => visit(&record)?,
                Ok(false) => break,
                Err(error) => return Err(fault(&self.path, &error)),
            }
            rows += 1;
        }
        self.progress.finish_and_clear();
        Ok(rows)
    }
}

fn fault(path: &Path, error: &csv::Error) -> Failure {
    let line = error.position().map_or_else(String::new, |at| format!(", line {}", at.line()));
    Failure::input(format!("{}{line}: {}", path.display(), reason(error)))
}

/// What is wrong with a file in CSV, in words.
pub(crate) fn reason(error: &csv::Error) -> String {
    if let ErrorKind::UnequalLengths { expected_len, len, .. } = error.kind() {
        format!("the row has {len} values where the header names {expected_len}")
    } else if matches!(error.kind(), ErrorKind::Utf8 { .. }) {
        "this is not UTF-8 text".to_owned()
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_say_what_they_hold() {
        for text in ["", "NA", "na", "NaN", "nan", "-nan", "NULL", "null"] {
            assert_eq!(value(text), Value::Missing, "{text}");
        }
        assert_eq!(value("-1.5e3"), Value::Number(-1_500.0));
        assert_eq!(value("inf"), Value::Number(f64::INFINITY));
        assert_eq!(value("1,5"), Value::Text("1,5"));
    }
}
