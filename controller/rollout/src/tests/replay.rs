//! Verdicts reached again from what is stored of them. That every verdict of every other test is, [`World::tick`] sees to.

use std::collections::BTreeMap;

use muster_shared::limits::MAX_VERDICT_CELLS;
use muster_shared::messages::UpdateState;
use muster_shared::rollout::{
    AbortAction, AbortCriterion, CriteriaInputs, Deadlines, EvidencePart, FailureType, Guardrail, LimitsInputs, Metric,
    Outcome, RolloutEvidence, RolloutStatus, VerdictEvidence,
};
use muster_shared::trust::Stage;
use proptest::prelude::*;

use super::analyses::{answer, fleet_metric, metric, soaking};
use super::gate::{gated, soaks};
use super::world::{SOAK_MS, Served, World, device, last_verdict, names, spec};
use crate::{Decision, OperatorAction, plan, replay, verify};

/// What the last verdict rests on.
fn last(world: &World) -> VerdictEvidence {
    match world.rollout.evidence().pop() {
        Some(RolloutEvidence::Verdict(evidence)) => *evidence,
        other => panic!("{other:?}"),
    }
}

/// What comes out otherwise after `change`.
fn differences(evidence: &VerdictEvidence, change: impl FnOnce(&mut VerdictEvidence)) -> Vec<String> {
    let mut forged = evidence.clone();
    change(&mut forged);
    replay(&RolloutEvidence::Verdict(Box::new(forged))).unwrap().differences
}

/// The same, of each part that `change` knows.
fn forged(evidence: &VerdictEvidence, change: impl Fn(&mut EvidencePart)) -> Vec<String> {
    differences(evidence, |forged| forged.parts.iter_mut().for_each(&change))
}

fn limits(change: impl Fn(&mut LimitsInputs)) -> impl Fn(&mut EvidencePart) {
    move |part| {
        if let EvidencePart::Limits(inputs) = part {
            change(inputs);
        }
    }
}

fn kinds(evidence: &VerdictEvidence) -> Vec<String> {
    let json = serde_json::to_value(evidence).unwrap();
    json["parts"].as_array().unwrap().iter().map(|part| part["kind"].as_str().unwrap().to_owned()).collect()
}

/// One wave of two of four devices: controls name class 0 alone, canaries as said.
fn predicted(canary: &[(&str, u64)]) -> World {
    let mut world = World::new(spec(&["50%", "100%"]), &["a", "b", "c", "d"]);
    world.tick(0);
    for name in ["a", "b", "c", "d"] {
        if !world.rollout.takes_part(&device(name)) {
            world.serves(name, Served { requests: 1_000, classes: &[("0", 900), ("1", 100)], ..Served::default() });
        }
    }
    let cohort: Vec<String> = world.cohort(0).iter().map(ToString::to_string).collect();
    for name in cohort {
        world.commits(&name);
        world.serves(&name, Served { requests: 1_000, classes: canary, ..Served::default() });
    }
    world
}

#[test]
fn limits_are_held_again_against_what_was_reported() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.tick(0);
    world.all_commit();
    world.serves("a", Served { errors: 30, ..Served::default() });
    world.tick(1);
    assert_eq!(last_verdict(&world.rollout).outcome, Outcome::Failed);
    let evidence = last(&world);
    assert_eq!(kinds(&evidence), ["limits"]);
    assert!(forged(&evidence, |_| {}).is_empty());
    // 30 of 300 are above 5 %; 3 of 300 are not.
    let fewer = forged(&evidence, limits(|inputs| inputs.canary.errors = 3));
    assert!(fewer.iter().any(|said| said == "it was stored as Failed and comes out as Successful"), "{fewer:?}");
    assert!(fewer.iter().any(|said| said.starts_with("error-rate: it was stored as Failed")), "{fewer:?}");
    assert!(!forged(&evidence, limits(|inputs| inputs.limits.max_error_rate = 0.5)).is_empty());
    assert!(!differences(&evidence, |forged| forged.verdict.outcome = Outcome::Successful).is_empty());
    assert!(!differences(&evidence, |forged| forged.verdict.checks[1].outcome = Outcome::Successful).is_empty());
    assert!(!differences(&evidence, |forged| drop(forged.verdict.checks.remove(0))).is_empty());
    assert!(!differences(&evidence, |forged| forged.verdict.canary.requests += 1).is_empty());
}

#[test]
fn predictions_are_tested_again_at_what_they_are_worth() {
    let mut world = predicted(&[("0", 100), ("1", 900)]);
    world.tick(1);
    assert_eq!(world.rollout.status, RolloutStatus::RollingBack, "{}", world.rollout.status_reason);
    let evidence = last(&world);
    let with = |change: &dyn Fn(&mut muster_shared::rollout::ColumnPredictions)| {
        forged(&evidence, limits(|inputs| change(inputs.predictions.get_mut("class").unwrap())))
    };
    assert!(with(&|_| {}).is_empty());
    assert!(!with(&|column| column.canary = column.control.clone()).is_empty());
    assert!(!with(&|column| column.worth = None).is_empty());
    assert!(!with(&|column| column.worth.as_mut().unwrap().canary = 1.0).is_empty());
}

#[test]
fn rows_of_a_shadow_are_compared_again() {
    let mut wish = spec(&["100%"]);
    wish.stage = Stage::Shadow { share_bp: 10_000 };
    wish.limits.max_disagreement = Some(0.1);
    let mut world = World::new(wish, &["a"]);
    world.tick(0);
    world.shadows("a", 200, 60);
    world.tick(1);
    assert_eq!(last_verdict(&world.rollout).outcome, Outcome::Failed, "{}", world.rollout.status_reason);
    let evidence = last(&world);
    assert!(!forged(&evidence, limits(|inputs| inputs.compared.as_mut().unwrap().disagreed = 6)).is_empty());
}

#[test]
fn criteria_are_held_again_against_how_devices_ended() {
    let criterion = AbortCriterion {
        failure_type: FailureType::Failed,
        action: AbortAction::Cancel,
        threshold_percentage: 40.0,
        min_number_of_executed_things: 2,
    };
    let mut wish = spec(&["100%"]);
    wish.limits.max_failures = 3;
    wish.abort_criteria = vec![criterion];
    let mut world = World::new(wish, &["a", "b", "c", "d"]);
    world.tick(0);
    world.commits("a");
    world.fails("b", UpdateState::Reverted, "too slow");
    world.tick(1);
    assert_eq!(world.rollout.status, RolloutStatus::Stopped);
    let evidence = last(&world);
    assert_eq!(kinds(&evidence), ["limits", "criteria"]);
    let with = |change: &dyn Fn(&mut CriteriaInputs)| {
        forged(&evidence, |part| {
            if let EvidencePart::Criteria(inputs) = part {
                change(inputs);
            }
        })
    };
    assert!(with(&|_| {}).is_empty());
    let fewer = with(&|inputs| inputs.ends.failed = 0);
    assert!(fewer.contains(&"it was stored as Failed and comes out as Successful".to_owned()), "{fewer:?}");
    assert!(!with(&|inputs| inputs.ends.executed = 20).is_empty());
    assert!(!with(&|inputs| inputs.criteria[0].threshold_percentage = 60.0).is_empty());
    assert!(!with(&|inputs| inputs.criteria.clear()).is_empty());
}

#[test]
fn measurements_are_counted_again_and_held_against_their_conditions() {
    let limits = serde_json::json!({"interval": "1s", "count": 5, "failureLimit": 1});
    let (mut world, decision) = soaking(vec![metric(limits)]);
    answer(&mut world, &decision, Ok(0.5));
    let decision = world.tick(1_000);
    answer(&mut world, &decision, Ok(0.4));
    assert_eq!(world.rollout.status, RolloutStatus::RollingBack);
    let evidence = last(&world);
    assert_eq!(kinds(&evidence), ["limits", "analysis"]);
    let with = |change: &dyn Fn(&mut muster_shared::rollout::AnalysisInputs)| {
        forged(&evidence, |part| {
            if let EvidencePart::Analysis(inputs) = part {
                change(inputs);
            }
        })
    };
    assert!(with(&|_| {}).is_empty());
    let good = with(&|inputs| inputs.metrics[0].measurements[1].outcome = Outcome::Successful);
    assert!(good.iter().any(|said| said.contains("comes out as Successful")), "{good:?}");
    assert!(good.contains(
        &"shares@1/share: measurement 2 was stored as Successful, and its answer does not mean that".to_owned()
    ));
    let other = with(&|inputs| inputs.metrics[0].measurements[0].value = Some("0.97".to_owned()));
    assert_eq!(other, ["shares@1/share: measurement 1 was stored as Failed, and its answer does not mean that"]);
    assert!(!with(&|inputs| inputs.analysis.metrics[0].failure_limit = 2).is_empty());
    assert!(!with(&|inputs| inputs.metrics[0].errors = 3).is_empty());
    // What is no evidence is said to be none.
    let broken = |change: &dyn Fn(&mut VerdictEvidence)| {
        let mut broken = evidence.clone();
        change(&mut broken);
        replay(&RolloutEvidence::Verdict(Box::new(broken))).unwrap_err()
    };
    assert!(broken(&|e| drop(e.parts.remove(0))).contains("kind limits"));
    assert!(broken(&|e| e.parts.push(e.parts[0].clone())).contains("kind limits"));
    let short = broken(&|e| {
        if let EvidencePart::Analysis(inputs) = &mut e.parts[1] {
            inputs.metrics.clear();
        }
    });
    assert_eq!(short, "the verdict on wave 1 rests on measurements of 0 metrics, and shares@1 has 1");
}

#[test]
fn a_gate_is_replayed_alone_and_with_its_verdict_and_a_waiver_counts() {
    let errors = Guardrail::of(Metric::ErrorRate, Some(0.03));
    let mut world = World::numbered(gated(&["12", "100%"], &[errors]), 40);
    world.tick(0);
    soaks(&mut world, |at| 2 + at as u64 % 7, |at| at as u64 % 7);
    world.tick(SOAK_MS);
    assert_eq!(world.rollout.status, RolloutStatus::Paused);
    world.apply(OperatorAction::Resume);
    world.tick(1);
    let all = world.rollout.evidence();
    let [RolloutEvidence::Verdict(open), RolloutEvidence::Verdict(passed)] = &all[..] else { panic!("{all:?}") };
    assert_eq!((open.verdict.outcome, passed.verdict.outcome), (Outcome::Inconclusive, Outcome::Successful));
    assert_eq!((open.waived_by.as_deref(), passed.waived_by.as_deref()), (None, Some("alice")));
    assert_eq!(kinds(passed), ["limits", "gate"]);
    assert!(!differences(passed, |forged| forged.waived_by = None).is_empty());
    assert!(!differences(open, |forged| forged.waived_by = Some("mallory".to_owned())).is_empty());
    let scores = |change: &dyn Fn(&mut muster_shared::rollout::GateEvidence)| {
        forged(open, |part| {
            if let EvidencePart::Gate(gate) = part {
                change(gate);
            }
        })
    };
    assert!(!scores(&|gate| gate.blocks.iter_mut().for_each(|b| b.canary.scores[0] = Some(0.0))).is_empty());
    assert!(!scores(&|gate| gate.report.outcome = Outcome::Successful).is_empty());
    assert!(!differences(open, |forged| forged.parts.truncate(1)).is_empty());

    // As it was written before verdicts kept the rest.
    let before = serde_json::to_string(open.gate().unwrap()).unwrap();
    assert!(!before.contains("kind"), "it is written as it was");
    let read: RolloutEvidence = serde_json::from_str(&before).unwrap();
    assert!(matches!(&read, RolloutEvidence::Gate(_)));
    assert_eq!((replay(&read).unwrap().outcome, replay(&read).unwrap().differences), (Outcome::Inconclusive, vec![]));
    let RolloutEvidence::Gate(mut gate) = read else { panic!("it was") };
    gate.report.log_e += 1.0;
    assert!(!replay(&RolloutEvidence::Gate(gate.clone())).unwrap().differences.is_empty());
    gate.blocks[0].canary.scores.clear();
    assert!(replay(&RolloutEvidence::Gate(gate)).unwrap_err().contains("0 scores, its gate has 1 guardrails"));
    // Rollouts stored then keep their scores and no more.
    world.rollout.verdicts.iter_mut().for_each(|verdict| verdict.inputs = None);
    assert!(matches!(&world.rollout.evidence()[..], [RolloutEvidence::Gate(_)]));
}

#[test]
fn a_wave_that_ran_out_of_time_is_replayed_with_its_clock() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.tick(super::world::MAX_MS);
    let evidence = last(&world);
    assert_eq!(evidence.verdict.outcome, Outcome::Inconclusive);
    assert!(!differences(&evidence, |forged| forged.waited = None).is_empty());
    assert!(!differences(&evidence, |forged| forged.waited.as_mut().unwrap().since_ms -= 1).is_empty());
}

#[test]
fn what_is_stored_is_bounded_and_the_column_that_decided_stays() {
    let mut world = predicted(&[("0", 900), ("1", 100)]);
    let names: Vec<String> = world.cohort(0).iter().map(ToString::to_string).collect();
    for name in names {
        let evidence = world.facts(&name).evidence.last_mut().unwrap();
        let many: BTreeMap<String, u64> = (0..250).map(|class| (class.to_string(), 4)).collect();
        evidence.predictions.extend((0..40).map(|column| (format!("a{column:02}"), many.clone())));
        let moved = BTreeMap::from([("0".to_owned(), 100), ("1".to_owned(), 900)]);
        evidence.predictions.insert("z".to_owned(), moved);
    }
    for facts in world.fleet.devices.values_mut().filter(|facts| facts.desired.is_none()) {
        let evidence = facts.evidence.last_mut().unwrap();
        evidence.predictions.insert("z".to_owned(), BTreeMap::from([("0".to_owned(), 900), ("1".to_owned(), 100)]));
    }
    world.tick(1);
    assert_eq!(world.rollout.status, RolloutStatus::RollingBack, "{}", world.rollout.status_reason);
    let kept = &last_verdict(&world.rollout).inputs.as_ref().unwrap().limits;
    assert!(kept.predictions.contains_key("z") && kept.columns == 42, "{:?}", kept.predictions.keys());
    let cells: usize = kept.predictions.values().map(|column| column.cells()).sum();
    assert!(cells <= MAX_VERDICT_CELLS + kept.predictions["z"].cells(), "{cells}");
}

#[test]
fn the_checker_looks_at_what_is_stored() {
    let mut world = predicted(&[("0", 900), ("1", 100)]);
    world.tick(1);
    world.now_ms += SOAK_MS;
    let decision = plan(&world.rollout, &world.fleet, world.now_ms);
    assert_eq!(decision.next.current_wave, 1, "{:?}", decision.waiting);
    let spoilt = |spoil: &dyn Fn(&mut muster_shared::rollout::VerdictInputs)| {
        let mut decision: Decision = decision.clone();
        spoil(decision.next.verdicts.last_mut().unwrap().inputs.as_mut().unwrap());
        verify(&world.rollout, &decision, &world.fleet, world.now_ms).is_err()
    };
    assert!(!spoilt(&|_| {}));
    assert!(spoilt(&|inputs| inputs.limits.limits.max_failures = 9));
    assert!(spoilt(&|inputs| inputs.limits.canary.requests += 1));
    assert!(spoilt(&|inputs| *inputs.limits.predictions.get_mut("class").unwrap().canary.get_mut("0").unwrap() += 1));
    assert!(spoilt(&|inputs| inputs.limits.compared = Some(Default::default())));
    assert!(spoilt(&|inputs| inputs.analyses.push(0)));
    assert!(spoilt(&|inputs| inputs.waived_by = Some("mallory".to_owned())));
    assert!(spoilt(&|inputs| {
        inputs.waited = Some(muster_shared::rollout::LongestDuration { since_ms: 1, max_ms: 1 });
    }));
    assert!(spoilt(&|inputs| {
        inputs.criteria = Some(CriteriaInputs { criteria: vec![], ends: Default::default() });
    }));
    assert!(spoilt(&|inputs| inputs.limits.emergency = true));
    let mut without = decision.clone();
    without.next.verdicts.last_mut().unwrap().inputs = None;
    assert!(verify(&world.rollout, &without, &world.fleet, world.now_ms).is_err());
}

/// What one device does in the first wave.
#[derive(Debug, Clone, Copy)]
struct Fate {
    /// Commits, fails, refuses or is never heard of.
    end: u8,
    requests: u64,
    errors: u64,
    latency_us: u64,
    ones: u64,
}

fn fate() -> impl Strategy<Value = Fate> {
    (0u8..8, 0u64..400, 0u64..60, 1u64..9_000, 0u64..200).prop_map(|(end, requests, errors, latency_us, ones)| Fate {
        end,
        requests,
        errors: if errors < 40 { 0 } else { errors.min(requests) },
        latency_us,
        ones,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// [`World::tick`] replays every verdict, and asks the checker.
    #[test]
    fn any_verdict_replays_to_itself(
        fates in prop::collection::vec(fate(), 8),
        max_failures in 0u32..4,
        threshold in prop::option::of(1.0f64..100.0),
        analysed in any::<bool>(),
        compared in any::<bool>(),
        extra_errors in any::<bool>(),
    ) {
        let mut wish = if compared {
            gated(&["50%", "100%"], &[Guardrail::of(Metric::ErrorRate, Some(0.03))])
        } else {
            spec(&["50%", "100%"])
        };
        wish.limits.max_failures = max_failures.max(u32::from(threshold.is_some()));
        wish.deadlines = Some(Deadlines { in_progress_ms: Some(100_000), offline_ms: None });
        wish.abort_criteria = threshold.iter().map(|threshold_percentage| AbortCriterion {
            failure_type: FailureType::All,
            action: AbortAction::RollBack,
            threshold_percentage: *threshold_percentage,
            min_number_of_executed_things: 3,
        }).collect();
        let all = names(8);
        let mut world = World::numbered(wish, 8);
        if analysed {
            let asked = muster_shared::rollout::AnalysisUse {
                template: "shares".parse().unwrap(),
                args: Default::default(),
                waves: vec![],
            };
            world.rollout.spec.analyses = vec![asked];
            let metrics = vec![fleet_metric("result.canary.errorRate <= 0.02", serde_json::json!({}))];
            let analysis = muster_shared::rollout::Analysis {
                template: "shares@1".parse().unwrap(),
                waves: vec![],
                metrics,
            };
            world.rollout = world.rollout.clone().analysed_by(vec![analysis]).unwrap();
        }
        world.tick(0);
        for round in 0..12u64 {
            for (name, fate) in all.iter().zip(&fates) {
                if world.target(name).is_some_and(|target| target.failure.is_none()) {
                    match fate.end {
                        0..=5 => world.commits(name),
                        6 if round > 1 => world.fails(name, UpdateState::Reverted, "too slow"),
                        _ => {}
                    }
                }
                let errors = if extra_errors && round > 2 { fate.errors } else { 0 };
                let classes = [("0", fate.requests.saturating_sub(fate.ones)), ("1", fate.requests.min(fate.ones))];
                let Fate { requests, latency_us, .. } = *fate;
                world.serves(name, Served { requests, errors, latency_us, classes: &classes, ..Served::default() });
            }
            world.tick(if round % 4 == 3 { 200_000 } else { SOAK_MS });
            if world.rollout.status == RolloutStatus::Paused {
                world.apply(OperatorAction::Resume);
            }
        }
        prop_assert!(world.rollout.verdicts.iter().all(|verdict| verdict.inputs.is_some()));
    }
}
