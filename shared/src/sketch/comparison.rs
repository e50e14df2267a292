//! How two models answered the same requests, as counts.
//!
//! Every part is a count over cells fixed beforehand, or a sum of whole numbers, so that merging is adding: exact, commutative and free of
//! order, saturating at the greatest number there is. Which requests are compared is the agent's matter; here it is only counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::column::MergeError;
use super::counts::{add_all, total};
use super::latency::LatencySketch;
use super::outcomes::LabelOutcomes;
use crate::ids::Digest;
use crate::limits::MAX_COLUMNS;

/// Edges between the cells of a histogram of differences, in spreads of the incumbent's reference. Cell `i` holds
/// `edges[i - 1] <= difference < edges[i]`, the first and the last one what lies outside.
pub const DIFFERENCE_EDGES: [f64; 12] = [-2.0, -1.0, -0.5, -0.25, -0.1, -0.01, 0.01, 0.1, 0.25, 0.5, 1.0, 2.0];
/// Pairs of classes that are told apart; with more classes than make so many, only agreement is counted.
pub const MAX_PAIRS: usize = 34 * 34;
/// The class of an answer that names none of those known.
pub const UNTOLD_CLASS: &str = "(other)";

const CELLS: usize = DIFFERENCE_EDGES.len() + 1;
/// Differences beyond so many spreads are summed as that many.
const MOST_SPREADS: f64 = 1_000.0;
/// Sums are kept in millionths of a spread (of its square).
const MILLIONTHS: f64 = 1e6;

/// Pairs of predicted classes, counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClassPairs {
    /// Rows for which both named the same class.
    pub agreed: u64,
    /// Rows for which they did not.
    pub disagreed: u64,
    /// Rows by the incumbent's class, then by the candidate's; empty where there are too many classes to tell pairs apart.
    pub pairs: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Differences of a number, the candidate's less the incumbent's, in spreads of the incumbent's reference.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Differences {
    /// Rows in each cell between [`DIFFERENCE_EDGES`].
    pub cells: [u64; CELLS],
    /// Rows for which one of the two gave no finite number.
    pub untold: u64,
    /// Sum of the differences above 0, in millionths of a spread.
    pub above: u64,
    /// Sum of those below 0, without their sign, in millionths of a spread.
    pub below: u64,
    /// Sum of their squares, in millionths of a squared spread.
    pub squares: u64,
}

/// Both models' answers in one column of the profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ColumnComparison {
    /// A predicted class.
    Classes(ClassPairs),
    /// A number.
    Numbers(Differences),
    /// Something this version has no word for.
    #[serde(other)]
    Other,
}

/// How a candidate answered beside the incumbent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Comparison {
    /// Digest of the incumbent's manifest.
    pub against: Digest,
    /// Requests that both answered.
    #[serde(default)]
    pub compared: u64,
    /// Requests that fell to the candidate and were not run on it, for want of room or time.
    #[serde(default)]
    pub skipped: u64,
    /// Of those skipped, the ones that came while the device was pressed and ran no shadow.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub paused: u64,
    /// Requests that the candidate failed and the incumbent answered.
    #[serde(default)]
    pub failed: u64,
    /// How long the incumbent's model took for the requests that were run on a shadow, in microseconds. The candidate's time for the very
    /// same requests is in its window.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<u64>))]
    pub incumbent_us: LatencySketch,
    /// Columns that both have, by name.
    #[serde(default)]
    pub columns: BTreeMap<String, ColumnComparison>,
    /// Labels of both models' answers; none where none came, or the two declare no labels of one kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Box<LabelOutcomes>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl ClassPairs {
    /// Counts one row. `incumbent` and `candidate` are the classes named, if any; pairs are told apart where `tells_pairs` says so.
    pub fn add(&mut self, incumbent: Option<&str>, candidate: Option<&str>, tells_pairs: bool) {
        let agrees = incumbent.is_some() && incumbent == candidate;
        let count = if agrees { &mut self.agreed } else { &mut self.disagreed };
        *count = count.saturating_add(1);
        if tells_pairs {
            self.add_pair(incumbent.unwrap_or(UNTOLD_CLASS), candidate.unwrap_or(UNTOLD_CLASS), 1);
        }
    }

    /// A device that lies about its classes takes no more room than an honest one: what comes on top is counted as no known class.
    fn add_pair(&mut self, incumbent: &str, candidate: &str, n: u64) {
        let is_known = self.pairs.get(incumbent).is_some_and(|row| row.contains_key(candidate));
        let has_room = is_known || self.pairs.values().map(BTreeMap::len).sum::<usize>() < MAX_PAIRS;
        let (incumbent, candidate) = if has_room { (incumbent, candidate) } else { (UNTOLD_CLASS, UNTOLD_CLASS) };
        let cell = self.pairs.entry(incumbent.to_owned()).or_default().entry(candidate.to_owned()).or_default();
        *cell = cell.saturating_add(n);
    }

    /// Rows counted.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.agreed.saturating_add(self.disagreed)
    }

    fn merge(&mut self, other: &Self) {
        self.agreed = self.agreed.saturating_add(other.agreed);
        self.disagreed = self.disagreed.saturating_add(other.disagreed);
        for (incumbent, row) in &other.pairs {
            for (candidate, n) in row {
                self.add_pair(incumbent, candidate, *n);
            }
        }
    }
}

impl Differences {
    /// Counts one row, whose values are divided by `spread`; a spread that is no positive number is taken for 1.
    pub fn add(&mut self, incumbent: Option<f64>, candidate: Option<f64>, spread: f64) {
        let spread = if spread.is_finite() && spread > 0.0 { spread } else { 1.0 };
        let finite = |value: Option<f64>| value.filter(|value| value.is_finite());
        let Some((incumbent, candidate)) = finite(incumbent).zip(finite(candidate)) else {
            self.untold = self.untold.saturating_add(1);
            return;
        };
        let spreads = (candidate / spread - incumbent / spread).clamp(-MOST_SPREADS, MOST_SPREADS);
        // Two infinite quotients leave no number; their signs are lost with it.
        let spreads = if spreads.is_nan() { 0.0 } else { spreads };
        let cell = &mut self.cells[DIFFERENCE_EDGES.partition_point(|edge| *edge <= spreads)];
        *cell = cell.saturating_add(1);
        let sum = if spreads > 0.0 { &mut self.above } else { &mut self.below };
        *sum = sum.saturating_add(millionths(spreads.abs()));
        self.squares = self.squares.saturating_add(millionths(spreads * spreads));
    }

    /// Rows for which both gave a number.
    #[must_use]
    pub fn rows(&self) -> u64 {
        total(&self.cells)
    }

    /// Whether a row is off by a spread or more, or lacks one of the two numbers.
    fn has_far(&self) -> bool {
        let (first, last) = DIFFERENCE_EDGES
            .iter()
            .position(|edge| *edge >= -1.0)
            .zip(DIFFERENCE_EDGES.iter().position(|edge| *edge >= 1.0))
            .unwrap_or((0, CELLS));
        let is_far = |at: usize| at <= first || at > last;
        self.untold > 0 || self.cells.iter().enumerate().any(|(at, n)| *n > 0 && is_far(at))
    }

    /// The mean difference, in spreads; none without rows.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        let rows = self.rows();
        (rows > 0).then(|| (self.above as f64 - self.below as f64) / MILLIONTHS / rows as f64)
    }

    /// The root of the mean squared difference, in spreads; none without rows.
    #[must_use]
    pub fn root_mean_square(&self) -> Option<f64> {
        let rows = self.rows();
        (rows > 0).then(|| (self.squares as f64 / MILLIONTHS / rows as f64).sqrt())
    }

    fn merge(&mut self, other: &Self) {
        add_all(&mut self.cells, &other.cells);
        for (mine, theirs) in [
            (&mut self.untold, other.untold),
            (&mut self.above, other.above),
            (&mut self.below, other.below),
            (&mut self.squares, other.squares),
        ] {
            *mine = mine.saturating_add(theirs);
        }
    }
}

fn millionths(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 10^12, by the clamp above")]
    let whole = (value * MILLIONTHS).round() as u64;
    whole
}

impl ColumnComparison {
    fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        match (self, other) {
            (Self::Classes(mine), Self::Classes(theirs)) => mine.merge(theirs),
            (Self::Numbers(mine), Self::Numbers(theirs)) => mine.merge(theirs),
            (Self::Other, Self::Other) => {}
            (Self::Classes(_) | Self::Numbers(_) | Self::Other, _) => return Err(MergeError),
        }
        Ok(())
    }
}

impl Comparison {
    /// Nothing compared yet with the bundle of that manifest.
    #[must_use]
    pub fn empty(against: Digest) -> Self {
        Self {
            against,
            compared: 0,
            skipped: 0,
            paused: 0,
            failed: 0,
            incumbent_us: LatencySketch::default(),
            columns: BTreeMap::new(),
            labels: None,
        }
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        (self.compared, self.skipped, self.failed) == (0, 0, 0) && self.labels.is_none()
    }

    /// The columns in which the two models disagree somewhere, whatever else agrees. Where classes were compared, that is another class;
    /// else a number that is off by a spread of the reference or more, or that only one of the two gave.
    pub fn disagreeing(&self) -> impl Iterator<Item = &str> {
        let has_classes = self.columns.values().any(|column| matches!(column, ColumnComparison::Classes(_)));
        let disagrees = move |column: &ColumnComparison| match column {
            ColumnComparison::Classes(classes) => classes.disagreed > 0,
            ColumnComparison::Numbers(numbers) => !has_classes && numbers.has_far(),
            ColumnComparison::Other => false,
        };
        self.columns.iter().filter(move |(_, column)| disagrees(column)).map(|(name, _)| name.as_str())
    }

    /// Adds what another window counted against the same incumbent.
    ///
    /// # Errors
    /// [`MergeError`] when the incumbent is another, or a column of another kind; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if self.against != other.against {
            return Err(MergeError);
        }
        let mut columns = self.columns.clone();
        for (name, theirs) in &other.columns {
            let has_room = columns.len() < MAX_COLUMNS;
            match columns.get_mut(name) {
                Some(mine) => mine.merge(theirs)?,
                None if has_room => drop(columns.insert(name.clone(), theirs.clone())),
                None => return Err(MergeError),
            }
        }
        let mut labels = self.labels.clone();
        match (&mut labels, &other.labels) {
            (Some(mine), Some(theirs)) => mine.merge(theirs)?,
            (None, Some(theirs)) => labels = Some(theirs.clone()),
            (_, None) => {}
        }
        self.columns = columns;
        self.labels = labels;
        self.compared = self.compared.saturating_add(other.compared);
        self.skipped = self.skipped.saturating_add(other.skipped);
        self.paused = self.paused.saturating_add(other.paused);
        self.failed = self.failed.saturating_add(other.failed);
        self.incumbent_us.merge(&other.incumbent_us);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classes() -> impl Strategy<Value = Option<&'static str>> {
        prop_oneof![Just(None), Just(Some("a")), Just(Some("b")), Just(Some("c"))]
    }

    fn numbers() -> impl Strategy<Value = Option<f64>> {
        prop_oneof![
            Just(None),
            Just(Some(f64::NAN)),
            Just(Some(f64::MAX)),
            Just(Some(f64::MIN)),
            (-3.0..3.0).prop_map(Some)
        ]
    }

    type Row = (Option<&'static str>, Option<&'static str>, Option<f64>, Option<f64>);

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        prop::collection::vec((classes(), classes(), numbers(), numbers()), 0..30)
    }

    fn counted(rows: &[Row]) -> Comparison {
        let mut comparison = Comparison::empty(Digest::of(b"m"));
        let (mut pairs, mut differences) = (ClassPairs::default(), Differences::default());
        for (one, other, x, y) in rows {
            pairs.add(*one, *other, true);
            differences.add(*x, *y, 0.5);
            comparison.compared += 1;
            comparison.incumbent_us.add(40);
        }
        comparison.columns.insert("class".to_owned(), ColumnComparison::Classes(pairs));
        comparison.columns.insert("y".to_owned(), ColumnComparison::Numbers(differences));
        comparison
    }

    #[test]
    fn rows_fall_into_the_cells_they_belong_to() {
        let mut pairs = ClassPairs::default();
        pairs.add(Some("a"), Some("a"), true);
        pairs.add(Some("a"), Some("b"), true);
        pairs.add(None, None, true);
        pairs.add(Some("b"), Some("a"), false);
        assert_eq!((pairs.agreed, pairs.disagreed, pairs.rows()), (1, 3, 4), "no class is no agreement");
        assert_eq!(pairs.pairs["a"]["b"], 1);
        assert_eq!(pairs.pairs[UNTOLD_CLASS][UNTOLD_CLASS], 1);
        assert!(!pairs.pairs.contains_key("b"));

        let mut differences = Differences::default();
        for (x, y) in [(0.0, 0.0), (1.0, 2.0), (2.0, 1.0), (0.0, 5.0)] {
            differences.add(Some(x), Some(y), 2.0);
        }
        differences.add(Some(0.0), None, 2.0);
        // 0, +0.5, -0.5 and +2.5 spreads.
        assert_eq!(differences.cells, [0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1]);
        assert_eq!((differences.above, differences.below, differences.squares), (3_000_000, 500_000, 6_750_000));
        assert_eq!((differences.rows(), differences.untold), (4, 1));
        assert_eq!(differences.mean(), Some(0.625));
    }

    #[test]
    fn the_columns_that_disagree_are_named() {
        let names = |rows: &[Row]| counted(rows).disagreeing().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            names(&[(Some("a"), Some("a"), Some(0.0), Some(9.0))]),
            [""; 0],
            "classes are what counts where there are some"
        );
        assert_eq!(names(&[(Some("a"), Some("a"), None, None), (Some("a"), None, None, None)]), ["class"]);
        // In spreads of a half.
        for (difference, disagrees) in [(0.49, false), (0.5, true), (-0.49, false), (-0.51, true), (9.0, true)] {
            let mut comparison = counted(&[(None, None, Some(1.0), Some(1.0 + difference))]);
            comparison.columns.remove("class");
            assert_eq!(comparison.disagreeing().next().is_some(), disagrees, "{difference}");
        }
    }

    #[test]
    fn what_a_later_device_compares_is_no_reason_to_lose_the_rest() {
        let mut value = serde_json::to_value(counted(&[(Some("a"), Some("b"), None, None)])).unwrap();
        value["columns"]["y"] = serde_json::json!({"kind": "rankings", "swaps": [1, 2]});
        value["labels"] = serde_json::json!({"kind": "rankings"});
        let read: Comparison = serde_json::from_value(value).unwrap();
        assert_eq!((read.compared, &read.columns["y"]), (1, &ColumnComparison::Other));
        let mut sum = read.clone();
        sum.merge(&read).unwrap();
        assert_eq!(sum.compared, 2);
    }

    #[test]
    fn another_incumbent_or_kind_of_column_is_not_merged() {
        let mut one = counted(&[(Some("a"), Some("a"), Some(1.0), Some(1.0))]);
        let before = one.clone();
        assert_eq!(one.merge(&Comparison::empty(Digest::of(b"other"))), Err(MergeError));
        let mut strange = counted(&[]);
        strange.columns.insert("class".to_owned(), ColumnComparison::Numbers(Differences::default()));
        strange.compared = 5;
        assert_eq!(one.merge(&strange), Err(MergeError));
        assert_eq!(one, before);
    }

    #[test]
    fn a_flood_of_classes_stays_bounded() {
        let mut pairs = ClassPairs::default();
        for n in 0..5_000 {
            pairs.add(Some(&n.to_string()), Some("x"), true);
        }
        assert!(pairs.pairs.values().map(BTreeMap::len).sum::<usize>() <= MAX_PAIRS + 1);
        assert_eq!(pairs.pairs.values().flat_map(BTreeMap::values).sum::<u64>(), 5_000);
    }

    proptest! {
        #[test]
        fn merging_is_counting_both_in_any_order(one in rows(), other in rows(), third in rows()) {
            let all: Vec<Row> = one.iter().chain(&other).chain(&third).copied().collect();
            let (a, b, c) = (counted(&one), counted(&other), counted(&third));
            let merged = |parts: [&Comparison; 3]| {
                let mut sum = parts[0].clone();
                sum.merge(parts[1]).unwrap();
                sum.merge(parts[2]).unwrap();
                sum
            };
            let sum = merged([&a, &b, &c]);
            prop_assert_eq!(&sum, &counted(&all));
            prop_assert_eq!(&merged([&c, &a, &b]), &sum);
            let json = serde_json::to_vec(&sum).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Comparison>(&json).unwrap(), sum);
        }

        #[test]
        fn counts_saturate(n in any::<u64>()) {
            let mut sum = counted(&[(Some("a"), Some("b"), Some(0.0), Some(9.0))]);
            sum.skipped = n;
            for _ in 0..70 {
                let again = sum.clone();
                sum.merge(&again).unwrap();
            }
            let again = sum.clone();
            sum.merge(&again).unwrap();
            prop_assert_eq!(sum, again);
        }
    }
}
