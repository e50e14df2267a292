//! What people are told who ask why.

use muster_shared::messages::{HeldBack, UpdateState};
use muster_shared::rollout::{Decider, DeviceExplanation, DeviceProgress, Explanation, Outcome, Rule, Waiting};

use super::world::{MAX_MS, SOAK_MS, START_MS, Served, World, check, device, installed, new, old, spec};
use crate::OperatorAction;

fn explained(world: &World) -> Explanation {
    world.rollout.explain(&world.fleet, None, world.now_ms)
}

fn of(world: &World, name: &str) -> DeviceExplanation {
    world.rollout.explain(&world.fleet, Some(&device(name)), world.now_ms).device.unwrap()
}

/// What is said of the device, who decides, and how far it is.
fn said(world: &World, name: &str) -> (String, Decider, Option<DeviceProgress>) {
    let DeviceExplanation { doing, decider, progress, .. } = of(world, name);
    (doing, decider, progress)
}

#[test]
fn a_rollout_says_what_it_does_what_it_waits_for_and_who_decides_next() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    let before = explained(&world);
    assert_eq!(
        (before.doing.as_str(), before.decider),
        ("it is about to bring digits@1.2.0 to wave 1 of 2", Decider::Controller)
    );
    assert_eq!((before.pauses_at_ms, before.numbers), (None, None));

    world.tick(0);
    let running = explained(&world);
    assert_eq!(running.doing, "it brings digits@1.2.0 to wave 1 of 2: 1 device told");
    assert_eq!((running.decider, running.pauses_at_ms), (Decider::Devices, Some(START_MS + MAX_MS)));
    assert_eq!(running.obstacles[0].what, Waiting::Updating { done: 0, of: 1 });

    world.all_commit();
    world.tick(1);
    let soaking = explained(&world);
    assert_eq!(soaking.doing, "it brings digits@1.2.0 to wave 1 of 2: 1 device committed");
    assert_eq!(soaking.decider, Decider::Clock { at_ms: START_MS + 1 + SOAK_MS });
    let numbers = soaking.numbers.unwrap();
    assert_eq!((numbers.outcome, numbers.at_ms), (Outcome::Inconclusive, world.now_ms));
    assert_eq!(numbers.summary, "wave 1 so far: 100 requests in 3 reports from 1 of 1 device");
    assert_eq!(check(&numbers, Rule::ErrorRate).measured, Some(0.0));

    world.apply(OperatorAction::Pause);
    let paused = explained(&world);
    assert_eq!(paused.doing, "it is paused in wave 1 of 2: 1 device committed (paused by alice)");
    assert_eq!((paused.decider, paused.pauses_at_ms), (Decider::People, None));

    world.apply(OperatorAction::Rollback);
    world.tick(1);
    let back = explained(&world);
    assert_eq!(
        back.doing,
        "it takes its devices back from digits@1.2.0 to what they ran before (rollback ordered by alice)"
    );
    assert_eq!(back.decider, Decider::Devices);
    let first = world.first(0);
    world.commits(&first);
    world.tick(1);
    let ended = explained(&world);
    assert_eq!((ended.decider, ended.obstacles), (Decider::Nobody, vec![]));
    assert!(ended.doing.starts_with("it has gone back"), "{}", ended.doing);
}

#[test]
fn numbers_past_a_limit_are_said_before_they_are_acted_upon() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.commits("a");
    world.serves("a", Served { errors: 50, ..Served::default() });
    let numbers = explained(&world).numbers.unwrap();
    assert_eq!((numbers.outcome, check(&numbers, Rule::ErrorRate).measured), (Outcome::Failed, Some(0.5)));
    world.tick(1);
    let verdict = world.rollout.verdicts.last().unwrap().shown();
    assert_eq!(explained(&world).numbers, Some(verdict), "the verdict, once there is one");
}

#[test]
fn a_device_that_is_in_says_how_far_it_is_and_what_it_measured() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    let told = of(&world, "a").told.unwrap();
    assert_eq!((told.manifest, told.generation, told.at_ms, told.attempts), (Some(new()), 2, START_MS, 1));
    let untaken = "it has been told to run digits@1.2.0, and has not taken that up yet";
    assert_eq!(said(&world, "a"), (untaken.into(), Decider::Devices, Some(DeviceProgress::Assigned)));
    world.facts("a").online = false;
    assert_eq!(said(&world, "a").0, "it is away, and is told on return to run digits@1.2.0");
    world.facts("a").online = true;
    world.works("a", UpdateState::Fetching);
    world.report("a", |report, _| {
        (report.update.chunks_done, report.update.chunks_total) = (3, 12);
        report.update.held_back = Some(HeldBack::MeteredLink);
    });
    let fetching = "it fetches digits@1.2.0: 3 of 12 chunks; it does not fetch now: metered link";
    assert_eq!(said(&world, "a"), (fetching.into(), Decider::Devices, Some(DeviceProgress::Updating)));
    world.works("a", UpdateState::Trial);
    let trial = "it serves digits@1.2.0 under watch, before it commits";
    assert_eq!(said(&world, "a"), (trial.into(), Decider::Devices, Some(DeviceProgress::Trial)));
    world.commits("a");
    world.serves("a", Served { errors: 2, ..Served::default() });
    assert_eq!(said(&world, "a").0, "it has committed digits@1.2.0");
    let measured = of(&world, "a").measured.unwrap();
    assert_eq!((measured.reports, measured.requests, measured.errors), (3, 100, 2));

    world.apply(OperatorAction::Rollback);
    world.tick(1);
    world.fails("a", UpdateState::Failed, "no room");
    let stuck = of(&world, "a").doing;
    assert!(stuck.starts_with("it could not go back to what it ran before") && stuck.contains("no room"), "{stuck}");
    assert!(stuck.ends_with("it is told again, for the second of 3 times"), "{stuck}");
}

#[test]
fn a_device_that_failed_is_said_to_have() {
    let mut tolerant = spec(&["100%"]);
    tolerant.limits.max_failures = 1;
    let mut world = World::new(tolerant, &["a", "b"]);
    world.tick(0);
    world.fails("a", UpdateState::Reverted, "wrong answers");
    world.tick(1);
    let failed = "it counts as failed on digits@1.2.0, and is not tried again: reverted: wrong answers";
    assert_eq!(said(&world, "a"), (failed.into(), Decider::Nobody, Some(DeviceProgress::Failed)));
}

#[test]
fn a_device_that_is_not_in_is_told_why() {
    let mut wish = spec(&["1", "100%"]);
    wish.selector = "site!=lyon".parse().unwrap();
    let mut world = World::new(wish, &["elsewhere", "one", "two", "held", "mute", "small", "shut"]);
    world.facts("elsewhere").labels.insert("site".into(), "lyon".into());
    world.facts("held").held_by = Some("r7".parse().unwrap());
    world.facts("shut").revoked = true;
    world.facts("mute").reported = None;
    world.facts("small").reported.as_mut().unwrap().generation = u64::MAX;
    let outsider = |world: &World, name: &str| {
        let DeviceExplanation { doing, decider, wave, progress, told, .. } = of(world, name);
        assert_eq!((progress.is_some(), told), (wave.is_some(), None));
        (doing, decider, wave)
    };
    assert_eq!(
        outsider(&world, "elsewhere"),
        ("it is not meant: the selector is site!=lyon".into(), Decider::People, None)
    );
    assert_eq!(
        outsider(&world, "held"),
        ("it belongs to r7, which has not ended".into(), Decider::OtherRollouts, None)
    );
    assert!(outsider(&world, "shut").0.contains("shut out"));
    assert!(outsider(&world, "small").0.starts_with("it is left out: it reports generation"));
    assert_eq!(outsider(&world, "gone"), ("it is not known".into(), Decider::Nobody, None));
    world.tick(0);
    let (first, other) = (world.first(0), ["one", "two", "mute"]);
    for name in other.into_iter().filter(|name| *name != first) {
        let (doing, decider, wave) = outsider(&world, name);
        assert_eq!(doing, "as things are, it comes in with wave 2 of 2", "{name}");
        assert_eq!((decider, wave), (Decider::Devices, Some(1)));
    }
    world.apply(OperatorAction::Abort);
    let late = other.into_iter().find(|name| *name != first).unwrap();
    assert!(outsider(&world, late).0.contains("being stopped, takes nobody in"));
    assert_eq!(said(&world, &first).0, "it keeps what it has: the rollout was stopped");
}

#[test]
fn a_device_that_another_rollout_took_is_not_spoken_for() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.facts("a").desired =
        Some(crate::Desired { manifest: Some(old()), generation: 9, rollout: "r8".parse().unwrap() });
    assert_eq!(said(&world, "a").0, "it belongs to r8 by now, and this rollout has no say over it");
    let mut kept = World::new(spec(&["100%"]), &["a"]);
    let report = kept.facts("a").reported.as_mut().unwrap();
    (report.running, report.committed) = (Some(installed(new(), 1)), Some(installed(new(), 1)));
    kept.tick(0);
    assert_eq!(said(&kept, "a").0, "it ran digits@1.2.0 before the rollout came: it counts, and is told nothing");
    assert_eq!(of(&kept, "a").told, None);
}
