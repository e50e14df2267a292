//! Samples in CSV: a header, then one row a line. Columns that are not wanted are passed over.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use csv::{Position, Reader, ReaderBuilder, StringRecord, Trim};
use muster_shared::bundle::DataType;
use muster_shared::listing::first_few;

use super::{MAX_TEXTS, MAX_VALUES, Place, SampleError, Texts, Wanted, admit};
use crate::table_file;

/// Names listed in a message.
const MAX_LISTED: usize = 5;

/// A number as CSV files have it; nothing and NaN are missing values.
fn parse(text: &str) -> Option<f64> {
    match text {
        "" => Some(f64::NAN),
        "true" | "True" | "TRUE" => Some(1.0),
        "false" | "False" | "FALSE" => Some(0.0),
        _ => text.parse().ok(),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A mistake, and the record it is in by its first byte.
struct Fault {
    start: Option<u64>,
    column: Option<String>,
    reason: String,
}

impl From<csv::Error> for Fault {
    fn from(error: csv::Error) -> Self {
        Self { start: error.position().map(Position::byte), column: None, reason: table_file::reason(&error) }
    }
}

fn in_header(reason: String) -> Fault {
    Fault { start: Some(0), column: None, reason }
}

/// Positions of the wanted columns in the header.
fn positions(header: &StringRecord, wanted: &[Wanted]) -> Result<Vec<usize>, Fault> {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    let mut twice: Vec<&str> = Vec::new();
    for (at, name) in header.iter().enumerate() {
        if found.insert(name, at).is_some() {
            twice.push(name);
        }
    }
    let mut positions = Vec::with_capacity(wanted.len());
    let mut missing: Vec<String> = Vec::new();
    for Wanted { name, .. } in wanted {
        if twice.contains(&name.as_str()) {
            return Err(in_header(format!("column {name:?} is there twice")));
        }
        match found.get(name.as_str()) {
            Some(at) => positions.push(*at),
            None => missing.push(format!("{name:?}")),
        }
    }
    if missing.is_empty() {
        return Ok(positions);
    }
    let missing = first_few(missing, MAX_LISTED);
    Err(in_header(format!("the header has no column {missing}, which the description names")))
}

/// The line, counted from 1, of the record that starts at or after byte `start`. The reader's own count is of no use: it
/// is taken before line ends that precede a record are passed over.
fn line_of(file: &mut (impl Read + Seek), start: u64) -> Option<u64> {
    file.seek(SeekFrom::Start(0)).ok()?;
    let mut line = 1;
    let mut at = 0;
    let mut reader = BufReader::new(file);
    loop {
        let bytes = reader.fill_buf().ok().filter(|bytes| !bytes.is_empty())?;
        for byte in bytes {
            if at >= start && !matches!(byte, b'\r' | b'\n') {
                return Some(line);
            }
            line += u64::from(*byte == b'\n');
            at += 1;
        }
        let taken = bytes.len();
        reader.consume(taken);
    }
}

fn read_values(
    reader: &mut Reader<impl Read>,
    wanted: &[Wanted],
    texts: &mut [Texts],
    room: usize,
) -> Result<Vec<f64>, Fault> {
    let positions = positions(reader.headers()?, wanted)?;
    let mut values = Vec::new();
    let mut record = StringRecord::new();
    while reader.read_record(&mut record)? {
        let start = record.position().map(Position::byte);
        if values.len() >= room {
            let reason = format!("the file holds more than {room} values: a smaller sample serves as well");
            return Err(Fault { start, column: None, reason });
        }
        for ((at, Wanted { name, datatype }), texts) in positions.iter().zip(wanted).zip(&mut *texts) {
            let text = record.get(*at).unwrap_or_default();
            let value = if *datatype == DataType::Bytes {
                texts.place(text).ok_or_else(|| format!("it is one of more than {MAX_TEXTS} different texts"))
            } else {
                parse(text)
                    .ok_or_else(|| format!("{:?} is not a number", shortened(text)))
                    .and_then(|value| admit(value, *datatype))
            };
            let value = value.map_err(|reason| Fault { start, column: Some(name.clone()), reason })?;
            values.push(value);
        }
    }
    Ok(values)
}

/// Reads the wanted values of every row.
pub(super) fn read(
    path: &Path,
    file: impl Read + Seek,
    wanted: &[Wanted],
    texts: &mut [Texts],
) -> Result<Vec<f64>, SampleError> {
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(file);
    read_values(&mut reader, wanted, texts, MAX_VALUES).map_err(|Fault { start, column, reason }| {
        let line = start.map(|start| line_of(reader.get_mut(), start).unwrap_or(1));
        let place = match (line, column) {
            (None, _) => Place::File,
            (Some(line), None) => Place::Line(line),
            (Some(line), Some(column)) => Place::Cell { line, column },
        };
        SampleError::new(path, place, reason)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn wanted(names: &[&str], datatype: DataType) -> Vec<Wanted> {
        names.iter().map(|name| Wanted { name: (*name).to_owned(), datatype }).collect()
    }

    fn read_text(text: &[u8], names: &[&str], datatype: DataType) -> Result<Vec<f64>, String> {
        let mut texts = vec![Texts::default(); names.len()];
        read(Path::new("r.csv"), Cursor::new(text), &wanted(names, datatype), &mut texts)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn columns_are_found_by_name_and_missing_values_kept() {
        let text = b"\xef\xbb\xbflabel, b ,a\nx,2,1\r\n\"y, z\",,3.5e1\nw,nan,4\n";
        let values = read_text(text, &["a", "b"], DataType::Fp32).unwrap();
        assert_eq!(format!("{values:?}"), "[1.0, 2.0, 35.0, NaN, 4.0, NaN]");
        assert_eq!(read_text(b"a\ntrue\nFalse\n1\n", &["a"], DataType::Bool), Ok(vec![1.0, 0.0, 1.0]));
    }

    #[test]
    fn mistakes_name_file_line_and_column() {
        for (text, datatype, expected) in [
            (&b"a,b\n1,2\n3\n"[..], DataType::Fp32, "r.csv, line 3: the row has 1 values where the header names 2"),
            (b"a,b\n1,2\n3,4,5\n", DataType::Fp32, "r.csv, line 3: the row has 3 values where the header names 2"),
            (b"a,b\n1,2\n3,four\n", DataType::Fp32, "r.csv, line 3, column \"b\": \"four\" is not a number"),
            (
                b"a,c\n1,2\n",
                DataType::Fp32,
                "r.csv, line 1: the header has no column \"b\", which the description names",
            ),
            (b"a,b,a\n1,2,3\n", DataType::Fp32, "r.csv, line 1: column \"a\" is there twice"),
            (
                b"a,b\n1,1e999\n",
                DataType::Fp64,
                "r.csv, line 2, column \"b\": infinite values are not allowed; leave the value out if there is none",
            ),
            (
                b"a,b\n\n\n1,-1\n",
                DataType::Uint8,
                "r.csv, line 4, column \"b\": -1 is not a whole number from 0 to 255, which UINT8 needs",
            ),
            (
                b"a,b\n1,\n",
                DataType::Int64,
                "r.csv, line 2, column \"b\": the value is missing, and a tensor of INT64 has no way to say so",
            ),
            (b"a,b\n1,2\n\xff,3\n", DataType::Fp32, "r.csv, line 3: this is not UTF-8 text"),
            (
                b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,x",
                DataType::Fp32,
                "r.csv, line 4, column \"b\": \"x\" is not a number",
            ),
            (
                b"a,b,\"c\n\"\r\n1,2,\"\n\"\r\n1,2",
                DataType::Fp32,
                "r.csv, line 5: the row has 2 values where the header names 3",
            ),
            (b"", DataType::Fp32, "r.csv, line 1: the header has no column \"a\", \"b\", which the description names"),
        ] {
            assert_eq!(read_text(text, &["a", "b"], datatype), Err(expected.to_owned()));
        }
        let names: Vec<String> = (0..9).map(|i| format!("p{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(read_text(b"x\n1\n", &names, DataType::Fp32).unwrap_err().contains("\"p4\" and 4 more"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_sample_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[a,b0-9.\"\n\r -]{0,80}") {
            let _ = read_text(&bytes, &["a", "b"], DataType::Fp32);
            let _ = read_text(format!("a,b\n{text}").as_bytes(), &["a", "b"], DataType::Int8);
        }

        #[test]
        fn numbers_survive(rows in prop::collection::vec((any::<f32>(), any::<f32>()), 1..20)) {
            let finite: Vec<_> = rows.into_iter().filter(|(a, b)| a.is_finite() && b.is_finite()).collect();
            let text = finite.iter().fold("a,b\n".to_owned(), |text, (a, b)| format!("{text}{a},{b}\n"));
            let values = read_text(text.as_bytes(), &["b", "a"], DataType::Fp32).unwrap();
            #[expect(clippy::cast_possible_truncation, reason = "they were floats of 32 bits")]
            let back: Vec<(f32, f32)> = values.chunks(2).map(|v| (v[1] as f32, v[0] as f32)).collect();
            prop_assert_eq!(back, finite);
        }
    }
}
