//! Who is meant, who may come in, and in what order.

use std::collections::BTreeMap;

use muster_shared::bundle::Requirements;
use muster_shared::rollout::Waiting;

use super::world::{MAX_MS, Served, World, device, last_verdict, new, spec, told, waits_for, wave};
use crate::{Desired, Rollout, plan};

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("dev-{i}")).collect()
}

fn fleet_of(spec: muster_shared::rollout::RolloutSpec, n: usize) -> World {
    World::new(spec, &names(n).iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn the_order_is_stable_and_each_rollouts_own() {
    let firsts: Vec<Vec<String>> = ["r1", "r1", "r2", "r3", "r4"]
        .iter()
        .map(|id| {
            let mut world = fleet_of(spec(&["5", "100%"]), 50);
            let Rollout { spec, bundle, .. } = world.rollout;
            world.rollout = Rollout::new(id.parse().unwrap(), spec, bundle, 0).unwrap();
            world.tick(0);
            world.cohort(0).iter().map(ToString::to_string).collect()
        })
        .collect();
    assert_eq!(firsts[0], firsts[1]);
    assert!(firsts[1..].windows(2).all(|pair| pair[0] != pair[1]), "{firsts:?}");
}

#[test]
fn every_device_goes_first_about_as_often() {
    // 400 rollouts of one canary among 4 devices: each is first 100 times, give or take 5 standard deviations (43).
    let mut world = fleet_of(spec(&["1", "100%"]), 4);
    let mut firsts: BTreeMap<String, u32> = BTreeMap::new();
    for id in 0..400 {
        world.rollout.id = format!("r{id}").parse().unwrap();
        let decision = plan(&world.rollout, &world.fleet, world.now_ms);
        *firsts.entry(told(&decision)[0].to_owned()).or_default() += 1;
    }
    assert!(firsts.len() == 4 && firsts.values().all(|n| (57..=143).contains(n)), "{firsts:?}");
}

#[test]
fn a_waves_size_counts_those_before_it() {
    let mut narrow = spec(&["1", "50%", "100%"]);
    narrow.waves[0].selector = Some("site=lyon".parse().unwrap());
    let mut world = fleet_of(narrow, 12);
    for name in ["dev-3", "dev-7"] {
        world.facts(name).labels.insert("site".into(), "lyon".into());
    }
    world.tick(0);
    assert!(["dev-3", "dev-7"].contains(&world.first(0).as_str()));
    world.pass_wave();
    assert_eq!(world.cohort(1).len(), 5, "50 % of 12, one of which is in");
    world.pass_wave();
    assert_eq!(world.cohort(2).len(), 6);
}

#[test]
fn cohorts_only_grow_whatever_becomes_of_labels() {
    let mut by_site = spec(&["100%"]);
    by_site.selector = "site=lyon".parse().unwrap();
    let mut world = fleet_of(by_site, 3);
    for name in ["dev-0", "dev-1"] {
        world.facts(name).labels.insert("site".into(), "lyon".into());
    }
    assert_eq!(told(&world.tick(0)), ["dev-0", "dev-1"]);
    world.facts("dev-0").labels.clear();
    world.facts("dev-2").labels.insert("site".into(), "lyon".into());
    assert_eq!(told(&world.tick(1)), ["dev-0", "dev-1", "dev-2"]);
    assert_eq!(world.rollout.targets.len(), 3);
}

#[test]
fn a_member_that_is_relabelled_takes_up_room_and_one_that_is_revoked_does_not() {
    let mut by_site = spec(&["1", "100%"]);
    by_site.selector = "site=lyon".parse().unwrap();
    let mut world = fleet_of(by_site, 3);
    for name in ["dev-0", "dev-1", "dev-2"] {
        world.facts(name).labels.insert("site".into(), "lyon".into());
    }
    world.tick(0);
    let first = world.first(0);
    world.facts(&first).labels.clear();
    world.tick(1);
    assert_eq!(world.cohort(0).len(), 1, "it has the bundle, whatever it is called now");
    world.facts(&first).revoked = true;
    world.tick(1);
    assert_eq!(world.cohort(0).len(), 2, "another one is the canary now");
}

#[test]
fn a_fleet_that_shrinks_leaves_no_room_and_drops_nobody() {
    let mut world = fleet_of(spec(&["50%", "100%"]), 8);
    world.tick(0);
    assert_eq!(world.cohort(0).len(), 4);
    let outside: Vec<_> = world.fleet.devices.keys().filter(|id| !world.rollout.takes_part(id)).cloned().collect();
    outside.iter().take(2).for_each(|id| drop(world.fleet.devices.remove(id)));
    world.tick(1);
    assert_eq!(world.cohort(0).len(), 4);
}

#[test]
fn revoked_and_held_devices_stay_outside() {
    let mut world = fleet_of(spec(&["100%"]), 3);
    world.facts("dev-0").revoked = true;
    world.facts("dev-1").held_by = Some("r0".parse().unwrap());
    let decision = world.tick(0);
    assert_eq!(told(&decision), ["dev-2"]);
    assert!(waits_for(&decision, |w| *w == Waiting::HeldByOtherRollout { devices: vec![device("dev-1")] }));
    // Once it is free it joins.
    world.facts("dev-1").held_by = None;
    assert!(told(&world.tick(1)).contains(&"dev-1"));
    // A member that is revoked is told nothing more.
    world.facts("dev-2").revoked = true;
    assert_eq!(told(&world.tick(1)), ["dev-1"]);
}

#[test]
fn unsuitable_devices_are_left_out_with_the_reason() {
    let mut world = fleet_of(spec(&["100%"]), 9);
    world.rollout.bundle.requirements = Requirements {
        architectures: ["aarch64".to_owned(), "x86_64".to_owned()].into(),
        min_memory_bytes: 1_000,
        min_agent_version: Some("1.2.0".parse().unwrap()),
        cpu_features: ["avx2".to_owned(), "fma".to_owned()].into(),
        attributes: Some("kernel>=5.10,throttling!=heat".parse().unwrap()),
    };
    let fit = [
        ("kernel", "6.1.0-13-amd64"),
        ("arch", "x86_64"),
        ("memory-bytes", "1000"),
        ("agent-version", "1.2.0"),
        ("cpu-fma", "yes"),
        ("cpu-avx2", "yes"),
    ];
    let reported = [
        ("os", "linux"),
        ("arch", "armv7"),
        ("memory-bytes", "999"),
        ("agent-version", "1.1.9"),
        ("kernel", "5.4.0"),
        ("throttling", "heat"),
    ];
    for (at, (key, value)) in reported.into_iter().enumerate() {
        let facts = world.facts(&format!("dev-{at}"));
        facts.attributes = fit.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        facts.attributes.insert(key.into(), value.into());
    }
    world.facts("dev-8").attributes = fit[..5].iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    // dev-6 has reported, but none of these; dev-7 has never reported, so nobody knows yet.
    world.facts("dev-7").reported = None;
    let decision = world.tick(0);
    assert_eq!(told(&decision), ["dev-0"]);
    let why = |device: &str| {
        let unsuitable = decision.waiting.iter().find_map(|waiting| {
            if let Waiting::Unsuitable { devices } = waiting { Some(devices.clone()) } else { None }
        });
        unsuitable.unwrap().get(&super::world::device(device)).cloned()
    };
    assert_eq!(why("dev-1").unwrap(), "its architecture is armv7, the bundle is for aarch64, x86_64");
    assert_eq!(why("dev-2").unwrap(), "it has 999 bytes of memory, the bundle needs 1000");
    assert_eq!(why("dev-3").unwrap(), "its agent is \"1.1.9\", the bundle needs 1.2.0");
    assert_eq!(why("dev-4").unwrap(), "the bundle needs a device with kernel>=5.10 (it is 5.4.0)");
    assert_eq!(why("dev-5").unwrap(), "the bundle needs a device with throttling!=heat (it is heat)");
    assert_eq!(
        why("dev-6").unwrap(),
        "it does not report its architecture, the bundle is for aarch64, x86_64; it does not report its memory, \
         the bundle needs 1000 bytes; it does not report a processor with avx2, fma, which the bundle needs; \
         the bundle needs a device with kernel>=5.10 (it is not known); it does not report its agent's version, the bundle needs 1.2.0"
    );
    assert_eq!(why("dev-8").unwrap(), "it does not report a processor with avx2, which the bundle needs");
    assert_eq!(why("dev-7"), None);
}

#[test]
fn a_device_that_never_reported_is_taken_when_nothing_is_required() {
    let mut world = fleet_of(spec(&["100%"]), 1);
    world.facts("dev-0").reported = None;
    world.facts("dev-0").online = false;
    assert_eq!(told(&world.tick(0)), ["dev-0"]);
}

#[test]
fn a_device_that_claims_the_last_generation_cannot_be_told() {
    let mut world = fleet_of(spec(&["100%"]), 2);
    world.facts("dev-0").reported.as_mut().unwrap().generation = u64::MAX;
    let decision = world.tick(0);
    assert_eq!(told(&decision), ["dev-1"]);
    assert!(waits_for(&decision, |w| matches!(w, Waiting::Unsuitable { devices } if devices.len() == 1)));
}

#[test]
fn an_empty_fleet_says_so() {
    let mut world = fleet_of(spec(&["100%"]), 0);
    assert!(world.tick(0).waiting.contains(&Waiting::NoDevices));
    assert!(world.tick(MAX_MS).next.status_reason.contains("no device matches the selector"));
}

#[test]
fn waves_to_come_are_shown_as_they_would_be_taken() {
    let mut world = fleet_of(spec(&["1", "3", "100%"]), 6);
    world.rollout.spec.waves[0] = wave("1");
    let shown: Vec<Vec<_>> =
        world.rollout.view(&world.fleet, &[]).waves.into_iter().map(|w| w.devices.into_keys().collect()).collect();
    assert_eq!(shown.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 3]);
    world.tick(0);
    world.pass_wave();
    world.pass_wave();
    for (wave, devices) in (0u32..).zip(&shown) {
        assert_eq!(world.cohort(wave), devices.iter().map(|id| id.as_str()).collect::<Vec<_>>());
    }
}

#[test]
fn a_device_that_another_rollout_told_to_run_the_bundle_is_no_control() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b", "c"]);
    world.tick(0);
    let first = world.first(0);
    let told = ["a", "b", "c"].into_iter().find(|name| *name != first).unwrap();
    world.facts(told).desired = Some(Desired { manifest: Some(new()), generation: 2, rollout: "r0".parse().unwrap() });
    ["a", "b", "c"].iter().filter(|name| **name != first).for_each(|name| world.serves(name, Served::default()));
    world.pass_wave();
    let control = last_verdict(&world.rollout).control;
    assert_eq!((control.devices, control.requests), (1, 100));
}
