//! The update machine in a world that crashes: between any two effects, over and over.
//!
//! The world carries effects out on a pretended disk. What it checks after every step is what a device owner relies on: the
//! incumbent is never lost, a bundle that takes the agent down is not tried for ever, a bundle that is to run beside another never takes
//! its place, and in the end every update ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod beside;
mod hold;
mod world;

use muster_agent_core::record::Untold;
use muster_agent_core::slots::Pointer;
use muster_agent_core::update::{Effect, Event, Machine};
use muster_shared::chunk::ChunkSet;
use muster_shared::messages::{DeviceEventKind, UpdateState};
use muster_shared::trust::{Activation, Stage};
use proptest::prelude::*;

use world::{CHUNKS, PROBATION_MS, World, digest, offer, offer_within};

#[derive(Debug, Clone)]
enum Step {
    Offered { newer: u64, bundle: Option<u8>, suitable: bool, part: Part },
    OfferedAgain,
    ChunkArrives(u32),
    ChunkRots(u32),
    JobEnds,
    TimePasses(u64),
    TimeComes,
    Dies,
    StopsInOrder,
    DiskFull,
}

/// In which part a bundle is offered, and when it is to take it.
type Part = (Stage, Activation);

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![4 => Just(Activation::AtOnce), 1 => Just(Activation::Hold), 1 => Just(Activation::At { at_ms: 7 })]
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        3 => Just(Stage::Serve),
        1 => (1u16..4).prop_map(|share_bp| Stage::Shadow { share_bp }),
        1 => (1u16..4).prop_map(|share_bp| Stage::Split { share_bp, experiment: "e".into() }),
    ]
}

fn offer_in(generation: u64, bundle: Option<u8>, suitable: bool, (stage, activation): &Part) -> Event {
    let Event::Offered(mut offer) = offer(generation, bundle, suitable) else { unreachable!() };
    offer.assignment.stage = stage.clone();
    offer.assignment.activation = *activation;
    Event::Offered(offer)
}

fn step() -> impl Strategy<Value = (Step, Option<usize>)> {
    let step = prop_oneof![
        3 => (0u64..3, prop::option::weighted(0.9, 0u8..6), prop::bool::weighted(0.9), (stage(), activation()))
            .prop_map(|(newer, bundle, suitable, part)| Step::Offered { newer, bundle, suitable, part }),
        3 => Just(Step::TimeComes),
        1 => Just(Step::OfferedAgain),
        10 => (0..CHUNKS).prop_map(Step::ChunkArrives),
        1 => (0..CHUNKS).prop_map(Step::ChunkRots),
        6 => Just(Step::JobEnds),
        4 => (0u64..PROBATION_MS).prop_map(Step::TimePasses),
        1 => Just(Step::Dies),
        1 => Just(Step::StopsInOrder),
        1 => Just(Step::DiskFull),
    ];
    (step, prop::option::weighted(0.2, 0usize..6))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_incumbent_stays_and_updates_end(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        let mut last = (0, None, true, (Stage::Serve, Activation::AtOnce));
        for (step, dies_at) in steps {
            match step {
                Step::Offered { newer, bundle, suitable, part } => {
                    if newer > 0 {
                        last = (last.0 + newer, bundle, suitable, part);
                        world.happens(offer_in(last.0, bundle, suitable, &last.3), dies_at);
                    } else if last.0 > 1 {
                        // An old one, replayed.
                        let before = world.record.clone();
                        world.happens(offer_in(last.0 - 1, bundle, suitable, &part), None);
                        if before.generation == last.0 {
                            prop_assert_eq!(&world.record, &before);
                        }
                    }
                }
                Step::OfferedAgain => if last.0 > 0 { world.happens(offer_in(last.0, last.1, last.2, &last.3), dies_at) },
                Step::ChunkArrives(chunk) => world.chunk_arrives(chunk, dies_at),
                Step::ChunkRots(chunk) => {
                    if let Some((slot, _)) = world.fetching {
                        world.files.get_mut(&slot).unwrap().1.remove(&chunk);
                    }
                }
                Step::JobEnds => world.job_ends(dies_at),
                Step::TimePasses(ms) => world.time_passes(ms, dies_at),
                Step::TimeComes => drop(world.time_comes(dies_at)),
                Step::Dies => world.restart(),
                Step::StopsInOrder => world.stops_in_order(),
                Step::DiskFull => {
                    if let Some((_, generation)) = world.fetching {
                        world.happens(Event::Obstructed { generation, reason: "disk full".into() }, dies_at);
                    }
                }
            }
            world.check_at_rest();
        }
        // However bad it was: a good bundle, offered now, gets through.
        let generation = last.0 + 1;
        let held = world.record.slots.holding(&digest(2)).is_some();
        // What never served, or does not any more, takes no room from it.
        world.room = if world.record.committed.is_none() && !held { 1 } else { 2 };
        world.happens(offer_within(generation, Some(2), true, world.room as u64 * u64::from(CHUNKS)), None);
        prop_assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
        let committed = world.record.committed_bundle().unwrap();
        prop_assert_eq!((committed.manifest, committed.generation), (digest(2), generation));
        prop_assert_eq!(world.serving, world.record.committed);
        prop_assert!(world.outbox.contains(&(DeviceEventKind::Committed, generation)));
    }
}

#[test]
fn each_kind_of_bundle_ends_as_it_must_and_the_incumbent_serves_on() {
    for (bundle, state) in
        [(3, UpdateState::Failed), (4, UpdateState::Failed), (5, UpdateState::Reverted), (2, UpdateState::Committed)]
    {
        let mut world = World::new();
        world.happens(offer(1, Some(0), true), None);
        assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
        world.happens(offer(2, Some(bundle), true), None);
        assert_eq!(world.runs_to_the_end(), state, "bundle {bundle}");
        let serves = world.machine.record().installed(world.serving.unwrap()).unwrap();
        let expected = if state == UpdateState::Committed { digest(bundle) } else { digest(0) };
        assert_eq!(serves.manifest, expected);
    }
}

#[test]
fn where_nothing_is_committed_one_bundle_has_room_wherever_the_agent_dies() {
    let tight = |generation, bundle| offer_within(generation, bundle, true, u64::from(CHUNKS));
    for (before, state) in [(3, UpdateState::Failed), (0, UpdateState::Committed)] {
        for dies_at in 0..12 {
            let mut world = World { room: 1, ..World::new() };
            world.happens(tight(1, Some(before)), None);
            assert_eq!(world.runs_to_the_end(), state);
            if state == UpdateState::Committed {
                world.happens(tight(2, None), None);
            }
            assert!(world.record.committed.is_none() && world.record.slots.holding(&digest(before)).is_some());
            world.happens(tight(3, Some(1)), Some(dies_at));
            world.happens(tight(3, Some(1)), None);
            assert_eq!(world.runs_to_the_end(), UpdateState::Committed, "{state:?} {dies_at}");
        }
    }
}

#[test]
fn going_back_to_the_bundle_before_needs_no_chunk() {
    let mut world = World::new();
    for (generation, bundle) in [(1, 0), (2, 1)] {
        world.happens(offer(generation, Some(bundle), true), None);
        assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
    }
    world.happens(offer(3, Some(0), true), None);
    assert_eq!(world.fetching, None);
    assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
    assert_eq!(world.record.committed_bundle().unwrap().manifest, digest(0));
    // And an assignment of what runs already changes the generation alone.
    world.happens(offer(4, Some(0), true), None);
    assert_eq!(world.serving.unwrap().generation, 4);
    assert_eq!(world.record.update_report().state, UpdateState::Committed);
}

#[test]
fn the_floor_keeps_older_releases_out_once_the_newer_one_has_committed() {
    let mut world = World::new();
    world.happens(offer(1, Some(2), true), None);
    assert_eq!(world.record.security_floor, 0);
    world.runs_to_the_end();
    assert_eq!(world.record.security_floor, 1);
}

#[test]
fn a_committed_bundle_whose_files_rot_is_replaced_by_the_one_before_or_fetched_again() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    world.runs_to_the_end();
    let mut alone = Machine::new(world.record.clone());
    let pointer = world.record.committed.unwrap();
    assert_eq!(alone.handle(Event::Started, 0), [Effect::LoadCommitted(pointer)]);
    let rotten = Event::CommittedUnusable { reason: "chunk 1 is damaged".into(), damaged: vec![1] };
    let effects = alone.handle(rotten.clone(), 0);
    assert!(effects.contains(&Effect::Fetch { slot: pointer.slot, generation: 1 }), "{effects:?}");
    let mut have = ChunkSet::empty(CHUNKS);
    for chunk in [0, 2, 3, 4] {
        have.insert(chunk);
    }
    assert_eq!(alone.record().slots.get(pointer.slot).unwrap().have, have);
    assert!(!alone.is_serving(), "quiet hours must not hold it back");
    // Nor while it is another update that is being fetched.
    world.happens(offer(2, Some(1), true), None);
    assert!(world.fetching.is_some() && world.machine.is_serving());
    let mut at_work = Machine::new(world.record.clone());
    let _ = at_work.handle(Event::Started, 0);
    let effects = at_work.handle(rotten.clone(), 0);
    assert!(effects.contains(&Effect::Fetch { slot: pointer.slot.other(), generation: 2 }), "{effects:?}");
    assert!(!at_work.is_serving());
    world.runs_to_the_end();
    let pointer = world.record.committed.unwrap();
    let mut with_fallback = Machine::new(world.record.clone());
    let _ = with_fallback.handle(Event::Started, 0);
    let effects = with_fallback.handle(rotten, 0);
    let other = Pointer { slot: pointer.slot.other(), generation: 2 };
    // It serves before anything has to be written: the disk may be full.
    assert_eq!(effects, [Effect::LoadCommitted(other)]);
    assert_eq!(with_fallback.record().update_report().state, UpdateState::Reverted);
    let effects = with_fallback.clone().handle(Event::CommittedLoaded, 0);
    let tidy = Effect::Tidy { keep: Some(other.slot) };
    assert_eq!(effects, [Effect::Serve(other), Effect::Persist, Effect::Tell, tidy]);
    // Neither can be loaded, though the bytes are right: nothing is thrown away.
    let unloadable = Event::CommittedUnusable { reason: "no runtime".into(), damaged: vec![] };
    let _ = with_fallback.handle(unloadable, 0);
    assert_eq!(with_fallback.record().committed, Some(other));
}

#[test]
fn a_lost_manifest_is_taken_from_the_assignment_said_again() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    world.runs_to_the_end();
    let pointer = world.record.committed.unwrap();
    let lost = Event::CommittedManifestLost { reason: "it is missing".into() };
    let start = || {
        let mut machine = Machine::new(world.record.clone());
        assert_eq!(machine.handle(Event::Started, 0), [Effect::LoadCommitted(pointer)]);
        assert_eq!(machine.handle(lost.clone(), 0), [Effect::Persist, Effect::Tell, Effect::Report]);
        assert_eq!(machine.record().committed, Some(pointer), "nothing is given up");
        machine.told(1);
        machine
    };
    let mut machine = start();
    let again = [Effect::StoreManifest(digest(0)), Effect::LoadCommitted(pointer)];
    assert_eq!(machine.handle(offer(1, Some(0), true), 0), again);
    let tidy = Effect::Tidy { keep: Some(pointer.slot) };
    assert_eq!(machine.handle(Event::CommittedLoaded, 0), [Effect::Serve(pointer), Effect::Report, tidy]);
    assert_eq!(machine.handle(offer(1, Some(0), true), 0), [Effect::Report], "once is enough");

    // Under another generation it is checked and tried like any bundle, without fetching.
    let mut machine = start();
    let effects = machine.handle(offer(2, Some(0), true), 0);
    assert!(effects.starts_with(&[Effect::StopFetching, Effect::StoreManifest(digest(0)), Effect::Persist]));
    assert_eq!(effects.last(), Some(&Effect::CheckFiles { slot: pointer.slot, generation: 2 }));
}

#[test]
fn a_start_serves_before_it_writes_tells_or_tidies() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    world.runs_to_the_end();
    let pointer = world.record.committed.unwrap();
    let mut record = world.record.clone();
    record.untold.push(Untold { kind: DeviceEventKind::Committed, generation: 1, bundle: None, detail: "left".into() });
    let mut machine = Machine::new(record);
    assert_eq!(machine.handle(Event::Started, 0), [Effect::LoadCommitted(pointer)]);
    // What a death just after a commit left behind goes with the next start, and not only with the next commit.
    let tidy = Effect::Tidy { keep: Some(pointer.slot) };
    assert_eq!(machine.handle(Event::CommittedLoaded, 0), [Effect::Serve(pointer), Effect::Tell, tidy]);
}

#[test]
fn a_stop_in_order_costs_no_try_and_time_watched_counts() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    for chunk in 0..CHUNKS {
        world.chunk_arrives(chunk, None);
    }
    world.job_ends(None);
    world.job_ends(None);
    for _ in 0..4 {
        world.time_passes(PROBATION_MS / 5, None);
        assert_eq!(world.record.update_report().state, UpdateState::Trial);
        world.stops_in_order();
        world.job_ends(None);
    }
    world.time_passes(PROBATION_MS / 5, None);
    assert_eq!(world.record.update_report().state, UpdateState::Committed);
}

#[test]
fn a_refusal_is_told_from_a_failure() {
    for (offered, refused) in
        [(offer(2, Some(2), false), true), (offer_within(2, Some(2), true, 0), true), (offer(2, Some(3), true), false)]
    {
        let mut world = World::new();
        world.happens(offer(1, Some(0), true), None);
        assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
        world.happens(offered, None);
        assert_eq!(world.runs_to_the_end(), UpdateState::Failed);
        assert_eq!(world.record.update_report().refused, refused);
    }
}
