//! The rules of a rollout, each seen from outside: a small fleet, ticks, and what the planner makes of them.

mod aborts;
mod analyses;
mod approvals;
mod aside;
mod beginning;
mod beside;
mod blue_green;
mod checker;
mod cohorts;
mod deadlines;
mod emergencies;
mod experiments;
mod explain;
mod failures;
mod gate;
mod going_back;
mod operators;
mod rate;
mod reach;
mod replay;
mod scenarios;
mod sentences;
mod shadow_first;
mod timing;
mod waves;
mod world;
