//! Abort criteria: when so many devices fail that a rollout ends by itself.

use muster_shared::messages::UpdateState;
use muster_shared::rollout::{
    AbortAction, AbortCriterion, Deadlines, FailureType, Outcome, RolloutSpec, RolloutStatus, Rule,
};
use muster_shared::trust::Stage;

use super::world::{Served, World, broken, check, device, last_verdict, spec, told};
use crate::{Errand, plan, verify};

const LATE_MS: u64 = 100_000;
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn criterion(failure_type: FailureType, threshold_percentage: f64, least: u32) -> AbortCriterion {
    let action = AbortAction::RollBack;
    AbortCriterion { failure_type, action, threshold_percentage, min_number_of_executed_things: least }
}

fn cancel(criterion: AbortCriterion) -> AbortCriterion {
    AbortCriterion { action: AbortAction::Cancel, ..criterion }
}

/// Six devices in one wave, of which many may fail, told to run the bundle.
fn told_all(criteria: Vec<AbortCriterion>) -> World {
    let mut wish = RolloutSpec { abort_criteria: criteria, ..spec(&["100%"]) };
    wish.limits.max_failures = 5;
    wish.deadlines = Some(Deadlines { in_progress_ms: Some(LATE_MS), offline_ms: None });
    let mut world = World::new(wish, &NAMES);
    world.tick(0);
    world
}

#[test]
fn too_many_that_time_out_take_the_rollout_back_at_once() {
    let mut world = told_all(vec![criterion(FailureType::TimedOut, 50.0, 4)]);
    ["a", "b", "c"].iter().for_each(|name| world.commits(name));
    assert_eq!(world.tick(LATE_MS - 1).next.status, RolloutStatus::Running);
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    let verdict = last_verdict(&decision.next);
    assert_eq!((verdict.outcome, broken(verdict)), (Outcome::Failed, vec![Rule::AbortCriterion]));
    let held = check(verdict, Rule::AbortCriterion);
    assert_eq!((held.measured, held.limit, held.canary_samples), (Some(50.0), 50.0, 6));
    assert_eq!(
        held.sentence,
        "3 of 6 devices that ended timed out, 50.00 % ≥ 50 % (roll back when 50 % of at least 4 devices that ended timed out)"
    );
    assert_eq!(told(&decision), NAMES, "also those that are late");
}

#[test]
fn a_share_is_not_looked_at_before_enough_have_ended() {
    let mut world = told_all(vec![criterion(FailureType::Failed, 20.0, 3)]);
    world.fails("a", UpdateState::Reverted, "too slow");
    world.commits("b");
    assert_eq!(world.tick(1).next.status, RolloutStatus::Running);
    let so_far = world.rollout.explain(&world.fleet, None, world.now_ms).numbers.unwrap();
    let held = check(&so_far, Rule::AbortCriterion);
    assert_eq!((held.outcome, held.measured), (Outcome::Inconclusive, Some(50.0)));
    assert!(held.sentence.starts_with("not looked at yet, 2 devices ended"), "{}", held.sentence);
    world.commits("c");
    assert_eq!(broken(last_verdict(&world.tick(1).next)), [Rule::AbortCriterion]);
}

#[test]
fn each_type_counts_its_own() {
    let by_type = |failure_type| {
        let mut world = told_all(vec![criterion(failure_type, 34.0, 3)]);
        world.fails("a", UpdateState::Failed, "no room");
        world.report("a", |report, _| report.update.refused = true);
        world.fails("b", UpdateState::Reverted, "too slow");
        world.commits("c");
        world.tick(1).next.status
    };
    assert_eq!(by_type(FailureType::Failed), RolloutStatus::Running);
    assert_eq!(by_type(FailureType::Rejected), RolloutStatus::Running);
    assert_eq!(by_type(FailureType::All), RolloutStatus::RollingBack);
}

#[test]
fn a_criterion_that_cancels_stops_and_leaves_devices_with_what_they_have() {
    let mut world = told_all(vec![cancel(criterion(FailureType::All, 50.0, 2))]);
    world.fails("a", UpdateState::Failed, "golden example 1 differs");
    world.commits("b");
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::Stopped);
    assert!(decision.next.status_reason.contains("(cancel when 50 %"), "{}", decision.next.status_reason);
    assert!(decision.actions.is_empty() && !decision.next.needs_planning());
    assert!(decision.next.targets.values().all(|target| target.errand == Errand::Forward));
    let stopped = world.rollout.clone();
    assert_eq!(world.tick(LATE_MS).next, stopped);
}

#[test]
fn what_asks_for_a_way_back_wins_over_what_cancels() {
    let both = vec![cancel(criterion(FailureType::All, 50.0, 2)), criterion(FailureType::Failed, 50.0, 2)];
    let mut world = told_all(both);
    world.fails("a", UpdateState::Reverted, "too slow");
    world.commits("b");
    assert_eq!(world.tick(1).next.status, RolloutStatus::RollingBack);

    let mut world = told_all(vec![cancel(criterion(FailureType::All, 50.0, 2))]);
    world.rollout.spec.limits.max_failures = 1;
    ["a", "b"].iter().for_each(|name| world.fails(name, UpdateState::Reverted, "too slow"));
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    assert_eq!(broken(last_verdict(&decision.next)), [Rule::Failures, Rule::AbortCriterion]);
}

#[test]
fn what_runs_beside_another_is_ended_where_it_is_cancelled() {
    let mut wish = spec(&["100%"]);
    wish.stage = Stage::Shadow { share_bp: 5_000 };
    wish.limits.max_failures = 5;
    wish.abort_criteria = vec![cancel(criterion(FailureType::All, 50.0, 1))];
    let mut world = World::new(wish, &["a", "b"]);
    world.tick(0);
    world.fails("a", UpdateState::Failed, "no memory");
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    assert_eq!(told(&decision), ["a", "b"]);
}

#[test]
fn devices_that_had_the_bundle_before_have_not_ended_and_late_ones_that_commit_count_as_done() {
    let mut world = told_all(vec![criterion(FailureType::TimedOut, 60.0, 5)]);
    ["a", "b", "c"].iter().for_each(|name| world.commits(name));
    world.tick(LATE_MS);
    assert_eq!(world.rollout.status, RolloutStatus::Running, "3 of 6 are late");
    world.commits("d");
    world.serves("d", Served::default());
    world.tick(1);
    let so_far = world.rollout.explain(&world.fleet, None, world.now_ms).numbers.unwrap();
    let held = check(&so_far, Rule::AbortCriterion);
    assert!(held.sentence.starts_with("2 of 6 devices that ended timed out, 33.33 % < 60 %"), "{}", held.sentence);

    let mut wish = RolloutSpec { abort_criteria: vec![criterion(FailureType::Failed, 50.0, 1)], ..spec(&["100%"]) };
    wish.limits.max_failures = 5;
    let mut world = World::new(wish, &["a"]);
    let running = super::world::installed(super::world::new(), 1);
    let report = world.facts("a").reported.as_mut().unwrap();
    (report.running, report.committed) = (Some(running.clone()), Some(running));
    world.tick(0);
    world.tick(1);
    let so_far = world.rollout.explain(&world.fleet, None, world.now_ms).numbers.unwrap();
    assert_eq!(check(&so_far, Rule::AbortCriterion).canary_samples, 0);
}

#[test]
fn the_checker_finds_criteria_that_are_ignored_or_misread() {
    let mut world = told_all(vec![criterion(FailureType::Failed, 50.0, 2)]);
    let calm = plan(&world.rollout, &world.fleet, world.now_ms + 1);
    world.fails("a", UpdateState::Reverted, "too slow");
    world.commits("b");
    let now_ms = world.now_ms + 1;
    let right = plan(&world.rollout, &world.fleet, now_ms);
    assert_eq!(verify(&world.rollout, &right, &world.fleet, now_ms), Ok(()));
    let words = |decision: &crate::Decision| -> Vec<String> {
        let found = verify(&world.rollout, decision, &world.fleet, now_ms).unwrap_err();
        found.iter().map(ToString::to_string).collect()
    };
    let says = |decision: &crate::Decision, word: &str| {
        let words = words(decision);
        assert!(words.iter().any(|words| words.contains("abort criteria") && words.contains(word)), "{words:?}");
    };
    // Ignored, though the marks are made.
    let mut ignored = calm;
    for name in ["a", "b"] {
        let judged = right.next.targets.get(&device(name)).unwrap();
        let target = ignored.next.targets.get_mut(&device(name)).unwrap();
        (target.failure, target.failure_kind) = (judged.failure.clone(), judged.failure_kind);
        target.done_at_ms = (name == "b").then_some(now_ms);
    }
    says(&ignored, "does not go back");
    let mut forged = right.clone();
    let held = forged.next.verdicts[0].checks.iter_mut().find(|check| check.rule == Rule::AbortCriterion).unwrap();
    held.canary_samples += 1;
    says(&forged, "other numbers");
    let mut silent = right.clone();
    silent.next.verdicts[0].checks.retain(|check| check.rule != Rule::AbortCriterion);
    says(&silent, "how each criterion stands");
    let mut stopped = right;
    stopped.next.status = RolloutStatus::Stopped;
    says(&stopped, "no criterion cancels");
}
