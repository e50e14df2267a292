//! Devices that rollouts leave aside.

use muster_shared::messages::UpdateState;
use muster_shared::rollout::{RolloutSpec, RolloutStatus, Waiting, WaveSpec};

use super::world::{MAX_MS, World, device, spec, told, waits_for};
use crate::{OperatorAction, Violation, plan, verify};

fn unsuitable(decision: &crate::Decision, name: &str) -> Option<String> {
    decision.waiting.iter().find_map(|waiting| {
        if let Waiting::Unsuitable { devices } = waiting { devices.get(&device(name)).cloned() } else { None }
    })
}

#[test]
fn who_is_pinned_or_quarantined_is_left_out_and_said() {
    let mut world = World::new(spec(&["100%"]), &["free", "pinned", "quarantined"]);
    world.facts("pinned").pinned = Some("pinned by alice since noon".into());
    world.facts("quarantined").quarantined = Some("quarantined since noon after 3 failed updates".into());
    let decision = world.tick(0);
    assert_eq!(told(&decision), ["free"]);
    assert_eq!(unsuitable(&decision, "pinned").as_deref(), Some("pinned by alice since noon"));
    assert!(unsuitable(&decision, "quarantined").unwrap().starts_with("quarantined since noon"));
    // Who never reported is said, too.
    world.facts("pinned").reported = None;
    assert!(unsuitable(&world.tick(1), "pinned").is_some());
    world.facts("quarantined").quarantined = None;
    assert!(told(&world.tick(1)).contains(&"quarantined"));
}

#[test]
fn an_emergency_reaches_the_quarantined_and_not_the_pinned() {
    let waves = vec![WaveSpec::of("100%".parse().unwrap(), 0, MAX_MS)];
    let mut world = World::new(RolloutSpec { emergency: true, waves, ..spec(&["100%"]) }, &["pinned", "quarantined"]);
    world.facts("pinned").pinned = Some("pinned".into());
    world.facts("quarantined").quarantined = Some("quarantined".into());
    assert_eq!(told(&world.tick(0)), ["quarantined"]);
}

#[test]
fn who_is_in_stays_in_and_goes_back() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.tick(0);
    world.all_commit();
    for name in ["a", "b"] {
        world.facts(name).pinned = Some("pinned".into());
        world.facts(name).quarantined = Some("quarantined".into());
    }
    world.apply(OperatorAction::Rollback);
    assert_eq!(told(&world.tick(1)), ["a", "b"]);
}

#[test]
fn a_failure_is_noted_once_with_its_generation_though_the_device_is_sent_back_at_once() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.tick(0);
    let generation = world.target("a").unwrap().generation;
    world.fails("a", UpdateState::Reverted, "smoke");
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    assert!(world.target("a").unwrap().generation > generation);
    let [(id, note)] = &decision.notes[..] else { panic!("{:?}", decision.notes) };
    assert_eq!((id, note.generation, note.failure.as_deref()), (&device("a"), generation, Some("reverted: smoke")));
    assert!(world.tick(1).notes.is_empty());
    // The checker misses it.
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.fails("a", UpdateState::Reverted, "smoke");
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms + 1);
    decision.notes.clear();
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms + 1).unwrap_err();
    assert!(found.iter().any(|v| matches!(v, Violation::Noted { .. })), "{found:?}");
}

#[test]
fn what_went_well_is_noted_and_what_fails_after_the_end_as_well() {
    let mut world = World::new(spec(&["100%"]), &["a", "away"]);
    world.facts("away").online = false;
    world.tick(0);
    world.commits("a");
    let decision = world.tick(1);
    assert!(matches!(&decision.notes[..], [(id, note)] if *id == device("a") && note.failure.is_none()));
    world.pass_wave();
    assert_eq!(world.rollout.status, RolloutStatus::Completed);
    world.facts("away").online = true;
    world.tick(1);
    world.fails("away", UpdateState::Failed, "no room");
    let decision = world.tick(1);
    assert!(matches!(&decision.notes[..], [(id, note)] if *id == device("away") && note.failure.is_some()));
    assert!(world.tick(1).notes.is_empty());
}

#[test]
fn the_checker_finds_who_was_taken_in_and_should_not_have_been() {
    for pins in [true, false] {
        let mut world = World::new(spec(&["100%"]), &["a"]);
        let decision = plan(&world.rollout, &world.fleet, world.now_ms);
        let facts = world.facts("a");
        let why = Some("left aside".to_owned());
        (facts.pinned, facts.quarantined) = if pins { (why, None) } else { (None, why) };
        let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
        assert!(found.iter().any(|v| matches!(v, Violation::TakenIn { why, .. } if why.contains("pinned"))));
    }
    let world = World::new(spec(&["100%"]), &["a"]);
    assert!(!waits_for(&plan(&world.rollout, &world.fleet, world.now_ms), |w| matches!(w, Waiting::Unsuitable { .. })));
}
