//! Loading a slot's model and proving that it answers as it should, here, on this device.

use std::sync::Arc;

use muster_agent_core::slots::Slot;
use muster_agent_core::update::FileDamage;
use muster_inference::golden::{self, GoldenReport};
use muster_inference::quality::QualityGate;
use muster_inference::{GoldenSet, Model, TractRuntime, pipeline};
use muster_shared::bundle::{Budgets, GOLDEN_PATH, MODEL_PATH, Manifest, ModelSignature, TensorSpec};
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::profile::Profile;

use super::slot_files::SlotFiles;
use crate::causes::with_source;
use crate::host::ServedModel;

/// A model that has been loaded and has passed its golden examples.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(super) manifest: Digest,
    bundle: BundleRef,
    signature: ModelSignature,
    profile: Arc<Profile>,
    quality: Option<Arc<QualityGate>>,
    model: Arc<dyn Model>,
}

impl Loaded {
    /// The model as the host takes it.
    pub(super) fn served(&self, generation: u64) -> ServedModel {
        ServedModel {
            bundle: self.bundle.clone(),
            manifest: self.manifest,
            generation,
            signature: self.signature.clone(),
            profile: Arc::clone(&self.profile),
            quality: self.quality.clone(),
            model: Arc::clone(&self.model),
        }
    }

    /// Runs the golden examples once more.
    pub(super) fn check_again(
        &self,
        slots: &SlotFiles,
        slot: Slot,
        manifest: &Manifest,
    ) -> Result<GoldenReport, String> {
        let golden = slots.read(slot, manifest, GOLDEN_PATH).map_err(|damage| damage.reason)?;
        let golden = GoldenSet::parse(&golden).map_err(|error| with_source(&error))?;
        golden::check(self.model.as_ref(), &golden).map_err(|error| with_source(&error))
    }
}

/// Loads the model in `slot` and runs its golden examples. Budgets are checked where they are given.
///
/// # Errors
/// What is wrong, with the chunks that are damaged where files are to blame.
pub(super) fn load(
    slots: &SlotFiles,
    slot: Slot,
    digest: Digest,
    manifest: &Manifest,
    budgets: Option<Budgets>,
) -> Result<(Loaded, GoldenReport), FileDamage> {
    let fault = |reason: String| FileDamage { chunks: Vec::new(), reason };
    let golden = slots.read(slot, manifest, GOLDEN_PATH)?;
    let golden = GoldenSet::parse(&golden).map_err(|error| fault(with_source(&error)))?;
    let onnx = slots.read(slot, manifest, MODEL_PATH)?;
    let model: Arc<dyn Model> =
        pipeline::load(&TractRuntime, &onnx, &manifest.signature, manifest.pipeline.as_ref(), &golden)
            .map_err(|error| fault(format!("the model cannot be loaded: {error}")))?
            .model
            .into();
    drop(onnx);
    check_signature(&manifest.signature, model.signature()).map_err(fault)?;
    let report = golden::check(model.as_ref(), &golden).map_err(|error| fault(with_source(&error)))?;
    let needs = model.memory_bytes();
    if let Some(limit) = budgets.and_then(|b| b.max_memory_bytes).filter(|limit| needs > *limit) {
        return Err(fault(format!("the model needs {needs} bytes of memory, its budget is {limit}")));
    }
    if let Some(limit) = budgets.and_then(|b| b.max_latency_ms).filter(|ms| report.median_us > ms.saturating_mul(1_000))
    {
        return Err(fault(format!(
            "a golden example took {} us at the median, the budget is {limit} ms",
            report.median_us
        )));
    }
    let loaded = Loaded {
        manifest: digest,
        bundle: manifest.bundle(),
        signature: manifest.signature.clone(),
        profile: Arc::new(manifest.profile.clone()),
        quality: manifest.schema.as_ref().map(|schema| Arc::new(QualityGate::new(schema, &manifest.signature))),
        model,
    };
    Ok((loaded, report))
}

/// Whether the model takes and gives what the manifest promises to callers.
fn check_signature(promised: &ModelSignature, found: &ModelSignature) -> Result<(), String> {
    for (what, promised, found) in
        [("input", &promised.inputs, &found.inputs), ("output", &promised.outputs, &found.outputs)]
    {
        for tensor in promised {
            let alike = |other: &&TensorSpec| {
                other.name == tensor.name
                    && other.datatype == tensor.datatype
                    && other.shape.len() == tensor.shape.len()
            };
            if !found.iter().any(|other| alike(&other)) {
                return Err(format!(
                    "the manifest promises the {what} {:?} of type {} and rank {}, which the model does not have",
                    tensor.name,
                    tensor.datatype,
                    tensor.shape.len()
                ));
            }
        }
    }
    Ok(())
}
