//! A bundle that is ready and waits for a time or a word.

use muster_agent_core::record::{MAX_TRIES, Phase};
use muster_agent_core::update::{Effect, Event};
use muster_shared::messages::{HeldBack, UpdateState};
use muster_shared::trust::Activation;

use crate::world::{CHUNKS, PROBATION_MS, World, digest, offer, offer_as, offer_when};

const AT: Activation = Activation::At { at_ms: 7 };

/// A device that serves bundle 0 and has bundle 1 ready under generation 2.
fn ready(activation: Activation) -> World {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    world.runs_to_the_end();
    world.happens(offer_when(2, 1, activation), None);
    assert_eq!(world.runs_to_the_end(), UpdateState::Verified);
    assert_eq!(world.serving, world.record.committed);
    world
}

fn served(world: &World) -> (UpdateState, bool) {
    let running = world.serving.and_then(|pointer| world.machine.record().installed(pointer)).unwrap();
    (world.record.update_report().state, running.manifest == digest(1))
}

#[test]
fn it_says_that_it_is_ready_and_serves_at_the_word_without_fetching_or_testing_again() {
    let mut world = ready(Activation::Hold);
    assert_eq!(world.machine.held_back(), Some(HeldBack::Switch { at_ms: None }));
    assert!(!world.time_comes(None), "no time was named");
    let tested = world.tests_run.clone();
    world.happens(offer_when(3, 1, AT), None);
    assert!(world.fetching.is_none() && world.jobs.is_empty());
    assert_eq!(
        (world.machine.held_back(), world.machine.switch_at()),
        (Some(HeldBack::Switch { at_ms: Some(7) }), Some((3, 7)))
    );
    assert_eq!(served(&world), (UpdateState::Verified, false));
    world.happens(Event::Due { generation: 2 }, None);
    assert_eq!(served(&world), (UpdateState::Verified, false), "that was another generation's time");
    assert!(world.time_comes(None));
    assert_eq!(served(&world), (UpdateState::Trial, true));
    assert_eq!(world.tests_run, tested);
    assert_eq!((world.machine.held_back(), world.machine.switch_at()), (None, None));
    assert_eq!(world.runs_to_the_end(), UpdateState::Committed);

    // The word may also be to switch now.
    let mut world = ready(AT);
    world.happens(offer(3, Some(1), true), None);
    assert_eq!(served(&world), (UpdateState::Trial, true));
}

#[test]
fn after_a_death_it_is_tested_again_and_waits_on() {
    let mut world = ready(AT);
    world.time_passes(PROBATION_MS, None);
    world.restart();
    assert_eq!((world.machine.held_back(), world.machine.switch_at()), (None, None), "it is not known to be ready");
    assert!(!world.time_comes(None));
    world.job_ends(None);
    assert_eq!((world.machine.switch_at(), served(&world)), (Some((2, 7)), (UpdateState::Verified, false)));
    // Wherever it dies on the way to the switch, it ends up on the new one, and the old one answers until then.
    for dies_at in 0..6 {
        let mut world = ready(AT);
        assert!(world.time_comes(Some(dies_at)));
        while world.record.update_report().state == UpdateState::Verified {
            assert_eq!(world.serving, world.record.committed);
            world.job_ends(None);
            world.time_comes(None);
        }
        assert_eq!(world.runs_to_the_end(), UpdateState::Committed, "{dies_at}");
        assert_eq!(world.record.committed_bundle().unwrap().manifest, digest(1));
    }
}

#[test]
fn its_tries_come_back_once_it_has_lived_through_a_probation() {
    let mut world = ready(Activation::Hold);
    assert!(matches!(world.record.update.as_ref().unwrap().phase, Phase::Verified { tries_left: MAX_TRIES, .. }));
    assert!(!world.machine.is_watching());
    for _ in 0..MAX_TRIES {
        world.restart();
        world.job_ends(None);
        assert!(world.machine.held_back().is_some());
    }
    world.restart();
    assert_eq!(world.record.update_report().state, UpdateState::Failed, "it takes the agent down before that");
}

#[test]
fn another_word_lets_it_go() {
    // Back to what serves, another bundle, or another part: what was ready is never served.
    let mut world = ready(Activation::Hold);
    world.happens(offer(3, Some(0), true), None);
    assert_eq!((served(&world), world.machine.held_back()), ((UpdateState::Committed, false), None));
    let mut world = ready(Activation::Hold);
    world.happens(offer(3, Some(2), true), None);
    assert!(world.machine.held_back().is_none() && world.fetching.is_some());
    assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
    let mut world = ready(Activation::Hold);
    world.happens(offer_as(3, 1, muster_shared::trust::Stage::Shadow { share_bp: 9 }), None);
    assert!(world.fetching.is_none(), "its chunks are there");
    assert_eq!(world.runs_to_the_end(), UpdateState::Beside);
}

#[test]
fn what_was_held_is_no_bundle_to_fall_back_to() {
    let mut world = ready(Activation::Hold);
    world.happens(offer(3, Some(0), true), None);
    let mut machine = muster_agent_core::update::Machine::new(world.record.clone());
    let _ = machine.handle(Event::Started, 0);
    let rotten = Event::CommittedUnusable { reason: "chunk 1 is damaged".into(), damaged: vec![1] };
    let effects = machine.handle(rotten, 0);
    assert!(
        effects.contains(&Effect::Fetch { slot: world.record.committed.unwrap().slot, generation: 3 }),
        "{effects:?}"
    );
}

#[test]
fn told_to_hold_what_is_on_trial_the_incumbent_answers_again() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    world.runs_to_the_end();
    world.happens(offer(2, Some(1), true), None);
    (0..CHUNKS).for_each(|chunk| world.chunk_arrives(chunk, None));
    world.job_ends(None);
    world.job_ends(None);
    assert_eq!(served(&world), (UpdateState::Trial, true));
    world.happens(offer_when(3, 1, Activation::Hold), None);
    assert_eq!(world.serving, world.record.committed);
    assert_eq!(world.runs_to_the_end(), UpdateState::Verified);
}
