//! How one model is watched: its columns, where their values come from, and what a window about it holds.

use std::sync::Arc;

use muster_inference::{ColumnExtractor, Tensor};
use muster_shared::ids::Digest;
use muster_shared::profile::Profile;
use muster_shared::sketch::ColumnSketch;

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
    /// None when the profile names what the model does not have; then only requests are counted.
    extractor: Option<ColumnExtractor>,
}

impl ModelWatch {
    /// Prepares to watch `model`.
    pub(super) fn new(model: &ServedModel) -> Self {
        let extractor = ColumnExtractor::new(&model.profile, &model.signature)
            .inspect_err(|error| {
                tracing::warn!(bundle = %model.bundle, %error, "inputs and outputs are not watched: the profile does not fit the model");
            })
            .ok();
        Self {
            manifest: model.manifest,
            generation: model.generation,
            profile_digest: model.profile.digest(),
            profile: Arc::clone(&model.profile),
            extractor,
        }
    }

    /// Empty sketches of every column, in the profile's order.
    pub(super) fn empty_columns(&self) -> Vec<ColumnSketch> {
        self.profile.columns.iter().map(ColumnSketch::empty).collect()
    }

    /// Counts every row of a request into `columns`, which are this watch's own. Without `outputs` the model gave none,
    /// and what comes from them is missing.
    pub(super) fn count(&self, columns: &mut [ColumnSketch], inputs: &[Tensor], outputs: &[Tensor]) {
        let Some(extractor) = &self.extractor else { return };
        extractor.visit(inputs, outputs, |at, value| {
            let (Some(sketch), Some(column)) = (columns.get_mut(at), self.profile.columns.get(at)) else { return };
            match value {
                Some(value) if value.is_finite() => sketch.add(column, value.clamp(-MAX_MAGNITUDE, MAX_MAGNITUDE)),
                Some(value) => sketch.add(column, value),
                None => sketch.add_missing(),
            }
        });
    }
}
