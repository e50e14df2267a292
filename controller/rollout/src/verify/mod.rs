//! Holds decisions against the rules of a rollout.
//!
//! It is written from the rules, not from the planner, and shares no code with it but the types: a fault of the planner
//! must not hide itself. It does not say what the best decision were, only that this one is none of the forbidden ones:
//! a wave never exceeds its size; nothing passes without evidence; a limit that is passed is obeyed; analyses are what was measured; only operators
//! leave the states that absorb; generations only grow; cohorts only grow; nobody is told who must not be, and nobody
//! is forgotten who must be.

mod abort;
mod actions;
mod analysis;
mod approval;
mod beginning;
mod blue_green;
mod conflict;
mod drift;
mod emergency;
mod endings;
mod gate;
mod history;
mod inputs;
mod notes;
mod promotion;
mod rate;
mod reading;
mod recall;
mod scores;
mod shadow_first;
mod targets;
mod timing;
mod violation;

pub use violation::Violation;

use crate::fleet::Fleet;
use crate::plan::Decision;
use crate::rollout::Rollout;

/// A decision together with what it was made from, and the rules found broken.
struct Case<'a> {
    before: &'a Rollout,
    next: &'a Rollout,
    decision: &'a Decision,
    fleet: &'a Fleet,
    now_ms: u64,
    found: Vec<Violation>,
}

/// Checks `decision`, which was made from `before`, `fleet` and `now_ms`.
///
/// # Errors
/// Every rule it breaks.
pub fn verify(before: &Rollout, decision: &Decision, fleet: &Fleet, now_ms: u64) -> Result<(), Vec<Violation>> {
    let mut case = Case { before, next: &decision.next, decision, fleet, now_ms, found: Vec::new() };
    case.history();
    case.approval();
    case.beginning();
    case.conflict();
    case.targets();
    case.endings();
    case.switches();
    case.recall();
    case.timing();
    case.rate();
    case.actions();
    case.promotion();
    case.gate();
    case.analyses();
    case.abort_criteria();
    case.emergency();
    case.inputs();
    case.notes();
    case.retreat();
    if case.found.is_empty() { Ok(()) } else { Err(case.found) }
}

impl Case<'_> {
    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> Violation) {
        if !holds {
            self.found.push(otherwise());
        }
    }
}
