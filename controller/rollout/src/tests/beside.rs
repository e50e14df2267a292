//! A rollout whose bundle runs beside what devices have committed.

use muster_shared::ids::{Digest, RolloutId};
use muster_shared::messages::{RequestCounts, UpdateState};
use muster_shared::rollout::{DeviceProgress, RolloutStatus, Rule, Waiting};
use muster_shared::sketch::LatencySketch;
use muster_shared::trust::Stage;

use proptest::prelude::*;

use super::world::{SOAK_MS, Served, World, check, device, last_verdict, new, old, spec, told};
use crate::{Action, Desired, Evidence, OperatorAction, verify};

const FIFTH: Stage = Stage::Shadow { share_bp: 2_000 };

fn shadow(waves: &[&str], devices: &[&str]) -> World {
    let mut wanted = spec(waves);
    wanted.stage = FIFTH;
    World::new(wanted, devices)
}

/// The device runs the bundle beside its own, and both are measured.
fn runs_beside(world: &mut World, name: &str, errors: u64) {
    world.works(name, UpdateState::Beside);
    world.serves(name, Served::default());
    let generation = world.target(name).unwrap().generation;
    let mut latency_us = LatencySketch::default();
    (0..100).for_each(|_| latency_us.add(1_000));
    let mut incumbent_us = LatencySketch::default();
    (0..100).for_each(|_| incumbent_us.add(900));
    world.facts(name).evidence.push(Evidence {
        reports: 3,
        requests: RequestCounts { served: 100, failed: errors, ..RequestCounts::default() },
        latency_us,
        incumbent_us,
        ..Evidence::of(new(), generation)
    });
}

#[test]
fn devices_arrive_beside_what_they_have_and_every_wave_passes_on_the_candidates_own_requests() {
    let mut world = shadow(&["1", "100%"], &["a", "b"]);
    let first = told(&world.tick(0))[0].to_owned();
    let id = device(&first);
    assert_eq!((world.rollout.stage(&id), world.target(&first).unwrap().beside), (FIFTH, true));
    world.works(&first, UpdateState::Fetching);
    assert_eq!(world.progress(&first), Some(DeviceProgress::Updating));
    runs_beside(&mut world, &first, 0);
    assert_eq!(world.progress(&first), Some(DeviceProgress::Beside));
    world.tick(1);
    assert_eq!(world.tick(SOAK_MS).next.current_wave, 1);
    let verdict = last_verdict(&world.rollout);
    assert_eq!((verdict.canary.requests, verdict.canary.devices), (100, 1));
    // Its own incumbent is what it is held against, beside the device that has not been reached.
    assert_eq!((verdict.control.devices, verdict.control.requests), (2, 100));
    for name in ["a", "b"] {
        runs_beside(&mut world, name, 0);
    }
    world.tick(1);
    assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::Completed);
    // Nothing was committed, so nobody is said to have.
    assert!(["a", "b"].iter().all(|name| world.progress(name) == Some(DeviceProgress::Beside)));
    assert!(world.tick(1).actions.is_empty(), "shadows go on");
}

#[test]
fn a_device_that_is_its_own_control_is_one_device() {
    for (devices, said) in [(&["a"][..], "1 device is too few"), (&["a", "b"], "2 devices are too few")] {
        let mut world = shadow(&["100%"], devices);
        world.tick(0);
        for name in devices {
            runs_beside(&mut world, name, 0);
            let facts = world.facts(name);
            let own = facts.committed().unwrap();
            // Of the incumbent there is no report, so nothing is compared.
            facts.evidence.retain(|evidence| evidence.manifest != own);
        }
        world.tick(1);
        assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::Completed);
        let verdict = last_verdict(&world.rollout);
        assert_eq!(verdict.control.devices as usize, devices.len());
        assert!(verdict.summary.contains(&format!("limits only: {said} to compare; ")), "{}", verdict.summary);
    }
}

#[test]
fn a_rollback_ends_what_runs_beside() {
    let mut world = shadow(&["100%"], &["a"]);
    world.tick(0);
    runs_beside(&mut world, "a", 0);
    world.tick(1);
    world.apply(OperatorAction::Rollback);
    let decision = world.tick(1);
    assert_eq!(decision.actions, [Action::Assign { device: device("a"), manifest: Some(old()), generation: 3 }]);
    assert_eq!(world.rollout.stage(&device("a")), Stage::Serve);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack, "it still runs beside");
    world.commits("a");
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn an_abort_ends_what_runs_beside_and_a_pause_does_not() {
    let mut world = shadow(&["1", "100%"], &["a", "b"]);
    let first = told(&world.tick(0))[0].to_owned();
    runs_beside(&mut world, &first, 0);
    world.apply(OperatorAction::Pause);
    assert!(world.tick(1).actions.is_empty(), "what runs beside runs on");
    assert_eq!(world.progress(&first), Some(DeviceProgress::Beside));
    world.apply(OperatorAction::Abort);
    let decision = world.tick(1);
    assert_eq!(decision.actions, [Action::Assign { device: device(&first), manifest: Some(old()), generation: 3 }]);
    assert_eq!(world.rollout.stage(&device(&first)), Stage::Serve);
    assert!(decision.next.status_reason.starts_with("stopped by alice"), "{}", decision.next.status_reason);
    world.commits(&first);
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
    assert_eq!(world.rollout.targets.len(), 1, "nobody else hears of it");
}

#[test]
fn an_abort_while_shadows_end_waits_no_longer() {
    let mut world = shadow(&["100%"], &["a"]);
    world.tick(0);
    runs_beside(&mut world, "a", 0);
    world.apply(OperatorAction::Abort);
    world.tick(1);
    world.apply(OperatorAction::Abort);
    assert_eq!((world.rollout.status, world.tick(1).actions.len()), (RolloutStatus::Stopped, 0));
    // Before anybody was told there is nothing to end.
    let mut world = shadow(&["100%"], &["a"]);
    world.apply(OperatorAction::Abort);
    assert_eq!(world.rollout.status, RolloutStatus::Stopped);
}

#[test]
fn a_device_that_another_rollout_has_taken_is_not_told_again() {
    let mut world = shadow(&["100%"], &["a"]);
    world.tick(0);
    runs_beside(&mut world, "a", 0);
    world.tick(1);
    world.tick(SOAK_MS);
    assert_eq!(world.rollout.status, RolloutStatus::Completed);
    // The other rollout's assignment ends the shadow on the device, whatever it brings.
    world.facts("a").desired =
        Some(Desired { manifest: Some(Digest::of(b"a third")), generation: 7, rollout: RolloutId::new("r2").unwrap() });
    for action in [None, Some(OperatorAction::Rollback)] {
        action.into_iter().for_each(|action| world.apply(action));
        assert!(world.tick(1).actions.is_empty());
    }
}

#[test]
fn a_shadows_time_is_held_against_its_incumbents_for_the_same_requests() {
    for (incumbent_us, status, ratio) in [
        (900, RolloutStatus::Completed, 1.11),
        // The incumbent's requests took 2 ms each, reading and writing included: against these, it would pass.
        (200, RolloutStatus::RollingBack, 5.0),
    ] {
        let mut world = shadow(&["100%"], &["a"]);
        world.rollout.spec.limits.max_latency_p99_ratio = 2.0;
        world.tick(0);
        runs_beside(&mut world, "a", 0);
        let shadowed = world.facts("a").evidence.last_mut().unwrap();
        shadowed.incumbent_us = LatencySketch::default();
        (0..100).for_each(|_| shadowed.incumbent_us.add(incumbent_us));
        world.tick(1);
        if world.rollout.status == RolloutStatus::Running {
            world.tick(SOAK_MS);
        }
        assert_eq!(world.rollout.status, status);
        let check = check(last_verdict(&world.rollout), Rule::LatencyP99Ratio);
        // Within what the sketches round.
        assert!((check.measured.unwrap() / ratio - 1.0_f64).abs() < 0.1, "{check:?}");
        assert!(check.sentence.contains("the incumbent's for the same requests"), "{}", check.sentence);
        assert_eq!((check.canary_samples, check.control_samples), (100, 100));
    }
}

proptest! {
    /// Whatever operators and devices do: once a rollout of shadows is taken back or stopped, nobody is told to run anything beside
    /// another, and no device that can be reached runs it on when the rollout says that all are back.
    #[test]
    fn nobody_runs_a_shadow_of_a_rollout_that_was_taken_back(
        steps in prop::collection::vec((0usize..3, 0u8..5, any::<bool>()), 1..40),
        by_abort: bool,
    ) {
        let names = ["a", "b", "c"];
        let mut world = shadow(&["1", "100%"], &names);
        world.tick(0);
        let step = |world: &mut World, (at, what, online): (usize, u8, bool)| {
            let name = names[at];
            world.facts(name).online = online;
            let told = world.facts(name).desired.clone();
            if let (Some(target), Some(_), true) = (world.target(name).cloned(), told, online) {
                match (what, target.beside) {
                    (0, true) => runs_beside(world, name, 0),
                    (1, true) => world.works(name, UpdateState::Fetching),
                    (_, false) => world.commits(name),
                    (_, true) => {}
                }
            }
            world.tick(200)
        };
        let (before, after) = steps.split_at(steps.len() / 2);
        for one in before {
            step(&mut world, *one);
        }
        let action = if by_abort { OperatorAction::Abort } else { OperatorAction::Rollback };
        if world.rollout.apply(action, "alice", None, world.now_ms).is_ok() {
            world.apply(action);
        }
        let is_over = matches!(world.rollout.status, RolloutStatus::RollingBack | RolloutStatus::Stopped);
        prop_assert!(is_over || world.rollout.status == RolloutStatus::Completed);
        if world.rollout.status == RolloutStatus::Completed {
            world.apply(OperatorAction::Rollback);
        }
        for one in after.iter().copied().chain((0..3).map(|at| (at, 0, true))).chain((0..3).map(|at| (at, 0, true))) {
            let decision = step(&mut world, one);
            for Action::Assign { device, manifest, .. } in &decision.actions {
                prop_assert_eq!((world.rollout.stage(device), *manifest), (Stage::Serve, Some(old())));
            }
        }
        prop_assert!(world.rollout.status.is_terminal(), "{:?}", world.rollout.status);
        for name in names {
            let beside = world.facts(name).reported.as_ref().unwrap().update.state == UpdateState::Beside;
            prop_assert!(!beside, "{} runs it on", name);
        }
    }
}

#[test]
fn a_candidate_that_fails_too_often_is_taken_back() {
    let mut world = shadow(&["100%"], &["a"]);
    world.tick(0);
    runs_beside(&mut world, "a", 50);
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    assert!(last_verdict(&world.rollout).summary.contains("error rate"));
}

#[test]
fn a_device_with_nothing_to_run_beside_is_left_out() {
    let mut world = shadow(&["100%"], &["a", "blank"]);
    world.facts("blank").reported = Some(Default::default());
    let decision = world.tick(0);
    assert_eq!(told(&decision), ["a"]);
    let left_out = |waiting: &Waiting| matches!(waiting, Waiting::Unsuitable { devices } if devices.contains_key(&device("blank")));
    assert!(decision.waiting.iter().any(left_out), "{:?}", decision.waiting);
}

#[test]
fn beside_is_nothing_to_a_rollout_that_wants_a_bundle_to_serve() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    runs_beside(&mut world, "a", 0);
    world.tick(1);
    world.tick(SOAK_MS);
    assert_eq!((world.rollout.status, world.progress("a")), (RolloutStatus::Running, Some(DeviceProgress::Updating)));
}

#[test]
fn the_checker_knows_who_may_run_a_bundle_beside_another() {
    let mut world = shadow(&["100%"], &["a"]);
    let before = world.rollout.clone();
    let good = world.tick(0);
    let holds = |change: &dyn Fn(&mut crate::Decision, &mut crate::Fleet)| {
        let (mut decision, mut fleet) = (good.clone(), world.fleet.clone());
        fleet.devices.get_mut(&device("a")).unwrap().desired = None;
        change(&mut decision, &mut fleet);
        verify(&before, &decision, &fleet, world.now_ms).is_ok()
    };
    assert!(holds(&|_, _| {}));
    assert!(!holds(&|decision, _| decision.next.targets.get_mut(&device("a")).unwrap().beside = false));
    assert!(!holds(&|_, fleet| {
        fleet.devices.get_mut(&device("a")).unwrap().reported.as_mut().unwrap().committed = None;
    }));
}
