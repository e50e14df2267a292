//! How right two models were by the same labels, as counts.
//!
//! A shadow and its incumbent answer the same rows, so every label says something of the pair; in a split each label is one model's. Like
//! everything in a window these are counts and whole sums, which add up exactly in any order.

use serde::{Deserialize, Serialize};

use super::column::MergeError;
use crate::labels::{LabelSpec, LabelTarget, LabelTask, Prediction, Truth};

/// Sums are kept in millionths of the target's scale (of its square).
const MILLIONTHS: f64 = 1e6;
/// Errors beyond so many scales are summed as that many.
const MOST_SCALES: f64 = 1_000.0;

/// Which of two models a label is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// The one in service.
    Incumbent,
    /// The one beside it.
    Candidate,
}

/// Labels of one model's answers, where they are classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RightCounts {
    /// How many.
    pub labels: u64,
    /// How many of the answers were right.
    pub right: u64,
}

/// Labels of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClassOutcomes {
    /// Rows that both models answered, and both were right.
    pub both_right: u64,
    /// Only the incumbent was right.
    pub incumbent_right: u64,
    /// Only the candidate was right.
    pub candidate_right: u64,
    /// Neither was right.
    pub both_wrong: u64,
    /// Every label of an answer of the incumbent.
    pub incumbent: RightCounts,
    /// Every label of an answer of the candidate.
    pub candidate: RightCounts,
}

/// Labels of one model's answers, where they are numbers: sums in millionths of the target's scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorSums {
    /// Labels of answers that were numbers.
    pub labels: u64,
    /// Labels of answers that were none.
    pub unanswered: u64,
    /// Sum of the errors without their sign.
    pub absolute: u64,
    /// Sum of their squares.
    pub squares: u64,
}

/// Labels of one element of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetOutcomes {
    /// The element, counted from 0.
    pub index: u32,
    /// Rows that both models answered, and the incumbent came closer.
    pub incumbent_closer: u64,
    /// The candidate came closer.
    pub candidate_closer: u64,
    /// Both came as close.
    pub alike: u64,
    /// Of these rows, how much larger the candidate's error was, where it was.
    pub larger: u64,
    /// How much smaller it was, where it was.
    pub smaller: u64,
    /// Sum of the squares of both.
    pub difference_squares: u64,
    /// Every label of an answer of the incumbent.
    pub incumbent: ErrorSums,
    /// Every label of an answer of the candidate.
    pub candidate: ErrorSums,
}

/// Labels of answers to requests that two models shared, or both ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LabelOutcomes {
    /// Of classes.
    Classes(ClassOutcomes),
    /// Of numbers, in scales of the incumbent's targets.
    Numbers {
        /// Each element that both models' bundles declare.
        targets: Vec<TargetOutcomes>,
    },
    /// Something this version has no word for.
    #[serde(other)]
    Other,
}

/// One model's answer to a row, with the label as its bundle reads it.
#[derive(Debug, Clone, Copy)]
pub struct Labelled<'a> {
    /// How labels are read.
    pub spec: &'a LabelSpec,
    /// What the model answered.
    pub answer: &'a Prediction,
    /// What would have been right.
    pub truth: &'a Truth,
}

impl Labelled<'_> {
    fn is_right(&self) -> bool {
        let LabelTask::Classification { classes } = &self.spec.task else { return false };
        match (self.answer, self.truth) {
            (Prediction::Class(Some((class, _))), Truth::Class(truth)) => {
                class == truth && usize::from(*truth) < classes.len()
            }
            (_, _) => false,
        }
    }

    fn targets(&self) -> &[LabelTarget] {
        match &self.spec.task {
            LabelTask::Regression { targets } => targets,
            LabelTask::Classification { .. } => &[],
        }
    }

    /// The error of the target `index`, in `scale`s and without its sign. The outer option: whether there is such a target; the inner one:
    /// whether it was answered.
    fn error(&self, index: u32, scale: f64) -> Option<Option<f64>> {
        let at = self.targets().iter().position(|target| target.index == index)?;
        let (Prediction::Numbers(answers), Truth::Numbers(truths)) = (self.answer, self.truth) else { return None };
        let (answer, truth) = answers.get(at).zip(truths.get(at))?;
        let scales = (answer / scale - truth / scale).abs();
        // Two infinite quotients leave no number; what is that far off is as far off as it gets.
        let scales = if scales.is_nan() { MOST_SCALES } else { scales.min(MOST_SCALES) };
        Some(answer.is_finite().then_some(scales))
    }
}

impl RightCounts {
    fn add(&mut self, is_right: bool) {
        self.labels = self.labels.saturating_add(1);
        self.right = self.right.saturating_add(u64::from(is_right));
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.labels = self.labels.saturating_add(other.labels);
        self.right = self.right.saturating_add(other.right);
    }
}

fn millionths(scales: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 10^12, by the bounds above")]
    let whole = (scales * MILLIONTHS).round() as u64;
    whole
}

impl ErrorSums {
    fn add(&mut self, error: Option<f64>) {
        let Some(error) = error else {
            self.unanswered = self.unanswered.saturating_add(1);
            return;
        };
        self.labels = self.labels.saturating_add(1);
        self.absolute = self.absolute.saturating_add(millionths(error));
        self.squares = self.squares.saturating_add(millionths(error * error));
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.labels, other.labels),
            (&mut self.unanswered, other.unanswered),
            (&mut self.absolute, other.absolute),
            (&mut self.squares, other.squares),
        ] {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// The errors without their sign, added up, in scales.
    #[must_use]
    pub fn absolute_scales(&self) -> f64 {
        self.absolute as f64 / MILLIONTHS
    }

    /// Their squares, added up, in squared scales.
    #[must_use]
    pub fn square_scales(&self) -> f64 {
        self.squares as f64 / MILLIONTHS
    }
}

impl ClassOutcomes {
    /// Rows that both models answered.
    #[must_use]
    pub fn paired(&self) -> u64 {
        [self.both_right, self.incumbent_right, self.candidate_right, self.both_wrong]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.both_right, other.both_right),
            (&mut self.incumbent_right, other.incumbent_right),
            (&mut self.candidate_right, other.candidate_right),
            (&mut self.both_wrong, other.both_wrong),
        ] {
            *mine = mine.saturating_add(theirs);
        }
        self.incumbent.merge(&other.incumbent);
        self.candidate.merge(&other.candidate);
    }
}

impl TargetOutcomes {
    /// Rows for which both models gave a number.
    #[must_use]
    pub fn paired(&self) -> u64 {
        self.incumbent_closer.saturating_add(self.candidate_closer).saturating_add(self.alike)
    }

    /// How much larger the candidate's errors are in sum, in scales; below 0 where they are smaller.
    #[must_use]
    pub fn difference_scales(&self) -> f64 {
        (self.larger as f64 - self.smaller as f64) / MILLIONTHS
    }

    /// The squares of the differences, added up, in squared scales.
    #[must_use]
    pub fn difference_square_scales(&self) -> f64 {
        self.difference_squares as f64 / MILLIONTHS
    }

    fn pair(&mut self, incumbent: f64, candidate: f64) {
        // As they are summed, so that what counts as alike adds nothing.
        let (old, new) = (millionths(incumbent), millionths(candidate));
        let count = match new.cmp(&old) {
            std::cmp::Ordering::Less => &mut self.candidate_closer,
            std::cmp::Ordering::Equal => &mut self.alike,
            std::cmp::Ordering::Greater => &mut self.incumbent_closer,
        };
        *count = count.saturating_add(1);
        self.larger = self.larger.saturating_add(new.saturating_sub(old));
        self.smaller = self.smaller.saturating_add(old.saturating_sub(new));
        let difference = candidate - incumbent;
        self.difference_squares = self.difference_squares.saturating_add(millionths(difference * difference));
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.incumbent_closer, other.incumbent_closer),
            (&mut self.candidate_closer, other.candidate_closer),
            (&mut self.alike, other.alike),
            (&mut self.larger, other.larger),
            (&mut self.smaller, other.smaller),
            (&mut self.difference_squares, other.difference_squares),
        ] {
            *mine = mine.saturating_add(theirs);
        }
        self.incumbent.merge(&other.incumbent);
        self.candidate.merge(&other.candidate);
    }
}

impl LabelOutcomes {
    /// Nothing counted yet; none where the two are not about labels of the same kind. Numbers are counted for the elements that both declare.
    #[must_use]
    pub fn empty(incumbent: &LabelSpec, candidate: &LabelSpec) -> Option<Self> {
        match (&incumbent.task, &candidate.task) {
            (LabelTask::Classification { .. }, LabelTask::Classification { .. }) => {
                Some(Self::Classes(ClassOutcomes::default()))
            }
            (LabelTask::Regression { targets: old }, LabelTask::Regression { targets: new }) => {
                let both = old.iter().filter(|target| new.iter().any(|other| other.index == target.index));
                let targets: Vec<TargetOutcomes> =
                    both.map(|target| TargetOutcomes { index: target.index, ..TargetOutcomes::default() }).collect();
                (!targets.is_empty()).then_some(Self::Numbers { targets })
            }
            (LabelTask::Classification { .. }, LabelTask::Regression { .. })
            | (LabelTask::Regression { .. }, LabelTask::Classification { .. }) => None,
        }
    }

    /// Counts the label of a row that both models answered.
    pub fn add_pair(&mut self, incumbent: Labelled<'_>, candidate: Labelled<'_>) {
        match self {
            Self::Classes(counts) => {
                let (old, new) = (incumbent.is_right(), candidate.is_right());
                let cell = match (old, new) {
                    (true, true) => &mut counts.both_right,
                    (true, false) => &mut counts.incumbent_right,
                    (false, true) => &mut counts.candidate_right,
                    (false, false) => &mut counts.both_wrong,
                };
                *cell = cell.saturating_add(1);
                counts.incumbent.add(old);
                counts.candidate.add(new);
            }
            Self::Numbers { targets } => {
                for target in targets {
                    let Some(scale) = scale_of(incumbent.spec, target.index) else { continue };
                    let errors = incumbent.error(target.index, scale).zip(candidate.error(target.index, scale));
                    let Some((old, new)) = errors else { continue };
                    target.incumbent.add(old);
                    target.candidate.add(new);
                    if let Some((old, new)) = old.zip(new) {
                        target.pair(old, new);
                    }
                }
            }
            Self::Other => {}
        }
    }

    /// Counts the label of an answer of one of the two; `incumbent` says how its labels are read, whose scales are those of both.
    pub fn add_one(&mut self, arm: Arm, labelled: Labelled<'_>, incumbent: &LabelSpec) {
        match self {
            Self::Classes(counts) => match arm {
                Arm::Incumbent => counts.incumbent.add(labelled.is_right()),
                Arm::Candidate => counts.candidate.add(labelled.is_right()),
            },
            Self::Numbers { targets } => {
                for target in targets {
                    let Some(scale) = scale_of(incumbent, target.index) else { continue };
                    let Some(error) = labelled.error(target.index, scale) else { continue };
                    match arm {
                        Arm::Incumbent => target.incumbent.add(error),
                        Arm::Candidate => target.candidate.add(error),
                    }
                }
            }
            Self::Other => {}
        }
    }

    /// Whether it is about the same targets as `other`, so that the two add up.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Classes(_), Self::Classes(_)) | (Self::Other, Self::Other) => true,
            (Self::Numbers { targets: mine }, Self::Numbers { targets: theirs }) => {
                mine.iter().map(|target| target.index).eq(theirs.iter().map(|target| target.index))
            }
            (Self::Classes(_) | Self::Numbers { .. } | Self::Other, _) => false,
        }
    }

    /// Adds what another window counted of the same two models.
    ///
    /// # Errors
    /// [`MergeError`] when it is of another kind or of other targets; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if !self.is_like(other) {
            return Err(MergeError);
        }
        match (self, other) {
            (Self::Classes(mine), Self::Classes(theirs)) => mine.merge(theirs),
            (Self::Numbers { targets: mine }, Self::Numbers { targets: theirs }) => {
                mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| mine.merge(theirs));
            }
            (Self::Classes(_) | Self::Numbers { .. } | Self::Other, _) => {}
        }
        Ok(())
    }
}

fn scale_of(spec: &LabelSpec, index: u32) -> Option<f64> {
    match &spec.task {
        LabelTask::Regression { targets } => {
            targets.iter().find(|target| target.index == index).map(|target| target.scale)
        }
        LabelTask::Classification { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classes(names: &[&str]) -> LabelSpec {
        let classes = names.iter().map(|name| (*name).to_owned()).collect();
        LabelSpec::new("p", LabelTask::Classification { classes })
    }

    fn numbers(scale: f64) -> LabelSpec {
        let targets = vec![LabelTarget { index: 0, scale }, LabelTarget { index: 3, scale: 1.0 }];
        LabelSpec::new("y", LabelTask::Regression { targets })
    }

    fn class(at: Option<u16>) -> Prediction {
        Prediction::Class(at.map(|at| (at, 0.9)))
    }

    #[test]
    fn classes_are_right_by_each_models_own_names() {
        // The candidate knows one class more, and has them in another order.
        let (old, new) = (classes(&["cat", "dog"]), classes(&["dog", "cat", "fox"]));
        let mut outcomes = LabelOutcomes::empty(&old, &new).unwrap();
        for (label, a, b) in [
            ("cat", Some(0), Some(1)),
            ("dog", Some(1), Some(1)),
            ("fox", Some(0), Some(2)),
            ("fox", None, None),
            ("eel", Some(1), Some(0)),
        ] {
            let label = serde_json::Value::from(label);
            let (truth_a, truth_b) = (old.read(&label).unwrap(), new.read(&label).unwrap());
            outcomes.add_pair(
                Labelled { spec: &old, answer: &class(a), truth: &truth_a },
                Labelled { spec: &new, answer: &class(b), truth: &truth_b },
            );
        }
        let LabelOutcomes::Classes(counts) = outcomes else { panic!("{outcomes:?}") };
        assert_eq!(
            (counts.both_right, counts.incumbent_right, counts.candidate_right, counts.both_wrong),
            (1, 1, 1, 2)
        );
        assert_eq!(counts.incumbent, RightCounts { labels: 5, right: 2 });
        assert_eq!(counts.candidate, RightCounts { labels: 5, right: 2 });
        assert_eq!(counts.paired(), 5);
    }

    #[test]
    fn numbers_are_told_by_who_came_closer() {
        let (old, new) = (numbers(4.0), numbers(1.0));
        let mut outcomes = LabelOutcomes::empty(&old, &new).unwrap();
        let truth = Truth::Numbers(vec![10.0, 0.0].into());
        for (a, b) in [([12.0, 0.0], [11.0, 0.0]), ([10.0, 1.0], [18.0, f64::NAN]), ([f64::NAN, 0.0], [10.0, 0.0])] {
            let (a, b) = (Prediction::Numbers(a.into()), Prediction::Numbers(b.into()));
            let (a, b) = (
                Labelled { spec: &old, answer: &a, truth: &truth },
                Labelled { spec: &new, answer: &b, truth: &truth },
            );
            outcomes.add_pair(a, b);
        }
        let LabelOutcomes::Numbers { targets } = &outcomes else { panic!("{outcomes:?}") };
        let first = targets[0];
        // In scales of 4: 0.5 beside 0.25, and 0 beside 2.
        assert_eq!((first.index, first.candidate_closer, first.incumbent_closer, first.alike), (0, 1, 1, 0));
        assert_eq!((first.larger, first.smaller, first.difference_squares), (2_000_000, 250_000, 4_062_500));
        assert_eq!(first.incumbent, ErrorSums { labels: 2, unanswered: 1, absolute: 500_000, squares: 250_000 });
        assert_eq!(first.candidate, ErrorSums { labels: 3, unanswered: 0, absolute: 2_250_000, squares: 4_062_500 });
        assert_eq!((targets[1].alike, targets[1].candidate.unanswered, targets[1].paired()), (2, 1, 2));
    }

    #[test]
    fn each_arm_of_a_split_counts_for_itself() {
        let spec = classes(&["a", "b"]);
        let mut outcomes = LabelOutcomes::empty(&spec, &spec).unwrap();
        let truth = Truth::Class(1);
        for (arm, at) in [(Arm::Incumbent, 1), (Arm::Candidate, 0), (Arm::Candidate, 1)] {
            outcomes.add_one(arm, Labelled { spec: &spec, answer: &class(Some(at)), truth: &truth }, &spec);
        }
        let LabelOutcomes::Classes(counts) = outcomes else { panic!("{outcomes:?}") };
        assert_eq!((counts.paired(), counts.incumbent.right, counts.incumbent.labels), (0, 1, 1));
        assert_eq!((counts.candidate.right, counts.candidate.labels), (1, 2));
    }

    #[test]
    fn what_is_of_another_kind_is_not_compared_or_merged() {
        assert_eq!(LabelOutcomes::empty(&classes(&["a"]), &numbers(1.0)), None);
        let mut one = LabelOutcomes::empty(&numbers(1.0), &numbers(1.0)).unwrap();
        let before = one.clone();
        assert_eq!(one.merge(&LabelOutcomes::Classes(ClassOutcomes::default())), Err(MergeError));
        assert_eq!(one.merge(&LabelOutcomes::Numbers { targets: Vec::new() }), Err(MergeError));
        assert_eq!(one, before);
        let later: LabelOutcomes = serde_json::from_str(r#"{"kind": "rankings", "ndcg": [1, 2]}"#).unwrap();
        assert_eq!(later, LabelOutcomes::Other);
    }

    proptest! {
        #[test]
        fn merging_is_counting_both(
            rows in prop::collection::vec((0u16..4, prop::option::of(0u16..3), prop::option::of(0u16..3)), 0..40),
            at in 0usize..40,
        ) {
            let spec = classes(&["a", "b", "c"]);
            let counted = |rows: &[(u16, Option<u16>, Option<u16>)]| {
                let mut outcomes = LabelOutcomes::empty(&spec, &spec).unwrap();
                for (truth, a, b) in rows {
                    let truth = Truth::Class(*truth);
                    let (a, b) = (class(*a), class(*b));
                    outcomes.add_pair(
                        Labelled { spec: &spec, answer: &a, truth: &truth },
                        Labelled { spec: &spec, answer: &b, truth: &truth },
                    );
                }
                outcomes
            };
            let (one, other) = rows.split_at(at.min(rows.len()));
            let mut sum = counted(other);
            sum.merge(&counted(one)).unwrap();
            prop_assert_eq!(&sum, &counted(&rows));
            let LabelOutcomes::Classes(counts) = &sum else { panic!() };
            prop_assert_eq!(counts.paired(), rows.len() as u64);
            prop_assert_eq!(counts.both_right + counts.incumbent_right, counts.incumbent.right);
            prop_assert_eq!(counts.both_right + counts.candidate_right, counts.candidate.right);
            let text = serde_json::to_string(&sum).unwrap();
            prop_assert_eq!(serde_json::from_str::<LabelOutcomes>(&text).unwrap(), sum);
        }
    }
}
