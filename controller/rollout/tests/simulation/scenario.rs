//! What may happen in a run, and how often.

use muster_rollout::{BundleFacts, Rollout};
use muster_shared::ids::Digest;
use muster_shared::rollout::{Limits, RolloutSpec, WaveSize, WaveSpec};
use muster_shared::selector::Selector;
use proptest::prelude::*;

use crate::device::reference;

pub(crate) const TICK_MS: u64 = 1_000;
pub(crate) const START_MS: u64 = 10_000_000;
const MAX_MS: u64 = 15 * TICK_MS;

/// A run. Shares are times in a hundred, at every tick and for every device or message they are about.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) devices: usize,
    /// Sizes of the waves before the last.
    pub(crate) canaries: Vec<WaveSize>,
    /// Whether the first wave is for one of two sites alone.
    pub(crate) by_site: bool,
    pub(crate) max_failures: u32,
    /// Ticks with faults.
    pub(crate) ticks: u64,
    /// Messages lost, late or repeated, each.
    pub(crate) messages_percent: u32,
    /// Devices that go or come back.
    pub(crate) presence_percent: u32,
    /// Devices that fail or revert by themselves.
    pub(crate) fails_percent: u32,
    pub(crate) crashes_percent: u32,
    /// The controller dies before or after it has stored a decision, or starts anew.
    pub(crate) controller_percent: u32,
    pub(crate) clock_percent: u32,
    pub(crate) operator_percent: u32,
    /// Devices enrol, vanish, are revoked, relabelled, taken by other rollouts, or claim a generation of their own.
    pub(crate) fleet_percent: u32,
    /// The bundle fails every request.
    pub(crate) is_bad: bool,
    /// No device measures anything.
    pub(crate) is_silent: bool,
}

impl Scenario {
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        let size = prop_oneof![(1u32..4).prop_map(WaveSize::Count), (1u8..=100).prop_map(WaveSize::Percent)];
        // Often nothing of a kind, so that a failure can be shrunk to the fault that matters.
        let share = |most: u32| prop_oneof![1 => Just(0), 2 => 1..=most];
        (
            (any::<u64>(), 0usize..7, prop::collection::vec(size, 0..3), any::<bool>(), 0u32..3, 5u64..25),
            (share(30), share(15), share(10), share(4), share(20)),
            (share(10), share(10), share(15), prop::bool::weighted(0.25), prop::bool::weighted(0.1)),
        )
            .prop_map(|((seed, devices, canaries, by_site, max_failures, ticks), faults, rest)| {
                let (messages_percent, presence_percent, fails_percent, crashes_percent, controller_percent) = faults;
                let (clock_percent, operator_percent, fleet_percent, is_bad, is_silent) = rest;
                Self {
                    seed,
                    devices,
                    canaries,
                    by_site,
                    max_failures,
                    ticks,
                    messages_percent,
                    presence_percent,
                    fails_percent,
                    crashes_percent,
                    controller_percent,
                    clock_percent,
                    operator_percent,
                    fleet_percent,
                    is_bad,
                    is_silent,
                }
            })
    }

    /// The same without any further fault.
    pub(crate) fn at_peace(&self) -> Self {
        Self {
            messages_percent: 0,
            presence_percent: 0,
            fails_percent: 0,
            crashes_percent: 0,
            controller_percent: 0,
            clock_percent: 0,
            operator_percent: 0,
            fleet_percent: 0,
            ..self.clone()
        }
    }

    /// The manifest of the bundle that is brought out.
    pub(crate) fn bundle(&self) -> Digest {
        Digest::from_bytes([7; 32])
    }

    /// The manifest of the incumbent.
    pub(crate) fn incumbent(&self) -> Digest {
        Digest::from_bytes([3; 32])
    }

    pub(crate) fn rollout(&self) -> Rollout {
        let wave = |size, selector| WaveSpec { selector, ..WaveSpec::of(size, 2 * TICK_MS, MAX_MS) };
        let site = |at: usize| (self.by_site && at == 0).then(|| "site=s0".parse().expect("a selector"));
        let mut waves: Vec<WaveSpec> =
            self.canaries.iter().enumerate().map(|(at, size)| wave(*size, site(at))).collect();
        waves.push(wave(WaveSize::Percent(100), None));
        let limits = Limits {
            max_failures: self.max_failures,
            min_reports: 2,
            min_requests: 8,
            max_latency_p99_ratio: 10.0,
            // Few predictions scatter much: this run is about the order of things, not about the score.
            max_prediction_psi: 50.0,
            ..Limits::default()
        };
        let spec = RolloutSpec { limits, ..RolloutSpec::of(reference(), Selector::all(), waves) };
        let bundle = BundleFacts {
            manifest: self.bundle(),
            bundle: reference(),
            requirements: Default::default(),
            reference_predictions: Default::default(),
            track: Default::default(),
            features: Default::default(),
        };
        Rollout::new("r1".parse().expect("an id"), spec, bundle, START_MS).expect("a valid spec")
    }
}
