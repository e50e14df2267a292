//! What a second model has to do with an answer that waits for its label, and what the label then says of both.
//!
//! A shadow answers later than the incumbent, and a label may come before it: whichever comes second makes the pair. In a split each answer is
//! one model's, and its label counts for that arm.

use std::sync::Arc;

use muster_agent_core::feedback::Place;
use muster_inference::Tensor;
use muster_shared::feedback::FeedbackResult;
use muster_shared::labels::{LabelSpec, Prediction, Truth};
use muster_shared::profile::SliceSet;
use muster_shared::sketch::{Arm, Comparison, LabelOutcomes, Labelled};

use super::{Feedback, LabelWatch, Remembered};
use crate::time::wall_ms;

/// What a second model has to do with an answer.
#[derive(Clone)]
pub(crate) enum Second {
    /// Nothing.
    None,
    /// It runs on the same request, and its answer has not come yet.
    Awaited(Arc<LabelWatch>),
    /// It ran on the same request.
    Answered(Box<SecondAnswer>),
    /// The two share the requests, and this answer is the one's or the other's.
    Shares {
        /// The model in service.
        incumbent: Arc<LabelWatch>,
        /// The one beside it.
        candidate: Arc<LabelWatch>,
        /// Whose answer it is.
        arm: Arm,
    },
}

/// What the second model answered for one row.
#[derive(Clone)]
pub(crate) struct SecondAnswer {
    candidate: Arc<LabelWatch>,
    prediction: Prediction,
    slices: SliceSet,
}

/// A label that came before the second model's answer.
pub(super) struct Held {
    pub(super) row: usize,
    pub(super) incumbent: Arc<LabelWatch>,
    pub(super) prediction: Prediction,
    pub(super) truth: Truth,
    /// As the second model's bundle reads it; none where it is no label there.
    pub(super) other: Option<Truth>,
    pub(super) delay_ms: u64,
}

impl Second {
    /// How the second model's bundle reads labels, where a label says something of its answer to the same row.
    pub(super) fn pairs_with(&self) -> Option<&LabelSpec> {
        match self {
            Self::Awaited(candidate) => Some(&candidate.spec),
            Self::Answered(answer) => Some(&answer.candidate.spec),
            Self::None | Self::Shares { .. } => None,
        }
    }
}

impl Feedback {
    /// Puts what the model of `candidate` answered to the inference at `place` beside what is remembered of it. Without `outputs` it
    /// failed: its answer is none, which no label will call right.
    pub(crate) fn second_answer(
        &self,
        place: Place,
        candidate: &Arc<LabelWatch>,
        inputs: &[Tensor],
        outputs: Option<&[Tensor]>,
    ) {
        let predictions = outputs.map(|outputs| candidate.predictions(outputs)).unwrap_or_default();
        let answer = |row: usize| SecondAnswer {
            candidate: Arc::clone(candidate),
            prediction: predictions.get(row).cloned().unwrap_or_else(|| candidate.spec.prediction(&[])),
            slices: candidate.watch.slices_of(inputs, row),
        };
        let mut memory = self.memory();
        let Some((rows, held)) = memory.meet(place) else { return };
        let count = rows.len() as u64;
        for (at, row) in rows.iter_mut().enumerate() {
            if let Some(Remembered { second: second @ Second::Awaited(_), .. }) = row {
                *second = Second::Answered(Box::new(answer(at)));
            }
        }
        drop(memory);
        candidate.monitor.labelled(&candidate.watch, wall_ms(), &candidate.spec, |sketch| {
            sketch.predictions = sketch.predictions.saturating_add(count);
        });
        for held in held {
            let (prediction, truth) = (&held.prediction, &held.truth);
            self.pair(&held.incumbent, (prediction, truth), &answer(held.row), held.other.as_ref(), held.delay_ms);
        }
    }

    /// The second model will not run on the inference at `place` after all.
    pub(crate) fn no_second_answer(&self, place: Place) {
        if let Some((rows, _)) = self.memory().meet(place) {
            for row in rows.iter_mut().flatten() {
                row.second = Second::None;
            }
        }
    }

    /// Counts what a label says of a second model, if anything yet; `about` is whose answer it labels.
    pub(super) fn count_second(
        &self,
        about: &Arc<LabelWatch>,
        row: &Remembered,
        truth: &Truth,
        other: Option<&Truth>,
        delay_ms: u64,
    ) {
        match &row.second {
            Second::None | Second::Awaited(_) => {}
            Second::Answered(answer) => self.pair(about, (&row.prediction, truth), answer, other, delay_ms),
            Second::Shares { incumbent, candidate, arm } => {
                let labelled = Labelled { spec: &about.spec, answer: &row.prediction, truth };
                candidate.compare(&incumbent.spec, |outcomes| outcomes.add_one(*arm, labelled, &incumbent.spec));
            }
        }
    }

    fn pair(
        &self,
        incumbent: &LabelWatch,
        (prediction, truth): (&Prediction, &Truth),
        answer: &SecondAnswer,
        other: Option<&Truth>,
        delay_ms: u64,
    ) {
        let candidate = &answer.candidate;
        let result = if other.is_some() { FeedbackResult::Joined } else { FeedbackResult::Invalid };
        candidate.monitor.labelled(&candidate.watch, wall_ms(), &candidate.spec, |sketch| {
            sketch.results.add(result, 1);
            if let Some(other) = other {
                sketch.join(&candidate.spec, (&answer.prediction, other), answer.slices, delay_ms);
            }
        });
        let Some(other) = other else { return };
        let old = Labelled { spec: &incumbent.spec, answer: prediction, truth };
        let new = Labelled { spec: &candidate.spec, answer: &answer.prediction, truth: other };
        candidate.compare(&incumbent.spec, |outcomes| outcomes.add_pair(old, new));
    }
}

impl LabelWatch {
    /// Lets `add` count a label of both models in the windows of the second one, which is this.
    fn compare(&self, incumbent: &LabelSpec, add: impl FnOnce(&mut LabelOutcomes)) {
        let Some(against) = self.watch.against() else { return };
        let Some(mut outcomes) = LabelOutcomes::empty(incumbent, &self.spec) else { return };
        add(&mut outcomes);
        let comparison = Comparison { labels: Some(Box::new(outcomes)), ..Comparison::empty(against) };
        self.monitor.compared(&self.watch, wall_ms(), &comparison);
    }
}
