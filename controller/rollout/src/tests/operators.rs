//! What operators may do, when, and what comes of it.

use muster_shared::rollout::RolloutStatus::{
    self, Completed, Draft, Paused, Ready, RolledBack, RollingBack, Running, Stopped, WaitingForApproval,
};

use muster_shared::trust::Stage;

use super::world::{MAX_MS, World, spec, told};
use crate::OperatorAction::{Abort, Pause, Resume, Rollback};

const ALL: [RolloutStatus; 9] =
    [Draft, WaitingForApproval, Ready, Running, Paused, RollingBack, Completed, RolledBack, Stopped];

#[test]
fn every_action_in_every_state() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    for (action, to, allowed) in [
        (Pause, Paused, &[Ready, Running][..]),
        (Resume, Running, &[Paused]),
        (Abort, Stopped, &[Draft, WaitingForApproval, Ready, Running, Paused, RollingBack]),
        (Rollback, RollingBack, &[Ready, Running, Paused, Completed, Stopped]),
    ] {
        for from in ALL {
            world.rollout.status = from;
            match world.rollout.apply(action, "alice", None, 7) {
                Ok(next) => {
                    assert!(allowed.contains(&from), "{action:?} from {from}");
                    assert_eq!((next.status, next.updated_at_ms), (to, 7));
                }
                Err(error) => {
                    assert!(!allowed.contains(&from), "{action:?} from {from}");
                    assert_eq!((error.action, error.status), (action, from));
                }
            }
        }
    }
}

#[test]
fn a_fleet_wide_stop_ends_whatever_has_not_ended() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    for status in ALL {
        world.rollout.status = status;
        let halted = world.rollout.halted("alice", Some("smoke"), 7);
        assert_eq!(halted.is_some(), !status.is_terminal(), "{status}");
        if let Some(halted) = halted {
            assert_eq!((halted.status, halted.updated_at_ms), (Stopped, 7), "{status}");
            assert_eq!(halted.status_reason, "stopped by alice: fleet-wide stop: smoke");
            assert!(!halted.needs_planning());
        }
    }
}

#[test]
fn a_fleet_wide_stop_ends_what_runs_beside_and_waits_for_it() {
    let beside = muster_shared::rollout::RolloutSpec { stage: Stage::Shadow { share_bp: 10_000 }, ..spec(&["100%"]) };
    let mut world = World::new(beside, &["a"]);
    world.tick(0);
    world.rollout = world.rollout.halted("alice", None, 7).unwrap();
    assert_eq!(world.rollout.status, RollingBack);
    assert_eq!(world.rollout.halted("alice", None, 8), None, "it is being ended");
    assert!(crate::goes_on_in_a_stop(world.rollout.status));
    assert_eq!(told(&world.tick(1)), ["a"]);
    world.commits("a");
    world.tick(1);
    assert_eq!(world.rollout.status, RolledBack);
}

#[test]
fn it_says_who_did_what_and_why() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.tick(0);
    let paused = world.rollout.apply(Pause, "alice", Some(" press 7 smells of smoke "), 9).unwrap();
    assert_eq!(paused.status_reason, "paused by alice: press 7 smells of smoke");
    assert_eq!(world.rollout.apply(Abort, "bob", Some(""), 9).unwrap().status_reason, "stopped by bob");
    assert_eq!(
        world.rollout.apply(Resume, "bob", None, 9).unwrap_err().to_string(),
        "resume is not possible: the rollout is running, and must be paused"
    );
    assert!(paused.apply(Abort, "x", Some(&"é".repeat(2_000)), 9).unwrap().status_reason.len() <= 1_024);
}

#[test]
fn a_paused_rollout_tells_again_what_it_told_and_nobody_else() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b"]);
    world.tick(0);
    let first = world.first(0);
    world.apply(Pause);
    world.add("c");
    assert_eq!(told(&world.tick(1)), [first.as_str()]);
    world.all_commit();
    let decision = world.tick(10 * MAX_MS);
    assert_eq!((decision.next.status, decision.actions), (Paused, vec![]));
    assert_eq!(world.rollout.targets.len(), 1);

    // What was decided but never reached the store waits for the resumption.
    world.facts(&first).desired = None;
    world.facts(&first).reported = None;
    assert!(world.tick(1).actions.is_empty());
    world.apply(Resume);
    assert_eq!(told(&world.tick(1)), [first.as_str()]);
}

#[test]
fn paused_before_it_began_it_begins_on_resuming() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.apply(Pause);
    assert!(world.tick(1).actions.is_empty());
    world.apply(Resume);
    assert_eq!(world.rollout.status, Ready);
    assert_eq!(told(&world.tick(1)), ["a"]);
}

#[test]
fn an_abort_takes_effect_at_once_and_nothing_follows() {
    for before in [Running, RollingBack] {
        let mut world = World::new(spec(&["100%"]), &["a", "b"]);
        world.tick(0);
        world.rollout.status = before;
        world.apply(Abort);
        assert!(!world.rollout.needs_planning());
        world.commits("a");
        let decision = world.tick(MAX_MS);
        assert_eq!((&decision.next.status, decision.actions.len()), (&Stopped, 0));
    }
}

#[test]
fn a_stopped_or_completed_rollout_can_be_taken_back() {
    for abort in [true, false] {
        let mut world = World::new(spec(&["100%"]), &["a"]);
        world.tick(0);
        if abort {
            world.commits("a");
            world.apply(Abort);
        } else {
            world.pass_wave();
            assert_eq!(world.rollout.status, Completed);
        }
        world.apply(Rollback);
        assert_eq!(told(&world.tick(1)), ["a"]);
        world.commits("a");
        assert_eq!(world.tick(1).next.status, RolledBack);
    }
}

#[test]
fn a_rollback_before_the_beginning_is_done_at_once() {
    let mut world = World::new(spec(&["100%"]), &["a"]);
    world.apply(Rollback);
    let decision = world.tick(1);
    assert_eq!((decision.next.status, decision.actions), (RolledBack, vec![]));
}

#[test]
fn states_that_wait_for_people_do_nothing() {
    for status in [Draft, WaitingForApproval] {
        let mut world = World::new(spec(&["100%"]), &["a"]);
        world.rollout.status = status;
        let decision = world.tick(MAX_MS);
        assert_eq!((decision.next.status, decision.actions), (status, vec![]));
    }
}
