//! Limits: what stops a wave, and when.

use std::collections::BTreeMap;

use muster_shared::messages::UpdateState;
use muster_shared::rollout::{DeviceProgress, Outcome, RolloutSpec, RolloutStatus, Rule, Waiting};

use super::world::{MAX_MS, SOAK_MS, Served, World, broken, check, last_verdict, spec, statuses, told};

fn tolerant(failures: u32, waves: &[&str]) -> RolloutSpec {
    let mut spec = spec(waves);
    spec.limits.max_failures = failures;
    spec
}

/// A rollout whose first wave, `canaries` of the devices, has committed.
fn under_watch(canaries: usize, devices: &[&str]) -> (World, Vec<String>) {
    let mut world = World::new(spec(&[&canaries.to_string(), "100%"]), devices);
    world.tick(0);
    let canary: Vec<String> = world.cohort(0).iter().map(ToString::to_string).collect();
    canary.iter().for_each(|name| world.commits(name));
    world.tick(1);
    (world, canary)
}

fn control_of(world: &World) -> Vec<String> {
    let all = world.fleet.devices.keys().filter(|id| !world.rollout.takes_part(id));
    all.map(ToString::to_string).collect()
}

#[test]
fn a_failed_or_reverted_device_stops_the_wave_at_once() {
    for (state, word) in [(UpdateState::Failed, "failed"), (UpdateState::Reverted, "reverted")] {
        let mut world = World::new(spec(&["2", "100%"]), &["a", "b", "c"]);
        world.tick(0);
        let first = world.first(0);
        world.fails(&first, state, "golden example 3 differs");
        assert_eq!(world.progress(&first), Some(DeviceProgress::Failed));
        let decision = world.tick(1);
        assert_eq!(decision.next.status, RolloutStatus::RollingBack);
        let verdict = last_verdict(&decision.next);
        assert_eq!((verdict.outcome, broken(verdict)), (Outcome::Failed, vec![Rule::Failures]));
        assert_eq!(
            decision.next.status_reason,
            format!(
                "wave 1 failed: 1 device failed, reverted or crashed, 0 allowed: {first} ({word}: golden example 3 differs)"
            )
        );
    }
}

#[test]
fn a_refusal_without_acceptance_is_a_failure_too() {
    let mut world = World::new(tolerant(1, &["100%"]), &["a", "b"]);
    world.tick(0);
    world.fails("a", UpdateState::Failed, "the manifest is signed by nobody it knows");
    world.report("a", |report, _| report.generation = 1);
    assert_eq!(told(&world.tick(1)), ["b"], "it is not told again what it refused");
    assert_eq!(world.rollout.targets.values().filter(|target| target.failure.is_some()).count(), 1);
}

#[test]
fn a_tolerated_failure_counts_once_for_good_and_is_not_tried_again() {
    let mut world = World::new(tolerant(1, &["2", "100%"]), &["a", "b", "c"]);
    world.tick(0);
    let [bad, good] = [0, 1].map(|at| world.cohort(0)[at].to_owned());
    world.fails(&bad, UpdateState::Reverted, "too slow");
    for _ in 0..3 {
        assert_eq!(world.tick(1).next.status, RolloutStatus::Running);
    }
    world.commits(&good);
    world.serves(&good, Served::default());
    world.tick(1);
    let decision = world.tick(SOAK_MS);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1), "one that committed is enough");
    assert_eq!(check(last_verdict(&decision.next), Rule::Failures).measured, Some(1.0));
    assert!(!told(&decision).contains(&bad.as_str()));
    // The same report still counts as one; another device's makes two.
    assert_eq!(world.tick(1).next.status, RolloutStatus::Running);
    let third = world.first(1);
    world.fails(&third, UpdateState::Failed, "");
    let decision = world.tick(1);
    assert_eq!(broken(last_verdict(&decision.next)), [Rule::Failures]);
    assert_eq!(last_verdict(&decision.next).canary.failures, 2);
}

#[test]
fn failed_and_absent_devices_alone_pass_nothing() {
    let mut world = World::new(tolerant(5, &["100%"]), &["a", "b"]);
    world.tick(0);
    world.fails("a", UpdateState::Failed, "no space");
    world.facts("b").online = false;
    world.serves("a", Served::default());
    world.tick(1);
    assert_eq!(world.tick(MAX_MS).next.status, RolloutStatus::Paused);

    let mut world = World::new(tolerant(5, &["100%"]), &["a"]);
    world.tick(0);
    world.fails("a", UpdateState::Failed, "no space");
    assert!(world.tick(SOAK_MS).waiting.contains(&Waiting::Updating { done: 0, of: 1 }));
    assert_eq!(world.tick(MAX_MS).next.status, RolloutStatus::Paused);
}

#[test]
fn a_crash_on_the_bundle_is_a_failure_that_outlives_the_waves_evidence() {
    let mut world = World::new(tolerant(1, &["2", "100%"]), &["a", "b", "c"]);
    world.tick(0);
    let first = world.first(0);
    world.all_commit();
    world.facts(&first).evidence[0].crashes = 4;
    world.tick(1);
    let decision = world.tick(SOAK_MS);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1));
    assert_eq!(last_verdict(&decision.next).canary.failures, 1);
    world.all_commit();
    world.tick(1);
    let second = world.first(1);
    world.facts(&second).evidence[0].crashes = 1;
    let decision = world.tick(1);
    assert_eq!(last_verdict(&decision.next).canary.failures, 2);
    assert_eq!(broken(last_verdict(&decision.next)), [Rule::Failures]);
}

#[test]
fn a_crash_on_the_incumbent_is_not_the_bundles() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.serves("a", Served::default());
    world.facts("a").evidence[0].crashes = 4;
    assert_eq!(world.tick(1).next.status, RolloutStatus::Running);
    // Nor is one on the bundle in an earlier rollout.
    world.commits("a");
    world.serves("a", Served::default());
    world.facts("a").evidence[1].crashes = 4;
    world.facts("a").evidence[1].generation = 1;
    assert_eq!(world.tick(1).next.status, RolloutStatus::Running);
}

#[test]
fn the_error_rate_is_judged_once_enough_was_asked() {
    let (mut world, canary) = under_watch(1, &["a", "b"]);
    world.serves(&canary[0], Served { requests: 99, errors: 99, ..Served::default() });
    assert_eq!(world.tick(1).next.status, RolloutStatus::Running);
    world.serves(&canary[0], Served { requests: 1, ..Served::default() });
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    assert_eq!(broken(last_verdict(&decision.next)), [Rule::ErrorRate]);
}

#[test]
fn an_error_rate_at_the_limit_is_within_it() {
    let (mut world, canary) = under_watch(1, &["a", "b"]);
    world.serves(&canary[0], Served { requests: 100, errors: 5, ..Served::default() });
    assert_eq!(statuses(&world.tick(SOAK_MS)), (RolloutStatus::Running, 1));
}

#[test]
fn answers_that_are_no_numbers_are_errors() {
    let (mut world, canary) = under_watch(1, &["a", "b"]);
    world.serves(&canary[0], Served::default());
    world.facts(&canary[0]).evidence[0].requests.non_finite = 50;
    assert_eq!(broken(last_verdict(&world.tick(1).next)), [Rule::ErrorRate]);
}

#[test]
fn latency_is_compared_with_a_control_that_has_reported_enough() {
    for (control_reports, control_requests, compared) in [(3, 100, true), (2, 100, false), (3, 99, false)] {
        let (mut world, canary) = under_watch(1, &["a", "b"]);
        let control = control_of(&world);
        world.serves(&canary[0], Served { latency_us: 5_000, ..Served::default() });
        world.serves(&control[0], Served { reports: control_reports, requests: control_requests, ..Served::default() });
        let decision = world.tick(SOAK_MS);
        let verdict = last_verdict(&decision.next);
        let check = check(verdict, Rule::LatencyP99Ratio);
        if compared {
            assert_eq!((verdict.outcome, check.outcome), (Outcome::Failed, Outcome::Failed));
            assert!((check.measured.unwrap() - 2.5).abs() < 0.2, "{}", check.sentence);
        } else {
            assert_eq!((verdict.outcome, check.outcome), (Outcome::Successful, Outcome::Inconclusive));
            assert!(verdict.summary.contains("limits only: 2 devices are too few to compare"), "{}", verdict.summary);
        }
    }
}

#[test]
fn the_control_is_who_is_meant_untouched_and_on_an_incumbent() {
    let (mut world, canary) = under_watch(1, &["a", "b", "c", "d", "e", "f"]);
    let others = control_of(&world);
    world.serves(&canary[0], Served { latency_us: 5_000, ..Served::default() });
    for name in &others {
        world.serves(name, Served { latency_us: 100, ..Served::default() });
    }
    // One is held, one is revoked, one runs nothing, one has evidence of a bundle it has not committed, and one has the
    // new one already.
    world.facts(&others[0]).held_by = Some("r7".parse().unwrap());
    world.facts(&others[1]).revoked = true;
    world.facts(&others[2]).reported.as_mut().unwrap().committed = None;
    world.facts(&others[3]).evidence[0].manifest = super::world::new();
    world.facts(&others[4]).evidence[0].manifest = super::world::new();
    world.facts(&others[4]).reported.as_mut().unwrap().committed.as_mut().unwrap().manifest = super::world::new();
    let decision = world.tick(SOAK_MS);
    let control = last_verdict(&decision.next).control;
    assert_eq!((control.devices, control.requests), (1, 0));
    assert_eq!(last_verdict(&decision.next).outcome, Outcome::Successful);
}

#[test]
fn predictions_are_compared_with_the_control() {
    let (mut world, canary) = under_watch(1, &["a", "b", "c"]);
    let before = [("0", 50), ("1", 50)];
    for name in control_of(&world) {
        world.serves(&name, Served { classes: &before, ..Served::default() });
    }
    world.serves(&canary[0], Served { classes: &[("0", 99)], ..Served::default() });
    assert_eq!(world.tick(1).next.status, RolloutStatus::Running, "too few predictions to judge");
    world.serves(&canary[0], Served { classes: &[("0", 1)], ..Served::default() });
    let decision = world.tick(1);
    let verdict = last_verdict(&decision.next);
    assert_eq!(broken(verdict), [Rule::PredictionPsi]);
    assert_eq!((verdict.canary.predictions, verdict.control.predictions), (100, 200));
}

#[test]
fn predictions_are_compared_with_the_reference_when_no_control_has_enough() {
    let (mut world, canary) = under_watch(1, &["a", "b"]);
    world.rollout.bundle.reference_predictions =
        BTreeMap::from([("class".to_owned(), BTreeMap::from([("0".to_owned(), 60), ("1".to_owned(), 60)]))]);
    let control = control_of(&world);
    world.serves(&control[0], Served { classes: &[("1", 99)], ..Served::default() });
    world.serves(&canary[0], Served { classes: &[("0", 200)], ..Served::default() });
    let decision = world.tick(1);
    let check = check(last_verdict(&decision.next), Rule::PredictionPsi);
    assert_eq!((check.outcome, check.canary_samples, check.control_samples), (Outcome::Failed, 200, 99));
    assert!(check.sentence.contains("the bundle's reference 120"), "{}", check.sentence);
}

#[test]
fn the_worst_column_decides() {
    let (mut world, canary) = under_watch(1, &["a", "b"]);
    let control = control_of(&world);
    for (name, kinds) in [(&canary[0], [("x", 1), ("y", 199)]), (&control[0], [("x", 199), ("y", 1)])] {
        world.serves(name, Served { classes: &[("0", 100), ("1", 100)], ..Served::default() });
        let kinds = kinds.map(|(class, n)| (class.to_owned(), n)).into();
        world.facts(name).evidence[0].predictions.insert("kind".to_owned(), kinds);
    }
    let decision = world.tick(1);
    let verdict = last_verdict(&decision.next);
    assert_eq!(broken(verdict), [Rule::PredictionPsi]);
    assert!(check(verdict, Rule::PredictionPsi).sentence.starts_with("prediction PSI of kind "));
    assert_eq!(verdict.canary.predictions, 200, "rows, not columns times rows");
}

#[test]
fn the_last_wave_has_no_control_and_says_so() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.tick(0);
    let verdict = last_verdict(&world.pass_wave().next).clone();
    assert_eq!(verdict.outcome, Outcome::Successful);
    assert_eq!(check(&verdict, Rule::LatencyP99Ratio).outcome, Outcome::Inconclusive);
    assert_eq!(check(&verdict, Rule::LatencyP99Ratio).sentence, "latency p99 not compared: no control");
    assert!(verdict.summary.contains("limits only: there is no control to compare with"), "{}", verdict.summary);
}

#[test]
fn a_wave_that_ran_out_of_time_and_past_a_limit_at_once_has_failed() {
    let (mut world, canary) = under_watch(1, &["a", "b"]);
    world.serves(&canary[0], Served { errors: 100, ..Served::default() });
    assert_eq!(world.tick(2 * MAX_MS).next.status, RolloutStatus::RollingBack);
}

#[test]
fn hostile_counts_neither_panic_nor_pass() {
    let (mut world, canary) = under_watch(1, &["a", "b"]);
    for _ in 0..2 {
        world.serves(&canary[0], Served { classes: &[("0", u64::MAX), ("1", u64::MAX)], ..Served::default() });
    }
    for evidence in world.facts(&canary[0]).evidence.iter_mut() {
        evidence.reports = u32::MAX;
        evidence.requests.served = u64::MAX;
        evidence.requests.failed = u64::MAX;
        evidence.requests.non_finite = u64::MAX;
    }
    assert_eq!(broken(last_verdict(&world.tick(1).next)), [Rule::ErrorRate]);
}
