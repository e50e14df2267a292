//! Deadlines of devices: when silence counts, and what it counts for.

use muster_shared::messages::UpdateState;
use muster_shared::rollout::{Deadlines, DeviceProgress, FailureKind, Outcome, RolloutSpec, RolloutStatus, Waiting};
use proptest::prelude::*;

use super::world::{MAX_MS, SOAK_MS, Served, World, device, last_verdict, spec, statuses, told, waits_for};
use crate::{DeadlineState, OperatorAction, plan, verify};

const IN_PROGRESS_MS: u64 = 100_000;
const OFFLINE_MS: u64 = 200_000;

fn timed(waves: &[&str]) -> RolloutSpec {
    let deadlines = Deadlines { in_progress_ms: Some(IN_PROGRESS_MS), offline_ms: Some(OFFLINE_MS) };
    RolloutSpec { deadlines: Some(deadlines), ..spec(waves) }
}

fn state(world: &World, name: &str) -> DeadlineState {
    world.target(name).unwrap().deadline
}

fn is_late(world: &World, name: &str) -> bool {
    world.progress(name) == Some(DeviceProgress::TimedOut)
}

/// One wave of three of which `good` has committed and serves, and `stuck` fetches for ever.
fn one_is_stuck() -> World {
    let mut world = World::new(timed(&["100%"]), &["good", "other", "stuck"]);
    world.tick(0);
    for name in ["good", "other"] {
        world.commits(name);
        world.serves(name, Served::default());
    }
    world.works("stuck", UpdateState::Fetching);
    world
}

#[test]
fn a_device_that_is_stuck_holds_the_wave_up_until_its_deadline() {
    let mut world = one_is_stuck();
    let decision = world.tick(IN_PROGRESS_MS - 1);
    assert!(!is_late(&world, "stuck") && waits_for(&decision, |w| *w == Waiting::Updating { done: 2, of: 3 }));
    assert_eq!(decision.wake_at_ms, Some(world.now_ms + 1), "it says when the deadline is over");
    let decision = world.tick(1);
    assert!(is_late(&world, "stuck"));
    assert!(waits_for(&decision, |w| *w == Waiting::TimedOut { devices: vec![device("stuck")] }));
    assert!(!waits_for(&decision, |w| matches!(w, Waiting::Updating { .. })));
    let decision = world.tick(SOAK_MS);
    let verdict = last_verdict(&decision.next);
    assert_eq!((decision.next.status, verdict.outcome), (RolloutStatus::Completed, Outcome::Successful));
    let counts = (verdict.canary.devices, verdict.canary.succeeded, verdict.canary.failures, verdict.canary.timed_out);
    assert_eq!(counts, (3, 2, 0, 1), "targeted, not succeeded, and no failure of the bundle");
    assert!(verdict.summary.contains("3 devices (1 timed out)"), "{}", verdict.summary);
}

#[test]
fn a_device_that_is_away_has_the_other_deadline_and_gets_its_own_when_it_comes() {
    let mut world = World::new(timed(&["100%"]), &["a", "away", "back"]);
    ["away", "back"].iter().for_each(|name| world.facts(name).online = false);
    world.tick(0);
    world.commits("a");
    world.tick(OFFLINE_MS - 1);
    assert_eq!(state(&world, "away").reached_at_ms, None);
    world.facts("back").online = true;
    world.tick(0);
    assert_eq!(state(&world, "back").reached_at_ms, Some(world.now_ms));
    world.tick(1);
    assert!(is_late(&world, "away") && !is_late(&world, "back"));
    world.tick(IN_PROGRESS_MS - 2);
    assert!(!is_late(&world, "back"), "its time runs since it was reached");
    world.tick(1);
    assert!(is_late(&world, "back"));
    let late = world.rollout.explain(&world.fleet, Some(&device("away")), world.now_ms).device.unwrap();
    assert_eq!(late.failure, Some(FailureKind::TimedOut));
    assert_eq!(
        late.doing,
        "it timed out on digits@1.2.0, and is not waited for: not reached within 3.3 min of being told; it may commit yet, and counts then"
    );
    let late = world.rollout.explain(&world.fleet, Some(&device("back")), world.now_ms).device.unwrap();
    assert!(late.doing.contains("reached 3.3 min after it was told, nothing committed within"), "{}", late.doing);
}

#[test]
fn nobody_in_time_passes_nothing() {
    let mut world = World::new(timed(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    let first = world.first(0);
    world.works(&first, UpdateState::Trial);
    world.serves(&first, Served::default());
    let decision = world.tick(IN_PROGRESS_MS);
    assert!(is_late(&world, &first));
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 0));
    assert!(waits_for(&decision, |w| *w == Waiting::Updating { done: 0, of: 1 }));
    let decision = world.tick(MAX_MS - IN_PROGRESS_MS);
    assert_eq!(statuses(&decision), (RolloutStatus::Paused, 0));
    assert_eq!(last_verdict(&decision.next).outcome, Outcome::Inconclusive);
}

#[test]
fn a_late_device_is_told_all_the_same_and_counts_when_it_commits() {
    let mut world = World::new(timed(&["100%"]), &["a", "late"]);
    world.facts("late").online = false;
    world.tick(0);
    world.commits("a");
    world.tick(OFFLINE_MS);
    assert!(is_late(&world, "late"));
    world.facts("late").online = true;
    assert_eq!(told(&world.tick(1)), ["late"]);
    world.commits("late");
    world.tick(1);
    assert_eq!(world.progress("late"), Some(DeviceProgress::Committed));
    assert!(state(&world, "late").timed_out_at_ms.is_some(), "the mark stays");
    let outcomes = world.rollout.view(&world.fleet, &[]).outcomes;
    assert_eq!((outcomes.succeeded, outcomes.timed_out), (2, 0));
}

#[test]
fn a_late_device_that_commits_after_the_end_is_explained_by_what_it_has() {
    let mut world = World::new(timed(&["100%"]), &["a", "late"]);
    world.facts("late").online = false;
    world.tick(0);
    world.commits("a");
    world.tick(OFFLINE_MS);
    world.serves("a", Served::default());
    world.tick(1);
    assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::Completed);
    let explained = |world: &World| {
        let late = world.rollout.explain(&world.fleet, Some(&device("late")), world.now_ms).device.unwrap();
        let outcomes = late.measured.unwrap().outcomes();
        (late.doing, late.failure, outcomes.succeeded, outcomes.timed_out)
    };
    assert_eq!(explained(&world).1, Some(FailureKind::TimedOut));
    world.facts("late").online = true;
    world.tick(1);
    world.commits("late");
    world.tick(1);
    assert_eq!(explained(&world), ("it has committed digits@1.2.0".to_owned(), None, 1, 0));
    assert_eq!(world.progress("late"), Some(DeviceProgress::Committed));
}

#[test]
fn a_late_device_that_fails_is_a_failure() {
    let mut world = one_is_stuck();
    world.tick(IN_PROGRESS_MS);
    world.fails("stuck", UpdateState::Reverted, "too slow");
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    let canary = last_verdict(&decision.next).canary;
    assert_eq!((canary.failures, canary.timed_out), (1, 0));
}

#[test]
fn a_way_back_reaches_who_is_late() {
    let mut world = one_is_stuck();
    world.tick(IN_PROGRESS_MS);
    world.apply(OperatorAction::Rollback);
    let decision = world.tick(1);
    assert!(told(&decision).contains(&"stuck"), "{:?}", decision.actions);
    assert_eq!(world.progress("stuck"), Some(DeviceProgress::GoingBack));
}

#[test]
fn the_clock_counts_on_through_a_pause_and_begins_anew_with_a_new_word() {
    let mut world = one_is_stuck();
    world.tick(1);
    world.apply(OperatorAction::Pause);
    world.tick(IN_PROGRESS_MS);
    assert!(!is_late(&world, "stuck"), "nothing is decided in a pause");
    world.apply(OperatorAction::Resume);
    world.tick(0);
    assert!(is_late(&world, "stuck"));
    // It claims a generation of its own, and is told anew.
    world.report("stuck", |report, target| report.generation = target.generation + 5);
    world.tick(1);
    assert_eq!(state(&world, "stuck"), DeadlineState { reached_at_ms: Some(world.now_ms), timed_out_at_ms: None });
}

#[test]
fn a_clock_that_is_set_back_makes_nobody_late() {
    let mut world = one_is_stuck();
    world.tick(1);
    world.now_ms -= 3 * IN_PROGRESS_MS;
    world.tick(IN_PROGRESS_MS);
    assert!(!is_late(&world, "stuck"));
}

#[test]
fn a_refusal_is_told_from_a_failure() {
    let mut world = World::new(spec(&["100%"]), &["a", "b", "c"]);
    world.rollout.spec.limits.max_failures = 2;
    world.tick(0);
    world.fails("a", UpdateState::Failed, "it needs 9 bytes of disk");
    world.report("a", |report, _| report.update.refused = true);
    world.fails("b", UpdateState::Failed, "golden example 1 differs");
    world.tick(1);
    let kind = |name: &str| world.target(name).unwrap().failure_kind;
    assert_eq!((kind("a"), kind("b")), (FailureKind::Rejected, FailureKind::Failed));
    assert_eq!(world.target("a").unwrap().failure.as_deref(), Some("rejected: it needs 9 bytes of disk"));
    let outcomes = world.rollout.view(&world.fleet, &[]).outcomes;
    assert_eq!((outcomes.failed, outcomes.rejected, outcomes.timed_out), (1, 1, 0));
}

/// Written by an earlier version: neither a kind nor a deadline.
#[test]
fn targets_of_before_are_read_and_keep_their_bytes() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.fails("a", UpdateState::Reverted, "too slow");
    world.tick(1);
    let stored = serde_json::to_value(world.target("a").unwrap()).unwrap();
    let names: Vec<&String> = stored.as_object().unwrap().keys().collect();
    assert!(!names.iter().any(|name| *name == "failure_kind" || *name == "deadline"), "{names:?}");
    let read: crate::Target = serde_json::from_value(stored).unwrap();
    assert_eq!((&read, read.failure_kind), (world.target("a").unwrap(), FailureKind::Failed));
}

#[test]
fn the_checker_finds_marks_that_are_wrong() {
    let world = {
        let mut world = one_is_stuck();
        world.tick(1);
        world.now_ms += 1;
        world
    };
    let wrong = |change: &dyn Fn(&mut DeadlineState), later_ms: u64, word: &str| {
        let now_ms = world.now_ms + later_ms;
        let mut decision = plan(&world.rollout, &world.fleet, now_ms);
        assert_eq!(verify(&world.rollout, &decision, &world.fleet, now_ms), Ok(()));
        change(&mut decision.next.targets.get_mut(&device("stuck")).unwrap().deadline);
        let found = verify(&world.rollout, &decision, &world.fleet, now_ms).unwrap_err();
        let words: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(words.iter().any(|words| words.contains("deadline of stuck") && words.contains(word)), "{words:?}");
    };
    wrong(&|state| state.timed_out_at_ms = Some(world.now_ms), 0, "has time");
    wrong(&|state| state.timed_out_at_ms = None, IN_PROGRESS_MS, "nothing is noted");
    wrong(&|state| state.reached_at_ms = None, 0, "forgotten");
    wrong(&|state| state.timed_out_at_ms = Some(1), IN_PROGRESS_MS, "dated");
}

proptest! {
    /// Whatever comes when, nobody is late before the time is over, and everybody who has not ended is at the first look after it.
    #[test]
    fn a_deadline_is_kept_to_the_millisecond(
        in_progress_ms in 61_000u64..400_000, offline_ms in 1u64..400_000, comes_after_ms in prop::option::of(0u64..400_000),
        steps in prop::collection::vec(1u64..120_000, 1..12),
    ) {
        let deadlines = Deadlines { in_progress_ms: Some(in_progress_ms), offline_ms: Some(offline_ms) };
        let mut wish = RolloutSpec { deadlines: Some(deadlines), ..spec(&["100%"]) };
        wish.waves[0].max_duration_ms = 100_000_000;
        let mut world = World::new(wish, &["a"]);
        world.facts("a").online = false;
        world.tick(0);
        let told_ms = world.now_ms;
        let (mut reached_ms, mut late) = (None, false);
        for step in steps {
            let passed_ms = world.now_ms + step - told_ms;
            if comes_after_ms.is_some_and(|at_ms| at_ms <= passed_ms) {
                world.facts("a").online = true;
            }
            world.tick(step);
            if world.facts("a").online && !late && reached_ms.is_none() {
                reached_ms = Some(passed_ms);
            }
            late |= match reached_ms {
                Some(reached_ms) => passed_ms - reached_ms >= in_progress_ms,
                None => passed_ms >= offline_ms,
            };
            prop_assert_eq!(is_late(&world, "a"), late);
        }
    }
}
