//! A file of device scores: one row a device, in blocks.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use csv::StringRecord;
use jiff::Timestamp;
use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Block, Guardrail, Metric, PredictedClasses, PredictedColumn, ScoredDevice};

use crate::failure::Failure;
use crate::table_file::TableFile;

const FIXED: [&str; 4] = ["time", "block", "device", "arm"];
const SILENT: &str = "silent";
/// What the columns that count predictions of a class are called, before its name.
const PREDICTED: &str = "predicted:";
/// Rows beyond this are no scores of devices.
const MAX_ROWS: usize = 5_000_000;

/// A block and when its last score came.
pub(super) struct TimedBlock {
    pub(super) time: String,
    pub(super) name: String,
    pub(super) block: Block<ScoredDevice>,
}

/// A time as the file has it: a number, or a timestamp.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Time {
    Number(f64),
    Stamp(Timestamp),
}

impl Time {
    fn parse(text: &str) -> Option<Self> {
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        number.map(Self::Number).or_else(|| text.parse().ok().map(Self::Stamp))
    }

    fn order(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => a.total_cmp(&b),
            (Self::Stamp(a), Self::Stamp(b)) => a.cmp(&b),
            (Self::Number(_), Self::Stamp(_)) => Ordering::Less,
            (Self::Stamp(_), Self::Number(_)) => Ordering::Greater,
        }
    }
}

struct Rows {
    time: (Time, String),
    canary: Option<ScoredDevice>,
    controls: Vec<ScoredDevice>,
}

/// What a file holds.
pub(super) struct Scores {
    /// The blocks, in the order in which they were complete.
    pub(super) blocks: Vec<TimedBlock>,
    /// What predictions are counted by, where a guardrail asks for them.
    pub(super) predicted: Option<PredictedClasses>,
}

/// The file's blocks; `guardrails` are the columns wanted. `seed` is where choices of other canaries are drawn from.
///
/// # Errors
/// [`Failure`] with file, line and what is expected.
pub(super) fn read(path: &Path, guardrails: &[Guardrail], seed: u64) -> Result<Scores, Failure> {
    let table = TableFile::open(path)?;
    // Predictions have a column for each class instead.
    let is_scored = |guardrail: &&Guardrail| guardrail.metric != Metric::PredictionDrift;
    let names: Vec<String> = guardrails.iter().filter(is_scored).map(ToString::to_string).collect();
    let classes =
        || table.header().iter().enumerate().filter_map(|(at, name)| Some((at, name.strip_prefix(PREDICTED)?)));
    let drifts = !guardrails.iter().all(|guardrail| is_scored(&guardrail));
    if drifts && classes().count() < 2 {
        return Err(Failure::input(format!(
            "{}: prediction-drift takes columns {PREDICTED}CLASS, one for each class",
            path.display()
        )));
    }
    let predicted = drifts.then(|| PredictedClasses {
        columns: vec![PredictedColumn {
            column: "the file".to_owned(),
            classes: classes().map(|(_, class)| class.to_owned()).collect(),
        }],
        seed,
    });
    let counted: Vec<(usize, String)> =
        classes().filter(|_| drifts).map(|(at, class)| (at, class.to_owned())).collect();
    let at = |name: &str| {
        table.header().iter().position(|column| column == name).ok_or_else(|| {
            let columns = FIXED.iter().copied().chain(names.iter().map(String::as_str)).collect::<Vec<_>>();
            Failure::input(format!("{}: column {name:?} is missing; needed are {}", path.display(), columns.join(", ")))
        })
    };
    let [time, block, device, arm] = [at(FIXED[0])?, at(FIXED[1])?, at(FIXED[2])?, at(FIXED[3])?];
    let scores = names.iter().map(|name| at(name)).collect::<Result<Vec<_>, _>>()?;
    let (mut blocks, mut seen) = (BTreeMap::<String, Rows>::new(), BTreeSet::new());
    table.each(|row: &StringRecord| {
        let line = row.position().map_or(0, csv::Position::line);
        let fault = |reason: String| Failure::input(format!("{}, line {line}: {reason}", path.display()));
        let text = |at: usize| row.get(at).unwrap_or_default();
        let when = Time::parse(text(time)).ok_or_else(|| {
            fault(format!("time {:?} is neither a number nor a timestamp as 2026-01-31T12:00:00Z", text(time)))
        })?;
        let device = DeviceId::new(text(device)).map_err(|error| fault(error.to_string()))?;
        if !seen.insert(device.clone()) {
            return Err(fault(format!("{device} is there twice: a device has one score and stands in one block")));
        }
        if seen.len() > MAX_ROWS {
            return Err(fault(format!("more than {MAX_ROWS} devices")));
        }
        let predicted: Vec<u64> = counted
            .iter()
            .map(|(at, class)| match text(*at) {
                "" => Ok(0),
                cell => {
                    cell.parse().map_err(|_| fault(format!("{PREDICTED}{class} {cell:?} is no count of predictions")))
                }
            })
            .collect::<Result<_, _>>()?;
        // What is of no class of the file is not in it.
        let predicted: Vec<u64> =
            if predicted.iter().all(|n| *n == 0) { Vec::new() } else { [predicted, vec![0]].concat() };
        let mut silent = false;
        let mut cells = Vec::with_capacity(guardrails.len());
        let mut columns = scores.iter().zip(&names);
        for guardrail in guardrails {
            if !is_scored(&guardrail) {
                cells.push((!predicted.is_empty()).then_some(0.0));
                continue;
            }
            let Some((at, name)) = columns.next() else { break };
            let cell = text(*at);
            silent |= cell == SILENT;
            cells.push(match cell {
                "" => None,
                SILENT => Some(1.0),
                cell => Some(score(guardrail, cell).ok_or_else(|| {
                    let wanted = if guardrail.scale().is_some() { "a number" } else { "a share from 0 to 1" };
                    fault(format!("{name} {cell:?} is no score: {wanted}, nothing, or {SILENT}"))
                })?),
            });
        }
        if silent {
            cells.iter_mut().for_each(|cell| *cell = Some(1.0));
        }
        let rows = blocks.entry(text(block).to_owned()).or_insert_with(|| Rows {
            time: (when, text(time).to_owned()),
            canary: None,
            controls: Vec::new(),
        });
        if rows.time.0.order(when).is_lt() {
            rows.time = (when, text(time).to_owned());
        }
        let scored = ScoredDevice { device, silent, scores: cells, predicted };
        match text(arm) {
            "canary" if rows.canary.is_some() => Err(fault(format!("block {:?} has two canaries", text(block)))),
            "canary" => {
                rows.canary = Some(scored);
                Ok(())
            }
            "control" => {
                rows.controls.push(scored);
                Ok(())
            }
            other => Err(fault(format!("arm {other:?} is neither canary nor control"))),
        }
    })?;
    let mut all = Vec::with_capacity(blocks.len());
    for (name, rows) in blocks {
        let fault = |what: &str| Failure::input(format!("{}: block {name:?} has no {what}", path.display()));
        let canary = rows.canary.ok_or_else(|| fault("canary"))?;
        if rows.controls.is_empty() {
            return Err(fault("control"));
        }
        all.push((rows.time, name, Block { canary, controls: rows.controls }));
    }
    // Those complete at the same time go by name, so that the order is the same again.
    all.sort_by(|((a, _), a_name, _), ((b, _), b_name, _)| a.order(*b).then_with(|| a_name.cmp(b_name)));
    let blocks = all.into_iter().map(|((_, time), name, block)| TimedBlock { time, name, block }).collect();
    Ok(Scores { blocks, predicted })
}

/// The score in a cell.
fn score(guardrail: &Guardrail, cell: &str) -> Option<f64> {
    let number: f64 = cell.parse().ok().filter(|number: &f64| number.is_finite())?;
    match guardrail.scale() {
        Some(range) => Some(range.score(number)),
        None => Some(number).filter(|share| (0.0..=1.0).contains(share)),
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::rollout::ScoreRange;

    use super::*;

    fn fails(rows: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.csv");
        std::fs::write(&path, format!("time,block,device,arm,error-rate\n{rows}")).unwrap();
        match read(&path, &[Guardrail::of(Metric::ErrorRate, None)], 0) {
            Ok(scores) => format!("{} blocks", scores.blocks.len()),
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn mistakes_name_the_line_and_what_is_expected() {
        for (rows, expected) in [
            ("1,a,c,canary,0.1\n1,a,d,control,0.2\n", "1 blocks"),
            ("1,a,c,canary,2\n", "line 2: error-rate \"2\" is no score"),
            ("1,a,c,canary,nan\n", "line 2: error-rate \"nan\" is no score"),
            ("noon,a,c,canary,0\n", "line 2: time \"noon\""),
            ("1,a,c,canary,0\n1,b,c,control,0\n", "line 3: c is there twice"),
            ("1,a,c,canary,0\n1,a,d,canary,0\n", "line 3: block \"a\" has two canaries"),
            ("1,a,c,canary,0\n", "block \"a\" has no control"),
            ("1,a,c,control,0\n", "block \"a\" has no canary"),
            ("1,a,c,treated,0\n", "line 2: arm \"treated\""),
            ("1,a,c,canary\n", "line 2: the row has 4 values"),
        ] {
            let message = fails(rows);
            assert!(message.contains(expected), "{expected:?} is not in {message:?}");
        }
    }

    #[test]
    fn numbers_are_scored_within_their_range() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.csv");
        std::fs::write(
            &path,
            "time,block,device,arm,metric:yield,confidence\n1,a,c,canary,92,0.75\n1,a,d,control,120,1\n",
        )
        .unwrap();
        let range = Some(ScoreRange { best: 100.0, worst: 80.0 });
        let number = Guardrail { name: Some("yield".parse().unwrap()), range, ..Guardrail::of(Metric::Custom, None) };
        let blocks = read(&path, &[number, Guardrail::of(Metric::Confidence, None)], 0)
            .map(|scores| scores.blocks)
            .unwrap_or_else(|failure| panic!("{failure}"));
        let scores: Vec<_> = blocks[0].block.members().map(|device| device.scores.clone()).collect();
        assert_eq!(scores, [[Some(0.4), Some(0.25)], [Some(0.0), Some(0.0)]]);
    }

    #[test]
    fn predictions_have_a_column_for_each_class() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.csv");
        let drifts = [Guardrail::of(Metric::PredictionDrift, None)];
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path, &drifts, 7)
        };
        let head = "time,block,device,arm,predicted:a,predicted:b\n";
        let Ok(scores) = read(&format!("{head}1,x,c,canary,3,4\n1,x,d,control,,\n")) else { panic!() };
        let devices: Vec<_> =
            scores.blocks[0].block.members().map(|d| (d.scores.clone(), d.predicted.clone())).collect();
        assert_eq!(devices, [(vec![Some(0.0)], vec![3, 4, 0]), (vec![None], vec![])]);
        let classes = scores.predicted.unwrap();
        assert_eq!((classes.columns[0].classes.clone(), classes.seed), (vec!["a".to_owned(), "b".to_owned()], 7));
        for (text, why) in [
            (format!("{head}1,x,c,canary,3,-4\n"), "line 2: predicted:b \"-4\" is no count"),
            ("time,block,device,arm,predicted:a\n".to_owned(), "columns predicted:CLASS"),
        ] {
            let error = read(&text).err().unwrap().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
