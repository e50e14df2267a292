//! Everybody at once, held against nothing, and in whose way it is.

use muster_shared::messages::UpdateState;
use muster_shared::rollout::RolloutStatus::{Completed, Paused, RollingBack, Running, Stopped};
use muster_shared::rollout::{Outcome, RolloutSpec, Waiting, WaveSpec};
use muster_shared::trust::{DeliveryPolicy, MeteredUse};

use super::world::{MAX_MS, Served, World, device, last_verdict, spec, statuses, told, waits_for};
use crate::{OperatorAction, Rollout, Violation, plan, verify};

fn emergency() -> RolloutSpec {
    let waves = vec![WaveSpec::of("100%".parse().unwrap(), 0, MAX_MS)];
    RolloutSpec { emergency: true, waves, ..spec(&["100%"]) }
}

/// An emergency that came `later_ms` after the world began.
fn of(world: &World, later_ms: u64) -> Rollout {
    let at_ms = world.now_ms + later_ms;
    Rollout::new("r9".parse().unwrap(), emergency(), world.rollout.bundle.clone(), at_ms).unwrap()
}

#[test]
fn it_is_over_when_whoever_can_be_reached_has_committed_or_failed() {
    let mut world = World::new(emergency(), &["a", "b", "away"]);
    world.facts("away").online = false;
    assert_eq!(told(&world.tick(0)), ["a", "away", "b"]);
    world.fails("a", UpdateState::Failed, "no room");
    assert_eq!(world.tick(1).next.status, Running);
    world.commits("b");
    // Nothing but errors: no limit is looked at.
    world.serves("b", Served { errors: 100, ..Served::default() });
    assert_eq!(world.tick(1).next.status, Completed);
    let verdict = last_verdict(&world.rollout);
    assert_eq!(verdict.outcome, Outcome::Successful);
    assert!(verdict.summary.contains("held against no limit: 1 of 3 devices failed"), "{}", verdict.summary);
    assert!(world.rollout.outstanding);
    // Whoever was away is told on return.
    world.facts("away").online = true;
    assert_eq!(told(&world.tick(MAX_MS)), ["away"]);
}

#[test]
fn silence_and_failures_alone_complete_nothing() {
    for fails in [false, true] {
        let mut world = World::new(emergency(), &["a", "b"]);
        world.tick(0);
        if fails {
            world.fails("a", UpdateState::Reverted, "");
            world.fails("b", UpdateState::Reverted, "");
        }
        assert_eq!(world.tick(1).next.status, Running);
        assert_eq!(world.tick(MAX_MS).next.status, Paused);
    }
}

#[test]
fn it_goes_by_no_quiet_hours_and_any_link() {
    let mut world = World::new(emergency(), &["a"]);
    world.tick(0);
    let at_once =
        DeliveryPolicy { max_download_bytes_per_s: None, metered: MeteredUse::Allowed, ignore_quiet_hours: true };
    assert_eq!(world.rollout.delivery(&device("a")), at_once);
}

#[test]
fn it_ends_who_has_the_devices_it_wants_and_nobody_else() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    let urgent = of(&world, 1);
    let mut fleet = world.fleet.clone();
    assert!(urgent.in_the_way(&fleet).is_empty());
    for facts in fleet.devices.values_mut() {
        facts.held_by = Some(world.rollout.id.clone());
    }
    assert_eq!(urgent.in_the_way(&fleet), [world.rollout.id.clone()].into());
    let ended = world.rollout.overridden(&urgent, "controller", 7).unwrap();
    assert_eq!(ended.status, Stopped);
    assert_eq!(ended.status_reason, "stopped by controller: the emergency r9 of digits@1.2.0 takes its devices");
    assert!(!ended.holds_against(&urgent));
    // Devices that it does not mean, or that cannot run it, are in nobody's way.
    let elsewhere = RolloutSpec { selector: "site=b".parse().unwrap(), ..emergency() };
    let elsewhere = Rollout { spec: elsewhere, ..urgent.clone() };
    assert!(elsewhere.in_the_way(&fleet).is_empty());
    let mut other_kind = urgent.clone();
    other_kind.bundle.requirements.architectures.insert("armv7".into());
    assert!(other_kind.in_the_way(&fleet).is_empty());
    // One that is paused, or over, takes nobody.
    let paused = urgent.apply(OperatorAction::Pause, "alice", None, 8).unwrap();
    assert!(paused.in_the_way(&fleet).is_empty() && world.rollout.overridden(&paused, "controller", 9).is_none());
    // Nothing else is an emergency.
    assert!(urgent.overridden(&world.rollout, "controller", 9).is_none());
}

#[test]
fn who_goes_back_is_not_ended_and_lets_go() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.tick(0);
    world.all_commit();
    world.apply(OperatorAction::Rollback);
    let urgent = of(&world, 1);
    assert_eq!(world.rollout.status, RollingBack);
    assert!(world.rollout.overridden(&urgent, "controller", 7).is_none());
    assert!(!world.rollout.holds_against(&urgent));
    let ordinary = Rollout { spec: spec(&["100%"]), ..urgent };
    assert!(world.rollout.holds_against(&ordinary));
}

#[test]
fn of_two_emergencies_the_later_stays() {
    let world = World::new(emergency(), &["a"]);
    let later = of(&world, 0);
    assert!(later.overridden(&world.rollout, "controller", 7).is_none());
    assert!(world.rollout.overridden(&later, "controller", 7).is_some());
    assert!(later.overridden(&later, "controller", 7).is_none());
}

#[test]
fn the_checker_finds_who_was_left_out_and_what_turned_by_itself() {
    let mut world = World::new(emergency(), &["a", "b"]);
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
    decision.next.targets.remove(&device("b"));
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
    assert!(found.contains(&Violation::LeftOut(device("b"))), "{found:?}");
    world.tick(0);
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
    decision.next.status = RollingBack;
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
    assert!(found.iter().any(|v| matches!(v, Violation::Emergency(_))), "{found:?}");
    // One that is complete though nobody has committed.
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms + 1);
    decision.next.status = Completed;
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms + 1).unwrap_err();
    assert!(found.iter().any(|v| matches!(v, Violation::Unfounded { .. })), "{found:?}");
    assert_eq!(statuses(&world.tick(1)), (Running, 0));
}

#[test]
fn held_devices_come_as_soon_as_they_are_let_go() {
    let mut world = World::new(emergency(), &["a", "b"]);
    world.facts("b").held_by = Some("r0".parse().unwrap());
    let decision = world.tick(0);
    assert_eq!(told(&decision), ["a"]);
    assert!(waits_for(&decision, |w| matches!(w, Waiting::HeldByOtherRollout { .. })));
    world.facts("b").held_by = None;
    assert_eq!(told(&world.tick(1)), ["b", "a"].map(|name| name).iter().rev().copied().collect::<Vec<_>>());
}
