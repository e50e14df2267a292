//! A rollout whose bundle runs beside what devices have committed.

use muster_shared::messages::{RequestCounts, UpdateState};
use muster_shared::rollout::{DeviceProgress, RolloutStatus, Waiting};
use muster_shared::sketch::LatencySketch;
use muster_shared::trust::Stage;

use super::world::{SOAK_MS, Served, World, device, last_verdict, new, old, spec, told};
use crate::{Action, Evidence, OperatorAction, verify};

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
    world.facts(name).evidence.push(Evidence {
        manifest: new(),
        generation,
        reports: 3,
        requests: RequestCounts { served: 100, failed: errors, ..RequestCounts::default() },
        latency_us,
        objectives: Default::default(),
        predictions: Default::default(),
        crashes: 0,
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
