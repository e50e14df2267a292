//! The rules that a decision can break.

use muster_shared::ids::DeviceId;
use muster_shared::rollout::RolloutStatus;

/// A rule that a decision breaks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Violation {
    /// Something that never changes did.
    #[error("{what} changed, which never changes")]
    Changed {
        /// What.
        what: &'static str,
    },
    /// Only an operator takes a rollout out of this state, and nothing about it changes meanwhile.
    #[error("the rollout is {0} and changed without an operator")]
    Absorbing(RolloutStatus),
    /// There is no such way between two states.
    #[error("a rollout does not go from {from} to {to}")]
    Transition {
        /// The state before.
        from: RolloutStatus,
        /// The state after.
        to: RolloutStatus,
    },
    /// People were not asked, or not heard.
    #[error("approval: {0}")]
    Approval(&'static str),
    /// It began before it might.
    #[error("the rollout began, but {0}")]
    Begun(&'static str),
    /// Devices are another rollout's, and it completed as though they were not meant.
    #[error("the rollout completed without {0} devices of another one, and does not say so")]
    Unsaid(usize),
    /// It completed without a device that it means and that was kept out.
    #[error("the rollout completed without {0}, which a freeze or its windows kept out")]
    Forgotten(DeviceId),
    /// More devices came in than the rate lets.
    #[error("{came} devices came in within a minute, the rate lets {allowed}")]
    TooFast {
        /// Those of the minute.
        came: u64,
        /// The rate that counts now, in devices a minute.
        allowed: f64,
    },
    /// What is remembered of devices that came in is not what happened, or a wave soaks without those that the rate held.
    #[error("rate: {0}")]
    Rate(&'static str),
    /// Waves come one after the other.
    #[error("wave {to} cannot follow wave {from} here")]
    WaveSkipped {
        /// The wave before, counted from 0.
        from: u32,
        /// The wave after, counted from 0.
        to: u32,
    },
    /// A time of a wave was set to what it cannot be.
    #[error("{what} of wave {wave} was set to a time at which it did not happen")]
    Time {
        /// Which time.
        what: &'static str,
        /// Which wave, counted from 0.
        wave: u32,
    },
    /// A verdict was changed, forged, or is not what followed from it.
    #[error("verdicts: {0}")]
    Verdict(&'static str),
    /// A wave passed without what it needs.
    #[error("wave {wave} passed, but {why}")]
    Unfounded {
        /// Which wave, counted from 0.
        wave: u32,
        /// What is missing.
        why: String,
    },
    /// A limit is passed, and the wave goes on.
    #[error("wave {wave} goes on, but {why}")]
    LimitIgnored {
        /// Which wave, counted from 0.
        wave: u32,
        /// Which limit.
        why: String,
    },
    /// A comparison of devices is not what it must be.
    #[error("comparison of wave {wave}: {why}")]
    Gate {
        /// Which wave, counted from 0.
        wave: u32,
        /// What is wrong.
        why: String,
    },
    /// Abort criteria are not what they must be.
    #[error("abort criteria in wave {wave}: {why}")]
    Abort {
        /// Which wave, counted from 0.
        wave: u32,
        /// What is wrong.
        why: String,
    },
    /// An analysis is not what it must be.
    #[error("analysis of wave {wave}: {why}")]
    Analysis {
        /// Which wave, counted from 0.
        wave: u32,
        /// What is wrong.
        why: String,
    },
    /// A wave has more devices than its size allows.
    #[error("wave {wave} took devices in up to {have}, its size allows {allowed}")]
    CapExceeded {
        /// Which wave, counted from 0.
        wave: u32,
        /// Devices it has.
        have: usize,
        /// Devices it may have.
        allowed: usize,
    },
    /// A device was dropped from the rollout.
    #[error("{0} was dropped: cohorts only grow")]
    Dropped(DeviceId),
    /// A device was taken in that may not be.
    #[error("{device} was taken in, but {why}")]
    TakenIn {
        /// Which.
        device: DeviceId,
        /// Why it may not.
        why: &'static str,
    },
    /// The target of a device was changed as it may not be.
    #[error("the target of {device} is wrong: {why}")]
    Target {
        /// Which.
        device: DeviceId,
        /// How.
        why: &'static str,
    },
    /// The deadline of a device was not kept as it was asked for.
    #[error("the deadline of {device} is wrong: {why}")]
    Deadline {
        /// Which.
        device: DeviceId,
        /// How.
        why: &'static str,
    },
    /// What is kept of the updates of a device is not what happened.
    #[error("what is kept of {device} is wrong: {why}")]
    Noted {
        /// Which.
        device: DeviceId,
        /// How.
        why: &'static str,
    },
    /// An emergency is not what it must be.
    #[error("emergency: {0}")]
    Emergency(&'static str),
    /// An emergency leaves a device out that it can have.
    #[error("the emergency leaves {0} out")]
    LeftOut(DeviceId),
    /// A device is told something it must not be told.
    #[error("{device} must not be told: {why}")]
    Told {
        /// Which.
        device: DeviceId,
        /// Why not.
        why: &'static str,
    },
    /// A device is not told what it must be told.
    #[error("{0} does not know what it shall run, and is not told")]
    NotTold(DeviceId),
    /// The rollout counts as rolled back, but a device that can be reached is not back.
    #[error("the rollout is rolled back, but {0} is not")]
    NotBack(DeviceId),
    /// The operator is not told why the rollout is not further.
    #[error("nothing says why the rollout is not further")]
    Silent,
    /// The time to plan again is not ahead.
    #[error("the time to plan again is not ahead")]
    Wake,
}
