//! Groups of devices that switch together.

use std::collections::BTreeSet;

use muster_shared::messages::{HeldBack, UpdateState};
use muster_shared::rollout::{BlueGreen, DeviceProgress, Prepared, RolloutStatus, Waiting};
use muster_shared::trust::Activation;

use super::world::{MAX_MS, SOAK_MS, World, device, last_verdict, new, old, spec, statuses, told, waits_for};
use crate::{Decision, OperatorAction, Violation, plan, verify};

const LEAD_MS: u64 = 500;

/// A rollout over sites; each device is named `site-number`.
fn sites(waves: &[&str], devices: &[&str]) -> World {
    let mut wanted = spec(waves);
    wanted.blue_green = Some(BlueGreen { group_by: "site".to_owned(), lead_ms: LEAD_MS });
    let mut world = World::new(wanted, devices);
    devices.iter().for_each(|name| settle(&mut world, name));
    world
}

fn settle(world: &mut World, name: &str) {
    let site = name.split_once('-').unwrap().0.to_owned();
    let facts = world.facts(name);
    facts.labels.insert("site".to_owned(), site);
    facts.reported.as_mut().unwrap().can_hold = true;
}

/// The device has prepared the bundle and waits.
fn prepares(world: &mut World, name: &str) {
    world.works(name, UpdateState::Verified);
    world.report(name, |report, target| {
        report.can_hold = true;
        let at_ms = match target.activation {
            Activation::At { at_ms } => Some(at_ms),
            Activation::AtOnce | Activation::Hold => None,
        };
        report.update.held_back = Some(HeldBack::Switch { at_ms });
    });
}

fn activation(world: &World, name: &str) -> Activation {
    world.target(name).unwrap().activation
}

fn preparing(decision: &Decision, group: &str, ready: u32, of: u32) -> bool {
    waits_for(
        decision,
        |w| matches!(w, Waiting::Preparing { groups } if groups.get(group) == Some(&Prepared { ready, of })),
    )
}

#[test]
fn a_group_is_told_one_time_once_all_of_it_are_ready_and_the_wave_runs_from_then_on() {
    let mut world = sites(&["1", "100%"], &["lyon-1", "lyon-2", "lyon-3", "nice-1", "nice-2"]);
    let first = world.tick(0);
    let site = told(&first)[0].split_once('-').unwrap().0.to_owned();
    // Whole groups come in, and the wave's size counts them.
    let members: Vec<String> = told(&first).into_iter().map(str::to_owned).collect();
    assert!(members.iter().all(|name| name.starts_with(&site)));
    assert_eq!(members.len(), if site == "lyon" { 3 } else { 2 });
    let of = u32::try_from(members.len()).unwrap();
    let (last, others) = members.split_last().unwrap();
    others.iter().for_each(|name| prepares(&mut world, name));
    world.works(last, UpdateState::Fetching);
    let decision = world.tick(1);
    assert!(decision.actions.is_empty() && preparing(&decision, &site, of - 1, of), "{:?}", decision.waiting);
    assert_eq!(world.progress(&others[0]), Some(DeviceProgress::Ready));
    assert!(members.iter().all(|name| activation(&world, name) == Activation::Hold));
    prepares(&mut world, last);
    let decision = world.tick(MAX_MS / 2);
    assert_eq!(told(&decision), members);
    let at_ms = world.now_ms + LEAD_MS;
    assert!(members.iter().all(|name| activation(&world, name) == Activation::At { at_ms }));
    assert!(waits_for(&decision, |w| matches!(w, Waiting::Switching { groups } if groups.get(&site) == Some(&at_ms))));
    // Preparing has not used the wave's time up.
    world.all_commit();
    assert_eq!(statuses(&world.tick(MAX_MS / 2)), (RolloutStatus::Running, 0));
    world.all_commit();
    assert_eq!(statuses(&world.tick(SOAK_MS)), (RolloutStatus::Running, 1));
    assert_eq!(world.rollout.targets.len(), 5, "the other site prepares");
    assert!(world.cohort(1).iter().all(|name| activation(&world, name) == Activation::Hold));
}

#[test]
fn who_is_away_holds_nobody_up_and_switches_on_return() {
    let mut world = sites(&["100%"], &["lyon-1", "lyon-2", "nice-1"]);
    world.facts("lyon-2").online = false;
    world.facts("nice-1").online = false;
    world.tick(0);
    prepares(&mut world, "lyon-1");
    world.tick(1);
    assert!(matches!(activation(&world, "lyon-1"), Activation::At { .. }));
    assert_eq!(activation(&world, "lyon-2"), activation(&world, "lyon-1"));
    assert_eq!(activation(&world, "nice-1"), Activation::Hold, "nobody of it has prepared anything");
    world.commits("lyon-1");
    world.serves("lyon-1", Default::default());
    world.tick(LEAD_MS);
    let done = world.tick(SOAK_MS);
    assert_eq!(done.next.status, RolloutStatus::Completed);
    assert!(matches!(activation(&world, "nice-1"), Activation::At { .. }), "nobody is left to tell it later");
    world.facts("nice-1").online = true;
    assert_eq!(told(&world.tick(1)), ["nice-1"]);
}

#[test]
fn a_failure_takes_every_group_back_that_has_the_bundle_and_leaves_the_others_alone() {
    for after_the_switch in [false, true] {
        let mut world = sites(&["1", "100%"], &["lyon-1", "lyon-2", "nice-1", "nice-2"]);
        let decision = world.tick(0);
        let members: Vec<String> = told(&decision).into_iter().map(str::to_owned).collect();
        if after_the_switch {
            members.iter().for_each(|name| prepares(&mut world, name));
            world.tick(1);
            world.works(&members[0], UpdateState::Trial);
        } else {
            prepares(&mut world, &members[0]);
        }
        world.fails(&members[1], UpdateState::Reverted, "errors");
        let decision = world.tick(1);
        assert_eq!(
            (told(&decision), decision.next.status),
            (members.iter().map(String::as_str).collect(), RolloutStatus::RollingBack)
        );
        assert!(
            members.iter().all(|name| activation(&world, name) == Activation::AtOnce),
            "ways back wait for nothing"
        );
        world.all_commit();
        assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
        assert_eq!(world.rollout.targets.len(), 2);
    }
}

#[test]
fn a_group_that_does_not_get_ready_pauses_the_wave_with_its_name() {
    let mut world = sites(&["100%"], &["lyon-1", "lyon-2"]);
    world.tick(0);
    prepares(&mut world, "lyon-1");
    world.works("lyon-2", UpdateState::Fetching);
    let decision = world.tick(MAX_MS);
    assert_eq!(decision.next.status, RolloutStatus::Paused);
    let summary = &last_verdict(&world.rollout).summary;
    assert!(summary.contains("preparing: lyon 1 of 2 ready"), "{summary}");
    prepares(&mut world, "lyon-2");
    assert!(world.tick(1).actions.is_empty(), "nobody is told to switch while it is paused");
    world.apply(OperatorAction::Resume);
    assert_eq!(told(&world.tick(1)).len(), 2);
}

#[test]
fn who_joins_a_site_joins_its_group_and_who_cannot_wait_is_left_out() {
    let mut world = sites(&["1", "100%"], &["lyon-1", "lyon-2"]);
    world.add("lyon-old");
    world.facts("lyon-old").labels.insert("site".to_owned(), "lyon".to_owned());
    world.add("nowhere-1");
    settle(&mut world, "nowhere-1");
    world.facts("nowhere-1").labels.clear();
    let decision = world.tick(0);
    assert_eq!(told(&decision), ["lyon-1", "lyon-2"]);
    let left_out = |name: &str, word: &str| {
        waits_for(
            &decision,
            |w| matches!(w, Waiting::Unsuitable { devices } if devices.get(&device(name)).is_some_and(|why| why.contains(word))),
        )
    };
    assert!(left_out("lyon-old", "muster-agent") && left_out("nowhere-1", "\"site\""), "{:?}", decision.waiting);
    prepares(&mut world, "lyon-1");
    prepares(&mut world, "lyon-2");
    world.add("lyon-3");
    settle(&mut world, "lyon-3");
    assert_eq!(told(&world.tick(1)), ["lyon-3"], "the others wait for it");
    prepares(&mut world, "lyon-3");
    assert_eq!(told(&world.tick(1)).len(), 3);
    // One that comes after the switch prepares, and switches by itself.
    world.add("lyon-4");
    settle(&mut world, "lyon-4");
    assert_eq!(told(&world.tick(1)).last(), Some(&"lyon-4"));
    prepares(&mut world, "lyon-4");
    world.tick(1);
    assert!(matches!(activation(&world, "lyon-4"), Activation::At { .. }));
    // A name of a group is kept, whatever the label says later.
    world.facts("lyon-4").labels.insert("site".to_owned(), "nice".to_owned());
    world.tick(1);
    assert_eq!(world.target("lyon-4").unwrap().group.as_deref(), Some("lyon"));
}

#[test]
fn a_time_too_far_ahead_is_told_anew() {
    let mut world = sites(&["100%"], &["lyon-1"]);
    world.tick(0);
    prepares(&mut world, "lyon-1");
    let hour_ms = 3_600_000;
    world.now_ms += hour_ms;
    world.tick(0);
    prepares(&mut world, "lyon-1");
    world.now_ms -= hour_ms;
    world.tick(0);
    assert_eq!(activation(&world, "lyon-1"), Activation::At { at_ms: world.now_ms + LEAD_MS });
    prepares(&mut world, "lyon-1");
    assert!(world.tick(1).actions.is_empty());
}

/// Two sites: Lyon has a time to switch at, Nice holds; then the rollout is stopped.
fn stopped_before_the_switch() -> World {
    let mut world = sites(&["100%"], &["lyon-1", "lyon-2", "nice-1", "nice-2"]);
    world.tick(0);
    ["lyon-1", "lyon-2", "nice-1"].into_iter().for_each(|name| prepares(&mut world, name));
    world.works("nice-2", UpdateState::Fetching);
    world.tick(1);
    assert!(matches!(activation(&world, "lyon-1"), Activation::At { .. }));
    assert_eq!(activation(&world, "nice-1"), Activation::Hold);
    world
}

#[test]
fn a_stop_calls_back_whoever_waits_to_switch_and_leaves_those_that_have() {
    let mut world = stopped_before_the_switch();
    // One has switched and is on trial, one is away with the time in its hands.
    world.works("lyon-1", UpdateState::Trial);
    world.facts("lyon-2").online = false;
    world.apply(OperatorAction::Abort);
    assert_eq!(world.rollout.status, RolloutStatus::Stopped, "a stop takes effect at once");
    let decision = world.tick(1);
    assert_eq!(told(&decision), ["lyon-2", "nice-1", "nice-2"]);
    assert!(decision.actions.iter().all(|crate::Action::Assign { manifest, .. }| *manifest == Some(old())));
    assert!(waits_for(&decision, |w| *w == Waiting::GoingBack { done: 0, of: 2 }));
    assert!(waits_for(&decision, |w| matches!(w, Waiting::Offline { devices } if *devices == [device("lyon-2")])));
    assert_eq!(world.target("lyon-1").unwrap().errand, crate::Errand::Forward);
    for name in ["nice-1", "nice-2"] {
        assert_eq!(world.progress(name), Some(DeviceProgress::GoingBack));
        world.commits(name);
    }
    assert!(told(&world.tick(1)).is_empty());
    assert_eq!(world.progress("nice-1"), Some(DeviceProgress::Back));
    // Who was away switched by itself; it is called back all the same, as its group did not.
    world.facts("lyon-2").online = true;
    assert_eq!(told(&world.tick(1)), ["lyon-2"]);
    let explained = world.rollout.explain(&world.fleet, Some(&device("lyon-2")), world.now_ms).device.unwrap();
    assert!(explained.doing.contains("has been told to run what it ran before"), "{explained:?}");
    world.commits("lyon-2");
    world.tick(1);
    assert!(world.rollout.view(&world.fleet, &[]).waiting.is_empty());
    assert_eq!(world.rollout.status, RolloutStatus::Stopped);
}

#[test]
fn a_stop_of_the_fleet_and_an_emergency_call_back_too_and_a_rollout_without_groups_stays_silent() {
    let halted = stopped_before_the_switch().rollout.halted("alice", None, 7).unwrap();
    assert!(halted.needs_planning() && crate::goes_on_in_a_stop(halted.status));
    let mut plain = World::new(spec(&["100%"]), &["a"]);
    plain.tick(0);
    plain.apply(OperatorAction::Abort);
    assert!(!plain.rollout.needs_planning());
    assert!(plain.tick(1).actions.is_empty());
    // Nobody is left who could switch.
    let mut done = sites(&["100%"], &["lyon-1"]);
    done.tick(0);
    done.all_commit();
    done.tick(1);
    done.apply(OperatorAction::Abort);
    assert!(!done.rollout.needs_planning());
}

#[test]
fn a_device_that_another_rollout_has_by_now_is_not_called_back() {
    let mut world = stopped_before_the_switch();
    world.apply(OperatorAction::Abort);
    let other = muster_shared::ids::RolloutId::new("r2").unwrap();
    world.facts("nice-1").desired = Some(crate::Desired { manifest: Some(new()), generation: 9, rollout: other });
    assert_eq!(told(&world.tick(1)), ["lyon-1", "lyon-2", "nice-2"]);
}

#[test]
fn the_checker_knows_a_stop() {
    let mut world = stopped_before_the_switch();
    let running = plan(&world.rollout, &world.fleet, world.now_ms);
    world.apply(OperatorAction::Abort);
    let decision = plan(&world.rollout, &world.fleet, world.now_ms);
    let found = |decision: &Decision| {
        let found = verify(&world.rollout, decision, &world.fleet, world.now_ms).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(found(&decision), "");
    let mut silent = decision.clone();
    silent.next = world.rollout.clone();
    silent.actions.clear();
    assert!(found(&silent).contains("still waits to switch"), "{}", found(&silent));
    let mut forward = decision.clone();
    forward.actions = running.actions;
    forward.next.targets = running.next.targets;
    assert!(found(&forward).contains("still waits to switch"), "{}", found(&forward));
    let mut more = decision;
    more.next.status_reason = "it goes on".to_owned();
    assert!(found(&more).contains("without an operator"), "{}", found(&more));
}

#[test]
fn the_checker_finds_groups_that_switch_in_parts_or_too_soon() {
    let mut world = sites(&["1", "100%"], &["lyon-1", "lyon-2", "nice-1"]);
    world.rollout.spec.waves[0].selector = Some("site=lyon".parse().unwrap());
    world.tick(0);
    prepares(&mut world, "lyon-1");
    world.works("lyon-2", UpdateState::Fetching);
    world.now_ms += 1;
    let at = Activation::At { at_ms: world.now_ms + LEAD_MS };
    let spoilt = |world: &World, spoil: &dyn Fn(&mut Decision)| {
        let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
        assert_eq!(verify(&world.rollout, &decision, &world.fleet, world.now_ms), Ok(()));
        spoil(&mut decision);
        let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).expect_err("it is spoilt");
        found.iter().map(ToString::to_string).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("; ")
    };
    let tell = |decision: &mut Decision, name: &str, activation: Activation| {
        let target = decision.next.targets.get_mut(&device(name)).unwrap();
        (target.generation, target.activation) = (9, activation);
    };
    for name in ["lyon-1", "lyon-2"] {
        let found = spoilt(&world, &|decision| tell(decision, name, at));
        assert!(found.contains("not everybody of its group is ready"), "{found}");
    }
    let found = spoilt(&world, &|decision| tell(decision, "lyon-1", Activation::AtOnce));
    assert!(found.contains("not told when to switch"), "{found}");
    prepares(&mut world, "lyon-2");
    let told_later = |decision: &mut Decision, name: &str| {
        decision.next.targets.get_mut(&device(name)).unwrap().activation = Activation::At { at_ms: 7 };
    };
    let found = spoilt(&world, &|decision| told_later(decision, "lyon-1"));
    assert!(found.contains("at another time"), "{found}");
    let before = world.rollout.clone();
    let found = spoilt(&world, &|decision| {
        let old = before.targets[&device("lyon-2")].clone();
        decision.next.targets.insert(device("lyon-2"), old);
        decision.actions.pop();
    });
    assert!(found.contains("switches without it"), "{found}");
    let found = spoilt(&world, &|decision| decision.next.targets.get_mut(&device("lyon-1")).unwrap().group = None);
    assert!(found.contains("its group changed"), "{found}");

    // A wave that takes a second group in, and a device that nobody asked to wait.
    let world = sites(&["1", "100%"], &["lyon-1", "nice-1"]);
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
    let other =
        ["lyon-1", "nice-1"].into_iter().find(|name| !decision.next.targets.contains_key(&device(name))).unwrap();
    let target = decision.next.targets.values().next().unwrap().clone();
    let group = other.split_once('-').unwrap().0.to_owned();
    decision.next.targets.insert(device(other), crate::Target { group: Some(group), ..target });
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
    assert!(found.contains(&Violation::CapExceeded { wave: 0, have: 2, allowed: 1 }), "{found:?}");
    let mut plain = World::new(spec(&["100%"]), &["a"]);
    plain.tick(0);
    let found = spoilt(&plain, &|decision| tell(decision, "a", Activation::Hold));
    assert!(found.contains("nobody asked for that"), "{found}");
}
