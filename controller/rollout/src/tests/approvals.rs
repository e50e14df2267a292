//! Who must say yes before a rollout begins.

use std::collections::BTreeSet;

use muster_shared::rollout::{ApprovalError, ApprovalOutcome, ApprovalSpec, RolloutStatus, Waiting};
use proptest::prelude::*;

use super::world::{START_MS, World, spec, told};
use crate::{ApprovalRefusal, OperatorAction, Violation, plan, verify};

const DAY_MS: u64 = 86_400_000;

fn wish(needed: u32, approvers: &[&str], within_ms: Option<u64>) -> ApprovalSpec {
    ApprovalSpec { needed, approvers: approvers.iter().map(ToString::to_string).collect(), within_ms }
}

/// A rollout that ann asked for, at a controller that demands `least` approvals.
fn asked(approval: Option<ApprovalSpec>, least: u32) -> World {
    let mut spec = spec(&["100%"]);
    spec.approval = approval;
    let mut world = World::new(spec, &["a", "b"]);
    world.rollout = world.rollout.clone().asked_for_by("ann", least).unwrap();
    world
}

fn approve(world: &mut World, who: &str) -> Result<(), ApprovalRefusal> {
    world.rollout = world.rollout.approve(who, None, world.now_ms)?;
    Ok(())
}

fn outcome(world: &World) -> ApprovalOutcome {
    world.rollout.approval.as_ref().unwrap().outcome
}

#[test]
fn two_of_anybody_let_it_begin() {
    let mut world = asked(Some(wish(2, &[], None)), 0);
    let waits = world.tick(1);
    assert_eq!((waits.next.status, waits.actions.len()), (RolloutStatus::WaitingForApproval, 0));
    assert_eq!(waits.waiting[0].to_string(), "0 of 2 approvals; whoever has the role approver or admin may give them");
    approve(&mut world, "bob").unwrap();
    assert_eq!(world.rollout.status_reason, "approved by bob (1 of 2)");
    assert!(world.tick(1).waiting[0].to_string().starts_with("1 of 2 approvals (bob);"));
    assert_eq!(approve(&mut world, "bob"), Err(ApprovalRefusal::Again("bob".into())));
    approve(&mut world, "cem").unwrap();
    assert_eq!((world.rollout.status, outcome(&world)), (RolloutStatus::Ready, ApprovalOutcome::Approved));
    assert_eq!(told(&world.tick(1)), ["a", "b"]);
    assert_eq!(approve(&mut world, "dan"), Err(ApprovalRefusal::NotWaiting(RolloutStatus::Running)));
}

#[test]
fn whoever_asked_for_it_never_suffices_alone() {
    let mut world = asked(Some(wish(1, &[], None)), 0);
    approve(&mut world, "ann").unwrap();
    assert_eq!(world.rollout.status, RolloutStatus::WaitingForApproval);
    let words = world.tick(1).waiting[0].to_string();
    assert!(words.contains("1 of 1 approvals (ann)") && words.contains("somebody else's than ann's"), "{words}");
    approve(&mut world, "bob").unwrap();
    assert_eq!(world.rollout.status, RolloutStatus::Ready);
    let mut only_ann = spec(&["100%"]);
    only_ann.approval = Some(wish(1, &["ann"], None));
    let rollout = World::new(only_ann, &["a"]).rollout;
    assert_eq!(rollout.clone().asked_for_by("ann", 0).unwrap_err(), ApprovalError::Alone("ann".into()));
    assert_eq!(rollout.clone().asked_for_by("bob", 2).unwrap_err(), ApprovalError::TooFew { needed: 2, named: 1 });
    assert!(rollout.asked_for_by("bob", 1).is_ok());
}

#[test]
fn only_those_named_are_heard() {
    let mut world = asked(Some(wish(1, &["bob", "cem"], None)), 0);
    assert_eq!(approve(&mut world, "dan"), Err(ApprovalRefusal::NotAsked("dan".into())));
    assert!(world.rollout.reject("dan", None, 9).unwrap_err().is_about_the_person());
    assert!(world.tick(1).waiting[0].to_string().ends_with("not yet: bob, cem"));
    approve(&mut world, "cem").unwrap();
    assert_eq!(world.rollout.status, RolloutStatus::Ready);
}

#[test]
fn a_controller_demands_more_and_a_wish_never_less() {
    for (wish, least, needed) in [
        (None, 0, None),
        (None, 2, Some(2)),
        (Some(wish(1, &[], None)), 2, Some(2)),
        (Some(wish(3, &[], None)), 2, Some(3)),
    ] {
        let world = asked(wish, least);
        assert_eq!(world.rollout.approval.as_ref().map(|record| record.needed), needed);
        let waits = world.rollout.status == RolloutStatus::WaitingForApproval;
        assert_eq!(waits, needed.is_some());
    }
    let mut urgent = World::new(spec(&["100%"]), &["a"]).rollout;
    urgent.spec.emergency = true;
    assert_eq!(urgent.asked_for_by("ann", 2).unwrap().status, RolloutStatus::Ready);
}

#[test]
fn silence_ends_it() {
    let mut world = asked(Some(wish(2, &[], Some(2 * DAY_MS))), 0);
    approve(&mut world, "bob").unwrap();
    let decision = world.tick(1);
    assert_eq!(decision.wake_at_ms, Some(START_MS + 2 * DAY_MS));
    assert_eq!(world.tick(2 * DAY_MS - 2).next.status, RolloutStatus::WaitingForApproval);
    world.now_ms += 1;
    assert_eq!(approve(&mut world, "cem"), Err(ApprovalRefusal::TooLate));
    let ended = world.tick(0).next;
    assert_eq!((ended.status, outcome(&world)), (RolloutStatus::Stopped, ApprovalOutcome::TimedOut));
    assert_eq!(ended.status_reason, "timed out: 1 of 2 approvals after 2 days");
    assert_eq!(serde_json::to_value(outcome(&world)).unwrap(), "timed_out");
    assert!(!world.rollout.needs_planning());
}

#[test]
fn one_rejection_ends_it_and_other_ways_out_need_nobody() {
    let mut world = asked(Some(wish(2, &[], None)), 0);
    let rejected = world.rollout.reject("bob", Some("not on a Friday"), 9).unwrap();
    assert_eq!(
        (rejected.status, rejected.status_reason.as_str()),
        (RolloutStatus::Stopped, "rejected by bob: not on a Friday")
    );
    assert_eq!(rejected.approval.as_ref().unwrap().outcome, ApprovalOutcome::Rejected);
    assert!(rejected.approve("cem", None, 10).is_err());
    assert_eq!(world.rollout.halted("eve", None, 9).unwrap().status, RolloutStatus::Stopped);
    world.apply(OperatorAction::Abort);
    assert_eq!(world.rollout.status, RolloutStatus::Stopped);
    world.apply(OperatorAction::Rollback);
    assert_eq!(world.tick(1).next.status, RolloutStatus::RolledBack);
}

#[test]
fn the_checker_counts_anew() {
    let mut world = asked(Some(wish(2, &["ann", "bob", "cem"], Some(DAY_MS))), 0);
    let waits = plan(&world.rollout, &world.fleet, world.now_ms);
    let of = |world: &World, spoil: &dyn Fn(&mut crate::Decision)| {
        let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
        spoil(&mut decision);
        verify(&world.rollout, &decision, &world.fleet, world.now_ms).expect_err("a spoilt decision must be found")
    };
    let says = |found: &[Violation], word: &str| found.iter().any(|v| v.to_string().contains(word));
    assert_eq!(verify(&world.rollout, &waits, &world.fleet, world.now_ms), Ok(()));
    assert!(says(&of(&world, &|d| d.next.status = RolloutStatus::Stopped), "before the time"));
    assert!(says(&of(&world, &|d| d.waiting.clear()), "nothing says why"));
    assert!(says(&of(&world, &|d| d.next.created_by = None), "who asked for it"));
    assert!(says(&of(&world, &|d| d.next.approval.as_mut().unwrap().needed = 1), "without them"));
    let late = verify(&world.rollout, &waits, &world.fleet, world.now_ms + DAY_MS).unwrap_err();
    assert!(says(&late, "is over, and it waits"), "{late:?}");
    // A record that does not hold what the state claims.
    for given in [&[][..], &["bob"], &["bob", "bob"], &["bob", "dan"]] {
        let record = world.rollout.approval.as_mut().unwrap();
        record.given = given
            .iter()
            .map(|by| muster_shared::rollout::Approval { by: (*by).to_string(), at_ms: 1, reason: None })
            .collect();
        let mut forged = world.rollout.clone();
        forged.status = RolloutStatus::Ready;
        let decision = plan(&forged, &world.fleet, world.now_ms);
        let found = verify(&forged, &decision, &world.fleet, world.now_ms).unwrap_err();
        assert!(says(&found, "without the approvals"), "{given:?}: {found:?}");
    }
}

proptest! {
    #[test]
    fn it_begins_exactly_when_enough_of_the_right_people_said_so(
        needed in 1u32..5,
        least in 0u32..4,
        listed in prop::collection::btree_set(0usize..6, 0..6),
        who in prop::collection::vec(0usize..6, 0..12),
        late_from in prop::option::of(0usize..12),
    ) {
        const NAMES: [&str; 6] = ["ann", "bob", "cem", "dan", "eve", "fay"];
        let listed: Vec<&str> = listed.into_iter().map(|at| NAMES[at]).collect();
        let mut spec = spec(&["100%"]);
        spec.approval = Some(wish(needed, &listed, Some(1_000)));
        prop_assume!(spec.validate().is_ok());
        let mut world = World::new(spec, &["a"]);
        let Ok(rollout) = world.rollout.clone().asked_for_by("ann", least) else {
            prop_assert!(listed == ["ann"] || (!listed.is_empty() && listed.len() < least as usize));
            return Ok(());
        };
        world.rollout = rollout;
        let mut heard = BTreeSet::new();
        for (at, name) in who.into_iter().map(|at| NAMES[at]).enumerate() {
            if late_from == Some(at) {
                world.tick(1_000);
            }
            let before = world.rollout.status;
            let taken = approve(&mut world, name).is_ok();
            let may = before == RolloutStatus::WaitingForApproval && (listed.is_empty() || listed.contains(&name));
            prop_assert_eq!(taken, may && heard.insert(name));
            let enough = heard.len() >= needed.max(least) as usize && heard.iter().any(|name| *name != "ann");
            if before == RolloutStatus::WaitingForApproval {
                prop_assert_eq!(world.rollout.status == RolloutStatus::Ready, enough);
            }
            let decision = world.tick(0);
            prop_assert!(enough || decision.actions.is_empty());
            let waits = decision.waiting.iter().any(|waiting| matches!(waiting, Waiting::Approval { .. }));
            prop_assert_eq!(waits, decision.next.status == RolloutStatus::WaitingForApproval);
        }
    }
}
