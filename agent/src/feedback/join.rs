//! What comes of each label: pure but for the memory it is given.

use std::sync::Arc;

use muster_agent_core::feedback::Taken;
use muster_shared::feedback::{FeedbackAnswer, FeedbackItem, FeedbackItemResult, FeedbackResult};
use muster_shared::labels::Truth;
use serde_json::Value;

use super::second::{Held, Second};
use super::{LabelWatch, Predictions, Remembered};

/// What is to be counted.
pub(super) struct Effect {
    /// For which model; none where the label belongs to nothing that is remembered.
    pub(super) about: Option<Arc<LabelWatch>>,
    pub(super) result: FeedbackResult,
    /// How many labels.
    pub(super) rows: u64,
    /// The prediction with its label, where they were joined.
    pub(super) joined: Option<Joined>,
}

/// A prediction and its label.
pub(super) struct Joined {
    pub(super) row: Remembered,
    pub(super) truth: Truth,
    /// The label as the bundle of a second model reads it, where that one ran on the same request and it is a label there.
    pub(super) other: Option<Truth>,
    /// Time between prediction and label, in milliseconds.
    pub(super) delay_ms: u64,
}

/// Joins every item, in their order.
pub(super) fn join(
    memory: &mut Predictions,
    items: &[FeedbackItem],
    model: Option<&str>,
    now_ms: u64,
    effects: &mut Vec<Effect>,
) -> FeedbackAnswer {
    let mut answer = FeedbackAnswer::default();
    for item in items {
        let before = effects.len();
        join_one(memory, item, model, now_ms, effects);
        let of_item = &effects[before..];
        let is_joined = of_item.iter().any(|effect| effect.result == FeedbackResult::Joined);
        let result = match of_item.first() {
            _ if is_joined => FeedbackResult::Joined,
            Some(effect) => effect.result,
            None => FeedbackResult::Invalid,
        };
        for effect in of_item {
            answer.counts.add(effect.result, effect.rows);
        }
        answer.results.push(FeedbackItemResult { id: item.id.clone(), result });
    }
    answer
}

/// How many labels an item holds, at least 1.
fn labels_in(item: &FeedbackItem) -> u64 {
    let known = item.labels.as_ref().map(|labels| labels.iter().filter(|label| !label.is_null()).count());
    known.map_or(1, |known| known.max(1) as u64)
}

fn join_one(
    memory: &mut Predictions,
    item: &FeedbackItem,
    model: Option<&str>,
    now_ms: u64,
    effects: &mut Vec<Effect>,
) {
    let known = memory.find(&item.id, now_ms);
    let known = known.filter(|known| model.is_none_or(|model| known.about.model.as_str() == model));
    let Some(known) = known else {
        let rows = labels_in(item);
        return effects.push(Effect { about: None, result: FeedbackResult::Unknown, rows, joined: None });
    };
    let (about, rows, is_late) = (Arc::clone(known.about), known.rows, known.is_late);
    let whole = |result| Effect { about: Some(Arc::clone(&about)), result, rows: labels_in(item), joined: None };
    if is_late {
        return effects.push(whole(FeedbackResult::Late));
    }
    let labels: Vec<(usize, &Value)> = match (&item.labels, item.row) {
        (Some(labels), None) if item.label.is_null() && labels.len() == rows => {
            labels.iter().enumerate().filter(|(_, label)| !label.is_null()).collect()
        }
        (None, Some(row)) if (row as usize) < rows => vec![(row as usize, &item.label)],
        // Which row of several is meant must be said.
        (None, None) if rows == 1 => vec![(0, &item.label)],
        (Some(_) | None, _) => Vec::new(),
    };
    if labels.is_empty() {
        return effects.push(whole(FeedbackResult::Invalid));
    }
    for (row, label) in labels {
        let one = |result, joined| Effect { about: Some(Arc::clone(&about)), result, rows: 1, joined };
        let Some(truth) = about.spec.read(label) else {
            effects.push(one(FeedbackResult::Invalid, None));
            continue;
        };
        effects.push(match memory.take(&item.id, row, now_ms) {
            Taken::Prediction { row: remembered, delay_ms } => {
                let other = remembered.second.pairs_with().and_then(|spec| spec.read(label));
                if matches!(remembered.second, Second::Awaited(_)) {
                    let (prediction, truth) = (remembered.prediction.clone(), truth.clone());
                    let incumbent = Arc::clone(&about);
                    let other = other.clone();
                    memory.hold(&item.id, Held { row, incumbent, prediction, truth, other, delay_ms });
                }
                one(FeedbackResult::Joined, Some(Joined { row: remembered, truth, other, delay_ms }))
            }
            Taken::Labelled => one(FeedbackResult::Duplicate, None),
            Taken::Nothing => one(FeedbackResult::Late, None),
        });
    }
}
