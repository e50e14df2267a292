//! When devices come in: not in a freeze, and in their own windows.

use jiff::Timestamp;
use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Freeze, RolloutStatus, SpecError, Waiting, WindowError};
use proptest::prelude::*;

use super::world::{MAX_MS, SOAK_MS, START_MS, World, device, spec, told, waits_for};
use crate::{Decision, OperatorAction, Rollout, Violation, plan, verify};

fn ms(at: &str) -> u64 {
    u64::try_from(at.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
}

/// One device that may come in only in `window`.
fn windowed(window: &str, timezone: Option<&str>, now: &str) -> World {
    let mut spec = spec(&["100%"]);
    spec.windows = vec![window.parse().unwrap()];
    spec.timezone = timezone.map(ToOwned::to_owned);
    let mut world = World::new(spec, &["a"]);
    world.now_ms = ms(now);
    world
}

fn outside(decision: &Decision) -> Option<(Vec<DeviceId>, Option<u64>)> {
    decision.waiting.iter().find_map(|waiting| {
        if let Waiting::OutsideWindow { devices, next_ms } = waiting { Some((devices.clone(), *next_ms)) } else { None }
    })
}

fn next_ms(decision: &Decision) -> Option<u64> {
    outside(decision)?.1
}

fn freeze(id: &str, from_ms: u64, to_ms: u64, selector: &str) -> Freeze {
    let selector = selector.parse().unwrap();
    Freeze {
        id: id.into(),
        from_ms,
        to_ms,
        reason: "the holidays".into(),
        selector,
        by: "ann".into(),
        created_at_ms: 1,
    }
}

fn is_frozen(waiting: &Waiting) -> bool {
    matches!(waiting, Waiting::Frozen { .. })
}

/// Times in UTC were worked out by hand from the offsets that hold in each place.
#[test]
fn windows_follow_the_clock_on_the_wall() {
    for (window, zone, now, opens) in [
        // Winter in Paris is an hour ahead of UTC, summer two.
        ("22:00-05:00", "Europe/Paris", "2026-01-10T20:59:59Z", "2026-01-10T21:00:00Z"),
        ("22:00-05:00", "Europe/Paris", "2026-01-10T21:00:00Z", "2026-01-10T21:00:00Z"),
        ("22:00-05:00", "Europe/Paris", "2026-01-11T03:59:59Z", "2026-01-11T03:59:59Z"),
        ("22:00-05:00", "Europe/Paris", "2026-01-11T04:00:00Z", "2026-01-11T21:00:00Z"),
        ("22:00-05:00", "Europe/Paris", "2026-07-10T19:59:59Z", "2026-07-10T20:00:00Z"),
        // The night in which an hour is skipped is shorter.
        ("22:00-05:00", "Europe/Paris", "2026-03-29T02:59:59Z", "2026-03-29T02:59:59Z"),
        ("22:00-05:00", "Europe/Paris", "2026-03-29T03:00:00Z", "2026-03-29T20:00:00Z"),
        // 02:30 is skipped, and means 03:30; a window that would end before has no time.
        ("sun 02:30-04:00", "Europe/Paris", "2026-03-29T00:00:00Z", "2026-03-29T01:30:00Z"),
        ("sun 02:30-04:00", "Europe/Paris", "2026-03-29T02:00:00Z", "2026-04-05T00:30:00Z"),
        ("sun 02:30-03:00", "Europe/Paris", "2026-03-29T00:00:00Z", "2026-04-05T00:30:00Z"),
        // 02:30 comes twice, and means the first.
        ("sun 02:30-04:00", "Europe/Paris", "2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z"),
        ("sun 02:30-04:00", "Europe/Paris", "2026-10-25T02:59:59Z", "2026-10-25T02:59:59Z"),
        ("sun 01:00-02:30", "Europe/Paris", "2026-10-25T00:30:00Z", "2026-11-01T00:00:00Z"),
        // The day is the one on which it begins, where the device is.
        ("mon 00:00-24:00", "Pacific/Auckland", "2026-07-05T11:59:59Z", "2026-07-05T12:00:00Z"),
        ("fri 23:00-01:00", "UTC", "2026-07-04T00:59:59Z", "2026-07-04T00:59:59Z"),
        ("fri 23:00-01:00", "UTC", "2026-07-04T01:00:00Z", "2026-07-10T23:00:00Z"),
        ("07:00-07:00", "UTC", "2026-07-04T06:59:59Z", "2026-07-04T06:59:59Z"),
    ] {
        let mut world = windowed(window, Some(zone), now);
        let decision = world.tick(0);
        let said = format!("{window} in {zone} at {now}");
        if opens == now {
            assert_eq!(told(&decision), ["a"], "{said}");
        } else {
            assert_eq!((next_ms(&decision), told(&decision)), (Some(ms(opens)), vec![]), "{said}");
            assert_eq!(told(&world.tick(ms(opens) - ms(now))), ["a"], "{said}");
        }
    }
}

#[test]
fn every_device_has_its_own_clock() {
    let mut world = windowed("22:00-05:00", Some("Asia/Tokyo"), "2026-01-10T13:30:00Z");
    for name in ["b", "c", "d", "e"] {
        world.add(name);
    }
    world.facts("b").attributes.insert("timezone".into(), "Europe/Paris".into());
    // What operators say of a device counts more than what it says itself.
    world.facts("c").attributes.insert("timezone".into(), "Europe/Paris".into());
    world.facts("c").labels.insert("timezone".into(), "Asia/Tokyo".into());
    world.facts("d").labels.insert("timezone".into(), "Mars/Olympus".into());
    world.facts("e").labels.insert("timezone".into(), "America/New_York".into());
    let decision = world.tick(0);
    assert_eq!(told(&decision), ["a", "c", "d"]);
    assert_eq!(outside(&decision), Some((vec![device("b"), device("e")], Some(ms("2026-01-10T21:00:00Z")))));
    assert_eq!(
        told(&world.tick(ms("2026-01-10T21:00:00Z") - world.now_ms)),
        ["a", "b", "c", "d"],
        "those told before are told again"
    );
}

#[test]
fn a_zone_that_nobody_knows_is_refused() {
    let mut wish = spec(&["100%"]);
    wish.windows = vec!["22:00-05:00".parse().unwrap()];
    wish.timezone = Some("Mars/Olympus".into());
    let bundle = World::new(spec(&["100%"]), &[]).rollout.bundle;
    let refused = Rollout::new("r1".parse().unwrap(), wish, bundle, 1).unwrap_err();
    assert_eq!(refused, SpecError::Windows(WindowError::Zone("Mars/Olympus".into())));
}

#[test]
fn a_wave_waits_for_those_a_freeze_keeps_out_and_its_time_does_not_run() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    let end_ms = START_MS + 3 * MAX_MS;
    world.fleet.freezes = vec![freeze("f1", START_MS, end_ms, "id=b"), freeze("f2", 1, START_MS, "*")];
    let decision = world.tick(0);
    assert_eq!((told(&decision), decision.next.status), (vec!["a"], RolloutStatus::Running));
    assert!(decision.waiting.contains(&Waiting::Frozen { until_ms: end_ms, why: "the holidays".into() }));
    world.all_commit();
    let decision = world.tick(2 * MAX_MS);
    assert_eq!((decision.next.status, decision.wake_at_ms), (RolloutStatus::Running, Some(end_ms)));
    assert_eq!(decision.next.waves[0].soak_from_ms, None, "the soak is of the whole wave");
    assert!(decision.next.verdicts.is_empty());
    assert_eq!(told(&world.tick(MAX_MS)), ["b"]);
    assert_eq!(world.rollout.waves[0].clock_from_ms, Some(end_ms));
    assert_eq!(world.tick(MAX_MS / 2).next.status, RolloutStatus::Running);
    world.pass_wave();
    assert_eq!(world.rollout.status, RolloutStatus::Completed);
}

#[test]
fn a_wave_whose_devices_are_let_in_has_its_time() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.fleet.freezes = vec![freeze("f1", START_MS, START_MS + MAX_MS, "*")];
    let decision = world.tick(0);
    assert!(told(&decision).is_empty() && waits_for(&decision, is_frozen));
    assert!(!waits_for(&decision, |waiting| *waiting == Waiting::NoDevices), "they are there, and kept out");
    assert_eq!(told(&world.tick(MAX_MS)), ["a", "b"]);
    assert_eq!(world.tick(MAX_MS).next.status, RolloutStatus::Paused);
}

#[test]
fn a_wave_takes_those_that_may_come_in_its_order() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b", "c"]);
    let first = plan(&world.rollout, &world.fleet, world.now_ms).next.targets.keys().next().cloned().unwrap();
    world.fleet.freezes = vec![freeze("f1", 1, u64::MAX, &format!("id={first}"))];
    let decision = world.tick(0);
    assert!(told(&decision).len() == 1 && told(&decision) != [first.as_str()]);
    assert!(!waits_for(&decision, is_frozen), "the wave is full, and waits for nobody");
}

#[test]
fn a_freeze_holds_nobody_who_was_told_and_no_way_back() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    let first = world.first(0);
    world.fleet.freezes = vec![freeze("f1", 1, u64::MAX, "*")];
    assert_eq!(told(&world.tick(1)), [first.as_str()], "it has not heard, and is told again");
    world.pass_wave();
    assert_eq!(
        (world.rollout.current_wave, world.cohort(1).len()),
        (1, 0),
        "the next wave has begun, and nobody came in"
    );
    let explained =
        world.rollout.explain(&world.fleet, Some(&device(if first == "a" { "b" } else { "a" })), world.now_ms);
    assert!(explained.device.unwrap().doing.contains("it is kept out for now: a freeze"));
    assert_eq!(explained.pauses_at_ms, None);
    world.apply(OperatorAction::Rollback);
    assert_eq!(told(&world.tick(1)), [first.as_str()]);
    world.commits(&first);
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn the_checker_knows_the_time() {
    let world = World::new(spec(&["100%"]), &["a"]);
    let decision = plan(&world.rollout, &world.fleet, world.now_ms);
    let mut frozen = world.fleet.clone();
    frozen.freezes = vec![freeze("f1", START_MS, START_MS + 1, "id=a")];
    let found = verify(&world.rollout, &decision, &frozen, world.now_ms).unwrap_err();
    assert_eq!(found, [Violation::TakenIn { device: device("a"), why: "a freeze covers it" }]);

    let world = windowed("22:00-05:00", None, "2026-01-10T21:59:59Z");
    let mut anytime = world.rollout.clone();
    anytime.spec.windows.clear();
    let mut decision = plan(&anytime, &world.fleet, world.now_ms);
    decision.next.spec = world.rollout.spec.clone();
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
    assert_eq!(found, [Violation::TakenIn { device: device("a"), why: "it is outside its windows" }]);

    // Completed as though the one that is kept out were not meant.
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    world.all_commit();
    world.tick(1);
    world.all_commit();
    world.now_ms += SOAK_MS;
    let decision = plan(&world.rollout, &world.fleet, world.now_ms);
    assert_eq!(decision.next.status, RolloutStatus::Completed);
    world.add("b");
    world.fleet.freezes = vec![freeze("f1", 1, u64::MAX, "id=b")];
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
    assert!(found.contains(&Violation::Forgotten(device("b"))), "{found:?}");
}

proptest! {
    /// The planner and the checker read the same clock, each in its own way, and what is said to be the next opening is one.
    #[test]
    fn the_next_opening_is_the_next(
        window in (0u16..24, 0u16..60, 0u16..25, 0u16..60, prop::collection::btree_set(0usize..7, 0..3)),
        zone in prop::sample::select(vec![
            "UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca", "America/Sao_Paulo",
        ]),
        near in prop::sample::select(vec![
            "2026-01-15T00:00:00Z", "2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z",
            "2026-04-04T15:00:00Z", "2026-10-03T15:30:00Z",
        ]),
        minutes_off in -2_000i64..2_000,
    ) {
        let (from_h, from_m, to_h, to_m, days) = window;
        let to_m = if to_h == 24 { 0 } else { to_m };
        let days: Vec<&str> = days.into_iter().map(|at| ["mon", "tue", "wed", "thu", "fri", "sat", "sun"][at]).collect();
        let window = format!("{} {from_h:02}:{from_m:02}-{to_h:02}:{to_m:02}", days.join(","));
        let mut world = windowed(&window, Some(zone), near);
        world.now_ms = world.now_ms.saturating_add_signed(minutes_off * 60_000);
        let start_ms = world.now_ms;
        let first = world.tick(0);
        if told(&first).is_empty() {
            let opens_ms = next_ms(&first).expect("a window opens within nine days, unless it is one that a change of clocks swallows");
            prop_assert!(opens_ms > start_ms);
            prop_assert!(told(&world.tick(opens_ms - start_ms - 1)).is_empty());
            let then = world.tick(1);
            prop_assert_eq!(told(&then), ["a"]);
        }
    }
}
