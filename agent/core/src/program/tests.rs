//! A device that is told to run programs, good and bad ones, and is cut off at any step.

mod world;

use muster_shared::chunk::ChunkSet;
use muster_shared::messages::UpdateState;
use proptest::prelude::*;

use self::world::{Action, CHUNKS, DEADLINE_MS, PROBATION_MS, WELL, World, action, manifest, offer, offered, version};
use super::*;
use crate::record::{Barrier, Untold};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_whole_program_runs_and_none_is_tried_twice(
        crashing in prop::collection::vec(0u8..4, 0..3),
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let mut world = World::new();
        crashing.into_iter().for_each(|name| world.act(&Action::Crashes(name)));
        for action in &actions {
            world.act(action);
            prop_assert!(world.process.is_some());
        }
    }

    #[test]
    fn any_bytes_are_a_record_or_none(bytes: Vec<u8>) {
        let _ = Record::from_json(&bytes);
    }
}

fn state(world: &World) -> (UpdateState, Option<Slot>, Option<String>) {
    let machine = world.process.as_ref().unwrap();
    let report = machine.report();
    (report.update.state, machine.running(), report.update.reason)
}

#[test]
fn a_good_program_is_committed_after_its_probation_and_gone_back_from_without_fetching() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    assert_eq!(state(&world), (UpdateState::Trial, Some(Slot::A), None));
    // Not a moment before.
    world.take(Event::Tick(WELL));
    world.now_ms += PROBATION_MS - 1;
    world.take(Event::Tick(WELL));
    assert_eq!(state(&world).0, UpdateState::Trial);
    world.now_ms += 1;
    world.take(Event::Tick(WELL));
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::A), None));
    world.act(&Action::Offer(Some(3)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::B), None));
    let files = world.files.clone();
    for (name, slot) in [(Some(2), Some(Slot::A)), (None, None), (Some(3), Some(Slot::B))] {
        world.act(&Action::Offer(name));
        world.act(&Action::Time { well: true, ms: PROBATION_MS });
        assert_eq!(state(&world), (UpdateState::Committed, slot, None), "{name:?}");
        assert_eq!(world.files, files, "nothing was fetched");
    }
}

#[test]
fn a_program_that_crashes_at_its_start_is_tried_three_times_and_never_again() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    world.act(&Action::Crashes(3));
    world.act(&Action::Offer(Some(3)));
    let (update, running, reason) = state(&world);
    assert_eq!((update, running), (UpdateState::Reverted, Some(Slot::A)));
    assert!(reason.unwrap().contains("3 starts of this program ended"));
    assert_eq!(world.trial_starts[&2].0, 3);
    world.act(&Action::Repeat);
    world.act(&Action::Power { after: 0 });
    assert_eq!(world.trial_starts[&2].0, 3);
    assert_eq!(state(&world).0, UpdateState::Reverted);
}

#[test]
fn silence_never_promotes_and_the_reason_says_what_was_missing() {
    for (vitals, says) in [
        (Vitals { linked: false, ..WELL }, "no link to the broker"),
        (Vitals { acknowledged: false, ..WELL }, "acknowledged nothing"),
        (Vitals { serves: false, ..WELL }, "does not answer"),
        (Vitals { memory_bytes: Some(101), ..WELL }, "it takes 101 bytes of memory, its manifest allows 100"),
    ] {
        let mut world = World::new();
        world.act(&Action::Offer(Some(2)));
        let began_ms = world.now_ms;
        while world.process.as_ref().is_some_and(Machine::is_watching) {
            world.now_ms += 500;
            world.take(Event::Tick(vitals));
            assert!(world.now_ms - began_ms <= DEADLINE_MS);
        }
        world.boot();
        let (update, running, reason) = state(&world);
        assert_eq!((update, running), (UpdateState::Reverted, None));
        assert!(reason.as_ref().unwrap().contains(says), "{reason:?}");
    }
}

#[test]
fn a_stop_in_order_gives_the_start_back_and_the_time_still_counts() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    for _ in 0..9 {
        world.now_ms += 1_000;
        world.take(Event::Tick(Vitals::default()));
        world.act(&Action::Stop);
        assert_eq!(state(&world).0, UpdateState::Trial);
    }
    world.now_ms += 1_000;
    world.take(Event::Tick(Vitals::default()));
    world.boot();
    assert_eq!(state(&world).0, UpdateState::Reverted);
}

#[test]
fn another_package_wins() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    world.act(&Action::Package(2));
    let (update, running, reason) = state(&world);
    assert_eq!((update, running), (UpdateState::Failed, None));
    assert!(reason.unwrap().contains("package 0.2.0 was installed over 0.1.0"));
    world.act(&Action::Power { after: 0 });
    assert_eq!(state(&world).1, None);
}

#[test]
fn what_cannot_be_started_gives_way_at_once() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    let (record, run) = could_not_start(world.disk.clone(), Slot::A, "Exec format error");
    let reason = record.unwrap().report(None).update.reason.unwrap();
    assert!(run.is_none() && reason.contains("Exec format error"), "{reason}");
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    assert_eq!(could_not_start(world.disk.clone(), Slot::A, "not mounted"), (None, None), "it may be there again");
}

#[test]
fn a_committed_program_whose_file_is_damaged_is_brought_up_anew_when_it_is_asked_for() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::A), None));
    world.files.insert(Slot::A, (manifest(2), 0));
    world.damaged.insert(Slot::A);
    world.act(&Action::Power { after: 0 });
    assert_eq!(state(&world), (UpdateState::Committed, None, None), "the package runs in its place");
    world.act(&Action::Offer(Some(2)));
    assert_eq!(state(&world), (UpdateState::Trial, Some(Slot::A), None));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::A), None));
}

#[test]
fn who_is_told_to_keep_what_is_committed_leaves_the_package_it_tries() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    world.act(&Action::Offer(None));
    assert_eq!(state(&world), (UpdateState::Trial, None, None));
    world.act(&Action::Offer(Some(2)));
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::A), None));
}

#[test]
fn what_does_not_suit_the_device_is_refused_with_the_reason() {
    for (spoil, says) in [
        ((|o| o.device.arch = "armv7".into()) as fn(&mut Offer), "is for aarch64, this device is armv7"),
        (|o| o.device.now_ms = 1_000, "expired"),
        (|o| o.device.memory_bytes = 0, "needs 1 bytes of memory"),
        (|o| o.device.agent_version = version(0), "takes over from muster-agent 0.1.0"),
        (|o| o.device.disk_free_bytes = 5, "bytes of disk"),
    ] {
        let mut machine = Machine::new(Record::new(version(1)), None);
        let mut offer = offer(1, Some(offered(2)));
        spoil(&mut offer);
        let effects = machine.handle(Event::Offered(Box::new(offer)), 0);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "{effects:?}");
        let update = machine.report().update;
        assert!(update.refused && update.reason.as_ref().unwrap().contains(says), "{update:?}");
    }
}

#[test]
fn a_lost_or_earlier_record_lets_nothing_older_in() {
    let barrier = |generation, security_floor| Barrier { generation, director_epoch: 1, security_floor };
    let lost = Record::recovered(version(1), barrier(7, 3));
    assert_eq!((lost.generation, lost.director_epoch, lost.security_floor, lost.committed), (6, 1, 3, None));
    let mut have = ChunkSet::empty(CHUNKS);
    (0..CHUNKS).for_each(|chunk| _ = have.insert(chunk));
    let content = Content { have, ..offered(2).content };
    let trial = Phase::Trial { slot: Some(Slot::A), starts_left: 2, waited_ms: 0 };
    let mut earlier = Record { generation: 4, director_epoch: 1, security_floor: 1, ..Record::new(version(1)) };
    earlier.slots.insert(Slot::A, content);
    earlier.committed = Some(Slot::A);
    earlier.committed_generation = 4;
    // It knows nothing of a later assignment: that one is taken again. What it holds may run, with release counter 2.
    let held = earlier.clone().held_to(barrier(9, 2));
    assert_eq!(held, Record { generation: 8, security_floor: 2, ..earlier.clone() });
    assert_eq!(launch(held, &version(1)).run, Some(Slot::A));
    assert_eq!(earlier.clone().held_to(barrier(4, 1)), earlier, "it is not behind");
    // Below the floor it runs no more, committed or on trial.
    assert_eq!(launch(earlier.clone().held_to(barrier(9, 3)), &version(1)).run, None);
    let Update { generation, rollout, .. } = {
        let mut machine = Machine::new(Record::new(version(1)), None);
        drop(machine.handle(Event::Offered(Box::new(offer(5, Some(offered(2))))), 0));
        machine.record().update.clone().unwrap()
    };
    let update = Update {
        generation,
        rollout,
        manifest: Some(manifest(2)),
        bundle: None,
        probation_ms: 1,
        delivery: Default::default(),
        phase: trial,
    };
    let tried = Record { committed: None, update: Some(update), ..earlier };
    assert_eq!(launch(tried.clone().held_to(barrier(9, 2)), &version(1)).run, Some(Slot::A));
    assert_eq!(launch(tried.held_to(barrier(9, 3)), &version(1)).run, None);
}

#[test]
fn an_older_program_reads_what_a_newer_one_wrote() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    let mut json: serde_json::Value = serde_json::from_slice(&world.disk.to_json().unwrap()).unwrap();
    json["more"] = true.into();
    json["update"]["delivery"] = serde_json::json!({"a-later": "word"});
    json["slots"]["a"]["more"] = 1.into();
    world.disk.note(DeviceEventKind::Assigned, "words");
    let told = serde_json::to_value(&world.disk.untold).unwrap();
    json["untold"] = told;
    let last = json["untold"].as_array_mut().unwrap();
    last.last_mut().unwrap()["more"] = serde_json::json!({"a": 1});
    // Of a kind that this program does not know, and of a form that it does not.
    last.push(serde_json::json!({"kind": "hibernated", "generation": 3, "since": 1}));
    last.push(serde_json::json!(["later"]));
    let other = Untold { kind: DeviceEventKind::Other, generation: 3, bundle: None, detail: String::new() };
    world.disk.untold.push(other);
    let read = |json: &serde_json::Value| Record::from_json(json.to_string().as_bytes());
    assert_eq!(read(&json).unwrap(), world.disk);
    json["update"]["phase"] = serde_json::json!({"state": "hibernating", "for": 3});
    assert_eq!(launch(read(&json).unwrap(), &version(1)).run, None);
    json["format"] = 2.into();
    assert_eq!(read(&json), Err(RecordError::Format(2)));
}
