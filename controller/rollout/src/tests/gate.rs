//! A rollout whose waves are compared with devices like theirs.

use std::collections::BTreeMap;

use muster_shared::rollout::{
    Block, GateReport, GateSpec, Guardrail, Limits, Metric, Outcome, RolloutSpec, RolloutStatus, Rule, ScoreRange,
    Waiting,
};
use muster_shared::trust::Stage;

use super::world::{MAX_MS, SOAK_MS, Served, World, broken, check, device, last_verdict, names, spec, waits_for};
use crate::{Mean, OperatorAction, Violation, plan, verify};

fn guardrail(metric: Metric, margin: Option<f64>) -> Guardrail {
    Guardrail::of(metric, margin)
}

pub(super) fn gated(waves: &[&str], guardrails: &[Guardrail]) -> RolloutSpec {
    let gate = GateSpec { alpha: 0.05, controls: 1, match_on: Vec::new(), guardrails: guardrails.to_vec() };
    // The gate is what is looked at here.
    let limits = Limits { max_error_rate: 1.0, max_latency_p99_ratio: 100.0, max_failures: 100, ..Limits::default() };
    RolloutSpec { gate: Some(gate), limits, ..spec(waves) }
}

/// Everybody commits and reports; the soak begins, and then everybody serves with so many errors of a hundred: canaries by their place, controls by
/// theirs.
pub(super) fn soaks(world: &mut World, canary: impl Fn(usize) -> u64, control: impl Fn(usize) -> u64) {
    let cohort: Vec<String> = world.cohort(world.rollout.current_wave).iter().map(ToString::to_string).collect();
    cohort.iter().for_each(|name| {
        world.commits(name);
        world.serves(name, Served::default());
    });
    world.tick(1);
    assert!(world.rollout.scored_since_ms().is_some(), "the soak has begun");
    let now_ms = world.now_ms;
    let all: Vec<String> = world.fleet.devices.keys().map(ToString::to_string).collect();
    let (mut canaries, mut controls) = (0, 0);
    for name in all {
        let errors = if world.rollout.takes_part(&device(&name)) {
            canaries += 1;
            canary(canaries - 1)
        } else {
            controls += 1;
            control(controls - 1)
        };
        world.serves(&name, Served { errors, ..Served::default() });
        world.facts(&name).last_seen_ms = Some(now_ms);
    }
}

fn blocks(world: &World) -> Vec<Block<muster_shared::ids::DeviceId>> {
    world.rollout.waves[world.rollout.current_wave as usize].gate.as_ref().unwrap().blocks.clone()
}

const ERRORS: &[Guardrail] = &[Guardrail::of(Metric::ErrorRate, Some(0.03))];

#[test]
fn a_crash_is_the_worst_on_either_side() {
    let mut world = World::numbered(gated(&["20", "100%"], ERRORS), 40);
    world.tick(0);
    let block = blocks(&world).remove(0);
    soaks(&mut world, |_| 1, |_| 1);
    for crashed in [&block.canary, &block.controls[0]] {
        world.facts(crashed.as_str()).soak.last_mut().unwrap().crashes = 1;
    }
    world.tick(SOAK_MS);
    let judged = world.rollout.waves[0].gate.as_ref().unwrap().judged.clone().unwrap();
    let scored = judged.blocks.iter().find(|scored| scored.canary.device == block.canary).unwrap();
    assert_eq!((&scored.canary.scores[..], &scored.controls[0].scores[..]), (&[Some(1.0)][..], &[Some(1.0)][..]));
}

#[test]
fn a_wave_passes_when_its_canaries_are_shown_to_be_no_worse() {
    let mut world = World::numbered(gated(&["20", "100%"], ERRORS), 40);
    world.tick(0);
    let dealt = blocks(&world);
    assert_eq!(dealt.len(), 20, "every canary has a control");
    assert!(dealt.iter().all(|block| block.controls.len() == 1 && !world.rollout.takes_part(&block.controls[0])));
    soaks(&mut world, |at| at as u64 % 3, |at| at as u64 % 3);
    let decision = world.tick(SOAK_MS);
    assert_eq!(decision.next.current_wave, 1);
    let verdict = last_verdict(&world.rollout);
    let report = verdict.gate.clone().unwrap();
    assert_eq!((report.outcome, report.blocks, report.limits_only), (Outcome::Successful, 20, false));
    assert!((report.alpha - 0.05).abs() < 1e-9, "the one wave that leaves controls has all of it");
    assert_eq!(report.alpha_left, Some(0.0));
    assert!(
        verdict.summary.contains("wave 1 passed: canaries are not worse than allowed: error-rate"),
        "{}",
        verdict.summary
    );
    assert!(verdict.summary.contains("over 20 blocks, at most"), "{}", verdict.summary);
    // The last one leaves nobody to compare with.
    world.all_commit();
    world.tick(1);
    world.all_commit();
    assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::Completed);
    let last = last_verdict(&world.rollout);
    assert!(last.gate.as_ref().unwrap().limits_only);
    assert!(last.summary.contains("limits only"), "{}", last.summary);
}

#[test]
fn canaries_that_are_worse_go_back() {
    let mut world = World::numbered(gated(&["20", "100%"], ERRORS), 40);
    world.tick(0);
    soaks(&mut world, |at| 8 + at as u64 % 5, |at| at as u64 % 5);
    let decision = world.tick(SOAK_MS);
    assert_eq!(
        (decision.next.status, broken(last_verdict(&world.rollout))),
        (RolloutStatus::RollingBack, vec![Rule::Gate])
    );
    let verdict = last_verdict(&world.rollout);
    assert!(verdict.summary.contains("canaries are worse than their controls, evidence"), "{}", verdict.summary);
    assert!(verdict.summary.contains("where 20.0 to 1 is enough: error-rate +8"), "{}", verdict.summary);
    let evidence = world.rollout.gate_evidence().next().unwrap();
    let again = crate::judge(&evidence.gate, evidence.alpha, &evidence.blocks, evidence.dealt, None);
    assert_eq!(GateReport { alpha_left: Some(0.0), ..again }, evidence.report);
}

#[test]
fn what_a_wave_leaves_of_alpha_stands_in_its_report() {
    let mut world = World::numbered(gated(&["12", "24", "36", "100%"], ERRORS), 80);
    world.tick(0);
    soaks(&mut world, |_| 5, |_| 5);
    world.tick(SOAK_MS);
    let report = world.rollout.gate_evidence().next().unwrap().report.clone();
    // Three waves leave controls: the first has 1 of 1 + 1/4 + 1/9 parts.
    let part = 0.05 * 36.0 / 49.0;
    assert!(
        (report.alpha - part).abs() < 1e-12 && (report.alpha_left.unwrap() - (0.05 - part)).abs() < 1e-12,
        "{report:?}"
    );
}

#[test]
fn what_shows_neither_pauses_and_people_decide() {
    let mut world = World::numbered(gated(&["12", "100%"], ERRORS), 40);
    world.tick(0);
    soaks(&mut world, |at| 2 + at as u64 % 7, |at| at as u64 % 7);
    let decision = world.tick(SOAK_MS);
    assert_eq!(decision.next.status, RolloutStatus::Paused);
    let verdict = last_verdict(&world.rollout);
    assert_eq!((verdict.outcome, check(verdict, Rule::Gate).outcome), (Outcome::Inconclusive, Outcome::Inconclusive));
    assert!(verdict.summary.contains("more canaries like these would tell, or a margin of"), "{}", verdict.summary);
    // More time says no more about these devices.
    for _ in 0..3 {
        assert_eq!(world.tick(MAX_MS).next.status, RolloutStatus::Paused);
    }
    world.apply(OperatorAction::Resume);
    let decision = world.tick(1);
    assert_eq!(decision.next.current_wave, 1);
    let verdict = last_verdict(&world.rollout);
    assert!(verdict.summary.contains("wave 1 passed, as alice decided: it is not shown"), "{}", verdict.summary);
}

#[test]
fn too_few_to_compare_rest_on_limits_and_still_go_back() {
    let mut world = World::numbered(gated(&["9", "100%"], ERRORS), 40);
    world.tick(0);
    soaks(&mut world, |_| 0, |_| 0);
    assert_eq!(world.tick(SOAK_MS).next.current_wave, 1);
    assert!(last_verdict(&world.rollout).summary.contains("limits only"), "{}", last_verdict(&world.rollout).summary);

    let mut world = World::numbered(gated(&["9", "100%"], ERRORS), 40);
    world.tick(0);
    soaks(&mut world, |at| 60 + at as u64, |at| at as u64 % 2);
    assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::RollingBack);
}

#[test]
fn nobody_is_judged_before_everybody_has_reported_or_time_is_up() {
    let silence = |silent_canary: bool| {
        let mut world = World::numbered(gated(&["12", "100%"], ERRORS), 40);
        world.tick(0);
        soaks(&mut world, |_| 1, |_| 1);
        let block = blocks(&world)[0].clone();
        let who = if silent_canary { &block.canary } else { &block.controls[0] }.to_string();
        world.facts(&who).last_seen_ms = Some(0);
        let decision = world.tick(SOAK_MS);
        assert!(waits_for(&decision, |w| matches!(w, Waiting::Unscored { devices } if devices == &[device(&who)])));
        world.tick(MAX_MS)
    };
    // A canary that falls silent scores worst, so it takes more than one such wave to show anything.
    let decision = silence(true);
    assert_eq!(decision.next.status, RolloutStatus::Paused);
    let evidence = decision.next.gate_evidence().next().unwrap();
    assert_eq!(evidence.blocks[0].canary.scores, [Some(1.0)]);
    // A silent control says nothing for the bundle: eleven blocks are left to show that it is no worse.
    let decision = silence(false);
    assert_eq!(decision.next.current_wave, 1);
    assert_eq!(decision.next.verdicts[0].gate.as_ref().unwrap().guardrails[0].blocks, 11);
}

#[test]
fn silence_on_both_sides_promotes_nobody() {
    let mut world = World::numbered(gated(&["12", "100%"], ERRORS), 40);
    world.tick(0);
    soaks(&mut world, |_| 0, |_| 0);
    world.fleet.devices.values_mut().for_each(|facts| facts.soak.clear());
    assert!(waits_for(&world.tick(SOAK_MS), |w| matches!(w, Waiting::Unscored { devices } if devices.len() == 24)));
    let decision = world.tick(MAX_MS);
    assert_eq!(decision.next.status, RolloutStatus::Paused);
    assert!(
        last_verdict(&world.rollout).summary.contains("nothing to compare"),
        "{}",
        last_verdict(&world.rollout).summary
    );
}

#[test]
fn blocks_share_what_was_asked_for_and_only_hold_who_was_there() {
    let mut wanted = gated(&["10", "100%"], ERRORS);
    wanted.gate.as_mut().unwrap().match_on = vec!["site".into()];
    wanted.gate.as_mut().unwrap().controls = 3;
    let mut world = World::numbered(wanted, 60);
    for (at, name) in names(60).iter().enumerate() {
        let facts = world.facts(name);
        facts.labels.insert("site".into(), ["lyon", "oslo", "kyoto"][at % 3].into());
        facts.online = at % 5 > 0;
    }
    world.tick(0);
    let site = |id| world.fleet.devices[id].labels["site"].clone();
    let dealt = blocks(&world);
    assert!(!dealt.is_empty());
    for block in &dealt {
        assert!((1..=3).contains(&block.controls.len()));
        for control in &block.controls {
            assert_eq!(site(control), site(&block.canary));
            assert!(world.fleet.devices[control].online && world.fleet.devices[&block.canary].online);
        }
    }
}

#[test]
fn a_shadow_is_compared_with_its_own_device() {
    let disagreement = guardrail(Metric::Disagreement, Some(0.2));
    let mut wanted = gated(&["100%"], &[ERRORS[0].clone(), disagreement]);
    wanted.stage = Stage::Shadow { share_bp: 10_000 };
    let mut world = World::numbered(wanted, 12);
    world.tick(0);
    assert!(blocks(&world).iter().all(|block| block.controls == [block.canary.clone()]));
    let serve = |world: &mut World, name: &str, disagreed: u64| {
        world.works(name, muster_shared::messages::UpdateState::Beside);
        let target = world.target(name).unwrap().clone();
        world.serves(name, Served::default());
        let now_ms = world.now_ms;
        let facts = world.facts(name);
        facts.last_seen_ms = Some(now_ms);
        for list in [&mut facts.evidence, &mut facts.soak] {
            let Some(mut own) = list.last().cloned() else { continue };
            (own.manifest, own.generation) = (target.manifest.unwrap(), target.generation);
            (own.beside.agreed, own.beside.disagreed) = (100 - disagreed, disagreed);
            list.push(own);
        }
    };
    for round in 0..2 {
        names(12).iter().enumerate().for_each(|(at, name)| serve(&mut world, name, 5 + at as u64 % 3));
        world.tick(if round == 0 { 1 } else { SOAK_MS });
    }
    assert_eq!(world.rollout.status, RolloutStatus::Completed, "{:?}", world.rollout.status_reason);
    let report = last_verdict(&world.rollout).gate.clone().unwrap();
    let disagreed = &report.guardrails[1];
    assert_eq!((disagreed.log_e, disagreed.blocks), (0.0, 12), "other answers are no loss by themselves");
    assert!((disagreed.mean_difference.unwrap() - 0.06).abs() < 1e-9);
}

#[test]
fn the_checker_finds_a_forged_comparison() {
    let mut world = World::numbered(gated(&["12", "100%"], ERRORS), 40);
    world.tick(0);
    soaks(&mut world, |at| 2 + at as u64 % 7, |at| at as u64 % 7);
    world.now_ms += SOAK_MS;
    let spoilt = |spoil: &dyn Fn(&mut crate::Decision)| {
        let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
        assert_eq!(verify(&world.rollout, &decision, &world.fleet, world.now_ms), Ok(()));
        spoil(&mut decision);
        let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
        found.iter().filter(|violation| matches!(violation, Violation::Gate { .. })).count()
    };
    fn gate(decision: &mut crate::Decision) -> &mut crate::GateState {
        decision.next.waves[0].gate.as_mut().unwrap()
    }
    assert!(spoilt(&|d| gate(d).judged.as_mut().unwrap().report.outcome = Outcome::Successful) > 0);
    assert!(spoilt(&|d| gate(d).judged.as_mut().unwrap().report.log_e = 5.0) > 0);
    assert!(spoilt(&|d| gate(d).judged.as_mut().unwrap().alpha = 0.5) > 0);
    assert!(spoilt(&|d| gate(d).judged.as_mut().unwrap().report.alpha_left = Some(0.01)) > 0);
    assert!(spoilt(&|d| gate(d).judged.as_mut().unwrap().blocks[0].canary.scores[0] = Some(0.0)) > 0);
    assert!(spoilt(&|d| gate(d).waived_by = Some("nobody".into())) > 0);
    assert!(spoilt(&|d| gate(d).blocks.swap(0, 1)) > 0);
    assert!(spoilt(&|d| d.next.waves[0].gate = None) > 0);
}

#[test]
fn canaries_that_are_worse_by_what_applications_send_go_back() {
    let name = || muster_shared::ids::MetricName::new("yield").unwrap();
    let range = Some(ScoreRange { best: 100.0, worst: 80.0 });
    let yields = Guardrail { name: Some(name()), range, ..guardrail(Metric::Custom, Some(0.2)) };
    let range = Some(ScoreRange { best: 1e6, worst: 2e6 });
    let memory = Guardrail { range, ..guardrail(Metric::Memory, Some(0.2)) };
    let run = |canaries: f64, heard: bool| {
        let mut world = World::numbered(gated(&["20", "100%"], &[yields.clone(), memory.clone()]), 40);
        world.tick(0);
        soaks(&mut world, |_| 0, |_| 0);
        let targets: Vec<_> = world.rollout.targets.keys().cloned().collect();
        for (at, (id, facts)) in world.fleet.devices.iter_mut().enumerate() {
            let is_canary = targets.contains(id);
            for own in facts.soak.iter_mut() {
                let mean = if is_canary { canaries } else { 95.0 } + at as f64 % 3.0;
                // In two reports of unlike size.
                own.memory = Mean::of(2, 1.2e6 + at as f64);
                if heard || !is_canary {
                    own.numbers.insert(name(), Mean::of(3, mean));
                }
            }
        }
        world
    };
    let mut world = run(89.0, true);
    let decision = world.tick(SOAK_MS);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    let report = last_verdict(&world.rollout).gate.clone().unwrap();
    assert!((report.guardrails[0].mean_difference.unwrap() - 0.3).abs() < 0.05, "{report:?}");
    assert!(report.sentence.contains("yield from 100 to 80 +"), "{}", report.sentence);
    // A loss that is plain to see, within the margin, is none that anybody minds.
    let mut world = run(94.0, true);
    assert_eq!(world.tick(SOAK_MS).next.current_wave, 1, "{}", world.rollout.status_reason);
    let report = last_verdict(&world.rollout).gate.clone().unwrap();
    assert!(report.log_e < 0.1 && report.guardrails[0].upper_bound.unwrap() < 0.2, "{report:?}");
    // A score that is not what was reported is found.
    let mut world = run(95.0, true);
    world.now_ms += SOAK_MS;
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
    assert_eq!(verify(&world.rollout, &decision, &world.fleet, world.now_ms), Ok(()));
    assert_eq!(decision.next.current_wave, 1);
    decision.next.waves[0].gate.as_mut().unwrap().judged.as_mut().unwrap().blocks[0].canary.scores[0] = Some(0.5);
    assert!(verify(&world.rollout, &decision, &world.fleet, world.now_ms).is_err());
    // Silence of the application is no good news.
    let mut world = run(95.0, false);
    let decision = world.tick(SOAK_MS);
    assert_eq!((decision.next.status, decision.next.current_wave), (RolloutStatus::Running, 0));
    assert!(waits_for(&decision, |w| matches!(w, Waiting::Unscored { devices } if devices.len() == 20)));
    world.tick(MAX_MS);
    assert_eq!(world.rollout.status, RolloutStatus::Paused);
}

#[test]
fn canaries_that_predict_other_classes_than_their_controls_go_back() {
    let run = |shift: u64| {
        let drift = guardrail(Metric::PredictionDrift, None);
        let mut world = World::numbered(gated(&["20", "100%"], &[ERRORS[0].clone(), drift]), 40);
        world.tick(0);
        soaks(&mut world, |at| at as u64 % 3, |at| at as u64 % 3);
        let targets: Vec<_> = world.rollout.targets.keys().cloned().collect();
        for (at, (id, facts)) in world.fleet.devices.iter_mut().enumerate() {
            let shift = if targets.contains(id) { shift } else { 0 };
            let (a, b) = (40 + at as u64 * 7 % 11 + shift, 30 + at as u64 * 5 % 13);
            let counts =
                BTreeMap::from([("a", a), ("b", b), ("c", 120 - a - b)].map(|(class, n)| (class.to_owned(), n)));
            let predictions = BTreeMap::from([("class".to_owned(), counts)]);
            facts.soak.iter_mut().for_each(|own| own.predictions = predictions.clone());
        }
        world
    };
    let mut world = run(0);
    assert_eq!(world.tick(SOAK_MS).next.current_wave, 1, "{}", world.rollout.status_reason);
    let report = last_verdict(&world.rollout).gate.clone().unwrap();
    let drift = report.guardrails[1].drift.clone().unwrap();
    assert!(drift.p_value > drift.level && (drift.level - 0.025).abs() < 1e-9 && !drift.exact, "{drift:?}");

    let mut world = run(12);
    world.now_ms += SOAK_MS;
    let decision = plan(&world.rollout, &world.fleet, world.now_ms);
    assert_eq!(verify(&world.rollout, &decision, &world.fleet, world.now_ms), Ok(()));
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    let evidence = decision.next.gate_evidence().next().unwrap().clone();
    let drift = evidence.report.guardrails[1].drift.clone().unwrap();
    assert!(drift.p_value <= drift.level && drift.difference.abs() > 0.05, "{drift:?}");
    assert!(evidence.report.sentence.contains("predictions: "), "{}", evidence.report.sentence);
    let again =
        crate::judge(&evidence.gate, evidence.alpha, &evidence.blocks, evidence.dealt, evidence.predicted.as_ref());
    assert_eq!(GateReport { alpha_left: Some(0.0), ..again }, evidence.report);
    // Evidence survives its store, but for the last digit of a number.
    let stored = serde_json::to_vec(&evidence).unwrap();
    let read: muster_shared::rollout::GateEvidence = serde_json::from_slice(&stored).unwrap();
    assert_eq!((&read.blocks, &read.predicted), (&evidence.blocks, &evidence.predicted));
    let again = crate::judge(&read.gate, read.alpha, &read.blocks, read.dealt, read.predicted.as_ref());
    assert_eq!(again.guardrails[1].drift, evidence.report.guardrails[1].drift);
    // What was counted, from where choices are drawn and what came of it are held against what was reported.
    let spoilt = |spoil: &dyn Fn(&mut muster_shared::rollout::GateEvidence)| {
        let mut decision = decision.clone();
        spoil(decision.next.waves[0].gate.as_mut().unwrap().judged.as_mut().unwrap());
        verify(&world.rollout, &decision, &world.fleet, world.now_ms).is_err()
    };
    assert!(!spoilt(&|_| {}));
    assert!(spoilt(&|judged| judged.blocks[3].canary.predicted[0] += 1));
    assert!(spoilt(&|judged| judged.predicted.as_mut().unwrap().seed += 1));
    assert!(spoilt(&|judged| judged.report.outcome = Outcome::Successful));
}

#[test]
fn few_blocks_say_that_they_cannot_show_a_drift() {
    let drift = guardrail(Metric::PredictionDrift, None);
    let mut world = World::numbered(gated(&["4", "100%"], &[ERRORS[0].clone(), drift]), 40);
    world.tick(0);
    soaks(&mut world, |_| 0, |_| 0);
    for (at, facts) in world.fleet.devices.values_mut().enumerate() {
        let counts = BTreeMap::from([("a".to_owned(), 50 + at as u64 % 7), ("b".to_owned(), 50)]);
        let predictions = BTreeMap::from([("class".to_owned(), counts)]);
        facts.soak.iter_mut().for_each(|own| own.predictions = predictions.clone());
    }
    world.tick(SOAK_MS);
    let report = last_verdict(&world.rollout).gate.clone().unwrap();
    let rail = &report.guardrails[1];
    assert_eq!((rail.drift.as_ref().unwrap().choices, report.limits_only), (16, true));
    assert!(rail.sentence.contains("no p-value is below 0.1250, where 0.0250 is enough"), "{}", rail.sentence);
}
