//! What the planner is told about devices. It decides nothing; the controller fills it from its store.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use muster_shared::ids::{DeviceId, Digest, MetricName, RolloutId};
use muster_shared::messages::{RequestCounts, StateReport};
use muster_shared::rollout::Freeze;
use muster_shared::selector::Selector;
use muster_shared::sketch::{LatencySketch, ObjectiveCounts, RightCounts};
use serde::{Deserialize, Serialize};

use crate::conflict::QueuedRollout;
use crate::shared::Shared;
use crate::updates::UpdateLog;

/// Predictions counted: by column of the profile, then by class.
pub type Predictions = BTreeMap<String, BTreeMap<String, u64>>;

/// Every device there is, whether selected or not, and what the fleet as a whole asks to heed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fleet {
    /// Devices by name.
    pub devices: BTreeMap<DeviceId, DeviceFacts>,
    /// Other rollouts that wait in the queue.
    pub queue: Vec<QueuedRollout>,
    /// Freezes, whether in force or not.
    pub freezes: Vec<Freeze>,
}

/// What is known of one device, as one rollout must see it at one moment. What every rollout sees alike is read as if it lay here.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceFacts {
    /// What does not depend on who asks.
    pub known: Shared<KnownFacts>,
    /// Whether it is connected.
    pub online: bool,
    /// When it was heard last.
    pub last_seen_ms: Option<u64>,
    /// Another rollout, not finished, that this device takes part in ([`crate::Rollout::takes_part`]).
    pub held_by: Option<RolloutId>,
    /// What it measured, from windows received at or after [`crate::Rollout::evidence_since_ms`]. It may be left out where another rollout holds the
    /// device and it does not take part in this one, which then has no use for it.
    pub evidence: Shared<Vec<Evidence>>,
    /// The same from windows received at or after [`crate::Rollout::scored_since_ms`], of [`crate::Rollout::scored_devices`] alone.
    pub soak: Shared<Vec<Evidence>>,
}

/// What the store and the device itself say of it, whichever rollout asks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KnownFacts {
    /// Set by operators.
    pub labels: BTreeMap<String, String>,
    /// Reported by the device.
    pub attributes: BTreeMap<String, String>,
    /// Its certificate is no longer accepted.
    pub revoked: bool,
    /// Why no rollout may take it in, where an operator said so.
    pub pinned: Option<String>,
    /// Why none but an emergency may, where updates failed on it again and again.
    pub quarantined: Option<String>,
    /// How updates went on it so far.
    pub updates: UpdateLog,
    /// What the store says it shall run.
    pub desired: Option<Desired>,
    /// What it said last of itself.
    pub reported: Option<StateReport>,
}

impl Deref for DeviceFacts {
    type Target = KnownFacts;
    fn deref(&self) -> &KnownFacts {
        &self.known
    }
}

impl DerefMut for DeviceFacts {
    fn deref_mut(&mut self) -> &mut KnownFacts {
        &mut self.known
    }
}

impl KnownFacts {
    /// Whether `selector` means the device, which is called `id`.
    #[must_use]
    pub fn is_meant_by(&self, selector: &Selector, id: &DeviceId) -> bool {
        selector.matches(id.as_str(), &self.labels, &self.attributes)
    }

    /// The bundle that it says it has committed.
    #[must_use]
    pub fn committed(&self) -> Option<Digest> {
        self.reported.as_ref()?.committed.as_ref().map(|bundle| bundle.manifest)
    }

    /// What operators call `key`, or else what the device says it is.
    #[must_use]
    pub fn label_or_attribute(&self, key: &str) -> Option<&String> {
        self.labels.get(key).or_else(|| self.attributes.get(key))
    }
}

/// What the store says a device shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// Digest of the manifest; none to run nothing.
    pub manifest: Option<Digest>,
    /// The generation of the assignment.
    pub generation: u64,
    /// The rollout it belongs to.
    pub rollout: RolloutId,
}

/// What one device measured of one bundle under one generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// Digest of the manifest that served.
    pub manifest: Digest,
    /// The generation under which it served.
    pub generation: u64,
    /// Telemetry windows with at least one request served.
    pub reports: u32,
    /// Requests by outcome.
    pub requests: RequestCounts,
    /// Latency of requests served, in microseconds: of a shadow, how long its model ran.
    pub latency_us: LatencySketch,
    /// The same held against the bundle's latency objectives: [`ObjectiveCounts::share_above`] is a device's exact share of slow requests.
    pub objectives: ObjectiveCounts,
    /// How long the incumbent's model ran for the same requests, in microseconds; empty where the bundle was no shadow.
    pub incumbent_us: LatencySketch,
    /// Classes predicted.
    pub predictions: Predictions,
    /// Times the agent found that it had not been stopped in order.
    pub crashes: u32,
    /// Labels of its answers, where they are classes.
    pub labels: RightCounts,
    /// How it compared with the incumbent it ran beside; nothing where it ran beside none.
    pub beside: BesideCounts,
    /// Confidence of its answers, where its profile watches that.
    pub confidence: Mean,
    /// Resident memory of the agent in bytes, once a window.
    pub memory: Mean,
    /// Temperature of the device in degrees Celsius, once a window.
    pub temperature: Mean,
    /// Numbers that applications sent.
    pub numbers: BTreeMap<MetricName, Mean>,
}

/// Numbers added up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mean {
    /// How many.
    pub count: u64,
    /// All of them together.
    pub sum: f64,
}

impl Mean {
    /// That of `count` numbers whose mean is `mean`.
    #[must_use]
    pub fn of(count: u64, mean: f64) -> Self {
        Self { count, sum: mean * count as f64 }
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.sum += other.sum;
    }

    /// The mean; none of no numbers.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64).filter(|mean| mean.is_finite())
    }
}

impl Evidence {
    /// Nothing measured yet.
    #[must_use]
    pub fn of(manifest: Digest, generation: u64) -> Self {
        Self {
            manifest,
            generation,
            reports: 0,
            requests: RequestCounts::default(),
            latency_us: LatencySketch::default(),
            objectives: ObjectiveCounts::default(),
            incumbent_us: LatencySketch::default(),
            predictions: Predictions::new(),
            crashes: 0,
            labels: RightCounts::default(),
            beside: BesideCounts::default(),
            confidence: Mean::default(),
            memory: Mean::default(),
            temperature: Mean::default(),
            numbers: BTreeMap::new(),
        }
    }
}

/// How the answers of a bundle compared with those of the incumbent that it ran beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BesideCounts {
    /// Rows for which both named the same class.
    pub agreed: u64,
    /// Rows for which they did not.
    pub disagreed: u64,
    /// Labels of the incumbent's answers.
    pub incumbent: RightCounts,
    /// Labels of the bundle's own.
    pub candidate: RightCounts,
}

impl BesideCounts {
    /// Adds what another window counted.
    pub fn merge(&mut self, other: &Self) {
        self.agreed = self.agreed.saturating_add(other.agreed);
        self.disagreed = self.disagreed.saturating_add(other.disagreed);
        self.incumbent.merge(&other.incumbent);
        self.candidate.merge(&other.candidate);
    }
}
