//! A rollout as it is stored: what was asked for, how far it is and whom it has told what.

use std::collections::BTreeSet;

use muster_shared::bundle::Requirements;
use muster_shared::ids::{BundleRef, DeviceId, Digest, RolloutId};
use muster_shared::limits::bounded_text;
use muster_shared::protocol::Feature;
use muster_shared::rollout::{Analysis, ApprovalRecord, FailureKind, RolloutSpec, RolloutStatus, SpecError, Verdict};
use muster_shared::trust::{Activation, Track};
use serde::{Deserialize, Serialize};

use crate::analysis::AnalysisRuns;
use crate::approval;
use crate::deadline::DeadlineState;
use crate::fleet::{Evidence, Predictions};
use crate::gate::GateState;
use crate::program;
use crate::rate::Intake;
use crate::targets::Targets;
use crate::timing::check_zone;

/// Verdicts a rollout remembers; the oldest go first. Only an operator who resumes again and again gets there.
pub(crate) const MAX_VERDICTS: usize = 128;

/// Generations a device gets on one errand before it is given up: one that claims newer ones of its own, or fails to
/// go back, must not keep a rollout from ending.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// The failure of a device that claims generations of its own: it says nothing of the bundle.
pub(crate) const GAVE_UP_ASTRAY: &str = "it claims generations that it was not given";

/// What the planner must know of the bundle, taken from its manifest when the rollout is created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleFacts {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Name and version.
    pub bundle: BundleRef,
    /// Which devices can run it.
    pub requirements: Requirements,
    /// Classes of the reference sample, for when no control has enough of its own.
    pub reference_predictions: Predictions,
    /// What of a device it is brought to: the model it serves, or the program it is.
    #[serde(default, skip_serializing_if = "Track::is_model")]
    pub track: Track,
    /// What an agent must know to read the manifest.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub features: BTreeSet<Feature>,
}

/// How one wave stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaveState {
    /// When it was entered; evidence counts from then on.
    pub started_at_ms: Option<u64>,
    /// Since when its longest duration runs: when it was entered, or last resumed.
    pub clock_from_ms: Option<u64>,
    /// When every device of it that could be reached was first seen to have committed; the soak runs from then on.
    pub soak_from_ms: Option<u64>,
    /// It waits for devices that a freeze, their windows or the rate keep out: its longest duration does not run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_kept_out: bool,
    /// How its devices are compared with others; none before it has any, and where the rollout asks for no comparison.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateState>,
    /// Its analyses, by their place in [`Rollout::analyses`]; none before its soak.
    #[serde(default, skip_serializing_if = "AnalysisRuns::is_empty")]
    pub analyses: AnalysisRuns,
}

/// What a device of the rollout is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Errand {
    /// It ran the bundle before the rollout came: it counts, and is told nothing.
    Keep,
    /// It is told to run the bundle.
    Forward,
    /// It is told to run again what it ran before.
    Back,
}

/// One device of the rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// What it is about.
    pub errand: Errand,
    /// What it shall run; none for nothing.
    pub manifest: Option<Digest>,
    /// The generation of that statement. With [`Errand::Keep`], the one under which the bundle runs.
    pub generation: u64,
    /// What it had committed before it took up the bundle, as far as it said; none for nothing.
    pub previous: Option<Digest>,
    /// The wave with which it came in, counted from 0.
    pub wave: u32,
    /// When the generation was given.
    pub assigned_at_ms: u64,
    /// When the device was first seen to have done what the generation says; what it does for another rollout later is
    /// not this one's matter.
    pub done_at_ms: Option<u64>,
    /// Why it counts as failed on the bundle; it stays so and is not tried again.
    pub failure: Option<String>,
    /// In which way it failed, where it has. A deadline that is over is no failure.
    #[serde(default, skip_serializing_if = "FailureKind::is_failed")]
    pub failure_kind: FailureKind,
    /// How its deadline stands, where the rollout has such.
    #[serde(default, skip_serializing_if = "DeadlineState::is_unset")]
    pub deadline: DeadlineState,
    /// It is told to run the bundle beside what it has committed, and not in its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
    /// When it is told to switch to the bundle, where it does so together with others.
    #[serde(default, skip_serializing_if = "Activation::is_at_once")]
    pub activation: Activation,
    /// With whom it switches; none where each device switches by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Generations given on this errand. A device that overtakes them by itself, or fails to go back, gets a few.
    pub attempts: u32,
}

impl Target {
    /// Whether `evidence` was measured of what the device was told, under the generation it was given.
    pub(crate) fn is_about(&self, evidence: &Evidence) -> bool {
        (Some(evidence.manifest), evidence.generation) == (self.manifest, self.generation)
    }
}

/// A rollout. Every change of it is one [`crate::plan`] or [`Rollout::apply`], stored whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Its name.
    pub id: RolloutId,
    /// What was asked for.
    pub spec: RolloutSpec,
    /// The bundle it brings.
    pub bundle: BundleFacts,
    /// What was asked for as analyses, as their templates were then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub analyses: Vec<Analysis>,
    /// How it stands.
    pub status: RolloutStatus,
    /// Who or what decided last, and why.
    pub status_reason: String,
    /// When it was created.
    pub created_at_ms: u64,
    /// The name of the access token it was asked for with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who approved it, where that is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRecord>,
    /// When it last changed.
    pub updated_at_ms: u64,
    /// The wave it is in, counted from 0.
    pub current_wave: u32,
    /// How each wave stands, as many as the spec has.
    pub waves: Vec<WaveState>,
    /// Every device that has come in, whatever became of it. It only grows.
    pub targets: Targets,
    /// How many devices came in when, as far as the rate counts them, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intake: Vec<Intake>,
    /// The devices it means, where those that come later are left out; none before it begins, and where they are welcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meant: Option<BTreeSet<DeviceId>>,
    /// Every verdict, oldest first.
    pub verdicts: Vec<Verdict>,
    /// Where it goes back to, if not to what each device ran before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<BundleFacts>,
    /// It ended while devices had not taken up what they were told: they are told again when they return.
    pub outstanding: bool,
}

impl Rollout {
    /// A rollout that starts at the next plan, or waits for the approvals that `spec` asks for.
    ///
    /// # Errors
    /// [`SpecError`] when the spec is not valid.
    pub fn new(id: RolloutId, spec: RolloutSpec, bundle: BundleFacts, now_ms: u64) -> Result<Self, SpecError> {
        spec.validate()?;
        check_zone(spec.timezone.as_deref())?;
        if !bundle.track.is_model() {
            program::validate(&spec)?;
        }
        let approval = spec.approval.as_ref().map(|wish| approval::pending(wish.needed));
        Ok(Self {
            id,
            waves: vec![WaveState::default(); spec.waves.len()],
            spec,
            bundle,
            analyses: Vec::new(),
            status: approval.as_ref().map_or(RolloutStatus::Ready, |_| RolloutStatus::WaitingForApproval),
            status_reason: "created".to_owned(),
            created_at_ms: now_ms,
            created_by: None,
            approval,
            updated_at_ms: now_ms,
            current_wave: 0,
            targets: Targets::default(),
            intake: Vec::new(),
            meant: None,
            verdicts: Vec::new(),
            destination: None,
            outstanding: false,
        })
    }

    /// What of a device it is about. What it is shown of the fleet must be of that track.
    #[must_use]
    pub fn track(&self) -> Track {
        self.bundle.track
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> RolloutStatus {
        self.status
    }

    /// Windows received before this tell nothing about the current wave.
    #[must_use]
    pub fn evidence_since_ms(&self) -> u64 {
        self.wave_state().and_then(|wave| wave.started_at_ms).unwrap_or(self.created_at_ms)
    }

    /// Whether `device` has come in. While the rollout is not finished, no other one may take it.
    #[must_use]
    pub fn takes_part(&self, device: &DeviceId) -> bool {
        self.targets.contains_key(device)
    }

    /// Whether [`crate::plan`] can have anything to say. A finished rollout needs planning only if it ended while
    /// devices had not taken up what they were told; that can be done at leisure.
    #[must_use]
    pub fn needs_planning(&self) -> bool {
        match self.status {
            RolloutStatus::WaitingForApproval
            | RolloutStatus::Ready
            | RolloutStatus::Running
            | RolloutStatus::Paused
            | RolloutStatus::RollingBack => true,
            RolloutStatus::Completed | RolloutStatus::RolledBack | RolloutStatus::Stopped => self.outstanding,
            RolloutStatus::Draft => false,
        }
    }

    pub(crate) fn wave_state(&self) -> Option<&WaveState> {
        self.waves.get(self.current_wave as usize)
    }

    /// Keeps `verdict`, and lets it be the reason why the rollout stands as it does.
    pub(crate) fn conclude(&mut self, verdict: Verdict) {
        self.status_reason = bounded_text(&verdict.summary);
        self.verdicts.push(verdict);
        let surplus = self.verdicts.len().saturating_sub(MAX_VERDICTS);
        self.verdicts.drain(..surplus);
    }
}
