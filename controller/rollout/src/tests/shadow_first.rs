//! A bundle that runs as shadow on the devices of the first wave before any device serves it.

use std::collections::BTreeSet;

use muster_shared::messages::{Pressure, PressureLevel, StateReport, UpdateState};
use muster_shared::protocol::PROTOCOL;
use muster_shared::rollout::{
    DeviceProgress, Freeze, GateSpec, Guardrail, Metric, Outcome, RolloutSpec, RolloutStatus, Rule, Waiting,
};
use muster_shared::trust::Stage;
use proptest::prelude::*;

use super::world::{
    MAX_MS, SOAK_MS, Served, World, broken, check, device, last_verdict, old, spec, statuses, told, waits_for,
};
use crate::{Decision, Errand, OperatorAction, RollbackError, verify};

const ALL: Stage = Stage::Shadow { share_bp: 10_000 };
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// The first of `waves` runs as shadow.
fn wish(waves: &[&str]) -> RolloutSpec {
    let mut wanted = spec(waves);
    wanted.waves[0].stage = Some(ALL);
    wanted.limits.max_disagreement = Some(0.02);
    wanted
}

fn world(waves: &[&str]) -> World {
    World::new(wish(waves), &NAMES)
}

fn shadows(world: &World) -> Vec<String> {
    world.rollout.targets.iter().filter(|(_, target)| target.beside).map(|(id, _)| id.to_string()).collect()
}

/// Everybody who was told to runs the bundle as shadow and is measured.
fn all_shadow(world: &mut World, disagreed: u64) {
    for name in shadows(world) {
        world.works(&name, UpdateState::Beside);
        world.shadows(&name, 200, disagreed);
    }
}

/// The shadow wave passes.
fn pass_shadows(world: &mut World) -> Decision {
    all_shadow(world, 2);
    world.tick(1);
    world.tick(SOAK_MS)
}

fn serving(world: &World) -> BTreeSet<String> {
    let targets = world.rollout.targets.iter();
    targets.filter(|(_, t)| t.errand == Errand::Forward && !t.beside).map(|(id, _)| id.to_string()).collect()
}

#[test]
fn devices_serve_what_they_ran_as_shadow_before_others_come_in() {
    let mut world = world(&["3", "2", "4", "100%"]);
    let first: BTreeSet<String> = told(&world.tick(0)).into_iter().map(str::to_owned).collect();
    assert_eq!(first.len(), 3);
    let one = device(first.iter().next().unwrap());
    assert_eq!(world.rollout.stage(&one), ALL);
    let generations = |world: &World| world.rollout.targets.iter().map(|(id, t)| (id.clone(), t.generation)).collect();
    let before: std::collections::BTreeMap<_, _> = generations(&world);

    let decision = pass_shadows(&mut world);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1));
    let verdict = last_verdict(&world.rollout);
    assert_eq!((verdict.outcome, verdict.canary.devices, verdict.canary.requests), (Outcome::Successful, 3, 600));
    assert_eq!(check(verdict, Rule::Disagreement).measured, Some(0.01));
    // Two of the three serve now, under new generations, and the third goes on as it was.
    let two = serving(&world);
    assert!(two.len() == 2 && two.is_subset(&first), "{two:?} of {first:?}");
    assert_eq!(told(&decision).into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), two);
    for (id, target) in &world.rollout.targets {
        let is_new = target.generation > before[id];
        assert_eq!(
            (is_new, target.wave == 1, world.rollout.stage(id) == Stage::Serve),
            (!target.beside, !target.beside, !target.beside)
        );
    }
    let third = shadows(&world).remove(0);
    assert_eq!(world.progress(&third), Some(DeviceProgress::Beside));
    let explained = world.rollout.explain(&world.fleet, Some(&device(&third)), world.now_ms);
    assert!(explained.device.unwrap().doing.contains("told to serve it with wave 3 of 4"));

    // The wave is about those that serve, and nobody else.
    for name in &two {
        world.commits(name);
        world.serves(name, Served::default());
    }
    world.shadows(&third, 500, 0);
    world.tick(1);
    assert_eq!(world.tick(SOAK_MS).next.current_wave, 2);
    let verdict = last_verdict(&world.rollout);
    assert_eq!((verdict.canary.devices, verdict.canary.requests), (2, 200));
    assert!(!verdict.checks.iter().any(|check| check.rule == Rule::Disagreement));

    // The third has its turn, and then others come in.
    assert!(shadows(&world).is_empty() && serving(&world).len() == 4 && first.is_subset(&serving(&world)));
    world.pass_wave();
    assert_eq!(world.pass_wave().next.status, RolloutStatus::Completed);
    assert!(NAMES.iter().all(|name| world.progress(name) == Some(DeviceProgress::Committed)));
}

#[test]
fn a_bundle_that_disagrees_too_often_never_serves() {
    let mut world = world(&["50%", "100%"]);
    world.tick(0);
    all_shadow(&mut world, 5);
    assert_eq!(statuses(&world.tick(1)), (RolloutStatus::RollingBack, 0));
    let verdict = last_verdict(&world.rollout);
    assert_eq!(broken(verdict), [Rule::Disagreement]);
    let said = &check(verdict, Rule::Disagreement).sentence;
    assert_eq!(said, "disagreement with the incumbent 2.50 % > 2.00 % (15 of 600 rows)");
    assert!(world.rollout.targets.values().all(|t| (t.errand, t.manifest) == (Errand::Back, Some(old()))));
    world.all_commit();
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn a_shadow_that_nobody_compares_is_inconclusive() {
    let mut world = world(&["50%", "100%"]);
    world.tick(0);
    for name in shadows(&world) {
        world.works(&name, UpdateState::Beside);
        world.shadows(&name, 200, 0);
        let generation = world.target(&name).unwrap().generation;
        let evidence = &mut world.facts(&name).evidence;
        evidence.iter_mut().filter(|e| e.generation == generation).for_each(|e| e.beside = Default::default());
    }
    world.tick(1);
    let decision = world.tick(SOAK_MS);
    let compared = |resting| Waiting::TooFewCompared { have: 0, need: 100, resting };
    assert!(waits_for(&decision, |w| *w == compared(0)), "{:?}", decision.waiting);
    // Who looks for the reason is told where it is.
    let pressed = shadows(&world).remove(0);
    let report = world.facts(&pressed).reported.as_mut().unwrap();
    report.pressure = Pressure { level: PressureLevel::Some, reason: "memory is short".to_owned() };
    let decision = world.tick(0);
    assert!(waits_for(&decision, |w| *w == compared(1)), "{:?}", decision.waiting);
    assert_eq!(statuses(&world.tick(MAX_MS)), (RolloutStatus::Paused, 0));
    let reason = &world.rollout.status_reason;
    assert!(reason.contains("0 of 100 rows compared with the incumbent; 1 device lets its shadow rest"), "{reason}");
}

#[test]
fn who_failed_as_shadow_does_not_get_to_serve() {
    let mut wanted = wish(&["3", "3", "100%"]);
    wanted.limits.max_failures = 1;
    let mut world = World::new(wanted, &NAMES);
    world.tick(0);
    let bad = shadows(&world).remove(0);
    world.fails(&bad, UpdateState::Failed, "no room");
    for name in shadows(&world).into_iter().filter(|name| *name != bad) {
        world.works(&name, UpdateState::Beside);
        world.shadows(&name, 200, 0);
    }
    world.tick(1);
    assert_eq!(world.tick(SOAK_MS).next.current_wave, 1);
    assert!(!serving(&world).contains(&bad) && serving(&world).len() == 2, "{:?}", serving(&world));
    for _ in 0..2 {
        let members: Vec<String> = serving(&world).into_iter().collect();
        for _ in 0..2 {
            for name in &members {
                world.commits(name);
                world.serves(name, Served::default());
            }
            world.tick(SOAK_MS);
        }
    }
    assert_eq!(world.rollout.status, RolloutStatus::Completed);
    assert_eq!((serving(&world).len(), world.progress(&bad)), (5, Some(DeviceProgress::Failed)));
}

#[test]
fn a_freeze_holds_who_is_to_serve_and_nobody_takes_the_place() {
    let mut world = world(&["2", "2", "100%"]);
    world.tick(0);
    let held = shadows(&world).remove(0);
    let until_ms = world.now_ms + 20 * SOAK_MS;
    world.fleet.freezes.push(Freeze {
        id: "f1".to_owned(),
        selector: format!("frozen={held}").parse().unwrap(),
        from_ms: 0,
        to_ms: until_ms,
        reason: "stocktaking".to_owned(),
        by: "alice".to_owned(),
        created_at_ms: 0,
    });
    world.facts(&held).labels.insert("frozen".to_owned(), held.clone());
    let decision = pass_shadows(&mut world);
    assert!(waits_for(&decision, |w| matches!(w, Waiting::Frozen { .. })), "{:?}", decision.waiting);
    assert_eq!((serving(&world).len(), shadows(&world)), (1, vec![held.clone()]));
    world.all_commit();
    world.works(&held, UpdateState::Beside);
    world.tick(SOAK_MS);
    assert_eq!(world.tick(SOAK_MS).next.current_wave, 1, "it waits for who is kept out");
    world.tick(until_ms - world.now_ms);
    assert_eq!((serving(&world).len(), shadows(&world).len()), (2, 0));
}

#[test]
fn a_device_with_nothing_to_run_beside_comes_in_with_a_wave_that_serves() {
    let mut world = World::new(wish(&["100%", "100%"]), &["a", "blank"]);
    world.facts("blank").reported = Some(StateReport { protocol: PROTOCOL, ..StateReport::default() });
    assert_eq!(told(&world.tick(0)), ["a"]);
    let decision = pass_shadows(&mut world);
    assert_eq!((told(&decision), world.target("blank").map(|t| t.beside)), (vec!["a", "blank"], Some(false)));
}

#[test]
fn an_abort_ends_shadows_until_devices_serve_and_a_rollback_ends_everything() {
    let mut world = world(&["2", "1", "100%"]);
    world.tick(0);
    let during = world.rollout.apply(OperatorAction::Abort, "alice", None, world.now_ms).unwrap();
    assert_eq!(during.status, RolloutStatus::RollingBack);
    pass_shadows(&mut world);
    let after = world.rollout.apply(OperatorAction::Abort, "alice", None, world.now_ms).unwrap();
    assert_eq!(after.status, RolloutStatus::Stopped, "devices keep what they have");
    let elsewhere = crate::BundleFacts { manifest: old(), ..world.rollout.bundle.clone() };
    let named = world.rollout.roll_back_to(elsewhere, "alice", None, world.now_ms);
    assert_eq!(named.unwrap_err(), RollbackError::Beside);
    world.apply(OperatorAction::Rollback);
    let decision = world.tick(1);
    assert_eq!(told(&decision).len(), 2);
    world.all_commit();
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn each_wave_is_judged_by_the_guardrails_of_its_part() {
    let names: Vec<String> = (0..40).map(|n| format!("press-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut wanted = wish(&["12", "100%"]);
    let guardrails = [(Metric::Disagreement, 0.05), (Metric::ErrorRate, 0.9)];
    wanted.gate = Some(GateSpec::of(guardrails.map(|(metric, margin)| Guardrail::of(metric, Some(margin))).to_vec()));
    let mut world = World::new(wanted, &names);
    world.tick(0);
    all_shadow(&mut world, 2);
    let soaking = world.tick(1);
    assert_eq!(soaking.next.waves[0].gate.as_ref().unwrap().blocks.len(), 12);
    let now_ms = world.now_ms;
    for (at, name) in shadows(&world).iter().enumerate() {
        world.shadows(name, 200, at as u64 % 3);
        let facts = world.facts(name);
        facts.last_seen_ms = Some(now_ms);
        facts.soak.push(facts.evidence.last().unwrap().clone());
        facts.soak.push(crate::Evidence {
            reports: 1,
            requests: muster_shared::messages::RequestCounts { served: 100, ..Default::default() },
            ..crate::Evidence::of(old(), 1)
        });
    }
    assert_eq!(world.tick(SOAK_MS).next.current_wave, 1, "{}", world.rollout.status_reason);
    let report = last_verdict(&world.rollout).gate.clone().unwrap();
    assert_eq!(
        report.guardrails.iter().map(|g| g.guardrail.metric).collect::<Vec<_>>(),
        [Metric::Disagreement, Metric::ErrorRate]
    );
    let part = world.rollout.spec.gate.as_ref().unwrap().part_for(&Stage::Serve);
    assert_eq!(part.guardrails.len(), 1);
}

#[test]
fn the_checker_knows_who_may_serve_and_when() {
    let mut world = world(&["3", "2", "100%"]);
    world.tick(0);
    all_shadow(&mut world, 2);
    world.tick(1);
    let before = world.rollout.clone();
    let fleet = world.fleet.clone();
    let good = world.tick(SOAK_MS);
    let holds = |change: &dyn Fn(&mut Decision)| {
        let mut decision = good.clone();
        change(&mut decision);
        verify(&before, &decision, &fleet, world.now_ms).is_ok()
    };
    assert!(holds(&|_| {}));
    let one = device(serving(&world).first().unwrap());
    let left = device(&shadows(&world)[0]);
    // One too many.
    assert!(!holds(&|d| {
        let target = d.next.targets.get_mut(&left).unwrap();
        (target.beside, target.wave, target.generation, target.done_at_ms) = (false, 1, target.generation + 1, None);
    }));
    // Without a new generation; as a shadow that came in later; in the shadow wave itself.
    assert!(!holds(&|d| d.next.targets.get_mut(&one).unwrap().generation -= 1));
    assert!(!holds(&|d| d.next.targets.get_mut(&one).unwrap().beside = true));
    assert!(!holds(&|d| d.next.targets.get_mut(&one).unwrap().wave = 0));
    // Disagreement that was not reported.
    assert!(!holds(&|d| d.next.current_wave = 0));
    let mut disagrees = fleet.clone();
    let generation = before.targets[&one].generation;
    let evidence = disagrees.devices.get_mut(&one).unwrap().evidence.iter_mut();
    evidence.filter(|e| e.generation == generation).for_each(|e| e.beside.disagreed = 100);
    assert!(verify(&before, &good, &disagrees, world.now_ms).is_err());
}

proptest! {
    #[test]
    fn nobody_serves_before_the_shadow_wave_has_passed(
        steps in prop::collection::vec((0usize..6, 0u8..4, any::<bool>()), 0..60),
    ) {
        let mut world = world(&["3", "2", "5", "100%"]);
        world.tick(0);
        for (at, what, online) in steps {
            let name = NAMES[at];
            world.facts(name).online = online;
            if let (Some(target), true) = (world.target(name).cloned(), online) {
                match (what, target.beside) {
                    (0 | 1, true) => {
                        world.works(name, UpdateState::Beside);
                        world.shadows(name, 200, 1);
                    }
                    (0 | 1, false) => {
                        world.commits(name);
                        world.serves(name, Served::default());
                    }
                    (2, _) => world.works(name, UpdateState::Fetching),
                    // It claims a generation of its own.
                    (_, _) => world.report(name, |report, target| report.generation = target.generation + 1),
                }
            }
            world.tick(400);
            let passed = world.rollout.verdicts.iter().any(|v| (v.wave, v.outcome) == (0, Outcome::Successful));
            prop_assert!(passed || serving(&world).is_empty());
            // Two, five, then all of them.
            let most = [0, 2, 5, 6].into_iter().nth(world.rollout.current_wave as usize).unwrap_or(6);
            prop_assert!(serving(&world).len() <= most, "{:?} serve", serving(&world));
            prop_assert!(world.rollout.targets.values().all(|t| !t.beside || t.wave == 0));
        }
    }
}
