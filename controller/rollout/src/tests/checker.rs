//! The checker finds what a faulty planner would do. Each test spoils a right decision in one way.

use muster_shared::ids::Digest;
use muster_shared::messages::UpdateState;
use muster_shared::rollout::{Outcome, RolloutStatus, Waiting};

use super::world::{MAX_MS, SOAK_MS, Served, World, device, old, spec};
use crate::{Action, Decision, Errand, OperatorAction, Target, Violation, plan, verify};

/// A decision that is right, then spoilt: every rule it breaks now.
fn spoilt(world: &World, spoil: impl FnOnce(&mut Decision)) -> Vec<Violation> {
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
    assert_eq!(verify(&world.rollout, &decision, &world.fleet, world.now_ms), Ok(()));
    spoil(&mut decision);
    verify(&world.rollout, &decision, &world.fleet, world.now_ms).expect_err("a spoilt decision must be found")
}

fn target_of<'d>(decision: &'d mut Decision, name: &str) -> &'d mut Target {
    decision.next.targets.get_mut(&device(name)).unwrap()
}

/// One canary of four, told and fetching, at a time at which nothing changes.
fn fetching() -> (World, String) {
    let mut world = World::new(spec(&["1", "50%", "100%"]), &["a", "b", "c", "d"]);
    world.tick(0);
    let first = world.first(0);
    world.works(&first, UpdateState::Fetching);
    world.tick(1);
    (world, first)
}

/// The same, about to pass its first wave.
fn about_to_pass() -> (World, String) {
    let (mut world, first) = fetching();
    world.commits(&first);
    world.serves(&first, Served::default());
    world.tick(1);
    world.now_ms += SOAK_MS;
    (world, first)
}

fn outsider(world: &World) -> String {
    world.fleet.devices.keys().find(|id| !world.rollout.takes_part(id)).unwrap().to_string()
}

fn has(found: &[Violation], is: impl Fn(&Violation) -> bool) -> bool {
    found.iter().any(is)
}

#[test]
fn promotion_without_evidence() {
    let (world, _) = about_to_pass();
    // The decision made with the evidence, held against a fleet that has none.
    let decision = plan(&world.rollout, &world.fleet, world.now_ms);
    assert_eq!(decision.next.current_wave, 1);
    let mut silent = world.fleet.clone();
    silent.devices.values_mut().for_each(|facts| facts.evidence.clear());
    let found = verify(&world.rollout, &decision, &silent, world.now_ms).unwrap_err();
    assert!(has(&found, |v| matches!(v, Violation::Unfounded { why, .. } if why.contains("0 of 3 reports"))));
    assert!(has(&found, |v| matches!(v, Violation::Unfounded { why, .. } if why.contains("0 of 100 requests"))));
}

#[test]
fn promotion_before_the_device_has_committed_or_soaked() {
    let (world, first) = about_to_pass();
    let decision = plan(&world.rollout, &world.fleet, world.now_ms);
    let mut busy = world.fleet.clone();
    busy.devices.get_mut(&device(&first)).unwrap().reported.as_mut().unwrap().update.state = UpdateState::Trial;
    let found = verify(&world.rollout, &decision, &busy, world.now_ms).unwrap_err();
    assert!(has(&found, |v| matches!(v, Violation::Unfounded { why, .. } if why.contains("has not arrived"))));
    assert!(has(&found, |v| matches!(v, Violation::Unfounded { why, .. } if why.contains("no device of it"))));

    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms - 1).unwrap_err();
    assert!(has(&found, |v| matches!(v, Violation::Unfounded { why, .. } if why.contains("soaked"))));
}

#[test]
fn promotion_out_of_thin_air() {
    let (world, _) = fetching();
    let found = spoilt(&world, |decision| decision.next.current_wave = 1);
    assert!(has(&found, |v| matches!(v, Violation::Verdict(_))));
    assert!(has(&found, |v| matches!(v, Violation::Unfounded { .. })));
    let found = spoilt(&world, |decision| decision.next.current_wave = 2);
    assert!(has(&found, |v| *v == Violation::WaveSkipped { from: 0, to: 2 }));
    let found = spoilt(&world, |decision| decision.next.status = RolloutStatus::Completed);
    assert!(has(&found, |v| *v == Violation::WaveSkipped { from: 0, to: 0 }));
}

#[test]
fn verdicts_that_are_forged_or_rewritten() {
    let (mut world, _) = about_to_pass();
    let found = spoilt(&world, |decision| decision.next.verdicts[0].canary.requests += 1);
    assert!(has(&found, |v| matches!(v, Violation::Verdict(why) if why.contains("numbers"))));
    let found = spoilt(&world, |decision| decision.next.verdicts[0].outcome = Outcome::Inconclusive);
    assert!(has(&found, |v| matches!(v, Violation::Verdict(_))));
    let found = spoilt(&world, |decision| decision.next.verdicts[0].checks.clear());
    assert!(has(&found, |v| matches!(v, Violation::Verdict(_))));
    world.tick(0);
    world.now_ms += 1;
    let found = spoilt(&world, |decision| decision.next.verdicts.clear());
    assert!(has(&found, |v| matches!(v, Violation::Verdict(why) if why.contains("changed"))));
    let found = spoilt(&world, |decision| {
        let again = decision.next.verdicts[0].clone();
        decision.next.verdicts.push(again);
    });
    assert!(has(&found, |v| matches!(v, Violation::Verdict(_))));
}

#[test]
fn limits_that_are_ignored() {
    let (mut world, first) = fetching();
    let calm = plan(&world.rollout, &world.fleet, world.now_ms + 1);
    world.fails(&first, UpdateState::Reverted, "");
    let found = verify(&world.rollout, &calm, &world.fleet, world.now_ms + 1).unwrap_err();
    assert!(has(&found, |v| matches!(v, Violation::LimitIgnored { why, .. } if why.contains("1 devices failed"))));

    world.commits(&first);
    world.serves(&first, Served { errors: 100, ..Served::default() });
    let found = verify(&world.rollout, &calm, &world.fleet, world.now_ms + 1).unwrap_err();
    assert!(has(&found, |v| matches!(v, Violation::LimitIgnored { why, .. } if why.contains("requests failed"))));
}

#[test]
fn more_devices_than_the_wave_allows() {
    let (world, first) = fetching();
    let name = outsider(&world);
    let found = spoilt(&world, |decision| {
        let target = target_of(decision, &first).clone();
        decision.next.targets.insert(device(&name), target.clone());
        decision.actions.push(Action::Assign {
            device: device(&name),
            manifest: target.manifest,
            generation: target.generation,
        });
    });
    assert_eq!(found, [Violation::CapExceeded { wave: 0, have: 2, allowed: 1 }]);
}

#[test]
fn devices_taken_in_that_may_not_be() {
    type Spoil = fn(&mut World, &str);
    let spoils: [(Spoil, &str); 8] = [
        (|world, name| world.facts(name).revoked = true, "revoked"),
        (|world, name| world.facts(name).held_by = Some("r9".parse().unwrap()), "another rollout has it"),
        (|world, name| drop(world.fleet.devices.remove(&device(name))), "does not exist"),
        (|world, name| world.facts(name).reported.as_mut().unwrap().generation = 9, "not new"),
        (|world, _| world.rollout.bundle.requirements.min_memory_bytes = 1, "not known to be able to run"),
        (
            |world, _| world.rollout.bundle.requirements.cpu_features = ["sve".to_owned()].into(),
            "not known to be able to run",
        ),
        (
            |world, _| world.rollout.bundle.requirements.attributes = Some("soc=bcm2711".parse().unwrap()),
            "not known to be able to run",
        ),
        (|world, _| world.rollout.spec.selector = "site=lyon".parse().unwrap(), "not selected"),
    ];
    for (spoil, word) in spoils {
        let mut world = World::new(spec(&["100%"]), &["a"]);
        let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
        spoil(&mut world, "a");
        decision.next.bundle = world.rollout.bundle.clone();
        decision.next.spec = world.rollout.spec.clone();
        let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
        assert!(has(&found, |v| matches!(v, Violation::TakenIn { why, .. } if why.contains(word))), "{found:?}");
    }
}

#[test]
fn a_device_said_to_have_what_it_has_not() {
    let world = World::new(spec(&["100%"]), &["a"]);
    let found = spoilt(&world, |decision| {
        let target = target_of(decision, "a");
        (target.errand, target.generation) = (Errand::Keep, 1);
        decision.actions.clear();
    });
    assert!(has(&found, |v| matches!(v, Violation::TakenIn { why, .. } if why.contains("has not"))));
}

#[test]
fn targets_that_change_as_they_may_not() {
    let (mut world, first) = fetching();
    world.now_ms += 1;
    type Spoil = fn(&mut Target);
    let spoils: [(Spoil, &str); 6] = [
        (|target| target.generation -= 1, "its generation fell"),
        (|target| target.wave = 1, "its wave changed"),
        (|target| target.previous = None, "its past changed"),
        (|target| target.manifest = Some(Digest::of(b"x")), "neither the bundle nor its past"),
        (|target| target.errand = Errand::Back, "no such way"),
        (|target| target.errand = Errand::Keep, "no such way"),
    ];
    for (spoil, word) in spoils {
        let found = spoilt(&world, |decision| spoil(target_of(decision, &first)));
        assert!(has(&found, |v| matches!(v, Violation::Target { why, .. } if why.contains(word))), "{word}: {found:?}");
    }
    let found = spoilt(&world, |decision| drop(decision.next.targets.remove(&device(&first))));
    assert!(has(&found, |v| matches!(v, Violation::Dropped(_))));
    world.facts(&first).reported.as_mut().unwrap().generation = 5;
    let found = spoilt(&world, |decision| target_of(decision, &first).generation = 4);
    assert!(has(&found, |v| matches!(v, Violation::Target { why, .. } if why.contains("not new"))));
}

#[test]
fn a_device_that_failed_and_is_tried_again() {
    let mut tolerant = spec(&["2", "100%"]);
    tolerant.limits.max_failures = 1;
    let mut world = World::new(tolerant, &["a", "b", "c"]);
    world.tick(0);
    let first = world.first(0);
    world.fails(&first, UpdateState::Failed, "");
    world.tick(1);
    world.now_ms += 1;
    let found = spoilt(&world, |decision| target_of(decision, &first).generation += 1);
    assert!(has(&found, |v| matches!(v, Violation::Target { why, .. } if why.contains("tried again"))));
    let found = spoilt(&world, |decision| target_of(decision, &first).failure = None);
    assert!(has(&found, |v| matches!(v, Violation::Target { why, .. } if why.contains("forgotten"))));
}

#[test]
fn messages_to_whom_they_are_not_for() {
    let (mut world, first) = fetching();
    let name = outsider(&world);
    let tell = |name: &str, generation| Action::Assign {
        device: device(name),
        manifest: Some(super::world::new()),
        generation,
    };
    let found = spoilt(&world, |decision| decision.actions.push(tell(&name, 2)));
    assert!(has(&found, |v| matches!(v, Violation::Told { why, .. } if why.contains("not in the rollout"))));
    let found = spoilt(&world, |decision| decision.actions.push(tell("nobody", 2)));
    assert!(has(&found, |v| matches!(v, Violation::Told { why, .. } if why.contains("does not exist"))));
    let found = spoilt(&world, |decision| decision.actions.push(tell(&first, 1)));
    assert!(has(&found, |v| matches!(v, Violation::Told { why, .. } if why.contains("another target"))));
    let found = spoilt(&world, |decision| decision.actions.push(tell(&first, 2)));
    assert!(has(&found, |v| matches!(v, Violation::Told { why, .. } if why.contains("knows that generation"))));

    world.facts(&first).reported.as_mut().unwrap().generation = 1;
    let found = spoilt(&world, |decision| decision.actions.clear());
    assert_eq!(found, [Violation::NotTold(device(&first))]);
    let found = spoilt(&world, |decision| decision.actions.push(tell(&first, 2)));
    assert!(has(&found, |v| matches!(v, Violation::Told { why, .. } if why.contains("twice"))));
    world.facts(&first).revoked = true;
    let found = spoilt(&world, |decision| decision.actions.push(tell(&first, 2)));
    assert!(has(&found, |v| matches!(v, Violation::Told { why, .. } if why.contains("revoked"))));
}

#[test]
fn the_bundle_spread_further_while_paused_stopped_or_going_back() {
    for action in [OperatorAction::Pause, OperatorAction::Abort, OperatorAction::Rollback] {
        let (mut world, first) = fetching();
        world.apply(action);
        world.now_ms += 1;
        let name = outsider(&world);
        let found = spoilt(&world, |decision| {
            let mut target = target_of(decision, &first).clone();
            (target.errand, target.manifest, target.generation) = (Errand::Forward, Some(super::world::new()), 2);
            decision.next.targets.insert(device(&name), target);
            decision.actions.push(Action::Assign {
                device: device(&name),
                manifest: Some(super::world::new()),
                generation: 2,
            });
        });
        assert!(has(&found, |v| matches!(v, Violation::TakenIn { why, .. } if why.contains("takes nobody in"))));
        assert!(has(&found, |v| matches!(v, Violation::Told { .. })), "{action:?}: {found:?}");
    }
}

#[test]
fn states_left_without_an_operator() {
    use RolloutStatus::{Completed, Paused, Ready, RolledBack, RollingBack, Running, Stopped};
    let (mut world, _) = fetching();
    world.now_ms += 1;
    for from in [Paused, Completed, RolledBack, Stopped] {
        world.rollout.status = from;
        for to in [Ready, Running, RollingBack] {
            let found = spoilt(&world, |decision| decision.next.status = to);
            assert!(has(&found, |v| *v == Violation::Absorbing(from)), "{from} to {to}: {found:?}");
        }
        let found = spoilt(&world, |decision| decision.next.updated_at_ms += 1);
        assert!(has(&found, |v| *v == Violation::Absorbing(from)));
    }
    world.rollout.status = Running;
    let found = spoilt(&world, |decision| decision.next.status = Stopped);
    assert!(has(&found, |v| *v == Violation::Transition { from: Running, to: Stopped }));
    let found = spoilt(&world, |decision| decision.next.status = Paused);
    assert!(has(&found, |v| matches!(v, Violation::Verdict(why) if why.contains("none"))));
    assert!(has(&found, |v| *v == Violation::Silent));
}

#[test]
fn a_rollback_that_forgets_somebody() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.tick(0);
    world.all_commit();
    world.apply(OperatorAction::Rollback);
    world.tick(1);
    world.commits("a");
    world.now_ms += 1;
    let found = spoilt(&world, |decision| decision.next.status = RolloutStatus::RolledBack);
    assert!(has(&found, |v| *v == Violation::NotBack(device("b"))));

    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.tick(0);
    world.apply(OperatorAction::Rollback);
    let before = world.rollout.targets.clone();
    let found = spoilt(&world, |decision| {
        decision.next.targets = before;
        decision.actions.clear();
    });
    assert!(has(&found, |v| matches!(v, Violation::Target { why, .. } if why.contains("still told"))));
    let found = spoilt(&world, |decision| {
        decision.actions.retain(|Action::Assign { device, .. }| device.as_str() != "a");
    });
    assert_eq!(found, [Violation::NotTold(device("a"))]);
    let found = spoilt(&world, |decision| target_of(decision, "a").manifest = Some(Digest::of(b"third")));
    assert!(has(&found, |v| matches!(v, Violation::Target { why, .. } if why.contains("neither"))));
    assert_eq!(world.target("a").unwrap().previous, Some(old()));
}

#[test]
fn times_and_names_that_change() {
    let (mut world, _) = about_to_pass();
    world.tick(0);
    world.now_ms += 1;
    type Spoil = fn(&mut crate::Rollout);
    for spoil in [
        (|next| next.waves[0].soak_from_ms = None) as Spoil,
        |next| next.waves[0].started_at_ms = Some(1),
        |next| next.waves[1].started_at_ms = Some(1),
        |next| next.waves[1].clock_from_ms = Some(1),
        |next| next.waves[1].soak_from_ms = Some(1),
        |next| next.waves[2].started_at_ms = Some(1),
    ] {
        let found = spoilt(&world, |decision| spoil(&mut decision.next));
        assert!(has(&found, |v| matches!(v, Violation::Time { .. })), "{found:?}");
    }
    for spoil in [
        (|next| next.id = "other".parse().unwrap()) as Spoil,
        |next| next.spec.limits.max_failures += 1,
        |next| next.bundle.manifest = old(),
        |next| next.created_at_ms += 1,
        |next| next.waves.truncate(2),
    ] {
        let found = spoilt(&world, |decision| spoil(&mut decision.next));
        assert!(has(&found, |v| matches!(v, Violation::Changed { .. })), "{found:?}");
    }
    let found = spoilt(&world, |decision| decision.wake_at_ms = Some(1));
    assert_eq!(found, [Violation::Wake]);
}

#[test]
fn every_violation_says_what_is_wrong() {
    let (mut world, _) = fetching();
    world.now_ms += MAX_MS;
    let found = spoilt(&world, |decision| {
        decision.waiting.retain(|waiting| !matches!(waiting, Waiting::Paused { .. }));
        decision.next.created_at_ms += 1;
    });
    let words: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        words,
        ["the time of creation changed, which never changes", "nothing says why the rollout is not further"]
    );
}
