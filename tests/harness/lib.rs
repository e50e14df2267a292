//! Runs Muster as its users do: the real binaries as processes of their own, on free ports, in a folder of their own.
//!
//! The demo, the integration tests and the benchmarks all stand on this. It decides nothing about Muster itself: it
//! starts, drives, disturbs and observes.

pub mod binaries;
pub mod controller;
pub mod device;
pub mod fixtures;
pub mod fleet;
pub mod gate_draws;
pub mod keys;
pub mod link;
pub mod machine;
mod metrics;
pub mod mosquitto;
pub mod null_draws;
pub mod operator;
pub mod png;
pub mod prediction_draws;
pub mod process;
pub mod programs;
pub mod random;
pub mod small_disk;
pub mod traffic;
pub mod wait;
