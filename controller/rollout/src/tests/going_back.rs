//! The way back.

use muster_shared::bundle::Requirements;
use muster_shared::ids::Digest;
use muster_shared::messages::{StateReport, UpdateState};
use muster_shared::rollout::{DeviceProgress, RolloutStatus, Waiting};

use super::world::{SOAK_MS, World, device, installed, new, old, spec, told};
use crate::{Action, BundleFacts, Desired, Errand, OperatorAction, RollbackError};

/// Two that committed, one that fails at a limit of none: the rollout turns back.
fn turned(devices: &[&str]) -> World {
    let mut world = World::new(spec(&["100%"]), devices);
    world.tick(0);
    world
}

#[test]
fn everybody_goes_back_whether_it_ran_failed_or_was_never_reached() {
    let mut world = turned(&["away", "bad", "good"]);
    world.facts("away").online = false;
    world.commits("good");
    world.fails("bad", UpdateState::Reverted, "wrong answers");
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    let back = |name: &str| Action::Assign { device: device(name), manifest: Some(old()), generation: 3 };
    assert_eq!(decision.actions, ["away", "bad", "good"].map(back));
    assert_eq!(
        decision.waiting,
        [Waiting::GoingBack { done: 0, of: 2 }, Waiting::Offline { devices: vec![device("away")] }]
    );
    assert_eq!(world.progress("good"), Some(DeviceProgress::GoingBack));
    world.commits("good");
    let decision = world.tick(1);
    assert_eq!(decision.waiting[0], Waiting::GoingBack { done: 1, of: 2 });
    assert_eq!(world.progress("good"), Some(DeviceProgress::Back));
    world.commits("bad");
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RolledBack);
    assert!(decision.next.status_reason.ends_with("; 2 devices back, 1 away to follow on return"));
    assert!(decision.next.needs_planning());

    world.facts("away").online = true;
    let decision = world.tick(1);
    assert_eq!((decision.next.status, told(&decision)), (RolloutStatus::RolledBack, vec!["away"]));
    world.commits("away");
    assert!(world.tick(1).actions.is_empty());
}

#[test]
fn a_device_that_ran_nothing_runs_nothing_again() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.facts("a").reported = Some(Default::default());
    world.tick(0);
    world.commits("a");
    world.apply(OperatorAction::Rollback);
    assert_eq!(world.tick(1).actions, [Action::Assign { device: device("a"), manifest: None, generation: 2 }]);
    world.works("a", UpdateState::Idle);
    assert_eq!(world.tick(1).next.status, RolloutStatus::RollingBack, "it still runs the bundle");
    world.commits("a");
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn a_device_never_heard_of_goes_back_to_what_it_was_told_last() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.facts("a").reported = None;
    world.facts("a").desired = Some(Desired { manifest: Some(old()), generation: 4, rollout: "r0".parse().unwrap() });
    world.tick(0);
    world.apply(OperatorAction::Rollback);
    assert_eq!(world.tick(1).actions, [Action::Assign { device: device("a"), manifest: Some(old()), generation: 6 }]);
}

#[test]
fn a_devices_past_is_what_it_says_until_it_takes_up_the_bundle() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.facts("a").reported = None;
    world.facts("b").online = false;
    world.tick(0);
    assert_eq!((world.target("a").unwrap().previous, world.target("b").unwrap().previous), (None, Some(old())));
    // The one speaks for the first time; the other finishes what it was about when it went away.
    let between = Digest::of(b"between");
    for name in ["a", "b"] {
        world.report(name, |report, _| report.committed = Some(installed(between, 0)));
    }
    world.tick(1);
    assert_eq!(["a", "b"].map(|name| world.target(name).unwrap().previous), [Some(between); 2]);
    world.commits("a");
    world.tick(1);
    assert_eq!(world.target("a").unwrap().previous, Some(between));
}

#[test]
fn devices_that_had_the_bundle_before_are_left_alone() {
    let mut world = World::new(spec(&["100%"]), &["a", "has-it", "had-it"]);
    for name in ["has-it", "had-it"] {
        let report = world.facts(name).reported.as_mut().unwrap();
        report.running = Some(installed(new(), 1));
        report.committed = Some(installed(new(), 1));
    }
    // This one was about to leave it for something else, so it is told.
    world.facts("had-it").desired =
        Some(Desired { manifest: Some(Digest::of(b"else")), generation: 2, rollout: "r0".parse().unwrap() });
    assert_eq!(told(&world.tick(0)), ["a", "had-it"]);
    world.commits("a");
    world.commits("had-it");
    world.apply(OperatorAction::Rollback);
    assert_eq!(told(&world.tick(1)), ["a"]);
    assert_eq!(world.target("has-it").unwrap().errand, Errand::Keep);
    world.commits("a");
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn devices_that_a_later_rollout_has_taken_are_left_alone() {
    let mut world = World::new(spec(&["100%"]), &["a", "taken"]);
    world.tick(0);
    world.pass_wave();
    assert_eq!(world.rollout.status, RolloutStatus::Completed);
    world.facts("taken").desired =
        Some(Desired { manifest: Some(Digest::of(b"later")), generation: 3, rollout: "r2".parse().unwrap() });
    world.facts("taken").held_by = Some("r2".parse().unwrap());
    world.apply(OperatorAction::Rollback);
    assert_eq!(told(&world.tick(1)), ["a"]);
    world.commits("a");
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RolledBack);
    assert!(decision.next.status_reason.ends_with("; 1 device back"));
}

#[test]
fn a_device_that_another_rollout_took_at_the_very_same_generation_is_left_alone() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.facts("a").desired =
        Some(Desired { manifest: Some(Digest::of(b"later")), generation: 2, rollout: "r2".parse().unwrap() });
    assert!(world.tick(1).actions.is_empty());
    world.apply(OperatorAction::Rollback);
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn a_claim_of_another_rollout_does_not_keep_a_device_whose_assignment_is_ours() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.pass_wave();
    world.facts("a").held_by = Some("r2".parse().unwrap());
    world.apply(OperatorAction::Rollback);
    assert_eq!(told(&world.tick(1)), ["a"]);
}

#[test]
fn revoked_and_vanished_devices_are_not_waited_for() {
    let mut world = turned(&["gone", "revoked"]);
    world.all_commit();
    world.fleet.devices.remove(&device("gone"));
    world.facts("revoked").revoked = true;
    world.apply(OperatorAction::Rollback);
    let decision = world.tick(1);
    assert_eq!((decision.next.status, decision.actions), (RolloutStatus::RolledBack, vec![]));
}

#[test]
fn what_a_device_was_told_before_it_was_shut_out_is_known_to_be_taken_back() {
    let mut world = turned(&["back", "has-it", "revoked"]);
    world.all_commit();
    world.facts("revoked").revoked = true;
    let given = world.facts("revoked").desired.as_ref().unwrap().generation;
    assert_eq!(world.progress("revoked"), Some(DeviceProgress::Revoked));
    let way_back =
        |world: &World, name: &str, generation| world.rollout.way_back(&device(name), generation, &Default::default());
    assert_eq!(way_back(&world, "revoked", given), None, "the rollout still runs");
    world.apply(OperatorAction::Rollback);
    world.tick(1);
    assert_eq!(way_back(&world, "revoked", given), None, "it may come back in time");
    world.commits("back");
    world.commits("has-it");
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
    assert_eq!(way_back(&world, "revoked", given), Some(Some(old())));
    assert_eq!(way_back(&world, "revoked", given + 1), None, "something else was told to it since");
    assert_eq!(way_back(&world, "back", given), None, "it was taken along");
    assert_eq!(way_back(&world, "nobody", given), None);
}

#[test]
fn a_device_that_was_shut_out_follows_to_the_bundle_that_was_named() {
    let mut world = World::new(spec(&["100%"]), &["back", "has-it", "revoked"]);
    let report = world.facts("has-it").reported.as_mut().unwrap();
    report.running = Some(installed(new(), 1));
    report.committed = Some(installed(new(), 1));
    world.tick(0);
    world.all_commit();
    for name in ["has-it", "revoked"] {
        world.facts(name).revoked = true;
    }
    let given = world.facts("revoked").desired.as_ref().unwrap().generation;
    let kept = world.target("has-it").unwrap().generation;
    let named = Digest::of(b"the named one");
    let needs = Requirements { architectures: ["armv7".to_owned()].into(), ..Default::default() };
    let to = BundleFacts { manifest: named, requirements: needs, ..world.rollout.bundle.clone() };
    world.rollout = world.rollout.roll_back_to(to, "alice", None, world.now_ms).unwrap();
    for _ in 0..4 {
        world.tick(1);
        world.commits("back");
    }
    assert_eq!(world.rollout.status, RolloutStatus::RolledBack);
    let way_back = |name: &str, generation, arch: &str| {
        let attributes = [("arch".to_owned(), arch.to_owned())].into();
        let reported = StateReport { attributes, ..StateReport::default() };
        world.rollout.way_back(&device(name), generation, &reported)
    };
    assert_eq!(way_back("revoked", given, "armv7"), Some(Some(named)));
    assert_eq!(way_back("revoked", given, "x86_64"), Some(Some(old())), "it cannot run what was named");
    assert_eq!(way_back("has-it", kept, "armv7"), Some(Some(named)), "nobody keeps what is taken back");
    assert_eq!(way_back("has-it", kept, "x86_64"), None);
}

#[test]
fn a_device_that_cannot_go_back_is_told_a_few_times_and_then_named() {
    let mut world = turned(&["a", "b"]);
    world.commits("a");
    world.commits("b");
    world.apply(OperatorAction::Rollback);
    world.tick(1);
    world.commits("b");
    for _ in 0..2 {
        world.fails("a", UpdateState::Failed, "below the security floor");
        assert_eq!(told(&world.tick(1)), ["a"]);
    }
    world.fails("a", UpdateState::Failed, "below the security floor");
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RolledBack);
    assert!(decision.next.status_reason.ends_with("; 1 device back, 1 cannot go back: a"));
}

#[test]
fn a_device_that_refuses_to_go_back_and_is_back_already_is_back() {
    let mut world = turned(&["a"]);
    world.apply(OperatorAction::Rollback);
    world.tick(1);
    world.fails("a", UpdateState::Failed, "it runs that already");
    world.report("a", |report, _| report.generation = 1);
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn no_generation_is_left_for_a_device_that_claims_the_last() {
    let mut world = turned(&["a"]);
    world.commits("a");
    world.facts("a").reported.as_mut().unwrap().generation = u64::MAX;
    world.apply(OperatorAction::Rollback);
    let decision = world.tick(1);
    assert_eq!((decision.next.status, decision.actions), (RolloutStatus::RolledBack, vec![]));
}

#[test]
fn a_rollback_in_a_later_wave_takes_the_earlier_ones_back_and_touches_nobody_else() {
    let mut world = World::new(spec(&["1", "2", "100%"]), &["a", "b", "c", "d"]);
    world.tick(0);
    world.pass_wave();
    world.all_commit();
    world.tick(1);
    let second = world.first(1);
    world.fails(&second, UpdateState::Reverted, "drifted");
    let decision = world.tick(SOAK_MS);
    let mut both = [world.first(0), second];
    both.sort();
    assert_eq!(told(&decision), both);
    assert_eq!(world.rollout.view(&world.fleet, &[]).waves[2].devices.len(), 0);
}

/// The bundle `digits@0.9.0`, for devices that report the architecture `riscv64`.
fn named() -> BundleFacts {
    BundleFacts {
        manifest: Digest::of(b"the one named"),
        bundle: "digits@0.9.0".parse().unwrap(),
        requirements: Requirements { architectures: ["riscv64".to_owned()].into(), ..Requirements::default() },
        reference_predictions: Default::default(),
        track: Default::default(),
        features: Default::default(),
    }
}

#[test]
fn devices_go_back_to_a_bundle_that_is_named_if_they_can_run_it() {
    let mut world = World::new(spec(&["100%"]), &["had-it", "plain", "unfit"]);
    for name in ["had-it", "plain"] {
        world.facts(name).attributes.insert("arch".into(), "riscv64".into());
    }
    let report = world.facts("had-it").reported.as_mut().unwrap();
    report.running = Some(installed(new(), 1));
    report.committed = report.running.clone();
    world.tick(0);
    assert_eq!(world.target("had-it").unwrap().errand, Errand::Keep);
    world.commits("plain");
    world.commits("unfit");
    world.rollout = world.rollout.roll_back_to(named(), "alice", Some("smoke"), world.now_ms).unwrap();
    assert_eq!(world.rollout.status_reason, "to digits@0.9.0: rollback ordered by alice: smoke");
    let decision = world.tick(1);
    let back = |name: &str| world.target(name).unwrap().manifest;
    assert_eq!(["had-it", "plain", "unfit"].map(back), [Some(named().manifest), Some(named().manifest), Some(old())]);
    assert_eq!(told(&decision), ["had-it", "plain", "unfit"]);
    let why = decision.waiting.iter().find_map(|waiting| {
        if let Waiting::Unsuitable { devices } = waiting { devices.get(&device("unfit")).cloned() } else { None }
    });
    let why = why.unwrap();
    assert!(why.contains("digits@0.9.0") && why.contains("riscv64") && why.contains("what it ran before"), "{why}");
    for name in ["had-it", "plain", "unfit"] {
        world.commits(name);
    }
    let reason = world.tick(1).next.status_reason;
    assert_eq!(world.rollout.status, RolloutStatus::RolledBack);
    assert!(reason.ends_with("3 devices back, 1 not to digits@0.9.0 but to what they ran: unfit"), "{reason}");
}

#[test]
fn a_device_that_fails_on_the_bundle_named_goes_back_to_what_it_ran() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.facts("a").attributes.insert("arch".into(), "riscv64".into());
    world.tick(0);
    world.commits("a");
    world.rollout = world.rollout.roll_back_to(named(), "alice", None, world.now_ms).unwrap();
    world.tick(1);
    world.fails("a", UpdateState::Reverted, "wrong answers");
    world.tick(1);
    assert_eq!(world.target("a").unwrap().manifest, Some(old()));
    world.commits("a");
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn a_bundle_to_go_back_to_must_make_sense() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    let refused = |world: &World, to: BundleFacts| world.rollout.roll_back_to(to, "alice", None, 7).unwrap_err();
    let itself = BundleFacts { manifest: new(), ..named() };
    assert_eq!(refused(&world, itself), RollbackError::Itself(named().bundle));
    world.apply(OperatorAction::Rollback);
    assert!(matches!(refused(&world, named()), RollbackError::Action(_)));
    world.tick(1);
    world.apply(OperatorAction::Abort);
    assert_eq!(refused(&world, named()), RollbackError::Underway);
}
