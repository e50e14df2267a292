//! What a rollout of agent programs may ask for, and which devices can take a program.
//!
//! To the planner a program is a bundle like any other: what it is shown of devices, the controller takes from the program's track.

use muster_shared::ids::Digest;
use muster_shared::rollout::{Limits, Metric, RolloutSpec, SpecError};

use crate::fleet::{DeviceFacts, KnownFacts};
use crate::rollout::Rollout;

/// Checks that `spec` asks for nothing that a program does not have.
///
/// # Errors
/// [`SpecError::Program`] with the first thing found.
pub(crate) fn validate(spec: &RolloutSpec) -> Result<(), SpecError> {
    let refuse = |what| Err(SpecError::Program(what));
    if spec.stages().iter().any(|stage| !stage.is_serve()) {
        return refuse(
            "it cannot run beside another one as shadow or with a share of the requests: leave the stage out",
        );
    }
    if spec.blue_green.is_some() {
        return refuse("devices take it over when they have it, each by itself: leave blue_green out");
    }
    // The limit is always there; where nobody asked for one it is the default, and nothing is counted that it could be held against.
    if spec.limits.max_prediction_psi.total_cmp(&Limits::default().max_prediction_psi).is_ne() {
        return refuse(
            "devices on one program serve different models, whose predictions are not compared: leave limits.max_prediction_psi out",
        );
    }
    let guardrails = spec.gate.iter().flat_map(|gate| &gate.guardrails);
    guardrails.filter_map(|guardrail| about_answers(guardrail.metric)).next().map_or(Ok(()), refuse)
}

/// Why a program is not held against `metric`, which is about what models answer; none where it is about what serves them.
const fn about_answers(metric: Metric) -> Option<&'static str> {
    match metric {
        Metric::PredictionDrift | Metric::Disagreement => Some(
            "devices on one program serve different models, whose predictions are not compared: leave prediction-drift and disagreement out of \
             gate.guardrails",
        ),
        Metric::LabelError | Metric::Confidence => Some(
            "devices on one program serve different models, and how right or sure these are is not its doing: leave label-error and \
             confidence out of gate.guardrails",
        ),
        Metric::ErrorRate
        | Metric::LatencyShare
        | Metric::Failures
        | Metric::Memory
        | Metric::Temperature
        | Metric::Custom => None,
    }
}

/// Why a device cannot take a program; none where it can, as far as that is known.
pub(crate) fn misfit(facts: &DeviceFacts) -> Option<&'static str> {
    let lacks = facts.reported.as_ref().is_none_or(|report| report.program.is_none());
    lacks.then_some("its agent cannot exchange its program: install a later muster-agent package on it")
}

/// What evidence about programs names in place of a manifest where the one that the package installed ran: nothing that anybody could sign.
#[must_use]
pub fn packaged_program() -> Digest {
    Digest::of(b"the program that the package installed")
}

impl Rollout {
    /// What the device has committed of what the rollout is about, as evidence names it.
    pub(crate) fn incumbent(&self, facts: &KnownFacts) -> Option<Digest> {
        let is_packaged = !self.track().is_model() && facts.reported.is_some();
        facts.committed().or_else(|| is_packaged.then(packaged_program))
    }
}
