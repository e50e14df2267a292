//! A fleet that does what a test says, and a store that does what the planner says.

use std::collections::BTreeMap;

use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::messages::{InstalledBundle, RequestCounts, StateReport, UpdateReport, UpdateState};
use muster_shared::protocol::PROTOCOL;
use muster_shared::rollout::{
    Check, DeviceProgress, Outcome, RolloutEvidence, RolloutSpec, RolloutStatus, Rule, Verdict, Waiting, WaveSpec,
};
use muster_shared::selector::Selector;
use muster_shared::sketch::LatencySketch;

use crate::{
    Action, BesideCounts, BundleFacts, Decision, Desired, DeviceFacts, Evidence, Fleet, KnownFacts, OperatorAction,
    Rollout, Target, plan, replay, verify,
};

pub(super) const SOAK_MS: u64 = 1_000;
pub(super) const MAX_MS: u64 = 600_000;
pub(super) const START_MS: u64 = 1_000_000;

pub(super) fn new() -> Digest {
    Digest::of(b"the new one")
}

pub(super) fn old() -> Digest {
    Digest::of(b"the incumbent")
}

pub(super) fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

/// `d000` and so on.
pub(super) fn names(n: u32) -> Vec<String> {
    (0..n).map(|at| format!("d{at:03}")).collect()
}

pub(super) fn wave(size: &str) -> WaveSpec {
    WaveSpec::of(size.parse().unwrap(), SOAK_MS, MAX_MS)
}

pub(super) fn spec(waves: &[&str]) -> RolloutSpec {
    let waves = waves.iter().map(|size| wave(size)).collect();
    RolloutSpec::of("digits@1.2.0".parse().unwrap(), Selector::all(), waves)
}

pub(super) fn installed(manifest: Digest, generation: u64) -> InstalledBundle {
    InstalledBundle { manifest, bundle: "digits@1.0.0".parse().unwrap(), generation }
}

/// What a device measured in one telling.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served<'a> {
    pub(super) reports: u32,
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) latency_us: u64,
    pub(super) classes: &'a [(&'a str, u64)],
}

impl Default for Served<'_> {
    fn default() -> Self {
        Self { reports: 3, requests: 100, errors: 0, latency_us: 2_000, classes: &[] }
    }
}

pub(super) struct World {
    pub(super) rollout: Rollout,
    pub(super) fleet: Fleet,
    pub(super) now_ms: u64,
}

impl World {
    pub(super) fn new(spec: RolloutSpec, devices: &[&str]) -> Self {
        let bundle = BundleFacts {
            manifest: new(),
            bundle: spec.bundle.clone(),
            requirements: Default::default(),
            reference_predictions: BTreeMap::new(),
            track: Default::default(),
            features: Default::default(),
        };
        let rollout = Rollout::new(RolloutId::new("r1").unwrap(), spec, bundle, START_MS).unwrap();
        let mut world = Self { rollout, fleet: Fleet::default(), now_ms: START_MS };
        devices.iter().for_each(|name| world.add(name));
        world
    }

    /// With the first `n` devices of [`names`].
    pub(super) fn numbered(spec: RolloutSpec, n: u32) -> Self {
        let names = names(n);
        Self::new(spec, &names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A device that runs the incumbent since generation 1.
    pub(super) fn add(&mut self, name: &str) {
        let known = KnownFacts {
            reported: Some(StateReport {
                generation: 1,
                update: UpdateReport {
                    state: UpdateState::Committed,
                    generation: 1,
                    manifest: Some(old()),
                    ..UpdateReport::default()
                },
                running: Some(installed(old(), 1)),
                committed: Some(installed(old(), 1)),
                protocol: PROTOCOL,
                ..StateReport::default()
            }),
            ..KnownFacts::default()
        };
        let facts = DeviceFacts { known: known.into(), online: true, ..DeviceFacts::default() };
        self.fleet.devices.insert(device(name), facts);
    }

    pub(super) fn facts(&mut self, name: &str) -> &mut DeviceFacts {
        self.fleet.devices.get_mut(&device(name)).unwrap()
    }

    pub(super) fn target(&self, name: &str) -> Option<&Target> {
        self.rollout.targets.get(&device(name))
    }

    pub(super) fn report(&mut self, name: &str, change: impl FnOnce(&mut StateReport, &Target)) {
        let target = self.target(name).unwrap().clone();
        change(self.facts(name).reported.get_or_insert_default(), &target);
    }

    /// The device takes its target up and is that far with it.
    pub(super) fn works(&mut self, name: &str, state: UpdateState) {
        self.report(name, |report, target| {
            report.generation = target.generation;
            report.update = UpdateReport {
                state,
                generation: target.generation,
                manifest: target.manifest,
                ..UpdateReport::default()
            };
        });
    }

    /// The device takes its target up and does not make it.
    pub(super) fn fails(&mut self, name: &str, state: UpdateState, reason: &str) {
        self.works(name, state);
        self.report(name, |report, _| report.update.reason = Some(reason.to_owned()));
    }

    /// The device runs what its target says, for good.
    pub(super) fn commits(&mut self, name: &str) {
        self.works(name, UpdateState::Committed);
        self.report(name, |report, target| {
            report.running = target.manifest.map(|manifest| installed(manifest, target.generation));
            report.committed = report.running.clone();
        });
    }

    /// The device measures what it runs.
    pub(super) fn serves(&mut self, name: &str, served: Served<'_>) {
        let running = self.facts(name).reported.clone().unwrap().running.unwrap();
        let mut latency_us = LatencySketch::default();
        (0..served.requests).for_each(|_| latency_us.add(served.latency_us));
        let classes: BTreeMap<String, u64> = served.classes.iter().map(|(c, n)| ((*c).to_owned(), *n)).collect();
        let predictions =
            if classes.is_empty() { BTreeMap::new() } else { BTreeMap::from([("class".to_owned(), classes)]) };
        let is_scored = self.rollout.scored_since_ms().is_some();
        let evidence = Evidence {
            reports: served.reports,
            requests: RequestCounts { served: served.requests, failed: served.errors, ..RequestCounts::default() },
            latency_us,
            predictions,
            ..Evidence::of(running.manifest, running.generation)
        };
        let facts = self.facts(name);
        facts.soak.extend(is_scored.then(|| evidence.clone()));
        facts.evidence.push(evidence);
    }

    /// The device measures the bundle that it runs beside its own.
    pub(super) fn shadows(&mut self, name: &str, rows: u64, disagreed: u64) {
        let generation = self.target(name).unwrap().generation;
        let mut latency_us = LatencySketch::default();
        (0..rows).for_each(|_| latency_us.add(2_000));
        let evidence = Evidence {
            reports: 3,
            requests: RequestCounts { served: rows, ..RequestCounts::default() },
            incumbent_us: latency_us.clone(),
            latency_us,
            beside: BesideCounts { agreed: rows - disagreed, disagreed, ..BesideCounts::default() },
            ..Evidence::of(new(), generation)
        };
        self.facts(name).evidence.push(evidence);
    }

    /// Plans after `ms`, checks the decision and that planning again changes nothing, and stores it.
    pub(super) fn tick(&mut self, ms: u64) -> Decision {
        self.now_ms += ms;
        let decision = plan(&self.rollout, &self.fleet, self.now_ms);
        assert_eq!(verify(&self.rollout, &decision, &self.fleet, self.now_ms), Ok(()));
        let again = plan(&decision.next, &self.fleet, self.now_ms);
        assert_eq!((&again.next, &again.actions), (&decision.next, &decision.actions), "planned twice");
        assert_eq!(verify(&decision.next, &again, &self.fleet, self.now_ms), Ok(()));
        for Action::Assign { device, manifest, generation } in &decision.actions {
            self.fleet.devices.get_mut(device).unwrap().desired =
                Some(Desired { manifest: *manifest, generation: *generation, rollout: self.rollout.id.clone() });
        }
        for (id, note) in &decision.notes {
            let facts = self.fleet.devices.get_mut(id).unwrap();
            facts.updates = facts.updates.with(note, 3, self.now_ms);
            facts.quarantined = facts.updates.quarantine().map(|quarantine| format!("quarantined {}", quarantine.why));
        }
        let restarted = self.rollout.evidence_since_ms() != decision.next.evidence_since_ms();
        if restarted {
            self.fleet.devices.values_mut().for_each(|facts| facts.evidence.clear());
        }
        if self.rollout.scored_since_ms() != decision.next.scored_since_ms() {
            self.fleet.devices.values_mut().for_each(|facts| facts.soak.clear());
        }
        let is_judged = self.rollout.verdicts != decision.next.verdicts;
        self.rollout = decision.next.clone();
        if is_judged {
            self.assert_replays();
        }
        decision
    }

    /// Every verdict can be reached again from what is stored of it, also by who reads it from a file.
    pub(super) fn assert_replays(&self) {
        let all = self.rollout.evidence();
        assert_eq!(all.len(), self.rollout.verdicts.len(), "each verdict keeps what it rests on");
        let written = serde_json::to_string(&all).unwrap();
        let read: Vec<RolloutEvidence> = serde_json::from_str(&written).unwrap();
        for (evidence, verdict) in all.iter().chain(&read).zip(self.rollout.verdicts.iter().cycle()) {
            let replayed = replay(evidence).unwrap();
            assert_eq!((replayed.outcome, replayed.wave), (verdict.outcome, verdict.wave));
            assert!(replayed.differences.is_empty(), "{:?}", replayed.differences);
        }
    }

    pub(super) fn apply(&mut self, action: OperatorAction) {
        self.rollout = self.rollout.apply(action, "alice", None, self.now_ms).unwrap();
    }

    /// The names of everybody who is in, by wave.
    pub(super) fn cohort(&self, wave: u32) -> Vec<&str> {
        let members = self.rollout.targets.iter().filter(|(_, target)| target.wave == wave);
        members.map(|(id, _)| id.as_str()).collect()
    }

    /// The first device that came in with a wave.
    pub(super) fn first(&self, wave: u32) -> String {
        self.cohort(wave)[0].to_owned()
    }

    /// Everybody who is in and can be reached commits and serves.
    pub(super) fn all_commit(&mut self) {
        let members: Vec<String> = self.rollout.targets.keys().map(ToString::to_string).collect();
        for name in members {
            if self.facts(&name).online {
                self.commits(&name);
                self.serves(&name, Served::default());
            }
        }
    }

    /// Two ticks in which the wave's devices commit and soak; the second one passes it.
    pub(super) fn pass_wave(&mut self) -> Decision {
        self.all_commit();
        self.tick(1);
        self.all_commit();
        self.tick(SOAK_MS)
    }

    pub(super) fn progress(&self, name: &str) -> Option<DeviceProgress> {
        let view = self.rollout.view(&self.fleet, &[]);
        view.waves.iter().find_map(|wave| wave.devices.get(&device(name)).copied())
    }
}

pub(super) fn told(decision: &Decision) -> Vec<&str> {
    decision.actions.iter().map(|Action::Assign { device, .. }| device.as_str()).collect()
}

pub(super) fn statuses(decision: &Decision) -> (RolloutStatus, u32) {
    (decision.next.status, decision.next.current_wave)
}

pub(super) fn last_verdict(rollout: &Rollout) -> &Verdict {
    rollout.verdicts.last().unwrap()
}

pub(super) fn check(verdict: &Verdict, rule: Rule) -> &Check {
    verdict.checks.iter().find(|check| check.rule == rule).unwrap()
}

pub(super) fn broken(verdict: &Verdict) -> Vec<Rule> {
    verdict.checks.iter().filter(|check| check.outcome == Outcome::Failed).map(|check| check.rule).collect()
}

pub(super) fn waits_for(decision: &Decision, is: impl Fn(&Waiting) -> bool) -> bool {
    decision.waiting.iter().any(is)
}
