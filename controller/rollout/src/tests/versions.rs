//! Fleets whose agents are of several versions: who takes part, what each is told, and what becomes of one that falls back.

use std::collections::BTreeSet;

use muster_shared::messages::UpdateState;
use muster_shared::protocol::earlier::reads_assignment;
use muster_shared::protocol::{Feature, PROTOCOL};
use muster_shared::rollout::{BlueGreen, Deadlines, Outcome, RolloutSpec, RolloutStatus, Waiting};
use muster_shared::trust::{Assignment, DeliveryPolicy, Stage};
use proptest::prelude::*;

use super::world::{MAX_MS, SOAK_MS, World, device, last_verdict, new, old, spec, told};
use crate::{Action, BundleFacts, Decision, Errand, OperatorAction};

const NAMES: [&str; 6] = ["a0", "a1", "a2", "b0", "b1", "b2"];

/// Each device is named by its group and its number.
fn mixed(spec: RolloutSpec) -> World {
    let mut world = World::new(spec, &NAMES);
    for name in NAMES {
        let facts = world.facts(name);
        facts.attributes.insert("agent-version".to_owned(), format!("0.{}.0", &name[1..]));
        facts.labels.insert("site".to_owned(), name[..1].to_owned());
        facts.reported.as_mut().unwrap().can_hold = &name[1..] != "0";
        says(&mut world, name, name[1..].parse().unwrap());
    }
    world
}

fn says(world: &mut World, name: &str, protocol: u32) {
    world.facts(name).reported.as_mut().unwrap().protocol = protocol;
}

fn shadow(waves: &[&str]) -> RolloutSpec {
    RolloutSpec { stage: Stage::Shadow { share_bp: 10_000 }, ..spec(waves) }
}

fn together(waves: &[&str]) -> RolloutSpec {
    RolloutSpec { blue_green: Some(BlueGreen { group_by: "site".to_owned(), lead_ms: 500 }), ..spec(waves) }
}

fn left_out(decision: &Decision, name: &str) -> Option<String> {
    decision.waiting.iter().find_map(|waiting| {
        if let Waiting::Unsuitable { devices } = waiting { devices.get(&device(name)).cloned() } else { None }
    })
}

fn unheard(decision: &Decision, name: &str) -> Option<String> {
    decision.waiting.iter().find_map(|waiting| {
        if let Waiting::CannotBeTold { devices } = waiting { devices.get(&device(name)).cloned() } else { None }
    })
}

/// What would be signed for every device that `decision` tells something, or what its device does not know of it.
fn documents(world: &World, decision: &Decision) -> Vec<(String, Errand, Result<Assignment, BTreeSet<Feature>>)> {
    let written = |Action::Assign { device, manifest, generation }: &Action| {
        let rollout = &decision.next;
        let assignment = Assignment {
            device: device.clone(),
            rollout: rollout.id.clone(),
            manifest: *manifest,
            generation: *generation,
            issued_at_ms: 0,
            expires_ms: 1,
            watch: rollout.spec.watch,
            delivery: rollout.delivery(device),
            stage: rollout.stage(device),
            activation: rollout.activation(device),
            track: rollout.track(),
        };
        let protocol = world.fleet.devices[device].protocol();
        let written = assignment.written_for(protocol).map_err(|unknown| unknown.0);
        (device.to_string(), rollout.targets.get(device).unwrap().errand, written)
    };
    decision.actions.iter().map(written).collect()
}

#[test]
fn a_plain_canary_reaches_every_version() {
    let mut world = mixed(spec(&["1", "100%"]));
    assert_eq!(told(&world.tick(0)).len(), 1);
    assert_eq!(world.pass_wave().next.targets.len(), NAMES.len());
    assert_eq!(world.pass_wave().next.status, RolloutStatus::Completed);
}

#[test]
fn who_does_not_know_what_the_rollout_asks_is_left_out_and_told_what_to_do() {
    for (wish, what) in
        [(shadow(&["100%"]), "running a bundle beside another"), (together(&["100%"]), "waiting with the switch")]
    {
        let mut world = mixed(wish);
        let decision = world.tick(0);
        assert_eq!(told(&decision), ["a1", "a2", "b1", "b2"]);
        let why = left_out(&decision, "a0").unwrap();
        assert!(why.contains(&format!("its agent 0.0.0 does not know {what}: update the agent first")), "{why}");
    }
    // One wave that runs as shadow is enough, also where those after it serve.
    let mut first = spec(&["1", "100%"]);
    first.waves[0].stage = Some(Stage::Shadow { share_bp: 10_000 });
    let decision = mixed(first).tick(0);
    assert!(left_out(&decision, "a0").is_some() && left_out(&decision, "a1").is_none());
}

#[test]
fn who_cannot_read_the_manifest_is_left_out() {
    let mut world = mixed(spec(&["100%"]));
    world.rollout.bundle.features = [Feature::Pipeline, Feature::Card].into();
    let decision = world.tick(0);
    assert_eq!(told(&decision), ["a1", "a2", "b1", "b2"]);
    let why = left_out(&decision, "b0").unwrap();
    assert_eq!(why, "its agent 0.0.0 does not know pipelines around models, model cards: update the agent first");
    // A rollout that was stored before bundles named their features still knows what it requires.
    let mut world = mixed(spec(&["100%"]));
    world.rollout.bundle.requirements.cpu_features = ["fma".to_owned()].into();
    for name in NAMES {
        world.facts(name).attributes.insert("cpu-fma".to_owned(), "yes".to_owned());
    }
    assert_eq!(told(&world.tick(0)), ["a1", "a2", "b1", "b2"]);
}

#[test]
fn who_says_no_number_counts_by_what_only_later_agents_report() {
    let mut world = mixed(shadow(&["100%"]));
    let report = world.facts("a0").reported.as_mut().unwrap();
    report.can_hold = true;
    report.attributes.insert("disk-bytes".to_owned(), "9".to_owned());
    assert_eq!(told(&world.tick(0)), ["a0", "a1", "a2", "b1", "b2"]);
}

/// Two devices that were told to run the bundle as shadow, of which one has fallen back to an agent that knows of no such thing.
fn fallen_back(deadlines: Option<Deadlines>) -> World {
    let mut world = World::new(RolloutSpec { deadlines, ..shadow(&["100%"]) }, &["fell", "good"]);
    assert_eq!(told(&world.tick(0)), ["fell", "good"]);
    says(&mut world, "fell", 0);
    world.works("good", UpdateState::Beside);
    world.shadows("good", 200, 0);
    world
}

#[test]
fn a_wave_says_why_it_waits_for_who_fell_back_and_ends_in_its_longest_duration_undecided() {
    let mut world = fallen_back(None);
    let decision = world.tick(1);
    let why = unheard(&decision, "fell").unwrap();
    assert!(why.contains("update the agent first"), "{why}");
    assert!(left_out(&decision, "fell").is_none(), "it is in");
    let explained = decision.next.explain(&world.fleet, Some(&device("fell")), world.now_ms).device.unwrap();
    assert!(explained.doing.contains("cannot be told") && explained.doing.contains(&why), "{}", explained.doing);
    assert!(documents(&world, &decision).iter().all(|(name, _, written)| name != "fell" || written.is_err()));
    let decision = world.tick(MAX_MS);
    let verdict = last_verdict(&decision.next);
    assert_eq!((decision.next.status, verdict.outcome), (RolloutStatus::Paused, Outcome::Inconclusive));
    assert!(verdict.summary.contains("update the agent first"), "{}", verdict.summary);
}

#[test]
fn the_deadline_of_who_fell_back_runs_on() {
    let mut world = fallen_back(Some(Deadlines { in_progress_ms: Some(100_000), offline_ms: Some(200_000) }));
    let decision = world.tick(100_000);
    let late = |w: &Waiting| *w == Waiting::TimedOut { devices: vec![device("fell")] };
    assert!(decision.waiting.iter().any(late), "{:?}", decision.waiting);
    assert!(decision.next.targets.get(&device("fell")).unwrap().done_at_ms.is_none(), "silence is no success");
    // With an agent that knows it again, it is told again.
    says(&mut world, "fell", PROTOCOL);
    let decision = world.tick(1);
    assert!(unheard(&decision, "fell").is_none());
    assert!(documents(&world, &decision).iter().any(|(name, _, written)| name == "fell" && written.is_ok()));
}

#[test]
fn who_fell_back_is_taken_back_in_a_form_that_it_reads() {
    for has_taken_it_up in [false, true] {
        let mut world = mixed(RolloutSpec { delivery: DeliveryPolicy::at_once(), ..together(&["100%"]) });
        world.tick(0);
        if has_taken_it_up {
            world.works("a2", UpdateState::Verified);
            world.tick(1);
        }
        says(&mut world, "a2", 0);
        world.apply(OperatorAction::Rollback);
        let decision = world.tick(1);
        let written = documents(&world, &decision);
        let (_, errand, document) = written.iter().find(|(name, ..)| name == "a2").unwrap();
        let document = document.as_ref().unwrap();
        assert_eq!((*errand, document.manifest), (Errand::Back, Some(old())));
        assert!(reads_assignment(0, document), "{document:?}");
    }
}

#[test]
fn a_bundle_that_was_named_is_for_those_that_can_read_it() {
    let mut world = mixed(spec(&["100%"]));
    world.tick(0);
    world.all_commit();
    world.tick(1);
    let manifest = muster_shared::ids::Digest::of(b"the named one");
    let to = BundleFacts { manifest, features: [Feature::DataSchema].into(), ..world.rollout.bundle.clone() };
    world.rollout = world.rollout.roll_back_to(to, "alice", None, world.now_ms).unwrap();
    let decision = world.tick(1);
    for (name, _, document) in documents(&world, &decision) {
        let expected = if name.ends_with('0') { old() } else { manifest };
        assert_eq!(document.unwrap().manifest, Some(expected), "{name}");
    }
    assert!(left_out(&decision, "b0").unwrap().contains("does not know data schemas"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn whatever_is_signed_for_a_device_it_can_read(
        kind in 0..4u8,
        features in any::<bool>(),
        eased in any::<bool>(),
        steps in prop::collection::vec((0..6usize, 0..5u8, 0..3u32), 0..30),
    ) {
        let waves = ["2", "100%"];
        let mut wish = match kind {
            0 => shadow(&waves),
            1 => together(&waves),
            _ => spec(&waves),
        };
        if kind == 2 {
            wish.waves[0].stage = Some(Stage::Shadow { share_bp: 5_000 });
        }
        if eased {
            wish.delivery = DeliveryPolicy { ignore_quiet_hours: true, ..DeliveryPolicy::default() };
        }
        let mut world = mixed(wish);
        if features {
            world.rollout.bundle.features.insert(Feature::WideProfile);
        }
        let mut fell: BTreeSet<&str> = BTreeSet::new();
        for (at, what, number) in steps {
            let name = NAMES[at];
            match what {
                0 => {
                    fell.insert(name);
                    says(&mut world, name, number);
                }
                1 if world.rollout.apply(OperatorAction::Rollback, "alice", None, world.now_ms).is_ok() && number == 0 => {
                    world.apply(OperatorAction::Rollback);
                }
                2 if world.target(name).is_some() => world.works(name, UpdateState::Beside),
                3 if world.target(name).is_some() => world.works(name, UpdateState::Verified),
                4 => world.all_commit(),
                _ => {}
            }
            let decision = world.tick(SOAK_MS / 2);
            let manifest_needs_one = |manifest| features && manifest == Some(new());
            for (name, errand, written) in documents(&world, &decision) {
                let protocol = world.fleet.devices[&device(&name)].protocol();
                match written {
                    Ok(document) => prop_assert!(reads_assignment(protocol, &document), "{}: {:?}", name, document),
                    // Only who was taken in and fell back since cannot be told, and the way back is always told.
                    Err(unknown) => prop_assert!(
                        errand == Errand::Forward && fell.contains(name.as_str()), "{}: {:?} {:?}", name, errand, unknown
                    ),
                }
                let manifest = world.target(&name).and_then(|target| target.manifest);
                prop_assert!(!manifest_needs_one(manifest) || protocol >= 1 || fell.contains(name.as_str()), "{}", name);
            }
        }
    }
}
