//! The group that is held back, and who comes later.

use muster_shared::rollout::{
    GateSpec, Guardrail, Joining, Limits, Metric, Outcome, RolloutSpec, RolloutStatus, Waiting,
};

use super::world::{SOAK_MS, Served, World, device, last_verdict, names, spec, told, wave};
use crate::{OperatorAction, Violation, plan, verify};

fn holding_back(percent: &str, waves: &[&str]) -> RolloutSpec {
    RolloutSpec { holdback: Some(percent.parse().unwrap()), ..spec(waves) }
}

fn group(waiting: &[Waiting]) -> Vec<String> {
    let devices = waiting.iter().find_map(|waiting| {
        if let Waiting::HoldbackGroup { devices } = waiting {
            Some(devices.iter().map(ToString::to_string).collect())
        } else {
            None
        }
    });
    devices.unwrap_or_default()
}

#[test]
fn the_last_wave_reaches_everybody_but_the_group_which_is_the_same_for_every_rollout() {
    let mut world = World::numbered(holding_back("30%", &["2", "100%"]), 40);
    let held_back = group(&world.tick(0).waiting);
    assert!((5..=20).contains(&held_back.len()), "{held_back:?}");
    world.pass_wave();
    assert_eq!(world.rollout.current_wave, 1);
    world.pass_wave();
    assert_eq!(world.rollout.status, RolloutStatus::Completed);
    assert_eq!(world.rollout.targets.len() + held_back.len(), 40);
    assert!(held_back.iter().all(|name| world.target(name).is_none()));
    let mut other = World::numbered(holding_back("30%", &["100%"]), 40);
    other.rollout.id = "r77".parse().unwrap();
    assert_eq!(group(&other.tick(0).waiting), held_back);
    let mut smaller = World::numbered(holding_back("10%", &["100%"]), 40);
    assert!(group(&smaller.tick(0).waiting).iter().all(|name| held_back.contains(name)));
}

#[test]
fn the_group_is_what_the_last_wave_is_compared_with() {
    let gate = GateSpec {
        alpha: 0.05,
        controls: 1,
        match_on: Vec::new(),
        guardrails: vec![Guardrail::of(Metric::ErrorRate, Some(0.03))],
    };
    let limits = Limits { max_error_rate: 1.0, max_latency_p99_ratio: 100.0, ..Limits::default() };
    let mut world = World::numbered(RolloutSpec { gate: Some(gate), limits, ..holding_back("50%", &["100%"]) }, 60);
    let held_back = group(&world.tick(0).waiting);
    assert!(held_back.len() >= 20, "{held_back:?}");
    let blocks = world.rollout.waves[0].gate.clone().unwrap().blocks;
    assert!(blocks.len() >= 20, "{}", blocks.len());
    assert!(blocks.iter().flat_map(|block| &block.controls).all(|id| held_back.contains(&id.to_string())));
    world.all_commit();
    world.tick(1);
    let now_ms = world.now_ms;
    for (at, name) in names(60).iter().enumerate() {
        // Half of the canaries' requests fail.
        let errors = if world.target(name).is_some() { 50 } else { at as u64 % 3 };
        world.serves(name, Served { errors, ..Served::default() });
        world.facts(name).last_seen_ms = Some(now_ms);
    }
    assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::RollingBack);
    let verdict = last_verdict(&world.rollout);
    assert_eq!(verdict.gate.as_ref().map(|report| report.outcome), Some(Outcome::Failed));
    assert!((verdict.gate.as_ref().unwrap().alpha - 0.05).abs() < 1e-9, "the one wave there is has all of alpha");
    assert_eq!(verdict.control.devices as usize, held_back.len());
}

#[test]
fn who_comes_later_is_left_out_and_said_where_that_was_asked() {
    for joining in [Joining::Include, Joining::Exclude] {
        let mut world = World::new(
            RolloutSpec { joining, selector: "site=a".parse().unwrap(), ..spec(&["1", "100%"]) },
            &["a", "b", "moves"],
        );
        for name in ["a", "b"] {
            world.facts(name).labels.insert("site".into(), "a".into());
        }
        assert!(world.tick(0).next.meant.is_some() == (joining == Joining::Exclude));
        world.facts("moves").labels.insert("site".into(), "a".into());
        world.add("enrolled");
        world.facts("enrolled").labels.insert("site".into(), "a".into());
        world.pass_wave();
        let decision = world.tick(1);
        let later = decision.waiting.iter().find_map(|waiting| {
            if let Waiting::CameLater { devices } = waiting { Some(devices.clone()) } else { None }
        });
        let in_now: Vec<&str> = decision.next.targets.keys().map(|id| id.as_str()).collect();
        match joining {
            Joining::Include => assert_eq!((in_now, later), (vec!["a", "b", "enrolled", "moves"], None)),
            Joining::Exclude => {
                assert_eq!((in_now, later), (vec!["a", "b"], Some(vec![device("enrolled"), device("moves")])));
            }
        }
    }
}

#[test]
fn who_is_meant_is_fixed_at_the_beginning_and_not_when_it_is_asked_for() {
    let mut world = World::new(RolloutSpec { joining: Joining::Exclude, ..spec(&["100%"]) }, &["a"]);
    world.apply(OperatorAction::Pause);
    world.tick(1);
    world.add("b");
    world.apply(OperatorAction::Resume);
    assert_eq!(told(&world.tick(1)), ["a", "b"]);
}

#[test]
fn the_checker_finds_who_should_have_been_left_out() {
    let mut world = World::numbered(holding_back("30%", &["100%"]), 40);
    let free = plan(&crate::Rollout { spec: spec(&["100%"]), ..world.rollout.clone() }, &world.fleet, world.now_ms);
    let mut decision = free;
    decision.next.spec = world.rollout.spec.clone();
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
    assert!(found.iter().any(|v| matches!(v, Violation::TakenIn { why, .. } if why.contains("held back"))));
    world.tick(0);

    let mut world = World::new(RolloutSpec { joining: Joining::Exclude, ..spec(&["1", "100%"]) }, &["a", "b"]);
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
    decision.next.meant = None;
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
    assert!(found.contains(&Violation::Changed { what: "who is meant" }), "{found:?}");
    world.tick(0);
    world.add("c");
    let wide = RolloutSpec { waves: vec![wave("100%"), wave("100%")], ..world.rollout.spec.clone() };
    let open = crate::Rollout { meant: None, spec: wide, ..world.rollout.clone() };
    let mut decision = plan(&open, &world.fleet, world.now_ms + 1);
    (decision.next.meant, decision.next.spec) = (world.rollout.meant.clone(), world.rollout.spec.clone());
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms + 1).unwrap_err();
    let later = |v: &Violation| matches!(v, Violation::TakenIn { why, .. } if why.contains("came later"));
    assert!(found.iter().any(later), "{found:?}");
}
