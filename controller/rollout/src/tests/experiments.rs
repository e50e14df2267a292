//! A bundle that must be shown to be better before it goes on.

use muster_shared::rollout::{Guardrail, Metric, Outcome, RolloutSpec, RolloutStatus, Rule};

use super::gate::{gated, soaks};
use super::world::{MAX_MS, SOAK_MS, World, broken, last_verdict};
use crate::{Decision, OperatorAction, Violation, plan, verify};

/// Fewer errors are what it must show, by `gain`; slow requests only must not become many more.
fn experiment(waves: &[&str], gain: f64) -> RolloutSpec {
    let slow = Guardrail { above_us: Some(1_000_000), ..Guardrail::of(Metric::LatencyShare, Some(0.5)) };
    gated(waves, &[Guardrail::of(Metric::ErrorRate, Some(gain)), slow])
}

/// The wave after its horizon, canaries and controls with so many errors of a hundred and up to two more.
fn at_the_horizon(wave: &str, devices: u32, gain: f64, canary: u64, control: u64) -> (World, Decision) {
    let mut world = World::numbered(experiment(&[wave, "100%"], gain), devices);
    world.tick(0);
    soaks(&mut world, |at| canary + at as u64 % 3, |at| control + at as u64 % 3);
    let decision = world.tick(SOAK_MS);
    (world, decision)
}

#[test]
fn a_bundle_that_is_better_goes_on_and_the_waves_after_it_only_keep_their_margins() {
    let (mut world, decision) = at_the_horizon("20", 40, 0.0, 0, 8);
    assert_eq!(decision.next.current_wave, 1);
    let summary = last_verdict(&world.rollout).summary.clone();
    assert!(summary.contains("error-rate -8.00 points over 20 blocks, better: at most -7."), "{summary}");
    world.all_commit();
    world.tick(1);
    world.all_commit();
    assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::Completed);
    let asked = world.rollout.waves[1].gate.as_ref().and_then(|gate| gate.judged.as_ref()).map(|judged| &judged.gate);
    assert_eq!(asked.map(|gate| gate.guardrails.len()), Some(1), "the gain was shown, and is not asked for again");
}

#[test]
fn a_bundle_that_is_no_better_pauses_and_people_decide() {
    for (gain, canary, control) in [(0.0, 4, 4), (-0.05, 4, 8)] {
        let (mut world, decision) = at_the_horizon("20", 40, gain, canary, control);
        assert_eq!((decision.next.status, decision.next.current_wave), (RolloutStatus::Paused, 0), "{gain}");
        let summary = last_verdict(&world.rollout).summary.clone();
        assert!(summary.contains("not shown to be better"), "{summary}");
        assert!(summary.contains("no number of canaries like these would show it"), "{summary}");
        // More hours of the same devices say no more.
        assert_eq!(world.tick(MAX_MS).next.status, RolloutStatus::Paused);
        world.apply(OperatorAction::Resume);
        assert_eq!(world.tick(1).next.current_wave, 1);
        assert!(last_verdict(&world.rollout).summary.contains("as alice decided"));
    }
}

#[test]
fn a_bundle_that_is_worse_goes_back() {
    let (world, decision) = at_the_horizon("20", 40, 0.0, 8, 0);
    let verdict = last_verdict(&world.rollout);
    assert_eq!((decision.next.status, broken(verdict)), (RolloutStatus::RollingBack, vec![Rule::Gate]));
    assert!(verdict.summary.contains("evidence of a loss"), "{}", verdict.summary);
}

#[test]
fn too_few_devices_show_nothing_and_never_promote() {
    let (world, decision) = at_the_horizon("9", 40, 0.0, 0, 8);
    assert_eq!((decision.next.status, decision.next.current_wave), (RolloutStatus::Paused, 0));
    let verdict = last_verdict(&world.rollout);
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
    assert!(verdict.summary.contains("10 needed to show anything"), "{}", verdict.summary);
}

#[test]
fn nothing_is_concluded_before_the_horizon() {
    let mut world = World::numbered(experiment(&["20", "100%"], 0.0), 40);
    world.tick(0);
    soaks(&mut world, |_| 0, |_| 8);
    for _ in 0..4 {
        let decision = world.tick(SOAK_MS / 5);
        assert_eq!(
            (decision.next.current_wave, decision.next.waves[0].gate.as_ref().unwrap().judged.is_some()),
            (0, false)
        );
    }
}

#[test]
fn the_checker_knows_what_an_experiment_must_show() {
    let mut few = World::numbered(experiment(&["9", "100%"], 0.0), 40);
    few.tick(0);
    soaks(&mut few, |_| 0, |at| 8 + at as u64 % 3);
    few.now_ms += SOAK_MS;
    let decision = plan(&few.rollout, &few.fleet, few.now_ms);
    let faults = |spoil: &dyn Fn(&mut Decision)| {
        let mut decision = decision.clone();
        spoil(&mut decision);
        let found = verify(&few.rollout, &decision, &few.fleet, few.now_ms).err().unwrap_or_default();
        found.iter().filter(|violation| matches!(violation, Violation::Gate { .. })).count()
    };
    assert_eq!(faults(&|_| {}), 0);
    let gate = |decision: &mut Decision| decision.next.waves[0].gate.clone().unwrap();
    // It goes on as a wave does that rests on its limits.
    assert!(faults(&|d| (d.next.status, d.next.current_wave) = (RolloutStatus::Running, 1)) > 0);
    // It forgets what was to be shown.
    assert!(
        faults(&|d| {
            let mut dealt = gate(d);
            dealt.judged.as_mut().unwrap().gate.guardrails.remove(0);
            d.next.waves[0].gate = Some(dealt);
        }) > 0
    );
}
