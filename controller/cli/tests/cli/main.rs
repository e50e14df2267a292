//! The command line as its users meet it: the real binary, its files, its output and its exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod bad_input;
mod bundles;
mod drift;
#[cfg(target_os = "linux")]
mod full_disk;
#[cfg(target_os = "linux")]
mod keys;
mod online;
mod pipelines;
mod programs;
mod replay;
mod roots;
mod run;
mod server;
#[cfg(target_os = "linux")]
mod signers;
#[cfg(target_os = "linux")]
mod terminal;
