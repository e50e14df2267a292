//! What a device must know of the wire contract to read what a rollout sends it ([`muster_shared::protocol`]).
//!
//! Signed documents refuse fields that their reader does not know, so a device that does not know all that a rollout writes takes no part:
//! it would pass over what it is told, in silence. One that is in and says later that it knows less, as after an earlier program has taken
//! over, stays in; what it cannot read is not sent to it, and its deadline and that of its wave run on.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::protocol::{Feature, number_of, words};

use crate::cohort::misfits;
use crate::fleet::{DeviceFacts, KnownFacts};
use crate::rollout::{BundleFacts, Errand, Rollout, Target};

impl KnownFacts {
    /// What the device understands of the wire contract, as it said last; 0 where it has said nothing.
    #[must_use]
    pub fn protocol(&self) -> u32 {
        self.reported.as_ref().map_or(0, number_of)
    }
}

/// What whoever is sent the bundle must know. Rollouts that were stored before bundles named their features go by the rest.
fn of_bundle(bundle: &BundleFacts) -> impl Iterator<Item = Feature> {
    let cpu_features = (!bundle.requirements.cpu_features.is_empty()).then_some(Feature::CpuFeatures);
    let program = (!bundle.track.is_model()).then_some(Feature::ProgramTrack);
    bundle.features.iter().copied().chain(cpu_features).chain(program)
}

/// What whoever is sent the bundle must know when some run it beside another, or wait with the switch.
fn of(rollout: &Rollout, is_beside: bool, waits: bool) -> impl Iterator<Item = Feature> {
    let stage = is_beside.then_some(Feature::Stage);
    let activation = waits.then_some(Feature::Activation);
    of_bundle(&rollout.bundle).chain(stage).chain(activation)
}

/// What whoever takes part in the rollout must know.
pub(crate) fn of_rollout(rollout: &Rollout) -> impl Iterator<Item = Feature> {
    let spec = &rollout.spec;
    of(rollout, spec.stages().iter().any(|stage| !stage.is_serve()), spec.blue_green.is_some())
}

/// What the device must know to read what `target` says, where that is to run the rollout's bundle.
fn of_target(rollout: &Rollout, target: &Target) -> impl Iterator<Item = Feature> {
    of(rollout, target.beside, !target.activation.is_at_once())
}

/// Why a device with these `attributes`, of number `protocol`, cannot read what holds `features`; none where it can.
pub(crate) fn misfit(
    features: impl Iterator<Item = Feature>,
    attributes: &BTreeMap<String, String>,
    protocol: u32,
) -> Option<String> {
    let unknown: BTreeSet<Feature> = features.filter(|feature| !feature.is_known_to(protocol)).collect();
    if unknown.is_empty() {
        return None;
    }
    let version = attributes.get("agent-version").map_or_else(String::new, |version| format!(" {version}"));
    Some(format!("its agent{version} does not know {}: update the agent first", words(&unknown)))
}

/// Why a device that is in does not hear what its target says; none where it can, or has nothing to hear any more.
pub(crate) fn unheard(rollout: &Rollout, target: &Target, facts: &DeviceFacts) -> Option<String> {
    let is_open = target.errand == Errand::Forward && target.failure.is_none() && target.done_at_ms.is_none();
    let has_heard = facts.reported.as_ref().is_some_and(|report| report.generation >= target.generation);
    if !is_open || has_heard {
        return None;
    }
    misfit(of_target(rollout, target), &facts.attributes, facts.protocol())
}

/// Why a device that goes back cannot go to `bundle`, as far as it is known; nothing where it can.
pub(crate) fn unfit_for(bundle: &BundleFacts, attributes: &BTreeMap<String, String>, protocol: u32) -> Vec<String> {
    let mut faults = misfits(&bundle.requirements, attributes);
    faults.extend(misfit(of_bundle(bundle), attributes, protocol));
    faults
}
