//! How waves begin, wait, pass and run out of time.

use muster_shared::messages::{HeldBack, UpdateState};
use muster_shared::rollout::{DeviceProgress, Outcome, RolloutStatus, Rule, Waiting};

use super::world::{
    MAX_MS, SOAK_MS, START_MS, Served, World, check, device, installed, last_verdict, new, old, spec, statuses, told,
    waits_for,
};
use crate::{Action, Desired, Errand, OperatorAction};

#[test]
fn it_starts_at_its_first_plan_and_tells_the_first_wave_only() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b", "c"]);
    let decision = world.tick(0);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 0));
    let first = world.first(0);
    let target = world.target(&first).unwrap().clone();
    assert_eq!((target.errand, target.generation, target.previous), (Errand::Forward, 2, Some(old())));
    assert_eq!(decision.actions, [Action::Assign { device: device(&first), manifest: Some(new()), generation: 2 }]);
    assert_eq!(decision.wake_at_ms, Some(START_MS + 1));
    assert_eq!(world.progress(&first), Some(DeviceProgress::Assigned));
    let view = world.rollout.view(&world.fleet, &decision.waiting);
    assert_eq!(view.waves[1].devices.values().copied().collect::<Vec<_>>(), [DeviceProgress::Pending; 2]);
}

#[test]
fn the_generation_is_above_all_that_is_known() {
    let mut world = World::new(spec(&["100%"]), &["a", "b", "c"]);
    let other = || "r0".parse().unwrap();
    world.facts("a").desired = Some(Desired { manifest: Some(old()), generation: 7, rollout: other() });
    world.facts("b").reported.as_mut().unwrap().generation = 9;
    world.facts("c").reported = None;
    world.tick(0);
    let generations = ["a", "b", "c"].map(|name| world.target(name).unwrap().generation);
    assert_eq!(generations, [8, 10, 1]);
}

#[test]
fn wave_by_wave_to_the_end() {
    let mut world = World::new(spec(&["1", "50%", "100%"]), &["a", "b", "c", "d", "e"]);
    world.tick(0);
    assert_eq!(world.cohort(0).len(), 1);
    let decision = world.pass_wave();
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1));
    assert_eq!((world.cohort(0).len(), world.cohort(1).len()), (1, 2));
    assert_eq!(told(&decision), world.cohort(1));
    assert_eq!(statuses(&world.pass_wave()), (RolloutStatus::Running, 2));
    let decision = world.pass_wave();
    assert_eq!(statuses(&decision), (RolloutStatus::Completed, 2));
    assert_eq!((decision.next.verdicts.len(), decision.next.outstanding), (3, false));
    assert!(decision.next.verdicts.iter().all(|verdict| verdict.outcome == Outcome::Successful));
    assert!(!decision.next.needs_planning());
    let decision = world.tick(MAX_MS);
    assert!(decision.actions.is_empty() && decision.waiting.is_empty());
}

#[test]
fn a_lost_message_reappears_until_the_device_has_taken_it_up() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    assert_eq!(told(&world.tick(0)), ["a"]);
    assert_eq!(told(&world.tick(1)), ["a"]);
    world.facts("a").online = false;
    assert!(world.tick(1).actions.is_empty(), "the store has it, and nobody is there to hear it");
    world.facts("a").online = true;
    assert_eq!(told(&world.tick(1)), ["a"]);
    world.works("a", UpdateState::Fetching);
    assert!(world.tick(1).actions.is_empty());
    assert_eq!(world.progress("a"), Some(DeviceProgress::Updating));
    world.works("a", UpdateState::Trial);
    assert_eq!(world.progress("a"), Some(DeviceProgress::Trial));
}

#[test]
fn the_soak_runs_from_the_last_commit_seen_and_a_late_device_does_not_restart_it() {
    let mut world = World::new(spec(&["100%"]), &["a", "b", "late"]);
    world.facts("late").online = false;
    world.tick(0);
    world.commits("a");
    let decision = world.tick(1);
    assert!(waits_for(&decision, |w| *w == Waiting::Updating { done: 1, of: 2 }));
    assert!(waits_for(&decision, |w| *w == Waiting::Offline { devices: vec![device("late")] }));
    world.commits("b");
    world.serves("a", Served::default());
    let until_ms = world.now_ms + 1 + SOAK_MS;
    let decision = world.tick(1);
    assert!(waits_for(&decision, |w| *w == Waiting::Soaking { until_ms }));
    assert_eq!(decision.wake_at_ms, Some(until_ms));

    world.facts("late").online = true;
    world.works("late", UpdateState::Fetching);
    let decision = world.tick(SOAK_MS);
    assert_eq!(decision.waiting, [Waiting::Updating { done: 2, of: 3 }], "the soak is over, the device is not");
    world.commits("late");
    assert_eq!(world.tick(1).next.status, RolloutStatus::Completed);
}

#[test]
fn a_device_that_may_not_fetch_is_named_and_does_not_make_the_wave_pass() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.tick(0);
    world.commits("a");
    world.serves("a", Served::default());
    world.works("b", UpdateState::Fetching);
    let quiet = HeldBack::QuietHours { until_minute: 360 };
    world.report("b", |report, _| report.update.held_back = Some(quiet));
    let held = Waiting::HeldBack { devices: [(device("b"), quiet)].into() };
    assert_eq!(held.to_string(), "1 not fetching now: b (quiet hours until 06:00)");
    assert_eq!(world.tick(SOAK_MS).waiting, [Waiting::Updating { done: 1, of: 2 }, held.clone()]);
    let decision = world.tick(MAX_MS);
    assert_eq!(statuses(&decision), (RolloutStatus::Paused, 0));
    assert_eq!(last_verdict(&decision.next).outcome, Outcome::Inconclusive);
    assert!(decision.next.status_reason.contains(&held.to_string()), "{}", decision.next.status_reason);
    // What it said of another update is no matter of this one.
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.report("a", |report, _| report.update.held_back = Some(HeldBack::MeteredLink));
    assert!(!waits_for(&world.tick(1), |w| matches!(w, Waiting::HeldBack { .. })));
}

#[test]
fn silence_pauses_and_never_promotes() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    let first = world.first(0);
    world.commits(&first);
    world.tick(SOAK_MS);
    let decision = world.tick(SOAK_MS);
    assert_eq!(
        decision.waiting,
        [Waiting::TooFewReports { have: 0, need: 3 }, Waiting::TooFewRequests { have: 0, need: 100 }]
    );
    assert_eq!(decision.wake_at_ms, Some(START_MS + MAX_MS));
    let decision = world.tick(MAX_MS);
    assert_eq!(statuses(&decision), (RolloutStatus::Paused, 0));
    let verdict = last_verdict(&decision.next);
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
    assert_eq!(check(verdict, Rule::MaxDuration).outcome, Outcome::Inconclusive);
    let why = decision.next.status_reason.clone();
    assert_eq!(decision.waiting, [Waiting::Paused { why }]);
    assert_eq!(decision.wake_at_ms, None);
}

#[test]
fn resuming_restarts_the_clock_and_keeps_the_evidence() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    let first = world.first(0);
    world.commits(&first);
    world.tick(1);
    world.serves(&first, Served { requests: 60, ..Served::default() });
    assert_eq!(world.tick(MAX_MS).next.status, RolloutStatus::Paused);
    world.apply(OperatorAction::Resume);
    assert_eq!(world.rollout.evidence_since_ms(), START_MS);
    assert_eq!(world.tick(MAX_MS - 1).next.status, RolloutStatus::Running);
    world.serves(&first, Served { requests: 40, ..Served::default() });
    assert_eq!(statuses(&world.tick(1)), (RolloutStatus::Running, 1));
}

#[test]
fn devices_that_are_away_hold_nobody_up_unless_there_is_nobody_else() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.facts("a").online = false;
    world.facts("b").online = false;
    assert_eq!(told(&world.tick(0)), ["a", "b"], "the store must know");
    let decision = world.tick(1);
    assert!(waits_for(&decision, |w| *w == Waiting::Offline { devices: vec![device("a"), device("b")] }));
    world.facts("b").online = true;
    world.commits("b");
    world.serves("b", Served::default());
    let until_ms = world.now_ms + 1 + SOAK_MS;
    assert!(waits_for(&world.tick(1), |w| *w == Waiting::Soaking { until_ms }), "nothing soaked while nobody had it");
    let decision = world.tick(SOAK_MS);
    assert_eq!(decision.next.status, RolloutStatus::Completed);
    assert_eq!(decision.waiting, [Waiting::Offline { devices: vec![device("a")] }]);
    assert!(decision.next.outstanding && decision.next.needs_planning());

    world.facts("a").online = true;
    assert_eq!(told(&world.tick(1)), ["a"], "a finished rollout still tells those it promised the bundle");
    world.commits("a");
    assert!(world.tick(1).actions.is_empty());
}

#[test]
fn a_wave_whose_devices_went_dark_after_their_commit_waits_for_one_of_them() {
    let mut world = World::new(spec(&["2", "100%"]), &["a", "b", "c"]);
    world.tick(0);
    let cohort: Vec<String> = world.cohort(0).iter().map(ToString::to_string).collect();
    for name in &cohort {
        world.commits(name);
        world.serves(name, Served::default());
    }
    world.tick(1);
    // Enough was reported before; then nobody is there, or the controller itself was away and has heard nobody yet.
    cohort.iter().for_each(|name| world.facts(name).online = false);
    let decision = world.tick(SOAK_MS);
    let away = Waiting::Offline { devices: cohort.iter().map(|name| device(name)).collect() };
    assert_eq!((statuses(&decision), &decision.waiting[..]), ((RolloutStatus::Running, 0), &[away][..]));
    world.facts(&cohort[1]).online = true;
    assert_eq!(statuses(&world.tick(1)), (RolloutStatus::Running, 1));
}

#[test]
fn a_wave_of_its_own_devices_passes_on_one_of_them_only() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    world.pass_wave();
    let second = world.first(1);
    world.facts(&second).online = false;
    world.all_commit();
    world.tick(1);
    let decision = world.tick(SOAK_MS);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1));
    assert_eq!(decision.waiting, [Waiting::Offline { devices: vec![device(&second)] }]);
}

#[test]
fn evidence_counts_from_the_waves_start_for_the_targets_generation() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    let first = world.first(0);
    // What it measured on the incumbent, or on the bundle under another generation, says nothing.
    world.serves(&first, Served::default());
    world.commits(&first);
    world.report(&first, |report, target| report.running.as_mut().unwrap().generation = target.generation + 5);
    world.serves(&first, Served::default());
    world.commits(&first);
    world.tick(1);
    let decision = world.tick(SOAK_MS);
    assert!(waits_for(&decision, |w| matches!(w, Waiting::TooFewReports { have: 0, .. })));
    world.serves(&first, Served::default());
    let decision = world.tick(1);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1));
    assert_eq!(decision.next.evidence_since_ms(), world.now_ms);
    // The earlier wave's device counts in the next wave.
    world.serves(&first, Served::default());
    let second = world.first(1);
    world.commits(&second);
    world.tick(1);
    assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::Completed);
}

#[test]
fn devices_that_run_the_bundle_already_count_and_are_told_nothing() {
    let mut world = World::new(spec(&["100%"]), &["a", "has-it"]);
    let report = world.facts("has-it").reported.as_mut().unwrap();
    report.running.as_mut().unwrap().manifest = new();
    report.committed.as_mut().unwrap().manifest = new();
    assert_eq!(told(&world.tick(0)), ["a"]);
    let target = world.target("has-it").unwrap().clone();
    assert_eq!((target.errand, target.generation), (Errand::Keep, 1));
    assert_eq!(world.progress("has-it"), Some(DeviceProgress::Committed));
    world.commits("a");
    world.serves("has-it", Served::default());
    world.tick(1);
    let decision = world.tick(SOAK_MS);
    assert_eq!(decision.next.status, RolloutStatus::Completed);
    assert_eq!((last_verdict(&decision.next).canary.devices, last_verdict(&decision.next).control.devices), (2, 0));
}

#[test]
fn a_wave_is_not_judged_at_the_time_it_is_entered() {
    let mut hasty = spec(&["1", "100%"]);
    hasty.waves.iter_mut().for_each(|wave| wave.soak_ms = 0);
    let mut world = World::new(hasty, &["a", "b"]);
    for name in ["a", "b"] {
        let report = world.facts(name).reported.as_mut().unwrap();
        report.running.as_mut().unwrap().manifest = new();
        report.committed.as_mut().unwrap().manifest = new();
        world.serves(name, Served::default());
    }
    assert_eq!(statuses(&world.tick(0)), (RolloutStatus::Running, 0));
    ["a", "b"].iter().for_each(|name| world.serves(name, Served::default()));
    // All that the next wave needs is there, from the time before it.
    let decision = world.tick(1);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1));
    assert_eq!(decision.wake_at_ms, Some(world.now_ms + 1));
    assert!(waits_for(&world.tick(1), |w| matches!(w, Waiting::TooFewReports { have: 0, .. })));
}

#[test]
fn what_a_device_says_of_an_earlier_generation_is_not_about_this_one() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    let report = world.facts("a").reported.as_mut().unwrap();
    report.committed = Some(installed(new(), 1));
    assert_eq!(told(&world.tick(0)), ["a"], "it fell back on something else");
    // It has taken the assignment up, but still speaks of the update before.
    world.report("a", |report, target| report.generation = target.generation);
    let decision = world.tick(1);
    assert_eq!((decision.actions, decision.waiting[0].clone()), (vec![], Waiting::Updating { done: 0, of: 1 }));
    world.fails("a", UpdateState::Failed, "of before");
    world.report("a", |report, _| report.update.generation = 1);
    assert_eq!(world.tick(1).next.status, RolloutStatus::Running);
}

#[test]
fn a_finished_rollout_shows_what_it_did_whatever_came_later() {
    let mut world = World::new(spec(&["100%"]), &["a", "b", "c"]);
    world.facts("c").online = false;
    world.tick(0);
    world.pass_wave();
    assert_eq!(world.rollout.status, RolloutStatus::Completed);
    for name in ["a", "c"] {
        world.facts(name).desired =
            Some(Desired { manifest: Some(old()), generation: 9, rollout: "r2".parse().unwrap() });
    }
    world.fleet.devices.remove(&device("b"));
    let shown = ["a", "b", "c"].map(|name| world.progress(name).unwrap());
    assert_eq!(shown, [DeviceProgress::Committed, DeviceProgress::Committed, DeviceProgress::Assigned]);
}

#[test]
fn a_device_that_loses_the_bundle_it_had_gets_it_again() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    let report = world.facts("a").reported.as_mut().unwrap();
    report.running.as_mut().unwrap().manifest = new();
    report.committed.as_mut().unwrap().manifest = new();
    assert!(world.tick(0).actions.is_empty());
    world.facts("a").reported.as_mut().unwrap().running = None;
    assert_eq!(told(&world.tick(1)), ["a"]);
    assert_eq!(world.target("a").unwrap().generation, 2);
}

#[test]
fn who_joins_later_comes_into_the_current_wave_within_its_size() {
    let mut world = World::new(spec(&["50%", "100%"]), &["a", "b"]);
    world.tick(0);
    assert_eq!(world.cohort(0).len(), 1);
    world.add("c");
    assert_eq!(world.tick(1).actions.len(), 2, "50 % of three are two");
    world.add("d");
    world.tick(1);
    assert_eq!(world.cohort(0).len(), 2);
    world.pass_wave();
    assert_eq!(world.cohort(1).len(), 2);
    world.add("e");
    assert!(told(&world.tick(1)).contains(&"e"));
    assert_eq!(world.pass_wave().next.status, RolloutStatus::Completed);
    world.add("f");
    assert!(world.tick(1).actions.is_empty(), "a finished rollout takes nobody in");
}

#[test]
fn a_wave_without_devices_waits_and_pauses() {
    let mut narrow = spec(&["1", "100%"]);
    narrow.waves[0].selector = Some("site=lyon".parse().unwrap());
    let mut world = World::new(narrow, &["a", "b"]);
    world.tick(0);
    assert!(waits_for(&world.tick(1), |w| *w == Waiting::NoDevices));
    assert_eq!(world.tick(MAX_MS).next.status, RolloutStatus::Paused);
    world.apply(OperatorAction::Resume);
    world.facts("b").labels.insert("site".into(), "lyon".into());
    assert_eq!(told(&world.tick(1)), ["b"]);
    assert_eq!(world.tick(1).waiting.first(), Some(&Waiting::Updating { done: 0, of: 1 }));
}

#[test]
fn a_clock_set_back_makes_it_wait_longer_and_a_clock_set_forward_does_not_promote() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.commits("a");
    world.serves("a", Served::default());
    world.tick(SOAK_MS);
    world.now_ms -= 500_000;
    let decision = world.tick(0);
    assert!(waits_for(&decision, |w| *w == Waiting::Soaking { until_ms: START_MS + SOAK_MS - 500_000 + SOAK_MS }));
    assert_eq!(decision.next.evidence_since_ms(), world.now_ms);
    assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::Running, "evidence was counted anew");
    let decision = world.tick(MAX_MS - SOAK_MS);
    assert_eq!(decision.next.status, RolloutStatus::Paused, "its longest duration was counted anew too");

    world.apply(OperatorAction::Resume);
    world.now_ms += 1_000_000_000;
    assert_eq!(world.tick(0).next.status, RolloutStatus::Paused);
}

#[test]
fn a_device_that_knows_a_newer_generation_gets_one_above_it_but_not_for_ever() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    for newer in [50, 60] {
        world.facts("a").reported.as_mut().unwrap().generation = newer;
        assert_eq!(told(&world.tick(1)), ["a"]);
        assert_eq!(world.target("a").unwrap().generation, newer + 1);
    }
    world.facts("a").reported.as_mut().unwrap().generation = 70;
    let decision = world.tick(1);
    assert_eq!((world.rollout.status, told(&decision)), (RolloutStatus::RollingBack, vec!["a"]));
    assert!(last_verdict(&decision.next).summary.contains("it claims generations that it was not given"));
}

#[test]
fn a_rollout_survives_its_store() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    world.pass_wave();
    let text = serde_json::to_string(&world.rollout).unwrap();
    assert_eq!(serde_json::from_str::<crate::Rollout>(&text).unwrap(), world.rollout);
    let with_more = text.replacen('{', "{\"surprise\":1,", 1);
    assert!(serde_json::from_str::<crate::Rollout>(&with_more).unwrap_err().to_string().contains("surprise"));
}

#[test]
fn success_is_counted_over_devices_targeted_and_errors_over_those_that_reported() {
    let mut wanted = spec(&["100%"]);
    (wanted.limits.max_failures, wanted.limits.max_error_rate) = (5, 1.0);
    let mut world = World::new(wanted, &["a", "b", "c", "d", "e"]);
    world.tick(0);
    // Of five, three commit; one of them reports an error and one nothing at all. One reverts, and one is never heard of.
    ["a", "b", "c"].iter().for_each(|name| world.commits(name));
    world.serves("a", Served::default());
    world.serves("b", Served { errors: 1, ..Served::default() });
    world.fails("d", UpdateState::Reverted, "golden examples");
    let decision = world.tick(1);
    let outcomes = world.rollout.view(&world.fleet, &decision.waiting).outcomes;
    assert_eq!(
        outcomes.to_string(),
        "success on 3 of 5 devices targeted (60.0 %), errors on 1 of 2 that reported (50.0 %), 1 failed"
    );
    // A verdict says the same of the same devices.
    let decision = world.tick(MAX_MS);
    let canary = decision.next.verdicts.last().unwrap().canary;
    assert_eq!((canary.outcomes(), canary.reporting, canary.devices), (outcomes, 2, 5));
}
