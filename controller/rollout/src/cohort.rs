//! Which devices a rollout may reach, and which of them a wave takes.
//!
//! A wave takes the first devices in the order of a hash of rollout and device: the same at every plan, and
//! unrelated between rollouts, so that it is not always the same devices that go first.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use muster_shared::bundle::Requirements;
use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::limits::bounded_text;
use muster_shared::rollout::WaveSpec;
use sha2::{Digest as _, Sha256};

use crate::fleet::{DeviceFacts, Fleet};
use crate::rollout::{Errand, Rollout, Target};
use crate::standing::{fresh_generation, is_taken, newest_generation, settled_generation};

struct Candidate<'f> {
    facts: &'f DeviceFacts,
    /// The wave with which it came in, if it had when the survey was made.
    wave: Option<u32>,
}

/// The devices meant by a rollout, sorted by whether it can have them.
pub(crate) struct Survey<'f> {
    rollout: RolloutId,
    candidates: BTreeMap<&'f DeviceId, Candidate<'f>>,
    /// Those that another rollout has.
    pub(crate) held: Vec<DeviceId>,
    /// Those that cannot run the bundle, and why.
    pub(crate) unsuitable: BTreeMap<DeviceId, String>,
    /// Candidates that were not in when a wave first had room, in the order in which waves take them.
    order: OnceCell<Vec<&'f DeviceId>>,
}

impl<'f> Survey<'f> {
    /// Looks at every device once.
    pub(crate) fn of(rollout: &Rollout, fleet: &'f Fleet) -> Self {
        let mut survey = Self {
            rollout: rollout.id.clone(),
            candidates: BTreeMap::new(),
            held: Vec::new(),
            unsuitable: BTreeMap::new(),
            order: OnceCell::new(),
        };
        for (id, facts) in fleet.devices.iter().filter(|(_, facts)| !facts.revoked) {
            // Who is in stays in, whatever its labels say now: it has the bundle, so it takes up room.
            if let Some(target) = rollout.targets.get(id) {
                if is_taken(&rollout.id, target, facts) {
                    survey.held.push(id.clone());
                } else {
                    survey.candidates.insert(id, Candidate { facts, wave: Some(target.wave) });
                }
            } else if rollout.spec.selector.matches(id.as_str(), &facts.labels, &facts.attributes) {
                match suitability(rollout, facts) {
                    _ if facts.held_by.is_some() => survey.held.push(id.clone()),
                    Suitability::Suitable => drop(survey.candidates.insert(id, Candidate { facts, wave: None })),
                    Suitability::Unsuitable(why) => drop(survey.unsuitable.insert(id.clone(), why)),
                    Suitability::NotKnownYet => {}
                }
            }
        }
        survey
    }

    /// The devices that the wave takes in beyond those that are in already, which count towards its size.
    pub(crate) fn additions(&self, wave: u32, spec: &WaveSpec, is_in: impl Fn(&DeviceId) -> bool) -> Vec<&'f DeviceId> {
        let (mut all, mut members) = (0, 0);
        for id in self.candidates.keys().filter(|id| self.is_candidate(id, wave, spec)) {
            all += 1;
            members += usize::from(is_in(id));
        }
        let room = spec.size.of(all).saturating_sub(members);
        if room == 0 {
            return Vec::new();
        }
        self.order(&is_in)
            .iter()
            .filter(|id| !is_in(id) && self.is_candidate(id, wave, spec))
            .take(room)
            .copied()
            .collect()
    }

    /// Whether the wave may take this device, or counts it because it is in.
    pub(crate) fn is_candidate(&self, id: &DeviceId, wave: u32, spec: &WaveSpec) -> bool {
        self.candidates.get(id).is_some_and(|candidate| {
            let Candidate { facts, wave: came_with } = candidate;
            *came_with == Some(wave)
                || spec.selector.as_ref().is_none_or(|s| s.matches(id.as_str(), &facts.labels, &facts.attributes))
        })
    }

    /// Every device that the wave may take, or counts because it is in.
    pub(crate) fn wave_candidates(
        &self,
        wave: u32,
        spec: &WaveSpec,
    ) -> impl Iterator<Item = (&'f DeviceId, &'f DeviceFacts)> {
        self.candidates
            .iter()
            .filter(move |(id, _)| self.is_candidate(id, wave, spec))
            .map(|(id, candidate)| (*id, candidate.facts))
    }

    /// Candidates without a target.
    pub(crate) fn untouched(
        &self,
        targets: &BTreeMap<DeviceId, Target>,
    ) -> impl Iterator<Item = (&'f DeviceId, &'f DeviceFacts)> {
        self.candidates
            .iter()
            .filter(|(id, _)| !targets.contains_key(**id))
            .map(|(id, candidate)| (*id, candidate.facts))
    }

    fn order(&self, is_in: impl Fn(&DeviceId) -> bool) -> &[&'f DeviceId] {
        self.order.get_or_init(|| {
            let outside = self.candidates.keys().filter(|id| !is_in(id));
            let mut hashed: Vec<([u8; 32], &DeviceId)> = outside.map(|id| (hash(&self.rollout, id), *id)).collect();
            hashed.sort_unstable();
            hashed.into_iter().map(|(_, id)| id).collect()
        })
    }
}

/// Where a device stands in the order in which waves of this rollout take devices.
pub(crate) fn hash(rollout: &RolloutId, device: &DeviceId) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(rollout.as_str());
    // No identifier holds this byte, so no two pairs read alike.
    hasher.update([0]);
    hasher.update(device.as_str());
    hasher.finalize().into()
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
        beside: errand == Errand::Forward && !rollout.spec.stage.is_serve(),
        attempts: 1,
    })
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
    let Requirements { architectures, min_memory_bytes, min_agent_version } = &rollout.bundle.requirements;
    let attribute = |key: &str| facts.attributes.get(key).map(String::as_str);
    let mut faults = Vec::new();
    let has_incumbent = facts.reported.as_ref().is_some_and(|report| report.committed.is_some());
    if !rollout.spec.stage.is_serve() && !has_incumbent {
        faults.push("it has no bundle of its own that another could run beside".to_owned());
    }
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
    if let Some(least) = min_agent_version {
        let have = attribute("agent-version");
        if !have.is_some_and(|have| have.parse().is_ok_and(|have| *least <= have)) {
            faults.push(match have {
                Some(have) => format!("its agent is {have:?}, the bundle needs {least}"),
                None => format!("it does not report its agent's version, the bundle needs {least}"),
            });
        }
    }
    if faults.is_empty() {
        Suitability::Suitable
    } else if facts.reported.is_none() {
        Suitability::NotKnownYet
    } else {
        Suitability::Unsuitable(bounded_text(&faults.join("; ")))
    }
}
