//! Labels on their way: how they are written by those who know them, and what comes of each.
//!
//! The same items come to the device over HTTP, from a file on it, and from the centre. Files are CSV with a header, or JSON
//! Lines.

use std::io::{BufRead, BufReader, Read};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{DeviceId, Digest};
use crate::selector::Selector;

/// Longest line of a file of labels, in bytes.
const MAX_LINE_BYTES: u64 = 256 * 1024;

/// The truth about one inference.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FeedbackItem {
    /// The inference's id, as its answer bore it.
    pub id: String,
    /// Which row of the inference, counted from 0; may be left out where it had one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<u32>,
    /// The row's label.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub label: Value,
    /// One label for each row instead; null for a row whose label is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Value>>,
}

/// What came of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FeedbackResult {
    /// It was counted together with the prediction.
    Joined,
    /// No prediction of this id is remembered.
    Unknown,
    /// The prediction is older than the horizon.
    Late,
    /// The row has its label already.
    Duplicate,
    /// It is no label of this model, or names a row that is not there.
    Invalid,
}

impl FeedbackResult {
    /// Every result.
    pub const ALL: [Self; 5] = [Self::Joined, Self::Unknown, Self::Late, Self::Duplicate, Self::Invalid];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Unknown => "unknown",
            Self::Late => "late",
            Self::Duplicate => "duplicate",
            Self::Invalid => "invalid",
        }
    }
}

/// Labels by what came of them, each row counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FeedbackCounts {
    /// [`FeedbackResult::Joined`].
    pub joined: u64,
    /// [`FeedbackResult::Unknown`].
    pub unknown: u64,
    /// [`FeedbackResult::Late`].
    pub late: u64,
    /// [`FeedbackResult::Duplicate`].
    pub duplicate: u64,
    /// [`FeedbackResult::Invalid`].
    pub invalid: u64,
}

impl FeedbackCounts {
    /// Counts `rows` labels that ended in `result`.
    pub fn add(&mut self, result: FeedbackResult, rows: u64) {
        let cell = match result {
            FeedbackResult::Joined => &mut self.joined,
            FeedbackResult::Unknown => &mut self.unknown,
            FeedbackResult::Late => &mut self.late,
            FeedbackResult::Duplicate => &mut self.duplicate,
            FeedbackResult::Invalid => &mut self.invalid,
        };
        *cell = cell.saturating_add(rows);
    }

    /// How many ended in `result`.
    #[must_use]
    pub fn of(&self, result: FeedbackResult) -> u64 {
        match result {
            FeedbackResult::Joined => self.joined,
            FeedbackResult::Unknown => self.unknown,
            FeedbackResult::Late => self.late,
            FeedbackResult::Duplicate => self.duplicate,
            FeedbackResult::Invalid => self.invalid,
        }
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        for result in FeedbackResult::ALL {
            self.add(result, other.of(result));
        }
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        FeedbackResult::ALL.into_iter().fold(0, |sum, result| sum.saturating_add(self.of(result)))
    }
}

/// What came of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackItemResult {
    /// The inference's id.
    pub id: String,
    /// What came of it: joined when at least one row was, else what came of its first label.
    pub result: FeedbackResult,
}

/// What a device answers to labels.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FeedbackAnswer {
    /// One result for each item, in their order.
    pub results: Vec<FeedbackItemResult>,
    /// Every label counted.
    pub counts: FeedbackCounts,
}

/// Labels for one device, sent to it from the centre.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeedbackDelivery {
    /// Names the delivery, so that one that comes twice is counted once.
    pub batch: Digest,
    /// The labels.
    pub items: Vec<FeedbackItem>,
}

/// What came of a [`FeedbackDelivery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackReceipt {
    /// Which delivery.
    pub batch: Digest,
    /// What came of its labels.
    pub counts: FeedbackCounts,
}

/// A label that may say whose prediction it is about: a line of a file, or part of a push.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FeedbackLine {
    /// The device that answered, where that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// The label.
    #[serde(flatten)]
    pub item: FeedbackItem,
}

/// Labels for the controller to send to the devices that made the predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PushFeedback {
    /// Labels of devices that it does not select are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub selector: Option<Selector>,
    /// The labels; each must name its device.
    pub feedback: Vec<FeedbackLine>,
}

/// Labels that were not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RefusedFeedback {
    /// Whose.
    pub device: DeviceId,
    /// How many.
    pub labels: u64,
    /// Why.
    pub reason: String,
}

/// What became of a [`PushFeedback`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PushedFeedback {
    /// Labels that are stored and on their way.
    pub accepted: u64,
    /// Devices they are for.
    pub devices: u64,
    /// Labels that were not taken, by device.
    pub refused: Vec<RefusedFeedback>,
}

/// How the labels pushed for a device stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceFeedback {
    /// The device.
    pub device: DeviceId,
    /// Labels that wait for it.
    pub waiting: u64,
    /// Batches they are in.
    pub waiting_batches: u64,
    /// What came of those it has taken.
    pub results: FeedbackCounts,
    /// Labels that expired before it took them.
    pub expired: u64,
}

/// What kind of file labels are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedbackFormat {
    /// A header with `id` and `label`, perhaps `row` and `device`, then one label a line.
    Csv,
    /// One [`FeedbackLine`] in JSON a line.
    JsonLines,
}

/// Why a line is no label.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct FeedbackLineError {
    /// The line, counted from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
    /// Whether nothing can be read after it.
    pub is_fatal: bool,
}

impl FeedbackFormat {
    /// The format of a file with this name.
    #[must_use]
    pub fn of(file_name: &str) -> Option<Self> {
        match file_name.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            _ => None,
        }
    }

    /// Reads labels from `reader`, one after another, each with its line. A line that is none is an error of its own; those after
    /// it are read.
    pub fn read<'r>(
        self,
        reader: impl Read + 'r,
    ) -> Box<dyn Iterator<Item = Result<(u64, FeedbackLine), FeedbackLineError>> + 'r> {
        match self {
            Self::Csv => read_csv(reader),
            Self::JsonLines => Box::new(JsonLines { reader: BufReader::new(reader), line: 0, over: false }),
        }
    }
}

fn fatal(line: u64, reason: impl Into<String>) -> FeedbackLineError {
    FeedbackLineError { line, reason: reason.into(), is_fatal: true }
}

fn read_csv<'r>(
    reader: impl Read + 'r,
) -> Box<dyn Iterator<Item = Result<(u64, FeedbackLine), FeedbackLineError>> + 'r> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(reader);
    let header = match reader.headers() {
        Ok(header) => header.clone(),
        Err(error) => return Box::new(std::iter::once(Err(fatal(1, error.to_string())))),
    };
    let column = |name: &str| header.iter().position(|title| title == name);
    let (id, label, row, device) = (column("id"), column("label"), column("row"), column("device"));
    let (Some(id), Some(label)) = (id, label) else {
        return Box::new(std::iter::once(Err(fatal(1, "the header has no columns id and label"))));
    };
    Box::new(reader.into_records().map(move |record| {
        let record = record.map_err(|error| FeedbackLineError {
            line: error.position().map_or(0, csv::Position::line),
            reason: error.to_string(),
            is_fatal: error.is_io_error(),
        })?;
        let line = record.position().map_or(0, csv::Position::line);
        let refuse = |reason: String| FeedbackLineError { line, reason, is_fatal: false };
        let text = |at: Option<usize>| at.and_then(|at| record.get(at)).filter(|text| !text.is_empty());
        let row = text(row)
            .map(|text| text.parse().map_err(|_| refuse(format!("row {text:?} is no number from 0"))))
            .transpose()?;
        let device =
            text(device).map(|text| DeviceId::new(text).map_err(|error| refuse(error.to_string()))).transpose()?;
        let item = FeedbackItem {
            id: text(Some(id)).ok_or_else(|| refuse("the id is empty".into()))?.to_owned(),
            row,
            label: Value::from(text(Some(label)).unwrap_or_default()),
            labels: None,
        };
        Ok((line, FeedbackLine { device, item }))
    }))
}

struct JsonLines<R> {
    reader: BufReader<R>,
    line: u64,
    over: bool,
}

impl<R: Read> Iterator for JsonLines<R> {
    type Item = Result<(u64, FeedbackLine), FeedbackLineError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.over {
            self.line += 1;
            let mut text = Vec::new();
            let read = (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut text);
            match read {
                Ok(0) => self.over = true,
                Ok(_) if text.last() != Some(&b'\n') && text.len() as u64 == MAX_LINE_BYTES => {
                    self.over = true;
                    return Some(Err(fatal(self.line, format!("it is longer than {MAX_LINE_BYTES} bytes"))));
                }
                Ok(_) if text.trim_ascii().is_empty() => {}
                Ok(_) => {
                    let line = self.line;
                    return Some(
                        serde_json::from_slice(&text).map(|read| (line, read)).map_err(|error| FeedbackLineError {
                            line,
                            reason: error.to_string(),
                            is_fatal: false,
                        }),
                    );
                }
                Err(error) => {
                    self.over = true;
                    return Some(Err(fatal(self.line, error.to_string())));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(format: FeedbackFormat, text: &str) -> Vec<Result<(u64, FeedbackLine), String>> {
        format.read(text.as_bytes()).map(|line| line.map_err(|error| error.to_string())).collect()
    }

    fn line(device: Option<&str>, id: &str, row: Option<u32>, label: Value) -> FeedbackLine {
        let device = device.map(|id| DeviceId::new(id).unwrap());
        FeedbackLine { device, item: FeedbackItem { id: id.into(), row, label, labels: None } }
    }

    #[test]
    fn tables_and_lines_of_json_say_the_same() {
        let csv = "device,id,label,row\ndev-1,a,cat,\n,b,\"x, y\",2\n";
        let expected = [line(Some("dev-1"), "a", None, json!("cat")), line(None, "b", Some(2), json!("x, y"))];
        let found = read(FeedbackFormat::Csv, csv);
        assert_eq!(found, [Ok((2, expected[0].clone())), Ok((3, expected[1].clone()))]);
        let lines =
            "{\"device\":\"dev-1\",\"id\":\"a\",\"label\":\"cat\"}\n\n{\"id\":\"b\",\"label\":\"x, y\",\"row\":2}";
        let found = read(FeedbackFormat::JsonLines, lines);
        assert_eq!(found, [Ok((1, expected[0].clone())), Ok((3, expected[1].clone()))]);
    }

    #[test]
    fn a_bad_line_is_named_and_the_others_are_read() {
        let found = read(FeedbackFormat::Csv, "id,label,row\na,1,x\n,2,\nb,3,1\n");
        assert_eq!(found[0].as_ref().unwrap_err(), "line 2: row \"x\" is no number from 0");
        assert_eq!(found[1].as_ref().unwrap_err(), "line 3: the id is empty");
        assert_eq!(found[2].as_ref().unwrap().0, 4);
        let found = read(FeedbackFormat::JsonLines, "nonsense\n{\"id\":\"a\",\"label\":1}\n");
        assert!(found[0].as_ref().unwrap_err().starts_with("line 1: "), "{found:?}");
        assert_eq!(found[1].as_ref().unwrap().1.item.label, json!(1));
        assert!(read(FeedbackFormat::Csv, "a,b\n1,2\n")[0].as_ref().unwrap_err().contains("no columns id and label"));
        let endless = "x".repeat(600_000);
        assert_eq!(read(FeedbackFormat::JsonLines, &endless).len(), 1);
        assert_eq!(FeedbackFormat::of("a.CSV"), Some(FeedbackFormat::Csv));
        assert_eq!(FeedbackFormat::of("truth.txt"), None);
    }

    #[test]
    fn counts_do_not_overflow() {
        let mut counts = FeedbackCounts { joined: u64::MAX - 1, ..FeedbackCounts::default() };
        counts.merge(&FeedbackCounts { joined: 5, late: 2, ..FeedbackCounts::default() });
        assert_eq!((counts.joined, counts.late, counts.total()), (u64::MAX, 2, u64::MAX));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..300), csv: bool) {
            let format = if csv { FeedbackFormat::Csv } else { FeedbackFormat::JsonLines };
            let bytes = if csv { [b"id,label\n", &bytes[..]].concat() } else { bytes };
            let _ = format.read(&bytes[..]).count();
        }
    }
}
