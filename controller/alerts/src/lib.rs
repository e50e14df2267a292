//! Decisions of the controller about alerts, free of IO and clock.
//!
//! [`Book::evaluate`] takes what was measured in a round and says how every alert stands, what has changed and what receivers
//! are to be told. What is measured and how receivers are reached is the controller's matter.
//!
//! - A value must be bad for the rule's `for` before its alert fires, and good for `keep_firing_for` before it is over. In between it
//!   keeps its state, so that a value that flaps is told of once.
//! - Values that come with a p-value may begin an alert only where Benjamini and Hochberg's procedure over the whole round lets them:
//!   of all alerts that drift begins, the expected share of false ones stays below a limit however many columns, bundles and groups
//!   there are.
//! - Receivers are told of a change of state, once; an alert under a silence changes its state all the same.
//! - What is measured no more neither fires nor is good: an alert ends for want of values only after a while, and says so.
//!
//! All times are milliseconds since the Unix epoch and come in as arguments. A clock set back makes alerts wait longer.

mod book;
mod builtin;
mod discovery;
mod observe;
mod retry;
mod wording;

pub use book::{Book, Change, Limits, Notice, Step};
pub use builtin::{OVERFLOW_RULE, built_in_rules, rules_in_force};
pub use discovery::discoveries;
pub use observe::{Observation, Round, fingerprint};
pub use retry::retry_wait_ms;

#[cfg(test)]
mod tests;
