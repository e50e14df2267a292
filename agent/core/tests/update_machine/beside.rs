//! A bundle beside the incumbent, step by step.

use muster_agent_core::record::{MAX_TRIES, Phase};
use muster_agent_core::slots::Pointer;
use muster_agent_core::update::{Effect, Event, Machine};
use muster_shared::messages::{DeviceEventKind, UpdateState};
use muster_shared::trust::Stage;

use super::world::{PROBATION_MS, World, digest, offer, offer_as};

const HALF: Stage = Stage::Shadow { share_bp: 5_000 };

/// Bundle 0 is committed and bundle 1 runs beside it, under generation 2.
fn shadowing() -> World {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
    world.happens(offer_as(2, 1, HALF), None);
    assert_eq!(world.runs_to_the_end(), UpdateState::Beside);
    world
}

fn committed(world: &World) -> (u8, u64) {
    let bundle = world.record.committed_bundle().unwrap();
    ((0..6).find(|b| digest(*b) == bundle.manifest).unwrap(), bundle.generation)
}

fn tries_left(world: &World) -> Option<u32> {
    let Phase::Beside { tries_left, .. } = world.record.update.as_ref()?.phase else { return None };
    Some(tries_left)
}

#[test]
fn the_incumbent_serves_on_and_the_shadow_runs_beside_it() {
    let world = shadowing();
    assert_eq!((committed(&world), world.serving), ((0, 1), world.record.committed));
    assert_eq!(world.beside.map(|p| p.generation), Some(2));
    assert!(world.outbox.contains(&(DeviceEventKind::Beside, 2)));
    assert!(!world.outbox.contains(&(DeviceEventKind::Trial, 2)));
}

#[test]
fn it_is_promoted_without_being_fetched_or_loaded_again() {
    let mut world = shadowing();
    world.happens(offer(3, Some(1), true), None);
    assert!(world.fetching.is_none() && world.jobs.is_empty() && world.beside.is_none());
    assert_eq!(world.record.update_report().state, UpdateState::Trial);
    assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
    assert_eq!(committed(&world), (1, 3));
    // Bundle 0 is what is fallen back to.
    assert!(world.record.slots.holding(&digest(0)).is_some());
}

#[test]
fn a_restart_just_before_it_is_promoted_costs_a_test_and_no_chunk() {
    let mut world = shadowing();
    world.restart();
    world.happens(offer(3, Some(1), true), None);
    assert_eq!((world.fetching, world.beside), (None, None));
    assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
    assert_eq!(committed(&world), (1, 3));
}

#[test]
fn its_share_changes_in_place() {
    let mut world = shadowing();
    let split = Stage::Split { share_bp: 100, experiment: "warm".into() };
    let slot = world.beside.unwrap().slot;
    let mut machine = world.machine.clone();
    let run = Effect::RunBeside(Pointer { slot, generation: 3 });
    assert_eq!(
        machine.handle(offer_as(3, 1, split.clone()), world.now_ms),
        [Effect::Persist, run, Effect::Tell, Effect::Report]
    );
    world.happens(offer_as(3, 1, split), None);
    world.check_at_rest();
    assert_eq!((world.beside.unwrap().generation, committed(&world)), (3, (0, 1)));
    // The same generation in another part is another assignment.
    let before = world.record.clone();
    world.happens(offer_as(3, 1, HALF), None);
    assert_eq!(world.record, before);
}

#[test]
fn told_to_run_what_it_has_committed_it_ends_the_shadow_and_keeps_its_files() {
    let mut world = shadowing();
    world.happens(offer(3, Some(0), true), None);
    assert_eq!((world.beside, committed(&world)), (None, (0, 3)));
    assert_eq!(world.record.update_report().state, UpdateState::Committed);
    world.happens(offer_as(4, 1, HALF), None);
    assert!(world.fetching.is_none(), "its files are still there");
    assert_eq!(world.runs_to_the_end(), UpdateState::Beside);
    world.happens(offer(5, None, true), None);
    assert_eq!((world.beside, world.serving), (None, None));
}

#[test]
fn another_bundle_takes_its_slot() {
    for stage in [Stage::Serve, HALF] {
        let mut world = shadowing();
        world.happens(offer_as(3, 2, stage.clone()), None);
        assert!(world.fetching.is_some() && world.beside.is_none());
        assert_eq!(world.serving, world.record.committed);
        let end = world.runs_to_the_end();
        if stage.is_serve() {
            assert_eq!((end, committed(&world)), (UpdateState::Committed, (2, 3)));
        } else {
            assert_eq!((end, committed(&world)), (UpdateState::Beside, (0, 1)));
        }
    }
}

#[test]
fn beside_nothing_there_is_no_place() {
    let mut world = World::new();
    world.happens(offer_as(1, 0, HALF), None);
    assert!(world.fetching.is_none());
    let report = world.record.update_report();
    assert_eq!(report.state, UpdateState::Failed);
    assert!(report.reason.unwrap().contains("none serves here"));
}

#[test]
fn what_fails_its_test_or_takes_the_agent_down_ends_and_the_incumbent_serves_on() {
    for bundle in [3, 4] {
        let mut world = World::new();
        world.happens(offer(1, Some(0), true), None);
        world.runs_to_the_end();
        world.happens(offer_as(2, bundle, HALF), None);
        assert_eq!(world.runs_to_the_end(), UpdateState::Failed, "bundle {bundle}");
        assert_eq!((committed(&world), world.serving), ((0, 1), world.record.committed));
    }
}

#[test]
fn its_tries_come_back_once_it_has_lived_through_a_probation() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    world.runs_to_the_end();
    world.happens(offer_as(2, 1, HALF), None);
    for chunk in 0..5 {
        world.chunk_arrives(chunk, None);
    }
    world.job_ends(None);
    world.job_ends(None);
    assert_eq!(tries_left(&world), Some(MAX_TRIES - 1));
    world.time_passes(PROBATION_MS / 2, None);
    assert_eq!(tries_left(&world), Some(MAX_TRIES - 1));
    world.time_passes(PROBATION_MS, None);
    assert_eq!(tries_left(&world), Some(MAX_TRIES));
    assert!(!world.machine.is_watching(), "there is nothing more to wait for");
    // From here on it dies each time before that, and is given up in the end.
    for left in (0..MAX_TRIES).rev() {
        world.restart();
        world.job_ends(None);
        assert_eq!((tries_left(&world), world.beside.is_some()), (Some(left), true));
    }
    world.restart();
    assert_eq!(world.record.update_report().state, UpdateState::Failed);
    assert!(world.record.update_report().reason.unwrap().contains("did not survive"));
    assert_eq!((world.serving, world.beside), (world.record.committed, None));
}

#[test]
fn an_incumbent_that_rots_is_fetched_again_and_not_replaced_by_its_shadow() {
    let world = shadowing();
    let pointer = world.record.committed.unwrap();
    let rotten = Event::CommittedUnusable { reason: "chunk 1 is damaged".into(), damaged: vec![1] };
    // While it shadows, and after that was ended.
    let ended = {
        let mut world = shadowing();
        world.happens(offer(3, Some(0), true), None);
        world.record
    };
    for (record, generation) in [(world.record.clone(), 2), (ended, 3)] {
        let mut machine = Machine::new(record);
        assert!(matches!(machine.handle(Event::Started, 0)[..], [Effect::LoadCommitted(_)]));
        let effects = machine.handle(rotten.clone(), 0);
        assert!(effects.contains(&Effect::Fetch { slot: pointer.slot, generation }), "{effects:?}");
        let update = machine.record().update.clone().unwrap();
        assert_eq!((update.manifest, update.stage), (Some(digest(0)), Stage::Serve));
    }
}
