//! What a comparison of devices on two bundles may conclude, and how often it is wrong.
//!
//! The device is the statistical unit: requests of one device resemble each other, so every device gives one score a
//! guardrail, larger being worse, however many requests it served. [`blocks`] matches each canary with controls,
//! [`EProcess`] says when the canaries are worse, [`Margin`] when they are not worse by more than is allowed, [`max_t`] whether they differ in any of many
//! numbers, and
//! [`wave_alpha`] how much of the chance to be wrong a wave may spend, and [`power()`] what so many blocks can
//! tell. None of them knows a rollout or a clock.
//! `muster-bench gate` shows the rates.

mod blocks;
mod e_process;
mod margin;
mod max_t;
mod power;
mod random;
mod spending;
#[cfg(test)]
mod tests;

pub use blocks::{Member, blocks, spread};
pub use e_process::EProcess;
pub(crate) use e_process::log_mean_exp;
pub use margin::{MIN_BLOCKS, Margin};
pub use max_t::{MaxT, max_t};
pub use power::{Power, power};
pub use spending::wave_alpha;
