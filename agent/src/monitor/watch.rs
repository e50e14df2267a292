//! How one model is watched: its columns, where their values come from, and what a window about it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_inference::quality::QualityGate;
use muster_inference::{Counted, Images, Model, OutlierFinder, OutliersFound, RunError, Tally, Tensor};
use muster_shared::ids::Digest;
use muster_shared::profile::{Profile, SliceSet};
use muster_shared::sketch::{Comparison, ObjectiveCounts, QualitySketch};

use super::Served;
use crate::host::ServedModel;

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
    tally: Option<Tally>,
    /// Digest of the manifest of the model it runs beside, if it does.
    against: Option<Digest>,
    /// Requests that fell to it and were not run on it, and are in no window yet. Counted here without a lock: whoever answers requests
    /// must not wait for whoever counts them.
    skipped: AtomicU64,
    /// Of those skipped, the ones that came while the device was pressed.
    paused: AtomicU64,
    outliers: Option<OutlierFinder>,
}

impl ModelWatch {
    /// Prepares to watch `model`.
    pub(crate) fn new(model: &ServedModel) -> Self {
        let tally = Tally::new(Arc::clone(&model.profile), &model.signature).inspect_err(|error| {
            tracing::warn!(bundle = %model.bundle, %error, "inputs and outputs are not watched: the profile does not fit the model");
        });
        // The same profile and model: what is wrong with them has been told.
        let outliers = OutlierFinder::new(&model.profile, &model.signature).ok().flatten();
        Self {
            manifest: model.manifest,
            generation: model.generation,
            profile_digest: model.profile.digest(),
            profile: Arc::clone(&model.profile),
            quality: model.quality.clone(),
            tally: tally.ok(),
            against: None,
            skipped: AtomicU64::new(0),
            paused: AtomicU64::new(0),
            outliers,
        }
    }

    /// Prepares to watch `model`, which runs beside the one with the manifest `against`.
    pub(crate) fn beside(model: &ServedModel, against: Digest) -> Self {
        Self { against: Some(against), ..Self::new(model) }
    }

    /// Digest of the manifest of the model it runs beside, if it does.
    pub(crate) fn against(&self) -> Option<Digest> {
        self.against
    }

    /// Counts a request that fell to the model and is not run on it; `is_paused` because the device is pressed.
    pub(crate) fn skip(&self, is_paused: bool) {
        self.paused.fetch_add(u64::from(is_paused), Ordering::Relaxed);
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that were skipped and are in no window yet.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// What a window that is closed now has to say about how the model ran beside another, before anything was compared.
    pub(super) fn comparison(&self) -> Option<Comparison> {
        let skipped = self.skipped.swap(0, Ordering::Relaxed);
        // One that is being counted at this moment may show in one of the two only.
        let paused = self.paused.swap(0, Ordering::Relaxed).min(skipped);
        self.against.map(|against| Comparison { skipped, paused, ..Comparison::empty(against) })
    }

    /// Empty sketches of every column and slice.
    pub(super) fn nothing_counted(&self) -> Counted {
        Counted::nothing(&self.profile)
    }

    /// No request held against the bundle's latency objectives yet.
    pub(super) fn no_latency_counted(&self) -> ObjectiveCounts {
        ObjectiveCounts::empty(&self.profile.objectives)
    }

    /// Nothing counted yet of what is wrong with inputs.
    pub(super) fn no_faults(&self) -> QualitySketch {
        self.quality.as_ref().map_or_else(QualitySketch::default, |gate| gate.sketch())
    }

    /// The slices that row `row` of a request is in.
    pub(crate) fn slices_of(&self, inputs: &[Tensor], row: usize) -> SliceSet {
        self.tally.as_ref().map_or_else(SliceSet::default, |tally| tally.slices_of(inputs, row))
    }

    /// Runs `model`, which is the one that is watched, and puts into `images` what is to be counted of the images that its pipeline decodes.
    pub(crate) fn run(
        &self,
        model: &dyn Model,
        inputs: &[Tensor],
        images: &mut Images,
    ) -> Result<Vec<Tensor>, RunError> {
        match &self.tally {
            Some(tally) => model.run_seen(inputs, &mut |decoded| tally.measure(decoded, images)),
            None => model.run(inputs),
        }
    }

    /// Looks for outliers among a request's rows; `None` where none are flagged.
    pub(crate) fn outliers(&self, inputs: &[Tensor], images: &Images) -> Option<OutliersFound> {
        self.outliers.as_ref().map(|finder| finder.find(inputs, images))
    }

    /// Counts every row of a request into `counted`, which is this watch's own. Where the model gave no outputs, what comes from them is
    /// missing.
    pub(super) fn count(&self, counted: &mut Counted, served: &Served<'_>) {
        if let Some(tally) = &self.tally {
            tally.count(counted, served.inputs, served.images, served.outputs);
        }
    }
}
