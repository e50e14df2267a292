//! How fast devices come in.

use muster_shared::rollout::{
    Decider, ExponentialRate, Rate, RateIncreaseCriteria, RolloutSpec, RolloutStatus, Waiting,
};
use proptest::prelude::*;

use super::world::{MAX_MS, SOAK_MS, World, device, spec, told, waits_for};
use crate::{Decision, Errand, Intake, OperatorAction, Violation, plan, verify};

const MINUTE_MS: u64 = 60_000;

fn constant(maximum_per_minute: u32) -> Rate {
    Rate { maximum_per_minute, exponential_rate: None }
}

fn after_succeeded(base: u32, factor: f64, every: u32) -> Rate {
    let number_of_succeeded_things = Some(every);
    let rate_increase_criteria = RateIncreaseCriteria { number_of_notified_things: None, number_of_succeeded_things };
    growing(base, factor, rate_increase_criteria)
}

fn after_told(base: u32, factor: f64, every: u32) -> Rate {
    let number_of_notified_things = Some(every);
    let rate_increase_criteria = RateIncreaseCriteria { number_of_notified_things, number_of_succeeded_things: None };
    growing(base, factor, rate_increase_criteria)
}

fn growing(base_rate_per_minute: u32, increment_factor: f64, rate_increase_criteria: RateIncreaseCriteria) -> Rate {
    let growing = ExponentialRate { base_rate_per_minute, increment_factor, rate_increase_criteria };
    Rate { maximum_per_minute: 1_000, exponential_rate: Some(growing) }
}

fn world(rate: Rate, waves: &[&str], devices: usize) -> World {
    let names: Vec<String> = (0..devices).map(|n| format!("press-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    World::new(RolloutSpec { rate: Some(rate), ..spec(waves) }, &names)
}

/// Devices that are in because they were told, and how many a tick after `ms` adds.
fn comes(world: &mut World, ms: u64) -> usize {
    let before = world.rollout.targets.len();
    world.tick(ms);
    world.rollout.targets.len() - before
}

fn held(decision: &Decision) -> Option<(u32, u32, u64)> {
    decision.waiting.iter().find_map(|waiting| {
        let Waiting::Rate { per_minute, left, next_ms } = waiting else { return None };
        Some((*per_minute, *left, *next_ms))
    })
}

#[test]
fn a_wave_comes_in_at_the_rate_and_soaks_when_it_is_complete() {
    let mut world = world(constant(2), &["100%"], 5);
    let first = world.tick(0);
    let next_ms = world.now_ms + MINUTE_MS;
    assert_eq!(told(&first).len(), 2);
    assert_eq!(held(&first), Some((2, 3, next_ms)));
    assert_eq!(first.waiting[0].decider(), Decider::Clock { at_ms: next_ms });
    assert_eq!(world.tick(1).wake_at_ms, Some(next_ms));
    world.all_commit();
    assert_eq!(comes(&mut world, MINUTE_MS - 2), 0);
    assert_eq!(comes(&mut world, 1), 2);
    world.all_commit();
    assert_eq!(world.rollout.waves[0].soak_from_ms, None, "everybody has committed, and one has yet to come in");
    // Time in which nobody may come in is not the wave's.
    assert_eq!(comes(&mut world, MAX_MS), 1);
    assert_eq!(world.rollout.status, RolloutStatus::Running);
    world.all_commit();
    assert_eq!(held(&world.tick(1)), None);
    assert_eq!(world.rollout.waves[0].soak_from_ms, Some(world.now_ms));
    world.all_commit();
    assert_eq!(world.tick(SOAK_MS).next.status, RolloutStatus::Completed);
}

#[test]
fn the_rate_grows_with_devices_that_succeed_and_not_with_those_that_fail() {
    let mut world = world(after_succeeded(2, 2.0, 2), &["100%"], 40);
    world.rollout.spec.limits.max_failures = 40;
    assert_eq!(comes(&mut world, 0), 2);
    world.all_commit();
    // Two have committed: four in this minute, of which two have come in.
    assert_eq!(comes(&mut world, 1_000), 2);
    assert_eq!(comes(&mut world, MINUTE_MS - 1_000), 2);
    let fails: Vec<String> = world.rollout.targets.keys().map(ToString::to_string).collect();
    fails.iter().for_each(|name| world.fails(name, muster_shared::messages::UpdateState::Failed, "full"));
    assert_eq!(comes(&mut world, MINUTE_MS), 2, "nobody is left who has succeeded");
}

#[test]
fn the_rate_grows_with_devices_told_a_minute_ago() {
    let mut world = world(after_told(10, 2.0, 10), &["100%"], 200);
    // 10 × 2ᵏ with k of 0, 10 and 30 told before, by tens.
    assert_eq!([0, MINUTE_MS, MINUTE_MS].map(|ms| comes(&mut world, ms)), [10, 20, 80]);
}

#[test]
fn who_has_the_bundle_comes_in_beside_the_rate() {
    let mut world = world(constant(1), &["100%"], 2);
    world.add("has-it");
    world.facts("has-it").reported.as_mut().unwrap().running = Some(super::world::installed(super::world::new(), 1));
    world.facts("has-it").reported.as_mut().unwrap().committed = Some(super::world::installed(super::world::new(), 1));
    let decision = world.tick(0);
    assert_eq!((told(&decision).len(), world.rollout.targets.len()), (1, 2));
    assert_eq!(world.target("has-it").unwrap().errand, Errand::Keep);
    assert_eq!(held(&decision).map(|(_, left, _)| left), Some(1));
}

#[test]
fn a_minute_is_one_over_all_waves_and_pauses() {
    let mut world = world(constant(3), &["2", "100%"], 9);
    assert_eq!(comes(&mut world, 0), 2);
    world.pass_wave();
    assert_eq!((world.rollout.current_wave, world.rollout.targets.len()), (1, 3), "one place was left of the minute");
    world.apply(OperatorAction::Pause);
    assert_eq!(comes(&mut world, 1), 0);
    world.apply(OperatorAction::Resume);
    assert_eq!(comes(&mut world, 1), 0);
    assert_eq!(comes(&mut world, MINUTE_MS), 3);
}

#[test]
fn clocks_that_jump_let_in_no_more_than_a_minute() {
    let mut world = world(constant(4), &["100%"], 40);
    assert_eq!(comes(&mut world, 0), 4);
    assert_eq!(comes(&mut world, 60 * MINUTE_MS), 4, "an hour is worth a minute");
    world.now_ms -= 30 * MINUTE_MS;
    assert_eq!(comes(&mut world, 0), 0);
    let waits = held(&world.tick(0)).unwrap();
    assert_eq!(waits, (4, 32, world.now_ms + MINUTE_MS), "it waits a minute, and not half an hour");
    assert_eq!(comes(&mut world, MINUTE_MS), 4);
}

#[test]
fn the_checker_counts_by_itself() {
    let mut world = world(constant(2), &["100%"], 5);
    let mut faster = world.rollout.clone();
    faster.spec.rate = Some(constant(3));
    let mut decision = plan(&faster, &world.fleet, world.now_ms);
    decision.next.spec = world.rollout.spec.clone();
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
    assert_eq!(found, [Violation::TooFast { came: 3, allowed: 2.0 }]);

    world.tick(0);
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms + 1);
    decision.next.intake = vec![Intake { at_ms: world.now_ms, devices: 1 }];
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms + 1).unwrap_err();
    assert!(matches!(found.as_slice(), [Violation::Rate(why)] if why.contains("remembered")), "{found:?}");

    world.all_commit();
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms + 1);
    decision.next.waves[0].soak_from_ms = Some(world.now_ms + 1);
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms + 1).unwrap_err();
    assert!(matches!(found.as_slice(), [Violation::Rate(why)] if why.contains("complete")), "{found:?}");
}

#[test]
fn a_plan_and_an_explanation_say_it() {
    let mut world = world(constant(2), &["1", "100%"], 6);
    let preview = world.rollout.preview(&world.fleet, world.now_ms);
    let takes: Vec<u64> = preview.waves.iter().map(|wave| wave.intake.unwrap().most_ms / MINUTE_MS).collect();
    assert_eq!(takes, [0, 2]);
    assert_eq!(preview.waves[1].devices.len(), 5);
    world.tick(0);
    world.pass_wave();
    let outside = (0..6).map(|n| format!("press-{n}")).find(|name| world.target(name).is_none()).unwrap();
    let explained = world.rollout.explain(&world.fleet, Some(&device(&outside)), world.now_ms);
    assert!(matches!(explained.obstacles[0].what, Waiting::Rate { per_minute: 2, left: 4, .. }), "{explained:?}");
    assert_eq!(explained.pauses_at_ms, None);
}

/// What happens between two looks.
#[derive(Debug, Clone)]
enum Happens {
    /// So much time goes by.
    Passes(u64),
    /// The clock is set forward.
    Forward(u64),
    /// The clock is set back.
    Back(u64),
    /// Everybody who was told commits.
    Commit,
}

fn anything() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (0u64..100_000).prop_map(Happens::Passes),
        1 => (1u64..4_000_000).prop_map(Happens::Forward),
        1 => (1u64..900_000).prop_map(Happens::Back),
        3 => Just(Happens::Commit),
    ]
}

proptest! {
    /// In no minute of true time more come in than the rate, a clock set forward being worth one minute; and all do in the end.
    #[test]
    fn never_more_than_the_rate_and_all_in_the_end(
        rate in 1u32..9, devices in 1usize..60, waves in prop::sample::select(vec![vec!["100%"], vec!["3", "50%", "100%"]]),
        events in prop::collection::vec(anything(), 0..40),
    ) {
        let mut world = world(constant(rate), &waves, devices);
        let (mut true_ms, mut came, mut jumps): (u64, Vec<(u64, usize)>, Vec<u64>) = (0, Vec::new(), Vec::new());
        for event in events {
            let passes_ms = match event {
                Happens::Passes(ms) => ms,
                Happens::Forward(ms) => {
                    jumps.push(true_ms);
                    world.now_ms += ms;
                    0
                }
                Happens::Back(ms) => {
                    world.now_ms -= ms.min(world.now_ms / 2);
                    0
                }
                Happens::Commit => {
                    world.all_commit();
                    0
                }
            };
            true_ms += passes_ms;
            came.push((true_ms, comes(&mut world, passes_ms)));
            let within = |at_ms: u64| true_ms < at_ms + MINUTE_MS;
            let minute: usize = came.iter().filter(|(at_ms, _)| within(*at_ms)).map(|(_, n)| n).sum();
            let worth = 1 + jumps.iter().filter(|at_ms| within(**at_ms)).count();
            prop_assert!(minute <= rate as usize * worth, "{minute} in a minute, {rate} allowed, {worth} minutes' worth");
        }
        // From now on it looks when it said that it would.
        for _ in 0..devices + 20 {
            if world.rollout.targets.len() == devices {
                break;
            }
            world.all_commit();
            let decision = world.tick(1);
            if decision.next.status == RolloutStatus::Paused {
                world.apply(OperatorAction::Resume);
            }
            world.all_commit();
            let wait_ms = decision.wake_at_ms.map_or(1, |at_ms| at_ms.saturating_sub(world.now_ms));
            world.tick(wait_ms);
        }
        prop_assert_eq!(world.rollout.targets.len(), devices);
        let is_held = waits_for(&world.tick(1), |waiting| matches!(waiting, Waiting::Rate { .. }));
        prop_assert!(!is_held);
    }

    /// A growing rate, counted here from what was seen to come in.
    #[test]
    fn a_growing_rate_is_never_passed(
        base in 1u32..6, tenths in 11u32..=50, every in 1u32..8, devices in 1usize..80, by_telling in any::<bool>(),
        waits in prop::collection::vec((0u64..70_000, any::<bool>()), 1..30),
    ) {
        let factor = f64::from(tenths) / 10.0;
        let rate = if by_telling { after_told(base, factor, every) } else { after_succeeded(base, factor, every) };
        let mut world = world(rate, &["100%"], devices);
        let (mut now_ms, mut came): (u64, Vec<(u64, usize)>) = (0, Vec::new());
        for (ms, commit) in waits {
            now_ms += ms;
            if commit {
                world.all_commit();
            }
            let committed = if commit { world.rollout.targets.len() } else {
                world.rollout.targets.values().filter(|target| target.done_at_ms.is_some()).count()
            };
            let old: usize = came.iter().filter(|(at_ms, _)| at_ms + MINUTE_MS <= now_ms).map(|(_, n)| n).sum();
            let steps = if by_telling { old } else { committed } / every as usize;
            let allowed = (f64::from(base) * factor.powi(i32::try_from(steps).unwrap())).min(1_000.0) + 1e-6;
            came.push((now_ms, comes(&mut world, ms)));
            let minute: usize = came.iter().filter(|(at_ms, _)| now_ms < at_ms + MINUTE_MS).map(|(_, n)| n).sum();
            let new = came.last().map_or(0, |(_, n)| *n);
            prop_assert!(new == 0 || minute as f64 <= allowed, "{minute} in a minute, {allowed} allowed");
        }
    }
}
