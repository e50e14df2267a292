//! Labels for inferences that were answered: which inference is meant, and what the label says of the model.
//!
//! Predictions wait in memory, bounded ([`muster_agent_core::feedback::Memory`]), and are gone after a restart: writing each
//! of them down would wear the device's flash out. What is lost so is counted where the agent ends in order, and shows as
//! predictions without labels where it does not. Nothing of a request's inputs is kept. Counts go into the window that is open
//! when the label comes, for the model that made the prediction. Where a second model had a part in the request ([`Second`]), the label
//! says something of both.

mod command;
mod ids;
mod join;
mod second;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_agent_core::feedback::{Bounds, Memory, Place};
use muster_inference::{ColumnExtractor, Images, Tensor};
use muster_shared::feedback::{FeedbackAnswer, FeedbackDelivery, FeedbackItem, FeedbackReceipt};
use muster_shared::ids::{BundleName, Digest};
use muster_shared::labels::{LabelSpec, Prediction};
use muster_shared::profile::{Profile, SliceSet};

pub(crate) use self::command::{FeedbackArgs, run};
pub(crate) use self::ids::InferenceIds;
use self::second::Held;
pub(crate) use self::second::Second;
use crate::config::FeedbackConfig;
use crate::host::ServedModel;
use crate::metrics::Metrics;
use crate::monitor::{ModelWatch, Monitor};
use crate::time::{Steady, wall_ms};

/// Deliveries from the centre whose receipts are kept, should one come again.
const MAX_RECEIPTS: usize = 256;

/// How the labels of one model are read and counted.
pub(crate) struct LabelWatch {
    model: BundleName,
    watch: Arc<ModelWatch>,
    /// What counts it: a model beside the one that answers has windows of its own.
    monitor: Monitor,
    spec: LabelSpec,
    extractor: ColumnExtractor,
    /// How many columns a prediction is made of, at least 1.
    columns: usize,
}

impl LabelWatch {
    /// For `model`, whose requests `monitor` counts with `watch`; none when its bundle declares no labels.
    pub(crate) fn new(model: &ServedModel, watch: &Arc<ModelWatch>, monitor: &Monitor) -> Option<Arc<Self>> {
        let spec = model.profile.labels.clone()?;
        let watched = Profile { columns: spec.columns(), ..Profile::default() };
        let extractor = ColumnExtractor::new(&watched, &model.signature)
            .inspect_err(|error| {
                tracing::warn!(bundle = %model.bundle, %error, "labels cannot be used: what the bundle declares does not fit the model");
            })
            .ok()?;
        let columns = watched.columns.len().max(1);
        let (model, watch, monitor) = (model.bundle.name.clone(), Arc::clone(watch), monitor.clone());
        Some(Arc::new(Self { model, watch, monitor, spec, extractor, columns }))
    }

    /// What the model answered, row by row.
    fn predictions(&self, outputs: &[Tensor]) -> Vec<Prediction> {
        let mut values: Vec<f64> = Vec::new();
        self.extractor.visit(&[], &Images::NONE, outputs, |row, column, value| {
            let end = (row + 1) * self.columns;
            if values.len() < end {
                values.resize(end, f64::NAN);
            }
            values[row * self.columns + column] = value.unwrap_or(f64::NAN);
        });
        values.chunks(self.columns).map(|row| self.spec.prediction(row)).collect()
    }
}

/// What is remembered of one row.
struct Remembered {
    prediction: Prediction,
    slices: SliceSet,
    second: Second,
}

type Predictions = Memory<Remembered, Arc<LabelWatch>, Held>;

/// Joins labels with predictions. Cloning gives another handle to the same memory.
#[derive(Clone)]
pub(crate) struct Feedback {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Steady,
    memory: Mutex<Predictions>,
    receipts: Mutex<VecDeque<FeedbackReceipt>>,
    metrics: Metrics,
}

impl Feedback {
    /// Remembers as much as `config` says, and counts with `metrics` and each model's monitor.
    pub(crate) fn new(config: &FeedbackConfig, metrics: Metrics) -> Self {
        let bounds = Bounds { max_rows: config.max_predictions, horizon_ms: config.horizon_ms };
        Self {
            inner: Arc::new(Inner {
                clock: Steady::start(),
                memory: Mutex::new(Memory::new(bounds)),
                receipts: Mutex::default(),
                metrics,
            }),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Predictions> {
        self.inner.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As much as the defaults say, for tests of what rests on it.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::new(&FeedbackConfig::default(), Metrics::new())
    }

    /// What is counted of labels and predictions besides.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Remembers the `outputs` of the inference `id`. To be called before they are given to the caller, whose label may follow at once.
    /// Gives its place, for what a `second` model says of it later; none where it has too many rows to be remembered.
    pub(crate) fn remember(
        &self,
        labels: &Arc<LabelWatch>,
        id: &str,
        (inputs, outputs): (&[Tensor], &[Tensor]),
        second: &Second,
    ) -> Option<Place> {
        let predictions = labels.predictions(outputs);
        let rows = predictions.len() as u64;
        let with_slices = |(row, prediction)| Remembered {
            prediction,
            slices: labels.watch.slices_of(inputs, row),
            second: second.clone(),
        };
        // Slices are found before the lock, under which others wait.
        let remembered: Vec<Remembered> = predictions.into_iter().enumerate().map(with_slices).collect();
        let mut forgotten: Vec<(Arc<LabelWatch>, u64)> = Vec::new();
        let mut memory = self.memory();
        let place = memory.remember(id, Arc::clone(labels), remembered, self.inner.clock.now_ms(), |about, rows| {
            forgotten.push((Arc::clone(about), rows));
        });
        drop(memory);
        labels.monitor.labelled(&labels.watch, wall_ms(), &labels.spec, |sketch| {
            sketch.predictions = sketch.predictions.saturating_add(rows);
        });
        self.forgotten(&forgotten);
        place
    }

    fn forgotten(&self, forgotten: &[(Arc<LabelWatch>, u64)]) {
        for (about, rows) in forgotten {
            self.inner.metrics.predictions_forgotten(*rows);
            about.monitor.labelled(&about.watch, wall_ms(), &about.spec, |sketch| {
                sketch.forgotten = sketch.forgotten.saturating_add(*rows);
            });
        }
    }

    /// Forgets everything: the agent stops.
    pub(crate) fn forget_all(&self) {
        let mut forgotten: Vec<(Arc<LabelWatch>, u64)> = Vec::new();
        self.memory().clear(self.inner.clock.now_ms(), |about, rows| {
            match forgotten.iter_mut().find(|(known, _)| Arc::ptr_eq(known, about)) {
                Some((_, sum)) => *sum += rows,
                None => forgotten.push((Arc::clone(about), rows)),
            }
        });
        self.forgotten(&forgotten);
    }

    /// Rows that wait for their labels, or have them and wait for another.
    pub(crate) fn remembered(&self) -> usize {
        self.memory().rows()
    }

    /// Whether anything of a model of this name is remembered.
    pub(crate) fn knows(&self, model: &str) -> bool {
        self.memory().holds(|about| about.model.as_str() == model)
    }

    /// Joins labels with what is remembered, of the model `model` only where one is named. `current` is what answers now: what belongs to
    /// nothing is counted there.
    pub(crate) fn join(
        &self,
        items: &[FeedbackItem],
        model: Option<&str>,
        current: Option<&Arc<LabelWatch>>,
    ) -> FeedbackAnswer {
        let mut effects = Vec::new();
        let answer = join::join(&mut self.memory(), items, model, self.inner.clock.now_ms(), &mut effects);
        let now_ms = wall_ms();
        for join::Effect { about, result, rows, joined } in effects {
            self.inner.metrics.labels(result, rows);
            let Some(about) = about.as_ref().or(current) else { continue };
            about.monitor.labelled(&about.watch, now_ms, &about.spec, |sketch| {
                sketch.results.add(result, rows);
                if let Some(join::Joined { row, truth, delay_ms, .. }) = &joined {
                    sketch.join(&about.spec, (&row.prediction, truth), row.slices, *delay_ms);
                }
            });
            if let Some(join::Joined { row, truth, other, delay_ms }) = &joined {
                self.count_second(about, row, truth, other.as_ref(), *delay_ms);
            }
        }
        answer
    }

    /// Joins labels that came from the centre. The same delivery is joined once, however often it comes.
    pub(crate) fn deliver(&self, delivery: &FeedbackDelivery, current: Option<&Arc<LabelWatch>>) -> FeedbackReceipt {
        if let Some(known) = self.receipt(&delivery.batch) {
            return known;
        }
        let counts = self.join(&delivery.items, None, current).counts;
        let receipt = FeedbackReceipt { batch: delivery.batch, counts };
        let mut receipts = self.inner.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        if receipts.len() >= MAX_RECEIPTS {
            receipts.pop_front();
        }
        receipts.push_back(receipt.clone());
        receipt
    }

    fn receipt(&self, batch: &Digest) -> Option<FeedbackReceipt> {
        let receipts = self.inner.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        receipts.iter().find(|receipt| receipt.batch == *batch).cloned()
    }
}

#[cfg(test)]
mod tests;
