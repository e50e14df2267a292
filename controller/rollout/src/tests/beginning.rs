//! When rollouts begin: at their time, and in their turn.

use muster_shared::rollout::{Conflict, RolloutStatus, Waiting};
use proptest::prelude::*;

use super::world::{START_MS, World, last_verdict, spec, told};
use crate::{Decision, QueuedRollout, Violation, plan, verify};

fn queueing(devices: &[&str]) -> World {
    let mut spec = spec(&["100%"]);
    spec.conflict = Conflict::Queue;
    World::new(spec, devices)
}

fn other(id: &str, priority: u8, created_at_ms: u64, selector: &str) -> QueuedRollout {
    QueuedRollout { id: id.parse().unwrap(), priority, created_at_ms, selector: selector.parse().unwrap() }
}

fn behind(decision: &Decision) -> Vec<&str> {
    let behind = decision
        .waiting
        .iter()
        .find_map(|waiting| if let Waiting::Queued { behind } = waiting { Some(behind) } else { None });
    behind.into_iter().flatten().map(|id| id.as_str()).collect()
}

fn begun_anyway(world: &World) -> Vec<Violation> {
    let mut free = world.fleet.clone();
    free.queue.clear();
    free.devices.values_mut().for_each(|facts| facts.held_by = None);
    let mut eager = world.rollout.clone();
    eager.spec.start_at_ms = None;
    let mut decision = plan(&eager, &free, world.now_ms);
    assert_eq!(decision.next.status, RolloutStatus::Running);
    decision.next.spec = world.rollout.spec.clone();
    verify(&world.rollout, &decision, &world.fleet, world.now_ms).expect_err("it began before it might")
}

#[test]
fn it_begins_at_its_time() {
    let mut later = spec(&["100%"]);
    later.start_at_ms = Some(START_MS + 500);
    let mut world = World::new(later, &["a"]);
    let decision = world.tick(499);
    assert_eq!((decision.next.status, decision.wake_at_ms), (RolloutStatus::Ready, Some(START_MS + 500)));
    assert_eq!(decision.waiting, [Waiting::Scheduled { at_ms: START_MS + 500 }]);
    let found = begun_anyway(&world);
    assert!(found.contains(&Violation::Begun("its time has not come")), "{found:?}");
    let mut silent = plan(&world.rollout, &world.fleet, world.now_ms);
    silent.waiting.clear();
    assert_eq!(verify(&world.rollout, &silent, &world.fleet, world.now_ms), Err(vec![Violation::Silent]));
    assert_eq!(told(&world.tick(1)), ["a"]);
    // A clock set back changes nothing about what has begun.
    world.now_ms -= 400;
    assert_eq!(world.tick(0).next.status, RolloutStatus::Running);
}

#[test]
fn one_that_queues_waits_until_nobody_has_its_devices() {
    let mut world = queueing(&["a", "b"]);
    world.facts("b").held_by = Some("r7".parse().unwrap());
    let decision = world.tick(1);
    assert_eq!((decision.next.status, behind(&decision)), (RolloutStatus::Ready, vec!["r7"]));
    assert_eq!(decision.waiting[0].to_string(), "queued behind r7");
    let found = begun_anyway(&world);
    assert!(found.contains(&Violation::Begun("another rollout has a device that it queues for")), "{found:?}");
    world.facts("b").revoked = true;
    assert_eq!(told(&world.tick(1)), ["a"]);
}

#[test]
fn the_higher_priority_goes_first_then_the_older() {
    let mut world = queueing(&["a", "b"]);
    world.facts("a").labels.insert("site".into(), "lyon".into());
    for (others, first) in [
        (vec![other("r9", 51, START_MS + 1, "*")], &["r9"][..]),
        (vec![other("r9", 50, START_MS - 1, "*")], &["r9"]),
        (vec![other("r0", 50, START_MS, "*"), other("r9", 99, 7, "site=lyon")], &["r0", "r9"]),
        (vec![other("r9", 99, 7, "site=oslo"), other("r2", 50, START_MS, "*"), other("r8", 49, 1, "*")], &[]),
    ] {
        world.fleet.queue = others;
        let decision = plan(&world.rollout, &world.fleet, world.now_ms);
        assert_eq!(verify(&world.rollout, &decision, &world.fleet, world.now_ms), Ok(()));
        assert_eq!(behind(&decision), first);
        assert_eq!(decision.next.status == RolloutStatus::Running, first.is_empty());
        if !first.is_empty() {
            let found = begun_anyway(&world);
            assert!(found.contains(&Violation::Begun("another one in the queue goes first")), "{found:?}");
        }
    }
}

#[test]
fn one_that_refuses_names_those_in_its_way() {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b", "c"]);
    let mut careful = world.rollout.clone();
    careful.id = "r2".parse().unwrap();
    careful.spec.conflict = Conflict::Refuse;
    careful.spec.selector = "id=a".parse().unwrap();
    assert!(world.rollout.check_conflicts(&world.fleet, [&careful]).is_ok(), "it did not ask to be refused");
    // It means the device, although it has not taken it in.
    let refused = careful.check_conflicts(&world.fleet, [&world.rollout]).unwrap_err();
    assert_eq!((refused.devices, refused.rollouts.len()), (1, 1));
    assert!(
        refused.to_string().starts_with("1 device belong to other rollouts that have not ended: r1 (1 device)"),
        "{refused}"
    );
    careful.spec.selector = "id=z".parse().unwrap();
    assert_eq!(careful.check_conflicts(&world.fleet, [&world.rollout]), Ok(()));
    careful.spec.selector = "*".parse().unwrap();
    world.rollout.status = RolloutStatus::Completed;
    assert_eq!(careful.check_conflicts(&world.fleet, [&world.rollout]), Ok(()));
}

#[test]
fn nobody_is_left_out_in_silence() {
    let mut world = World::new(spec(&["100%"]), &["a", "b", "c"]);
    world.facts("b").held_by = Some("r7".parse().unwrap());
    world.tick(0);
    world.pass_wave();
    assert_eq!(world.rollout.status, RolloutStatus::Completed);
    assert!(world.rollout.status_reason.ends_with("; without 1 device of r7: b"), "{}", world.rollout.status_reason);
    assert!(last_verdict(&world.rollout).summary.ends_with("; without 1 device of r7: b"));
}

#[test]
fn the_checker_hears_the_silence() {
    let mut world = World::new(spec(&["100%"]), &["a", "b"]);
    world.facts("b").held_by = Some("r7".parse().unwrap());
    world.tick(0);
    world.all_commit();
    world.tick(1);
    world.all_commit();
    world.now_ms += super::world::SOAK_MS;
    let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
    assert_eq!(verify(&world.rollout, &decision, &world.fleet, world.now_ms), Ok(()));
    decision.next.verdicts[0].summary.clear();
    let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
    assert_eq!(found, [Violation::Unsaid(1)]);
}

proptest! {
    /// However many queue for whichever devices, somebody's turn it always is, and of two that share a device it is one's at most.
    #[test]
    fn the_queue_always_moves_and_never_doubles(
        wishes in prop::collection::vec((0u8..4, 0u64..3, prop::sample::select(vec!["*", "id=a", "id=b", "site=x"])), 1..6),
        marked in any::<[bool; 3]>(),
    ) {
        let mut base = queueing(&["a", "b", "c"]);
        for (name, marked) in ["a", "b", "c"].into_iter().zip(marked) {
            let labels = if marked { [("site".to_owned(), "x".to_owned())].into() } else { Default::default() };
            base.facts(name).labels = labels;
        }
        let rollouts: Vec<_> = wishes.iter().enumerate().map(|(at, (priority, created, selector))| {
            let mut rollout = base.rollout.clone();
            rollout.id = format!("r{at}").parse().unwrap();
            (rollout.spec.priority, rollout.created_at_ms) = (*priority, *created);
            rollout.spec.selector = selector.parse().unwrap();
            rollout
        }).collect();
        let mut begun = Vec::new();
        for rollout in &rollouts {
            let mut fleet = base.fleet.clone();
            fleet.queue = rollouts.iter().filter(|other| other.id != rollout.id).filter_map(crate::Rollout::queued).collect();
            let decision = plan(rollout, &fleet, base.now_ms);
            prop_assert_eq!(verify(rollout, &decision, &fleet, base.now_ms), Ok(()));
            if decision.next.status == RolloutStatus::Running {
                begun.push(decision.next.targets.keys().cloned().collect::<std::collections::BTreeSet<_>>());
            }
        }
        prop_assert!(!begun.is_empty());
        let all: usize = begun.iter().map(std::collections::BTreeSet::len).sum();
        let together: std::collections::BTreeSet<_> = begun.iter().flatten().collect();
        prop_assert_eq!(all, together.len());
    }
}
