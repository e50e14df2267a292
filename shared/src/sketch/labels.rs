//! Counts of labels that were joined with predictions: how often the model was right, how sure it was, how far off.
//!
//! Numbers are summed in whole units of their target ([`crate::labels::LabelTarget`]), confidences in millionths, so that
//! every merge is exact. A window counts labels when they arrive, whenever the prediction was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::column::MergeError;
use super::counts::{add, add_all, total};
use super::latency::LatencySketch;
use crate::feedback::FeedbackCounts;
use crate::labels::{LabelSpec, LabelTarget, LabelTask, Prediction, Truth, UNITS_PER_SCALE};
use crate::profile::SliceSet;

/// Bins of confidence from 0 to 1, equally wide (Guo et al., ICML 2017, have as many).
pub const CALIBRATION_BINS: usize = 15;
/// Millionths of confidence in one.
pub const CONFIDENCE_UNITS: f64 = 1_000_000.0;
/// Upper bounds of an error's size as a share of the target's scale. Each is a bin on either side of the one around 0, and what is
/// larger has one more on either side.
pub const ERROR_BOUNDS: [f64; 5] = [1.0 / 256.0, 1.0 / 64.0, 1.0 / 16.0, 1.0 / 4.0, 1.0];
/// Bins of errors, most negative first.
pub const ERROR_BINS: usize = 2 * ERROR_BOUNDS.len() + 1;
/// Different confusions a device lists in one window; what goes beyond shows in the classes' own counts only.
pub const MAX_CONFUSIONS: usize = 1_024;

/// Answers of a confidence within one bin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// How many.
    pub n: u64,
    /// How many of them were right.
    pub right: u64,
    /// Their confidence, added up in millionths.
    pub confidence: u64,
}

/// Labels of classes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassLabels {
    /// Labels of each class; of no known class at the end.
    pub truth: Vec<u64>,
    /// Labelled answers of each class; of none at the end.
    pub predicted: Vec<u64>,
    /// Of these, right ones of each class.
    pub right: Vec<u64>,
    /// Wrong ones by `truth · (classes + 1) + predicted`, as far as they are listed ([`MAX_CONFUSIONS`]).
    pub confused: BTreeMap<u32, u64>,
    /// By confidence; answers whose confidence is not within 0 and 1 are in no bin.
    pub calibration: Vec<CalibrationBin>,
}

/// Labels of one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetLabels {
    /// Labels of answers that were numbers.
    pub n: u64,
    /// Labels of answers that were none.
    pub unanswered: u64,
    /// Σ (answer − truth), in units; so is all below.
    pub error: i128,
    /// Σ |answer − truth|.
    pub absolute_error: u128,
    /// Σ (answer − truth)².
    pub squared_error: u128,
    /// Σ truth.
    pub truth: i128,
    /// Σ truth².
    pub squared_truth: u128,
    /// Errors by size ([`ERROR_BOUNDS`]).
    pub errors: Vec<u64>,
}

/// Labels of some rows, by task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelCounts {
    /// Of classes.
    Classes(ClassLabels),
    /// Of numbers, target by target.
    Targets(Vec<TargetLabels>),
}

/// Labels of one window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelSketch {
    /// Answers given in the window that could be labelled later.
    pub predictions: u64,
    /// Answers given up without a label: for want of room, or because the agent stopped.
    pub forgotten: u64,
    /// Labels by what came of them.
    pub results: FeedbackCounts,
    /// From answer to label, in milliseconds (up to 11 days).
    pub delay_ms: LatencySketch,
    /// Every joined label.
    pub all: LabelCounts,
    /// Those within each slice of the profile, by its position; slices without labels are left out.
    pub slices: BTreeMap<u8, LabelCounts>,
}

fn count(cells: &mut [u64], at: usize) {
    if let Some(cell) = cells.get_mut(at) {
        add(cell, 1);
    }
}

impl ClassLabels {
    fn empty(classes: usize) -> Self {
        Self {
            truth: vec![0; classes + 1],
            predicted: vec![0; classes + 1],
            right: vec![0; classes],
            confused: BTreeMap::new(),
            calibration: vec![CalibrationBin::default(); CALIBRATION_BINS],
        }
    }

    /// How many labels there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        total(&self.truth)
    }

    /// How many answers were right.
    #[must_use]
    pub fn total_right(&self) -> u64 {
        total(&self.right)
    }

    fn add(&mut self, answer: Option<(u16, f64)>, truth: u16) {
        let classes = self.right.len();
        let predicted = answer.map_or(classes, |(class, _)| usize::from(class)).min(classes);
        let truth = usize::from(truth).min(classes);
        let is_right = truth == predicted && truth < classes;
        count(&mut self.truth, truth);
        count(&mut self.predicted, predicted);
        if is_right {
            count(&mut self.right, truth);
        } else if let Ok(pair) = u32::try_from(truth * (classes + 1) + predicted) {
            let has_room = self.confused.len() < MAX_CONFUSIONS;
            match self.confused.get_mut(&pair) {
                Some(cell) => *cell = cell.saturating_add(1),
                None if has_room => drop(self.confused.insert(pair, 1)),
                None => {}
            }
        }
        // A softmax may come out a rounding error above one.
        let confidence = answer.map(|(_, confidence)| confidence).filter(|c| (0.0..=1.000_01).contains(c));
        let Some(confidence) = confidence.map(|c| c.min(1.0)) else { return };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and 1")]
        let (bin, units) =
            ((confidence * CALIBRATION_BINS as f64) as usize, (confidence * CONFIDENCE_UNITS).round() as u64);
        if let Some(bin) = self.calibration.get_mut(bin.min(CALIBRATION_BINS - 1)) {
            bin.n = bin.n.saturating_add(1);
            bin.right = bin.right.saturating_add(u64::from(is_right));
            bin.confidence = bin.confidence.saturating_add(units);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        add_all(&mut self.truth, &other.truth);
        add_all(&mut self.predicted, &other.predicted);
        add_all(&mut self.right, &other.right);
        for (pair, n) in &other.confused {
            add(self.confused.entry(*pair).or_default(), *n);
        }
        for (mine, theirs) in self.calibration.iter_mut().zip(&other.calibration) {
            add(&mut mine.n, theirs.n);
            add(&mut mine.right, theirs.right);
            add(&mut mine.confidence, theirs.confidence);
        }
    }

    fn has_cells(&self, classes: usize) -> bool {
        let width = classes + 1;
        self.truth.len() == width
            && self.predicted.len() == width
            && self.right.len() == classes
            && self.calibration.len() == CALIBRATION_BINS
            && self.confused.keys().all(|pair| (*pair as usize) < width * width)
    }
}

/// The bin of an error of `units`.
fn error_bin(units: i64) -> usize {
    let size = units.unsigned_abs() as f64 / UNITS_PER_SCALE;
    let step = ERROR_BOUNDS.iter().take_while(|bound| size > **bound).count();
    let middle = ERROR_BOUNDS.len();
    if units < 0 { middle - step } else { middle + step }
}

impl TargetLabels {
    fn empty() -> Self {
        Self {
            n: 0,
            unanswered: 0,
            error: 0,
            absolute_error: 0,
            squared_error: 0,
            truth: 0,
            squared_truth: 0,
            errors: vec![0; ERROR_BINS],
        }
    }

    fn add(&mut self, target: &LabelTarget, answer: f64, truth: f64) {
        if !answer.is_finite() {
            self.unanswered = self.unanswered.saturating_add(1);
            return;
        }
        let (error, truth) = (target.units(answer - truth), target.units(truth));
        let square = |units: i64| u128::from(units.unsigned_abs()).pow(2);
        self.n = self.n.saturating_add(1);
        self.error = self.error.saturating_add(i128::from(error));
        self.absolute_error = self.absolute_error.saturating_add(u128::from(error.unsigned_abs()));
        self.squared_error = self.squared_error.saturating_add(square(error));
        self.truth = self.truth.saturating_add(i128::from(truth));
        self.squared_truth = self.squared_truth.saturating_add(square(truth));
        count(&mut self.errors, error_bin(error));
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.n = self.n.saturating_add(other.n);
        self.unanswered = self.unanswered.saturating_add(other.unanswered);
        self.error = self.error.saturating_add(other.error);
        self.absolute_error = self.absolute_error.saturating_add(other.absolute_error);
        self.squared_error = self.squared_error.saturating_add(other.squared_error);
        self.truth = self.truth.saturating_add(other.truth);
        self.squared_truth = self.squared_truth.saturating_add(other.squared_truth);
        add_all(&mut self.errors, &other.errors);
    }
}

impl LabelCounts {
    /// Nothing counted yet.
    #[must_use]
    pub fn empty(task: &LabelTask) -> Self {
        match task {
            LabelTask::Classification { classes } => Self::Classes(ClassLabels::empty(classes.len())),
            LabelTask::Regression { targets } => Self::Targets(targets.iter().map(|_| TargetLabels::empty()).collect()),
        }
    }

    /// Whether these are the cells of `task`.
    #[must_use]
    pub fn fits(&self, task: &LabelTask) -> bool {
        match (self, task) {
            (Self::Classes(counts), LabelTask::Classification { classes }) => counts.has_cells(classes.len()),
            (Self::Targets(counts), LabelTask::Regression { targets }) => {
                counts.len() == targets.len() && counts.iter().all(|target| target.errors.len() == ERROR_BINS)
            }
            (Self::Classes(_), LabelTask::Regression { .. }) | (Self::Targets(_), LabelTask::Classification { .. }) => {
                false
            }
        }
    }

    /// How many rows have a label.
    #[must_use]
    pub fn total(&self) -> u64 {
        match self {
            Self::Classes(counts) => counts.total(),
            Self::Targets(targets) => {
                targets.iter().map(|target| target.n.saturating_add(target.unanswered)).max().unwrap_or(0)
            }
        }
    }

    /// Counts a label against the answer it belongs to. All three must be of one task; what is not is passed over.
    pub fn add(&mut self, task: &LabelTask, answer: &Prediction, truth: &Truth) {
        match (self, task, answer, truth) {
            (Self::Classes(counts), _, Prediction::Class(answer), Truth::Class(truth)) => counts.add(*answer, *truth),
            (
                Self::Targets(counts),
                LabelTask::Regression { targets },
                Prediction::Numbers(answers),
                Truth::Numbers(truths),
            ) => {
                for (((counts, target), answer), truth) in counts.iter_mut().zip(targets).zip(answers).zip(truths) {
                    counts.add(target, *answer, *truth);
                }
            }
            _ => {}
        }
    }

    /// Whether `other` counts into the same cells, so that [`LabelCounts::merge`] goes through.
    fn same_cells(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Classes(mine), Self::Classes(theirs)) => {
                mine.has_cells(theirs.right.len()) && theirs.has_cells(mine.right.len())
            }
            (Self::Targets(mine), Self::Targets(theirs)) => mine.len() == theirs.len(),
            (Self::Classes(_), Self::Targets(_)) | (Self::Targets(_), Self::Classes(_)) => false,
        }
    }

    /// Adds what was counted elsewhere.
    ///
    /// # Errors
    /// [`MergeError`] when the cells differ; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if !self.same_cells(other) {
            return Err(MergeError);
        }
        match (self, other) {
            (Self::Classes(mine), Self::Classes(theirs)) => mine.merge(theirs),
            (Self::Targets(mine), Self::Targets(theirs)) => {
                mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| mine.merge(theirs));
            }
            (Self::Classes(_), Self::Targets(_)) | (Self::Targets(_), Self::Classes(_)) => {}
        }
        Ok(())
    }
}

impl LabelSketch {
    /// Nothing counted yet.
    #[must_use]
    pub fn empty(spec: &LabelSpec) -> Self {
        Self {
            predictions: 0,
            forgotten: 0,
            results: FeedbackCounts::default(),
            delay_ms: LatencySketch::default(),
            all: LabelCounts::empty(&spec.task),
            slices: BTreeMap::new(),
        }
    }

    /// Whether these are the cells of `spec`, in a profile with so many slices.
    #[must_use]
    pub fn fits(&self, spec: &LabelSpec, slices: usize) -> bool {
        self.all.fits(&spec.task)
            && self.slices.iter().all(|(slice, counts)| usize::from(*slice) < slices && counts.fits(&spec.task))
    }

    /// Counts a label that was joined with the `answer` to a row within `slices`.
    pub fn join(&mut self, spec: &LabelSpec, (answer, truth): (&Prediction, &Truth), slices: SliceSet, delay_ms: u64) {
        self.delay_ms.add(delay_ms);
        self.all.add(&spec.task, answer, truth);
        for slice in slices.iter() {
            self.slices.entry(slice).or_insert_with(|| LabelCounts::empty(&spec.task)).add(&spec.task, answer, truth);
        }
    }

    /// Whether `other` counts into the same cells, so that [`LabelSketch::merge`] goes through.
    #[must_use]
    pub fn same_cells(&self, other: &Self) -> bool {
        let same_slice = |(slice, theirs)| self.slices.get(slice).is_none_or(|mine| mine.same_cells(theirs));
        self.all.same_cells(&other.all) && other.slices.iter().all(same_slice)
    }

    /// Adds what another window against the same profile counted.
    ///
    /// # Errors
    /// [`MergeError`] when the cells differ; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if !self.same_cells(other) {
            return Err(MergeError);
        }
        self.all.merge(&other.all)?;
        for (slice, counts) in &other.slices {
            match self.slices.get_mut(slice) {
                Some(mine) => mine.merge(counts)?,
                None => drop(self.slices.insert(*slice, counts.clone())),
            }
        }
        add(&mut self.predictions, other.predictions);
        add(&mut self.forgotten, other.forgotten);
        self.results.merge(&other.results);
        self.delay_ms.merge(&other.delay_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classes(count: u16) -> LabelSpec {
        let classes = (0..count).map(|class| format!("c{class}")).collect();
        LabelSpec::new("p", LabelTask::Classification { classes })
    }

    fn targets() -> LabelSpec {
        let targets = vec![LabelTarget { index: 0, scale: 8.0 }, LabelTarget { index: 2, scale: 1e-3 }];
        LabelSpec::new("y", LabelTask::Regression { targets })
    }

    type Row = (Prediction, Truth, u8, u64);

    fn sketch(spec: &LabelSpec, rows: &[Row]) -> LabelSketch {
        let mut sketch = LabelSketch::empty(spec);
        for (answer, truth, slice, delay_ms) in rows {
            let slices = if *slice < 2 { SliceSet::default().with(*slice) } else { SliceSet::default() };
            sketch.join(spec, (answer, truth), slices, *delay_ms);
        }
        sketch
    }

    fn class_row() -> impl Strategy<Value = Row> {
        let answer = prop::option::of((0..4u16, prop_oneof![0.0..=1.0f64, any::<f64>()]));
        (answer, 0..6u16, 0..3u8, any::<u64>())
            .prop_map(|(answer, truth, slice, delay)| (Prediction::Class(answer), Truth::Class(truth), slice, delay))
    }

    fn number_row() -> impl Strategy<Value = Row> {
        let number = prop_oneof![-20.0..20.0f64, any::<f64>()];
        let truth = prop_oneof![-20.0..20.0f64, Just(1e300), Just(f64::MIN)];
        (prop::array::uniform2(number), prop::array::uniform2(truth), 0..3u8, any::<u64>()).prop_map(
            |(answer, truth, slice, delay)| {
                (Prediction::Numbers(answer.into()), Truth::Numbers(truth.into()), slice, delay)
            },
        )
    }

    #[test]
    fn rows_are_counted_where_they_belong() {
        let spec = classes(3);
        let rows = [
            (Prediction::Class(Some((0, 0.99))), Truth::Class(0), 0, 5),
            (Prediction::Class(Some((1, 0.4))), Truth::Class(2), 0, 5),
            (Prediction::Class(Some((1, 1.000_001))), Truth::Class(3), 1, 5),
            (Prediction::Class(None), Truth::Class(1), 2, 5),
            (Prediction::Class(Some((2, 7.5))), Truth::Class(2), 2, 5),
        ];
        let sketch = sketch(&spec, &rows);
        let LabelCounts::Classes(all) = &sketch.all else { panic!("{sketch:?}") };
        assert_eq!(
            (&all.truth[..], &all.predicted[..], &all.right[..]),
            (&[1, 1, 2, 1][..], &[1, 2, 1, 1][..], &[1, 0, 1][..])
        );
        // Truth 2 taken for 1, no known class taken for 1, truth 1 with no answer.
        assert_eq!(all.confused, [(2 * 4 + 1, 1), (3 * 4 + 1, 1), (4 + 3, 1)].into());
        let bins: Vec<(usize, CalibrationBin)> =
            all.calibration.iter().copied().enumerate().filter(|(_, bin)| bin.n > 0).collect();
        let bin = |n, right, confidence| CalibrationBin { n, right, confidence };
        assert_eq!(bins, [(6, bin(1, 0, 400_000)), (14, bin(2, 1, 1_990_000))], "a logit is no confidence");
        assert_eq!(sketch.slices.keys().copied().collect::<Vec<_>>(), [0, 1]);
        assert_eq!((sketch.all.total(), sketch.slices[&0].total(), sketch.delay_ms.count()), (5, 2, 5));
    }

    #[test]
    fn errors_are_summed_in_whole_units() {
        let spec = targets();
        let unit = 8.0 / UNITS_PER_SCALE;
        let row = |answer: f64, truth: f64| {
            (Prediction::Numbers([answer, f64::NAN].into()), Truth::Numbers([truth, 0.0].into()), 2, 0)
        };
        let sketch = sketch(&spec, &[row(3.0 * unit, unit), row(-8.0, 0.0), row(0.0, 9.0)]);
        let LabelCounts::Targets(targets) = &sketch.all else { panic!("{sketch:?}") };
        let (first, scale) = (&targets[0], 1_048_576_i128);
        assert_eq!((first.n, first.error), (3, 2 - scale - scale * 9 / 8));
        assert_eq!(first.absolute_error, u128::try_from(2 + scale + scale * 9 / 8).unwrap());
        // A whole scale low, more than that low, and next to nothing.
        assert_eq!((first.errors[1], first.errors[0], first.errors[5]), (1, 1, 1));
        assert_eq!((targets[1].n, targets[1].unanswered), (0, 3));
    }

    #[test]
    fn overflow_saturates_and_many_classes_stay_bounded() {
        let spec = classes(200);
        let mut sketch = LabelSketch::empty(&spec);
        for n in 0..40_000u16 {
            let row = (&Prediction::Class(Some((n % 200, 0.5))), &Truth::Class(n / 200));
            sketch.join(&spec, row, SliceSet::default(), 1);
        }
        let LabelCounts::Classes(all) = &mut sketch.all else { panic!("{sketch:?}") };
        assert_eq!((all.confused.len(), all.total(), all.total_right()), (MAX_CONFUSIONS, 40_000, 200));
        all.truth[0] = u64::MAX;
        all.calibration[7].confidence = u64::MAX;
        let before = sketch.clone();
        sketch.merge(&before).unwrap();
        assert_eq!(sketch.all.total(), u64::MAX);
        let numbers = targets();
        let huge = TargetLabels { n: u64::MAX, error: i128::MIN, squared_error: u128::MAX, ..TargetLabels::empty() };
        let mut one =
            LabelSketch { all: LabelCounts::Targets(vec![huge.clone(), huge]), ..LabelSketch::empty(&numbers) };
        let before = one.clone();
        one.merge(&before).unwrap();
        assert_eq!(one, before);
    }

    #[test]
    fn other_cells_are_refused() {
        let (three, four) = (LabelSketch::empty(&classes(3)), LabelSketch::empty(&classes(4)));
        assert!(three.fits(&classes(3), 0) && !three.fits(&classes(4), 0) && !three.fits(&targets(), 0));
        assert_eq!(three.clone().merge(&four), Err(MergeError));
        assert_eq!(three.clone().merge(&LabelSketch::empty(&targets())), Err(MergeError));
        let mut sliced = three.clone();
        sliced.slices.insert(2, LabelCounts::empty(&classes(3).task));
        assert!(sliced.fits(&classes(3), 3) && !sliced.fits(&classes(3), 2));
        let mut bad = three;
        if let LabelCounts::Classes(counts) = &mut bad.all {
            counts.confused.insert(16, 1);
        }
        assert!(!bad.fits(&classes(3), 0));
    }

    proptest! {
        /// Merging equals counting everything at once, in whatever order and grouping.
        #[test]
        fn merging_is_counting_the_union(
            rows in prop_oneof![
                prop::collection::vec(class_row(), 0..30).prop_map(|rows| (classes(4), rows)),
                prop::collection::vec(number_row(), 0..30).prop_map(|rows| (targets(), rows)),
            ],
            cuts in prop::array::uniform2(any::<prop::sample::Index>()),
        ) {
            let (spec, rows) = rows;
            let mut cuts = cuts.map(|cut| cut.index(rows.len() + 1));
            cuts.sort_unstable();
            let parts = [&rows[..cuts[0]], &rows[cuts[0]..cuts[1]], &rows[cuts[1]..]].map(|rows| sketch(&spec, rows));
            let union = sketch(&spec, &rows);
            let merged = |order: [usize; 3]| {
                let mut sum = LabelSketch::empty(&spec);
                order.iter().for_each(|at| sum.merge(&parts[*at]).unwrap());
                sum
            };
            prop_assert_eq!(&merged([0, 1, 2]), &union);
            prop_assert_eq!(&merged([2, 0, 1]), &union);
            let mut right = parts[1].clone();
            right.merge(&parts[2]).unwrap();
            let mut all = parts[0].clone();
            all.merge(&right).unwrap();
            prop_assert_eq!(&all, &union);
            prop_assert!(union.fits(&spec, 2));
            let bytes = postcard::to_stdvec(&union).unwrap();
            prop_assert_eq!(postcard::from_bytes::<LabelSketch>(&bytes).unwrap(), union);
        }
    }
}
