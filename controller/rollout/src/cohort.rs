//! Which devices a rollout may reach, and which of them a wave takes.
//!
//! A wave takes the first devices in the order of a hash of rollout and device: the same at every plan, and
//! unrelated between rollouts, so that it is not always the same devices that go first.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use muster_shared::bundle::{Requirements, cpu_feature_attribute};
use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::limits::bounded_text;
use muster_shared::rollout::{FailureKind, WaveSpec};
use muster_shared::trust::Activation;
use sha2::{Digest as _, Sha256};

use crate::blue_green;
use crate::deadline::DeadlineState;
use crate::fleet::{DeviceFacts, Fleet};
use crate::program;
use crate::reach::is_held_back;
use crate::rollout::{Errand, Rollout, Target};
use crate::standing::{fresh_generation, is_taken, newest_generation, settled_generation};
use crate::understanding;
use crate::walk::side_by_side;

/// A device that a rollout means and can have.
pub(crate) struct Candidate<'f> {
    pub(crate) id: &'f DeviceId,
    pub(crate) facts: &'f DeviceFacts,
    /// The wave with which it came in, if it had when the survey was made.
    wave: Option<u32>,
    /// With whom it switches, where devices switch together.
    pub(crate) group: Option<String>,
}

/// The devices meant by a rollout, sorted by whether it can have them.
pub(crate) struct Survey<'f> {
    pub(crate) rollout: RolloutId,
    /// Whether devices come in by groups.
    by_groups: bool,
    /// In the order of their names.
    pub(crate) candidates: Vec<Candidate<'f>>,
    /// Those that another rollout has.
    pub(crate) held: Vec<DeviceId>,
    /// Those that keep what they have for good, in the order of their names.
    group: Vec<(&'f DeviceId, &'f DeviceFacts)>,
    /// Those that are meant since it began, and left out for that.
    pub(crate) later: Vec<DeviceId>,
    /// Those that cannot run the bundle or are kept from rollouts, and why.
    pub(crate) unsuitable: BTreeMap<DeviceId, String>,
    /// Those that are in and cannot read what they shall be told, and why.
    pub(crate) unheard: BTreeMap<DeviceId, String>,
    /// Places of the candidates that were not in at first, in the order in which waves take them.
    order: OnceCell<Vec<usize>>,
}

impl<'f> Survey<'f> {
    /// Looks at every device once.
    pub(crate) fn of(rollout: &Rollout, fleet: &'f Fleet) -> Self {
        let mut survey = Self {
            rollout: rollout.id.clone(),
            by_groups: rollout.spec.blue_green.is_some(),
            candidates: Vec::new(),
            held: Vec::new(),
            group: Vec::new(),
            later: Vec::new(),
            unsuitable: BTreeMap::new(),
            unheard: BTreeMap::new(),
            order: OnceCell::new(),
        };
        let devices = fleet.devices.iter().filter(|(_, facts)| !facts.revoked);
        for (id, facts, target) in side_by_side(devices, &rollout.targets) {
            // Who is in stays in, whatever its labels say now: it has the bundle, so it takes up room.
            if let Some(target) = target {
                if is_taken(&rollout.id, target, facts) {
                    survey.held.push(id.clone());
                } else {
                    if let Some(why) = understanding::unheard(rollout, target, facts) {
                        survey.unheard.insert(id.clone(), bounded_text(&why));
                    }
                    survey.candidates.push(Candidate {
                        id,
                        facts,
                        wave: Some(target.wave),
                        group: target.group.clone(),
                    });
                }
            } else if facts.is_meant_by(&rollout.spec.selector, id) {
                match suitability(rollout, facts) {
                    _ if rollout.came_later(id) => survey.later.push(id.clone()),
                    _ if facts.held_by.is_some() => survey.held.push(id.clone()),
                    Suitability::Suitable if is_held_back(&rollout.spec, id) => survey.group.push((id, facts)),
                    Suitability::Suitable => {
                        let group = blue_green::group_of(&rollout.spec, facts);
                        survey.candidates.push(Candidate { id, facts, wave: None, group });
                    }
                    Suitability::Unsuitable(why) => drop(survey.unsuitable.insert(id.clone(), why)),
                    Suitability::NotKnownYet => {}
                }
            }
        }
        survey
    }

    /// The devices that the wave takes in beyond the `members`, which count towards its size, of those that `may` come in now; in the
    /// order of their names.
    pub(crate) fn additions<T>(
        &self,
        wave: u32,
        spec: &WaveSpec,
        members: &BTreeMap<DeviceId, T>,
        may: impl Fn(&DeviceId, &DeviceFacts) -> bool,
    ) -> Vec<(&'f DeviceId, &'f DeviceFacts)> {
        if self.by_groups {
            return blue_green::additions(self, wave, spec, members, may);
        }
        let (mut all, mut have, mut free) = (0, 0, vec![false; self.candidates.len()]);
        let candidates =
            self.candidates.iter().zip(&mut free).map(|(candidate, free)| (candidate.id, (candidate, free)));
        for (_, (candidate, free), member) in side_by_side(candidates, members) {
            let counts = candidate.is_for(wave, spec);
            *free = counts && member.is_none();
            all += usize::from(counts);
            have += usize::from(counts && member.is_some());
        }
        let room = spec.size.of(all).saturating_sub(have);
        if room == 0 {
            return Vec::new();
        }
        let may_come = |at: &usize| {
            free.get(*at) == Some(&true) && self.candidates.get(*at).is_some_and(|found| may(found.id, found.facts))
        };
        let mut added: Vec<usize> = if room >= all - have {
            // There is room for everybody, whatever the order.
            (0..self.candidates.len()).filter(may_come).collect()
        } else {
            self.order().iter().copied().filter(may_come).take(room).collect()
        };
        added.sort_unstable();
        let added = added.into_iter().filter_map(|at| self.candidates.get(at));
        added.map(|candidate| (candidate.id, candidate.facts)).collect()
    }

    /// Whether the wave may take this device, or counts it because it is in.
    pub(crate) fn is_candidate(&self, id: &DeviceId, wave: u32, spec: &WaveSpec) -> bool {
        let at = self.candidates.binary_search_by(|candidate| candidate.id.cmp(id));
        at.ok().and_then(|at| self.candidates.get(at)).is_some_and(|candidate| candidate.is_for(wave, spec))
    }

    /// Every device that the wave may take, or counts because it is in.
    pub(crate) fn wave_candidates(
        &self,
        wave: u32,
        spec: &WaveSpec,
    ) -> impl Iterator<Item = (&'f DeviceId, &'f DeviceFacts)> {
        self.candidates
            .iter()
            .filter(move |candidate| candidate.is_for(wave, spec))
            .map(|candidate| (candidate.id, candidate.facts))
    }

    /// The devices that are held back for good.
    pub(crate) fn group(&self) -> impl Iterator<Item = &'f DeviceId> {
        self.group.iter().map(|(id, _)| *id)
    }

    /// Every device that may be compared in a wave: those of [`Self::wave_candidates`], and the ones like them that are held back.
    pub(crate) fn comparable(
        &self,
        wave: u32,
        spec: &WaveSpec,
    ) -> impl Iterator<Item = (&'f DeviceId, &'f DeviceFacts)> {
        let alike = self
            .group
            .iter()
            .copied()
            .filter(move |(id, facts)| spec.selector.as_ref().is_none_or(|s| facts.is_meant_by(s, id)));
        self.wave_candidates(wave, spec).chain(alike)
    }

    /// Devices without a target that are or could be in, and those that are held back.
    pub(crate) fn untouched(
        &self,
        targets: &BTreeMap<DeviceId, Target>,
    ) -> impl Iterator<Item = (&'f DeviceId, &'f DeviceFacts)> {
        let candidates = self.candidates.iter().map(|candidate| (candidate.id, candidate.facts));
        side_by_side(candidates, targets)
            .filter(|(_, _, target)| target.is_none())
            .map(|(id, facts, _)| (id, facts))
            .chain(self.group.iter().copied())
    }

    fn order(&self) -> &[usize] {
        self.order.get_or_init(|| {
            let outside = self.candidates.iter().enumerate().filter(|(_, candidate)| candidate.wave.is_none());
            let mut hashed: Vec<([u8; 32], usize)> =
                outside.map(|(at, candidate)| (hash(&self.rollout, candidate.id.as_str()), at)).collect();
            hashed.sort_unstable();
            hashed.into_iter().map(|(_, at)| at).collect()
        })
    }
}

impl Candidate<'_> {
    pub(crate) fn is_for(&self, wave: u32, spec: &WaveSpec) -> bool {
        let Self { id, facts, wave: came_with, .. } = self;
        let runs_beside = spec.stage.as_ref().is_some_and(|stage| !stage.is_serve());
        if came_with.is_none() && runs_beside && facts.committed().is_none() {
            return false;
        }
        *came_with == Some(wave) || spec.selector.as_ref().is_none_or(|s| facts.is_meant_by(s, id))
    }
}

/// Where a device or a group of that name stands in the order in which waves of this rollout take them.
pub(crate) fn hash(rollout: &RolloutId, name: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(rollout.as_str());
    // No identifier holds this byte, so no two pairs read alike.
    hasher.update([0]);
    hasher.update(name);
    hasher.finalize().into()
}

/// From where chance is drawn that concerns a whole wave, so that it is the same again.
pub(crate) fn drawn_from(rollout: &RolloutId, wave: u32) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(rollout.as_str());
    // No device is called that.
    hasher.update(format!("\0wave {wave}"));
    first_number(hasher.finalize().into())
}

/// The first eight bytes of a hash as a number.
pub(crate) fn first_number(hash: [u8; 32]) -> u64 {
    hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// The target of a device that comes in with `wave`; none when no generation is left for it.
pub(crate) fn new_target(rollout: &Rollout, facts: &DeviceFacts, wave: u32, now_ms: u64) -> Option<Target> {
    let manifest = rollout.bundle.manifest;
    let (errand, generation) = match settled_generation(facts, manifest) {
        Some(generation) => (Errand::Keep, generation),
        None => (Errand::Forward, fresh_generation(facts, 0)?),
    };
    let previous = match &facts.reported {
        Some(report) => report.committed.as_ref().map(|bundle| bundle.manifest),
        None => facts.desired.as_ref().and_then(|desired| desired.manifest),
    };
    Some(Target {
        errand,
        manifest: Some(manifest),
        generation,
        previous,
        wave,
        assigned_at_ms: now_ms,
        done_at_ms: (errand == Errand::Keep).then_some(now_ms),
        failure: None,
        failure_kind: FailureKind::Failed,
        deadline: DeadlineState::default(),
        beside: errand == Errand::Forward && !rollout.spec.stage_of(wave).is_serve(),
        activation: if errand == Errand::Forward { blue_green::first_word(&rollout.spec) } else { Activation::AtOnce },
        group: blue_green::group_of(&rollout.spec, facts),
        attempts: 1,
    })
}

/// Whether `rollout` could have the device but for the rollout that holds it.
pub(crate) fn is_wanted(rollout: &Rollout, id: &DeviceId, facts: &DeviceFacts) -> bool {
    let is_meant = facts.is_meant_by(&rollout.spec.selector, id);
    is_meant && !facts.revoked && matches!(suitability(rollout, facts), Suitability::Suitable)
}

enum Suitability {
    Suitable,
    Unsuitable(String),
    /// It has never reported, so it cannot be told.
    NotKnownYet,
}

fn suitability(rollout: &Rollout, facts: &DeviceFacts) -> Suitability {
    if newest_generation(facts) == u64::MAX {
        return Suitability::Unsuitable(format!("it reports generation {}, above which there is none", u64::MAX));
    }
    let quarantined = facts.quarantined.as_ref().filter(|_| !rollout.spec.emergency);
    if let Some(why) = facts.pinned.as_ref().or(quarantined) {
        return Suitability::Unsuitable(bounded_text(why));
    }
    let mut faults = Vec::new();
    if !rollout.spec.stage.is_serve() && facts.committed().is_none() {
        faults.push("it has no bundle of its own that another could run beside".to_owned());
    }
    faults.extend(blue_green::misfits(&rollout.spec, facts));
    let exchanges_none = (!rollout.track().is_model()).then(|| program::misfit(facts)).flatten();
    faults.extend(match exchanges_none {
        Some(why) => Some(why.to_owned()),
        None => understanding::misfit(understanding::of_rollout(rollout), &facts.attributes, facts.protocol()),
    });
    faults.extend(misfits(&rollout.bundle.requirements, &facts.attributes));
    if faults.is_empty() {
        Suitability::Suitable
    } else if facts.reported.is_none() {
        Suitability::NotKnownYet
    } else {
        Suitability::Unsuitable(bounded_text(&faults.join("; ")))
    }
}

/// Why a device with these `attributes` cannot run what asks for `requirements`, as far as it is known; nothing where it can.
pub(crate) fn misfits(requirements: &Requirements, attributes: &BTreeMap<String, String>) -> Vec<String> {
    let Requirements { architectures, min_memory_bytes, min_agent_version, cpu_features, attributes: wanted } =
        requirements;
    let attribute = |key: &str| attributes.get(key).map(String::as_str);
    let mut faults = Vec::new();
    if !architectures.is_empty() && !attribute("arch").is_some_and(|arch| architectures.contains(arch)) {
        let wanted = architectures.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        faults.push(match attribute("arch") {
            Some(arch) => format!("its architecture is {arch}, the bundle is for {wanted}"),
            None => format!("it does not report its architecture, the bundle is for {wanted}"),
        });
    }
    if *min_memory_bytes > 0 {
        match attribute("memory-bytes").map(str::parse::<u64>) {
            Some(Ok(bytes)) if bytes >= *min_memory_bytes => {}
            Some(Ok(bytes)) => {
                faults.push(format!("it has {bytes} bytes of memory, the bundle needs {min_memory_bytes}"));
            }
            Some(Err(_)) | None => {
                faults.push(format!("it does not report its memory, the bundle needs {min_memory_bytes} bytes"));
            }
        }
    }
    let missing = cpu_features.iter().map(String::as_str).filter(|f| attribute(&cpu_feature_attribute(f)).is_none());
    let missing = missing.collect::<Vec<_>>().join(", ");
    if !missing.is_empty() {
        faults.push(format!("it does not report a processor with {missing}, which the bundle needs"));
    }
    let unmet = wanted.iter().flat_map(|wanted| wanted.unmet(attributes)).collect::<Vec<_>>().join(", ");
    if !unmet.is_empty() {
        faults.push(format!("the bundle needs a device with {unmet}"));
    }
    if let Some(least) = min_agent_version {
        let have = attribute("agent-version");
        if !have.is_some_and(|have| have.parse().is_ok_and(|have| *least <= have)) {
            faults.push(match have {
                Some(have) => format!("its agent is {have:?}, the bundle needs {least}"),
                None => format!("it does not report its agent's version, the bundle needs {least}"),
            });
        }
    }
    faults
}
