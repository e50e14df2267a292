//! How one model is watched: its columns, where their values come from, and what a window about it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_inference::quality::QualityGate;
use muster_inference::{ColumnExtractor, SliceFinder, Tensor};
use muster_shared::ids::Digest;
use muster_shared::profile::{Profile, SliceSet};
use muster_shared::sketch::{ColumnSketch, Comparison, QualitySketch, SliceSketch};

use crate::host::ServedModel;

/// Larger numbers are counted as this one: beyond every bin, whose edges are FP32, and yet small enough that the moments
/// of a window stay finite. One absurd FP64 value would otherwise make the whole window unreadable.
const MAX_MAGNITUDE: f64 = 1e100;

/// What the requests of one model are counted against.
pub(crate) struct ModelWatch {
    /// Digest of the model's manifest.
    pub(super) manifest: Digest,
    /// The generation under which it serves.
    pub(super) generation: u64,
    /// Digest of its profile, which is costly to compute.
    pub(super) profile_digest: Digest,
    profile: Arc<Profile>,
    quality: Option<Arc<QualityGate>>,
    /// None when the profile names what the model does not have; then only requests are counted.
    finders: Option<Finders>,
    /// Digest of the manifest of the model it runs beside, if it does.
    against: Option<Digest>,
    /// Requests that fell to it and were not run on it, and are in no window yet. Counted here without a lock: whoever answers requests
    /// must not wait for whoever counts them.
    skipped: AtomicU64,
}

struct Finders {
    columns: ColumnExtractor,
    slices: SliceFinder,
}

/// What was counted of columns, of all rows and of each slice's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Counted {
    /// One sketch a column, in the profile's order.
    pub(super) columns: Vec<ColumnSketch>,
    /// The same for each slice, at the position that is its number.
    pub(super) slices: Vec<SliceSketch>,
}

impl Counted {
    /// Adds what was counted by the same watch.
    pub(super) fn merge(&mut self, other: &Self) {
        let columns = self.columns.iter_mut().zip(&other.columns).map(|(mine, theirs)| mine.merge(theirs));
        let slices = self.slices.iter_mut().zip(&other.slices).map(|(mine, theirs)| mine.merge(theirs));
        if columns.chain(slices).any(|merged| merged.is_err()) {
            tracing::error!("sketches of one watch must have the same cells");
        }
    }
}

impl ModelWatch {
    /// Prepares to watch `model`.
    pub(super) fn new(model: &ServedModel) -> Self {
        let columns = ColumnExtractor::new(&model.profile, &model.signature);
        let finders = columns.and_then(|columns| {
            let slices = SliceFinder::new(&model.profile, &model.signature)?;
            Ok(Finders { columns, slices })
        });
        Self {
            manifest: model.manifest,
            generation: model.generation,
            profile_digest: model.profile.digest(),
            profile: Arc::clone(&model.profile),
            quality: model.quality.clone(),
            finders: finders
                .inspect_err(|error| {
                    tracing::warn!(bundle = %model.bundle, %error, "inputs and outputs are not watched: the profile does not fit the model");
                })
                .ok(),
            against: None,
            skipped: AtomicU64::new(0),
        }
    }

    /// Prepares to watch `model`, which runs beside the one with the manifest `against`.
    pub(super) fn beside(model: &ServedModel, against: Digest) -> Self {
        Self { against: Some(against), ..Self::new(model) }
    }

    /// Counts a request that fell to the model and is not run on it.
    pub(crate) fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that were skipped and are in no window yet.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// What a window that is closed now has to say about how the model ran beside another, before anything was compared.
    pub(super) fn comparison(&self) -> Option<Comparison> {
        let skipped = self.skipped.swap(0, Ordering::Relaxed);
        self.against.map(|against| Comparison { skipped, ..Comparison::empty(against) })
    }

    /// Empty sketches of every column and slice.
    pub(super) fn nothing_counted(&self) -> Counted {
        Counted {
            columns: self.profile.columns.iter().map(ColumnSketch::empty).collect(),
            slices: vec![SliceSketch::empty(&self.profile); self.profile.slice_count()],
        }
    }

    /// Nothing counted yet of what is wrong with inputs.
    pub(super) fn no_faults(&self) -> QualitySketch {
        self.quality.as_ref().map_or_else(QualitySketch::default, |gate| gate.sketch())
    }

    /// The slices that row `row` of a request is in.
    pub(crate) fn slices_of(&self, inputs: &[Tensor], row: usize) -> SliceSet {
        self.finders.as_ref().map_or_else(SliceSet::default, |finders| finders.slices.slices_of(inputs, row))
    }

    /// Counts every row of a request into `counted`, which is this watch's own. Without `outputs` the model gave none,
    /// and what comes from them is missing.
    pub(super) fn count(&self, counted: &mut Counted, inputs: &[Tensor], outputs: &[Tensor]) {
        let Some(Finders { columns, slices }) = &self.finders else { return };
        let mut current = (0, self.slices_of(inputs, 0));
        columns.visit(inputs, outputs, |row, at, value| {
            let Some(column) = self.profile.columns.get(at) else { return };
            let count = |sketch: &mut ColumnSketch| match value {
                Some(value) if value.is_finite() => sketch.add(column, value.clamp(-MAX_MAGNITUDE, MAX_MAGNITUDE)),
                Some(value) => sketch.add(column, value),
                None => sketch.add_missing(),
            };
            counted.columns.get_mut(at).map(count);
            if slices.is_empty() {
                return;
            }
            if current.0 != row {
                current = (row, self.slices_of(inputs, row));
            }
            for slice in current.1.iter() {
                counted.slices.get_mut(usize::from(slice)).and_then(|slice| slice.columns.get_mut(at)).map(count);
            }
        });
        if slices.is_empty() {
            return;
        }
        for row in 0..columns.rows(inputs, outputs) {
            for slice in self.slices_of(inputs, row).iter() {
                if let Some(slice) = counted.slices.get_mut(usize::from(slice)) {
                    slice.rows = slice.rows.saturating_add(1);
                }
            }
        }
    }
}
